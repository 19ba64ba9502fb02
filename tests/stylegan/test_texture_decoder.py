"""The StyleGAN2 decoder for fitting: spaces, statistics, start, sphere, files. Tiny random generators."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from facerecon.errors import AssetError, ConfigError, ShapeError
from facerecon.losses import geocross_loss
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.stylegan.frozen_synthesis import FrozenSynthesis
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.load import decoder_kind, load_decoder
from facerecon.stylegan.texture_decoder import StyleGANDecoder, measure_statistics, parse_space, save_decoder
from facerecon.stylegan.weights import read_generator, save_generator
from facerecon.types import Latent

TINY = GeneratorConfig(size=32, z_dim=24, w_dim=32, mapping_layers=2, channel_base=512, channel_max=32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("decoder") / "tiny.safetensors"
    save_decoder(target, Generator(TINY), {"note": "random"}, torch.float32, samples=4000, textures=800)
    return target


def codes_of(decoder, seed: int = 0, batch: int = 2):
    return decoder.sample(batch, torch.Generator().manual_seed(seed)).codes


@pytest.mark.parametrize("space, rows, dim", [("z", 1, 24), ("w", 1, 32), ("w+", 8, 32), ("w/5", 1, 5), ("w+/6", 8, 6)])
def test_each_space_decodes_what_the_generator_makes_of_its_w(path, space, rows, dim) -> None:
    decoder = load_decoder(str(path), space=space, precision="float32")
    assert (decoder.rows, decoder.dim, decoder.size, decoder.space) == (rows, dim, 32, space)
    codes = codes_of(decoder)
    assert codes.shape == (2, rows, dim)
    torch.testing.assert_close(codes.norm(dim=-1), torch.full((2, rows), math.sqrt(dim)))
    generator, facts = read_generator(path)
    s = facts["statistics"]
    if space == "z":
        w = generator.mapping(codes[:, 0])[:, None]
    elif "/" in space:
        w = s["mean"] + torch.einsum("bnk,kc->bnc", codes, s["axes"][:dim].float())
    else:
        w = s["mean"] + codes * s["std"]
    expected = generator.synthesis(w.expand(-1, 8, -1), noise="const") * 0.5 + 0.5
    torch.testing.assert_close(decoder(Latent(codes, space)), expected.clamp(0, 1), atol=2e-5, rtol=0)


def test_rows_of_wplus_reach_their_own_layers(path) -> None:
    decoder = load_decoder(str(path), precision="float32")
    codes = codes_of(decoder, batch=1).requires_grad_(True)
    full = torch.autograd.grad(decoder(codes).sum(), codes)[0].abs().sum(-1)[0]
    coarse = torch.autograd.grad(decoder(codes, size=8).sum(), codes)[0].abs().sum(-1)[0]
    assert bool((full > 0).all())
    assert bool((coarse[:4] > 0).all()) and bool((coarse[4:] == 0).all())  # rows of 16 and 32 px are not looked at


def test_statistics_are_those_of_the_releases_draw(path) -> None:
    generator, facts = read_generator(path)
    z = torch.from_numpy(np.random.RandomState(123).randn(4000, 24).astype(np.float32))
    w = generator.mapping(z)
    s = facts["statistics"]
    torch.testing.assert_close(s["mean"], w.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(s["std"], w.std(0, correction=0), atol=1e-5, rtol=1e-4)
    white = (w - s["mean"]) @ torch.linalg.pinv(s["axes"].double()).float()
    covariance = white.T @ white / len(w)  # of half-precision axes
    torch.testing.assert_close(covariance, torch.eye(len(covariance)), atol=0.03, rtol=0)
    strength = s["effect"].float().square().flatten(1).sum(1)
    assert bool((strength[:-1] >= 0.99 * strength[1:]).all())


def test_statistics_recover_a_known_linear_synthesis() -> None:
    """Textures linear in w: the regression must find them, the strongest direction first."""
    torch.manual_seed(3)
    mixing = torch.randn(6, 12) * torch.tensor([3.0, 1.0, 0.5, 2.0, 0.2, 1.5])[:, None]
    basis = torch.randn(12, 3 * 64) * 0.02

    def synthesis(w, size):
        return (w[:, 0] @ basis).view(-1, 3, 8, 8)

    s = measure_statistics(lambda z: z @ mixing + 1, synthesis, 2, 6, samples=8000, textures=4000, size=8)
    assert s.axes.shape == (6, 12) and s.effect.shape == (6, 3, 8, 8)
    # covariance of the textures by the statistics, against the known one
    effect = s.effect.flatten(1)
    known = 0.5 * mixing @ basis
    torch.testing.assert_close(effect.T @ effect, known.T @ known, atol=0.07 * float((known.T @ known).max()), rtol=0)
    torch.testing.assert_close((effect @ effect.T).fill_diagonal_(0), torch.zeros(6, 6), atol=1e-3, rtol=0)
    # and the axes move the texture as the effect says
    torch.testing.assert_close(0.5 * s.axes @ basis, effect, atol=0.15 * float(effect.abs().max()), rtol=0)


@pytest.mark.parametrize("space", ["w", "w+", "w/32", "w+/32"])
def test_w_and_codes_are_inverses(path, space) -> None:
    decoder = load_decoder(str(path), space=space)
    codes = codes_of(decoder)
    torch.testing.assert_close(decoder.from_w(decoder.to_w(codes)), codes, atol=2e-3, rtol=0)


@pytest.mark.parametrize("space", ["z", "w", "w+", "w/16"])
def test_start_has_the_coefficients_it_was_given(path, space) -> None:
    decoder = load_decoder(str(path), space=space, precision="float32")
    drawn = load_decoder(str(path), space="z").sample(3, torch.Generator().manual_seed(5)).codes
    generator, _ = read_generator(path)
    w = generator.mapping(drawn[:, 0])
    wanted = ((w - decoder.w_mean) @ decoder.inverse)[:, : decoder.start_size]
    codes = decoder.from_start(wanted)
    assert codes.shape == (3, decoder.rows, decoder.dim)
    got = ((decoder.to_w(codes)[:, 0] - decoder.w_mean) @ decoder.inverse)[:, : decoder.start_size]
    weight = decoder.start_effect[: decoder.start_size].square().flatten(1).sum(1)
    error = ((got - wanted).square() * weight).sum() / (wanted.square() * weight).sum()
    assert error < (0.05 if space == "z" else 1e-4)
    mean, effect = decoder.start_basis()
    assert mean.shape == (3, 32, 32) and len(effect) == decoder.start_size


@pytest.mark.parametrize("space", ["w+", "w+/32", "w/4", "z"])
def test_to_the_sphere(path, space) -> None:
    decoder = load_decoder(str(path), space=space)
    small = decoder.from_start(0.2 * torch.randn(2, decoder.start_size))
    on = decoder.to_sphere(small)
    torch.testing.assert_close(on.norm(dim=-1), torch.full(on.shape[:2], math.sqrt(decoder.dim)))
    long = 3 * decoder.to_sphere(small)
    torch.testing.assert_close(decoder.to_sphere(long), long / 3, atol=1e-4, rtol=1e-4)


def test_a_short_code_reaches_the_sphere_along_what_hardly_shows() -> None:
    """With directions left that have no effect, the texture stays; a stretched code would change it."""
    torch.manual_seed(0)
    generator = Generator(TINY)
    spread = torch.linalg.qr(torch.randn(32, 24))[0].T * torch.tensor([0.5] * 6 + [0.02] * 18)[:, None]
    statistics = measure_statistics(lambda z: z @ spread, generator.synthesis, 8, 24, 4000, 800, 32, components=6)
    decoder = StyleGANDecoder(generator, statistics, "w+/24", "float32").eval()
    code = decoder.from_start(torch.randn(1, 6) * 0.5)
    filled = decoder.to_sphere(code)
    stretched = code * math.sqrt(24) / code.norm(dim=-1, keepdim=True)
    change = (decoder(filled) - decoder(code)).abs().mean()
    assert change < 0.5 * (decoder(stretched) - decoder(code)).abs().mean()


def test_gradient_points_back_inside(path) -> None:
    decoder = load_decoder(str(path), space="w", precision="float32")
    codes = (4 * codes_of(decoder, batch=1)).requires_grad_(True)
    texture = decoder(codes)
    assert texture.min().item() == 0 and texture.max().item() == 1
    raw = decoder.generator.synthesis(decoder.to_w(codes).expand(-1, 8, -1)) * 0.5 + 0.5
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), codes)[0] for t in (texture, raw)), atol=1e-3, rtol=1e-3)


def test_bfloat16_is_near(path) -> None:
    try:
        low = load_decoder(str(path), precision="bfloat16")
    except ConfigError as error:
        pytest.skip(str(error))
    full = load_decoder(str(path), precision="float32")
    codes = codes_of(full)
    assert float((low(codes) - full(codes)).abs().mean()) < 0.01
    assert low.generator.precision is torch.bfloat16 and low(codes).dtype is torch.float32


def test_geocross_is_on_w(path) -> None:
    """Equal rows cost nothing, and the mean of W counts: the angle is between w, not between codes."""
    decoder = load_decoder(str(path))
    codes = codes_of(decoder, batch=1)
    assert float(geocross_loss(decoder.to_w(codes))) < 1e-5
    codes = torch.randn(1, 8, 32)
    w = decoder.w_mean + codes * decoder.w_std
    torch.testing.assert_close(geocross_loss(decoder.to_w(codes)), geocross_loss(w))
    assert abs(float(geocross_loss(w) - geocross_loss(codes))) > 0.1


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 0.08)])
@pytest.mark.parametrize("size", [None, 16])
def test_frozen_synthesis_is_the_networks_own(dtype, near, size) -> None:
    """Pictures and gradients in the codes, against autograd through the trainable network in float32."""
    generator = Generator(dataclasses.replace(TINY, constant_size=16))
    with torch.no_grad():
        for block in generator.synthesis.blocks:
            if block.constant is not None:
                block.constant.normal_(0, 0.3)
            for layer in (block.up, block.conv):
                if layer is not None:
                    layer.noise_strength.normal_(0, 0.3)
                    layer.bias.normal_(0, 0.3)
            block.conv.style.weight[:2], block.conv.style.bias[:2] = 0, 0  # styles of exactly nothing
    generator.synthesis.base, generator.synthesis.gain = torch.rand(3, 32, 32), torch.rand(1, 32, 32)
    generator.synthesis.linear = 0.1 * torch.randn(32, 3, 16, 16)
    ws = torch.randn(3, 8, 32, requires_grad=True)
    expected = generator.synthesis(ws, size=size)
    got = FrozenSynthesis(generator.synthesis, dtype)(ws, size)
    assert got.dtype is torch.float32
    scale = expected.detach().abs().max()
    torch.testing.assert_close(got / scale, expected / scale, atol=near, rtol=0)
    probe = torch.randn_like(expected)
    first, second = (torch.autograd.grad((picture * probe).sum(), ws)[0] for picture in (got, expected))
    apart = (first - second).abs().amax(2) / second.abs().max()  # (faces, rows)
    assert apart.amin(0).max() < near
    assert apart.max() < 0.1  # rounding may take a value of one face over the bend of the leaky ReLU


# -- files -----------------------------------------------------------------------------------------------


def test_kinds_of_files(path, tmp_path) -> None:
    assert decoder_kind(str(path)) == "stylegan"
    assert decoder_kind("linear") == "linear"
    assert isinstance(load_decoder("linear", components=3), LinearDecoder)
    assert load_decoder(str(path), components=4, space="w").space == "w/4"
    (tmp_path / "no.safetensors").write_bytes(b"something else")
    with pytest.raises(AssetError, match=r"no\.safetensors"):
        load_decoder(str(tmp_path / "no.safetensors"))


def test_a_file_without_its_mapping_network(path, tmp_path, monkeypatch) -> None:
    generator, _ = read_generator(path)
    bare, lent = tmp_path / "bare.safetensors", tmp_path / "lent.safetensors"
    save_decoder(bare, generator, mapping="none", samples=2000, textures=200)
    save_decoder(lent, generator, mapping="open", samples=2000, textures=200)
    assert bare.stat().st_size < path.stat().st_size
    load_decoder(str(bare), space="w")
    with pytest.raises(AssetError, match="no space z"):
        load_decoder(str(bare), space="z")
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "empty"))
    with pytest.raises(AssetError, match="open face generator"):
        load_decoder(str(lent), space="z")


def test_statistics_of_a_plain_generator_are_measured_once(path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    generator, facts = read_generator(path)
    plain = tmp_path / "plain.safetensors"
    save_generator(plain, generator, dtype=torch.float32)
    decoder = load_decoder(str(plain))
    torch.testing.assert_close(decoder.w_mean, facts["statistics"]["mean"], atol=0.05, rtol=0)  # 100,000 against 4000
    (kept,) = (tmp_path / "derived").glob("statistics-*.safetensors")
    stamp = kept.stat().st_mtime_ns
    load_decoder(str(plain))
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("space", ["z/4", "w/", "w/0", "v", "w/x", "w+/-1"])
def test_unknown_spaces(space) -> None:
    with pytest.raises(ConfigError, match="latent space"):
        parse_space(space)


def test_errors_say_what_to_do(path) -> None:
    with pytest.raises(ConfigError, match="33 directions"):
        load_decoder(str(path), space="w/33")
    with pytest.raises(ConfigError, match="leave it out"):
        load_decoder("linear", space="w+")
    decoder = load_decoder(str(path))
    with pytest.raises(ShapeError, match=r"\(B, 8, 32\)"):
        decoder(torch.zeros(1, 7, 32))
    with pytest.raises(ConfigError, match="space 'w\\+'"):
        decoder(Latent(torch.zeros(1, 8, 32), "w"))
