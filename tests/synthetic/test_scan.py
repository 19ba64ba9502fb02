"""Photos of the scanned face: the same every time, of the pose and truth that they are said to have."""

from __future__ import annotations

import pytest
import torch

from facerecon.errors import InputError
from facerecon.evaluation import region_errors
from facerecon.morphable.scans import load_scan
from facerecon.synthetic.scan import VIEWS, ScanViews


@pytest.fixture(scope="module")
def views(asset) -> ScanViews:
    asset("scan_james")
    return ScanViews(seed=3)


def test_poses_are_even_and_the_first_six_are_too() -> None:
    for poses in (VIEWS, VIEWS[:6]):
        assert sum(yaw for yaw, _ in poses) == 0
    assert len(VIEWS) == 12 and max(abs(yaw) for yaw, _ in VIEWS) == 30


def test_a_photo_depends_on_seed_and_number_alone(views) -> None:
    first, again = views.sample(2, 160), views.sample(2, 160)
    assert torch.equal(first.photo, again.photo) and first.photo.shape == (3, 160, 160)
    assert not torch.equal(first.photo, views.sample(2 + len(VIEWS), 160).photo)  # the same pose, another light
    assert torch.allclose(torch.rad2deg(first.rotation), torch.tensor([[0.0, 30.0, 0.0]]), atol=1e-4)


def test_the_scan_is_upright_and_without_error_to_itself(views) -> None:
    eyes = views.landmarks[[36, 45]]
    assert abs(float(eyes[1, 1] - eyes[0, 1])) < 0.05 < 0.8 < float(eyes[1, 0] - eyes[0, 0])
    assert abs(float(eyes[1, 2] - eyes[0, 2])) < 0.1 and float(views.landmarks[30, 2]) > float(eyes[:, 2].max())
    found = region_errors(
        views.vertices, views.faces, views.landmarks, views.vertices, views.faces, views.landmarks, views.regions
    )
    assert list(found) == ["nose", "mouth", "forehead", "cheek"] and max(found.values()) < 1e-3


def test_landmarks_are_found_where_the_truth_has_them(views, observe_models) -> None:
    from facerecon.perception import observe
    from facerecon.perception.landmarks import map_points

    for number in (0, 1):
        head = views.sample(number)
        photo = observe(head.photo)
        found = map_points(photo.fit.to_photo, photo.landmarks68)[0]
        eye_distance = (head.pixels[45] - head.pixels[36]).norm()
        assert float((found - head.pixels)[17:].norm(dim=1).mean() / eye_distance) < 0.08


def test_a_scan_without_texture_is_refused(asset) -> None:
    asset("scan_mean")
    with pytest.raises(InputError, match="scan_james"):
        ScanViews(load_scan("scan_mean"))
