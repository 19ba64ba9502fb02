"""Released checkpoints, held against a slow forward pass written from the papers, in their own names."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from facerecon.errors import AssetError
from facerecon.stylegan.load import load_decoder
from facerecon.stylegan.released_checkpoints import CroppedDecoder, from_official, read_official
from facerecon.stylegan.texture_decoder import measure_statistics


def official_shapes(size: int, w_dim: int, channels: dict[int, int], layers: int) -> dict[str, list[int]]:
    """The official key list of a small network; the real one is read from the reference data."""
    shapes = {"synthesis.b4.const": [channels[4], 4, 4], "mapping.w_avg": [w_dim]}
    for i in range(layers):
        shapes |= {f"mapping.fc{i}.weight": [w_dim, w_dim], f"mapping.fc{i}.bias": [w_dim]}
    side = 4
    while side <= size:
        block, out = f"synthesis.b{side}", channels[side]
        shapes[f"{block}.resample_filter"] = [4, 4]
        for conv, inputs in (("conv0", channels.get(side // 2)), ("conv1", out)):
            if side == 4 and conv == "conv0":
                continue
            shapes |= {
                f"{block}.{conv}.weight": [out, inputs, 3, 3], f"{block}.{conv}.noise_strength": [],
                f"{block}.{conv}.bias": [out], f"{block}.{conv}.resample_filter": [4, 4],
                f"{block}.{conv}.noise_const": [side, side],
                f"{block}.{conv}.affine.weight": [inputs, w_dim], f"{block}.{conv}.affine.bias": [inputs],
            }  # fmt: skip
        shapes |= {f"{block}.torgb.weight": [3, out, 1, 1], f"{block}.torgb.bias": [3]}
        shapes |= {f"{block}.torgb.affine.weight": [out, w_dim], f"{block}.torgb.affine.bias": [out]}
        side *= 2
    return shapes


def random_state(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("resample_filter"):
            value = torch.outer(taps, taps)
        elif name.endswith("affine.bias"):
            value = 1 + 0.1 * value
        elif name.startswith("mapping.fc"):
            value = value * 100
        elif name.endswith(("noise_strength", "bias")):
            value = 0.1 * value
        state[name] = value
    return state


SMALL = official_shapes(32, 24, {4: 20, 8: 20, 16: 20, 32: 10}, 3)


# -- the slow twin: one sample, kernels modulated as in Eqs. 1 and 3, resampling written out ------------------


def reference_mapping(state: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    x = z / z.square().mean(1, keepdim=True).sqrt()
    i = 0
    while f"mapping.fc{i}.weight" in state:
        weight, bias = state[f"mapping.fc{i}.weight"], state[f"mapping.fc{i}.bias"]
        x = x @ (weight * 0.01 / math.sqrt(weight.shape[1])).T + 0.01 * bias
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
        i += 1
    return x


def reference_layer(state, name: str, x: torch.Tensor, w: torch.Tensor, up: bool) -> torch.Tensor:
    """x (I, H, W), w (C,) -> (O, H or 2 H, ...)."""
    affine = state[f"{name}.affine.weight"]
    style = w @ (affine / math.sqrt(affine.shape[1])).T + state[f"{name}.affine.bias"]
    kernel = state[f"{name}.weight"] * style[None, :, None, None]
    kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if up:
        height, width = x.shape[1:]
        scattered = x.new_zeros(len(kernel), 2 * height + 1, 2 * width + 1)
        for a in range(3):
            for b in range(3):
                part = torch.einsum("oi,ihw->ohw", kernel[:, :, a, b], x)
                scattered[:, a : a + 2 * height : 2, b : b + 2 * width : 2] += part
        x = reference_filter(scattered, 1, 1)
    else:
        x = F.conv2d(x[None], kernel, padding=1)[0]
    x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"] + state[f"{name}.bias"][:, None, None]
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def reference_filter(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """[1 3 3 1] along both axes with a gain of 4, zeros outside."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).to(x) / 8
    x = F.pad(x, (before, after, before, after))
    height, width = x.shape[1] - 3, x.shape[2] - 3
    return 4 * sum(taps[a] * taps[b] * x[:, a : a + height, b : b + width] for a in range(4) for b in range(4))


def reference_synthesis(state: dict[str, torch.Tensor], ws: torch.Tensor, size: int) -> torch.Tensor:
    """(rows, C) -> (3, size, size)."""
    x, image, row, side = state["synthesis.b4.const"], None, 0, 4
    while side <= size:
        block = f"synthesis.b{side}"
        if side > 4:
            x = reference_layer(state, f"{block}.conv0", x, ws[row], up=True)
            row += 1
        x = reference_layer(state, f"{block}.conv1", x, ws[row], up=False)
        affine = state[f"{block}.torgb.affine.weight"]
        style = ws[row + 1] @ (affine / math.sqrt(affine.shape[1])).T + state[f"{block}.torgb.affine.bias"]
        kernel = state[f"{block}.torgb.weight"][:, :, 0, 0] * style / math.sqrt(len(style))
        color = torch.einsum("oi,ihw->ohw", kernel, x) + state[f"{block}.torgb.bias"][:, None, None]
        if image is not None:
            inserted = color.new_zeros(color.shape)
            inserted[:, ::2, ::2] = image
            color = color + reference_filter(inserted, 2, 1)
        image, row, side = color, row + 1, 2 * side
    return image


def test_a_small_network_equals_the_slow_twin(tmp_path) -> None:
    state = {name: t.double() for name, t in random_state(SMALL).items()}
    path = tmp_path / "texgan.pth"
    torch.save({name: t.float() for name, t in state.items()}, path)
    generator = read_official(path)
    assert (generator.size, generator.rows, generator.config.mapping_layers) == (32, 8, 3)
    z = torch.randn(2, 24, dtype=torch.float64)
    w = reference_mapping(state, z)
    torch.testing.assert_close(generator.mapping(z.float()), w.float(), atol=1e-4, rtol=1e-4)
    ws = torch.randn(2, 8, 24, dtype=torch.float64)
    expected = torch.stack([reference_synthesis(state, of, 32) for of in ws]).float()
    torch.testing.assert_close(generator.synthesis(ws.float()), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(generator.w_mean, state["mapping.w_avg"].float())


def test_the_real_key_list(reference, tmp_path) -> None:
    shapes = json.loads((reference / "official_keys" / "texgan_ffhq_uv.json").read_text())
    state = random_state(shapes)
    path = tmp_path / "texgan_ffhq_uv.pth"
    torch.save(state, path)
    generator = read_official(path)
    assert sum(p.numel() for p in generator.parameters()) == 30_370_060
    assert (generator.size, generator.rows) == (1024, 18)
    ws = torch.randn(1, 18, 512)
    with torch.no_grad():
        expected = reference_synthesis(state, ws[0], 64)
        got = generator.synthesis(ws, size=64)[0]
    torch.testing.assert_close(got, expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


def test_the_real_key_list_names_what_the_small_one_names(reference) -> None:
    """182 keys, all spoken for: the list of the small network is the official one, block by block."""
    real = json.loads((reference / "official_keys" / "texgan_ffhq_uv.json").read_text())
    channels = {4 << i: min(32768 // (4 << i), 512) for i in range(9)}
    assert official_shapes(1024, 512, channels, 8) == real
    with torch.device("meta"):
        names = {name: torch.empty(shape) for name, shape in real.items()}
    assert len(names) == 182


@pytest.mark.parametrize("key", ["g_ema", "G_ema", None])
def test_containers(key, tmp_path) -> None:
    state = random_state(SMALL)
    path = tmp_path / "a.pth"
    torch.save(state if key is None else {key: state, "args": {"size": 32}}, path)
    torch.testing.assert_close(read_official(path).synthesis.constant, state["synthesis.b4.const"])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("synthesis.b16.conv0.affine.bias"), "lacks 'synthesis.b16.conv0.affine.bias'"),
        (lambda s: s.update(surplus=torch.zeros(2)), "holds unknown 'surplus'"),
        (lambda s: s.update({"synthesis.b8.conv1.bias": torch.zeros(19)}), r"is \(19,\), expected \(20,\)"),
        (lambda s: s["mapping.fc1.weight"].fill_(torch.nan), "'mapping.fc1.weight' holds NaN"),
        (lambda s: s["synthesis.b8.resample_filter"].fill_(0.25), "filter"),
        (lambda s: s.pop("mapping.w_avg"), "cannot read its sizes"),
        (lambda s: s.clear(), "no state dictionary"),
        (lambda s: s.update({"synthesis.b4.const": "text"}), "no state dictionary of tensors"),
    ],
)
def test_what_does_not_fit_is_one_line(change, words, tmp_path) -> None:
    state = random_state(SMALL)
    change(state)
    path = tmp_path / "bad.pth"
    torch.save(state, path)
    with pytest.raises(AssetError, match=words) as error:
        read_official(path)
    assert "bad.pth" in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files_are_one_line(tmp_path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    for name in ("text.pth", "cut.pth", "none.pth"):
        with pytest.raises(AssetError, match=name):
            load_decoder(str(tmp_path / name))


def test_a_checkpoint_as_decoder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    path = tmp_path / "texgan_ffhq_uv.pth"
    torch.save(random_state(SMALL), path)
    for space, rows in (("z", 1), ("w+", 8)):
        decoder = load_decoder(str(path), space=space, precision="float32")
        assert (decoder.rows, decoder.atlas) == (rows, "hifi3dpp")
    z = torch.from_numpy(np.random.RandomState(123).randn(100_000, 24).astype(np.float32))
    w = decoder.generator.mapping(z)
    torch.testing.assert_close(decoder.w_mean, w.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(decoder.w_std, w.std(0), atol=1e-4, rtol=1e-3)


def test_the_face_crop_variant(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    folder = tmp_path / "checkpoints" / "texgan_model"
    folder.mkdir(parents=True)
    path = folder / "texgan_cropface630resize1024_ffhq_uv_interpolate.pth"
    torch.save(random_state(SMALL), path)
    with pytest.raises(AssetError, match=r"template_base_uv\.png"):
        load_decoder(str(path))
    assets = tmp_path / "topo_assets"
    assets.mkdir()
    for name in ("template_base_uv.png", "minor_valid_whole_mask.png", "hair_mask.png"):
        Image.fromarray(np.full((16, 16, 3), 100, np.uint8)).save(assets / name)
    decoder = load_decoder(str(path), precision="float32")
    assert isinstance(decoder, CroppedDecoder) and decoder.atlas == "hifi3dpp"
    assert decoder.canvas == 52 and decoder.window[0].start == 6 and decoder.window[1].start == 10


def test_a_crop_lands_in_its_window_and_nowhere_else() -> None:
    """1664 px canvas at a crop of 1024 px: rows 187:1211, columns 317:1341; here an eighth of it."""
    torch.manual_seed(0)
    shapes = official_shapes(128, 8, {s: 4 for s in (4, 8, 16, 32, 64, 128)}, 1)
    generator = from_official(random_state(shapes))
    statistics = measure_statistics(generator.mapping, generator.synthesis, 12, 8, 400, 100, 32, components=2)
    template = torch.full((3, 26, 26), 0.3)
    face, hair = torch.ones(1, 26, 26), torch.zeros(1, 26, 26)
    decoder = CroppedDecoder(generator, statistics, template, face, hair, "w", "float32", size=208)
    assert decoder.canvas == 208
    crop = torch.rand(1, 3, 128, 128, requires_grad=True)
    placed = decoder.place(crop)  # at 208 px the canvas itself
    rows, columns = decoder.window
    assert (rows.start, rows.stop, columns.start, columns.stop) == (23, 151, 40, 168)
    torch.testing.assert_close(placed[:, :, rows, columns], crop)
    outside = torch.ones(208, 208, dtype=torch.bool)
    outside[rows, columns] = False
    torch.testing.assert_close(placed[0][:, outside], torch.full_like(placed[0][:, outside], 0.3))
    (gradient,) = torch.autograd.grad(placed.sum(), crop)
    torch.testing.assert_close(gradient, torch.ones_like(crop))
    # where the template covers the crop, it is not recolored
    decoder = CroppedDecoder(generator, statistics, template, face, torch.ones(1, 26, 26), "w", "float32", size=104)
    torch.testing.assert_close(decoder.place(crop), torch.full((1, 3, 104, 104), 0.3))
    mean, effect = decoder.start_basis()
    assert mean.shape == (3, 64, 64) and effect.shape == (2, 3, 64, 64) and not effect.any()
    assert decoder(decoder.sample(2)).shape == (2, 3, 104, 104)
