"""Light that two bands of spherical harmonics do not hold: cast shadows, rims, lamps, highlights.

A face is the same on both sides, but for what is small: moles, scars, single hairs. So what the two sides disagree
about over more than that is light's, and so is what no person differs by from the decoder. Here it is told apart, on
maps in UV and in logarithms, where light is a term and not a factor.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.geometry.lighting import GAMMA, linear_intensity
from facerecon.geometry.mesh import cached
from facerecon.imaging.color import luma
from facerecon.imaging.masks import dilate, erode, gaussian_blur, mirror_pad
from facerecon.imaging.pyramid import push_pull
from facerecon.render.uv import mirrored, region_texels, uv_raster
from facerecon.types import MeshTopology

CELLS = 256  # side of maps of light; a cell is 1.6 mm of an adult's face
_BLACK = 0.004  # added to values before logarithms
_WINDOW = 13  # cells of the median that knows light: what is narrower than half of it is the person's
_DARKER, _BRIGHTER, _TINT = 0.8, 0.2, 0.15  # nats by which both sides of a face may leave the decoder's color
_BORDER = 5  # cells from the border of visible skin where hair and background bleed in
_GLOSS = 0.05  # of the skin's intensity: less of a reflection is none
_ALONE = 0.2  # the same, of texels whose mirror image is not seen

__all__ = ["CELLS", "even_light", "light_apart", "plain_skin"]


def cells_of(size: int) -> int:
    """Side of the map of light that goes with a map of ``size`` texels."""
    return min(CELLS, size)


def plain_skin(topology: MeshTopology, size: int) -> Tensor:
    """(1, 1, S, S) in {0, 1}: skin of one color, without brows, lids, lips, and what is no skin; cached."""

    def build() -> Tensor:
        marked = dilate(region_texels(topology, ("brows", "lids", "lips"), size), 0.008 * size)
        inner = region_texels(topology, ("eyes", "mouth", "teeth", "tongue", "sockets"), size)
        covered = uv_raster(topology, size).face_index[:, None] >= 0
        return (1 - torch.maximum(marked, inner)) * covered

    return cached(f"plain skin {size}", build, topology.uv_faces, topology.uvs, *topology.regions.values())


def pooled(image: Tensor, weight: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Means (B, C, R, R) of what ``weight`` (B, 1, S, S) counts in each cell, and that weight (B, 1, R, R)."""
    both = F.interpolate(torch.cat([image * weight, weight], 1), size=(cells, cells), mode="area")
    return both[:, :-1] / both[:, -1:].clamp(min=1e-4), both[:, -1:]


def enlarged(image: Tensor, size: int) -> Tensor:
    """A map of light at the size of a texture."""
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)


def _median(image: Tensor, window: int, axis: int) -> Tensor:
    return mirror_pad(image, window // 2, axis).unfold(axis, window, 1).median(-1).values


def _broad(image: Tensor, known: Tensor, window: int = _WINDOW) -> Tensor:
    """The image without what is narrower than half the window, edges of what is wider kept; continued where it is not
    known."""
    window = max(3, 2 * round(window * image.shape[-1] / CELLS / 2 - 0.5) + 1)
    filled = push_pull(image, known, image.shape[-1])
    return gaussian_blur(_median(_median(filled, window, 3), window, 2), 5)


def _witnessed(known: Tensor, topology: MeshTopology) -> Tensor:
    """(B, 1, R, R): how far a texel and its mirror image are both known."""
    other, valid = mirrored(known, topology)
    return torch.minimum(known, other) * valid


def even_light(texture: Tensor, topology: MeshTopology, weight: Tensor | None = None) -> Tensor:
    """A map without the light of one side: what is broad gets the (geometric) mean of both sides of the face.

    Moles and all that is narrower than a hundredth of the map or so stays on its side, as do brows, lids and lips but
    for the light around them. The mean log color stays. A map that is symmetric stays as it is.

    Args:
        texture: (B, 3, S, S) in [0, 1], albedo in UV.
        topology: of the head.
        weight: (B or 1, 1, S, S) in [0, 1], the texels that count; beyond them the change fades. None: all.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    size = check_shape("texture", texture, "B 3 S S")["S"]
    cells = cells_of(size)
    weight = plain_skin(topology, size) * (1 if weight is None else weight)
    color, known = pooled(texture, weight.expand(len(texture), -1, -1, -1), cells)
    broad = _broad((color.clamp(min=0) + _BLACK).log(), known)
    known = _witnessed(known, topology)
    uneven = push_pull((broad - mirrored(broad, topology)[0]) / 2, known, cells)
    inner = region_texels(topology, ("eyes", "mouth", "teeth", "tongue"), size)
    return (texture * torch.exp(-enlarged(uneven, size) * (1 - inner))).clamp(0, 1)


def _agreed(own: Tensor, other: Tensor) -> Tensor:
    """What two values have in common: the smaller one, 0 where their signs differ."""
    return torch.where(own * other > 0, own.sign() * torch.minimum(own.abs(), other.abs()), torch.zeros_like(own))


def _limited(x: Tensor, below: Tensor | float, above: Tensor | float) -> Tensor:
    """Smoothly within (-below, above)."""
    return torch.where(x < 0, -below * (-x / below).tanh(), above * (x / above).tanh())


def light_apart(photo: Tensor, base: Tensor, shading: Tensor, weight: Tensor, topology: MeshTopology) -> Tensor:
    """What of the difference between a photo and its render in fitted light is light's, and not the person's.

    Args:
        photo: (B, 3, S, S), unwrapped.
        base: (B, 3, S, S), the decoder's texture, evenly lit.
        shading: (B, 3, S, S), fitted, above 0.
        weight: (B, 1, S, S) in [0, 1], visible skin.
        topology: of the head.

    Returns:
        (B, 3, R, R), logarithms of what multiplies the shading, continued beyond the visible skin. The photo over both
        is albedo whose texels are the decoder's color in the median of plain skin, and so is its broad color, but for
        what both sides of the face agree about.
    """
    size, cells = photo.shape[-1], cells_of(photo.shape[-1])
    both, known = pooled(torch.cat([photo, base * shading, base], 1), weight * plain_skin(topology, size), cells)
    photo, render, base = both.split(3, 1)
    change = ((photo + _BLACK) / (render + _BLACK)).log()
    broad = _broad(change, known)
    person = _of_the_person(broad - _typical(broad, known), known, topology)
    light = broad - person
    light = light + _gloss(change - light, base, person, known)
    # at the border hair and background bleed in: there only what is finer is the person's
    finer = _broad(change, known, _WINDOW // 2) - person
    light = torch.lerp(finer, light, _away_from_border(known))
    return light + _typical(change - light, known)  # the decoder knows the tone


def _away_from_border(known: Tensor) -> Tensor:
    """(B, 1, R, R) in [0, 1]: 0 at the outline of visible skin, 1 inside; holes in it do not count."""
    filled = [binary_fill_holes(where) for where in (known[:, 0] > 0.5).cpu().numpy()]
    outline = torch.from_numpy(np.stack(filled)).to(known)[:, None]
    reach = max(1, round(_BORDER * known.shape[-1] / CELLS))
    return gaussian_blur(erode(outline, reach), 2 * reach + 1)


def _of_the_person(change: Tensor, known: Tensor, topology: MeshTopology) -> Tensor:
    """What of a broad change (B, 3, R, R) over the decoder both sides of the face have, in (B, 1, R, R) known skin; the
    hair that bleeds over its border is not heard."""
    other, witness = mirrored(change, topology)[0], _witnessed(known, topology)
    bright, bright_other = luma(change), luma(other)
    tint, tint_other = change - bright, other - bright_other
    agreed = _limited(_agreed(bright, bright_other), _DARKER, _BRIGHTER)
    agreed = agreed + _limited(_agreed(tint, tint_other), _TINT, _TINT)
    alone = _limited(bright, _ALONE, _ALONE) + _limited(tint, _TINT / 2, _TINT / 2)
    person = torch.lerp(alone, agreed, gaussian_blur((witness > 0.5).to(witness), 9))
    inner = erode(known, _BORDER * known.shape[-1] / CELLS)
    return push_pull(gaussian_blur(person, 9), inner, known.shape[-1])


def _gloss(change: Tensor, base: Tensor, person: Tensor, known: Tensor) -> Tensor:
    """Highlights (B, 3, R, R), logarithms >= 0: where skin is brighter and less saturated than around it, which is what
    a reflection, of the light's own color, adds to it (the dichromatic model of Shafer, 1985)."""
    change = gaussian_blur(push_pull(change, known, known.shape[-1]), 9)
    skin, found = (linear_intensity(base * x.exp()) for x in (person.clamp(max=0), change))
    # least squares of found = a skin + b (1, 1, 1), over the three channels
    skin_mean, found_mean = skin.mean(1, keepdim=True), found.mean(1, keepdim=True)
    spread = skin - skin_mean
    a = (spread * found).sum(1, keepdim=True) / spread.square().sum(1, keepdim=True).clamp(min=1e-6)
    added = torch.minimum(found_mean - a * skin_mean, found_mean - skin_mean) - _GLOSS * skin_mean
    added = added.clamp(min=0) * known
    share = (added / found.clamp(min=1e-6)).clamp(max=0.7)  # 0 where nothing is known
    return gaussian_blur(-(1 - share).log() / GAMMA, 5)


def _typical(image: Tensor, known: Tensor) -> Tensor:
    """(B, 3, 1, 1) medians of images (B, 3, R, R) over what is known (B, 1, R, R): stubble, wrinkles and shadows do not
    move them; 0 where nothing is known."""
    pairs = zip(image, known[:, 0] > 0.5, strict=True)
    medians = [one[:, at].median(1).values if bool(at.any()) else one.new_zeros(3) for one, at in pairs]
    return torch.stack(medians)[:, :, None, None]
