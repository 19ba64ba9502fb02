"""pack=ffhq_uv: every script with the paper's parts, of random tensors in the released containers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from facerecon.configs.compose import compose
from facerecon.errors import InputError
from facerecon.morphable import load_face_model

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "astronaut.jpg"


def script(name: str, home: Path, *overrides: str) -> subprocess.CompletedProcess:
    """Run a script with that pack, in a process of its own with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "FACERECON_HOME": str(home)}
    command = [sys.executable, str(ROOT / name), "pack=ffhq_uv", *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=900)


@pytest.fixture(scope="module")
def models(asset, fit_models) -> None:
    asset("age_gender")
    asset("expression7")


# -- quick: what the pack says, and what is missing ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("reconstruct", {"face_model", "decoder", "identity"}),
        ("uv_dataset", {"face_model", "generator", "encoder", "editor", "pose", "template"}),
        ("regressor", {"face_model", "num_identity", "decoder", "texture", "backbone", "weak"}),
        ("texture_gan", {"atlas"}),
        ("edit_directions", {"generator"}),
    ],
)
def test_a_pack_changes_the_parts_of_a_script(name, parts) -> None:
    composed = [compose(name, [f"pack={pack}"]) for pack in ("open", "ffhq_uv")]
    packs = [config.pop("pack") for config in map(OmegaConf.to_container, composed)]
    assert set(packs[0]) == set(packs[1]) and [pack["name"] for pack in packs] == ["open", "ffhq_uv"]
    plain = [OmegaConf.to_container(config, resolve=True) for config in composed]
    changed = {key for key in plain[0] if key != "pack" and plain[0][key] != plain[1][key]}
    assert parts <= changed, name


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("train/uv_dataset.py", ["n=1"], ("stylegan2-ffhq-config-f.pkl", "modellarge10k.pt", "trained_model_03.t7",
                                          "epoch_latest.pth", "template_base_uv.png")),
        ("train/regressor.py", ["weak.share=0.5"], ("hifi3dpp_model_info.mat", "arcface")),
        ("train/edit_directions.py", [], ("stylegan2-ffhq-config-f.pkl",)),
    ],
)  # fmt: skip
def test_what_is_not_converted_is_one_line(tmp_path, monkeypatch, capsys, name, overrides, parts) -> None:
    from facerecon.configs.compose import run

    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert run(module.main, path.stem, "doc", ["pack=ffhq_uv", f"out={tmp_path / 'o'}", *overrides]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: not converted yet: ")
    assert all(part in error for part in parts) and "facerecon.assets convert ffhq_uv DIR" in error
    assert not (tmp_path / "o").exists()


# -- slow: each script ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reconstruct(tmp_path, release_home, models) -> None:
    run = script("fit/reconstruct.py", release_home, f"img={SAMPLE}", f"out={tmp_path}", "fitting=smoke",
                 "perceptual=face_features", "export=[texture]")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "face model hifi3dpp, decoder ffhq_uv (space w+)" in run.stdout and "texture: its own decoder" in run.stdout
    metrics = json.loads((tmp_path / "astronaut" / "metrics.json").read_text())["metrics"]
    assert metrics and all(math.isfinite(v) for row in metrics.values() for v in row.values())


@pytest.mark.slow
def test_uv_dataset(tmp_path, release_home, models) -> None:
    """A photo by e4e, and a face of StyleGAN2-FFHQ by its seed; the map shows what the generator painted."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "astronaut.jpg").write_bytes(SAMPLE.read_bytes())
    small = ("size=128", "workers=1", "check=false")
    run = script("train/uv_dataset.py", release_home, "source=photos", f"dir={photos}", f"out={tmp_path / 'a'}", *small)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "parts: hifi3dpp, generator stylegan2_ffhq, encoder e4e, editor styleflow, pose regressor" in run.stdout
    assert "StyleFlow is told DPR's light" in run.stdout
    row = json.loads((tmp_path / "a" / "manifest.jsonl").read_text())
    figures = row["figures"]
    assert figures["observed"] > 0.4 and figures["inversion"] < 0.6 and abs(figures["front_yaw"]) < 3
    search = load_file(tmp_path / "a" / "search" / "000000.safetensors")
    assert search["source"].shape == (18, 512) and search["views"].shape == (3, 18, 512)
    views = search["views"].float()
    changed = [(views[1] != views[k]).any(1).nonzero()[:, 0].tolist() for k in (0, 2)]
    assert changed[0] == [0, 1, 2, 3] and changed[1] == [0, 1, 2, 3]  # yaw is edited in these rows
    assert (views[0] != search["source"].float()).any(1).all()
    fit = load_file(tmp_path / "a" / "fit" / "000000.safetensors")
    assert fit["identity"].shape == (532,) and fit["rotation"].abs().max() == 0  # what N_enc was made to say
    made = np.asarray(Image.open(tmp_path / "a" / "uv-maps" / "000000.png"), float)
    assert made[60:76, 60:68].std() > 3 and made[..., 0].mean() > made[..., 2].mean()

    run = script("train/uv_dataset.py", release_home, "n=1", f"out={tmp_path / 'b'}", "balance=false", *small)
    assert run.returncode == 0, run.stdout + run.stderr
    again = script("train/uv_dataset.py", release_home, "source=manifest", f"out={tmp_path / 'c'}", *small,
                   f"manifest={tmp_path / 'b' / 'manifest.safetensors'}")  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    maps = [(tmp_path / folder / "uv-maps" / "000000.png").read_bytes() for folder in "bc"]
    assert maps[0] == maps[1]


@pytest.mark.slow
def test_regressor_and_texture_gan(tmp_path, release_home, models) -> None:
    out = tmp_path / "regressor"
    run = script(
        "train/regressor.py", release_home, f"out={out}", "num_identity=4", "texture=3", "backbone=resnet10",
        "width=0.125", "size=32", "batch=4", "kimg=0.008", "synthetic.cached=4", "snapshot_kimg=0.008",
        "log_kimg=0.008", "measure=2", "grid=1", "precision=float32", "device=cpu", "threads=1", "weak.share=0.5",
        "weak.count=2",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "hifi3dpp: 4 identity, 45 expression, 3 texture coefficients" in run.stdout
    assert (out / "regressor.safetensors").is_file()
    maps = tmp_path / "maps"
    maps.mkdir()
    draws = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(draws.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(maps / f"{i:06d}.png")
    out = tmp_path / "texture_gan"
    run = script(
        "train/texture_gan.py", release_home, f"data={maps}", f"out={out}", "size=16", "channel_base=128",
        "channel_max=8", "w_dim=8", "batch=4", "kimg=0.008", "snapshot_kimg=0.008", "log_kimg=0.008",
        "measure.features=0", "measure.inversion=0", "grid.samples=4", "grid.cell=16", "precision=float32",
        "device=cpu", "threads=1",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    from facerecon.stylegan.load import load_decoder

    assert load_decoder(str(out / "decoder.safetensors")).atlas == "hifi3dpp"


@pytest.mark.slow
def test_evaluate(tmp_path, release_home, models) -> None:
    run = script(
        "fit/evaluate.py", release_home, f"out={tmp_path}", "parts=[reconstruction]", "faces=0", f"photos={SAMPLE}",
        "presets=[smoke]", "decoders.linear=null", "set=perceptual=face_features", "device=cpu", "threads=1",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    text = (tmp_path / "evaluate.md").read_text()
    assert "face model hifi3dpp, decoder ffhq_uv, preset smoke" in text and "smoke, ours (decoder ffhq_uv)" in text


@pytest.mark.slow
def test_edit_directions(tmp_path, release_home, models) -> None:
    """One face, so that no plane can be fitted: the run ends with that line, its faces measured."""
    run = script("train/edit_directions.py", release_home, f"out={tmp_path}", "n=1", "block=1", "threads=1")
    assert run.returncode == 2 and "each side needs 5 or more" in run.stderr, run.stdout + run.stderr
    assert len(list((tmp_path / "samples").glob("*_features.safetensors"))) == 1


def test_records_name_the_edition_of_the_head(asset) -> None:
    """Both editions are read from one asset, and a fit's record tells them apart."""
    from facerecon.fit.models import _head_version

    asset("makehuman")
    second, first = _head_version("makehuman", None), _head_version("makehuman_artist", None)
    assert second == f"{first}, edition 2"


def test_a_code_of_another_edition_of_a_decoder_is_refused(asset) -> None:
    from facerecon.fit.models import decoder_of
    from facerecon.stylegan.load import DECODER_VERSIONS
    from facerecon.types import Camera, Latent, SavedFace

    asset("makehuman")
    model = load_face_model("makehuman", num_identity=2)
    saved = SavedFace(
        model.neutral(), Latent(torch.zeros(1, 1, 4), "linear"), Camera.deep3d(), decoder="linear",
        decoder_version=DECODER_VERSIONS["linear"],
    )  # fmt: skip
    assert decoder_of(model, saved).dim == 4
    with pytest.raises(InputError, match="another edition of decoder 'linear'"):
        decoder_of(model, saved.replace(decoder_version=""))
