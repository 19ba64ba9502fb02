"""From a code of StyleGAN2-FFHQ to three normalized views, as FFHQ-UV makes them (Sec. 3.1.1, items 2 to 5).

What the face shows is measured once; StyleFlow then takes the light, glasses, yaw, pitch and hair to their targets, a
traversal along one direction takes the smile away for as long as a classifier finds one, and two more edits turn the
head.
:mod:`facerecon.editing.latent_traversal` is what the open pack has instead; it measures every picture it makes and
corrects by it.

Unlike FFHQ-UV: its attributes are a closed service's. Here yaw, pitch, age, gender and glasses are measured by ours,
baldness by the parsing of hair, the smile by the classifier that also stops the traversal; a beard is not measured, and
taken for none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from facerecon.editing.attributes import AttributeMeter, Attributes
from facerecon.editing.latent_traversal import Normalized, TraversalSettings, trace_row, unmet
from facerecon.editing.styleflow import CONDITIONS, EDITED_ROWS, ConditionalFlow
from facerecon.errors import ConfigError, ShapeError, check_shape
from facerecon.perception.attributes import AttributeNet
from facerecon.perception.bisenet import CLASSES
from facerecon.perception.parsing import FaceParser
from facerecon.perception.vgg_expression import FER_EXPRESSIONS

__all__ = ["TARGETS", "ConditionMeter", "FlowNormalizer", "baldness"]

TARGETS: dict[str, float | tuple[float, ...]] = {
    "light": (1.0, *[0.0] * 8), "glasses": 0.0, "yaw": 0.0, "pitch": 0.0, "baldness": 1.0,
}  # fmt: skip
"""What the flow makes of the front view, in the release's order; the light is DPR's."""

_FIRST, _MORE, _SHARE = -2.0, 5, 0.05
"""Of the traversal along the smile: first step per smile, how many may follow, share of the first that each adds."""
_HAIR = 0.5  # area of hair over that of the face from which on a head is not bald at all
_SMILE = FER_EXPRESSIONS.index("happy")
_FACE = ("skin", "nose", "left_brow", "right_brow", "left_eye", "right_eye", "mouth", "upper_lip", "lower_lip")


def baldness(probabilities: Tensor) -> Tensor:
    """How bald heads are, (B,): 1 without hair, 0 where hair covers half the area of the face, or more.

    Args:
        probabilities: (B, 19, H, W) of :data:`~facerecon.perception.bisenet.CLASSES`.
    """
    check_shape("probabilities", probabilities, f"B {len(CLASSES)} H W")
    area = probabilities.sum((2, 3))
    face = area[:, [CLASSES.index(name) for name in _FACE]].sum(1)
    return (1 - area[:, CLASSES.index("hair")] / (_HAIR * face).clamp(min=1.0)).clamp(0, 1)


class ConditionMeter:
    """The 17 attributes that StyleFlow is told, of aligned faces.

    In the units of its training data: the light DPR's nine coefficients; gender 0 for a woman and 1 for a man; glasses
    0 or 1; yaw and pitch in degrees, as :class:`~facerecon.editing.attributes.Attributes` has them; baldness, beard and
    smile from 0 to 1; age in years.

    Args:
        light: portraits (B, 3, H, W) in [0, 1] -> (B, 9), DPR.
        expression: image and 68 landmarks -> probabilities (B, 7) of ``FER_EXPRESSIONS``.
        parser: its hair mask gives the baldness of a head.
    """

    def __init__(self, light: Callable[[Tensor], Tensor], expression: AttributeNet, parser: FaceParser) -> None:
        self.light, self.expression, self.parser = light, expression, parser

    @torch.no_grad()
    def __call__(self, image: Tensor, seen: Attributes) -> Tensor:
        """(B, 17).

        Args:
            image: (B, 3, S, S) in [0, 1].
            seen: what :class:`AttributeMeter` measured on it.
        """
        check_shape("image", image, "B 3 H W")
        values = {
            "light": self.light(image),
            "gender": (seen.male > 0.5).float(),
            "glasses": (seen.probability("glasses") > 0.5).float(),
            "yaw": seen.yaw,
            "pitch": seen.pitch,
            "baldness": baldness(self.parser.probabilities(image)),
            "beard": torch.zeros_like(seen.yaw),
            "age": seen.age,
            "expression": self.expressions(image, seen)[:, _SMILE],
        }
        condition = image.new_zeros(len(image), 17)
        for name, place in CONDITIONS.items():
            condition[:, place] = values[name].view(len(image), -1).to(condition)
        return condition

    @torch.no_grad()
    def expressions(self, image: Tensor, seen: Attributes) -> Tensor:
        """(B, 7) probabilities of ``FER_EXPRESSIONS``."""
        return self.expression(image, seen.landmarks68)


class FlowNormalizer:
    """Edits a code of W+ once for each attribute; it is called as
    :class:`~facerecon.editing.latent_traversal.AttributeNormalizer` is.

    Args:
        generator: codes (B, 18, 512) -> images in [0, 1].
        flow: StyleFlow's.
        smile: (1 or 18, 512), the direction of a smile.
        meter: images -> Attributes.
        conditions: what the flow is told of the source.
        settings: ``yaw`` and the limits, which ``Normalized.reasons`` is about; nothing else of it is used.

    Raises:
        ConfigError: a yaw that no side view can have.
        ShapeError: a direction of another shape.
    """

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        flow: ConditionalFlow,
        smile: Tensor,
        meter: AttributeMeter,
        conditions: ConditionMeter,
        settings: TraversalSettings | None = None,
    ) -> None:
        self.generator, self.flow, self.meter, self.conditions = generator, flow, meter, conditions
        self.settings = settings or TraversalSettings()
        if not 0 < self.settings.yaw <= 60:
            raise ConfigError(f"yaw must be above 0 and at most 60 degrees; got {self.settings.yaw}.")
        rows = EDITED_ROWS["expression"].stop
        if smile.shape not in ((1, 512), (rows, 512)):
            raise ShapeError(f"smile must be (1, 512) or ({rows}, 512); got {tuple(smile.shape)}.")
        self.smile, self.rows = smile.float(), rows

    @torch.no_grad()
    def __call__(self, w: Tensor) -> Normalized:
        """Normalize one face: ``w`` (18, 512), or (512,) for all rows; another shape is a ShapeError."""
        if w.shape not in ((512,), (self.rows, 512)):
            raise ShapeError(f"w must be (512,) or ({self.rows}, 512); got {tuple(w.shape)}. Normalize one at a time.")
        code = w.expand(self.rows, 512)[None].float()
        trace: list[dict] = []
        code, source_image, source = self._look(code, "source", trace, None)
        condition = self.conditions(source_image, source)
        trace[-1]["condition"] = [round(float(value), 4) for value in condition[0]]
        smile = float(condition[0, CONDITIONS["expression"]])
        for attribute, target in TARGETS.items():
            code, condition = self.flow.edit(code, condition, attribute, torch.tensor(target))
        front, image, seen, left = self._without_smile(code, smile, source, trace)
        condition[:, CONDITIONS["expression"]] = left
        codes, images, views = [front], [image], [seen]
        for name, yaw in (("left", self.settings.yaw), ("right", -self.settings.yaw)):
            turned, _ = self.flow.edit(front, condition, "yaw", yaw)
            turned, image, seen = self._look(turned, name, trace, source)
            codes.append(turned), images.append(image), views.append(seen)
        attributes = Attributes.cat(views)
        reasons = unmet(self.settings, source, attributes)
        return Normalized(torch.cat(codes), torch.cat(images), source, attributes, trace, reasons, source_image[0])

    def _look(
        self, code: Tensor, name: str, trace: list[dict], source: Attributes | None
    ) -> tuple[Tensor, Tensor, Attributes]:
        """The code rounded to what a manifest keeps (half precision), its picture, and what it shows."""
        code = code.half().float()
        image = self.generator(code)
        seen = self.meter(image)
        trace.append(trace_row(name, seen, 0, seen if source is None else source))
        return code, image, seen

    def _without_smile(
        self, code: Tensor, smile: float, source: Attributes, trace: list[dict]
    ) -> tuple[Tensor, Tensor, Attributes, float]:
        """Away from the smile: a first step by its measured size, then small ones while the prediction is "happy"."""
        for k in range(_MORE + 1):
            strength = _FIRST * smile * (1 + k * _SHARE)
            moved, image, seen = self._look(code + strength * self.smile, f"front {k + 1}", trace, source)
            found = self.conditions.expressions(image, seen)[0]
            if int(found.argmax()) != _SMILE:
                break
        return moved, image, seen, float(found[_SMILE])
