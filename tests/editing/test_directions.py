"""Planes and steps against what a linear world says, files against hands that changed them, labels against typos."""

import json

import pytest
import torch

from facerecon.editing.attributes import Attributes
from facerecon.editing.directions import (
    CLASSES,
    LIGHT,
    MEASURED,
    RIDGE,
    STEADY,
    Directions,
    fit_directions,
    load_directions,
    measured_values,
    read_labels,
)
from facerecon.errors import AssetError, ConfigError, InputError, ShapeError

D = 24


def world(n: int = 400):
    """Codes, and attributes that are linear in them: what a perfect generator and meter would give."""
    chance = torch.Generator().manual_seed(2)
    codes = torch.randn(n, D, generator=chance) * torch.linspace(1.5, 0.5, D)
    codes[:, 1] += 0.8 * codes[:, 0]  # entangled
    light = torch.zeros(n, 9, 3)
    light[:, 0] = 0.8
    light[:, 1:] = 0.8 * 0.1 * codes[:, 2:10, None]
    smooth = torch.sigmoid(6 * codes[:, 10])
    expression = torch.zeros(n, 7)
    expression[:, 1], expression[:, 0] = smooth, 1 - smooth
    attributes = Attributes(
        yaw=10 * codes[:, 0], pitch=5 * codes[:, 1], roll=torch.zeros(n), expression=expression,
        opening=0.1 * codes[:, 11], smile=0.05 * codes[:, 10], age=30 + 5 * codes[:, 12],
        male=torch.sigmoid(0.5 * codes[:, 13]), light=light, skin=(0.2 * codes[:, 14:17]).exp(),
        hair=(0.2 * codes[:, 17:20]).exp(), accessories=torch.full((n, 3), -3.0), evenness=torch.zeros(n),
        identity=torch.randn(n, 128, generator=chance), landmarks68=torch.zeros(n, 68, 2),
        mesh468=torch.randn(1, 468, 3, generator=chance) + 0.01 * torch.randn(n, 468, 3, generator=chance),
        score=torch.ones(n),
    )  # fmt: skip
    index = torch.arange(n)
    labels = {name: (index, (codes[:, 20 + k] > 0.3).long()) for k, name in enumerate(CLASSES[1:])}
    return codes, attributes, labels


@pytest.fixture(scope="module")
def fitted():
    codes, attributes, labels = world()
    return codes, attributes, labels, *fit_directions(codes, attributes, labels)


def test_a_linear_world_is_recovered(fitted) -> None:
    codes, attributes, labels, directions, margins = fitted
    assert set(directions.names) == {*MEASURED, *STEADY, *CLASSES}
    for name in ("yaw", "pitch", "opening", "age", *LIGHT):
        assert directions.metrics[name]["r2"] > 0.98, name
    assert directions.metrics["identity0"]["r2"] < 0.2  # chance has no plane
    for name in CLASSES[1:]:
        assert directions.metrics[name]["accuracy"] > 0.93
        assert ((margins[name] > 0) == (labels[name][1] > 0)).double().mean() > 0.93
    read, values = directions.read(codes), measured_values(attributes)
    assert (read["yaw"] - values["yaw"]).abs().max() < 1.0


def test_a_step_moves_its_targets_and_keeps_the_rest(fitted) -> None:
    codes, _, _, directions, _ = fitted
    now = directions.read(codes[:5])
    targets = {"yaw": torch.zeros(5), "light3": torch.zeros(5), "glasses": now["glasses"] - 2}
    keep = ("pitch", "age", "male", "happy")
    moved = directions.read(directions.step(codes[:5], now, targets, keep))
    for name, target in targets.items():
        assert ((moved[name] - target).abs() <= 5 * RIDGE * (target - now[name]).abs() + 0.02).all(), name
    for name in keep:
        scale = directions.metrics[name].get("std", 1.0)
        assert (moved[name] - now[name]).abs().max() < 0.25 * scale, name


def test_without_keeping_entangled_attributes_follow(fitted) -> None:
    """Pitch goes with yaw in these codes; only a step that keeps it leaves it alone."""
    *_, directions, _ = fitted
    pitch = directions.index(["pitch"])
    free = directions.direction("yaw") @ directions.weight[pitch[0]]
    kept = directions.direction("yaw", keep=("pitch",)) @ directions.weight[pitch[0]]
    assert abs(float(free)) > 0.05
    assert abs(float(kept)) < 1e-4
    assert float(directions.direction("yaw") @ directions.weight[directions.index(["yaw"])[0]]) == pytest.approx(
        1, abs=1e-4
    )


def test_the_step_is_the_shortest_in_its_metric() -> None:
    """Against a projected plain step: with C = 1 the direction is InterFaceGAN's, the normal less the kept normal."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(2, D, generator=chance)
    plain = Directions(weight, torch.zeros(2), torch.zeros(D), weight.clone(), ("yaw", "pitch"))
    kept = weight[1] / weight[1].norm()
    projected = weight[0] - (weight[0] @ kept) * kept
    found = plain.direction("yaw", keep=("pitch",))
    assert torch.allclose(found / found.norm(), projected / projected.norm(), atol=1e-5)


def test_rows_of_a_wide_code_are_averaged(fitted) -> None:
    codes, *_, directions, _ = fitted
    wide = codes[:3, None] + torch.tensor([-1.0, 0.0, 1.0])[:, None]
    for name, value in directions.read(wide).items():
        assert torch.allclose(value, directions.read(codes[:3])[name], atol=1e-4)
    with pytest.raises(ShapeError, match="W\\+"):
        directions.step(wide, {}, {})


def test_a_file_comes_back_and_a_changed_one_is_refused(fitted, tmp_path) -> None:
    *_, directions, _ = fitted
    directions.save(tmp_path / "a.safetensors")
    again = Directions.load(tmp_path / "a.safetensors")
    assert torch.equal(again.weight, directions.weight) and again.names == directions.names
    assert again.metrics == json.loads(json.dumps(directions.metrics))
    directions.replace(bias=directions.bias[:-1]).save(tmp_path / "b.safetensors")
    with pytest.raises(AssetError, match="latent directions"):
        Directions.load(tmp_path / "b.safetensors")
    with pytest.raises(AssetError, match="does not exist"):
        Directions.load(tmp_path / "c.safetensors")


def test_names_are_checked(fitted) -> None:
    *_, directions, _ = fitted
    with pytest.raises(ConfigError, match="did you mean 'yaw'"):
        directions.direction("yaww")
    with pytest.raises(ConfigError, match="class"):
        directions.probability("yaw", torch.zeros(1, D))


def test_too_little_is_said(fitted) -> None:
    codes, attributes, labels, *_ = fitted
    with pytest.raises(InputError, match="at least 20"):
        fit_directions(codes[:8], attributes[:8], {})
    few = labels | {"glasses": (torch.arange(30), torch.zeros(30, dtype=torch.long))}
    with pytest.raises(InputError, match="'glasses' has 0 of 30"):
        fit_directions(codes, attributes, few)


def test_labels_are_read_and_typos_found(tmp_path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("# looked at\nseed,glasses,fringe\n3,1,0\n4,,1\n", encoding="utf-8")
    assert read_labels(path) == {"glasses": {3: 1}, "fringe": {3: 0, 4: 1}}
    path.write_text("seed,glasses\n3,1\n4,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 3"):
        read_labels(path)
    path.write_text("face,glasses\n", encoding="utf-8")
    with pytest.raises(InputError, match="no header"):
        read_labels(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_what_is_shipped_holds_together() -> None:
    from facerecon.assets import shipped

    directions = load_directions()
    assert set(directions.names) == {*MEASURED, *STEADY, *CLASSES}
    assert directions.metrics["yaw"]["r2"] > 0.94
    assert directions.metrics["glasses"]["accuracy"] > 0.92
    labels = read_labels(shipped("attribute_labels.csv"))
    assert set(labels) == set(CLASSES[1:])
    assert all(len(of) >= 400 for of in labels.values())


def test_shipped_planes_read_the_labels(asset) -> None:
    """Codes of labeled seeds, made anew: the planes speak of this generator's W."""
    from facerecon.assets import shipped
    from facerecon.stylegan.face_generator import load_generator

    asset("mobile_stylegan")
    labels = read_labels(shipped("attribute_labels.csv"))["glasses"]
    seeds = list(labels)[:200]
    read = load_directions().probability("glasses", load_generator().sample(seeds, 0.8)) > 0.5
    right = read == torch.tensor([labels[s] for s in seeds]).bool()
    assert right.double().mean() > 0.93
