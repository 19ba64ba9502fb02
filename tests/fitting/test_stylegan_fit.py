"""Fits and inversions that drive a StyleGAN2 decoder: tiny random generators, spaces, stages, scripts."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from facerecon.errors import ConfigError, ShapeError
from facerecon.fitting import (
    Fitter,
    TextureInversionSettings,
    invert_texture,
    load_map_features,
    stages_from_config,
)
from facerecon.fitting.detail import DetailSettings
from facerecon.fitting.stage import Stage
from facerecon.fitting.variables import Variables
from facerecon.imaging.files import write_png
from facerecon.render import Renderer
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.load import load_decoder
from facerecon.stylegan.texture_decoder import save_decoder
from facerecon.types import FaceParams, Latent, SHLight

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "astronaut.jpg"
TINY = GeneratorConfig(size=32, z_dim=16, w_dim=16, mapping_layers=2, channel_base=512, channel_max=16)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A tiny decoder of smooth, skin-colored textures."""
    torch.manual_seed(0)
    generator = Generator(TINY)
    with torch.no_grad():
        for block in generator.synthesis.blocks:
            block.color.weight.mul_(0.05)
    target = tmp_path_factory.mktemp("decoder") / "tiny.safetensors"
    save_decoder(target, generator, samples=3000, textures=600)
    return target


# -- inversion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["z", "w", "w+", "w/16"])
def test_a_texture_of_the_decoder_itself_is_found_again(path, space) -> None:
    decoder = load_decoder(str(path), space=space, precision="float32")
    truth = decoder.sample(2, torch.Generator().manual_seed(3))
    targets = decoder(truth)
    settings = TextureInversionSettings(steps=150, features=0, coarse_share=0.2, coarse_size=16)
    found = invert_texture(targets, decoder, settings=settings)
    start = decoder(decoder.project(targets, prior=1e-5))
    before = (start - targets).abs().mean((1, 2, 3))
    assert bool((found.l1 < 0.35 * before).all()), (found.l1, before)
    assert found.texture.shape == targets.shape and found.latent.space == space
    assert found.history["l1"].shape == (2, 150)
    if space == "z":
        torch.testing.assert_close(found.latent.codes.norm(dim=-1), torch.full((2, 1), 4.0))


def test_maps_of_a_batch_do_not_see_one_another(path) -> None:
    decoder = load_decoder(str(path), precision="float32")
    targets = decoder(decoder.sample(2, torch.Generator().manual_seed(1)))
    settings = TextureInversionSettings(steps=20, features=0)
    both = invert_texture(targets, decoder, settings=settings)
    again = invert_texture(targets, decoder, settings=settings)
    alone = invert_texture(targets[1:], decoder, settings=settings)
    other = invert_texture(torch.cat([torch.rand_like(targets[:1]), targets[1:]]), decoder, settings=settings)
    for found, row in ((again, 1), (alone, 0), (other, 1)):
        torch.testing.assert_close(found.history["l1"][row, 0], both.history["l1"][1, 0], atol=0, rtol=1e-4)
        moved = (found.texture[row] - both.texture[1]).abs().mean()  # Adam turns rounding into steps
        assert moved < 0.02 * both.history["l1"][1, 0], moved


def test_a_linear_basis_starts_at_its_least_squares_and_never_gets_worse() -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder(torch.full((3, 16, 16), 0.5), 0.02 * torch.randn(4, 3, 16, 16))
    inside = decoder(torch.randn(2, 4))
    found = invert_texture(inside, decoder, settings=TextureInversionSettings(steps=0))
    torch.testing.assert_close(found.texture, inside, atol=3e-3, rtol=0)
    other = torch.rand(2, 3, 16, 16)
    start = invert_texture(other, decoder, settings=TextureInversionSettings(steps=0))
    better = invert_texture(other, decoder, settings=TextureInversionSettings(steps=60))
    assert bool((better.l1 <= start.l1).all())


def test_maps_of_another_size_are_compared_at_the_decoders(path) -> None:
    decoder = load_decoder(str(path), precision="float32")
    large = torch.full((1, 3, 80, 80), 0.5)
    found = invert_texture(large, decoder, settings=TextureInversionSettings(steps=2))
    assert found.texture.shape == found.target.shape == (1, 3, 32, 32)
    assert found.features.isnan().all()
    with pytest.raises(ShapeError, match="targets"):
        invert_texture(torch.zeros(1, 3, 8, 9), decoder)


def test_rate_rises_stays_and_falls() -> None:
    s = TextureInversionSettings(steps=100, learning_rate=0.1, rampup=0.05, rampdown=0.25)
    rates = [s.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.02) and rates[4] == rates[70] == pytest.approx(0.1)
    assert rates[75 + 13] == pytest.approx(0.1 * (0.5 - 0.5 * math.cos(math.pi * 12 / 25)))
    assert rates[99] < 0.001


@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"rampup": 2}, {"coarse_size": 48}, {"features": -1.0}, {"learning_rate": math.nan}]
)
def test_settings_out_of_range(wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TextureInversionSettings(**wrong)


def test_feature_distances(fit_models) -> None:
    assert load_map_features("none") is None
    with pytest.raises(ConfigError, match="face_features"):
        load_map_features("face_feature")
    features = load_map_features("face_features")
    target = load_decoder("linear").mean[None]
    prepared = features.prepare(target)
    same = features(target, prepared)
    other = features((target * 0.7).requires_grad_(True), prepared)
    assert same.abs().max() < 1e-6 and other.detach().min() > 0.01


# -- stages ----------------------------------------------------------------------------------------------


def variables_of(decoder, batch: int = 2) -> Variables:
    still = [torch.zeros(batch, n) for n in (4, 3, 0, 3, 3)]
    codes = decoder.sample(batch, torch.Generator().manual_seed(0)).codes
    return Variables(FaceParams(*still, SHLight.ambient(batch)), Latent(codes, decoder.space), None, decoder)


def test_the_release_moves_w_itself(path) -> None:
    """One Adam step of rate r moves every coordinate of w, not of the code, by r."""
    decoder = load_decoder(str(path), precision="float32")
    variables = variables_of(decoder)
    before = variables.code.codes.clone()
    variables.hold_latent(as_w=True)
    torch.testing.assert_close(variables.code.codes, before, atol=1e-5, rtol=1e-4)
    w = variables.tensors["latent"].clone()
    torch.testing.assert_close(w, decoder.to_w(before))
    s = Stage("joint", 10, 0.01, ("latent",), {}, latent="w")
    (group,) = variables.groups(s)
    optimizer = torch.optim.Adam([group], lr=0.01)
    decoder(variables.code).square().sum().backward()
    optimizer.step()
    moved = (variables.tensors["latent"] - w).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-4, rtol=0)
    variables.hold_latent(as_w=False)
    moved = (decoder.to_w(variables.code.codes) - w).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-4, rtol=0)


def test_stage_keys_are_checked() -> None:
    s = stages_from_config({"texture": {"coarse_steps": 5, "coarse_size": 64}})["texture"]
    assert [s.texture_size(step) for step in (0, 4, 5)] == [64, 64, None]
    for wrong, words in (
        ({"coarse_size": 100}, "power of two"),
        ({"coarse_steps": -1}, "coarse_steps"),
        ({"latent": "v"}, "latent"),
        ({"latent": "w", "sphere": True}, "sphere"),
    ):
        with pytest.raises(ConfigError, match=words):
            stages_from_config({"texture": wrong})


def test_a_linear_decoder_averages_for_coarse_steps() -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder(torch.rand(3, 16, 16) * 0.2 + 0.4, 0.01 * torch.randn(3, 3, 16, 16))
    z = torch.randn(2, 1, 3)
    expected = torch.nn.functional.avg_pool2d(decoder(z), 4)
    torch.testing.assert_close(decoder(z, 4), expected)
    assert decoder(z, 16).shape == decoder(z, 64).shape == (2, 3, 16, 16)


# -- whole fits ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo(fit_models):
    from facerecon.perception import observe

    return observe(SAMPLE)


@pytest.mark.parametrize("space, preset", [("w+", "release"), ("z", "paper"), ("w/8", "radius")])
def test_a_fit_in_each_space(path, photo, space, preset) -> None:
    from facerecon.morphable import load_face_model

    decoder = load_decoder(str(path), space=space)
    stages = {
        "texture": {"steps": 24, "coarse_steps": 4, "coarse_size": 16, "sphere": True},
        "joint": {"steps": 4, "latent": "w" if preset == "release" else "code"},
    }
    fitter = Fitter(
        load_face_model("makehuman", num_identity=20), decoder, Renderer(224, antialias=True), stages=stages,
        latent_prior="geocross" if preset == "release" else "radius", detail=DetailSettings(enabled=False),
        tone="off", light_space="linear" if preset == "radius" else "encoded",
    )  # fmt: skip
    result = fitter(photo)
    face = result.face
    total = face.history["texture.total"][0]
    assert total.min() < total[0]
    assert face.latent.space == space and face.latent.codes.shape == (1, decoder.rows, decoder.dim)
    codes = result.stages["texture"][1].codes
    torch.testing.assert_close(codes.norm(dim=-1), torch.full(codes.shape[:2], math.sqrt(decoder.dim)))
    torch.testing.assert_close(decoder(face.latent).clamp(0, 1), face.decoded)
    geocross = face.history["joint.reg_z"][0]
    assert bool(geocross.isfinite().all())


# -- scripts ---------------------------------------------------------------------------------------------


def test_invert_texture_goes_on_around_a_corrupt_map_and_resumes(run_script, path, tmp_path) -> None:
    maps, out = tmp_path / "maps", tmp_path / "out"
    decoder = load_decoder(str(path), precision="float32")
    pictures = decoder(decoder.sample(3, torch.Generator().manual_seed(0)))
    for i, picture in enumerate(pictures):
        write_png(maps / f"{i}.png", picture)
    (maps / "broken.png").write_bytes((maps / "0.png").read_bytes()[:500])
    write_png(maps / "wide.png", torch.rand(3, 20, 30))
    options = [f"maps={maps}", f"out={out}", f"decoder={path}", "decoder_space=w", "perceptual=none",
               "inversion.steps=30", "batch=2", "device=cpu"]  # fmt: skip
    first = run_script("fit/invert_texture.py", *options)
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stderr
    assert first.stderr.count("failed:") == 2 and "broken.png" in first.stderr and "square" in first.stderr
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["map"] for row in rows] == ["0", "1", "2"]
    results = json.loads((out / "results.json").read_text())
    assert results["mean"]["l1"] == pytest.approx(sum(float(row["l1"]) for row in rows) / 3)
    for row in rows:
        assert {"fitted.png", "latent.safetensors", "panel.png"} <= {p.name for p in (out / row["map"]).iterdir()}
    stamp = (out / "1" / "fitted.png").stat().st_mtime_ns
    again = run_script("fit/invert_texture.py", *options)
    assert again.returncode == 1 and (out / "1" / "fitted.png").stat().st_mtime_ns == stamp
    assert json.loads((out / "results.json").read_text()) == results


def test_invert_texture_errors_are_one_line(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from facerecon.configs.compose import run
    from facerecon.fit.invert_texture import main

    for overrides, words in (
        ([], "maps is not set"),
        ([f"maps={tmp_path}"], "no image file"),
        (["maps=x", "inversion.stepps=3"], "inversion.steps"),
        ([f"maps={SAMPLE}", "decoder=linear", "decoder_space=w+", f"out={tmp_path / 'o'}"], "leave it out"),
    ):
        assert run(main, "invert_texture", "", overrides) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and words in lines[0]


@pytest.mark.slow
def test_reconstruct_and_render_with_a_decoder_file(run_script, path, photo, asset, tmp_path) -> None:
    asset("faceres1024")
    out = tmp_path / "out"
    result = run_script("fit/reconstruct.py", f"img={SAMPLE}", f"out={out}", f"decoder={path}", "decoder_space=w+",
                        "fitting=smoke")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "space w+" in result.stdout
    (out / "astronaut" / "texture.png").unlink()
    saved = out / "astronaut" / "params.safetensors"
    result = run_script("fit/render.py", f"params={saved}", f"out={tmp_path / 'r.png'}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "r.png").is_file()
