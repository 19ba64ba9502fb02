"""The inside of a mouth, drawn: teeth, tongue, and what lies around them.

A photo shows little of it, and where a head's teeth are not the person's, unwrapping paints teeth on the tongue.
"""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from facerecon.render.interpolate import interpolate
from facerecon.render.uv import region_texels, uv_raster
from facerecon.types import MeshTopology

__all__ = ["draw_mouth"]

TEETH, GUMS, TONGUE, THROAT = (0.80, 0.76, 0.69), (0.60, 0.32, 0.31), (0.46, 0.21, 0.20), (0.38, 0.14, 0.13)
"""Encoded sRGB albedos in [0, 1]."""

_CROWN = 0.10  # dm, height of an incisor's crown
_RIM = 0.15  # dm behind the lips over which their color goes over into the throat's
_BACK = 0.35  # dm behind the incisors where little light arrives
_DARKEST = 0.45  # of the light in front, there


def _between(value: Tensor, low: float, high: float) -> Tensor:
    t = ((value - low) / (high - low)).clamp(0, 1)
    return (t * t * (3 - 2 * t))[:, None]


def _teeth(places: Tensor, vertices: Tensor, teeth: Tensor) -> Tensor:
    """(N, 3) colors of points (N, 3) of the rows of teeth, whose (M,) vertices are ``teeth``."""
    middle = vertices[teeth, 1].mean()
    upper = places[:, 1] > middle
    rows = vertices[teeth]
    edges = rows[rows[:, 1] > middle, 1].min(), rows[rows[:, 1] <= middle, 1].max()
    height = torch.where(upper, places[:, 1] - edges[0], edges[1] - places[:, 1])
    gums = _between(height, 0.9 * _CROWN, 1.25 * _CROWN)
    color = places.new_tensor(TEETH) * (1 - 0.10 * _between(-height, -0.03, 0.0))  # edges let light through
    return torch.lerp(color, places.new_tensor(GUMS).expand_as(color), gums)


@torch.no_grad()
def draw_mouth(texture: Tensor, vertices: Tensor, topology: MeshTopology) -> Tensor:
    """Textures (B, 3, S, S) whose teeth are ivory, whose tongue and mouth are dark red, and lighter behind the lips.

    Args:
        texture: (B, 3, S, S) in [0, 1].
        vertices: (V, 3), unposed and neutral, of any head of the model.
        topology: of the head model; without teeth and tongue of its own the texture is given back.
    """
    if not {"mouth", "teeth", "tongue", "lips"} <= set(topology.regions):
        return texture
    size, regions = texture.shape[-1], topology.regions
    inside = region_texels(topology, ("mouth", "teeth", "tongue"), size)[0, 0] > 0
    texels = [region_texels(topology, name, size)[0, 0][inside] > 0 for name in ("teeth", "tongue")]
    places = interpolate(uv_raster(topology, size), vertices[None], topology.faces)[0][inside]
    teeth = topology.faces[regions["teeth"]].unique()
    shade = 1 - (1 - _DARKEST) * _between(vertices[teeth, 2].max() - places[:, 2], 0.0, _BACK)
    lips = region_texels(topology, "lips", size)
    rim = vertices[topology.faces[regions["lips"]].unique()].cpu().numpy()
    away = torch.from_numpy(cKDTree(rim).query(places.cpu().numpy())[0]).to(places)
    result = texture.clone()
    for b in range(len(texture)):
        lip = (texture[b : b + 1] * lips).sum((2, 3)) / lips.sum()
        color = torch.lerp(0.75 * lip, places.new_tensor(THROAT).expand(len(places), 3), _between(away, 0.0, _RIM))
        color = color.where(~texels[1][:, None], places.new_tensor(TONGUE))
        color = (color * shade).where(~texels[0][:, None], _teeth(places, vertices, teeth) * shade**1.5)
        result[b, :, inside] = color.clamp(0, 1).T
    return result
