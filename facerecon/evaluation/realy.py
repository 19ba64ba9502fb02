"""The REALY protocol (Chai et al., ECCV 2022): region-wise errors with correspondences from both sides (Sec. 4.3).

A prediction is compared with four regions of a scan, each by itself:

1. coarse alignment: a similarity of seven keypoints (eye corners, base of the nose, mouth corners) brings the
   prediction onto the scan;
2. regional alignment: a rigid motion, no scale, of iterated closest points from the region's points to the predicted
   surface, in which the region's keypoints together weigh as much as its points (a quarter for the cheek);
3. correspondence: the region is registered (non-rigidly) onto the aligned prediction, held by its keypoints; where a
   point comes to lie on the prediction is that point's counterpart;
4. error: the mean distance between the region's points, as they were, and their counterparts, in millimeters.

Step 3 sets REALY apart from plain distances to a surface (:func:`~facerecon.evaluation.region_errors`): a lip that
lies on the other lip is wrong.

Unlike REALY's released code, which solves step 3 by Amberg et al.'s non-rigid ICP with an affine map a vertex and
weights an edge: here points are shifted, and the stiffness is the Dirichlet energy of the shifts, so that neither the
density of the mesh nor its units matter. Steps 1, 2 and 4 and the weights of keypoints are as released (the released
scale is a ratio of sums of absolute coordinates, and so is ours). The benchmark's scans need a signed agreement and
were not at hand: the layout of files is as its published code reads it, tested on a folder of the same layout.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csc_array, diags_array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from facerecon.correspond.obj import read_obj
from facerecon.correspond.regions import (
    ALIGNMENT_LANDMARKS,
    KEYPOINT_WEIGHT,
    MILLIMETERS,
    REGION_LANDMARKS,
    vertex_areas,
)
from facerecon.errors import ConfigError, InputError, ShapeError
from facerecon.evaluation.regions import align_region
from facerecon.geometry.alignment import fit_similarity
from facerecon.geometry.surface import Surface, as_array
from facerecon.imaging.files import list_images, write_bytes
from facerecon.morphable import MorphableModel
from facerecon.storage import parse_json, read_bounded
from facerecon.types import FaceParams

__all__ = [
    "BENDING_KEYPOINTS",
    "ICP_KEYPOINTS",
    "KEYPOINTS",
    "REGIONS",
    "RealyErrors",
    "RealyFolder",
    "Scan",
    "coarse_alignment",
    "head_errors",
    "keypoints_of",
    "read_keypoint_places",
    "realy_errors",
    "scan_of_head",
    "write_mesh",
    "write_realy_errors",
]

KEYPOINTS = 85
"""Of REALY's scans: the 68 iBUG points, then 17 more (alae, cheeks, ...)."""

REGIONS = ("nose", "mouth", "forehead", "cheek")

_LIPS = (*range(48, 61), 64)
ICP_KEYPOINTS: dict[str, tuple[int, ...]] = {
    "nose": (*range(27, 36), 70, 71),
    "mouth": _LIPS,
    "forehead": (*range(36, 48), *range(17, 27)),
    "cheek": (*_LIPS, 76, 77, 36, 41, 40, 39, 42, 47, 46, 45, 7, 8, 9),
}
"""REALY's keypoints of each region in step 2."""

BENDING_KEYPOINTS: dict[str, tuple[int, ...]] = {
    "nose": tuple(range(27, 36)),
    "mouth": _LIPS,
    "forehead": (*range(36, 48), *range(17, 27)),
    "cheek": (),
}
"""And in step 3."""

_SEVEN = list(ALIGNMENT_LANDMARKS)
_BENDING = (
    # reach of the stiffness in mm, weight of the points, weight of all keypoints together, both relative to all points
    (40.0, 0.0, 1.0),
    (16.0, 1.0, 0.4),
    (10.0, 1.0, 0.1),
    (6.0, 1.0, 0.03),
)
_ROUNDS = 8  # of each, at most
_ON_REGION = 4.0  # mm: a keypoint further from a region's points is not on it
_SETTLED = 1e-4  # mm: alignments end where the root mean square gains less
_STILL = 0.005  # mm, root mean square: less than that is no motion


@dataclass(frozen=True)
class Scan:
    """The truth about one head.

    Args:
        keypoints: (K, 3); the first 68 are the iBUG points.
        regions: {name: (vertices (N, 3), faces (F, 3))}.
        millimeters: of one of its units.
        icp, bending: {region: keypoints that hold it} in steps 2 and 3, REALY's if left out; those that the prediction
            lacks do not count.
        by_area: points count by the area around them, else all alike (REALY, whose scans are dense and even).
    """

    keypoints: NDArray
    regions: Mapping[str, tuple[NDArray, NDArray]]
    millimeters: float = 1.0
    icp: Mapping[str, Sequence[int]] | None = None
    bending: Mapping[str, Sequence[int]] | None = None
    by_area: bool = False


@dataclass(frozen=True)
class RealyErrors:
    """What came of one prediction.

    Args:
        errors: {region: mm}.
        coarse: (V, 3), the prediction after step 1.
        aligned: {region: (V, 3)}, after step 2.
    """

    errors: dict[str, float]
    coarse: NDArray
    aligned: dict[str, NDArray]

    @property
    def mean(self) -> float:
        """Over the regions, mm."""
        return sum(self.errors.values()) / len(self.errors)


# -- the protocol ----------------------------------------------------------------------------------------------


def coarse_alignment(predicted: ArrayLike, true: ArrayLike) -> tuple[float, NDArray, NDArray]:
    """Step 1: the similarity ``scale * rotation @ p + translation`` of corresponding keypoints.

    The rotation is Kabsch's; the scale is the ratio of the sums of absolute centered coordinates, of the truth and of
    the turned prediction, as in REALY's released code (least squares, Umeyama's, lets errors shrink the prediction).

    Args:
        predicted, true: (N, 3), N >= 3, not all on a line.

    Raises:
        ShapeError: the shapes differ.
        InputError: a point is not finite, or all predicted points are one.
    """
    predicted = as_array("predicted", np.asarray(predicted, dtype=np.float64), "N 3")
    true = as_array("true", np.asarray(true, dtype=np.float64), f"{len(predicted)} 3")
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        raise InputError("keypoints must be finite; got NaN or infinity. Check the fit that made them.")
    source, goal = predicted - predicted.mean(0), true - true.mean(0)
    rotation = fit_similarity(predicted, true, with_scale=False)[1]
    size = np.abs(source @ rotation.T).sum()
    if not size > 0:
        raise InputError("keypoints of a prediction must differ from one another; got one point. Check the mesh.")
    scale = float(np.abs(goal).sum() / size)
    return scale, rotation, true.mean(0) - scale * rotation @ predicted.mean(0)


def _stiffness(vertices: NDArray, faces: NDArray) -> csc_array:
    """Cotangent matrix: ``d @ K @ d`` is the Dirichlet energy of a function on the mesh; no weight is negative."""
    corners = vertices[faces]
    rows, columns, values = [], [], []
    for k in range(3):
        one, other = corners[:, (k + 1) % 3] - corners[:, k], corners[:, (k + 2) % 3] - corners[:, k]
        area = np.linalg.norm(np.cross(one, other), axis=1)
        weight = np.clip(np.einsum("fc,fc->f", one, other) / np.maximum(area, 1e-30), 0.05, 20.0) / 2
        rows.append(faces[:, (k + 1) % 3])
        columns.append(faces[:, (k + 2) % 3])
        values.append(weight)
    i, j, w = np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
    count = len(vertices)
    graph = coo_array((np.tile(w, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(count, count)).tocsc()
    return (diags_array(graph.sum(1)) - graph).tocsc()


def _registered(
    vertices: NDArray,
    faces: NDArray,
    weights: NDArray,
    surface: Surface,
    held: NDArray,
    goals: NDArray,
    millimeters: float,
) -> NDArray:
    """Step 3: the region's points (N, 3), which count by their ``weights`` (N,), shifted onto the aligned prediction,
    the ``held`` ones (K,), at keypoints, towards their ``goals`` (K, 3)."""
    stiff = _stiffness(vertices, faces)
    total = weights.sum()
    shifts = np.zeros_like(vertices)
    for reach, points_weight, keys_weight in _BENDING:
        if points_weight == 0 and len(held) == 0:
            continue
        pull = points_weight * weights
        keys = np.bincount(held, minlength=len(vertices)) * (keys_weight * total / max(len(held), 1))
        system = splu((diags_array(pull + keys + 1e-9 * weights) + (reach / millimeters) ** 2 * stiff).tocsc())
        towards = np.zeros_like(vertices)
        np.add.at(towards, held, (goals - vertices[held]) * (keys_weight * total / max(len(held), 1)))
        for _ in range(_ROUNDS if points_weight else 1):
            near = surface.near(vertices + shifts) - vertices if points_weight else 0.0
            before, shifts = shifts, system.solve(pull[:, None] * near + towards)
            if np.sqrt((weights @ ((shifts - before) ** 2).sum(1)) / total) * millimeters < _STILL:
                break
    return vertices + shifts


def realy_errors(
    predicted_vertices: ArrayLike, predicted_faces: ArrayLike, predicted_keypoints: ArrayLike, scan: Scan
) -> RealyErrors:
    """Errors of one prediction, region by region; see the module for the protocol.

    Args:
        predicted_vertices: (V, 3), in any frame and of any size.
        predicted_faces: (F, 3).
        predicted_keypoints: (K, 3) on the prediction: REALY's 85, or the 68 that they begin with.
        scan: the truth.

    Raises:
        ShapeError: arrays do not fit.
        InputError: numbers that are not finite, or an empty region.
    """
    predicted = as_array("predicted_vertices", predicted_vertices, "V 3").astype(np.float64)
    faces = as_array("predicted_faces", predicted_faces, "F 3")
    keys = as_array("predicted_keypoints", predicted_keypoints, "K 3").astype(np.float64)
    true = as_array("scan.keypoints", scan.keypoints, "K 3").astype(np.float64)
    if len(keys) not in (68, KEYPOINTS) or len(true) not in (68, KEYPOINTS):
        raise ShapeError(f"keypoints must be (68, 3) or ({KEYPOINTS}, 3); got {keys.shape} and {true.shape}.")
    count = min(len(keys), len(true))
    scale, rotation, translation = coarse_alignment(keys[_SEVEN], true[_SEVEN])
    predicted, keys = (scale * x @ rotation.T + translation for x in (predicted, keys))
    surface = Surface(predicted, faces)
    icp = ICP_KEYPOINTS if scan.icp is None else scan.icp
    bending = BENDING_KEYPOINTS if scan.bending is None else scan.bending
    errors, aligned = {}, {}
    for name, (vertices, region_faces) in scan.regions.items():
        vertices = as_array(f"vertices of '{name}'", vertices, "N 3").astype(np.float64)
        region_faces = as_array(f"faces of '{name}'", region_faces, "F 3")
        areas = vertex_areas(vertices, region_faces) if len(region_faces) else np.zeros(len(vertices))
        used = areas > 0
        if not used.any() or not np.isfinite(vertices).all():
            raise InputError(f"region '{name}' of the scan has no surface, or is not finite; check the file.")
        index = np.cumsum(used) - 1
        points, areas = vertices[used], areas[used]
        region_faces = index[region_faces[used[region_faces].all(1)]]
        counted = areas if scan.by_area else np.ones(len(points))
        held = [k for k in icp.get(name, ()) if k < count]
        weight = KEYPOINT_WEIGHT.get(name, 1.0)
        turn, shift = align_region(
            surface, points, counted, keys[held], true[held], weight, tolerance=_SETTLED / scan.millimeters
        )
        # the rigid motion, inverted, moves the prediction to the region; what follows is the same in either frame
        there, there_true = points @ turn.T + shift, true @ turn.T + shift
        pinned = np.array([k for k in bending.get(name, ()) if k < count], dtype=np.int64)
        away, nearest = cKDTree(there).query(there_true[pinned])
        on_it = away * scan.millimeters < _ON_REGION
        pinned, nearest = pinned[on_it], nearest[on_it]
        goals = there[nearest] + keys[pinned] - there_true[pinned]
        registered = _registered(there, region_faces, areas, surface, nearest, goals, scan.millimeters)
        apart = np.linalg.norm(surface.nearest(registered) - there, axis=1)
        errors[name] = float(counted @ apart / counted.sum()) * scan.millimeters
        aligned[name] = (predicted - shift) @ turn
    return RealyErrors(errors, predicted, aligned)


def head_errors(
    model: MorphableModel, params: FaceParams, scan: Scan, places: tuple[NDArray, NDArray] | None = None
) -> tuple[RealyErrors, Tensor]:
    """:func:`realy_errors` of a fitted head, and its shape (V, 3).

    Args:
        model: head model.
        params: of one head.
        scan: the truth.
        places: of its 85 keypoints (:func:`read_keypoint_places`); its 68 landmarks if left out.
    """
    with torch.no_grad():
        shape = model.shape(params)
        keys = model.landmarks3d(shape)[0]
    if places is not None:
        keys = keypoints_of(shape[0].double(), model.topology.faces, places)
    return realy_errors(shape[0], model.topology.faces, keys, scan), shape[0]


def scan_of_head(vertices: ArrayLike, faces: ArrayLike, landmarks: ArrayLike, regions: Mapping[str, ArrayLike]) -> Scan:
    """A head whose shape is known, as a scan: its regions cut out, points counted by area.

    Keypoints are those of :data:`~facerecon.correspond.regions.REGION_LANDMARKS`, without brows and alae, which head
    models place differently.

    Args:
        vertices: (V, 3), world units.
        faces: (F, 3).
        landmarks: (68, 3).
        regions: {name: (V,) bool}, of :func:`~facerecon.evaluation.head_regions`.
    """
    vertices = as_array("vertices", vertices, "V 3").astype(np.float64)
    faces = as_array("faces", faces, "F 3")
    cut = {}
    for name, mask in regions.items():
        mask = np.asarray(mask)
        if mask.shape != (len(vertices),) or mask.dtype != bool:
            raise ShapeError(f"region '{name}' must be ({len(vertices)},) bool, one a vertex; got {mask.shape}.")
        inside = faces[mask[faces].all(1)]
        used, index = np.unique(inside, return_inverse=True)
        cut[name] = vertices[used], index.reshape(-1, 3)
    keys = as_array("landmarks", landmarks, "68 3").astype(np.float64)
    bending = {name: () if name == "cheek" else held for name, held in REGION_LANDMARKS.items()}
    return Scan(keys, cut, MILLIMETERS, REGION_LANDMARKS, bending, by_area=True)


# -- the benchmark's files -------------------------------------------------------------------------------------


def write_mesh(path: str | os.PathLike, vertices: ArrayLike, faces: ArrayLike) -> Path:
    """Vertices and triangles as an OBJ file, as REALY's predictions are: one topology, one vertex order."""
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in np.asarray(vertices, dtype=np.float64).tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (np.asarray(faces, dtype=np.int64) + 1).tolist()]
    return write_bytes(path, ("\n".join(lines) + "\n").encode())


def read_keypoint_places(path: str | os.PathLike) -> tuple[NDArray, NDArray]:
    """Where REALY's 85 keypoints lie on a topology: its ``data/TOPOLOGY.txt``, rows of [triangle, b0, b1] as JSON.

    Returns:
        faces (85,) int64, from 0, and barycentric (85, 3).

    Raises:
        InputError: it is something else.
    """
    try:
        rows = np.array(parse_json(read_bounded(path, 1 << 20)), dtype=np.float64)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is not a list of [triangle, b0, b1] ({str(error)[:80]}).") from None
    if rows.shape != (KEYPOINTS, 3) or not np.isfinite(rows).all() or rows[:, 0].min() < 0:
        raise InputError(f"{path} must hold {KEYPOINTS} rows of [triangle, b0, b1]; got shape {rows.shape}.")
    weights = np.column_stack([rows[:, 1], rows[:, 2], 1 - rows[:, 1] - rows[:, 2]])
    return rows[:, 0].astype(np.int64), weights


def keypoints_of(vertices: ArrayLike, faces: ArrayLike, places: tuple[NDArray, NDArray]) -> NDArray:
    """(85, 3) keypoints of a mesh at the places of :func:`read_keypoint_places`.

    Raises:
        InputError: a place is on a triangle that the mesh has not.
    """
    vertices, faces = as_array("vertices", vertices, "V 3"), as_array("faces", faces, "F 3")
    rows, weights = places
    if rows.max() >= len(faces):
        raise InputError(f"keypoints are on triangle {rows.max()}, the mesh has {len(faces)}: another topology's file.")
    return np.einsum("kc,kcd->kd", weights, vertices[faces[rows]])


class RealyFolder:
    """REALY's data as it is distributed, read when asked for.

    ``REALY_HIFI3D_keypoints/ID.obj`` (85 vertices), ``REALY_scan_region/ID/{nose,mouth,forehead,cheek}.obj``,
    ``metrical_scale.txt`` (a line of millimeters an ID, from 1; part of the published code), and the photos, named
    ``ID.*`` or ``ID_VIEW.*``, anywhere under ``REALY_image/``. All of them in the folder, or in ``data/`` of it.

    Args:
        folder: where they are.

    Raises:
        InputError: something is missing; the message names it.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder).expanduser()

        def find(name: str, what: str) -> Path:
            for place in (self.folder / name, self.folder / "data" / name):
                if place.exists():
                    return place
            raise InputError(
                f"{self.folder} has no {name} ({what}), nor has data/ in it; expected REALY's data: "
                "https://github.com/czh-98/REALY describes how to get them."
            )

        self._keypoints = find("REALY_HIFI3D_keypoints", "keypoints of the scans")
        self._scans = find("REALY_scan_region", "regions of the scans")
        self._images = find("REALY_image", "photos")
        scales = find("metrical_scale.txt", "millimeters a unit; of the published code's data/")
        try:
            self._scales = [float(line) for line in scales.read_text(encoding="utf-8").split()]
        except (OSError, ValueError) as error:
            raise InputError(f"{scales} is not a list of numbers ({error}).") from None

    @property
    def images(self) -> dict[str, Path]:
        """{name, ``ID`` or ``ID_VIEW``: photo} of subjects that have scans, in order; the first of one name counts.

        Raises:
            InputError: there is none.
        """
        found: dict[str, Path] = {}
        folders = [self._images, *sorted(p for p in self._images.rglob("*") if p.is_dir())]
        for folder in folders:
            try:
                paths = list_images(folder)
            except InputError:
                continue
            for path in paths:
                if re.fullmatch(r"\d+(_\d+)*", path.stem) and (self._scans / path.stem.split("_")[0]).is_dir():
                    found.setdefault(path.stem, path)
        if not found:
            raise InputError(f"{self._images} holds no photos named after scans (1.jpg, 1_2.png, ...).")
        return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split("_")]))

    def scan(self, name: str) -> Scan:
        """The truth about the subject of a photo.

        Raises:
            InputError: a file is missing or unreadable.
        """
        subject = name.split("_")[0]
        keypoints = read_obj(self._keypoints / f"{subject}.obj", textured=False).vertices
        if len(keypoints) != KEYPOINTS:
            where = self._keypoints / f"{subject}.obj"
            raise InputError(f"{where} must hold {KEYPOINTS} vertices, the keypoints; it has {len(keypoints)}.")
        if not 1 <= int(subject) <= len(self._scales):
            raise InputError(f"metrical_scale.txt has {len(self._scales)} lines; there is none for subject {subject}.")
        meshes = {name: read_obj(self._scans / subject / f"{name}.obj", textured=False) for name in REGIONS}
        for name, mesh in meshes.items():
            if len(mesh.faces) == 0:
                raise InputError(f"{mesh.path} holds no faces; expected region '{name}' of a scan.")
        regions = {name: (mesh.vertices, mesh.faces) for name, mesh in meshes.items()}
        return Scan(keypoints, regions, self._scales[int(subject) - 1])


def write_realy_errors(path: str | os.PathLike, errors: Iterable[tuple[str, Mapping[str, float]]]) -> Path:
    """``REALY_error.txt`` as the benchmark writes it: a line a photo, name, nose, mouth, forehead, cheek in mm.

    Args:
        errors: (name, {region: mm}).

    Raises:
        ConfigError: a region is missing or not finite.
    """
    lines = []
    for name, of in errors:
        if not all(math.isfinite(of.get(region, math.nan)) for region in REGIONS):
            raise ConfigError(f"REALY_error.txt needs {', '.join(REGIONS)} of '{name}'; got {', '.join(of)}.")
        lines.append(f"{name}\t" + "".join(f"\t{of[region]:.7f}"[:10] for region in REGIONS))
    return write_bytes(path, ("\n".join(lines) + "\n").encode())
