"""e4e, StyleGAN2-FFHQ and StyleFlow of the release: random tensors under the official names, in the released
containers, held against plain forward passes in those names."""

from __future__ import annotations

import collections
import importlib.util
import itertools
import math
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facerecon import assets
from facerecon.editing.e4e import E4E, load_e4e
from facerecon.editing.styleflow import CONDITIONS, EDITED_ROWS, ConditionalFlow, integrate, load_styleflow
from facerecon.errors import AssetError, ConfigError
from facerecon.stylegan.ffhq_generator import (
    from_e4e_layout,
    from_tensorflow,
    load_ffhq_generator,
    read_e4e_generator,
    read_ffhq_pickle,
)
from facerecon.stylegan.load import load_face_generator
from facerecon.stylegan.released_checkpoints import from_official

TESTS = Path(__file__).resolve().parents[1]


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


released = _module(TESTS / "released_files.py")
slow = _module(TESTS / "stylegan" / "test_released_checkpoints.py")
TAPS = released.TAPS


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "home"))
    for load in (load_e4e, load_styleflow):
        load.cache_clear()
    yield tmp_path / "home"
    for load in (load_e4e, load_styleflow):
        load.cache_clear()


# -- e4e's decoder ---------------------------------------------------------------------------------------


def plain_e4e_decoder(state, ws: torch.Tensor) -> torch.Tensor:
    """One code (rows, C) -> (3, S, S), as that layout means it: kernels scaled, modulated and demodulated."""

    def modulated(name: str, w: torch.Tensor) -> torch.Tensor:
        weight, affine = state[f"{name}.conv.weight"][0], state[f"{name}.conv.modulation.weight"]
        style = affine @ w / math.sqrt(len(w)) + state[f"{name}.conv.modulation.bias"]
        return weight / math.sqrt(weight[0].numel()) * style[None, :, None, None]

    def layer(name: str, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        kernel = modulated(name, w)
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        blur = state.get(f"{name}.conv.blur.kernel")
        if blur is None:
            x = F.conv2d(x[None], kernel, padding=1)[0]
        else:
            x = F.conv_transpose2d(x[None], kernel.transpose(0, 1), stride=2)[0]
            x = F.conv2d(F.pad(x, (1, 1, 1, 1))[:, None], blur[None, None])[:, 0]
        x = x + state[f"{name}.noise.weight"] * noise[0] + state[f"{name}.activate.bias"][:, None, None]
        return F.leaky_relu(x, 0.2) * math.sqrt(2)

    def color(name: str, x: torch.Tensor, w: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
        found = F.conv2d(x[None], modulated(name, w))[0] + state[f"{name}.bias"][0]
        if image is None:
            return found
        spread = image.new_zeros(3, 2 * image.shape[1], 2 * image.shape[2])
        spread[:, ::2, ::2] = image
        kernel = state[f"{name}.upsample.kernel"]
        return found + F.conv2d(F.pad(spread, (2, 1, 2, 1))[:, None], kernel[None, None])[:, 0]

    x = layer("conv1", state["input.input"][0], ws[0], state["noises.noise_0"][0])
    image, k = color("to_rgb1", x, ws[1], None), 0
    while f"convs.{2 * k}.conv.weight" in state:
        for i in (0, 1):
            x = layer(f"convs.{2 * k + i}", x, ws[1 + 2 * k + i], state[f"noises.noise_{2 * k + 1 + i}"][0])
        image = color(f"to_rgbs.{k}", x, ws[3 + 2 * k], image)
        k += 1
    return image


def test_the_generator_in_e4es_file_equals_a_plain_forward_pass(tmp_path) -> None:
    state = released.e4e_decoder(32, 24, {4: 20, 8: 20, 16: 20, 32: 10}, 3)
    average = torch.randn(8, 24)
    content = {"state_dict": {f"decoder.{n}": t for n, t in state.items()}, "latent_avg": average, "opts": {"a": 1}}
    generator = read_e4e_generator(released.save(content, tmp_path / "e4e_ffhq_encode.pt"))
    ws = torch.randn(2, 8, 24)
    expected = torch.stack([plain_e4e_decoder(state, of) for of in ws])
    torch.testing.assert_close(generator.synthesis(ws), expected, atol=3e-4, rtol=1e-4)
    torch.testing.assert_close(generator.w_mean, average.mean(0))
    z = torch.randn(2, 24)
    x = z / z.square().mean(1, keepdim=True).sqrt()
    for i in range(1, 4):
        x = x @ (state[f"style.{i}.weight"] * 0.01 / math.sqrt(24)).T + 0.01 * state[f"style.{i}.bias"]
        x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    torch.testing.assert_close(generator.mapping(z), x, atol=1e-4, rtol=1e-4)
    state["convs.0.conv.blur.kernel"] = torch.ones(4, 4)
    with pytest.raises(AssetError, match=r"not the \[1 3 3 1\] filter"):
        from_e4e_layout(state, average, "x")


def test_all_official_keys_of_e4es_generator_have_a_place(reference) -> None:
    shapes = released.official_shapes(reference, "e4e_stylegan2_decoder")
    state = {n: TAPS if n.endswith("kernel") else torch.zeros(shape) for n, shape in shapes.items()}
    made = from_e4e_layout(state, torch.zeros(18, 512), "x")
    assert {n: tuple(t.shape) for n, t in made.items()} == released.official_shapes(reference, "texgan_ffhq_uv")
    assert from_official(made).size == 1024


def test_e4es_generator_of_full_size_equals_a_plain_forward_pass(reference, tmp_path) -> None:
    """All 171 official keys in the file; what both compute ends at 32 px."""
    shapes = released.official_shapes(reference, "e4e_stylegan2_decoder")
    draws = torch.Generator().manual_seed(3)
    state = {n: TAPS if n.endswith("kernel") else torch.randn(shape, generator=draws) for n, shape in shapes.items()}
    for name in state:
        if name.endswith("modulation.bias"):
            state[name] = 1 + 0.1 * state[name]
    average = torch.randn(18, 512, generator=draws)
    content = {"state_dict": {f"decoder.{n}": t for n, t in state.items()}, "latent_avg": average}
    generator = read_e4e_generator(released.save(content, tmp_path / "e4e_ffhq_encode.pt"))
    assert (generator.size, generator.rows, generator.config.mapping_layers) == (1024, 18, 8)
    ws = torch.randn(1, 18, 512, generator=draws)
    above = tuple(f"convs.{k}." for k in range(6, 16))
    expected = plain_e4e_decoder({n: t for n, t in state.items() if not n.startswith(above)}, ws[0])
    with torch.no_grad():
        found = generator.synthesis(ws, size=32)[0]
    assert expected.shape == (3, 32, 32)
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.std().item(), rtol=1e-4)


# -- the pickle ------------------------------------------------------------------------------------------


def tensorflow_variables(seed: int = 2) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Variables of the mapping and the synthesis network of an 8 px generator, under TensorFlow's names."""
    generator = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    mapping = {f"Dense{i}/{kind}": random(*shape) * 100 for i in range(2) for kind, shape in
               (("weight", (6, 6)), ("bias", (6,)))}  # fmt: skip
    synthesis = {"4x4/Const/const": random(1, 5, 4, 4), "lod": np.float32(0)}
    synthesis |= {"noise0": random(1, 1, 4, 4), "noise1": random(1, 1, 8, 8), "noise2": random(1, 1, 8, 8)}
    for name, inputs, outputs, kernel in (
        ("4x4/Conv", 5, 5, 3), ("4x4/ToRGB", 5, 3, 1), ("8x8/Conv0_up", 5, 4, 3), ("8x8/Conv1", 4, 4, 3),
        ("8x8/ToRGB", 4, 3, 1),
    ):  # fmt: skip
        synthesis |= {
            f"{name}/weight": random(kernel, kernel, inputs, outputs), f"{name}/mod_weight": random(6, inputs),
            f"{name}/mod_bias": 0.1 * random(inputs), f"{name}/bias": 0.1 * random(outputs),
        }  # fmt: skip
        if kernel == 3:
            synthesis[f"{name}/noise_strength"] = np.float32(generator.standard_normal())
    return mapping, synthesis


def plain_tensorflow(v: dict[str, torch.Tensor], ws: torch.Tensor) -> torch.Tensor:
    """8 px, (rows, 6) -> (3, 8, 8): enlarged by the filter first, then correlated. Exact away from the border."""

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        spread = x.new_zeros(len(x), 8, 8)
        spread[:, ::2, ::2] = x
        return F.conv2d(F.pad(spread, (2, 1, 2, 1))[:, None], TAPS[None, None])[:, 0]

    def layer(name: str, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        weight = v[f"{name}/weight"].permute(3, 2, 0, 1)
        style = w @ v[f"{name}/mod_weight"] / math.sqrt(6) + v[f"{name}/mod_bias"] + 1
        kernel = weight / math.sqrt(weight[0].numel()) * style[None, :, None, None]
        if noise is None:
            return F.conv2d(x[None], kernel)[0] + v[f"{name}/bias"][:, None, None]
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        x = F.conv2d(x[None], kernel, padding=1)[0] + v[f"{name}/noise_strength"] * noise[0]
        return F.leaky_relu(x + v[f"{name}/bias"][:, None, None], 0.2) * math.sqrt(2)

    x = layer("4x4/Conv", v["4x4/Const/const"][0], ws[0], v["noise0"][0])
    image = enlarged(layer("4x4/ToRGB", x, ws[1], None))
    x = layer("8x8/Conv0_up", enlarged(x), ws[1], v["noise1"][0])
    x = layer("8x8/Conv1", x, ws[2], v["noise2"][0])
    return image + layer("8x8/ToRGB", x, ws[3], None)


@pytest.fixture
def pickled(tmp_path) -> tuple[Path, dict, dict]:
    mapping, synthesis = tensorflow_variables()
    path = released.tensorflow_pickle(tmp_path / "stylegan2-ffhq-config-f.pkl", mapping, synthesis, np.arange(6.0))
    return path, mapping, synthesis


def test_the_pickled_generator_equals_a_plain_forward_pass(pickled, home) -> None:
    path, mapping, synthesis = pickled
    assets.convert("stylegan2_ffhq", path)
    generator = load_ffhq_generator()
    assert generator.size == 8 and torch.equal(generator.w_mean, torch.arange(6.0))
    variables = {name: torch.as_tensor(value) for name, value in synthesis.items()}
    ws = torch.randn(3, 4, 6)
    expected = torch.stack([plain_tensorflow(variables, of) for of in ws])
    found = generator.synthesis(ws)
    torch.testing.assert_close(found[..., 3:5, 3:5], expected[..., 3:5, 3:5], atol=1e-4, rtol=1e-4)
    z = torch.randn(2, 6)
    x = z / z.square().mean(1, keepdim=True).sqrt()
    for i in range(2):
        weight, bias = (torch.from_numpy(mapping[f"Dense{i}/{kind}"]) for kind in ("weight", "bias"))
        x = F.leaky_relu(x @ weight * 0.01 / math.sqrt(6) + 0.01 * bias, 0.2) * math.sqrt(2)
    torch.testing.assert_close(generator.mapping(z), x, atol=1e-4, rtol=1e-4)


def persistent(module: str, of: str, state: dict) -> object:
    """An object as NVIDIA's PyTorch networks are pickled: source code, a class name, and the module's attributes."""

    class Persistent:
        def __reduce__(self):
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": of, "state": state}
            return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)

    return Persistent()


def as_modules(state: dict[str, torch.Tensor], buffers: tuple[str, ...]) -> object:
    """A state dictionary as the nested modules that it is of."""
    inner: dict[str, dict] = {}
    own: dict[str, dict] = {"_parameters": {}, "_buffers": {}}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        elif head in buffers:
            own["_buffers"][head] = value
        else:
            own["_parameters"][head] = torch.nn.Parameter(value)
    modules = {name: as_modules(part, buffers) for name, part in inner.items()}
    attributes = {
        "training": False, "_non_persistent_buffers_set": set(), "_backward_hooks": collections.OrderedDict(),
        "_init_args": (), "_init_kwargs": {"w_dim": 24}, "weight_gain": np.float64(0.25), "use_noise": True,
        "_modules": collections.OrderedDict(modules), **own,
    }  # fmt: skip
    return persistent("training.networks", "Module", attributes)


def test_a_pickle_of_pytorch_networks_equals_a_plain_forward_pass(tmp_path, home, monkeypatch) -> None:
    """{"G": ..., "D": ..., "G_ema": ...} as stylegan2-ada-pytorch pickles them."""
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def _reconstruct_persistent_obj(meta):
        raise SystemExit

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    buffers = ("resample_filter", "noise_const", "w_avg")
    first, state = (slow.random_state(slow.SMALL, seed) for seed in (1, 2))
    content = {
        "G": as_modules(first, buffers),
        "D": as_modules({"b8.fromrgb.weight": torch.ones(2)}, buffers),
        "G_ema": as_modules(state, buffers),
        "training_set_kwargs": {"path": "ffhq"},
        "augment_pipe": None,
    }
    path = tmp_path / "stylegan2-ffhq-config-f.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    assets.convert("stylegan2_ffhq", path)
    generator = load_ffhq_generator()
    assert (generator.size, generator.rows, generator.config.mapping_layers) == (32, 8, 3)
    ws, z = torch.randn(2, 8, 24), torch.randn(2, 24)
    expected = torch.stack([slow.reference_synthesis(state, of, 32) for of in ws])
    torch.testing.assert_close(generator.synthesis(ws), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(generator.mapping(z), slow.reference_mapping(state, z), atol=1e-4, rtol=1e-4)
    # and the frozen source of faces that the data set takes
    faces = load_face_generator("stylegan2_ffhq")
    torch.testing.assert_close(faces(ws), (expected / 2 + 0.5).clamp(0, 1), atol=2e-4, rtol=1e-4)
    del content["G_ema"]
    path.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(AssetError, match="holds no StyleGAN2 networks"):
        read_ffhq_pickle(path)


def test_what_is_no_such_pickle_is_one_line(tmp_path) -> None:
    for content, words in (
        ({"a": torch.ones(2)}, "holds no StyleGAN2 networks"),
        (("a", "b", "c"), "holds no StyleGAN2 networks"),
        (print, "which could run code"),
    ):
        (tmp_path / "n.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(AssetError, match=words):
            read_ffhq_pickle(tmp_path / "n.pkl")
    with pytest.raises(AssetError, match=r"unknown variable 'synthesis/4x4/Conv/other'"):
        from_tensorflow({"synthesis/4x4/Conv/other": torch.ones(1)})


# -- e4e's encoder ---------------------------------------------------------------------------------------


def plain_e4e(s: dict[str, torch.Tensor], image: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    def bn(name, x):
        shape = (1, -1, 1, 1)
        scale = s[f"{name}.weight"] / (s[f"{name}.running_var"] + 1e-5).sqrt()
        return x * scale.view(shape) + (s[f"{name}.bias"] - s[f"{name}.running_mean"] * scale).view(shape)

    def prelu(name, x):
        return torch.where(x > 0, x, x * s[f"{name}.weight"].view(1, -1, 1, 1))

    x = prelu("input_layer.2", bn("input_layer.1", F.conv2d(image * 2 - 1, s["input_layer.0.weight"], padding=1)))
    seen = []
    for i in range(24):
        at, stride = f"body.{i}", 2 if i in (0, 3, 7, 21) else 1
        y = F.conv2d(bn(f"{at}.res_layer.0", x), s[f"{at}.res_layer.1.weight"], padding=1)
        y = F.conv2d(prelu(f"{at}.res_layer.2", y), s[f"{at}.res_layer.3.weight"], stride=stride, padding=1)
        y = bn(f"{at}.res_layer.4", y)
        gate = F.conv2d(y.mean((2, 3), keepdim=True), s[f"{at}.res_layer.5.fc1.weight"]).relu()
        y = y * F.conv2d(gate, s[f"{at}.res_layer.5.fc2.weight"]).sigmoid()
        if f"{at}.shortcut_layer.0.weight" in s:
            x = bn(f"{at}.shortcut_layer.1", F.conv2d(x, s[f"{at}.shortcut_layer.0.weight"], stride=stride))
        else:
            x = F.max_pool2d(x, 1, stride)
        x = x + y
        seen.append(x)

    def up(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    coarse = seen[23]
    middle = up(coarse) + F.conv2d(seen[20], s["latlayer1.weight"], s["latlayer1.bias"])
    fine = up(middle) + F.conv2d(seen[6], s["latlayer2.weight"], s["latlayer2.bias"])
    rows = []
    for k in range(18):
        x = coarse if k < 3 else middle if k < 7 else fine
        while x.shape[-1] > 1:
            j = int(math.log2((256 / {0: 16, 1: 8, 2: 4}[(k >= 3) + (k >= 7)]) / x.shape[-1])) * 2
            x = F.conv2d(x, s[f"styles.{k}.convs.{j}.weight"], s[f"styles.{k}.convs.{j}.bias"], 2, 1)
            x = torch.where(x > 0, x, 0.01 * x)
        row = x[:, :, 0, 0] @ s[f"styles.{k}.linear.weight"].T / math.sqrt(512) + s[f"styles.{k}.linear.bias"]
        rows.append(row if k == 0 else rows[0] + row)
    return torch.stack(rows, 1) + average


def test_every_official_key_of_the_encoder_is_a_parameter(reference) -> None:
    with torch.device("meta"):
        found = {name: tuple(t.shape) for name, t in E4E().state_dict().items()}
    assert found.pop("latent_avg") == (18, 512)
    assert found == released.official_shapes(reference, "e4e_encoder")


@pytest.mark.slow
def test_the_encoder_equals_a_plain_forward_pass(reference, home, tmp_path) -> None:
    state, average = released.encoder_state(reference), torch.randn(512)
    content = {"state_dict": {f"encoder.{n}": t for n, t in state.items()}, "latent_avg": average}
    assets.convert("e4e", released.save(content, tmp_path / "e4e_ffhq_encode.pt"))
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        expected, found = plain_e4e(state, image, average), load_e4e()(image)
    assert (expected - average).std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-3 * (expected - average).std().item(), rtol=1e-4)


# -- StyleFlow -------------------------------------------------------------------------------------------


def plain_flow(s: dict[str, torch.Tensor], w: torch.Tensor, condition: torch.Tensor, steps: int) -> torch.Tensor:
    """w -> z by many small steps of Heun's method."""

    def normalized(at, x):
        x = (x - s[f"{at}.running_mean"]) * torch.exp(-0.5 * torch.log(s[f"{at}.running_var"] + 1e-4))
        return x * torch.exp(s[f"{at}.weight"]) + s[f"{at}.bias"]

    def slope(t, x):
        c = torch.cat([torch.full((len(w), 1), t, dtype=w.dtype), condition], 1)
        for i in range(6):
            at = f"chain.1.odefunc.diffeq.layers.{i}"
            gate = torch.sigmoid(c @ s[f"{at}._hyper_gate.weight"].T + s[f"{at}._hyper_gate.bias"])[:, None]
            shift = (c @ s[f"{at}._hyper_bias.weight"].T)[:, None]
            x = (x @ s[f"{at}._layer.weight"].T + s[f"{at}._layer.bias"]) * gate + shift
            x = torch.tanh(x) if i < 5 else x
        return x

    x, h = normalized("chain.0", w), 0.64 / steps
    for k in range(steps):
        first = slope(k * h, x)
        x = x + h / 2 * (first + slope((k + 1) * h, x + h * first))
    return normalized("chain.2", x)


def test_the_flow_equals_small_plain_steps_and_comes_back(reference, home, tmp_path) -> None:
    state = released.flow_state(reference)
    assets.convert("styleflow", released.save(state, tmp_path / "modellarge10k.pt"))
    flow = load_styleflow()
    w, condition = torch.randn(1, 6, 512), torch.randn(1, 17)
    wanted = condition.clone()
    wanted[:, CONDITIONS["yaw"]] += 3
    with torch.no_grad():
        z = flow.to_gaussian(w, condition)
        expected = plain_flow({n: t.double() for n, t in state.items()}, w.double(), condition.double(), 150).float()
        assert (expected - w).std() > 0.3
        torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(flow.to_latent(z, condition), w, atol=2e-4, rtol=1e-4)
        moved, now = flow.edit(w, condition, "yaw", condition[:, 11:12] + 3)
        assert torch.equal(now, wanted) and torch.equal(moved[:, 4:], w[:, 4:])
        torch.testing.assert_close(moved[:, :4], flow.to_latent(z, wanted)[:, :4])
        assert (moved[:, :4] - w[:, :4]).abs().max() > 1e-3


def test_fixed_steps_agree_with_adaptive_ones() -> None:
    pytest.importorskip("torchdiffeq")
    flow = ConditionalFlow()
    w, condition = torch.randn(1, 3, 512), torch.randn(1, 17)
    with torch.no_grad():
        fixed = flow.to_gaussian(w, condition)
        flow.solver = "dopri5"
        assert (fixed - w).std() > 0.05
        torch.testing.assert_close(flow.to_gaussian(w, condition), fixed, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(flow.to_latent(fixed, condition), w, atol=1e-4, rtol=1e-4)


def test_the_integrator_is_of_the_fourth_order() -> None:
    """dx/dt = t x has the solution x(0) exp(t^2 / 2)."""
    start, begin, end = torch.ones(1, dtype=torch.float64), torch.tensor(0.0).double(), torch.tensor(1.5).double()
    exact = math.exp(1.125)
    errors = [
        abs(integrate(lambda t, x: t * x, start, begin, end, "rk4", steps).item() - exact) for steps in (8, 16, 32)
    ]
    assert errors[0] < 1e-3 and all(14 < a / b < 18 for a, b in itertools.pairwise(errors))
    back = integrate(lambda t, x: t * x, torch.full((1,), exact).double(), end, begin, "rk4", 64)
    assert back.item() == pytest.approx(1, abs=1e-6)


def test_wrong_words_about_the_flow_are_one_line(home, monkeypatch) -> None:
    flow = ConditionalFlow(solver="dopri")
    w, condition = torch.zeros(1, 18, 512), torch.zeros(1, 17)
    with pytest.raises(ConfigError, match="did you mean 'dopri5'"):
        flow.to_gaussian(w, condition)
    with pytest.raises(ConfigError, match="did you mean 'baldness'"):
        flow.edit(w, condition, "bald", 1.0)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(AssetError, match="pip install torchdiffeq; or use 'rk4'"):
        ConditionalFlow(solver="dopri5").to_gaussian(w, condition)
    with pytest.raises(AssetError, match=r"convert styleflow PATH"):
        load_styleflow()
    assert sum(s.stop - s.start for s in CONDITIONS.values()) == 17 and set(EDITED_ROWS) < set(CONDITIONS)
