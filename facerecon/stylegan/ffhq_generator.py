"""StyleGAN2-FFHQ (arXiv:1912.04958), the generator whose faces FFHQ-UV normalizes, from its released containers.

- ``stylegan2-ffhq-config-f.pkl``: a pickle of NVIDIA's TensorFlow networks, (G, D, Gs); the variables of Gs are read,
  its code is not. A pickle of their PyTorch networks, with ``G_ema`` in it, is read too.
- ``e4e_ffhq_encode.pt``: the same generator beside e4e's encoder, in another layout.

Both are renamed to the layout of :mod:`facerecon.stylegan.released_checkpoints`. There, 3x3 kernels are stored with
what an equalized learning rate divides by already divided out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import Record, read_checkpoint, read_pickle, tensors_of
from facerecon.errors import AssetError, ShapeError
from facerecon.modes import in_own_modes
from facerecon.stylegan.face_generator import seeded_latents
from facerecon.stylegan.generator import Generator
from facerecon.stylegan.released_checkpoints import from_official
from facerecon.stylegan.weights import read_generator

__all__ = [
    "FFHQFaces",
    "from_e4e_layout",
    "from_tensorflow",
    "load_ffhq_faces",
    "load_ffhq_generator",
    "read_e4e_file",
    "read_e4e_generator",
    "read_ffhq_pickle",
]

_FILTER = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def _undivided(kernel: Tensor) -> Tensor:
    """A 3x3 kernel (O, I, 3, 3) that the network divides by the root of its inputs, divided already."""
    return kernel / math.sqrt(kernel[0].numel()) if kernel.shape[-1] == 3 else kernel


def _with_filters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The resampling filters that the layout holds, which are the same in all."""
    for name in list(state):
        if match := re.fullmatch(r"(synthesis\.b\d+)\.(conv[01])\.weight", name):
            state[f"{match[1]}.resample_filter"] = state[f"{match[1]}.{match[2]}.resample_filter"] = _FILTER
    return state


# -- TensorFlow ------------------------------------------------------------------------------------------


def from_tensorflow(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variables of Gs, under "mapping/...", "synthesis/..." and "dlatent_avg", in the official PyTorch layout.

    Kernels are (height, width, inputs, outputs); those of up-sampling layers are mirrored, because TensorFlow
    correlates where the transposed convolution here scatters; the styles' bias lacks its 1.

    Raises:
        AssetError: a variable of another name.
    """
    state: dict[str, Tensor] = {}
    for name, value in variables.items():
        value = value.float()
        if name == "dlatent_avg":
            state["mapping.w_avg"] = value
        elif name in ("lod", "synthesis/lod"):
            continue
        elif match := re.fullmatch(r"mapping/Dense(\d+)/(weight|bias)", name):
            state[f"mapping.fc{match[1]}.{match[2]}"] = value.T if match[2] == "weight" else value
        elif match := re.fullmatch(r"synthesis/noise(\d+)", name):
            layer = int(match[1])
            block = f"synthesis.b{4 << ((layer + 1) // 2)}"
            state[f"{block}.conv{0 if layer % 2 else 1}.noise_const"] = value[0, 0]
        elif name == "synthesis/4x4/Const/const":
            state["synthesis.b4.const"] = value[0]
        elif match := re.fullmatch(r"synthesis/(\d+)x\d+/(Conv0_up|Conv1|Conv|ToRGB)/(\w+)", name):
            state |= _tensorflow_layer(int(match[1]), match[2], match[3], value, name)
        else:
            raise AssetError(f"unknown variable '{name[:80]}' of a StyleGAN2 generator; get the released file again.")
    return _with_filters(state)


def _tensorflow_layer(side: int, layer: str, kind: str, value: Tensor, name: str) -> dict[str, Tensor]:
    ours = {"Conv0_up": "conv0", "Conv1": "conv1", "Conv": "conv1", "ToRGB": "torgb"}[layer]
    if kind == "weight":
        kernel = value.flip(0, 1) if layer == "Conv0_up" else value
        found = "weight", _undivided(kernel.permute(3, 2, 0, 1))
    elif kind in ("bias", "noise_strength"):
        found = kind, value
    elif kind == "mod_weight":
        found = "affine.weight", value.T
    elif kind == "mod_bias":
        found = "affine.bias", value + 1
    else:
        raise AssetError(f"unknown variable '{name[:80]}' of a StyleGAN2 generator; get the released file again.")
    return {f"synthesis.b{side}.{ours}.{found[0]}": found[1].contiguous()}


def _variables(network: Record, prefix: str = "") -> dict[str, Tensor]:
    """{path: value} of a TensorFlow network's own variables and of its components'."""
    found = {}
    for pair in network.state.get("variables") or ():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise AssetError("the variables of the pickled network have no names; get the released file again.")
        found[prefix + pair[0]] = torch.as_tensor(pair[1])
    components = network.state.get("components")
    for name, part in components.items() if isinstance(components, Mapping) else ():
        if isinstance(part, Record) and not prefix:
            found |= _variables(part, f"{name}/")
    return found


def read_ffhq_pickle(path: str | Path) -> Generator:
    """The generator of a released pickle: (G, D, Gs) of TensorFlow networks, or {"G_ema": ...} of PyTorch ones.

    Raises:
        AssetError: missing, damaged, or something else is in it; one line.
    """
    content: Any = read_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("G_ema"), Record):
        return from_official(tensors_of(content["G_ema"]), path)
    if isinstance(content, (tuple, list)) and len(content) == 3 and isinstance(content[2], Record):
        return from_official(from_tensorflow(_variables(content[2])), path)
    raise AssetError(f"{path} holds no StyleGAN2 networks; expected the released stylegan2-ffhq-config-f.pkl.")


# -- e4e -------------------------------------------------------------------------------------------------


def from_e4e_layout(state: Mapping[str, Tensor], average: Tensor, path: str | Path) -> dict[str, Tensor]:
    """The decoder's parameters beside e4e's encoder, in the official layout.

    Args:
        state: {name: tensor}.
        average: (512,) or (rows, 512), the mean w.
        path: for messages.

    Raises:
        AssetError: a key of another name, or another filter than [1 3 3 1].
    """
    made: dict[str, Tensor] = {"mapping.w_avg": average.float() if average.dim() == 1 else average.float().mean(0)}
    for name, value in state.items():
        value = value.float()
        if name.endswith(".kernel"):
            if value.shape != (4, 4) or (value - 4 * _FILTER).abs().max() > 1e-4:
                raise AssetError(f"{path}: '{name}' is not the [1 3 3 1] filter; only that one is supported.")
        elif match := re.fullmatch(r"style\.(\d+)\.(weight|bias)", name):
            made[f"mapping.fc{int(match[1]) - 1}.{match[2]}"] = value
        elif name == "input.input":
            made["synthesis.b4.const"] = value[0]
        elif match := re.fullmatch(r"noises\.noise_(\d+)", name):
            layer = int(match[1])
            made[f"synthesis.b{4 << ((layer + 1) // 2)}.conv{0 if layer % 2 else 1}.noise_const"] = value[0, 0]
        elif match := re.fullmatch(r"(conv1|to_rgb1|convs\.\d+|to_rgbs\.\d+)\.(.+)", name):
            made |= _e4e_layer(match[1], match[2], value, path)
        else:
            raise AssetError(f"{path} holds unknown 'decoder.{name[:80]}'; get the released file again.")
    return _with_filters(made)


def _e4e_layer(layer: str, kind: str, value: Tensor, path: str | Path) -> dict[str, Tensor]:
    group, _, number = layer.partition(".")
    k = int(number) if number else -1
    if group == "convs":
        ours = f"synthesis.b{8 << (k // 2)}.conv{k % 2}"
    elif group == "to_rgbs":
        ours = f"synthesis.b{8 << k}.torgb"
    else:
        ours = "synthesis.b4.conv1" if group == "conv1" else "synthesis.b4.torgb"
    if kind == "conv.weight":
        return {f"{ours}.weight": _undivided(value[0])}
    if kind in ("conv.modulation.weight", "conv.modulation.bias"):
        return {f"{ours}.affine.{kind.rsplit('.', 1)[1]}": value}
    if kind == "noise.weight":
        return {f"{ours}.noise_strength": value[0]}
    if kind in ("activate.bias", "bias"):
        return {f"{ours}.bias": value.flatten()}
    raise AssetError(f"{path} holds unknown 'decoder.{layer}.{kind[:60]}'; get the released file again.")


def read_e4e_file(path: str | Path) -> tuple[Mapping[str, Tensor], Tensor]:
    """The state dictionary of the released file (``encoder.*``, ``decoder.*``), and its mean latent.

    Raises:
        AssetError: missing, damaged, or another file; one line.
    """
    content = read_checkpoint(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    average = content.get("latent_avg") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise AssetError(f"{path} holds no 'state_dict'; expected the released e4e_ffhq_encode.pt. Get it again.")
    if not isinstance(average, Tensor) or average.dim() not in (1, 2):
        raise AssetError(f"{path} holds no 'latent_avg'; expected the released e4e_ffhq_encode.pt. Get it again.")
    return state, average


def read_e4e_generator(path: str | Path) -> Generator:
    """The generator beside e4e's encoder (``e4e_ffhq_encode.pt``).

    Raises:
        AssetError: missing, damaged, or another file; one line.
    """
    state, average = read_e4e_file(path)
    decoder = {n.removeprefix("decoder."): t for n, t in state.items() if n.startswith("decoder.")}
    return from_official(from_e4e_layout(decoder, average, path), path)


@in_own_modes
def load_ffhq_generator() -> Generator:
    """StyleGAN2-FFHQ, frozen: from its own pickle, or where that was not converted, from e4e's file.

    Raises:
        AssetError: neither was converted yet; the message holds the command.
    """
    other = assets.status("e4e_generator").state == "ready" and assets.status("stylegan2_ffhq").state != "ready"
    return read_generator(assets.locate("e4e_generator" if other else "stylegan2_ffhq"))[0]


class FFHQFaces(nn.Module):
    """StyleGAN2-FFHQ as a source of faces, called as :class:`~facerecon.stylegan.face_generator.MobileGenerator` is.

    Args:
        generator: mapping and synthesis, 1024 px as released.

    Attributes:
        resolution: px of its pictures.
        num_styles: rows of its W+.
        style_dim: width of W.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.resolution, self.num_styles = generator.size, generator.rows
        self.style_dim = generator.config.w_dim

    @property
    def mean_w(self) -> Tensor:
        """(512,), the mean of W."""
        return self.generator.w_mean

    def forward(self, w: Tensor) -> Tensor:
        """(B, 512), or (B, 18, 512) -> (B, 3, S, S) RGB in [0, 1], float32, with the noise that was learned.

        Raises:
            ShapeError: a code of another shape.
        """
        if w.dim() == 2:
            w = w[:, None].expand(-1, self.num_styles, -1)
        if w.dim() != 3 or w.shape[1:] != (self.num_styles, self.style_dim):
            raise ShapeError(
                f"w must be (B, {self.style_dim}) or (B, {self.num_styles}, {self.style_dim}); got {tuple(w.shape)}. "
                "Codes of W+ serve the generator alone that they were made for."
            )
        return (self.generator.synthesis(w) * 0.5 + 0.5).clamp(0, 1)

    def sample(self, seeds: int | Iterable[int], truncation: float = 0.7) -> Tensor:
        """w (B, 512) of the given seeds, as the open generator's."""
        with torch.no_grad():
            w = self.generator.map(seeded_latents(seeds, self.generator.config.z_dim).to(self.mean_w))
        return torch.lerp(self.mean_w, w, truncation)


@in_own_modes
def load_ffhq_faces(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> FFHQFaces:
    """:func:`load_ffhq_generator` as a source of faces, whose synthesis computes in ``dtype``."""
    generator = load_ffhq_generator()
    if dtype != torch.float32:
        generator.precision = dtype
    return FFHQFaces(generator).to(device).eval().requires_grad_(False)
