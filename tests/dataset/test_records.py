"""Filters, manifests and readers: what is written comes back, what is wrong is named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from facerecon.dataset import FilterSettings, Manifest, UVMaps, refusals
from facerecon.dataset.filters import STEPS, reason_counts
from facerecon.errors import ConfigError, InputError
from facerecon.imaging.files import write_png
from facerecon.settings import build_settings


def test_each_filter_draws_its_line_on_the_right_side():
    settings = FilterSettings(residual=5.0)
    names = [name for step in STEPS.values() for name in step]
    for name in names:
        step = "search" if name in STEPS["search"] else "map"
        limit = getattr(settings, name)
        below, above = (refusals({name: limit + d}, settings, step) for d in (-1e-3, 1e-3))
        least = name in ("side_yaw", "score", "inversion", "observed")
        assert (len(below), len(above)) == ((1, 0) if least else (0, 1)), name
        assert refusals({name: math.nan}, settings, step), name
        assert not refusals({}, settings, step)
    assert not refusals({"bs_error": 99.0}, FilterSettings(bs_error=None), "map")


def test_a_reason_says_what_was_measured():
    assert refusals({"happy": 0.83}, FilterSettings(), "search") == [
        "expression: a smile is left: probability 0.83, at most 0.50"
    ]
    assert reason_counts([["expression: a", "expression: b"], ["light: c", "expression: d"]]) == {
        "expression": 2,
        "light": 1,
    }


def test_an_unknown_filter_is_named():
    with pytest.raises(ConfigError, match="evenness"):
        build_settings(FilterSettings, {"eveness": 1.0}, "filters")
    with pytest.raises(ConfigError, match=r"filters\.glasses must be a number or null"):
        FilterSettings(glasses="none")


def rows(count=3):
    return [
        (number, None if number == 2 else 100 + number, {"source": torch.full((512,), number / 4),
         "views": torch.full((3, 512), number / 2), "rotation": torch.full((3, 3), number / 3)},
         {"observed": number / 10, "note": "text"} | ({"age": 30.0} if number else {}))
        for number in reversed(range(count))
    ]  # fmt: skip


def test_a_manifest_comes_back(tmp_path):
    path = Manifest.collect(rows(), {"versions": [1]}).save(tmp_path / "m.safetensors")
    manifest = Manifest.load(path)
    assert manifest.facts == {"versions": [1]}
    items = list(manifest.items())
    assert [(number, seed) for number, seed, _, _ in items] == [(0, 100), (1, 101), (2, None)]
    assert torch.equal(items[1][2]["source"], torch.full((512,), 0.25))
    assert torch.equal(items[2][2]["rotation"], torch.full((3, 3), 2 / 3))  # in full precision
    assert set(items[0][3]) == {"observed", "age"} and math.isnan(items[0][3]["age"])
    assert items[2][3]["observed"] == pytest.approx(0.2)
    assert path.read_bytes() == Manifest.load(path).save(tmp_path / "again.safetensors").read_bytes()


def test_a_compact_manifest_keeps_codes_and_figures(tmp_path):
    whole = Manifest.collect(rows(), {"versions": [1]})
    manifest = Manifest.load(whole.compact().save(tmp_path / "m.safetensors"))
    assert set(manifest.tensors) == {"source", "views"} and manifest.facts == whole.facts
    for found, (number, seed, tensors, figures) in zip(manifest.items(), whole.items(), strict=True):
        assert found[:2] == (number, seed) and found[3]["observed"] == figures["observed"]
        assert all(torch.equal(value, tensors[name]) for name, value in found[2].items())


def test_a_wrong_manifest_is_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Manifest.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no")
    with pytest.raises(InputError, match="is not a manifest"):
        Manifest.load(tmp_path / "text")
    mixed = rows()
    mixed[0][2].pop("rotation")
    with pytest.raises(InputError, match="different settings"):
        Manifest.collect(mixed, {})


@pytest.fixture
def folder(tmp_path):
    ramp = torch.linspace(0, 1, 8).expand(3, 8, 8)
    for number, gain in enumerate((1.0, 0.5)):
        for part in ("uv-maps", "observed"):
            (tmp_path / part).mkdir(exist_ok=True)
            write_png(tmp_path / part / f"{number:06d}.png", ramp * gain)
    (tmp_path / "face-latents").mkdir()
    np.save(tmp_path / "face-latents" / "000001.npy", np.ones((3, 512), np.float16))
    (tmp_path / "meta-info.json").write_text(json.dumps({"000001": {"age": 40}}))
    return tmp_path


def test_a_set_is_read(folder):
    maps = UVMaps(folder, observed=True)
    assert len(maps) == 2 and maps[1]["number"] == "000001" and maps[1]["meta"] == {"age": 40}
    assert maps[0]["texture"].shape == (3, 8, 8) and maps[0]["observed"].shape == (1, 8, 8)
    assert maps[1]["texture"].max() == pytest.approx(0.5, abs=1 / 255)
    assert torch.equal(maps.latents(1), torch.ones(3, 512, dtype=torch.float16))
    assert maps[-1]["number"] == "000001"
    with pytest.raises(IndexError):
        maps[2]
    with pytest.raises(InputError, match="no latent codes"):
        maps.latents(0)


def test_mirrored_and_smaller(folder):
    maps = UVMaps(folder, size=4, mirror=True)
    assert len(maps) == 4 and maps[0]["texture"].shape == (3, 4, 4)
    assert torch.equal(maps[2]["texture"], maps[0]["texture"].flip(-1))
    batch = next(iter(torch.utils.data.DataLoader(UVMaps(folder), batch_size=2)))
    assert batch["texture"].shape == (2, 3, 8, 8)


def test_any_folder_of_square_pictures_will_do(folder, tmp_path_factory):
    assert len(UVMaps(folder / "uv-maps")) == 2
    with pytest.raises(InputError, match="read the set with observed=False"):
        UVMaps(folder / "uv-maps", observed=True)
    with pytest.raises(InputError, match="is not a folder"):
        UVMaps(folder / "nothing")
    wide = tmp_path_factory.mktemp("wide")
    write_png(wide / "a.png", torch.rand(3, 4, 8))
    with pytest.raises(InputError, match="8 x 4 px; a UV map is square"):
        UVMaps(wide)[0]
