"""The 478-point mesh: index lists, where it puts known points, turning and scaling with the photo."""

import math

import pytest
import torch
import torch.nn.functional as F

from facerecon.imaging.warp import crop_affine
from facerecon.perception import load_detector, load_facemesh
from facerecon.perception.facemesh import (
    EYES_AND_MOUTH,
    FACE_OVAL,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_EYE,
    fused_landmarks,
)
from facerecon.perception.landmarks import map_points


def test_index_lists_name_different_points() -> None:
    lists = (FACE_OVAL, LEFT_EYE, RIGHT_EYE, LIPS_INNER, LIPS_OUTER)
    for indices in lists:
        assert len(set(indices)) == len(indices) and min(indices) >= 0 and max(indices) < 468
    assert set(EYES_AND_MOUTH) <= set(LEFT_EYE) | set(RIGHT_EYE) | set(LIPS_INNER) | set(LIPS_OUTER)


@pytest.fixture(scope="module")
def mesh(request, asset, photo) -> torch.Tensor:
    for name in ("face_detector", "facemesh478"):
        asset(name)
    points, score = load_facemesh()(photo[None], torch.tensor([load_detector()(photo)[0].box]))
    assert score.item() > 0.99
    return points


def test_known_points_of_the_sample(mesh) -> None:
    """Literals read off the photo by eye: eye corners, nose tip, mouth corners, chin."""
    by_eye = {33: (195, 101), 263: (256, 105), 1: (223, 130), 61: (203, 140), 291: (246, 141), 152: (221, 177)}
    for index, position in by_eye.items():
        assert (mesh[0, index, :2] - torch.tensor(position)).norm() < 3, index
    assert mesh[0, 1, 2] < mesh[0, 152, 2] < mesh[0, 234, 2]  # the nose is nearer than the chin, then the ear


@pytest.mark.parametrize("degrees", [-35, 25])
def test_the_mesh_turns_with_the_photo(mesh, photo, degrees: int) -> None:
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    center = torch.tensor([224.0, 124.0])
    to_photo = torch.cat([turn, (center - turn @ torch.tensor([150.0, 150.0]))[:, None]], 1)[None]
    turned = crop_affine(photo[None], to_photo, 300)
    box = torch.tensor([[95.0, 95.0, 205.0, 205.0]])
    points, score = load_facemesh()(turned, box)
    assert score.item() > 0.9
    error = (map_points(to_photo, points[..., :2]) - mesh[..., :2]).norm(dim=-1)
    assert error.mean() < 1.2


def test_the_mesh_scales_with_the_photo_and_does_not_mix_a_batch(mesh, photo) -> None:
    double = F.interpolate(photo[None], scale_factor=2, mode="bilinear")
    box = torch.tensor([load_detector()(photo)[0].box])
    both, _ = load_facemesh()(double, torch.cat([box * 2, box * 2 + 4]))
    assert (both[0] / 2 - mesh[0]).norm(dim=-1).mean() < 0.5
    assert (both[0] - both[1])[:, :2].norm(dim=-1).mean() < 0.6


def test_fusing_moves_eye_and_mouth_points_only() -> None:
    landmarks, mesh = torch.zeros(2, 68, 2), torch.ones(2, 468, 3)
    fused = fused_landmarks(landmarks, mesh, 0.25)
    assert torch.equal(fused[:, :36], landmarks[:, :36])
    assert torch.equal(fused[:, 36:], torch.full((2, 32, 2), 0.25))
