"""REALY's four regions (Chai et al., ECCV 2022) on any head with 68 landmarks, and what coefficients change in them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from facerecon.errors import ConfigError, ShapeError
from facerecon.geometry.camera import clip_coordinates
from facerecon.geometry.mesh import vertex_normals
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.geometry.surface import as_array
from facerecon.morphable import MorphableModel
from facerecon.render.rasterize import rasterize
from facerecon.types import Camera

__all__ = [
    "ALIGNMENT_LANDMARKS",
    "MILLIMETERS",
    "REGION_LANDMARKS",
    "ambient_visibility",
    "face_regions",
    "head_region_forms",
    "head_regions",
    "region_forms",
    "vertex_areas",
    "visible_vertices",
]

ALIGNMENT_LANDMARKS = (36, 39, 42, 45, 33, 48, 54)
"""Eye corners, base of the nose, mouth corners: the global alignment."""

REGION_LANDMARKS = {
    "nose": (27, 28, 29, 30, 32, 33, 34),
    "mouth": tuple(range(48, 60)),
    "forehead": (27, 36, 39, 42, 45),
    "cheek": (32, 34, 36, 45, 48, 54),
}
"""Landmarks that hold each region in place while it is aligned.

Unlike REALY, whose landmarks are the same points on every mesh: brows and alae are left out, because head models place
them differently (the upper edge of the brow or its middle), which would tilt the forehead and the nose.
"""

KEYPOINT_WEIGHT = {"cheek": 0.25}
"""Weight of a region's landmarks, all together, relative to all its points; 1 for a region that is not listed."""

MILLIMETERS = 100.0
"""One world unit is 0.1 m."""

OPEN = 0.3
"""Least :func:`ambient_visibility` outside of cavities: the fold beside the ala has more, a nostril less."""


def vertex_areas(vertices: NDArray, faces: NDArray) -> NDArray:
    """A third of the area of the faces around each vertex; (V,)."""
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 6
    return np.bincount(faces.ravel(), np.repeat(area, 3), len(vertices))


def _between(value: NDArray, places: ArrayLike, widths: ArrayLike) -> NDArray:
    """Piecewise linear function of ``value``; places need not be sorted."""
    order = np.argsort(places)
    return np.interp(value, np.asarray(places)[order], np.asarray(widths)[order])


def ambient_visibility(vertices: ArrayLike, faces: ArrayLike, count: int = 64, size: int = 512) -> NDArray:
    """(V,) in [0, 1], share of the directions above the surface from which a vertex is seen, weighted by their cosine.

    This is 1 - ambient occlusion: 1 on a convex surface, near 0 deep in a cavity, whatever the size of either.

    Args:
        vertices: (V, 3).
        faces: (F, 3), outward.
        count: directions, evenly over the sphere.
        size: pixels of each orthographic view of the whole mesh.
    """
    points = torch.from_numpy(as_array("vertices", vertices, "V 3")).double()
    triangles = torch.from_numpy(as_array("faces", faces, "F 3"))
    normals = torch.nn.functional.normalize(vertex_normals(points[None], triangles)[0], dim=1)
    points = points - (points.amax(0) + points.amin(0)) / 2
    points = points / points.norm(dim=1).max()
    height = 1 - 2 * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    turn = torch.arange(count) * (np.pi * (3 - 5**0.5))  # a Fibonacci sphere
    ring = (1 - height**2).sqrt()
    total, seen = torch.zeros(2, len(points), dtype=torch.float64)
    for toward in torch.stack([ring * turn.cos(), height, ring * turn.sin()], 1):
        right = torch.nn.functional.normalize(
            torch.linalg.cross(torch.eye(3).double()[toward.abs().argmin()], toward), dim=0
        )
        view = points @ torch.stack([right, torch.linalg.cross(toward, right), -toward], 1)
        clip = torch.cat([view, torch.ones_like(view[:, :1])], 1)[None].float()
        index = rasterize(clip, triangles, (size, size))
        in_view = torch.zeros(len(points), dtype=torch.bool)
        in_view[triangles[index[index >= 0].unique()].unique()] = True
        cosine = (normals @ toward).clamp(min=0)
        total += cosine
        seen += cosine * in_view
    return (seen / total.clamp(min=1e-12)).numpy()


def visible_vertices(vertices: ArrayLike, faces: ArrayLike, yaws: tuple[float, ...] = (0.0, 0.6, -0.6)) -> NDArray:
    """(V,) bool, what a scanner would see from in front and from the sides: not nostrils, mouth and back of the head.

    A view from in front looks a little way into nostrils; what is seen from few directions only is left out, too
    (:data:`OPEN`).

    Args:
        vertices: (V, 3), upright and looking at +z, world units.
        faces: (F, 3).
        yaws: angles of the views in radians.
    """
    points = torch.from_numpy(as_array("vertices", vertices, "V 3")).float()
    triangles = torch.from_numpy(as_array("faces", faces, "F 3"))
    turns = euler_to_matrix(torch.tensor([[0.0, yaw, 0.0] for yaw in yaws]))
    camera = Camera.deep3d(768).replace(near=2.0, far=25.0)
    index = rasterize(clip_coordinates(camera, points @ turns.mT), triangles, (768, 768))
    seen = np.zeros(len(points), dtype=bool)
    seen[triangles[index[index >= 0].unique()].unique().numpy()] = True
    return seen & (ambient_visibility(vertices, faces) > OPEN)


def face_regions(
    vertices: ArrayLike, faces: ArrayLike, landmarks: ArrayLike, skin: ArrayLike | None = None
) -> dict[str, NDArray]:
    """REALY's four regions on any head with 68 landmarks, as masks of its vertices.

    The head is looked at from the front: x along the line of the eye corners, y up in the plane of eyes and mouth
    corners, d the distance between the outer eye corners. Then

    * nose: between the inner eye corners' height and the base of the nose, as wide as 0.18 d at the top and
      1.25 times the alae below;
    * mouth: an ellipse around both lips, a third wider and halfway to the base of the nose and to the chin;
    * forehead: the brows and above, up to 0.55 d higher, no wider than the brows;
    * cheek: below the lower lids and above the mouth corners, outside of the nose, inside of 0.92 of the jaw's width.

    Args:
        vertices: (V, 3), neutral, upright and looking at +z, world units.
        faces: (F, 3).
        landmarks: (68, 3).
        skin: (V,) bool, the vertices that may be chosen (no eyeballs, teeth or mouth bag); all if left out. Of these
            only :func:`visible_vertices` are.

    Returns:
        {"nose", "mouth", "forehead", "cheek": (V,) bool}; no vertex is in two of them.
    """
    vertices, points = as_array("vertices", vertices, "V 3"), as_array("landmarks", landmarks, "68 3")
    across = points[[42, 45]].mean(0) - points[[36, 39]].mean(0)
    across /= np.linalg.norm(across)
    up = points[[36, 45]].mean(0) - points[[48, 54]].mean(0)
    up -= up @ across * across
    up /= np.linalg.norm(up)
    middle = points[[36, 45]].mean(0)
    x, y = (vertices - middle) @ across, (vertices - middle) @ up
    px, py = (points - middle) @ across, (points - middle) @ up
    size = px[45] - px[36]
    may = visible_vertices(vertices, faces)
    if skin is not None:
        may &= np.asarray(skin).astype(bool)

    alae = 1.25 * (px[35] - px[31]) / 2
    base = py[33] - 0.05 * size
    inner = (py[39] + py[42]) / 2
    bridge = _between(y, [base, py[30], inner], [alae, alae, 0.09 * size])
    nose = may & (y > base) & (y < inner) & (np.abs(x) < bridge)

    top, bottom = (py[33] + py[51]) / 2, (py[57] + py[8]) / 2
    half_width, half_height = 1.33 * (px[54] - px[48]) / 2, (top - bottom) / 2
    mouth = may & ~nose & ((x / half_width) ** 2 + ((y - (top + bottom) / 2) / half_height) ** 2 < 1)

    brow = _between(x, px[17:27], py[17:27])
    forehead = may & (y > brow - 0.05 * size) & (y < brow + 0.55 * size) & (x > px[17]) & (x < px[26])

    lids = [36, 41, 40, 39, 42, 47, 46, 45]
    lid = _between(x, px[lids], py[lids]) - 0.10 * size
    right, left = (_between(y, py[jaw], px[jaw]) for jaw in (list(range(0, 9)), list(range(8, 17))))
    cheek = may & ~nose & ~mouth & (y < lid) & (y > py[[48, 54]].mean()) & (x > 0.92 * right) & (x < 0.92 * left)
    cheek &= np.abs(x) > np.where(y > base, bridge, alae)

    regions = {"nose": nose, "mouth": mouth, "forehead": forehead, "cheek": cheek}
    for name, mask in regions.items():
        if not mask.any():
            raise ConfigError(f"the head has no vertex in region '{name}'; check the order and frame of its landmarks.")
    return regions


def _motions(points: NDArray) -> NDArray:
    """(N, 3) -> (N, 3, 7): how points move in shifts along and small turns around the axes, and in a small growth."""
    turns = np.stack([np.cross(axis, points) for axis in np.eye(3)], -1)
    return np.concatenate([np.broadcast_to(np.eye(3), (len(points), 3, 3)), turns, points[..., None]], -1)


def region_forms(
    vertices: ArrayLike,
    faces: ArrayLike,
    landmarks: ArrayLike,
    changes: ArrayLike,
    landmark_changes: ArrayLike,
    regions: dict[str, ArrayLike],
) -> dict[str, NDArray]:
    """Region-wise errors of heads that differ little, as quadratic forms of their coefficients.

    ``vertices + x @ changes`` is compared with ``vertices`` as :func:`facerecon.evaluation.region_errors` compares two
    heads, to the first order: after the similarity of the seven landmarks and the region's rigid motion, distances
    along the normals are left. ``sqrt(x @ form @ x)`` is their root mean square over the region; the
    region-wise error, a mean of distances, is a little below.

    Args:
        vertices: (V, 3), world units.
        faces: (F, 3).
        landmarks: (68, 3).
        changes: (K, V, 3), of a unit of each coefficient.
        landmark_changes: (K, 68, 3).
        regions: {name: (V,) bool}; see :func:`face_regions`.

    Returns:
        {name: (K, K)}, float64, in square millimeters.

    Raises:
        ShapeError: arrays do not fit.
    """
    points, keys = as_array("vertices", vertices, "V 3"), as_array("landmarks", landmarks, "68 3")
    faces = as_array("faces", faces, "F 3")
    moved = np.asarray(changes, dtype=np.float64)
    keys_moved = np.asarray(landmark_changes, dtype=np.float64)
    if moved.shape[1:] != points.shape or keys_moved.shape != (len(moved), 68, 3):
        raise ShapeError(
            f"changes must be (K, {len(points)}, 3) and landmark_changes (K, 68, 3); got {moved.shape} and "
            f"{keys_moved.shape}."
        )
    middle = keys.mean(0)
    points, keys = points - middle, keys - middle
    normals = vertex_normals(torch.from_numpy(points)[None], torch.from_numpy(faces))[0].numpy()
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    areas = vertex_areas(points, faces)

    seven = list(ALIGNMENT_LANDMARKS)
    design = _motions(keys[seven]).reshape(-1, 7)
    similarity = np.linalg.lstsq(design, keys_moved[:, seven].reshape(len(moved), -1).T, rcond=None)[0]  # (7, K)
    forms = {}
    for name, mask in regions.items():
        mask = np.asarray(mask).astype(bool)
        if mask.shape != (len(points),):
            raise ShapeError(f"region '{name}' must be ({len(points)},) bool, one a vertex; got {mask.shape}.")
        at, held = mask & (areas > 0), list(REGION_LANDMARKS.get(name, ()))
        root = np.sqrt(areas[at] / areas[at].sum())[:, None]
        motions = _motions(points[at])
        left = np.moveaxis(moved[:, at], 0, -1) - motions @ similarity  # (N, 3, K)
        along = root * np.einsum("nc,nck->nk", normals[at], left)
        rigid = root * np.einsum("nc,ncm->nm", normals[at], motions[..., :6])
        rows, goal = rigid, along
        if held:
            weight = np.sqrt(KEYPOINT_WEIGHT.get(name, 1.0) / len(held))
            key_motions = _motions(keys[held])
            key_left = np.moveaxis(keys_moved[:, held], 0, -1) - key_motions @ similarity
            rows = np.concatenate([rigid, weight * key_motions[..., :6].reshape(-1, 6)])
            goal = np.concatenate([along, weight * key_left.reshape(-1, len(moved))])
        rest = (along - rigid @ np.linalg.lstsq(rows, goal, rcond=None)[0]) * MILLIMETERS
        forms[name] = rest.T @ rest
    return forms


def head_regions(model: MorphableModel) -> dict[str, NDArray]:
    """:func:`face_regions` of a head model's mean, on the skin of its face without the eyes; {name: (V,) bool}."""
    regions = model.topology.regions
    skin = np.zeros(model.num_vertices, dtype=bool)
    skin[model.topology.faces[regions["face"] & ~regions["eyes"]].unique().cpu().numpy()] = True
    return face_regions(model.mean, model.topology.faces, model.landmarks3d(model.mean[None])[0], skin)


def head_region_forms(model: MorphableModel) -> dict[str, NDArray]:
    """:func:`region_forms` of a head model's identity and expression coefficients; {name: (I + E, I + E)}."""
    changes = torch.cat([model.identity_basis, model.expression_basis])
    points = model.landmarks3d(model.mean[None])[0]
    moved = model.landmarks3d(model.mean + changes) - points
    return region_forms(model.mean, model.topology.faces, points, changes, moved, head_regions(model))
