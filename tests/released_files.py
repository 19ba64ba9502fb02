"""Random tensors from the official key lists, in containers like the released ones."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

TAPS = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 16
"""The resampling filter, as e4e's generator stores it."""


def official_shapes(reference: Path, name: str) -> dict[str, tuple[int, ...]]:
    """{parameter: shape} of a released network."""
    listed = json.loads((reference / "official_keys" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in listed.items()}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of a size that keeps activations near one, and no statistic left at its default."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("running_var"):
            value = 1 + 0.2 * value.tanh()
        elif len(shape) >= 2:
            value = value * math.sqrt(1.5 / math.prod(shape[1:]))
        elif name.endswith("weight"):  # of normalization and PReLU
            value = 0.6 + 0.2 * value.tanh()
        else:
            value = 0.1 * value
        state[name] = value
    return state


def save(state: object, path: Path, **options: object) -> Path:
    """``torch.save``, as the release has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, **options)
    return path


# -- networks that need more than random numbers -----------------------------------------------------------


def e4e_decoder(size: int, w_dim: int, channels: dict[int, int], layers: int) -> dict[str, torch.Tensor]:
    """A small decoder under e4e's names."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    state = {"input.input": random(1, channels[4], 4, 4)}
    for i in range(1, layers + 1):
        state |= {f"style.{i}.weight": 100 * random(w_dim, w_dim), f"style.{i}.bias": random(w_dim)}

    def styled(name: str, inputs: int, outputs: int, kernel: int) -> None:
        state[f"{name}.conv.weight"] = random(1, outputs, inputs, kernel, kernel)
        state[f"{name}.conv.modulation.weight"] = random(inputs, w_dim)
        state[f"{name}.conv.modulation.bias"] = 1 + 0.1 * random(inputs)
        if kernel == 3:
            state[f"{name}.noise.weight"], state[f"{name}.activate.bias"] = random(1), 0.1 * random(outputs)
        else:
            state[f"{name}.bias"] = 0.1 * random(1, 3, 1, 1)

    styled("conv1", channels[4], channels[4], 3)
    styled("to_rgb1", channels[4], 3, 1)
    state["noises.noise_0"] = random(1, 1, 4, 4)
    side, k = 8, 0
    while side <= size:
        styled(f"convs.{2 * k}", channels[side // 2], channels[side], 3)
        styled(f"convs.{2 * k + 1}", channels[side], channels[side], 3)
        styled(f"to_rgbs.{k}", channels[side], 3, 1)
        state |= {f"convs.{2 * k}.conv.blur.kernel": TAPS, f"to_rgbs.{k}.upsample.kernel": TAPS}
        state |= {f"noises.noise_{2 * k + i}": random(1, 1, side, side) for i in (1, 2)}
        side, k = side * 2, k + 1
    return state


def encoder_state(reference: Path) -> dict[str, torch.Tensor]:
    shapes = official_shapes(reference, "e4e_encoder")
    state = random_state({n: shape for n, shape in shapes.items() if ".convs." not in n})
    for n, shape in shapes.items():  # most of its 270 M weights are in these: one random tensor serves them all
        if ".convs." in n:
            key = "weight" if len(shape) == 4 else "bias"
            state.setdefault(key, random_state({key: shape}, seed=3)[key])
            state[n] = state[key].roll(int(n.split(".")[1]), 0)
    return {n: state[n] for n in shapes}


def flow_state(reference: Path) -> dict[str, torch.Tensor]:
    shapes = official_shapes(reference, "styleflow_cnf")
    state = random_state(shapes)
    for name in state:
        if name.endswith("num_evals") or name.endswith("step"):
            state[name] = torch.full(shapes[name], 5.0)
        elif name.endswith("sqrt_end_time"):
            state[name] = torch.tensor(0.8)
        elif name.startswith(("chain.0.weight", "chain.2.weight")):
            state[name] = 0.1 * torch.randn(shapes[name])
    return state


def nested(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DPR: modules that the file names several times hold the same tensors, as they do there."""
    shared = dict(state)
    for k in (1, 2, 3):
        for name in state:
            if name.startswith(f"HG{k}.middle."):
                inner = f"HG{k - 1}." + name.removeprefix(f"HG{k}.middle.")
                shared[name] = shared[inner]
    for name in state:
        if name.startswith("light."):
            shared["HG0.middle." + name.removeprefix("light.")] = state[name]
    for k in (1, 2, 3):
        for name in state:
            if name.startswith(f"HG{k}.middle."):
                shared[name] = shared[f"HG{k - 1}." + name.removeprefix(f"HG{k}.middle.")]
    return shared


@contextlib.contextmanager
def pretend_modules(**attributes: Any) -> Iterator[None]:
    """Modules, a double underscore for each dot of their names, with a class each, while something is pickled."""
    made = {}
    for dotted, value in attributes.items():
        parts = dotted.split("__")
        for k in range(1, len(parts) + 1):
            made.setdefault(".".join(parts[:k]), types.ModuleType(".".join(parts[:k])))
        setattr(made[".".join(parts)], value.__name__, value)
    kept = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def tensorflow_pickle(path: Path, mapping: dict, synthesis: dict, average: np.ndarray) -> Path:
    """(G, D, Gs) as NVIDIA pickles TensorFlow networks, of the variables of Gs."""

    class Network:
        def __init__(self, **state: object) -> None:
            self.__dict__ = state

    Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"

    def network(name: str, variables: dict, components: dict) -> Network:
        return Network(version=4, name=name, static_kwargs={}, components=components, build_func_name="build",
                       build_module_src="raise SystemExit", variables=list(variables.items()))  # fmt: skip

    parts = {"mapping": network("M", mapping, {}), "synthesis": network("S", synthesis, {})}
    own = {"dlatent_avg": average.astype(np.float32), "lod": np.float32(0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with pretend_modules(dnnlib__tflib__network=Network):
        path.write_bytes(pickle.dumps((network("G", {}, {}), network("D", {}, {}), network("Gs", own, parts)), 4))
    return path


def painted_generator(picture: np.ndarray, seed: int = 4) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Variables of a 1024 px generator, two channels wide, that shows one picture in the colors of skin for any code.

    The picture is the constant noise of the last layer; its code only says how strong the colors are.

    Args:
        picture: (1024, 1024), gray in [-1, 1].
    """
    draws = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return draws.standard_normal(shape).astype(np.float32)

    mapping = {f"Dense{i}/weight": 100 * random(512, 512) for i in range(8)}
    mapping |= {f"Dense{i}/bias": random(512) for i in range(8)}
    synthesis = {"4x4/Const/const": random(1, 2, 4, 4), "noise0": random(1, 1, 4, 4)}
    for k in range(8):
        side = 8 << k
        synthesis |= {f"noise{2 * k + i}": 0.1 * random(1, 1, side, side) for i in (1, 2)}
    layers = [("4x4/Conv", 3), ("4x4/ToRGB", 1)]
    for k in range(8):
        side = 8 << k
        layers += [(f"{side}x{side}/{layer}", size) for layer, size in (("Conv0_up", 3), ("Conv1", 3), ("ToRGB", 1))]
    for name, size in layers:
        outputs = 3 if name.endswith("ToRGB") else 2
        synthesis |= {
            f"{name}/weight": random(size, size, 2, outputs), f"{name}/mod_weight": random(512, 2),
            f"{name}/mod_bias": 0.1 * random(2), f"{name}/bias": 0.1 * random(outputs),
        }  # fmt: skip
        if size == 3:
            synthesis[f"{name}/noise_strength"] = np.float32(0.1)
        else:
            synthesis[f"{name}/weight"][:] = 0
            synthesis[f"{name}/bias"][:] = 0
    last, colors = "1024x1024/Conv1", "1024x1024/ToRGB"
    tint, shade = np.array([1.0, 0.8, 0.7]), np.array([0.15, -0.1, -0.15])
    synthesis[f"{last}/weight"][:] = 0
    synthesis[f"{last}/bias"][:] = 2  # always positive: the rectifier passes it on
    synthesis[f"{last}/noise_strength"] = np.float32(1)
    synthesis["noise16"] = picture[None, None].astype(np.float32)
    synthesis[f"{colors}/weight"][0, 0] = tint / 2  # times 2 channels, over root 2, times the rectifier's root 2
    synthesis[f"{colors}/bias"] = (shade - 2 * tint).astype(np.float32)
    synthesis[f"{colors}/mod_weight"] *= 0.002
    synthesis[f"{colors}/mod_bias"][:] = 0
    return mapping, synthesis


# -- the whole release -------------------------------------------------------------------------------------


def write_release(folder: Path, reference: Path, hifi3dpp: Path, decoder: dict[str, Tensor]) -> Path:
    """``checkpoints/`` and ``topo_assets/`` with every file that is converted: random tensors, of full size but for the
    generators, and where a face must be found at the end tamed: the face generator paints the paper's subject, BiSeNet
    sees skin everywhere, N_enc says the mean head from the front.

    Args:
        folder: to write. reference: the reference data. hifi3dpp: the head model's file. decoder: state of a texture
            decoder, in the released names.
    """
    models, topology = folder / "checkpoints", folder / "topo_assets"
    save(decoder, models / "texgan_model" / "texgan_ffhq_uv.pth")
    save(decoder, models / "texgan_model" / "texgan_cropface630resize1024_ffhq_uv_interpolate.pth")
    state = random_state(official_shapes(reference, "deep3d_net_recon"))
    for name in state:
        if name.startswith("final_layers."):
            state[name].zero_()
    save({"net_recon": state, "opt_00": {"lr": 1e-4}}, models / "deep3d_model" / "epoch_latest.pth")
    state = random_state(official_shapes(reference, "arcface_iresnet50"))
    save(state, models / "arcface_model" / "ms1mv3_arcface_r50_fp16_backbone.pth")
    state = random_state(official_shapes(reference, "bisenet_parsing19"))
    state["conv_out.conv_out.weight"].zero_()[1] = 1.0  # skin, by features that are never negative
    save(state, models / "parsing_model" / "79999_iter.pth")
    state = nested(random_state(official_shapes(reference, "dpr_512")))
    save(state, models / "dpr_model" / "trained_model_03.t7", _use_new_zipfile_serialization=False)
    content = {"net": random_state(official_shapes(reference, "expression_vgg19")), "best_PublicTest_acc": 71.5}
    save(content, models / "exprecog_model" / "FacialExpRecognition_model.t7")
    state = {f"encoder.{name}": value for name, value in encoder_state(reference).items()}
    small = e4e_decoder(1024, 512, dict.fromkeys((4 << k for k in range(9)), 2), 8)
    state |= {f"decoder.{name}": value for name, value in small.items()}
    average = torch.randn(18, 512, generator=torch.Generator().manual_seed(5))
    save({"state_dict": state, "latent_avg": average}, models / "e4e_model" / "e4e_ffhq_encode.pt")
    with Image.open(reference / "ffhq_uv" / "01223_front.jpg") as photo:
        picture = np.asarray(photo.convert("L").resize((1024, 1024)), np.float32) / 127.5 - 1
    path = models / "stylegan_model" / "stylegan2-ffhq-config-f.pkl"
    tensorflow_pickle(path, *painted_generator(picture), np.zeros(512))
    save(flow_state(reference), models / "styleflow_model" / "modellarge10k.pt")
    direction = 0.1 * torch.randn(1, 18, 512, generator=torch.Generator().manual_seed(6))
    save(direction, models / "styleflow_model" / "expression_direction.pt")
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    layers = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    (models / "vgg_model").mkdir()
    torch.jit.trace(torch.nn.Sequential(*layers).eval(), torch.rand(1, 3, 4, 4)).save(models / "vgg_model" / "vgg16.pt")
    topology.mkdir()
    os.symlink(hifi3dpp, topology / "hifi3dpp_model_info.mat")
    with Image.open(reference / "ffhq_uv" / "teaser1_texture.png") as texture:
        texture.convert("RGB").save(topology / "template_base_uv.png")
    for name, level in (("minor_valid_whole", 255), ("major_valid_front", 255), ("hair", 0), ("nosal_base", 255),
                        ("nostril", 0)):  # fmt: skip
        Image.new("L", (64, 64), level).save(topology / f"{name}_mask.png")
    for name in ("lm_model/68lm_detector.pb", "dlib_model/shape_predictor_68_face_landmarks.dat"):
        (models / name).parent.mkdir()
        (models / name).write_bytes(b"a graph")
    return folder
