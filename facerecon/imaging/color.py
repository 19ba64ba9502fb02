"""YUV and color matching (Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import ShapeError, check_shape

__all__ = ["LUMA", "luma", "masked_mean_std", "match_color", "rgb_to_yuv", "yuv_to_rgb"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""

# ITU-R BT.601; rows Y, U, V. The same digits as scikit-image's `rgb2yuv`.
_YUV_OF_RGB = (
    LUMA,
    (-0.14714119, -0.28886916, 0.43601035),
    (0.61497538, -0.51496512, -0.10001026),
)


def _apply(matrix: Tensor, image: Tensor) -> Tensor:
    if image.dim() < 3 or image.shape[-3] != 3:
        raise ShapeError(f"image must be (..., 3, H, W); got {tuple(image.shape)}.")
    return torch.einsum("ij,...jhw->...ihw", matrix.to(image), image)


def luma(image: Tensor) -> Tensor:
    """(B, 3, H, W) RGB -> (B, 1, H, W) brightness, Y of BT.601."""
    return (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def rgb_to_yuv(image: Tensor) -> Tensor:
    """(..., 3, H, W) RGB in [0, 1] -> Y in [0, 1], U in [-0.436, 0.436], V in [-0.615, 0.615] (BT.601)."""
    return _apply(torch.tensor(_YUV_OF_RGB, dtype=torch.float64), image)


def yuv_to_rgb(image: Tensor) -> Tensor:
    """Exact inverse of :func:`rgb_to_yuv`; not clamped."""
    return _apply(torch.linalg.inv(torch.tensor(_YUV_OF_RGB, dtype=torch.float64)), image)


def masked_mean_std(image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of each channel over a mask, (B, C, 1, 1) each.

    Args:
        image: (B, C, H, W).
        mask: (B, 1, H, W) weights >= 0, or None for the whole image. An empty mask gives two zeros.
    """
    if mask is None:
        mask = torch.ones_like(image[:, :1])
    check_shape("mask", mask, f"{image.shape[0]} 1 {image.shape[2]} {image.shape[3]}")
    total = mask.sum((2, 3), keepdim=True).clamp(min=1e-8)
    mean = (image * mask).sum((2, 3), keepdim=True) / total
    variance = ((image - mean).square() * mask).sum((2, 3), keepdim=True) / total
    return mean, variance.clamp(min=0).sqrt()


def match_color(
    source: Tensor,
    target: Tensor,
    source_mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    w: float = 1.5,
) -> Tensor:
    """Give one texture the colors of another, per YUV channel (Eq. 1, Sec. 3.1.2).

    T_a' = (T_a - mu(T_a)) / (w sigma(T_a)) * sigma(T_b) + mu(T_b)

    Args:
        source: T_a, (B, 3, H, W) RGB in [0, 1]; all of it is changed, within the mask and beyond.
        target: T_b, (B, 3, H, W) RGB in [0, 1].
        source_mask: (B, 1, H, W), the texels over which mu and sigma of the source are taken; None: all.
        target_mask: the same for the target; None: the source's mask. (The released code takes the target's
            mask for both: pass it twice.)
        w: above 1 it lowers the contrast of the result.

    Returns:
        (B, 3, H, W) RGB, not clamped. A channel without contrast in the source only gets the target's mean;
        an empty mask leaves that face unchanged.

    Raises:
        ShapeError: source and target are not images of one size.
    """
    check_shape("target", target, " ".join(map(str, source.shape)))
    target_mask = source_mask if target_mask is None else target_mask
    a, b = rgb_to_yuv(source), rgb_to_yuv(target)
    mean_a, std_a = masked_mean_std(a, source_mask)
    mean_b, std_b = masked_mean_std(b, target_mask)
    gain = torch.where(std_a > 1e-6, std_b / (w * std_a.clamp(min=1e-6)), torch.zeros_like(std_a))
    matched = yuv_to_rgb((a - mean_a) * gain + mean_b)
    empty = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    for mask in (source_mask, target_mask):
        if mask is not None:
            empty = empty | (mask.flatten(1).sum(1) <= 0)
    return torch.where(empty[:, None, None, None], source, matched)
