"""Gaussian and Laplacian pyramids, and the blending they are for (Burt and Adelson; Sec. 3.1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, check_shape
from facerecon.imaging.masks import mirror_pad

__all__ = [
    "collapse",
    "downsample",
    "gaussian_pyramid",
    "laplacian_blend",
    "laplacian_pyramid",
    "multiband_blend",
    "push_pull",
    "upsample",
]


def _shrink(x: Tensor, axis: int) -> Tensor:
    """Weights 1 4 6 4 1 / 16 around every second pixel of one axis, mirrored at the ends."""
    x = mirror_pad(x, 2, axis)
    count = (x.shape[axis] - 3) // 2

    def tap(k: int) -> Tensor:
        taken = slice(k, k + 2 * count - 1, 2)
        return x[:, :, taken] if axis == 2 else x[:, :, :, taken]

    return ((tap(0) + tap(4)) / 16).add_((tap(1) + tap(3)) / 4).add_(tap(2) * 0.375)


def _grow(x: Tensor, axis: int, length: int) -> Tensor:
    """The same filter on an axis with zeros in between, times 2: 1 6 1 / 8 on pixels, 4 4 / 8 between them."""
    padded = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, x.shape[axis] - 1, 1)], axis)
    before, middle, after = (padded.narrow(axis, k, x.shape[axis]) for k in range(3))
    on, between = ((before + after) / 8).add_(middle * 0.75), (middle + after) / 2
    return torch.stack([on, between], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, length)


def downsample(image: Tensor) -> Tensor:
    """5 x 5 binomial filter, then every second pixel: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
    return _shrink(_shrink(image, 2), 3)


def upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The same filter between the pixels: (B, C, ceil(H / 2), ceil(W / 2)) -> (B, C, H, W) of ``size`` (H, W)."""
    return _grow(_grow(image, 2, size[0]), 3, size[1])


def gaussian_pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """``levels`` images, each half the size of the one before; the first is the image itself."""
    check_shape("image", image, "B C H W")
    if levels < 1:
        raise ConfigError(f"a pyramid needs at least 1 level; got {levels}.")
    pyramid = [image]
    while len(pyramid) < levels:
        pyramid.append(downsample(pyramid[-1]))
    return pyramid


def laplacian_pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """What each level of the Gaussian pyramid adds to the next smaller one; the last is that one itself."""
    gaussian = gaussian_pyramid(image, levels)
    bands = [fine - upsample(coarse, fine.shape[2:]) for fine, coarse in pairwise(gaussian)]
    return [*bands, gaussian[-1]]


def collapse(pyramid: list[Tensor]) -> Tensor:
    """Exact inverse of :func:`laplacian_pyramid`, for any size."""
    image = pyramid[-1]
    for band in reversed(pyramid[:-1]):
        image = band + upsample(image, band.shape[2:])
    return image


def laplacian_blend(first: Tensor, second: Tensor, mask: Tensor, levels: int = 5) -> Tensor:
    """Join two images: each band of frequencies over a seam as wide as its wavelength (Sec. 3.1.3).

    Args:
        first: (B, C, H, W), taken where the mask is 1.
        second: (B, C, H, W), taken where it is 0.
        mask: (B, 1, H, W) in [0, 1].
        levels: of the pyramids; the coarsest seam is about 2^levels pixels wide. The release uses 5.

    Returns:
        (B, C, H, W), not clamped; equal to an input where the mask is constant for 2^(levels + 1) pixels around.
    """
    check_shape("second", second, " ".join(map(str, first.shape)))
    check_shape("mask", mask, f"{first.shape[0]} 1 {first.shape[2]} {first.shape[3]}")
    # Blend the difference: where the mask is 0 the second image comes back bit by bit.
    bands = laplacian_pyramid(first - second, levels)
    weights = gaussian_pyramid(mask, levels)
    return second + collapse([band * weight for band, weight in zip(bands, weights, strict=True)])


def multiband_blend(images: Sequence[Tensor], shares: Sequence[Tensor], levels: int = 5) -> Tensor:
    """Join any number of images, none before another: :func:`laplacian_blend` of more than two.

    Args:
        images: N of (B, C, H, W).
        shares: N of (B, 1, H, W) >= 0 which add up to 1 in each pixel; where they add up to less than that at some
            scale, they are scaled to it.
        levels: of the pyramids.

    Returns:
        (B, C, H, W), not clamped; 0 where no image has a share within reach of the coarsest level.

    Raises:
        ConfigError: no image, or not one share an image.
    """
    if not images or len(images) != len(shares):
        raise ConfigError(f"each image needs a share; got {len(images)} image(s) and {len(shares)} share(s).")
    sums: list[Tensor] = []
    weights: list[Tensor] = []
    for image, share in zip(images, shares, strict=True):
        bands, masks = laplacian_pyramid(image, levels), gaussian_pyramid(share, levels)
        parts = [band * mask for band, mask in zip(bands, masks, strict=True)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        weights = [a + b for a, b in zip(weights, masks, strict=True)] if weights else masks
    return collapse([total / weight.clamp(min=1e-4) for total, weight in zip(sums, weights, strict=True)])


def push_pull(image: Tensor, weight: Tensor, finest: int = 128) -> Tensor:
    """Continue an image smoothly beyond where it is known (Gortler et al. 1996): far away it becomes its mean.

    Each coarser level of a pyramid of weighted means fills what the finer ones leave open.

    Args:
        image: (B, C, S, S).
        weight: (B, 1, S, S) in [0, 1], how far each pixel is known.
        finest: side of the finest level; the result has no finer structure, within the known part either.

    Returns:
        (B, C, S, S); 0 where nothing is known at all.
    """
    check_shape("weight", weight, f"{image.shape[0]} 1 {image.shape[2]} {image.shape[3]}")
    size = image.shape[2:]
    small = tuple(min(finest, n) for n in size)
    value, share = (F.interpolate(x, small, mode="area") for x in (image * weight, weight))
    return F.interpolate(fill_holes(value, share), size, mode="bilinear", align_corners=False)


def fill_holes(value: Tensor, share: Tensor) -> Tensor:
    """The levels of :func:`push_pull`, from sums (B, C, H, W) weighted by ``share`` (B, 1, H, W) in [0, 1]."""
    steps = [(value, share)]
    while max(steps[-1][0].shape[-2:]) > 4:
        steps.append(tuple(F.avg_pool2d(x, 2, ceil_mode=True) for x in steps[-1]))
    filled = value.sum((2, 3), keepdim=True) / share.sum((2, 3), keepdim=True).clamp(min=1e-6)
    for value, share in reversed(steps):
        filled = F.interpolate(filled, value.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.lerp(filled, value / share.clamp(min=1e-6), (share * 4).clamp(0, 1))
    return filled
