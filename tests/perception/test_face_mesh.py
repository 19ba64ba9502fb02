"""The 478-point mesh: index lists, where it puts known points, turning and scaling with the photo."""

import math

import pytest
import torch
import torch.nn.functional as F

from facerecon.imaging.warp import crop_affine
from facerecon.perception import load_detector, load_expression_scores, load_facemesh
from facerecon.perception.face_landmarker import EXPRESSION_SCORES, find_irises, gaze_angles, iris_mask
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


def test_irises_and_gaze_of_a_drawn_mesh() -> None:
    """Eyes of 30 px, irises of radius 6: straight ahead, then 3 px to the right and 1.5 up, turned by 20 degrees."""
    mesh = torch.zeros(2, 478, 3)
    for row, (x, y) in enumerate(((0.0, 0.0), (3.0, -1.5))):
        for inner, outer, first, middle in ((133, 33, 468, 100.0), (362, 263, 473, 160.0)):
            side = 1 if outer == 263 else -1
            mesh[row, outer, :2] = torch.tensor([middle + 15 * side, 80.0])
            mesh[row, inner, :2] = torch.tensor([middle - 15 * side, 80.0])
            rim = torch.tensor([[0.0, 0], [6, 0], [0, -5], [-6, 0], [0, 5]])
            mesh[row, first : first + 5, :2] = torch.tensor([middle + x, 80 + y]) + rim
    angle = math.radians(20)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    mesh[1, :, :2] = mesh[1, :, :2] @ turn
    irises = find_irises(mesh)
    torch.testing.assert_close(irises[0], torch.tensor([[100.0, 80, 6], [160, 80, 6]]))
    torch.testing.assert_close(irises[1, :, :2], torch.tensor([[103.0, 78.5], [163, 78.5]]) @ turn)
    gaze = gaze_angles(mesh)
    torch.testing.assert_close(gaze[0], torch.zeros(2, 2), atol=1e-4, rtol=0)
    expected = torch.tensor([math.asin(0.5 * 0.48), math.asin(-0.25 * 0.48)]).expand(2, 2)
    torch.testing.assert_close(gaze[1], expected, atol=1e-4, rtol=0)


def test_the_iris_mask_is_both_disks_between_the_lids() -> None:
    irises = torch.tensor([[[20.0, 30.0, 6.0], [50.5, 28.0, 4.0]]])
    eyes = torch.ones(1, 1, 64, 80)
    mask = iris_mask(irises, eyes)
    assert mask.sum().item() == pytest.approx(math.pi * (6**2 + 4**2), rel=0.02)
    assert mask[0, 0, 29, 19] == mask[0, 0, 27, 50] == 1 and mask[0, 0, 29, 35] == 0
    eyes[:, :, :30] = 0  # a lid over the upper half of the first iris, and over most of the second
    assert iris_mask(irises, eyes)[..., :40].sum().item() == pytest.approx(math.pi * 18, rel=0.02)


def test_scores_are_the_same_however_the_photo_is_turned(asset, mesh) -> None:
    """The sample smiles, with open eyes; scores do not depend on roll, size or the rest of a batch."""
    asset("expression52")
    net = load_expression_scores()
    angle = math.radians(40)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = torch.cat([3 * mesh[..., :2] @ turn, mesh[..., 2:]], -1)
    straight, both = net(mesh), net(torch.cat([turned, mesh.flip(1)]))
    assert straight.shape == (1, 52)
    torch.testing.assert_close(both[:1], straight, atol=2e-3, rtol=0)
    named = dict(zip(EXPRESSION_SCORES, straight[0].tolist(), strict=True))
    assert min(named["mouthSmileLeft"], named["mouthSmileRight"]) > 0.6
    assert max(named["jawOpen"], named["mouthPucker"], named["mouthFrownLeft"]) < 0.2


def test_fusing_moves_eye_and_mouth_points_only() -> None:
    landmarks, mesh = torch.zeros(2, 68, 2), torch.ones(2, 468, 3)
    fused = fused_landmarks(landmarks, mesh, 0.25)
    assert torch.equal(fused[:, :36], landmarks[:, :36])
    assert torch.equal(fused[:, 36:], torch.full((2, 32, 2), 0.25))
