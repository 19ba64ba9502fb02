"""Cutting crops out of photos: antialiased, differentiable, pixel centers at +0.5."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ShapeError, check_shape

__all__ = ["affine_scale", "crop_affine", "crop_valid"]

_MAX_SAMPLES = 6  # samples an axis within one crop pixel; stronger reductions halve the photo first


def affine_scale(to_photo: Tensor) -> Tensor:
    """Photo pixels per crop pixel, (B,): the square root of the affine map's area factor."""
    check_shape("to_photo", to_photo, "B 2 3")
    a = to_photo[..., :2]
    return (a[..., 0, 0] * a[..., 1, 1] - a[..., 0, 1] * a[..., 1, 0]).abs().sqrt()


def crop_affine(image: Tensor, to_photo: Tensor, size: int | tuple[int, int], padding: str = "border") -> Tensor:
    """Resample crops: crop pixel (x, y) shows the photo at ``to_photo @ (x, y, 1)``.

    Where the crop is smaller than what it shows, each of its pixels is the mean of a grid of bilinear samples
    over its footprint in the photo, turned with it, so fine detail does not alias. A crop depends on its own
    photo and map alone, whatever else is in the batch.

    Args:
        image: (B, C, H, W), or (1, C, H, W) for B crops of one photo.
        to_photo: (B, 2, 3), crop pixels to photo pixels (x, y), pixel centers at +0.5.
        size: side S of the crops, or (height, width).
        padding: what lies beyond the photo: "border" (its edge), "zeros" or "reflection".

    Returns:
        (B, C, S, S), differentiable in the image and in the map.

    Raises:
        ShapeError: another number of photos than maps.
    """
    check_shape("image", image, "B C H W")
    check_shape("to_photo", to_photo, "B 2 3")
    if image.shape[0] not in (1, to_photo.shape[0]):
        raise ShapeError(f"image must have 1 or {to_photo.shape[0]} photos for as many maps; got {len(image)}.")
    size = (size, size) if isinstance(size, int) else size
    crops = []
    for index, matrix in enumerate(to_photo.to(image.dtype)):
        photo = image[index : index + 1] if len(image) > 1 else image
        crops.append(_crop(photo, matrix, size, padding))
    return torch.cat(crops)


def _crop(photo: Tensor, matrix: Tensor, size: tuple[int, int], padding: str) -> Tensor:
    scale = float(affine_scale(matrix.detach()[None]))
    if padding != "reflection" and scale > 1:
        photo, matrix = _needed_part(photo, matrix, size, math.ceil(4 * scale))
    while scale > _MAX_SAMPLES and min(photo.shape[-2:]) >= 2:
        height, width = photo.shape[-2:]
        photo = F.avg_pool2d(F.pad(photo, (0, width % 2, 0, height % 2), mode="replicate"), 2)
        matrix, scale = matrix / 2, scale / 2
    samples = min(max(1, math.ceil(scale - 1e-3)), _MAX_SAMPLES)
    grid = _positions(matrix, size, samples)
    extent = torch.tensor([photo.shape[-1], photo.shape[-2]], dtype=grid.dtype, device=grid.device)
    sampled = F.grid_sample(photo, (grid / extent * 2 - 1)[None], "bilinear", padding, align_corners=False)
    return F.avg_pool2d(sampled, samples) if samples > 1 else sampled


def _needed_part(photo: Tensor, matrix: Tensor, size: tuple[int, int], margin: int) -> tuple[Tensor, Tensor]:
    """The part of a photo that a crop can show, with a margin, and the map into it."""
    height, width = size
    corners = torch.tensor([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]]).to(matrix)
    low, high = (matrix.detach() @ corners).aminmax(dim=1)
    limits = [photo.shape[-1], photo.shape[-2]]
    # A crop wholly outside still needs the photo's nearest edge.
    start = [min(max(int(v) - margin, 0), n - 1) for v, n in zip(low.tolist(), limits, strict=True)]
    stop = [max(min(int(v) + margin, n), first + 1) for v, n, first in zip(high.tolist(), limits, start, strict=True)]
    part = photo[..., start[1] : stop[1], start[0] : stop[0]]
    return part, matrix - torch.tensor([[0, 0, start[0]], [0, 0, start[1]]]).to(matrix)


def _positions(matrix: Tensor, size: tuple[int, int], samples: int) -> Tensor:
    """(H n, W n, 2) photo positions (x, y) of n x n points in each crop pixel."""
    height, width = size
    options = {"dtype": matrix.dtype, "device": matrix.device}
    y = (torch.arange(height * samples, **options) + 0.5) / samples
    x = (torch.arange(width * samples, **options) + 0.5) / samples
    return x[None, :, None] * matrix[:, 0] + y[:, None, None] * matrix[:, 1] + matrix[:, 2]


def crop_valid(photo_size: tuple[int, int], to_photo: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Where crops show the photo: 1 if a crop pixel's center lies inside it, else 0; (B, 1, S, S) float32.

    Args:
        photo_size: (H, W) of the photo in pixels.
        to_photo: (B, 2, 3), crop pixels to photo pixels.
        size: side S of the crops, or (height, width).
    """
    check_shape("to_photo", to_photo, "B 2 3")
    size = (size, size) if isinstance(size, int) else size
    positions = torch.stack([_positions(matrix, size, 1) for matrix in to_photo])
    height, width = photo_size
    x, y = positions.unbind(-1)
    return ((x >= 0) & (x <= width) & (y >= 0) & (y <= height)).float()[:, None]
