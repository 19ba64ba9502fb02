import math

import pytest
import torch

from facerecon.errors import ShapeError
from facerecon.geometry.rotation import euler_to_matrix, matrix_to_euler


def elementary(axis: int, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.eye(3, dtype=torch.float64)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def test_matrix_is_the_product_rz_ry_rx():
    angles = torch.randn(20, 3, dtype=torch.float64)
    for row, matrix in zip(angles.tolist(), euler_to_matrix(angles), strict=True):
        expected = elementary(2, row[2]) @ elementary(1, row[1]) @ elementary(0, row[0])
        torch.testing.assert_close(matrix, expected, atol=1e-14, rtol=0)


def test_positive_yaw_turns_the_nose_to_plus_x():
    nose = torch.tensor([0.0, 0.0, 1.0])
    matrix = euler_to_matrix(torch.tensor([[0.0, math.pi / 2, 0.0]]))[0]
    torch.testing.assert_close(matrix @ nose, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_round_trip_of_angles_and_of_matrices_at_the_poles():
    angles = (torch.rand(200, 3, dtype=torch.float64) - 0.5) * torch.tensor([6.2, 3.1, 6.2])
    torch.testing.assert_close(matrix_to_euler(euler_to_matrix(angles)), angles, atol=1e-7, rtol=0)
    for pole in (math.pi / 2, -math.pi / 2):
        matrix = euler_to_matrix(torch.tensor([[0.3, pole, -0.8]], dtype=torch.float64))
        back = euler_to_matrix(matrix_to_euler(matrix))
        torch.testing.assert_close(back, matrix, atol=1e-7, rtol=0)


def test_gradients():
    angles = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(euler_to_matrix, angles)


def test_missing_batch_axis_says_what_to_do():
    with pytest.raises(ShapeError, match=r"angles must be \(B, 3\); got \(3,\).*angles\[None\]"):
        euler_to_matrix(torch.zeros(3))
