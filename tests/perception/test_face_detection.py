"""The detector: where it must and must not see faces, and how boxes of several scales are merged."""

import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import ShapeError
from facerecon.perception import Detection, load_detector
from facerecon.perception.detection import _merged

pytestmark = pytest.mark.usefixtures("networks")


def overlap(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0, width) * max(0, height)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area - inter)


def test_the_face_of_the_sample_is_found_once(photo) -> None:
    found = load_detector()(photo)
    assert len(found) == 1 and found[0].score > 0.9
    assert overlap(found[0].box, (167, 67, 282, 181)) > 0.8  # recorded


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_boxes_scale_with_the_photo(photo, scale: float) -> None:
    larger = F.interpolate(photo[None], scale_factor=scale, mode="bilinear", antialias=scale < 1)[0]
    (one,), (other,) = load_detector()(photo), load_detector()(larger)
    assert overlap([v * scale for v in one.box], other.box) > 0.85


def test_several_faces_come_largest_first(photo) -> None:
    face = photo[:, 20:260, 100:340]
    scene = torch.full((3, 400, 700), 0.4)
    scene[:, 40:160, 60:180] = F.interpolate(face[None], (120, 120), mode="area")[0]
    scene[:, 80:320, 350:590] = face
    found = load_detector()(scene)
    assert len(found) == 2 and found[0].side > found[1].side
    assert found[0].box[0] > 350 > 180 > found[1].box[2]


def test_a_small_face_in_a_large_photo_is_found(photo) -> None:
    face = F.interpolate(photo[None, :, 20:260, 100:340], (140, 140), mode="area")[0]  # the face is some 68 px wide
    scene = torch.full((3, 1100, 1600), 0.5)
    scene[:, 700:840, 1200:1340] = face
    found = load_detector()(scene)
    assert len(found) == 1 and overlap(found[0].box, (1239, 727, 1306, 794)) > 0.5


def test_nothing_is_found_where_nothing_is() -> None:
    gray = torch.full((3, 200, 300), 0.5)
    noise = torch.rand(3, 256, 256)
    stripes = (torch.arange(256) % 16 < 8).float().expand(3, 256, 256)
    assert [load_detector()(image) for image in (gray, noise, stripes)] == [[], [], []]


def test_nested_boxes_are_one_face_and_neighbors_are_two() -> None:
    outer, inner = Detection((0, 0, 100, 100), 0.7), Detection((20, 20, 80, 80), 0.9)
    beside = Detection((90, 0, 190, 100), 0.6)
    assert _merged([outer, inner, beside]) == [inner, beside]


def test_a_batch_is_refused(photo) -> None:
    with pytest.raises(ShapeError, match="without a batch axis"):
        load_detector()(photo[None])
