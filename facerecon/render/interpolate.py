"""From face ids to differentiable barycentrics, and from those to anything that a vertex carries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.render.rasterize import rasterize
from facerecon.types import Fragments

__all__ = ["Covered", "barycentrics", "covered", "fragments", "interpolate", "list_pixels"]


@dataclass(frozen=True)
class Covered:
    """The P covered pixels of a batch, listed image by image; all work is done on them alone.

    Attributes:
        shape: (B, H, W).
        pixel: (P,) int64, flat index into B * H * W, ascending.
        image: (P,) int64, which image of the batch.
        face: (P,) int64.
        barycentric: (P, 3), perspective-correct.
        counts: covered pixels of each image; they sum to P.
    """

    shape: tuple[int, int, int]
    pixel: Tensor
    image: Tensor
    face: Tensor
    barycentric: Tensor
    counts: tuple[int, ...]

    def at_corners(self, values: Tensor, faces: Tensor) -> Tensor:
        """(P, 3, C): values (B, V, C) at the three corners of every pixel's face."""
        index = faces.index_select(0, self.face)
        if values.shape[0] > 1:
            index = index + (self.image * values.shape[1])[:, None]
        flat = values.reshape(-1, values.shape[-1])
        return flat.index_select(0, index.reshape(-1)).view(-1, 3, values.shape[-1])

    def mix(self, corners: Tensor) -> Tensor:
        """(P, C): barycentric mean of (P, 3, C) corner values."""
        return (self.barycentric[..., None] * corners).sum(1)

    def interpolate(self, values: Tensor, faces: Tensor) -> Tensor:
        """(P, C) of per-vertex values (B, V, C); B may be 1."""
        return self.mix(self.at_corners(values, faces))

    def scatter(self, values: Tensor) -> Tensor:
        """(B, H, W, C) with the (P, C) values in their pixels and 0 elsewhere."""
        batch, height, width = self.shape
        out = values.new_zeros(batch * height * width, values.shape[-1])
        return out.index_copy(0, self.pixel, values).view(batch, height, width, -1)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """One view of the (P, ...) values per image."""
        return torch.split(values, list(self.counts))


def pixel_grid(pixel: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Clip-space x / w and y / w of the centers of flat pixel indices."""
    _, height, width = shape
    rows = torch.div(pixel, width, rounding_mode="floor")
    columns = pixel - rows * width
    rows = rows.remainder(height)
    return (columns.to(dtype) + 0.5) * (2.0 / width) - 1.0, 1.0 - (rows.to(dtype) + 0.5) * (2.0 / height)


def barycentrics(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Perspective-correct barycentrics of points on the screen, straight from clip space.

    With corners moved so that the point is the origin, q_i = (x_i - x w_i, y_i - y w_i), the weights are
    b_i proportional to q_j x q_k (2D homogeneous rasterization): edge_i / w_i up to a common factor.

    Args:
        corners: (P, 3, 4) clip coordinates of the face each point lies in.
        x, y: (P,) the points, in units of x / w and y / w.

    Returns:
        (P, 3), summing to 1. A face that is edge-on gives zeros, never NaN.
    """
    w = corners[..., 3]
    qx = corners[..., 0] - x[:, None] * w
    qy = corners[..., 1] - y[:, None] * w
    edges = qx[:, [1, 2, 0]] * qy[:, [2, 0, 1]] - qx[:, [2, 0, 1]] * qy[:, [1, 2, 0]]
    total = edges.sum(-1, keepdim=True)
    flat = total == 0
    return torch.where(flat, torch.zeros_like(edges), edges / torch.where(flat, torch.ones_like(total), total))


def list_pixels(face_index: Tensor) -> Covered:
    """The covered pixels of (B, H, W) face ids, without barycentrics yet."""
    shape = tuple(face_index.shape)
    flat = face_index.reshape(-1)
    pixel = (flat >= 0).nonzero()[:, 0]
    if shape[0] == 1:
        image, counts = torch.zeros_like(pixel), (len(pixel),)
    else:
        image = torch.div(pixel, shape[1] * shape[2], rounding_mode="floor")
        counts = tuple(torch.bincount(image, minlength=shape[0]).tolist())
    return Covered(shape, pixel, image, flat.index_select(0, pixel), torch.empty(0), counts)


def covered(clip: Tensor, faces: Tensor, face_index: Tensor) -> tuple[Covered, Tensor]:
    """The covered pixels, and their depth (P,) along the camera's z, differentiable in ``clip``.

    Args:
        clip: (B, V, 4).
        faces: (F, 3).
        face_index: (B, H, W) of :func:`rasterize`.
    """
    listed = list_pixels(face_index)
    corners = listed.at_corners(clip, faces)
    weights = barycentrics(corners, *pixel_grid(listed.pixel, listed.shape, clip.dtype))
    return replace(listed, barycentric=weights), (weights * corners[..., 3]).sum(-1)


def fragments(clip: Tensor, faces: Tensor, size: tuple[int, int], backend: str = "auto") -> Fragments:
    """:func:`rasterize`, with differentiable barycentrics and depth, 0 on background, where the face is -1."""
    face_index = rasterize(clip, faces, size, backend)
    found, depth = covered(clip, faces, face_index)
    packed = found.scatter(torch.cat([found.barycentric, depth[:, None]], dim=-1))
    return Fragments(face_index, packed[..., :3], packed[..., 3])


def interpolate(found: Fragments, values: Tensor, faces: Tensor) -> Tensor:
    """Interpolate per-vertex values over an image: (B, H, W, C), 0 on background.

    Args:
        found: fragments of batch B.
        values: (B, V, C), or (1, V, C) for all images.
        faces: (F, 3) the faces that index ``values``: geometry faces for vertices, ``uv_faces`` for UVs.
    """
    check_shape("values", values, "B V C")
    listed = list_pixels(found.face_index)
    weights = found.barycentric.reshape(-1, 3).index_select(0, listed.pixel)
    listed = replace(listed, barycentric=weights)
    return listed.scatter(listed.interpolate(values, faces))
