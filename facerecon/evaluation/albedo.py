"""Whether a fitted albedo is the person's: skin tone, light left in it, seams, and fine detail that it keeps.

Tones are compared as individual typology angles (ITA) in six groups, as the FAIR benchmark of TRUST does (Feng et al.,
ECCV 2022). Nothing here knows how a texture was made; what counts as skin, or as visible, is told by masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor

from facerecon.errors import InputError, check_shape
from facerecon.imaging.color import luma
from facerecon.imaging.masks import gaussian_blur
from facerecon.perception.skin_tone import TONE_GROUPS, tone_group

__all__ = [
    "SeamContrast",
    "ToneErrors",
    "fine_detail",
    "ita_errors",
    "person_spread",
    "rank_correlation",
    "seam_contrast",
    "texture_errors",
]

_DARKEST = 0.01  # brightness below which a logarithm tells of noise
_BORDER, _SURROUNDINGS = 0.012, 0.06  # of the map's side: half widths of the border and of what it is compared with


@dataclass(frozen=True)
class ToneErrors:
    """Errors of fitted skin tones, degrees of ITA.

    Args:
        mean: mean absolute error over all faces.
        groups: {group: its mean absolute error}, dark to light; groups without faces are left out.
        bias: bias score of TRUST: standard deviation (of the population, not of a sample) of the groups' mean errors;
            0 where all groups fare alike; NaN with a single group.
        offset: mean error with its sign; above 0 where faces come out too light.
    """

    mean: float
    groups: dict[str, float]
    bias: float
    offset: float

    @property
    def worst(self) -> float:
        """Mean absolute error of the group that fares worst."""
        return max(self.groups.values())


def ita_errors(fitted: Sequence[float] | Tensor, truth: Sequence[float] | Tensor) -> ToneErrors:
    """Compare skin tones with the true ones.

    Args:
        fitted: (N,) ITA of fitted albedos, degrees.
        truth: (N,) of the true ones, which decide the groups (:data:`~facerecon.perception.skin_tone.TONE_GROUPS`).

    Raises:
        InputError: no faces, not as many fitted as true ones, or a tone that is no number.
    """
    fitted, truth = _numbers(fitted, truth)
    error = fitted - truth
    by_group: dict[str, list[float]] = {name: [] for name in TONE_GROUPS}
    for value, true in zip(error.abs().tolist(), truth.tolist(), strict=True):
        by_group[tone_group(true)].append(value)
    groups = {name: sum(values) / len(values) for name, values in by_group.items() if values}
    spread = torch.tensor(list(groups.values())).std(correction=0).item() if len(groups) > 1 else math.nan
    return ToneErrors(error.abs().mean().item(), groups, spread, error.mean().item())


def person_spread(values: Sequence[float] | Tensor, persons: Sequence[object]) -> float:
    """How far pictures of one person come apart: mean over persons of the (sample) standard deviation.

    Args:
        values: (N,) of pictures, e.g. ITA in degrees.
        persons: N names; persons with a single picture do not count.

    Raises:
        InputError: nobody has two pictures, or not a person a picture.
    """
    if len(values) != len(persons):
        raise InputError(f"a spread needs a person a picture; got {len(values)} values and {len(persons)} persons.")
    of: dict[object, list[float]] = {}
    for value, person in zip(values, persons, strict=True):
        of.setdefault(person, []).append(float(value))
    spreads = [torch.tensor(mine).std().item() for mine in of.values() if len(mine) > 1]
    if not spreads:
        raise InputError("a spread needs a person with two pictures or more.")
    return sum(spreads) / len(spreads)


def rank_correlation(first: Sequence[float] | Tensor, second: Sequence[float] | Tensor) -> float:
    """Spearman's, in [-1, 1]; equal values share their rank. NaN where one of both does not vary.

    Raises:
        InputError: fewer than 2 values, or not as many of both.
    """
    first, second = _numbers(first, second, least=2)
    from scipy import stats  # half a second

    ranks = torch.stack([torch.from_numpy(stats.rankdata(values.numpy())) for values in (first, second)])
    return torch.corrcoef(ranks)[0, 1].item()


def _numbers(first: object, second: object, least: int = 1) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(values, dtype=torch.float64).flatten().cpu() for values in (first, second))
    if len(first) != len(second) or len(first) < least or not bool(torch.isfinite(torch.cat([first, second])).all()):
        raise InputError(
            f"expected as many numbers of both, {least} at least, all of them finite; "
            f"got {len(first)} and {len(second)}."
        )
    return first, second


def texture_errors(texture: Tensor, truth: Tensor, where: Tensor) -> dict[str, Tensor]:
    """How far albedos are from the true ones.

    Args:
        texture: (B, 3, S, S) in [0, 1].
        truth: (B, 3, S, S) in [0, 1].
        where: (B or 1, 1, S, S) weights of the texels, e.g. the visible ones.

    Returns:
        {"texture": (B,), "texture_scaled": (B,)}: mean absolute difference of RGB; and after each channel was
        multiplied by the one factor that brings it nearest to the truth in the mean square, so that neither exposure
        nor the color of the light counts.
    """
    size = check_shape("texture", texture, "B 3 S S")["S"]
    check_shape("truth", truth, f"{len(texture)} 3 {size} {size}")
    weight = _sized(where, texture)
    total = 3 * weight.sum((1, 2, 3)).clamp(min=1e-8)
    factor = (weight * texture * truth).sum((2, 3)) / (weight * texture.square()).sum((2, 3)).clamp(min=1e-8)
    scaled = texture * factor[:, :, None, None]
    plain, after = (((of - truth).abs() * weight).sum((1, 2, 3)) / total for of in (texture, scaled))
    return {"texture": plain, "texture_scaled": after}


@dataclass(frozen=True)
class SeamContrast:
    """How much the border of the visible texels shows.

    Args:
        ratio: (B,), ``border`` over ``around``: 1 where the border is like its surroundings.
        border: (B,), 95th percentile of the change of log brightness across the border, per hundredth of the map.
        around: (B,), of its surroundings.
    """

    ratio: Tensor
    border: Tensor
    around: Tensor


def seam_contrast(texture: Tensor, visible: Tensor, where: Tensor, quantile: float = 0.95) -> SeamContrast:
    """Whether a line runs where the photo's texels end.

    The derivative of the smoothed log of brightness in the direction across the border, in a band along the border and
    in the band of skin beside it, on both sides; of either the same percentile. NaN where there is no border in
    ``where``.

    Args:
        texture: (B, 3, S, S) in [0, 1].
        visible: (B, 1, S, S), above 0.5 at texels that a photo colored.
        where: (B or 1, 1, S, S), above 0.5 at the skin that counts: no brows, lids and lips, which have edges.
        quantile: percentile, in [0, 1].
    """
    size = check_shape("texture", texture, "B 3 S S")["S"]
    check_shape("visible", visible, f"{len(texture)} 1 {size} {size}")
    kernel = 2 * math.ceil(3 * size / 400) + 1, size / 400
    bright = gaussian_blur(luma(texture).clamp(min=_DARKEST).log(), *kernel)
    where = gaussian_blur((_sized(where, texture) > 0.5).to(texture), *kernel) > 0.999  # nothing of others leaks in
    found = []
    for image, seen, skin in zip(bright[:, 0], visible[:, 0] > 0.5, where[:, 0], strict=True):
        if bool(seen.all()) or not bool(seen.any()):
            found.append((math.nan, math.nan))
            continue
        inside, outside = (
            torch.from_numpy(ndimage.distance_transform_edt(side.cpu().numpy())).to(image) for side in (seen, ~seen)
        )
        distance = torch.where(seen, inside - 0.5, 0.5 - outside)  # texels from the border, above 0 inside
        across = torch.stack(torch.gradient(gaussian_blur(distance[None, None], 5, 1.0)[0, 0]))
        slope = (torch.stack(torch.gradient(image)) * across).sum(0) / across.norm(dim=0).clamp(min=1e-6)
        change, away = slope.abs() * (size / 100), distance.abs() / size
        bands = (away <= _BORDER) & skin, (away > _BORDER) & (away <= _SURROUNDINGS) & skin
        found.append([change[band].quantile(quantile).item() if bool(band.any()) else math.nan for band in bands])
    border, around = texture.new_tensor(found).unbind(1)
    return SeamContrast(border / around.clamp(min=1e-6), border, around)


def fine_detail(texture: Tensor, where: Tensor) -> Tensor:
    """Energy of the two finest octaves (B,): what pores, moles and hairs are made of.

    Mean square of the log of brightness less its blur by Gaussians of 1 texel, and of that less its blur by 2 texels:
    no factor on the albedo, tone or light, changes it. Only maps of one size compare.

    Args:
        texture: (B, 3, S, S) in [0, 1].
        where: (B or 1, 1, S, S), above 0.5 at the texels that count; nothing of others leaks in.
    """
    check_shape("texture", texture, "B 3 S S")
    inside = (_sized(where, texture) > 0.5).to(texture)
    bright = luma(texture).clamp(min=_DARKEST).log()
    energy, finer = texture.new_zeros(len(texture)), bright
    for deviation in (1.0, 2.0):
        kernel = 2 * math.ceil(3 * deviation) + 1
        weight = gaussian_blur(inside, kernel, deviation).clamp(min=1e-6)
        coarser = gaussian_blur(bright * inside, kernel, deviation) / weight
        band = (finer - coarser).square() * inside
        energy = energy + band.sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1e-8)
        finer = coarser
    return energy


def _sized(where: Tensor, texture: Tensor) -> Tensor:
    """A mask for each texture."""
    check_shape("where", where, f"B 1 {texture.shape[-1]} {texture.shape[-1]}")
    return where.to(texture).expand(len(texture), -1, -1, -1)
