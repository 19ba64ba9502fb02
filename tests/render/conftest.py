"""Small meshes with closed forms, and a real head where the reference data is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from facerecon.types import MeshTopology


def make_topology(faces: Tensor, uvs: Tensor, uv_faces: Tensor | None = None, **regions: Tensor) -> MeshTopology:
    """A topology without landmarks."""
    none = torch.zeros(0, dtype=torch.int64)
    return MeshTopology(
        faces=faces,
        uvs=uvs,
        uv_faces=faces if uv_faces is None else uv_faces,
        landmark_faces=torch.zeros(0, 1, dtype=torch.int64),
        landmark_barycentric=torch.zeros(0, 1, 3),
        mesh_points=none,
        mesh_point_faces=none,
        mesh_point_barycentric=torch.zeros(0, 3),
        mirror=none,
        regions=regions,
    )


def make_sphere(rows: int = 24, columns: int = 32, radius: float = 1.0) -> tuple[Tensor, MeshTopology]:
    """Unit sphere (1, V, 3) facing +z in the middle of its map, one column of vertices doubled at the seam."""
    v, u = torch.meshgrid(torch.linspace(0.001, 0.999, rows + 1), torch.linspace(0, 1, columns + 1), indexing="ij")
    polar, turn = math.pi * (1 - v), 2 * math.pi * (u - 0.5)
    vertices = torch.stack([polar.sin() * turn.sin(), polar.cos(), polar.sin() * turn.cos()], -1).view(1, -1, 3)
    a = (torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)).reshape(-1)
    b, c, d = a + 1, a + columns + 2, a + columns + 1
    faces = torch.stack([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)], 1).view(-1, 3)
    return vertices * radius, make_topology(faces, torch.stack([u, v], -1).view(-1, 2))


def make_quad(half: float = 0.8) -> tuple[Tensor, MeshTopology]:
    """A square in the plane z = 0 that shows its whole map, upright, to +z."""
    corners = torch.tensor([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return corners[None] * half, make_topology(faces, (corners[:, :2] + 1) / 2)


@pytest.fixture(scope="session")
def sphere() -> Callable[..., tuple[Tensor, MeshTopology]]:
    return make_sphere


@pytest.fixture(scope="session")
def quad() -> Callable[..., tuple[Tensor, MeshTopology]]:
    return make_quad


@pytest.fixture(scope="session")
def topology_of() -> Callable[..., MeshTopology]:
    return make_topology


@pytest.fixture(scope="session")
def real_head(reference: Path) -> tuple[Tensor, MeshTopology, Tensor]:
    """A head of 20,481 vertices in the camera's view, and its texture (1, 3, 1024, 1024)."""
    from PIL import Image

    rows = {"v": [], "vt": [], "f": []}
    for line in (reference / "ffhq_uv" / "teaser1_hifi3dpp_head.obj").read_text().splitlines():
        kind, *values = line.split() or [""]
        if kind in rows:
            rows[kind].append([[int(i) for i in v.split("/")[:2]] for v in values] if kind == "f" else values)
    corners = torch.tensor(rows["f"]) - 1
    vertices = torch.tensor(np.array(rows["v"], dtype=np.float32)[:, :3])
    uvs = torch.tensor(np.array(rows["vt"], dtype=np.float32)[:, :2])
    pixels = np.asarray(Image.open(reference / "ffhq_uv" / "teaser1_texture.png").convert("RGB"))
    texture = torch.tensor(pixels).permute(2, 0, 1)[None] / 255
    vertices = (vertices + torch.tensor([0.0, 0.25, 0.3])) * 0.8
    return vertices[None], make_topology(corners[..., 0].contiguous(), uvs, corners[..., 1].contiguous()), texture
