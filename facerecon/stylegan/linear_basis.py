"""File format of the linear texture basis: small enough to ship, exact enough to fit with.

The components are mirror symmetric, change color more slowly than brightness, and fade in strength, so they are
stored as the left half of a YUV map, luma at full and chroma at half resolution, in 8 bits with a scale each.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import AssetError, ShapeError
from facerecon.imaging.color import rgb_to_yuv, yuv_to_rgb
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole

__all__ = ["change_of_basis", "principal_components", "quantized", "read_linear_basis", "write_linear_basis"]

_KEYS = ("mean", "luma", "chroma", "luma_scale", "chroma_scale")


def principal_components(textures: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of maps ('PCA tex basis', Table 5).

    Args:
        textures: (N, 3, S, S). Maps that are their own mirror image give components that are.
        count: K, at most N - 1.

    Returns:
        Mean (3, S, S), components (K, 3, S, S) of one standard deviation each, strongest first, and all variances
        (N - 1,), sums over a map.

    Raises:
        ShapeError: fewer than K + 1 maps.
    """
    if len(textures) <= count:
        raise ShapeError(f"{count} components need at least {count + 1} maps; got {len(textures)}.")
    rows = textures.flatten(1)
    mean = rows.mean(0)
    rows = rows - mean
    values, vectors = torch.linalg.eigh((rows @ rows.T).double() / (len(rows) - 1))
    values, vectors = values.flip(0)[:-1].clamp(min=0), vectors.flip(1)[:, :-1]
    # rows.T @ v has length sqrt(value (N - 1)); one standard deviation is sqrt(value)
    basis = (vectors[:, :count].float().T @ rows) / math.sqrt(len(rows) - 1)
    basis = basis * torch.where(basis.sum(1, keepdim=True) < 0, -1.0, 1.0)  # a positive coefficient brightens
    shape = textures.shape[1:]
    return mean.view(shape), basis.view(count, *shape), values.float()


def change_of_basis(mean: Tensor, basis: Tensor, new_mean: Tensor, new_basis: Tensor) -> tuple[Tensor, Tensor]:
    """How codes of one linear basis are said in another: the least-squares code of what they decode to.

    Args:
        mean, new_mean: (3, S, S).
        basis: (K, 3, S, S).
        new_basis: (L, 3, S, S).

    Returns:
        Matrix (L, K) and offset (L,): a code z (K,) becomes ``matrix @ z + offset``.
    """
    rows = new_basis.flatten(1).double()
    seen = torch.cat([basis.flatten(1), (mean - new_mean).flatten()[None]]).double()
    found = torch.linalg.solve(rows @ rows.T, rows @ seen.T).float()
    return found[:, :-1], found[:, -1]


def write_linear_basis(path: str | Path, mean: Tensor, basis: Tensor, metadata: dict | None = None) -> None:
    """Write a linear texture model.

    Args:
        path: safetensors file to write.
        mean: (3, S, S) in [0, 1], any.
        basis: (K, 3, S, S) RGB, one standard deviation each, symmetric under a horizontal flip; S divisible by 4.
        metadata: plain data for the header.

    Raises:
        ShapeError: sizes that do not fit, or a component that is not symmetric.
    """
    size, width = basis.shape[-2:]
    if tuple(mean.shape) != (3, size, width) or size != width or size % 4:
        raise ShapeError(f"mean must be (3, S, S) and basis (K, 3, S, S); got {mean.shape} and {basis.shape}.")
    if (basis - basis.flip(-1)).abs().max() > 1e-3 * basis.abs().max():
        raise ShapeError("basis must be symmetric under a horizontal flip; average it with its mirror image.")
    half = rgb_to_yuv(basis)[..., : size // 2]
    luma, luma_scale = quantized(half[:, 0])
    chroma, chroma_scale = quantized(F.avg_pool2d(half[:, 1:], 2))
    tensors = {"mean": mean.half(), "luma": luma, "luma_scale": luma_scale}
    tensors |= {"chroma": chroma, "chroma_scale": chroma_scale}
    write_whole(path, safetensors_bytes(tensors, {"facerecon": json.dumps(metadata or {}, sort_keys=True)}))


def quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (K, ...) as int8, and the scale (K,) of each."""
    scale = values.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    shape = (-1, *[1] * (values.dim() - 1))
    return (values / scale.view(shape)).round().to(torch.int8), scale.float()


def read_linear_basis(path: str | Path, components: int | None = None) -> tuple[Tensor, Tensor]:
    """Read what :func:`write_linear_basis` wrote.

    Args:
        path: the file.
        components: how many to read, strongest first; None: all.

    Returns:
        mean (3, S, S) and basis (K, 3, S, S), float32, RGB.

    Raises:
        AssetError: not such a file, or numbers in it that are not finite.
    """
    advice = "restore it, or rebuild it with tools/build_texture_basis.py"
    data, _ = read_safetensors(path, "a linear texture basis", advice, _KEYS)
    count, height, _ = data["luma"].shape if data["luma"].dim() == 3 else (0, 0, 0)
    expected = {
        "mean": (3, height, height), "luma": (count, height, height // 2), "luma_scale": (count,),
        "chroma": (count, 2, height // 2, height // 4), "chroma_scale": (count,),
    }  # fmt: skip
    for key, shape in expected.items():
        if tuple(data[key].shape) != shape or not count:
            found = tuple(data[key].shape)
            raise AssetError(f"{path} is not a linear texture basis ('{key}' is {found}, expected {shape}); {advice}.")
    kept = slice(components)
    luma = data["luma"][kept].float() * data["luma_scale"][kept, None, None]
    chroma = data["chroma"][kept].float() * data["chroma_scale"][kept, None, None, None]
    # Mirror before enlarging, so that nothing happens at the midline.
    chroma = torch.cat([chroma, chroma.flip(-1)], -1)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    yuv = torch.cat([torch.cat([luma, luma.flip(-1)], -1)[:, None], chroma], 1)
    return data["mean"].float(), yuv_to_rgb(yuv)
