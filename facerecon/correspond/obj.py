"""Heads of other programs: a Wavefront OBJ with UVs as a head without bases, ready for a correspondence.

Heads in HiFi3D++'s, ICT-FaceKit's and this library's own makehuman topology are known by their numbers of vertices and
faces, and with them their 68 landmarks. Any other head needs its landmarks to be given, or found on a rendering
(:func:`detect_landmarks`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from facerecon.errors import ConfigError, InputError, NoFaceError, nearest_name
from facerecon.geometry.camera import clip_coordinates
from facerecon.geometry.mesh import face_components, vertex_normals
from facerecon.geometry.surface import Surface
from facerecon.modes import in_own_modes
from facerecon.morphable import FACE_MODELS, MorphableModel, hifi3dpp, ict, load_face_model
from facerecon.morphable.model import bare_topology
from facerecon.perception import observe
from facerecon.perception.landmarks import map_points
from facerecon.render.interpolate import fragments, interpolate
from facerecon.storage import read_array, read_bounded
from facerecon.types import Camera

__all__ = [
    "ObjMesh",
    "detect_landmarks",
    "head_from_obj",
    "known_landmarks",
    "read_head",
    "read_landmarks3d",
    "read_obj",
]

EYE_CORNERS = 0.893
"""World units (0.1 m) between the outer corners of the eyes (landmarks 36 and 45) of the makehuman head."""

DEEP = 0.15
"""World units: a place so far behind its surroundings is seen through a gap."""

CLAY = (0.78, 0.62, 0.54)
"""Color in which a bare shape is drawn to find its landmarks."""


@dataclass(frozen=True)
class ObjMesh:
    """The triangles of an OBJ file.

    Args:
        vertices: (V, 3) as in the file.
        uvs: (T, 2), origin bottom-left.
        faces, uv_faces: (F, 3) from 0; a polygon of the file is a fan of its first corner.
        path: of the file.
    """

    vertices: NDArray
    uvs: NDArray
    faces: NDArray
    uv_faces: NDArray
    path: Path


def read_obj(path: str | os.PathLike, textured: bool = True) -> ObjMesh:
    """Read vertices, UVs and faces of an OBJ file; everything else in it is left out.

    Args:
        path: of the file.
        textured: False reads scans and points: UVs are not looked at, and there may be no faces.

    Raises:
        InputError: no such file, no OBJ, an index that leads nowhere; of a textured head, no UVs or faces, or UVs
            outside the unit square.
    """
    path = Path(path)
    rows: dict[str, list] = {"v": [], "vt": []}
    corners: list[list[int]] = []
    try:
        with open(path, encoding="utf8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                kind, *fields = line.split("#")[0].split() or [""]
                if kind in rows:
                    rows[kind].append([float(x) for x in fields[: 3 if kind == "v" else 2]])
                elif kind == "f":
                    polygon = []
                    for field in fields:
                        ids = field.split("/") if textured else [field.partition("/")[0], "1"]
                        if len(ids) < 2 or not ids[1]:
                            raise InputError(f"{path}: line {number} has a face without UVs; export the head with UVs.")
                        count = len(rows["v"]), len(rows["vt"])
                        polygon.append([int(i) - 1 if int(i) > 0 else int(i) + n for i, n in zip(ids, count)])
                    for k in range(1, len(polygon) - 1):
                        corners.append(polygon[0] + polygon[k] + polygon[k + 1])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected an OBJ file. Check the path.") from None
    except (ValueError, IndexError):
        raise InputError(f"{path}: line {number} is not of an OBJ file: {line.strip()[:60]!r}.") from None
    if not corners and textured:
        raise InputError(f"{path} holds no faces; expected an OBJ file of a head with UVs.")
    try:
        vertices, uvs = (
            np.array(rows[kind], dtype=np.float64).reshape(-1, size) for kind, size in (("v", 3), ("vt", 2))
        )
        both = np.array(corners, dtype=np.int64).reshape(-1, 3, 2)
    except OverflowError:
        raise InputError(f"{path}: a face names a vertex that is not there. Export the head again.") from None
    except ValueError:
        raise InputError(f"{path} holds vertices of different lengths; expected 'v x y z' and 'vt u v'.") from None
    if not textured:
        uvs, both[..., 1] = np.zeros((1, 2)), 0
    for index, count, what in ((both[..., 0], len(vertices), "vertex"), (both[..., 1], len(uvs), "UV")):
        if len(index) and (index.min() < 0 or index.max() >= count):
            raise InputError(f"{path}: a face names a {what} that is not there; it has {count}. Export the head again.")
    if not (np.isfinite(vertices).all() and np.isfinite(uvs).all()):
        raise InputError(f"{path} holds NaN or infinite numbers; export the head again.")
    used = uvs[both[..., 1]]
    if textured and (used.min() < -1e-3 or used.max() > 1 + 1e-3):
        raise InputError(
            f"{path}: UVs must lie in [0, 1] (one texture); got {used.min():.3g} to {used.max():.3g}. "
            "UV tiles (UDIM) need to be packed into one square; for ICT-FaceKit use the name 'ict'."
        )
    return ObjMesh(vertices, uvs, np.ascontiguousarray(both[..., 0]), np.ascontiguousarray(both[..., 1]), path)


def known_landmarks(mesh: ObjMesh) -> NDArray | None:
    """(68, 3) landmarks of a head in HiFi3D++'s or ICT-FaceKit's numbering; None for another mesh."""
    if (len(mesh.vertices), len(mesh.faces)) == (hifi3dpp.NUM_VERTICES, hifi3dpp.NUM_FACES):
        return mesh.vertices[np.array(hifi3dpp.LANDMARKS_86)[list(hifi3dpp.LANDMARKS_68_OF_86)]]
    if len(mesh.vertices) == ict.NUM_VERTICES:
        return mesh.vertices[list(ict.LANDMARKS)]
    return None


def _regions(vertices: NDArray, faces: NDArray, mesh: ObjMesh, points: NDArray, owner: NDArray) -> dict[str, NDArray]:
    """Skin, eyes and mouth of a head.

    The skin is the piece of the mesh that carries most landmarks; pieces of the size and at the place of an eyeball
    are eyes, all the rest (teeth, tongue, lashes) is of the mouth. In HiFi3D++'s mesh, where the sockets and the inside
    of the mouth are sewn to the skin, the islands of its UV map tell them apart.
    """
    hifi = (len(mesh.vertices), len(mesh.faces)) == (hifi3dpp.NUM_VERTICES, hifi3dpp.NUM_FACES)
    piece = face_components(mesh.uv_faces, len(mesh.uvs)) if hifi else face_components(faces, len(vertices))
    skin = piece == np.bincount(piece[owner]).argmax()
    centers = vertices[faces].mean(1)
    eyes = np.zeros(len(faces), dtype=bool)
    for lids in (points[36:42], points[42:48]):
        middle, width = lids.mean(0), np.linalg.norm(lids[3] - lids[0])
        for other in np.unique(piece[~skin]):
            rows = piece == other
            low, high = centers[rows].min(0), centers[rows].max(0)
            near = np.linalg.norm((low + high) / 2 - middle) < 1.2 * width
            eyes |= rows & (near & (np.linalg.norm(high - low) < 4 * width))
    return {"skin": skin, "eyes": eyes, "mouth": ~skin & ~eyes}


def head_from_obj(mesh: ObjMesh, landmarks: ArrayLike) -> MorphableModel:
    """A head model without bases: mesh, UVs, landmarks and the regions skin, eyes and mouth.

    Vertices at one place are one vertex; the head is brought to the library's unit by the distance of the outer corners
    of its eyes. It is otherwise left as it lies.

    Args:
        mesh: of :func:`read_obj`.
        landmarks: (68, 3) iBUG points in the file's coordinates.

    Raises:
        InputError: landmarks in one place, or not of this head.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (68, 3) or not np.isfinite(points).all():
        raise InputError(f"landmarks of a head must be (68, 3) finite numbers; got {points.shape}.")
    width = np.linalg.norm(points[45] - points[36])
    extent = np.linalg.norm(np.ptp(mesh.vertices, axis=0))
    if not 0.02 * extent < width < 0.9 * extent:
        raise InputError(
            f"the landmarks do not belong to {mesh.path.name}: its eye corners are {width:.3g} apart, the mesh is "
            f"{extent:.3g} large. Give them in the file's own coordinates."
        )
    scale = EYE_CORNERS / width
    middle = points.mean(0)
    placed, points = (mesh.vertices - middle) * scale, (points - middle) * scale
    vertices, weld = np.unique(placed, axis=0, return_inverse=True)
    faces = weld.ravel()[mesh.faces]
    whole = (faces != np.roll(faces, 1, axis=1)).all(1)
    if not whole.any():
        raise InputError(f"{mesh.path} has no face of any area; export the head again.")
    faces, uv_faces = faces[whole], mesh.uv_faces[whole]
    kept = ObjMesh(mesh.vertices, mesh.uvs, mesh.faces, uv_faces, mesh.path)
    owner, weights, distance, _ = Surface(vertices, faces).locate(points)
    if np.median(distance) > 0.2:
        raise InputError(
            f"the landmarks lie {np.median(distance) / scale:.3g} away from the surface of {mesh.path.name}; "
            "give them in the file's own coordinates."
        )
    regions = _regions(vertices, faces, kept, points, owner)
    topology = bare_topology(
        mesh.path.stem,
        faces,
        mesh.uvs.clip(0, 1),
        uv_faces,
        (owner, weights),
        np.arange(len(vertices)),
        {key: rows for key, rows in regions.items() if rows.any()},
    )
    none = torch.zeros(0, len(vertices), 3)
    model = MorphableModel(torch.from_numpy(vertices.astype(np.float32)), none, none, topology, topology.name)
    return model.eval().requires_grad_(False)


# -- heads and their landmarks -----------------------------------------------------------------------------


@in_own_modes
def read_head(head: str | os.PathLike | MorphableModel, landmarks: Any = None) -> MorphableModel:
    """A head by its model's name, or of an OBJ file with UVs.

    Args:
        head: a name of :data:`~facerecon.morphable.FACE_MODELS` (from the cache), the path of an OBJ file, or a
            model, which is returned as it is.
        landmarks: of an OBJ file: (68, 3) points, (68,) vertex numbers from 0, or a file of either (.npy, .csv, .txt).
            Left out, they are those of a topology that is known (HiFi3D++, ICT-FaceKit), or found on a rendering.

    Raises:
        ConfigError: an unknown name.
        InputError: a file that cannot be used.
        NoFaceError: no face is found on an OBJ without landmarks.
        AssetError: the model is not in the cache.
    """
    if isinstance(head, MorphableModel):
        return head
    if str(head) in FACE_MODELS:
        return load_face_model(str(head), num_identity=0)
    path = Path(head)
    if path.suffix.lower() != ".obj":
        raise ConfigError(nearest_name(str(head), [*FACE_MODELS, "FILE.obj"], "head"))
    mesh = read_obj(path)
    points = known_landmarks(mesh) if landmarks is None else read_landmarks3d(landmarks, mesh.vertices)
    return head_from_obj(mesh, detect_landmarks(mesh) if points is None else points)


def read_landmarks3d(source: Any, vertices: NDArray) -> NDArray:
    """(68, 3) landmarks of a head, of points or vertex numbers.

    Args:
        source: (68, 3) points in the head's coordinates, (68,) vertex numbers from 0, or a file of either: .npy, or
            text with one point or number a line (.csv, .txt).
        vertices: (V, 3) of the head.

    Raises:
        InputError: neither of both, or a vertex that is not there.
    """
    name, values = "landmarks", source
    expected = "expected 68 points x y z in the head's coordinates, or 68 vertex numbers from 0"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = path.name
        try:
            if path.suffix.lower() == ".npy":
                values = read_array(path, 1 << 20)
            else:
                text = read_bounded(path, 1 << 20).decode("utf8")
                rows = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
                values = [[float(x) for x in row] for row in rows if row]
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{name}: landmarks cannot be read ({reason}); {expected}.") from None
    try:
        table = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: {expected}; got rows of different lengths.") from None
    if table.size == 68 and table.ndim <= 2:
        index = table.ravel()
        if (index != np.floor(index)).any() or index.min() < 0 or index.max() >= len(vertices):
            raise InputError(f"{name}: {expected}; the head has {len(vertices)} vertices.")
        return vertices[index.astype(np.int64)]
    if table.shape != (68, 3) or not np.isfinite(table).all():
        raise InputError(f"{name}: {expected}; got {table.shape}.")
    return table


def detect_landmarks(mesh: ObjMesh) -> NDArray:
    """(68, 3) landmarks on a head of any topology, found on a rendering of its bare shape from the front.

    Args:
        mesh: upright (y up), looking at +z, with or without a neck.

    Raises:
        NoFaceError: no face is found.
    """
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    unit = 2.6 / max(high[:2] - low[:2])  # world units of a head
    placed = torch.from_numpy((mesh.vertices - (low + high) / 2) * unit).float()[None]
    faces = torch.from_numpy(mesh.faces)
    size = 640  # px of the rendering
    camera = Camera.deep3d(size)
    camera = camera.replace(focal=camera.focal * 0.8)
    clip = clip_coordinates(camera, placed)
    found = fragments(clip, faces, (size, size))
    normals = F.normalize(interpolate(found, vertex_normals(placed, faces), faces), dim=-1)
    light = F.normalize(torch.tensor([-0.3, 0.45, 1.0]), dim=0)
    shading = 0.35 + 0.65 * (normals @ light).clamp(min=0)
    mask = (found.face_index >= 0)[:, None].float()
    skin = torch.tensor(CLAY)[None, :, None, None]
    picture = (skin * shading[:, None] * mask + 0.92 * (1 - mask)).clamp(0, 1)
    try:
        seen = observe(picture[0])
    except InputError:
        raise NoFaceError(
            f"{mesh.path.name}: no face found on a rendering of it from the front; it should be upright (y up) and "
            "look at +z. Turn it, or give landmarks=: 68 points or vertex numbers."
        ) from None
    pixels = map_points(seen.fit.to_photo, seen.landmarks68)[0].double().numpy()
    index, depth = found.face_index[0].numpy(), found.depth[0].numpy()
    rows, columns = np.nonzero(index >= 0)
    tree = cKDTree(np.column_stack([columns, rows]) + 0.5)
    reach = 0.06 * np.linalg.norm(pixels[45] - pixels[36])
    picked = []
    for pixel in pixels:  # the nearest place that does not lie deep behind what is around it, as in a gap of the lips
        around = np.array(tree.query_ball_point(pixel, reach) or [tree.query(pixel)[1]])
        near = depth[rows[around], columns[around]]
        around = around[near < near.min() + DEEP]
        picked.append(around[((tree.data[around] - pixel) ** 2).sum(1).argmin()])
    rows, columns = rows[picked], columns[picked]
    weights = found.barycentric[0].numpy()[rows, columns].astype(np.float64)
    return np.einsum("nkc,nk->nc", mesh.vertices[mesh.faces[index[rows, columns]]], weights)
