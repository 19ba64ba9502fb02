"""Distances of shapes within and between people, against closed forms and plain loops."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facerecon.errors import InputError, ShapeError
from facerecon.evaluation import shape_distances, within_between
from facerecon.geometry.rotation import euler_to_matrix


def plane(count: int = 41) -> tuple[SimpleNamespace, dict[str, np.ndarray], torch.Tensor]:
    """A plane [-1, 1]^2, four times as dense in y > 0, as a head model; its halves x < 0 and x > 0; signs +-1."""
    rows = torch.cat([torch.linspace(-1, 0, count), torch.linspace(0, 1, 4 * count)[1:]])
    y, x = torch.meshgrid(rows, torch.linspace(-1, 1, count), indexing="ij")
    mean = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    a = (torch.arange(len(rows) - 1)[:, None] * count + torch.arange(count - 1)).flatten()
    faces = torch.cat([torch.stack([a, a + 1, a + count + 1], 1), torch.stack([a, a + count + 1, a + count], 1)])
    model = SimpleNamespace(mean=mean, num_vertices=len(mean), topology=SimpleNamespace(faces=faces))
    sign = (-1.0) ** (torch.arange(len(rows))[:, None] + torch.arange(count))
    left = (mean[:, 0] < 0).numpy()
    return model, {"left": left, "right": ~left}, sign.flatten()


def test_distances_are_the_root_mean_square_over_area_in_millimeters() -> None:
    model, regions, sign = plane()
    height, up = 0.02, torch.tensor([0.0, 0.0, 1.0])
    rough = model.mean + height * sign[:, None] * up
    one_side = model.mean + height * (sign * torch.from_numpy(regions["left"]))[:, None] * up
    dense_only = model.mean + height * (sign * (model.mean[:, 1] > 0))[:, None] * up
    found = shape_distances(torch.stack([model.mean, rough, one_side, dense_only]), model, regions)
    assert list(found) == ["face", "left", "right"]
    assert torch.allclose(found["face"][0, 1], torch.tensor(2.0).double(), rtol=0.02)
    assert torch.allclose(found["face"][0, 2:], torch.tensor(2.0 * 0.5**0.5).double(), rtol=0.03)  # half of the area
    assert found["left"][0, 2] == pytest.approx(2.0, rel=0.03) and found["right"][0, 2] < 0.05
    step = model.mean + height * (model.mean[:, 1] > 0)[:, None] * up  # less the plane through it, a quarter is left
    assert shape_distances(torch.stack([model.mean, step]), model, regions)["face"][0, 1] == pytest.approx(
        0.5, rel=0.05
    )
    assert torch.equal(found["face"], found["face"].T) and (found["face"].diagonal() == 0).all()


def test_size_and_pose_do_not_count() -> None:
    model, regions, _ = plane(15)
    shape = model.mean.double() + 0.05 * torch.randn(model.mean.shape, dtype=torch.float64)
    turn = euler_to_matrix(torch.tensor([[0.3, -0.5, 0.1]], dtype=torch.float64))[0]
    moved = 1.7 * shape @ turn.T + torch.tensor([1.0, -2.0, 3.0])
    found = shape_distances(torch.stack([shape, moved, model.mean.double()]), model, regions)
    assert found["face"][0, 1] < 1e-6 and found["left"][0, 1] < 1e-6 and found["face"][0, 2] > 5


def test_means_over_pairs_are_those_of_plain_loops() -> None:
    persons = ["a", "a", "a", "b", "b", "c"]
    distances = torch.rand(6, 6, dtype=torch.float64)
    distances = distances + distances.T
    pairs = [(i, j) for i in range(6) for j in range(i)]
    within = np.mean([distances[i, j] for i, j in pairs if persons[i] == persons[j]])
    between = np.mean([distances[i, j] for i, j in pairs if persons[i] != persons[j]])
    found = within_between(distances, persons)
    assert found["within"].value == pytest.approx(within) and found["between"].value == pytest.approx(between)
    assert found["ratio"].value == pytest.approx(within / between)
    assert found["within"].low is None and found["between"].low is not None  # of two people, and of three
    assert list(within_between(distances[3:, 3:][1:, 1:], ["b", "c"])) == ["between"]


def test_a_person_drawn_twice_is_not_two_people() -> None:
    persons = [k // 3 for k in range(12)]
    same = torch.tensor([[a == b for a in persons] for b in persons])
    found = within_between(torch.where(same, 1.0, 2.0), persons)
    for key, value in (("within", 1.0), ("between", 2.0), ("ratio", 0.5)):
        assert (found[key].low, found[key].value, found[key].high) == pytest.approx((value, value, value))


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(InputError, match="at least one pair"):
        within_between(torch.zeros(1, 1), ["a"])
    with pytest.raises(ShapeError, match="persons must be 2"):
        within_between(torch.zeros(2, 2), ["a"])
    model, regions, _ = plane(5)
    with pytest.raises(ShapeError, match="shapes"):
        shape_distances(torch.zeros(2, 7, 3), model, regions)
