"""Which face does each pixel see? One function, several backends."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from facerecon.errors import ConfigError, check_shape, nearest_name

__all__ = ["BACKENDS", "ENVIRONMENT", "choose_backend", "rasterize"]

BACKENDS = {
    "numba": "numba_bands",
    "torch": "torch_scatter",
    "pytorch3d": "pytorch3d_meshes",
    "nvdiffrast": "nvdiffrast_raster",
}
ENVIRONMENT = "FACERECON_RASTERIZER"


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def choose_backend(backend: str = "auto", device: str | torch.device = "cpu") -> str:
    """The backend that will run: "auto" obeys $FACERECON_RASTERIZER, then takes numba on a CPU, else torch.

    Args:
        backend: "auto", "numba", "torch", "pytorch3d" or "nvdiffrast" (an adapter that we could not test).
        device: where the tensors live.

    Raises:
        ConfigError: the name is unknown, the package is missing, numba is asked to work on a GPU or nvdiffrast on a
        CPU.
    """
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT, "").strip().lower() or "auto"
    on_cpu = torch.device(device).type == "cpu"
    if backend == "auto":
        return "numba" if on_cpu and _installed("numba") else "torch"
    if backend not in BACKENDS:
        raise ConfigError(nearest_name(backend, ["auto", *BACKENDS], "rasterizer backend"))
    if backend == "numba" and not on_cpu:
        raise ConfigError(f"backend 'numba' needs CPU tensors, got {device}; use 'auto' or 'torch'.")
    if backend == "nvdiffrast" and on_cpu:
        raise ConfigError(f"backend 'nvdiffrast' needs CUDA tensors, got {device}; use 'auto' or 'numba'.")
    if backend == "numba" and not _installed("numba"):
        raise ConfigError("backend 'numba' is not installed; run `pip install numba` or use 'torch'.")
    return backend


def to_screen(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, V, 4) float64: x and y in pixels (y down), nearness (1 at the near plane, 0 at the far one), w."""
    clip = clip.detach().double()
    height, width = size
    w = clip[..., 3]
    safe = torch.where(w > 0, w, torch.ones_like(w))
    x, y, z = (clip[..., i] / safe for i in range(3))
    return torch.stack([(x + 1) * (width / 2), (1 - y) * (height / 2), 0.5 - 0.5 * z, w], dim=-1)


@torch.no_grad()
def rasterize(clip: Tensor, faces: Tensor, size: tuple[int, int], backend: str = "auto", cull: bool = True) -> Tensor:
    """Index of the nearest face at each pixel center: (B, H, W) int64, -1 where there is no face.

    All backends compute the same thing; only ids leave this function. What is interpolated is recomputed from
    clip space in torch (:mod:`facerecon.render.interpolate`), which gives one gradient path for all of them.

    Args:
        clip: (B, V, 4) clip coordinates; x / w from -1 (left) to 1, y / w from -1 (bottom) to 1, z / w from
            -1 (near) to 1 (far).
        faces: (F, 3) int64.
        size: (H, W) in pixels.
        backend: "auto", "numba", "torch", "pytorch3d" or "nvdiffrast"; see :func:`choose_backend`.
        cull: drop faces that are clockwise on the screen (seen from behind).

    Raises:
        ConfigError: unknown or missing backend.
        ShapeError: wrong shapes.
    """
    check_shape("clip", clip, "B V 4")
    check_shape("faces", faces, "F 3")
    name = choose_backend(backend, clip.device)
    height, width = (int(n) for n in size)
    if faces.shape[0] == 0:
        return torch.full((clip.shape[0], height, width), -1, dtype=torch.int64, device=clip.device)
    module = importlib.import_module(f"facerecon.render.backends.{BACKENDS[name]}")
    return module.face_ids(to_screen(clip, (height, width)), faces.long(), (height, width), bool(cull))
