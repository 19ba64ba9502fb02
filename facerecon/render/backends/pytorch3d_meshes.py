"""Face ids by PyTorch3D: an independent implementation to check ours against; slow on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import ConfigError

__all__ = ["face_ids"]


def face_ids(screen: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> Tensor:
    """Face ids by ``pytorch3d.renderer.mesh.rasterize_meshes`` in float32."""
    try:
        from pytorch3d.renderer.mesh import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError:
        raise ConfigError(
            "backend 'pytorch3d' is not installed; install the extra `facerecon[pytorch3d]` or use 'auto'."
        ) from None
    height, width = size
    x, y, near, w = screen.unbind(-1)
    # Its frame: the shorter side spans [-1, 1], +x is left, +y is up, and z must be positive.
    half = min(height, width) / 2
    depth = torch.where(w > 0, 2.0 - near, torch.full_like(near, -10.0))
    points = torch.stack([(width / 2 - x) / half, (height / 2 - y) / half, depth], dim=-1).float()
    meshes = Meshes(points, faces[None].expand(len(points), -1, -1))
    ids = rasterize_meshes(
        meshes,
        image_size=(height, width),
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=False,
        cull_backfaces=cull,
        bin_size=0,
    )[0][..., 0]
    offset = torch.arange(len(points), device=ids.device)[:, None, None] * faces.shape[0]
    return torch.where(ids >= 0, ids - offset, ids)
