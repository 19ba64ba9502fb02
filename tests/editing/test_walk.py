"""The walk in a world whose attributes are known functions of the code: what it must reach, record and refuse."""

import pytest
import torch
from torch import nn

from facerecon.editing.attributes import Attributes
from facerecon.editing.directions import CLASSES, LIGHT, MEASURED, Directions
from facerecon.editing.walk import Normalizer, WalkSettings, next_angle
from facerecon.errors import ConfigError, ShapeError

NAMES = (*MEASURED, *CLASSES)


class Painter(nn.Module):
    """A 'generator' whose picture is its code."""

    calls = 0

    def forward(self, codes):
        self.calls += len(codes)
        plain = codes.mean(1) if codes.dim() == 3 else codes
        return plain[:, None, None].expand(-1, 3, 2, -1)


class Reader:
    """A 'meter': attribute k is component k of the code; yaw saturates, turning brings a smile back and tilts."""

    def __init__(self, bend: float = 0.0, hat: float = -3.0) -> None:
        self.bend, self.hat = bend, hat

    def __call__(self, image):
        w = image[:, 0, 0]
        value = {name: w[:, k] for k, name in enumerate(NAMES)}
        n = len(w)
        angle = value["yaw"]
        yaw = 40 * torch.tanh(angle / 40) if self.bend else angle
        happy = torch.sigmoid(3 * (value["happy"] + self.bend * (angle / 30).square()))
        expression = torch.zeros(n, 7)
        expression[:, 0], expression[:, 1] = 1 - happy, happy
        light = torch.zeros(n, 9, 3)
        light[:, 0] = 0.8
        light[:, 1:] = 0.8 * torch.stack([value[name] for name in LIGHT], 1)[..., None]
        worn = torch.stack([value[name] for name in CLASSES[1:]], 1)
        worn = torch.cat([worn[:, :2], worn[:, 2:] + self.hat + 3], 1)
        return Attributes(
            yaw=yaw, pitch=value["pitch"] + self.bend * angle / 10, roll=torch.zeros(n), expression=expression,
            opening=value["opening"], smile=value["smile"] + 0.1 * self.bend * (angle / 30).square(),
            age=value["age"], male=value["male"].sigmoid(), light=light,
            skin=torch.ones(n, 3), hair=torch.ones(n, 3), worn=worn,
            evenness=light.mean(2)[:, 1:].square().sum(1).sqrt() / 0.8, identity=w[:, -128:],
            landmarks68=torch.zeros(n, 68, 2), mesh468=torch.zeros(n, 468, 3), score=torch.ones(n),
        )  # fmt: skip


class Planes(Directions):
    """Directions that also accept names of ``STEADY`` they do not have."""

    def step(self, codes, current, targets, keep=()):
        return super().step(codes, current, targets, [name for name in keep if name in self.names])


def planes() -> Directions:
    weight = torch.eye(len(NAMES), 512)
    return Planes(weight, torch.zeros(len(NAMES)), torch.zeros(512), weight.clone(), NAMES)


def source() -> torch.Tensor:
    w = torch.zeros(512)
    start = {"yaw": 12.0, "pitch": -8.0, "smile": 0.1, "opening": 0.2, "happy": 2.0, "glasses": 3.0, "age": 30.0}
    for name in CLASSES[2:]:
        start[name] = -2.0
    for k, name in enumerate(LIGHT):
        start[name] = 0.1 * (-1) ** k
    for name, value in start.items():
        w[NAMES.index(name)] = value
    return w


def test_all_targets_are_met_and_recorded() -> None:
    made = Normalizer(Painter(), planes(), Reader())(source())
    assert made.reasons == []
    assert made.codes.shape == (3, 512) and made.images.shape[0] == 3
    assert made.attributes.yaw == pytest.approx([0, 30, -30], abs=2)  # front, left (+), right (-)
    assert made.attributes.evenness.max() < 0.02
    assert made.attributes.opening.max() < 0.03 and made.attributes.smiling.max() < 0.3
    assert made.attributes.probability("glasses")[0] < 0.1
    assert made.attributes.age == pytest.approx([30, 30, 30], abs=0.5)
    assert float(made.source.yaw) == 12
    assert [row["step"] for row in made.trace][:2] == ["source", "front 1"]
    assert torch.equal(made.images[:, 0, 0], made.codes)  # each picture is that of its code


def test_pictures_are_made_once() -> None:
    painter = Painter()
    made = Normalizer(painter, planes(), Reader())(source())
    assert painter.calls == len(made.trace)


def test_a_bent_world_is_met_by_measuring() -> None:
    """Yaw saturates and turning brings back smile and tilt: one linear step would give 25 degrees and a smile."""
    made = Normalizer(Painter(), planes(), Reader(bend=0.8))(source())
    assert made.reasons == []
    assert made.attributes.yaw == pytest.approx([0, 30, -30], abs=4)
    assert made.attributes.smiling.max() < 0.3
    assert made.attributes.pitch.abs().max() < 5


def test_what_the_image_shows_counts_not_what_the_code_says() -> None:
    """A hat that the code denies: pushed further in each round, and refused if it stays."""
    shown = Normalizer(Painter(), planes(), Reader(hat=1.5))(source())
    denied = float(planes().read(shown.codes[:1])["headwear"])
    assert denied < -3.5 - 0.5  # beyond the margin at which the code itself would rest
    stays = Normalizer(Painter(), planes(), Reader(hat=40.0))(source())
    assert [reason.split(":")[0] for reason in stays.reasons] == ["occlusion"]


def test_every_reason_starts_with_its_filter() -> None:
    class Stuck(Planes):
        def step(self, codes, current, targets, keep=()):
            return codes

    made = Normalizer(Painter(), Stuck(**vars(planes())), Reader())(source())
    assert {reason.split(":")[0] for reason in made.reasons} == {"yaw", "expression", "light", "glasses"}
    assert all("\n" not in reason for reason in made.reasons)


def test_rows_of_a_wide_code_move_alike() -> None:
    wide = source() + torch.linspace(-1, 1, 23)[:, None]
    made = Normalizer(Painter(), planes(), Reader())(wide)
    assert made.codes.shape == (3, 23, 512)
    moved = made.codes - wide
    assert torch.allclose(moved, moved[:, :1].expand_as(moved), atol=0.02)  # codes are rounded to half precision


def test_same_twice() -> None:
    first, second = (Normalizer(Painter(), planes(), Reader(bend=0.8))(source()) for _ in range(2))
    assert torch.equal(first.codes, second.codes) and first.trace == second.trace


def test_next_angle_is_a_bracketed_search() -> None:
    def measure(asked: float) -> float:
        return 35 * asked / (20 + abs(asked))  # far from a line

    for target in (20.0, -20.0):
        points = [(0.0, 0.0)]
        for _ in range(8):
            ask = next_angle(points, target)
            points.append((ask, measure(ask)))
        assert points[-1][1] == pytest.approx(target, abs=0.3)
    between = next_angle([(0.0, 0.0), (40.0, 36.0), (30.0, 24.0)], 30.0)
    assert 30 < between < 40


def test_bad_input_is_one_line() -> None:
    normalizer = Normalizer(Painter(), planes(), Reader())
    with pytest.raises(ShapeError, match="one face at a time"):
        normalizer(torch.zeros(2, 3, 512))
    with pytest.raises(ConfigError, match="rounds"):
        Normalizer(Painter(), planes(), Reader(), WalkSettings(rounds=0))
