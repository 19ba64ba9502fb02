"""The color of the skin: how dark it is, and what of its hue is the light's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facerecon.errors import check_shape

__all__ = ["neutral_gain", "skin_color", "skin_tone"]

# log(R / G) and log(B / G) of skin against its mean log color: a line through the median skin colors of 96 maps
# of the open generator that were made without `neutral_gain`; their deviations from it are 0.060 and 0.088.
_OFFSET = (0.1391, -0.0337)
_SLOPE = (-0.3129, 0.2472)


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


def neutral_gain(color: Tensor, kept: float) -> Tensor:
    """Factors (B, 3, 1, 1) that take part of the light's tint off a skin color; they keep its mean log, its brightness.

    Ones where the color is not known. Skin of one brightness has one usual hue. What differs from it is partly the
    person and partly the white balance of the picture, and one picture cannot tell which.

    Args:
        color: (B, 3) skin colors in (0, 1].
        kept: share of the difference that is attributed to the person, 0 to 1.
    """
    logs = color.clamp(min=0.01).log()
    brightness = logs.mean(1, keepdim=True)
    chroma = logs[:, [0, 2]] - logs[:, [1]]
    usual = chroma.new_tensor(_OFFSET) + brightness * chroma.new_tensor(_SLOPE)
    shift = (1 - kept) * (usual - chroma)
    green = -shift.sum(1, keepdim=True) / 3
    gain = torch.cat([green + shift[:, :1], green, green + shift[:, 1:]], 1).exp()
    return gain.nan_to_num(1.0)[:, :, None, None]


def skin_tone(color: Tensor) -> Tensor:
    """Individual typology angle in degrees: above 55 very light, below -30 dark (Chardon et al. 1991).

    (B, 3) sRGB in [0, 1] -> (B,): atan2(L* - 50, b*) of CIE L*a*b* under D65.
    """
    import kornia

    light, _, yellow = kornia.color.rgb_to_lab(color[:, :, None, None])[:, :, 0, 0].unbind(1)
    return torch.rad2deg(torch.atan2(light - 50, yellow))
