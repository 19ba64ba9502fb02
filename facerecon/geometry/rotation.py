"""Euler angles and rotation matrices, in the release's order R = Rz Ry Rx."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import check_shape

__all__ = ["euler_to_matrix", "matrix_to_euler"]

_GIMBAL = 1.0 - 1e-6


def euler_to_matrix(angles: Tensor) -> Tensor:
    """Rotation matrices R = Rz Ry Rx (B, 3, 3) of x, y, z Euler angles.

    A column vector is rotated by ``R @ v``, rows of points by ``points @ R.mT``. The release writes the same
    map as (Rz Ry Rx)^T applied on the right.

    Args:
        angles: (B, 3) radians: pitch, yaw and roll of a face that looks at +z.
    """
    check_shape("angles", angles, "B 3")
    sin_x, sin_y, sin_z = angles.sin().unbind(-1)
    cos_x, cos_y, cos_z = angles.cos().unbind(-1)
    rows = [
        cos_z * cos_y, cos_z * sin_y * sin_x - sin_z * cos_x, cos_z * sin_y * cos_x + sin_z * sin_x,
        sin_z * cos_y, sin_z * sin_y * sin_x + cos_z * cos_x, sin_z * sin_y * cos_x - cos_z * sin_x,
        -sin_y, cos_y * sin_x, cos_y * cos_x,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).view(-1, 3, 3)


def matrix_to_euler(matrix: Tensor) -> Tensor:
    """Inverse of :func:`euler_to_matrix`: proper rotations (B, 3, 3) -> radians (B, 3), y in [-pi/2, pi/2].

    At the poles (|y| = pi/2) x and z turn about the same axis; the whole turn is given to x and z is 0.
    """
    check_shape("matrix", matrix, "B 3 3")
    sin_y = -matrix[:, 2, 0]
    y = torch.asin(sin_y.clamp(-1.0, 1.0))
    locked = sin_y.abs() > _GIMBAL
    x = torch.where(
        locked,
        torch.atan2(-matrix[:, 1, 2], matrix[:, 1, 1]),
        torch.atan2(matrix[:, 2, 1], matrix[:, 2, 2]),
    )
    z = torch.where(locked, torch.zeros_like(y), torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    return torch.stack([x, y, z], dim=-1)
