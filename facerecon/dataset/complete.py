"""Correction and completion: a texture of what was seen -> a whole UV map (Sec. 3.1.3).

Rims of eyes and mouth and the nostrils take the template's gradients (Poisson editing); ears, neck, scalp and whatever
was hidden take the template in the person's colors (Eq. 1), joined by a Laplacian pyramid.

Unlike FFHQ-UV: the masks that are edited are fixed on the atlas, so that one factorization serves every map; what one
side of the face hides is first taken from the other side; and the template's colors follow the face along its border,
so that no seam is left for the pyramid to hide. Eyeballs, which the released maps do not have, are painted clean with
the person's iris color.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from facerecon.dataset.extract import Extraction
from facerecon.dataset.layout import FaceLayout, Template, load_template
from facerecon.errors import ConfigError, check_number, check_shape
from facerecon.fitting.residual_light import even_light
from facerecon.imaging import masks
from facerecon.imaging.color import match_color
from facerecon.imaging.pyramid import fill_holes, laplacian_blend
from facerecon.perception.skin_tone import mean_log_color
from facerecon.render.uv import mirrored, pad_islands
from facerecon.settings import check_keys
from facerecon.types import FaceParams, TensorStruct, _struct

__all__ = ["CompleteSettings", "Template", "UVMap", "complete", "load_template", "paint_eyes"]

IRIS, PUPIL = 19.0, 7.0  # degrees around the gaze
SCLERA, SCLERA_BACK = (0.70, 0.65, 0.62), (0.66, 0.48, 0.45)


@dataclass(frozen=True)
class CompleteSettings:
    """How a texture is completed.

    Args:
        blending: "poisson" (Poisson editing, mirror image, Laplacian pyramid), or "naive" (the seen texels pasted onto
            the color-matched template).
        contrast: w of Eq. 1 for the template.
        levels: of the Laplacian pyramid.
        mirror: share of a hidden texel that the other side of the face gives, 0 to 1.
        eyes: paint clean eyeballs with the person's iris color; False leaves the template's.
        tone: "belief" brings the skin to the tone that the views speak for (:mod:`facerecon.perception.tone`), as a fit
            does; "off" leaves it as photographed, as FFHQ-UV does.
        even_light: take off what the two sides of the face disagree about in broad structure, as the detail step of a
            fit does (:func:`~facerecon.fitting.residual_light.even_light`).
    """

    blending: str = "poisson"
    contrast: float = 1.5
    levels: int = 5
    mirror: float = 1.0
    eyes: bool = True
    tone: str = "belief"
    even_light: bool = True

    def __post_init__(self) -> None:
        check_keys([self.tone], ("belief", "off"), "complete.tone")
        check_number("complete.levels", self.levels, 1, 16, whole=True)
        if self.blending not in ("poisson", "naive"):
            raise ConfigError(f"blending must be 'poisson' or 'naive'; got {self.blending!r}.")


@_struct
class UVMap(TensorStruct):
    """A whole map.

    Args:
        texture: (1, 3, S, S) in [0, 1].
        observed: (1, 1, S, S) in [0, 1]: 1 a view's own texel, 0 invented.
        params: of the head, one row a view.
        observed_share: (1,), of the face's texels.
        iris: (1, 3).
    """

    texture: Tensor
    observed: Tensor
    params: FaceParams
    observed_share: Tensor
    iris: Tensor


@torch.no_grad()
def complete(extraction: Extraction, template: Template, settings: CompleteSettings | None = None) -> UVMap:
    """Correct and complete the texture of one person, at its size.

    Args:
        extraction: what :func:`~facerecon.dataset.extract.extract` saw.
        template: T_bar of the same head model at the same size.
        settings: of the completion.
    """
    settings = settings or CompleteSettings()
    size = extraction.texture.shape[-1]
    check_shape("template.texture", template.texture, f"1 3 {size} {size}", "Use load_template(model, size).")
    layout, base = template.layout, template.texture
    texture, weight, iris = extraction.texture, extraction.observed, extraction.iris
    plain = (weight > 0.5) * layout.plain
    if settings.tone == "belief" and bool(plain.any()):
        gain = (extraction.tone.mean - mean_log_color(texture, plain)).exp()
        texture, iris = texture * gain[:, :, None, None], iris * gain
    known = (weight > 0.5).to(weight) * layout.face
    matched = match_color(base, texture, known, w=settings.contrast)
    if settings.blending == "naive":
        result = torch.where(weight > 0.5, texture, matched)
        observed = known
    else:
        result, observed = _joined(texture, weight, matched, template, settings)
        result = layout.solver(result, base)
        observed = observed * (1 - layout.corrected)
    result = torch.where(layout.skin > 0, result, base)
    if settings.even_light:
        result = even_light(result, template.topology)
    if settings.eyes:
        result = paint_eyes(result, iris, extraction.iris_seen, layout)
    result = pad_islands(result.clamp(0, 1), template.topology, None)
    result = _closed(result, layout)
    share = (observed * layout.face).sum((1, 2, 3)) / layout.face.sum()
    return UVMap(result, observed, extraction.params, share, iris)


def _joined(
    texture: Tensor, weight: Tensor, matched: Tensor, template: Template, settings: CompleteSettings
) -> tuple[Tensor, Tensor]:
    """The seen texels, then their mirror image, then the template; and what is seen, not mirrored."""
    layout = template.layout
    unit = layout.grid_unit
    core = masks.erode(layout.coarse((weight > 0.5).to(weight)), round(0.4 * unit)) * layout.coarse(layout.face)
    core = torch.where(layout.coarse(layout.forehead) > 0.5, masks.erode(core, 1.5 * unit), core)  # hairline's shadow
    own = masks.feather(core, 0.5 * unit)
    borrowed, _ = mirrored(own, template.topology)
    borrowed = borrowed * (1 - own) * settings.mirror
    total = own + borrowed
    outline = torch.from_numpy(ndimage.binary_fill_holes(total[0, 0].cpu().numpy() > 0.5)).to(total)[None, None]
    mask = torch.minimum(total, masks.feather(outline, 1.5 * unit))
    own = layout.fine(own) * layout.face
    borrowed, mask = (layout.crop(layout.fine(x) * layout.face) for x in (borrowed, mask))

    seen = layout.crop(own)
    total = seen + borrowed
    other = layout.crop(mirrored(texture, template.topology)[0])
    source = torch.lerp(other, layout.crop(texture), seen / total.clamp(min=1e-4))
    result = matched + _difference(source - layout.crop(matched), total, layout)
    base = layout.crop(result)
    source = torch.where(total > 0.02, source, base)
    base[:] = laplacian_blend(source, base, mask, settings.levels)
    return result, own


def _difference(difference: Tensor, weight: Tensor, layout: FaceLayout) -> Tensor:
    """(1, 3, S, S): what the face (within the layout's crop) differs by from the template, continued over the whole
    map; the lips for themselves."""
    size, cell = layout.skin.shape[-1], layout.cell
    top, bottom, left, right = (n // cell for n in layout.box)
    cells = size // cell
    frame = (left, cells - right, top, cells - bottom)

    def continued(region: Tensor) -> Tensor:
        share = weight * layout.crop(region)
        value, share = (F.pad(F.avg_pool2d(x, cell), frame) for x in (difference * share, share))
        return fill_holes(value, share)

    lips = F.interpolate(layout.soft_lips, (cells, cells), mode="area")
    mixed = torch.lerp(continued(layout.plain), continued(layout.lips), lips)
    return F.interpolate(mixed, (size, size), mode="bilinear", align_corners=False)


def _closed(texture: Tensor, layout: FaceLayout) -> Tensor:
    """Lids' and lips' own color in the openings between them, which no face of the mesh covers."""
    for hole, around in ((layout.eye_holes, layout.lids), (layout.mouth_hole, layout.lips)):
        around = around * (1 - layout.corrected)
        color = (texture * around).sum((2, 3), keepdim=True) / around.sum().clamp(min=1)
        texture = torch.lerp(texture, color, hole)
    return texture


def paint_eyes(texture: Tensor, iris: Tensor, seen: Tensor, layout: FaceLayout) -> Tensor:
    """Clean eyeballs with an iris color: what a photo shows of an eye is mostly lid, lash and glint.

    Args:
        texture: (1, 3, S, S) to paint on.
        iris: (1, 3), its color as photographed.
        seen: (1,), texels it was read from; with too few a brown one is taken.
        layout: of the atlas.
    """
    usual = iris.new_tensor([[0.20, 0.14, 0.11]])
    color = torch.where(seen[:, None] > 0, iris, usual).clamp(0.03, 0.6)[:, :, None, None] * 1.2
    rows = (layout.eyes.amax((0, 1, 3)) > 0).nonzero()[:, 0]
    if len(rows) == 0:
        return texture
    part = slice(int(rows[0]), int(rows[-1]) + 1)
    angle = layout.gaze[None, None, part]

    def disk(radius: float, soft: float) -> Tensor:
        return ((radius - angle) / soft + 0.5).clamp(0, 1)

    white, back = (texture.new_tensor(c)[None, :, None, None] for c in (SCLERA, SCLERA_BACK))
    eye = torch.lerp(back, white, disk(70, 40))
    eye = torch.lerp(eye, (color * 0.55).expand_as(eye), disk(IRIS, 3))
    eye = torch.lerp(eye, color.expand_as(eye), disk(IRIS - 4, 3))
    eye = torch.lerp(eye, torch.full_like(eye, 0.03), disk(PUPIL, 2))
    result = texture.clone()
    result[:, :, part] = torch.where(layout.eyes[:, :, part] > 0, eye, texture[:, :, part])
    return result
