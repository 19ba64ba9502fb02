"""The 68 landmarks: geometry of the crops, TensorFlow's half pixel, places on the sample photo, batches."""

import math

import pytest
import torch
from torch import Tensor, nn

from facerecon.errors import ShapeError
from facerecon.perception import load_landmarks68
from facerecon.perception.landmarks import (
    MIRRORED_68,
    LandmarkNet,
    eye_angle,
    map_points,
    square_crop,
    upright_crop,
)


def test_mirroring_twice_changes_nothing_and_swaps_sides() -> None:
    assert [MIRRORED_68[MIRRORED_68[i]] for i in range(68)] == list(range(68))
    assert [i for i in range(68) if MIRRORED_68[i] == i] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    assert MIRRORED_68[36] == 45 and MIRRORED_68[48] == 54 and MIRRORED_68[0] == 16 and MIRRORED_68[17] == 26


def test_square_crops_hold_their_boxes() -> None:
    boxes = torch.tensor([[10.0, 20.0, 50.0, 100.0], [-5.0, 0.0, 15.0, 10.0]])
    corners = map_points(square_crop(boxes, 64), torch.tensor([[[0.0, 0.0], [64.0, 64.0]]]).expand(2, -1, -1))
    expected = torch.tensor([[[-10.0, 20.0], [70.0, 100.0]], [[-5.0, -5.0], [15.0, 15.0]]])
    torch.testing.assert_close(corners, expected)


@pytest.mark.parametrize("degrees", [-50, 0, 20])
def test_upright_crops_turn_a_rectangle_straight(degrees: int) -> None:
    angle = torch.tensor([math.radians(degrees)])
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    rectangle = torch.tensor([[-30.0, -40.0], [30.0, -40.0], [30.0, 40.0], [-30.0, 40.0]])
    points = (rectangle @ turn.mT + torch.tensor([200.0, 100.0]))[None]
    transform = upright_crop(points, angle, 0.25, 120)
    corners = map_points(transform, torch.tensor([[[37.5 - 7.5, 20.0], [90.0, 20.0], [90.0, 100.0], [30.0, 100.0]]]))
    torch.testing.assert_close(corners, points, atol=1e-3, rtol=0)


def test_the_eyes_give_the_angle() -> None:
    points = torch.zeros(2, 68, 2)
    points[:, 42:48] = torch.tensor([[[3.0, 3.0]], [[2.0, -2 * math.sqrt(3)]]])
    torch.testing.assert_close(eye_angle(points), torch.tensor([math.pi / 4, -math.pi / 3]))


class BrightSpot(nn.Module):
    """Says of a crop what a network would that learned from TensorFlow's old resizing: pixel i showed i * scale."""

    size = 112

    def forward(self, crops: Tensor) -> Tensor:
        y, x = torch.meshgrid(*[torch.arange(112.0)] * 2, indexing="ij")
        weight = crops.mean(1)
        spot = torch.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], -1) / weight.sum((1, 2))[:, None]
        return (spot / 112).repeat(1, 68)


def test_landmarks_lie_on_what_the_network_found() -> None:
    """Through three looks, shifted and mirrored crops, a spot's center comes out to a tenth of a crop pixel."""
    y, x = torch.meshgrid(*[torch.arange(300.0) + 0.5] * 2, indexing="ij")
    spot = torch.tensor([152.3, 138.8])
    photo = torch.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 200).expand(1, 3, -1, -1)
    found = LandmarkNet(BrightSpot(), passes=1)(photo, torch.tensor([[40.0, 30.0, 260.0, 250.0]]))
    assert (found - spot).norm(dim=-1).max() < 0.2  # a crop pixel is 1.96 photo pixels


def test_places_on_the_sample(seen) -> None:
    """Read off the photo by eye, px: eye and mouth corners, nose tip, chin."""
    points = map_points(seen.fit.to_photo, seen.landmarks68)[0]
    by_eye = {36: (196, 101), 45: (255, 104), 39: (211, 102), 42: (239, 103), 30: (223, 129), 48: (203, 140),
              54: (246, 141), 8: (221, 178)}  # fmt: skip
    for index, place in by_eye.items():
        assert (points[index] - torch.tensor(place)).norm() < 3.5, index


def test_faces_of_a_batch_do_not_mix(asset, photo) -> None:
    asset("landmarks68")
    net = load_landmarks68()
    boxes = torch.tensor([[163.0, 70.0, 280.0, 186.0], [155.0, 60.0, 290.0, 195.0]])
    both = net(photo[None], boxes)
    stacked = net(photo.expand(2, -1, -1, -1), boxes)
    alone = torch.cat([net(photo[None], box[None]) for box in boxes])
    torch.testing.assert_close(both, alone, atol=2e-3, rtol=0)
    torch.testing.assert_close(stacked, alone, atol=2e-3, rtol=0)
    assert (both[0] - both[1]).norm(dim=1).mean() < 2  # another first box hardly matters


def test_a_missing_batch_axis_is_named(asset, photo) -> None:
    asset("landmarks68")
    with pytest.raises(ShapeError, match=r"image\[None\]"):
        load_landmarks68()(photo, torch.zeros(1, 4))
