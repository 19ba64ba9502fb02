"""L_lm: 68 landmarks in the image plane (Sec. 4.2, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import ConfigError, check_shape, nearest_name

__all__ = ["landmark_loss", "landmark_weights", "normalized_mean_error"]


def landmark_weights(scheme: str = "release") -> Tensor:
    """(68,) weights of the iBUG points.

    Args:
        scheme: ``"release"``: 20 for the nose ridge (28-30) and the inner mouth (60-67), 1 elsewhere;
            ``"uniform"``: 1 everywhere.
    """
    weights = torch.ones(68)
    if scheme == "release":
        weights[28:31] = 20.0
        weights[60:68] = 20.0
    elif scheme != "uniform":
        raise ConfigError(nearest_name(scheme, ("release", "uniform"), "landmark weighting"))
    return weights


def landmark_loss(points: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the points of the weighted squared distance, px^2.

    Args:
        points, target: (B, N, 2), pixels. weights: (N,) or (B, N).

    Returns:
        (B,).
    """
    check_shape("points", points, "B N 2")
    check_shape("target", target, " ".join(map(str, points.shape)))
    squared = (points - target).square().sum(-1)
    if weights is not None:
        squared = squared * weights
    return squared.mean(1)


def normalized_mean_error(points: Tensor, target: Tensor) -> Tensor:
    """NME of 68 points: mean distance over the distance of the outer eye corners (36, 45); (B,)."""
    scale = (target[:, 36] - target[:, 45]).norm(dim=-1).clamp(min=1e-6)
    return (points - target).norm(dim=-1).mean(1) / scale
