"""Growing, shrinking and softening masks; Gaussian blur as OpenCV does it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, ShapeError

__all__ = ["default_sigma", "dilate", "erode", "feather", "gaussian_blur", "gaussian_kernel", "mirror_pad"]


def _check(image: Tensor) -> None:
    if image.dim() != 4:
        raise ShapeError(f"a mask or image must be (B, C, H, W); got {tuple(image.shape)}.")


def default_sigma(kernel_size: int) -> float:
    """The Gaussian width that OpenCV takes for a kernel size when it is given none, in pixels."""
    return 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8


def gaussian_kernel(kernel_size: int, sigma: float | None = None) -> Tensor:
    """(kernel_size,) float64 samples of a Gaussian, their sum 1."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"a kernel size must be odd and positive; got {kernel_size}. Try {max(1, kernel_size | 1)}.")
    sigma = default_sigma(kernel_size) if sigma is None else sigma
    x = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    return kernel / kernel.sum()


def gaussian_blur(image: Tensor, kernel_size: int, sigma: float | None = None) -> Tensor:
    """Separable Gaussian blur, mirrored at the border without repeating the edge pixel (OpenCV's default).

    Args:
        image: (B, C, H, W).
        kernel_size: odd, in pixels.
        sigma: in pixels; None: OpenCV's 0.3 ((k - 1) / 2 - 1) + 0.8.

    Raises:
        ConfigError: an even kernel size.
    """
    _check(image)
    b, c, h, w = image.shape
    kernel = gaussian_kernel(kernel_size, sigma).to(image).expand(b * c, 1, -1)
    x = image.reshape(1, b * c, h, w)  # as channels: several times as fast on a CPU as a batch of single channels
    radius = kernel_size // 2
    x = F.conv2d(mirror_pad(x, radius, 2), kernel[..., None], groups=b * c)
    x = F.conv2d(mirror_pad(x, radius, 3), kernel[:, :, None], groups=b * c)
    return x.reshape(b, c, h, w)


def mirror_pad(x: Tensor, radius: int, axis: int) -> Tensor:
    """Reflect by ``radius`` along one axis; repeatedly where the image is smaller than the radius."""
    while radius > 0:
        step = min(radius, x.shape[axis] - 1)
        if step == 0:  # one pixel: nothing to reflect
            repeats = [1] * x.dim()
            repeats[axis] = 2 * radius + 1
            return x.repeat(repeats)
        x = F.pad(x, (0, 0, step, step) if axis == 2 else (step, step, 0, 0), mode="reflect")
        radius -= step
    return x


def dilate(mask: Tensor, radius: float) -> Tensor:
    """Grow a mask: each pixel becomes the maximum over a disk; (B, C, H, W).

    Args:
        mask: (B, C, H, W); gray values are kept (a soft edge moves outwards).
        radius: of the disk, in pixels; 0 changes nothing. Beyond the image there is nothing.
    """
    _check(mask)
    if radius < 0:
        raise ConfigError(f"a radius must be at least 0; got {radius}. Use erode to shrink.")
    whole = int(radius)
    height, width = mask.shape[2:]
    padded = F.pad(mask, (whole, whole, whole, whole), value=-math.inf)
    rows: dict[int, list[int]] = {}  # half width of the disk -> its rows of that width
    for dy in range(-whole, whole + 1):
        rows.setdefault(int(math.sqrt(radius**2 - dy**2) + 1e-9), []).append(dy)
    result, widest = mask, padded.narrow(3, whole, width)
    for reach in range(whole + 1):
        if reach:
            for shift in (-reach, reach):
                widest = torch.maximum(widest, padded.narrow(3, whole + shift, width))
        for dy in rows.get(reach, ()):
            result = torch.maximum(result, widest.narrow(2, whole + dy, height))
    return result


def erode(mask: Tensor, radius: float) -> Tensor:
    """Shrink a mask: each pixel becomes the minimum over a disk; the image border does not eat into it."""
    return -dilate(-mask, radius)


def feather(mask: Tensor, radius: float) -> Tensor:
    """Give a mask a soft edge about ``radius`` pixels wide, which fades within it: 0 beyond its old border.

    Args:
        mask: (B, C, H, W) in [0, 1].
        radius: width of the edge in pixels; 0 changes nothing.
    """
    _check(mask)
    if radius <= 0:
        return mask
    reach = math.ceil(radius / 2)
    soft = gaussian_blur(erode(mask, reach), 2 * reach + 1, radius / 5)
    return torch.minimum(soft, mask).clamp(0, 1)
