"""Gaussian and Laplacian pyramids, and the blending they are for (Burt and Adelson; Sec. 3.1.3)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, check_shape
from facerecon.imaging.masks import mirror_pad

__all__ = ["collapse", "downsample", "gaussian_pyramid", "laplacian_blend", "laplacian_pyramid", "upsample"]

_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def _filter(image: Tensor) -> Tensor:
    kernel = torch.tensor(_KERNEL, dtype=image.dtype, device=image.device)
    b, c, h, w = image.shape
    x = image.reshape(b * c, 1, h, w)
    x = F.conv2d(mirror_pad(x, 2, 2), kernel[None, None, :, None])
    x = F.conv2d(mirror_pad(x, 2, 3), kernel[None, None, None, :])
    return x.reshape(b, c, h, w)


def downsample(image: Tensor) -> Tensor:
    """5 x 5 binomial filter, then every second pixel: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
    return _filter(image)[:, :, ::2, ::2]


def upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros between the pixels, then the same filter, times 4: back to ``size`` (H, W)."""
    b, c = image.shape[:2]
    height, width = size
    # Even canvas, one pixel wider than needed for odd sizes, so that the mirrored border keeps the parity.
    spread = image.new_zeros(b, c, 2 * image.shape[2], 2 * image.shape[3])
    spread[:, :, ::2, ::2] = image
    weight = image.new_zeros(1, 1, *spread.shape[2:])
    weight[:, :, ::2, ::2] = 1
    return (_filter(spread) / _filter(weight))[:, :, :height, :width]


def _check_levels(image: Tensor, levels: int) -> None:
    check_shape("image", image, "B C H W")
    if levels < 1:
        raise ConfigError(f"a pyramid needs at least 1 level; got {levels}.")


def gaussian_pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """``levels`` images, each half the size of the one before; the first is the image itself."""
    _check_levels(image, levels)
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
