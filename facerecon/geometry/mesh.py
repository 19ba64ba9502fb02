"""Normals, edges, Laplacian and subdivision of triangle meshes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array, vstack
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from facerecon.errors import check_shape
from facerecon.modes import own_modes

__all__ = ["edges", "face_components", "laplacian", "subdivision", "vertex_normals"]

_CACHE = WeakIdKeyDictionary()  # index tensor -> {name: (stamps, value)}; dies with the tensor


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def cached(name: str, build: Callable[[], Any], tensor: Tensor, *others: Tensor) -> Any:
    """A value computed once for these very tensors; rebuilt if one is replaced or changed in place.

    Args:
        name: what is kept, with every plain number that it depends on.
        build: makes it, without gradients.
        tensor, others: all the tensors it depends on; the value lives as long as the first.
    """
    entry = _CACHE.setdefault(tensor, {})
    versions = [_version(t) for t in (tensor, *others)]
    if name in entry:
        references, known, value = entry[name]
        if known == versions and all(r() is t for r, t in zip(references, others, strict=True)):
            return value
    with own_modes(), torch.no_grad():
        value = build()
    entry[name] = ([weakref.ref(t) for t in others], versions, value)
    return value


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit vertex normals (B, V, 3): the area-weighted mean of the faces' normals; zero where no face is.

    Args:
        vertices: (B, V, 3).
        faces: (F, 3) int64, counter-clockwise seen from outside.
    """
    check_shape("vertices", vertices, "B V 3")
    check_shape("faces", faces, "F 3")
    corners = vertices.index_select(1, faces.reshape(-1)).view(vertices.shape[0], -1, 3, 3)
    a, b, c = corners[:, :, 0], corners[:, :, 1], corners[:, :, 2]
    scaled = torch.linalg.cross(b - a, c - a)  # of length twice the face's area
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(1, faces[:, corner], scaled)
    square = (total * total).sum(-1, keepdim=True)
    return total * square.clamp(min=1e-24).rsqrt()  # a zero vector has a zero gradient, not NaN


def edges(faces: Tensor) -> Tensor:
    """The undirected edges (E, 2) of a mesh with faces (F, 3), each once, smaller index first, sorted."""
    check_shape("faces", faces, "F 3")
    pairs = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    low, high = pairs.amin(1), pairs.amax(1)
    count = high.max() + 1 if len(high) else 1
    key = torch.unique(low * count + high)  # one number a pair: far quicker than unique rows
    return torch.stack([key // count, key % count], 1)


def laplacian(vertices: Tensor, faces: Tensor) -> Tensor:
    """Uniform Laplacian (B, V, C): the mean of a vertex's neighbors minus the vertex; zero for one without neighbors.

    Args:
        vertices: (B, V, C); any per-vertex quantity.
        faces: (F, 3) int64.
    """
    check_shape("vertices", vertices, "B V C")
    count = vertices.shape[1]

    def build() -> tuple[Tensor, Tensor]:
        pairs = edges(faces)
        return pairs, torch.bincount(pairs.reshape(-1), minlength=count)

    pairs, degree = cached(f"edges of {count} vertices", build, faces)
    first, second = pairs.unbind(1)
    total = torch.zeros_like(vertices)
    total = total.index_add(1, first, vertices.index_select(1, second))
    total = total.index_add(1, second, vertices.index_select(1, first))
    degree = degree[:count, None].to(vertices.dtype)
    return torch.where(degree > 0, total / degree.clamp(min=1) - vertices, torch.zeros_like(vertices))


def face_components(faces: np.ndarray, count: int) -> np.ndarray:
    """(F,) connected component of each of the (F, N) faces, by shared indices, of which there are ``count``."""
    one, other = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    graph = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def subdivision(faces: Tensor, vertex_count: int) -> tuple[csr_array, Tensor]:
    """One Catmull-Clark step as a sparse matrix, so that a mean shape and its bases are refined alike.

    The rim follows its own cubic B-spline.

    New vertices are the old ones, then one per edge, then one per face. Children keep the order of their
    parents (face f yields faces n f ... n f + n - 1 of an n-gon), so geometry and UV faces stay paired.

    Args:
        faces: (F, 3) or (F, 4) int64.
        vertex_count: V.

    Returns:
        matrix: (V', V) scipy CSR, float64, rows summing to 1; ``refined = matrix @ vertices``.
        faces: (n F, 4) int64 quads.
    """
    sides = faces.shape[1]
    check_shape("faces", faces, f"F {sides}", "Give triangles or quads.")
    starts = faces.detach().cpu().numpy()
    face_count = len(starts)
    pairs = np.stack([starts, np.roll(starts, -1, axis=1)], axis=-1).reshape(-1, 2)
    unique, side_edge = np.unique(np.sort(pairs, axis=1), axis=0, return_inverse=True)
    side_edge = side_edge.reshape(-1)
    edge_count = len(unique)
    inner = np.bincount(side_edge, minlength=edge_count) == 2
    corner, side_face = starts.reshape(-1), np.repeat(np.arange(face_count), sides)
    ends, end_edge = unique.reshape(-1), np.repeat(np.arange(edge_count), 2)

    def sparse(values: np.ndarray | float, rows: np.ndarray, columns: np.ndarray, *shape: int) -> csr_array:
        values = np.broadcast_to(np.asarray(values, np.float64), rows.shape)
        return coo_array((values, (rows, columns)), shape=shape).tocsr()

    face_points = sparse(1 / sides, side_face, corner, face_count, vertex_count)
    middles = sparse(0.5, end_edge, ends, edge_count, vertex_count)
    # Edge point: mean of its ends and of both faces' points; on the rim its middle.
    own = diags_array(np.where(inner, 0.5, 1.0))
    to_faces = sparse(np.where(inner[side_edge], 0.25, 0.0), side_edge, side_face, edge_count, face_count)
    edge_points = own @ middles + to_faces @ face_points
    # Vertex point: (Q + 2 R + (n - 3) v) / n, Q and R the mean face point and edge middle, n the valence.
    valence = np.bincount(ends, minlength=vertex_count)
    n = np.maximum(valence, 1)
    rim = np.zeros(vertex_count, bool)
    rim[unique[~inner]] = True
    weight = np.where(rim, 0.0, 1 / (n * np.maximum(np.bincount(corner, minlength=vertex_count), 1)))
    to_faces = sparse(weight[corner], corner, side_face, vertex_count, face_count)
    weight = np.where(rim[ends], np.where(inner[end_edge], 0.0, 0.25), 2 / n[ends] ** 2)
    to_edges = sparse(weight, ends, end_edge, vertex_count, edge_count)
    own = np.where(valence == 0, 1.0, np.where(rim, 0.5, (n - 3) / n))
    vertex_points = diags_array(own) + to_faces @ face_points + to_edges @ middles
    matrix = vstack([vertex_points, edge_points, face_points]).tocsr()
    edge_ids = side_edge.reshape(face_count, sides) + vertex_count
    centers = np.broadcast_to(vertex_count + edge_count + np.arange(face_count)[:, None], edge_ids.shape)
    children = np.stack([starts, edge_ids, centers, np.roll(edge_ids, 1, axis=1)], axis=-1)
    return matrix, torch.from_numpy(children.reshape(-1, 4).astype(np.int64)).to(faces.device)
