import pytest
import torch

from facerecon.errors import ShapeError
from facerecon.geometry.alignment import (
    apply_similarity,
    deep3d_crop_transform,
    five_points,
    similarity_transform,
    umeyama,
)
from facerecon.geometry.rotation import euler_to_matrix


@pytest.mark.parametrize("dimensions", [2, 3])
def test_recovers_a_known_similarity(dimensions):
    torch.manual_seed(0)
    source = torch.randn(4, 12, dimensions, dtype=torch.float64)
    rotation = euler_to_matrix(torch.randn(4, 3, dtype=torch.float64))
    if dimensions == 2:
        angle = torch.randn(4, dtype=torch.float64)
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(4, 2, 2)
    scale = torch.rand(4, dtype=torch.float64) + 0.5
    translation = torch.randn(4, dimensions, dtype=torch.float64)
    target = scale[:, None, None] * source @ rotation.mT + translation[:, None]
    for actual, expected in zip(umeyama(source, target), (scale, rotation, translation), strict=True):
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(apply_similarity(similarity_transform(source, target), source), target)


def test_never_mirrors_and_is_a_least_squares_optimum():
    torch.manual_seed(1)
    source = torch.randn(1, 20, 3, dtype=torch.float64)
    target = source * torch.tensor([-1.0, 1.0, 1.0])  # a mirror image: the best proper rotation
    scale, rotation, translation = umeyama(source, target)
    assert torch.linalg.det(rotation) > 0.999

    def error(scale, rotation, translation):
        return (scale[:, None, None] * source @ rotation.mT + translation[:, None] - target).square().sum()

    best = error(scale, rotation, translation)
    for _ in range(50):
        nudge = euler_to_matrix(0.05 * torch.randn(1, 3, dtype=torch.float64))
        other = error(scale * (1 + 0.05 * torch.randn(1)), nudge @ rotation, translation + 0.02 * torch.randn(1, 3))
        assert other > best


def test_weight_zero_ignores_an_outlier():
    source = torch.randn(1, 8, 2)
    target = source * 2 + 1
    target[0, 0] += 100
    weights = torch.ones(8)
    weights[0] = 0
    scale, _, translation = umeyama(source, target, weights)
    torch.testing.assert_close(scale, torch.tensor([2.0]))
    torch.testing.assert_close(translation, torch.ones(1, 2), atol=1e-4, rtol=0)


def test_five_points_of_numbered_landmarks():
    landmarks = torch.arange(68, dtype=torch.float32)[None, :, None].expand(1, 68, 2)
    assert five_points(landmarks)[0, :, 0].tolist() == [30.0, 37.5, 43.5, 48.0, 54.0]
    with pytest.raises(ShapeError, match="68"):
        five_points(landmarks[:, :60])


def test_crop_puts_the_origin_in_the_center_at_102_pixels_a_unit():
    torch.manual_seed(3)
    model = torch.tensor([[0, -0.1, 0.9], [-0.35, 0.35, 0.4], [0.35, 0.35, 0.4], [-0.3, -0.5, 0.5], [0.3, -0.5, 0.5]])
    matrix = euler_to_matrix(torch.tensor([[0.1, 0.4, 0.2]]))[0]
    scale, origin = 317.0, torch.tensor([612.0, 431.0])
    projected = (model @ matrix.T)[:, :2] * torch.tensor([1.0, -1.0]) * scale + origin  # y down
    landmarks = torch.zeros(1, 68, 2)
    nose, left, right, mouth_left, mouth_right = projected
    landmarks[0, 30], landmarks[0, 48], landmarks[0, 54] = nose, mouth_left, mouth_right
    landmarks[0, 36] = landmarks[0, 39] = left
    landmarks[0, 42] = landmarks[0, 45] = right
    to_photo = deep3d_crop_transform(landmarks, model)
    center = to_photo[0] @ torch.tensor([112.0, 112.0, 1.0])
    torch.testing.assert_close(center, origin, atol=1e-2, rtol=0)
    torch.testing.assert_close(to_photo[0, :, :2], torch.eye(2) * scale / 102, atol=1e-4, rtol=0)
    larger = deep3d_crop_transform(landmarks, model, size=448)
    torch.testing.assert_close(larger[0, :, :2], torch.eye(2) * scale / 204, atol=1e-4, rtol=0)
