"""From any code of the face generator to three images a texture can be made of (Sec. 3.1.1).

Evenly lit, neutral, mouth closed, nothing on the face; from the front and from both sides. The release edits once and
trusts its flow; here every edit is measured on the image it makes, and corrected by what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facerecon.editing.accessories import ACCESSORIES
from facerecon.editing.attributes import AttributeMeter, Attributes
from facerecon.editing.directions import LIGHT, STEADY, Editor, measured_values
from facerecon.errors import ConfigError, ShapeError

__all__ = ["Normalized", "AttributeNormalizer", "TraversalSettings", "trace_row", "unmet"]


@dataclass(frozen=True)
class TraversalSettings:
    """What is wanted, when it is met, and how long to try.

    Args:
        yaw: degrees of the side views; the first one ("left") looks to the image's right, +yaw. The editor styleflow
            takes this setting alone.
        smile: largest smile that is wanted, as the meter measures it.
        opening: widest opening of the mouth that is wanted, as the meter measures it (closed mouths have 0.00 to 0.03).
        happy_margin: codes are moved to at most minus this margin of the class smile.
        glasses_margin: codes are moved to at most minus this margin of the class glasses.
        headwear_margin: codes are moved to at most minus this margin of the class headwear.
        fringe_margin: codes are moved to at most minus this margin of the class fringe.
        push: margin by which a code is moved further if its image still shows what it should not.
        light: share of bands 1-8 to remove in a step (0 leaves the light alone).
        rounds: evaluations of the front at most, the source not counted.
        side_rounds: evaluations of each side at most.
        enough: cost (sum of squares, each target in units of its limit) at which a view is done.
        yaw_tolerance: degrees by which a side view may miss its yaw.
        pitch_tolerance: degrees by which a view may be tilted.
        front_tolerance: degrees by which the front view may be turned; only for ``Normalized.reasons``.
        happy_limit: ``Attributes.smiling`` beyond which the target is not met.
        opening_limit: opening of the mouth beyond which the target is not met.
        evenness_limit: energy of bands 1-8 over band 0 beyond which the target is not met.
        identity_limit: distance of identity embeddings, source to front, beyond which it is another person.
        class_limit: probability beyond which glasses or headwear count as left; only for ``Normalized.reasons``.
        fringe_limit: probability beyond which a fringe counts as left; only for ``Normalized.reasons``.
    """

    yaw: float = 30.0
    smile: float = -0.01
    opening: float = 0.01
    happy_margin: float = 1.0
    glasses_margin: float = 3.5
    headwear_margin: float = 3.5
    fringe_margin: float = 1.5
    push: float = 1.5
    light: float = 1.0
    rounds: int = 3
    side_rounds: int = 3
    enough: float = 1.2
    yaw_tolerance: float = 4.0
    pitch_tolerance: float = 5.0
    front_tolerance: float = 3.0
    happy_limit: float = 0.3
    opening_limit: float = 0.06
    evenness_limit: float = 0.18
    identity_limit: float = 0.75
    class_limit: float = 0.5
    fringe_limit: float = 0.5


@dataclass(frozen=True)
class Normalized:
    """Three views of one subject, in the order front, left, right.

    Args:
        codes: (3, 512), or (3, L, 512) if the source was a code of L rows.
        images: (3, 3, S, S) in [0, 1].
        source_image: (3, S, S), the unedited face.
        source: what the unedited image showed (B = 1).
        attributes: what the three show (B = 3).
        trace: a plain record of each evaluation.
        reasons: targets that were not met, "filter: what is wrong"; empty if all were.
    """

    codes: Tensor
    images: Tensor
    source: Attributes
    attributes: Attributes
    trace: list
    reasons: list
    source_image: Tensor


class AttributeNormalizer:
    """Edits codes until the measured attributes are those of a texture source.

    Args:
        generator: codes (B, 512) or (B, L, 512) -> images in [0, 1].
        directions: :class:`~facerecon.editing.directions.Directions`, or any
            :class:`~facerecon.editing.directions.Editor`.
        meter: images -> Attributes.
        settings: targets and limits.
    """

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        directions: Editor,
        meter: AttributeMeter,
        settings: TraversalSettings | None = None,
    ) -> None:
        self.generator, self.directions, self.meter = generator, directions, meter
        self.settings = settings or TraversalSettings()
        if not (0 < self.settings.yaw <= 60 and self.settings.rounds >= 1 and self.settings.side_rounds >= 1):
            raise ConfigError(
                f"a traversal needs yaw in (0, 60] and rounds, side_rounds of 1 or more; got {self.settings.yaw}, "
                f"{self.settings.rounds}, {self.settings.side_rounds}."
            )

    @torch.no_grad()
    def __call__(self, w: Tensor) -> Normalized:
        """Normalize one face: ``w`` (512,), or one style a layer (L, 512), all shifted alike; else a ShapeError."""
        if w.dim() not in (1, 2) or w.shape[-1] != 512:
            raise ShapeError(f"w must be (512,) or (L, 512); got {tuple(w.shape)}. Normalize one face at a time.")
        traversal = _Traversal(self, w)
        front = traversal.front()
        codes, images, attributes = traversal.sides(front)
        reasons = unmet(self.settings, traversal.source, attributes)
        return Normalized(codes, images, traversal.source, attributes, traversal.trace, reasons, traversal.source_image)


class _Traversal:
    """One subject's traversal. A shift (B, 512) is added to every row of the source code."""

    def __init__(self, normalizer: AttributeNormalizer, w: Tensor) -> None:
        self.n, self.settings, self.w = normalizer, normalizer.settings, w
        self.trace: list[dict[str, Any]] = []
        images, self.source = self.look("source", w.new_zeros(1, 512))
        self.source_image = images[0]

    def codes(self, shift: Tensor) -> Tensor:
        """The shifted codes, rounded to what a manifest keeps: half precision."""
        return (self.w + (shift if self.w.dim() == 1 else shift[:, None])).half().float()

    def plain(self, shift: Tensor) -> Tensor:
        """The mean row of the shifted code, where planes are read and steps are made."""
        return (self.w if self.w.dim() == 1 else self.w.mean(0)) + shift

    def look(self, name: str, shift: Tensor) -> tuple[Tensor, Attributes]:
        codes = self.codes(shift)
        images = torch.cat([self.n.generator(code[None]) for code in codes])  # alike in any batch, to the last bit
        seen = self.n.meter(images)
        start = self.source if hasattr(self, "source") else seen
        for i, moved in enumerate(shift):
            self.trace.append(trace_row(name, seen, i, start) | {"shift": round(float(moved.norm()), 4)})
        return images, seen

    def current(self, shift: Tensor, seen: Attributes) -> dict[str, Tensor]:
        """What the image shows, and the classes as predicted from the code."""
        return self.n.directions.read(self.plain(shift)) | measured_values(seen)

    def targets(self, now: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What to move where, but for the yaw; what is fine already stays in place."""
        s = self.settings
        wanted = {"pitch": torch.zeros_like(now["pitch"])}
        if s.light > 0:
            wanted |= {name: (1 - s.light) * now[name] for name in LIGHT}
        wanted["smile"] = now["smile"].clamp(max=s.smile)
        wanted["opening"] = now["opening"].clamp(max=s.opening)
        for name in ("happy", *ACCESSORIES):
            wanted[name] = now[name].clamp(max=-getattr(s, f"{name}_margin"))
        return wanted

    def moved(self, shift: Tensor, seen: Attributes, turn: Tensor, push: bool) -> Tensor:
        """The shift after one step from what was seen towards the targets, with a ``turn`` (B,) in degrees.

        ``push`` moves what the image still shows on the face further, whatever is predicted from the code (the
        classifier knows faces from the front).
        """
        plain, now = self.plain(shift), self.current(shift, seen)
        wanted = self.targets(now) | {"yaw": now["yaw"] + turn}
        smiling = seen.smiling > 0.5 * self.settings.happy_limit
        wanted["happy"] = torch.where(smiling, (now["happy"] - 0.7).clamp(max=-0.7), wanted["happy"])
        if push:
            for k, name in enumerate(ACCESSORIES):
                step = torch.where(seen.accessories[:, k] > 0, now[name] - self.settings.push, wanted[name])
                wanted[name] = torch.minimum(wanted[name], step)
        return shift + self.n.directions.step(plain, now, wanted, STEADY) - plain

    def cost(self, seen: Attributes, yaw: Tensor, front: bool) -> Tensor:
        """(B,): how far from the targets, squared, each in units of what may be left."""
        s = self.settings
        near = (seen.yaw - yaw).abs() / s.yaw_tolerance
        far = (seen.identity - self.source.identity).norm(dim=1) / s.identity_limit
        return (
            near.square()
            + 0.3 * (seen.pitch / s.pitch_tolerance).square()
            + 2 * (seen.evenness / s.evenness_limit).square()
            + 2 * (seen.opening / s.opening_limit).square()
            + 2 * (seen.smiling / s.happy_limit).square().clamp(max=4)
            + 0.5 * far.square()
            + front * (seen.accessories.sigmoid() @ seen.accessories.new_tensor([2.0, 1.0, 2.0]))
        )

    def front(self) -> tuple[Tensor, Tensor, Attributes]:
        """Shift (1, 512), image and attributes of the best evenly lit, neutral, bare, frontal face."""
        shift, seen, zero = self.w.new_zeros(1, 512), self.source, torch.zeros_like(self.source.yaw)
        tried = []
        for k in range(self.settings.rounds):
            shift = self.moved(shift, seen, -seen.yaw, push=True)
            images, seen = self.look(f"front {k + 1}", shift)
            tried.append((float(self.cost(seen, zero, front=True)), shift, images, seen))
            if tried[-1][0] < self.settings.enough:
                break
        return min(tried, key=lambda view: view[0])[1:]

    def sides(self, front: tuple[Tensor, Tensor, Attributes]) -> tuple[Tensor, Tensor, Attributes]:
        """Codes, images and attributes of the three views."""
        shift, front_image, front_seen = front
        views = [self.side(k, name, shift, front_seen) for k, name in ((1, "left"), (-1, "right"))]
        shifts = torch.cat([shift, *(view[0] for view in views)])
        images = torch.cat([front_image, *(view[1] for view in views)])
        return self.codes(shifts), images, Attributes.cat([front_seen, *(view[2] for view in views)])

    def side(self, sign: int, name: str, shift: Tensor, seen: Attributes) -> tuple[Tensor, Tensor, Attributes]:
        """Shift, image and attributes of one side view.

        The yaw to ask for is searched between the angles that were asked for and what they gave (regula falsi,
        bounded), while each step neutralizes again what turning brought back.
        """
        yaw = torch.full_like(seen.yaw, sign * self.settings.yaw)
        points, tried = [(0.0, float(seen.yaw))], []
        for k in range(self.settings.side_rounds):
            asked = next_angle(points, float(yaw))
            shift = self.moved(shift, seen, yaw.new_full((1,), asked - points[-1][0]), push=False)
            images, seen = self.look(f"{name} {k + 1}", shift)
            points.append((asked, float(seen.yaw)))
            tried.append((float(self.cost(seen, yaw, front=False)), shift, images, seen))
            if tried[-1][0] < self.settings.enough:
                break
        return min(tried, key=lambda view: view[0])[1:]


def next_angle(points: list[tuple[float, float]], target: float) -> float:
    """Angle to ask for so that ``target`` is measured, from (asked, measured) so far; the first is the front view.

    Between the nearest measurements on both sides of the target if there are such (regula falsi), else along the
    line through the front view and the nearest one, at most 1.5 times what would be asked for if all went well.
    """
    sign = 1.0 if target > points[0][1] else -1.0
    below = [p for p in points if sign * p[1] <= sign * target]
    above = [p for p in points if sign * p[1] > sign * target]
    low = max(below, key=lambda p: sign * p[1])
    if above:
        high = min(above, key=lambda p: sign * p[1])
        share = (target - low[1]) / (high[1] - low[1])
        return low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
    first = points[0]
    rate = (low[1] - first[1]) / (low[0] - first[0]) if low[0] != first[0] else 0.85
    return low[0] + (target - low[1]) / max(rate, 0.5)


def trace_row(name: str, seen: Attributes, index: int, source: Attributes) -> dict[str, Any]:
    """A plain record of what one picture shows.

    Args:
        name: of the step.
        seen: what was measured, of which row ``index`` is meant.
        source: the unedited face's.
    """
    row = {key: round(float(getattr(seen, key)[index]), 4) for key in
           ("yaw", "pitch", "smile", "opening", "happy", "smiling", "evenness", "age", "male")}  # fmt: skip
    row |= {key: round(float(seen.probability(key)[index]), 4) for key in ACCESSORIES}
    row["identity"] = round(float((seen.identity[index] - source.identity[0]).norm()), 4)
    return {"step": name} | row


def unmet(settings: TraversalSettings, source: Attributes, seen: Attributes) -> list[str]:
    """Targets that the three views do not meet, as "filter: what is wrong".

    Args:
        settings: targets and limits.
        source: of the unedited face (B = 1).
        seen: of front, left and right view (B = 3).
    """
    s, views = settings, ("front", "left", "right")
    wanted = (0.0, s.yaw, -s.yaw)
    found = []
    for i, view in enumerate(views):
        limit = s.yaw_tolerance if i else s.front_tolerance
        if not abs(float(seen.yaw[i]) - wanted[i]) <= limit:
            found.append(f"yaw: {float(seen.yaw[i]):.1f} degrees in the {view} view, {wanted[i]:g} wanted")
        if not abs(float(seen.pitch[i])) <= 2 * s.pitch_tolerance:
            found.append(f"pitch: {float(seen.pitch[i]):.1f} degrees in the {view} view")
        if not float(seen.smiling[i]) <= s.happy_limit:
            found.append(f"expression: a smile of {float(seen.smiling[i]):.2f} in the {view} view")
        if not float(seen.opening[i]) <= s.opening_limit:
            found.append(f"expression: mouth open by {float(seen.opening[i]):.2f} of its width in the {view} view")
        if not float(seen.evenness[i]) <= s.evenness_limit:
            found.append(f"light: bands 1-8 at {float(seen.evenness[i]):.2f} of band 0 in the {view} view")
    for name, limit in (("glasses", s.class_limit), ("headwear", s.class_limit), ("fringe", s.fringe_limit)):
        chance = float(seen.probability(name)[0])
        if not chance <= limit:
            kind = "glasses" if name == "glasses" else "occlusion"
            found.append(f"{kind}: {name} with probability {chance:.2f} in the front view")
    far = float((seen.identity[0] - source.identity[0]).norm())
    if not far <= s.identity_limit:
        found.append(f"identity: the front view is {far:.2f} from the source, at most {s.identity_limit:g}")
    return found
