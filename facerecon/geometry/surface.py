"""The nearest point of a triangle mesh: the search behind iterative-closest-point alignments and correspondences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from facerecon.errors import InputError, check_shape

__all__ = ["Surface", "as_array", "barycentric_of", "closest_on_triangles"]


def as_array(name: str, value: Any, pattern: str) -> NDArray:
    """A tensor or array-like as float64 (or int64 for faces), its shape checked."""
    array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    check_shape(name, array, pattern)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64, copy=False)


def _in_plane(points: NDArray, a: NDArray, b: NDArray, c: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """u, v (N,) of the feet of (N, 3) points in the planes a + u (b - a) + v (c - a), and which of those are none."""
    one, two, offset = b - a, c - a, points - a
    d11, d12, d22 = (np.einsum("nk,nk->n", x, y) for x, y in ((one, one), (one, two), (two, two)))
    p1, p2 = np.einsum("nk,nk->n", offset, one), np.einsum("nk,nk->n", offset, two)
    area = d11 * d22 - d12 * d12
    flat = area <= 1e-14 * d11 * d22
    safe = np.where(flat, 1.0, area)
    u, v = (d22 * p1 - d12 * p2) / safe, (d11 * p2 - d12 * p1) / safe
    return u, v, flat


def closest_on_triangles(points: NDArray, corners: NDArray) -> NDArray:
    """Closest point of a triangle to a point, for N pairs: (N, 3).

    Args:
        points: (N, 3).
        corners: (N, 3, 3); degenerate triangles (a line, a point) are allowed.
    """
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    best, best_square = None, None
    for start, end in ((a, b), (b, c), (c, a)):
        along = end - start
        length = np.einsum("nk,nk->n", along, along)
        share = np.einsum("nk,nk->n", points - start, along) / np.where(length > 0, length, 1.0)
        place = start + np.clip(share, 0, 1)[:, None] * along
        square = ((place - points) ** 2).sum(1)
        if best is None:
            best, best_square = place, square
        else:
            nearer = square < best_square
            best, best_square = np.where(nearer[:, None], place, best), np.where(nearer, square, best_square)
    # inside the triangle the foot of the perpendicular is closer than any edge
    u, v, flat = _in_plane(points, a, b, c)
    inside = (u >= 0) & (v >= 0) & (u + v <= 1) & ~flat
    return np.where(inside[:, None], a + u[:, None] * (b - a) + v[:, None] * (c - a), best)


class Surface:
    """A triangle mesh that finds its point nearest to a given one.

    Args:
        vertices: (V, 3).
        faces: (F, 3) int.

    Attributes:
        corners: (F, 3, 3).
        centers: (F, 3).
        normals: (F, 3) unit, 0 where a face has no area.

    Raises:
        InputError: there is no face, or a vertex that is used is not finite.
    """

    def __init__(self, vertices: ArrayLike, faces: ArrayLike) -> None:
        vertices, faces = as_array("vertices", vertices, "V 3"), as_array("faces", faces, "F 3")
        if len(faces) == 0:
            raise InputError("a surface needs at least one face; got 0. Give the faces of the head mesh.")
        self.corners = vertices[faces]
        if not np.isfinite(self.corners).all():
            raise InputError("a surface needs finite vertices; got NaN or infinity. Check the fit that made them.")
        self.centers = self.corners.mean(1)
        a, b, c = self.corners[:, 0], self.corners[:, 1], self.corners[:, 2]
        normals = np.cross(b - a, c - a)
        self.normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
        radius = np.linalg.norm(self.corners - self.centers[:, None], axis=2).max(1)
        self.tree = cKDTree(self.centers)
        # triangles by size: a triangle can only be nearest if its center is within (bound + radius) of the point
        size = np.ceil(np.log2(np.maximum(radius, radius.max() * 1e-6)))
        self.sizes = []
        for level in np.unique(size):
            ids = np.flatnonzero(size == level)
            self.sizes.append((ids, cKDTree(self.centers[ids]), radius[ids].max()))

    def _candidates(self, points: NDArray, count: int) -> tuple[NDArray, NDArray, NDArray]:
        """The triangles with the nearest centers (N, K), their nearest places (N, K, 3) and squared distances."""
        count = min(count, len(self.centers))
        ids = self.tree.query(points, k=count)[1].reshape(len(points), count)
        places = closest_on_triangles(np.repeat(points, count, 0), self.corners[ids.ravel()]).reshape(-1, count, 3)
        return ids, places, ((places - points[:, None]) ** 2).sum(2)

    def near(self, points: NDArray) -> NDArray:
        """Nearest point among the triangles with the nearest centers: quick, seldom off by a neighbor; (N, 3)."""
        _, places, square = self._candidates(points, 12)
        return places[np.arange(len(points)), square.argmin(1)]

    def nearest(self, points: ArrayLike) -> NDArray:
        """Exact nearest point of the surface to each of (N, 3) points; (N, 3)."""
        points = as_array("points", points, "N 3")
        best = self.near(points)
        bound = np.linalg.norm(best - points, axis=1)
        for ids, tree, radius in self.sizes:
            found = tree.query_ball_point(points, (bound + radius) * (1 + 1e-9))
            counts = np.array([len(row) for row in found])
            if counts.sum() == 0:
                continue
            rows = np.repeat(np.arange(len(points)), counts)
            triangles = ids[np.concatenate([np.asarray(row, dtype=np.int64) for row in found if row])]
            places = closest_on_triangles(points[rows], self.corners[triangles])
            distance = np.linalg.norm(places - points[rows], axis=1)
            order = np.lexsort((distance, rows))
            first = order[np.unique(rows[order], return_index=True)[1]]
            nearer = first[distance[first] < bound[rows[first]]]
            best[rows[nearer]], bound[rows[nearer]] = places[nearer], distance[nearer]
        return best

    def distance(self, points: ArrayLike) -> NDArray:
        """Exact distance of each of (N, 3) points to the surface; (N,)."""
        points = as_array("points", points, "N 3")
        return np.linalg.norm(self.nearest(points) - points, axis=1)

    def locate(
        self, points: ArrayLike, normals: ArrayLike | None = None, min_cosine: float = 0.3, candidates: int = 24
    ) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Nearest place of the surface to each point, as a face and barycentric weights.

        Quick as :meth:`near`. With normals, only faces that look the same way count, so that a point on the upper lip
        does not find the lower one, nor a cheek the inside of the mouth; where no candidate does, the nearest is taken.

        Args:
            points: (N, 3).
            normals: (N, 3) unit vectors, or None.
            min_cosine: of the angle between a point's normal and a face's.
            candidates: faces tried for each point.

        Returns:
            face (N,) int64, barycentric (N, 3), distance (N,), and whether the face looks the right way (N,) bool.
        """
        points = as_array("points", points, "N 3")
        normals = None if normals is None else as_array("normals", normals, f"{len(points)} 3")
        parts = [np.empty((0, 5 + 1))]
        for start in range(0, len(points), 16384):
            some = points[start : start + 16384]
            ids, places, square = self._candidates(some, candidates)
            fits = np.ones_like(square, dtype=bool)
            if normals is not None:
                fits = np.einsum("nkc,nc->nk", self.normals[ids], normals[start : start + 16384]) > min_cosine
            pick = np.where(fits | ~fits.any(1, keepdims=True), square, np.inf).argmin(1)
            rows = np.arange(len(some))
            face = ids[rows, pick]
            weights = barycentric_of(places[rows, pick], self.corners[face])
            parts.append(np.column_stack([face, weights, np.sqrt(square[rows, pick]), fits[rows, pick]]))
        found = np.concatenate(parts)
        return found[:, 0].astype(np.int64), found[:, 1:4], found[:, 4], found[:, 5] > 0.5


def barycentric_of(points: NDArray, corners: NDArray) -> NDArray:
    """Barycentric weights of points that lie on their triangles, clamped to [0, 1] and summing to 1: (N, 3).

    Args:
        points: (N, 3).
        corners: (N, 3, 3); in a degenerate triangle the nearest corner takes all.
    """
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    u, v, flat = _in_plane(points, a, b, c)
    weights = np.clip(np.stack([1 - u - v, u, v], 1), 0, 1)
    if flat.any():
        nearest = ((corners[flat] - points[flat][:, None]) ** 2).sum(2).argmin(1)
        weights[flat] = np.eye(3)[nearest]
    return weights / weights.sum(1, keepdims=True)
