"""L_lm: 68 landmarks in the image plane (Sec. 4.2, Eq. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, check_shape, nearest_name
from facerecon.geometry.rotation import euler_to_matrix

__all__ = ["facing_weights", "landmark_loss", "landmark_weights", "normalized_mean_error"]


def landmark_weights(scheme: str = "release") -> Tensor:
    """(68,) weights of the iBUG points.

    Args:
        scheme: ``"release"``: 20 for the nose ridge (28-30) and the inner mouth (60-67), 1 elsewhere;
            ``"facing"``: the same, to be lessened by :func:`facing_weights`; ``"uniform"``: 1 everywhere.
    """
    weights = torch.ones(68)
    if scheme in ("release", "facing"):
        weights[28:31] = 20.0
        weights[60:68] = 20.0
    elif scheme != "uniform":
        raise ConfigError(nearest_name(scheme, ("facing", "release", "uniform"), "landmark weighting"))
    return weights


def facing_weights(points: Tensor, rotation: Tensor, least: float = 0.05) -> Tensor:
    """How much each landmark is to be believed by how far the head has turned it away (ours).

    A point on the far side of a turned head is seen at a slant: a pixel there is many millimeters of the face, and
    detectors err most. Its weight is the square of the cosine that it faces the camera with, over that of a frontal
    head. Directions are those from the head's vertical axis, as far back as the jaw is on average.
    (B, 68) in [least, 1]; 1 for the jaw (0-16), which slides to where the outline is.

    Args:
        points: (68, 3) on the head, not posed.
        rotation: (B, 3) Euler angles.
        least: weight, however far it turned.
    """
    check_shape("points", points, "68 3")
    check_shape("rotation", rotation, "B 3")
    jaw = slice(0, 17)
    across = points * points.new_tensor([1.0, 0.0, 1.0])
    across = F.normalize(across - points[jaw].mean(0) * points.new_tensor([0.0, 0.0, 1.0]), dim=1)
    facing = (across @ euler_to_matrix(rotation).mT)[..., 2] / across[:, 2].clamp(min=0.2)
    weights = facing.clamp(0, 1).square().clamp(min=least)
    weights[:, jaw] = 1.0
    return weights


def landmark_loss(points: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the points of the weighted squared distance, px^2; (B,).

    Args:
        points, target: (B, N, 2), pixels.
        weights: (N,) or (B, N).
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
