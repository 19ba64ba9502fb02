"""Directions of W that maps depend on, and linear prediction: against known linear maps and least squares."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from facerecon.errors import AssetError, ConfigError, ShapeError
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.latent_space import linear_maps, predictive_directions
from facerecon.stylegan.weights import read_generator, save_generator


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_directions_find_what_maps_depend_on() -> None:
    mix = draws(12, 12, seed=1)
    codes, samples = draws(300, 12, seed=2) @ mix, draws(4000, 12, seed=3) @ mix
    used = draws(12, 2, seed=4)
    pattern = draws(2, 3 * 4 * 4, seed=5) * torch.tensor([[3.0], [1.0]])
    maps = (codes @ used @ pattern).view(-1, 3, 4, 4)
    center, directions = predictive_directions(codes, maps, samples, 2, ridge=1e-9)
    scores = (samples - center) @ directions.T
    torch.testing.assert_close(scores.T @ scores / len(scores), torch.eye(2), atol=1e-3, rtol=0)
    # they span what the maps are made of, and nothing else
    fit = torch.linalg.lstsq(directions.T, used, driver="gels").solution
    assert (directions.T @ fit - used).norm() < 1e-3 * used.norm()
    effect = [float((maps.flatten(1).T @ ((codes - center) @ d)).norm()) for d in directions]
    assert effect[0] > effect[1]


def test_impossible_requests() -> None:
    with pytest.raises(ConfigError, match="ask for fewer"):
        predictive_directions(draws(5, 8), draws(5, 3, 4, 4), draws(50, 8), 5)
    with pytest.raises(ShapeError, match="samples"):
        predictive_directions(draws(5, 8), draws(5, 3, 4, 4), draws(50, 7), 2)


def test_linear_maps_are_least_squares() -> None:
    codes, maps = draws(40, 5), draws(40, 3, 2, 2, seed=1)
    intercept, directions = linear_maps(codes, maps)
    design = torch.cat([codes, torch.ones(40, 1)], 1)
    expected = torch.linalg.lstsq(design, maps.flatten(1), driver="gels").solution
    torch.testing.assert_close(
        torch.cat([directions.flatten(1), intercept.view(1, -1)]), expected, atol=1e-5, rtol=1e-4
    )
    # noise on the codes is what it is on average over many noisy copies of the data
    noise = torch.diag(torch.linspace(0.1, 0.8, 5))
    many = codes.repeat(3000, 1) + draws(120_000, 5, seed=2) @ noise.sqrt()
    found = linear_maps(many, maps.repeat(3000, 1, 1, 1))[1]
    torch.testing.assert_close(linear_maps(codes, maps, noise)[1], found, atol=0.01, rtol=0)


def test_base_and_linear_part_lie_below_the_image() -> None:
    torch.manual_seed(0)
    g = Generator(GeneratorConfig(size=16, z_dim=6, w_dim=6, channel_base=64, channel_max=8, mapping_layers=0))
    w = g.map(draws(2, 6))
    torch.testing.assert_close(w.norm(dim=1), torch.full((2,), 6**0.5))
    plain, coarse = g.synthesis(g.rows_of(w)), g.synthesis(g.rows_of(w), size=8)
    base, linear = draws(3, 16, 16, seed=1), draws(6, 3, 8, 8, seed=2)
    g.synthesis.base, g.synthesis.linear = base, linear
    added = torch.einsum("bk,kchw->bchw", w, linear)
    larger = torch.nn.functional.interpolate(added, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(g.synthesis(g.rows_of(w)), plain + base + larger)
    rows = draws(2, 6, 6, seed=4)  # each resolution's band with the row of its color: 1, 3 (and 5, where none is left)
    coarse_part, rest = linear.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)), linear
    enlarged = torch.nn.functional.interpolate(coarse_part, size=(8, 8), mode="bilinear", align_corners=False)
    expected = torch.einsum("bk,kchw->bchw", rows[:, 1], enlarged)
    expected = expected + torch.einsum("bk,kchw->bchw", rows[:, 3], rest - enlarged)
    torch.testing.assert_close(
        g.synthesis.underlay(rows, 8), base.unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4)) + expected
    )
    g.synthesis.linear = torch.zeros(6, 3, 6, 6)
    with pytest.raises(ShapeError, match="must be 4, 8"):
        g.synthesis.underlay(rows, 8)
    g.synthesis.linear = linear
    g.synthesis.gain = draws(1, 16, 16, seed=3)
    torch.testing.assert_close(g.synthesis(g.rows_of(w)), plain + base + larger * g.synthesis.gain)
    g.synthesis.gain = None
    halved = base.unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4))
    torch.testing.assert_close(g.synthesis(g.rows_of(w), size=8), coarse + halved + added)


def test_a_mapping_without_layers_needs_one_width() -> None:
    with pytest.raises(ConfigError, match="z_dim must be w_dim"):
        GeneratorConfig(size=16, z_dim=8, w_dim=6, mapping_layers=0)


def test_constants_enter_at_their_resolutions() -> None:
    torch.manual_seed(0)
    g = Generator(GeneratorConfig(size=16, w_dim=6, channel_base=64, channel_max=8, mapping_layers=1, constant_size=8))
    assert [block.constant is not None for block in g.synthesis.blocks] == [False, True, False]
    w = g.rows_of(draws(1, 6))
    before = g.synthesis(w, size=4), g.synthesis(w, size=8)
    with torch.no_grad():
        g.synthesis.blocks[1].constant[:, 2, 3] = 5.0
    torch.testing.assert_close(g.synthesis(w, size=4), before[0], atol=1e-5, rtol=1e-5)
    changed = (g.synthesis(w, size=8) - before[1]).abs().amax((0, 1)) > 1e-4
    assert changed[1:4, 2:5].all() and changed.sum() == 9  # what the 3x3 convolution after it reaches
    with pytest.raises(ConfigError, match="constant_size"):
        GeneratorConfig(size=16, constant_size=32)


@pytest.mark.parametrize("compact", [False, True])
def test_what_lies_below_is_kept_in_files(tmp_path, compact) -> None:
    torch.manual_seed(0)
    g = Generator(GeneratorConfig(size=16, w_dim=6, channel_base=64, channel_max=8, mapping_layers=1, constant_size=16))
    g.synthesis.base, g.synthesis.gain = draws(3, 16, 16), draws(1, 16, 16, seed=1)
    g.synthesis.linear = draws(6, 3, 8, 8, seed=2) * torch.logspace(-3, 0, 6).view(6, 1, 1, 1)
    path = save_generator(tmp_path / "g.safetensors", g, dtype=torch.float32, compact=compact)
    read, _ = read_generator(path)
    linear = g.synthesis.linear
    error = (read.synthesis.linear - linear).abs().amax((1, 2, 3))
    assert (error <= linear.abs().amax((1, 2, 3)) / 127 / 2 * 1.001).all()  # half a step of 8 bits
    assert bool((error > 0).all()) is compact
    for (name, value), found in zip(g.synthesis.named_parameters(), read.synthesis.parameters(), strict=True):
        step = value.detach().flatten(1).abs().amax(1) / 127 if compact and value.dim() > 1 else torch.zeros(1)
        away = (found - value.detach()).flatten(1 if value.dim() > 1 else 0).abs()
        assert (away <= step.view(-1, *[1] * (away.dim() - 1)) / 2 * 1.001 + 1e-7).all(), name
        assert compact or torch.equal(found, value), name
    read.synthesis.linear = linear
    w = g.rows_of(draws(2, 6))
    made, expected = read.synthesis(w), g.synthesis(w)
    assert (made - expected).abs().mean() < (0.03 * expected.std() if compact else 1e-5)
    if compact:
        tensors = load_file(path)
        weight = next(name for name, value in tensors.items() if value.dtype == torch.int8 and "linear" not in name)
        tensors[f"{weight}.scale"] = tensors[f"{weight}.scale"][:-1].clone()
        (tmp_path / "scale.safetensors").write_bytes(save(tensors, safe_open(path, "pt").metadata()))
        with pytest.raises(AssetError, match="scale does not fit"):
            read_generator(tmp_path / "scale.safetensors")
    halves = draws(6, 3, 8, 4, seed=4)
    sign = torch.tensor([1.0, -1, 1, -1, -1, 1]).view(6, 1, 1, 1)
    images = torch.cat([halves, sign * halves.flip(-1)], -1).flatten(1)
    g.synthesis.linear = (draws(6, 6, seed=5) @ images).view(
        6, 3, 8, 8
    )  # neither even nor odd, but their space is both
    path = save_generator(tmp_path / "even.safetensors", g, dtype=torch.float32, compact=compact)
    error = (read_generator(path)[0].synthesis.linear - g.synthesis.linear).flatten(1).norm(dim=1)
    assert (error < 0.015 * g.synthesis.linear.flatten(1).norm(dim=1)).all()
    assert (safe_open(path, "pt").get_slice("synthesis.linear").get_shape()[-1] == 4) is compact
    g.synthesis.gain = draws(1, 8, 8)
    with pytest.raises(AssetError, match="gain"):
        read_generator(save_generator(tmp_path / "odd.safetensors", g))
