"""The color of the skin, and how dark it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facerecon.errors import check_shape

__all__ = ["TONE_GROUPS", "mean_log_color", "skin_color", "skin_tone", "tone_group"]

TONE_GROUPS = {"dark": -math.inf, "brown": -30.0, "tan": 10.0, "intermediate": 28.0, "light": 41.0, "very light": 55.0}
"""{group: its least ITA in degrees}, dark to light (Chardon et al. 1991)."""


def skin_color(texture: Tensor, where: Tensor) -> Tensor:
    """Median color (B, 3) of some texels of each map; NaN where there is no such texel.

    Args:
        texture: (B, 3, S, S) in [0, 1].
        where: (B or 1, 1, S, S), above 0.5 at plain skin.
    """
    size = check_shape("texture", texture, "B 3 S S")["S"]
    where = where.expand(len(texture), 1, size, size) > 0.5
    colors = [image[:, inside[0]] for image, inside in zip(texture, where, strict=True)]
    return torch.stack([c.median(1).values if c.numel() else c.new_full((3,), math.nan) for c in colors])


def mean_log_color(texture: Tensor, where: Tensor) -> Tensor:
    """Mean of the natural log of encoded RGB (B, 3) over some texels; values below 0.01 count as 0.01.

    Args:
        texture: (B, 3, S, S) in [0, 1].
        where: (B or 1, 1, S, S) weights.
    """
    weight = where.to(texture)
    return (texture.clamp(min=0.01).log() * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-8)


def skin_tone(color: Tensor) -> Tensor:
    """Individual typology angle in degrees: above 55 very light, below -30 dark (Chardon et al. 1991).

    (B, 3) sRGB in [0, 1] -> (B,): atan2(L* - 50, b*) of CIE L*a*b* under D65.
    """
    import kornia

    light, _, yellow = kornia.color.rgb_to_lab(color[:, :, None, None])[:, :, 0, 0].unbind(1)
    return torch.rad2deg(torch.atan2(light - 50, yellow))


def tone_group(ita: float) -> str:
    """Its group of :data:`TONE_GROUPS`; ``ita`` in degrees."""
    return [name for name, least in TONE_GROUPS.items() if ita >= least][-1]
