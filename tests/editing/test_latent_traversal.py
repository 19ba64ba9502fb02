"""The traversal in a world whose attributes are known functions of the code: what it must reach, record and refuse."""

import math

import pytest
import torch
from torch import nn

from facerecon.editing.attributes import Attributes
from facerecon.editing.directions import CLASSES, LIGHT, MEASURED, Directions
from facerecon.editing.latent_traversal import AttributeNormalizer, TraversalSettings, _Traversal, next_angle, unmet
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
            skin=torch.ones(n, 3), hair=torch.ones(n, 3), accessories=worn,
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
    made = AttributeNormalizer(Painter(), planes(), Reader())(source())
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
    assert torch.equal(made.codes, made.codes.half().float())  # which a manifest keeps as it is


def test_pictures_are_made_once() -> None:
    painter = Painter()
    made = AttributeNormalizer(painter, planes(), Reader())(source())
    assert painter.calls == len(made.trace)


def test_a_bent_world_is_met_by_measuring() -> None:
    """Yaw saturates and turning brings back smile and tilt: one linear step would give 25 degrees and a smile."""
    made = AttributeNormalizer(Painter(), planes(), Reader(bend=0.8))(source())
    assert made.reasons == []
    assert made.attributes.yaw == pytest.approx([0, 30, -30], abs=4)
    assert made.attributes.smiling.max() < 0.3
    assert made.attributes.pitch.abs().max() < 5


def test_what_the_image_shows_counts_not_what_the_code_says() -> None:
    """A hat that the code denies: pushed further in each round, and refused if it stays."""
    shown = AttributeNormalizer(Painter(), planes(), Reader(hat=1.5))(source())
    denied = float(planes().read(shown.codes[:1])["headwear"])
    assert denied < -3.5 - 0.5  # beyond the margin at which the code itself would rest
    stays = AttributeNormalizer(Painter(), planes(), Reader(hat=40.0))(source())
    assert [reason.split(":")[0] for reason in stays.reasons] == ["occlusion"]


# -- traversals whose every measurement is given ----------------------------------------------------------

GOOD = {
    "yaw": 0.0,
    "pitch": 0.0,
    "smiling": 0.0,
    "opening": 0.0,
    "evenness": 0.0,
    "far": 0.0,
    "accessories": (-20.0,) * 3,
}


def wearing(*margins: float) -> dict:
    return {"accessories": margins}


def shown(*rows: dict) -> Attributes:
    """What pictures show, each like ``GOOD`` but for what is given; ``far``: length of the identity embedding."""
    row = {key: torch.tensor([{**GOOD, **given}[key] for given in rows]) for key in GOOD}
    zeros = torch.zeros(len(rows))
    expression, identity = torch.zeros(len(rows), 7), torch.zeros(len(rows), 128)
    expression[:, 1], identity[:, 5] = row["smiling"], row["far"]  # with the corners of the mouth far up
    light = torch.ones(len(rows), 9, 3)
    return Attributes(
        yaw=row["yaw"], pitch=row["pitch"], roll=zeros, expression=expression, opening=row["opening"], smile=zeros + 1,
        age=zeros, male=zeros + 0.5, light=light, skin=light[:, 0], hair=light[:, 0], accessories=row["accessories"],
        evenness=row["evenness"], identity=identity, landmarks68=torch.zeros(len(rows), 68, 2),
        mesh468=torch.zeros(len(rows), 468, 3), score=zeros + 1,
    )  # fmt: skip


class Steps:
    """An editor that raises the first number of a code by 1 a step, and keeps the yaw that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def read(self, codes):
        return {name: codes.new_zeros(len(codes)) for name in NAMES}

    def step(self, codes, current, targets, keep=()):
        self.asked.append(float(targets["yaw"]))
        return codes + torch.eye(1, 512)


def walked(source: dict, *measured: dict, **settings) -> tuple[AttributeNormalizer, object]:
    """A traversal from a code of zeros whose pictures, one after another, show what is given."""
    rest = iter((source, *measured))
    normalizer = AttributeNormalizer(
        Painter(), Steps(), lambda images: shown(next(rest)), TraversalSettings(**settings)
    )
    made = normalizer(torch.zeros(512))
    assert next(rest, None) is None  # all were looked at
    return normalizer, made


def yaws(*values: float) -> list[dict]:
    return [{"yaw": value} for value in values]


def test_a_view_is_done_once_it_is_near_enough() -> None:
    """Cost of a yaw alone: the square of its error over 4 degrees; 1.2 is enough."""
    normalizer, made = walked(*yaws(9, 4.5, 4.3), *yaws(25, 34.5, 31), *yaws(-34.3))
    names = [row["step"] for row in made.trace]
    assert names == ["source", "front 1", "front 2", "left 1", "left 2", "left 3", "right 1"]
    assert made.codes[:, 0].tolist() == [2, 5, 3]  # sides begin at the front
    assert normalizer.generator.calls == 7
    # the yaw measured, and what is asked for besides: by the usual rate, by the one found, between what lies around
    first = 25.7 / 0.85
    second = first + 5 * first / 20.7
    third = first + 5 / 9.5 * (second - first)
    left = [4.3 + first, 25 + second - first, 34.5 + third - second]
    assert normalizer.directions.asked == pytest.approx([0, 0, *left, 4.3 - 34.3 / 0.85])


def test_the_best_of_all_tries_is_kept() -> None:
    _, made = walked(*yaws(0), *yaws(7, 6, 8), *yaws(20, 40, 45), *yaws(-10, -20, -22))
    assert len(made.trace) == 1 + 3 + 3 + 3  # none was near enough
    assert made.attributes.yaw.tolist() == [6, 20, -22]
    assert made.codes[:, 0].tolist() == [2, 3, 5]
    assert torch.equal(made.images[:, 0, 0], made.codes)
    _, made = walked(*yaws(0), *yaws(7, 6), *yaws(20), *yaws(-10), rounds=2, side_rounds=1)
    assert made.codes[:, 0].tolist() == [2, 3, 3]


@pytest.mark.parametrize(
    "given, cost",
    [
        ({"yaw": 22.0}, (8 / 4) ** 2),
        ({"pitch": 5.0}, 0.3),
        ({"evenness": 0.09}, 2 * 0.5**2),
        ({"opening": 0.12}, 2 * 2**2),
        ({"smiling": 0.15}, 2 * 0.5**2),
        ({"smiling": 0.9}, 2 * 4),  # at most
        ({"far": 1.5}, 0.5 * 2**2),
        ({"yaw": 34.0, "pitch": -10.0, "far": 0.75}, 1 + 0.3 * 4 + 0.5),
    ],
)
def test_what_a_view_costs(given, cost) -> None:
    traversal = _Traversal(AttributeNormalizer(Painter(), Steps(), lambda images: shown({})), torch.zeros(512))
    seen = shown(
        {"yaw": 30.0, **given, "accessories": (0.0, math.log(3), -math.log(3))}
    )  # at chances of 1/2, 3/4 and 1/4
    assert traversal.cost(seen, torch.tensor([30.0]), front=False).item() == pytest.approx(cost, rel=1e-5)
    worn = 2 / 2 + 3 / 4 + 2 / 4  # glasses, fringe and headwear
    assert traversal.cost(seen, torch.tensor([30.0]), front=True).item() == pytest.approx(cost + worn, rel=1e-5)


SEEN = {"front": {}, "left": {"yaw": 30.0}, "right": {"yaw": -30.0}}


@pytest.mark.parametrize(
    "view, within, beyond, reason",
    [
        ("front", {"yaw": -2.9}, {"yaw": -3.1}, "yaw: -3.1 degrees in the front view, 0 wanted"),
        ("left", {"yaw": 33.9}, {"yaw": 34.1}, "yaw: 34.1 degrees in the left view, 30 wanted"),
        ("right", {"yaw": -26.1}, {"yaw": 30.0}, "yaw: 30.0 degrees in the right view, -30 wanted"),
        ("left", {"pitch": -9.9}, {"pitch": -10.1}, "pitch: -10.1 degrees in the left view"),
        ("right", {"smiling": 0.29}, {"smiling": 0.31}, "expression: a smile of 0.31 in the right view"),
        (
            "front",
            {"opening": 0.05},
            {"opening": 0.07},
            "expression: mouth open by 0.07 of its width in the front view",
        ),
        ("right", {"evenness": 0.17}, {"evenness": 0.19}, "light: bands 1-8 at 0.19 of band 0 in the right view"),
        (
            "front",
            {"accessories": (-0.1, -9, -9)},
            {"accessories": (0.1, -9, -9)},
            "glasses: glasses with probability 0.52",
        ),
        (
            "front",
            {"accessories": (-9, -0.1, -9)},
            {"accessories": (-9, 0.1, -9)},
            "occlusion: fringe with probability 0.52",
        ),
        (
            "front",
            {"accessories": (-9, -9, -0.1)},
            {"accessories": (-9, -9, 0.1)},
            "occlusion: headwear with probability 0.52",
        ),
        ("front", {"far": 0.74}, {"far": 0.76}, "identity: the front view is 0.76 from the source, at most 0.75"),
        ("front", {}, {"far": math.nan}, "identity: the front view is nan from the source"),
        ("left", {"far": 9.0, "accessories": (9.0, 9.0, 9.0)}, {"yaw": math.nan}, "yaw: nan degrees in the left view"),
    ],
)
def test_targets_that_are_not_met_are_named(view, within, beyond, reason) -> None:
    def reasons(given: dict) -> list[str]:
        rows = {**SEEN, view: {**SEEN[view], **given}}
        return unmet(TraversalSettings(), shown({}), shown(*rows.values()))

    assert reasons(within) == []
    found = reasons(beyond)
    assert len(found) == 1 and found[0].startswith(reason)


def test_another_person_is_refused() -> None:
    """However well all else is met; the distance is that from the source, not from nothing."""
    same = {"far": 3.0}
    views = [{**same, "yaw": 30.0}], [{**same, "yaw": -30.0}]
    assert walked(same, {"far": 3.7}, *views[0], *views[1])[1].reasons == []
    _, made = walked(same, {"far": 3.8}, *views[0], *views[1])
    assert made.reasons == ["identity: the front view is 0.80 from the source, at most 0.75"]


# -- codes and angles --------------------------------------------------------------------------------------------


def test_rows_of_a_wide_code_move_alike() -> None:
    wide = source() + torch.linspace(-1, 1, 23)[:, None]
    made = AttributeNormalizer(Painter(), planes(), Reader())(wide)
    assert made.codes.shape == (3, 23, 512)
    moved = made.codes - wide
    assert torch.allclose(moved, moved[:, :1].expand_as(moved), atol=0.02)  # codes are rounded to half precision


def test_same_twice() -> None:
    first, second = (AttributeNormalizer(Painter(), planes(), Reader(bend=0.8))(source()) for _ in range(2))
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
    normalizer = AttributeNormalizer(Painter(), planes(), Reader())
    with pytest.raises(ShapeError, match="one face at a time"):
        normalizer(torch.zeros(2, 3, 512))
    with pytest.raises(ConfigError, match="rounds"):
        AttributeNormalizer(Painter(), planes(), Reader(), TraversalSettings(rounds=0))
