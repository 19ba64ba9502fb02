"""Similarity transforms between point sets, the five alignment points, and the released 224 px crop."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerecon.errors import ShapeError, check_shape

__all__ = [
    "apply_similarity",
    "deep3d_crop_transform",
    "fit_similarity",
    "fit_sphere",
    "five_points",
    "invert_affine",
    "similarity_transform",
    "umeyama",
]

PIXELS_PER_UNIT = 102.0
"""Scale of the released crop at 224 px."""


def umeyama(
    source: Tensor, target: Tensor, weights: Tensor | None = None, with_scale: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares similarity ``target = scale * rotation @ source + translation`` (Umeyama 1991).

    Args:
        source, target: (B, N, D), D = 2 or 3.
        weights: (B, N) or (N,), not negative; None counts all points alike.
        with_scale: False keeps the scale at 1.

    Returns:
        scale: (B,).
        rotation: (B, D, D), proper.
        translation: (B, D).

    Raises:
        ShapeError: the point sets differ in shape.
    """
    bound = check_shape("source", source, "B N D")
    check_shape("target", target, f"{bound['B']} {bound['N']} {bound['D']}", "Give as many points as in source.")
    if weights is None:
        weights = source.new_ones(source.shape[:2])
    weights = (weights / weights.sum(-1, keepdim=True)).expand(source.shape[:2])[..., None]
    source_mean = (weights * source).sum(1, keepdim=True)
    target_mean = (weights * target).sum(1, keepdim=True)
    source_centered, target_centered = source - source_mean, target - target_mean
    covariance = (weights * target_centered).mT @ source_centered
    u, singular, vh = torch.linalg.svd(covariance)
    sign = torch.ones_like(singular)
    sign[:, -1] = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(sign)
    rotation = (u * sign[:, None]) @ vh
    if with_scale:
        variance = (weights * source_centered.square()).sum((1, 2))
        scale = (singular * sign).sum(-1) / variance.clamp(min=1e-20)
    else:
        scale = torch.ones_like(singular[:, 0])
    translation = target_mean[:, 0] - scale[:, None] * (rotation @ source_mean.mT)[..., 0]
    return scale, rotation, translation


def fit_similarity(
    source: NDArray, target: NDArray, weights: NDArray | None = None, with_scale: bool = True
) -> tuple[float, NDArray, NDArray]:
    """:func:`umeyama` of float64 points (N, 3)."""
    one, other = torch.from_numpy(source)[None], torch.from_numpy(target)[None]
    weigh = None if weights is None else torch.from_numpy(weights)
    scale, rotation, translation = umeyama(one, other, weigh, with_scale)
    return float(scale), rotation[0].numpy(), translation[0].numpy()


def similarity_transform(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """:func:`umeyama` as one affine matrix [scale * rotation | translation], (B, D, D + 1), as of ``Crop.to_photo``."""
    scale, rotation, translation = umeyama(source, target, weights)
    return torch.cat([scale[:, None, None] * rotation, translation[..., None]], dim=-1)


def apply_similarity(transform: Tensor, points: Tensor) -> Tensor:
    """Map (B, N, D) points by a (B, D, D + 1) affine matrix."""
    return points @ transform[:, :, :-1].mT + transform[:, None, :, -1]


def invert_affine(transform: Tensor) -> Tensor:
    """(B, D, D + 1) affine matrices of the way back."""
    linear = torch.linalg.inv(transform[:, :, :-1])
    return torch.cat([linear, -linear @ transform[:, :, -1:]], -1)


def five_points(landmarks68: Tensor) -> Tensor:
    """Nose tip, both eye centers (mean of the two corners), both mouth corners, the image's left first.

    Args:
        landmarks68: (B, 68, 2) or (B, 68, 3), iBUG's; the result is (B, 5, 2) or (B, 5, 3).
    """
    if landmarks68.ndim != 3 or landmarks68.shape[1] != 68:
        raise ShapeError(f"landmarks68 must be (B, 68, 2 or 3); got {tuple(landmarks68.shape)}.")
    return torch.stack(
        [
            landmarks68[:, 30],
            (landmarks68[:, 36] + landmarks68[:, 39]) / 2,
            (landmarks68[:, 42] + landmarks68[:, 45]) / 2,
            landmarks68[:, 48],
            landmarks68[:, 54],
        ],
        dim=1,
    )


def deep3d_crop_transform(landmarks68: Tensor, mean_points3d: Tensor, size: int = 224) -> Tensor:
    """The released alignment of a photo to a square crop, as an affine map (B, 2, 3) from crop to photo pixels.

    A scaled-orthographic camera is fitted by linear least squares to five points (8 unknowns, 10 equations);
    its scale becomes 102 px a unit at 224 px and the projected model origin the crop's center. The crop
    is never rotated. Unlike FFHQ-UV: the sizes and corners are not rounded to whole pixels.

    Args:
        landmarks68: (B, 68, 2) photo pixels, y down.
        mean_points3d: (5, 3) of the mean shape, in the order of :func:`five_points`, world units, y up.
        size: side of the crop in pixels.
    """
    check_shape("landmarks68", landmarks68, "B 68 2")
    check_shape("mean_points3d", mean_points3d, "5 3")
    points = five_points(landmarks68).double()
    model = mean_points3d.to(points)
    system = torch.cat([model, torch.ones_like(model[:, :1])], dim=1)  # (5, 4)
    solution = (torch.linalg.pinv(system) @ points).mT  # (B, 2, 4)
    scale = solution[:, :, :3].norm(dim=-1).mean(-1)  # photo pixels per world unit
    photo_per_crop = scale / (PIXELS_PER_UNIT * size / 224.0)
    transform = points.new_zeros(points.shape[0], 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = photo_per_crop
    transform[:, :, 2] = solution[:, :, 3] - photo_per_crop[:, None] * (size / 2)
    return transform.to(landmarks68.dtype)


def fit_sphere(points: NDArray) -> tuple[NDArray, float]:
    """Center (3,) and radius of the sphere through (N, 3) points not in one plane, by (algebraic) least squares."""
    system = np.concatenate([2 * points, np.ones((len(points), 1))], 1)
    solution = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    center = solution[:3]
    return center, float(np.sqrt(solution[3] + center @ center))
