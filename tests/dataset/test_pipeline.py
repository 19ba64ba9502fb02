"""The script end to end on the smallest settings: a set, the set again, the set without search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon.configs.compose import compose, run
from facerecon.dataset import CompleteSettings, ExtractSettings, FilterSettings, Manifest, UVMaps
from facerecon.dataset.filters import STEPS
from facerecon.dataset.pipeline import ABLATIONS, InversionSettings, PipelineSettings, TraversalSettings, UVPipeline
from facerecon.errors import ConfigError
from facerecon.settings import build_settings
from facerecon.train.uv_dataset import main

ROOT = Path(__file__).resolve().parents[2]

SMALL = ("size=128", "search.rounds=1", "search.side_rounds=1", "workers=1", "check=false")


def run_script(*overrides: str) -> int:
    threads = torch.get_num_threads()
    try:
        return run(main, "uv_dataset", "doc", list(overrides))
    finally:
        torch.set_num_threads(threads)


def files_of(folder: Path) -> dict[str, bytes]:
    kept = ("uv-maps", "observed", "face-latents", "fit", "manifest.safetensors", "meta-info.json", "sheet.jpg")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in kept
        for path in ([folder / part] if (folder / part).is_file() else sorted((folder / part).iterdir()))
    }


@pytest.fixture(scope="module")
def made(asset, tmp_path_factory) -> Path:
    for name in ("mobile_stylegan", "makehuman", "facemesh478", "landmarks68", "identity128"):
        asset(name)
    folder = tmp_path_factory.mktemp("set") / "uv"
    assert run_script(f"out={folder}", "n=2", "first_seed=5000", "balance=false", *SMALL) == 0
    return folder


def test_a_set_is_whole(made):
    maps = UVMaps(made, observed=True)
    assert [maps[i]["number"] for i in range(len(maps))] == ["005000", "005001"]
    assert maps[0]["texture"].shape == (3, 128, 128) and maps[0]["meta"]["origin"] == "seed 5000"
    assert maps.latents(1).shape == (3, 512)
    manifest = Manifest.load(made / "manifest.safetensors")
    assert manifest.seeds.tolist() == [5000, 5001]
    assert np.allclose(manifest.tensors["views"][1].numpy(), maps.latents(1).float().numpy())
    assert manifest.facts["settings"]["size"] == 128
    rows = [json.loads(line) for line in (made / "manifest.jsonl").read_text().splitlines()]
    assert all(0 < row["figures"]["observed"] <= 1 and row["figures"]["bs_error"] > 0 for row in rows)
    for figures in (row["figures"] for row in rows):  # a map of 128 texels shows the broad detail of its views
        assert figures["sharpness"] == min(figures["sharpness_front"][1:]) > 0.5
        assert figures["coherence"] == min(figures["coherence_front"][1:]) > 0.5
        assert len(figures["sharpness_side"]) == len(figures["coherence_side"]) == 5
    summary = json.loads((made / "summary.json").read_text())
    assert summary["accepted"] == 2 and summary["mean"]["evenness"] < summary["mean"]["source_evenness"]
    for page in ("index.html", "refused.html"):
        assert (made / page).read_text().startswith("<!DOCTYPE html>")


def test_the_same_command_has_nothing_to_do(made, capsys):
    before = files_of(made)
    assert run_script(f"out={made}", "n=2", "first_seed=5000", "balance=false", *SMALL) == 0
    assert "0 subject(s) in" in capsys.readouterr().out
    assert files_of(made) == before


def test_what_changed_is_named(made, capsys):
    before = files_of(made)
    same = (f"out={made}", "n=2", "balance=false", *SMALL)
    assert run_script(*same, "first_seed=5000", "blending=naive", "extract.contrast=2") == 2
    error = capsys.readouterr().err
    assert '(blending "poisson" -> "naive", extract.contrast 1.0 -> 2); go on with the change by resume=force' in error
    assert run_script(*same, "first_seed=6", "resume=force") == 2
    assert "cannot go on with what changed (from [5000, null, 0] -> [6, null, 0])" in capsys.readouterr().err
    assert files_of(made) == before


def test_a_manifest_builds_the_set_again(made, tmp_path):
    source = ("source=manifest", f"manifest={made / 'manifest.safetensors'}")
    assert run_script(*source, f"out={tmp_path / 'again'}", *SMALL) == 0
    first, again = files_of(made), files_of(tmp_path / "again")
    for name in first:
        if name.startswith(("uv-maps", "observed", "face-latents")):
            assert first[name] == again[name], name


def test_a_compact_manifest_builds_it_too_and_descriptors_are_measured_again(made, tmp_path):
    whole = Manifest.load(made / "manifest.safetensors")
    path = whole.compact().save(tmp_path / "compact.safetensors")
    assert run_script("source=manifest", f"manifest={path}", f"out={tmp_path / 'again'}", *SMALL) == 0
    first, again = files_of(made), files_of(tmp_path / "again")
    assert all(again[name] == content for name, content in first.items() if name.startswith("uv-maps"))
    found = Manifest.load(tmp_path / "again" / "manifest.safetensors")
    for name in ("descriptor_source", "descriptor_front", "descriptor_map"):
        assert torch.allclose(found.tensors[name], whole.tensors[name], atol=1e-2), name
    assert torch.allclose(found.figures["identity_map"], whole.figures["identity_map"], atol=1e-2)
    assert found.figures["identity_map"].min() > 0.1


def test_ablations_change_the_map_they_should(made, tmp_path):
    source = ("source=manifest", f"manifest={made / 'manifest.safetensors'}", "n=1")
    reference = (made / "uv-maps" / "005000.png").read_bytes()
    for override in ("editing=false", "multi_view=false", "blending=naive"):
        folder = tmp_path / override.replace("=", "_")
        assert run_script(*source, override, f"out={folder}", *SMALL) == 0
        assert (folder / "uv-maps" / "005000.png").read_bytes() != reference


def test_seeds_that_are_used_up_end_a_set_with_its_papers(made, tmp_path, capsys):
    folder = tmp_path / "short"
    last = ("first_seed=99999", "balance=false", "size=64", *SMALL[1:])
    assert run_script(f"out={folder}", "n=4", *last) == 2
    assert "used up after 2 of 4 map(s), since those from 100001 on are held out." in capsys.readouterr().err
    assert Manifest.load(folder / "manifest.safetensors").seeds.tolist() == [99999, 100000]
    assert run_script(f"out={folder}", "n=2", *last) == 0


def test_filters_refuse_with_a_reason_and_their_search_is_kept(made, tmp_path, capsys):
    folder = tmp_path / "strict"
    strict = [*SMALL[:-1], *(f"filters.{name}=null" for name in STEPS["search"]), "filters.bs_error=0.0",
              "source=manifest", f"manifest={made / 'manifest.safetensors'}"]  # fmt: skip
    assert run_script(*strict, f"out={folder}") == 2
    assert "no subject gave a map; see refused.html" in capsys.readouterr().err
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all("brightness: BS Error over observed texels is" in row["reasons"][0] for row in rows)
    assert sorted(path.name for path in (folder / "refused").iterdir()) == ["005000.jpg", "005001.jpg"]
    assert not (folder / "uv-maps").exists()


def test_the_yaml_holds_the_defaults_of_the_code():
    config = compose("uv_dataset", ["n=1"])
    own = {"size", "multi_view", "blending"}
    parts = {
        "search": TraversalSettings, "inversion": InversionSettings, "extract": ExtractSettings,
        "complete": CompleteSettings, "filters": FilterSettings,
    }  # fmt: skip
    for key, kind in parts.items():
        names = {name for name in kind.__dataclass_fields__ if not (name in own and key in ("extract", "complete"))}
        assert set(config[key]) == names, key
    from omegaconf import OmegaConf

    assert (
        build_settings(PipelineSettings, {key: OmegaConf.to_container(config[key]) for key in parts})
        == PipelineSettings()
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=generator"], "n= is not set"),
        (["source=photos"], "dir= is not set"),
        (["source=manifest"], "manifest= is not set"),
        (["source=fotos"], "photos"),
        (["n=1", "blending=poison"], "poisson"),
        (["n=1", "filters.glases=1"], "glasses"),
        (["n=0"], "n must be a whole number"),
        (["n=1", "size=3"], "size must be"),
        (["n=1", "precision=float64"], "float32"),
        (["n=1", "engine=spark"], "local"),
        (["n=1", "first_seed=100001"], "first_seed must be below 100001"),
        (["n=1", "dark_share=0.3"], "add balance=false"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, capsys, overrides, message):
    assert run_script(f"out={tmp_path / 'x'}", *overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="delight"):
        build_settings(PipelineSettings, {"extract": {"deligth": True}})
    with pytest.raises(ConfigError, match="filters"):
        build_settings(PipelineSettings, {"filter": {}})


def test_a_loaded_pipeline_changes_what_follows_the_search_only():
    loaded = UVPipeline.__new__(UVPipeline)
    loaded.settings, loaded.model = PipelineSettings(), object()
    other = loaded.changed(blending="naive", check=False)
    assert other.model is loaded.model and loaded.settings == PipelineSettings()
    assert (other.settings.blending, other.settings.completing.blending, other.settings.check) == (
        "naive",
        "naive",
        False,
    )
    for changes in ({"size": 256}, {"face_model": "ict"}, {"search": TraversalSettings(yaw=20.0)}):
        with pytest.raises(ConfigError, match="unknown setting of a pipeline that is loaded"):
            loaded.changed(**changes)


def test_rows_of_table_4_are_settings():
    made = {name: build_settings(PipelineSettings, changes) for name, changes in ABLATIONS.items()}
    assert made["full"] == PipelineSettings() and len(set(map(str, made.values()))) == len(made)
    assert (
        not made["w/o editing"].editing
        and not made["w/o multi-view"].multi_view
        and not made["w/o light"].extract.delight
    )
