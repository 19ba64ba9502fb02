"""ICT-FaceKit Light (USC Institute for Creative Technologies, MIT license) as a head model.

Its identity modes come from light-stage scans, so it is a second, scan-based model: to fit with, and as ground truth
that no fit was built from. ``python -m facerecon.assets fetch ict`` gets and converts it; :func:`load_ict` also reads
the ``FaceXModel`` folder of a clone of https://github.com/ICT-VGL/ICT-FaceKit (158 OBJ files, about a minute) or one
npz file with the same arrays.

Vertices keep the source's numbers. Units become 0.1 m, and the origin is moved so that the face lies in the released
camera's frame as the mean face of the alignment does. Only the eyeballs' outer shells are drawn; lashes, tear film and
the other eye details are left out. Each of the source's UV tiles gets a place of its own in the unit square.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from facerecon.errors import AssetError, ConfigError
from facerecon.modes import in_own_modes
from facerecon.morphable.model import MorphableModel, bare_topology, read_face_model
from facerecon.morphable.regions import in_polygon, mirror_vertices

__all__ = ["LANDMARKS", "load_ict"]

LANDMARKS = (
    *(1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443),
    *(268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509),
    *(978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360),
    *(1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732),
    *(5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841),
    *(5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966),
)
"""Vertices of the 68 Multi-PIE landmarks, as the source lists them."""

_PARTS = {
    "narrow": (0, 6706),
    "face": (0, 9409),
    "skin": (0, 11248),
    "mouth_bag": (11248, 13294),
    "sockets": (13294, 14062),
    "gums": (14062, 17039),
    "teeth": (17039, 21451),
    "eye_left": (21451, 22221),
    "eye_right": (23021, 23791),
}
"""Vertex ranges of what is drawn; the ones between are inner shells and eye details."""

_KEPT = 24591
NUM_VERTICES = 26719
_QUADS = 26384
_LARGEST = 1 << 30  # bytes of all arrays: those of the source have 160 MB
_ORIGIN = (0.0, 0.08, -0.04)
"""Added after the change of units: it brings the five alignment points to those of the released crops."""

_TILES = {
    # part of the mesh -> UV tile of the source, place (u, v) and side of it in the unit square
    "face": (0, 0.0, 0.3, 0.7),
    "head": (1, 0.7, 0.7, 0.3),
    "gums": (2, 0.7, 0.4, 0.3),
    "teeth": (3, 0.7, 0.1, 0.3),
    "eye_left": (0, 0.0, 0.0, 0.3),
    "eye_right": (0, 0.3, 0.0, 0.3),
}


def arkit_name(name: str) -> str:
    """``browDown_L`` -> ``browDownLeft``; the unit that a pair makes in ARKit has no side."""
    stem, _, side = name.partition("_")
    if stem in ("browInnerUp", "cheekPuff"):
        return stem
    return stem + {"": "", "L": "Left", "R": "Right"}[side]


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (V, 3), uvs (T, 2), faces and faces_uv (Q, 4), 0-based; -1 pads triangles."""
    text = path.read_text()
    vertices = np.array([line.split()[1:4] for line in re.findall(r"^v .*", text, re.M)], dtype=np.float32)
    uvs = np.array([line.split()[1:3] for line in re.findall(r"^vt .*", text, re.M)], dtype=np.float32)
    rows = [[corner.split("/") for corner in line.split()[1:]] for line in re.findall(r"^f .*", text, re.M)]
    faces, faces_uv = (
        np.array([[int(c[k]) - 1 for c in row] + [-1] * (4 - len(row)) for row in rows], dtype=np.int64).reshape(-1, 4)
        for k in (0, 1)
    )
    return vertices, uvs, faces, faces_uv


def _read_clone(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a clone's ``FaceXModel`` folder, under the names of the npz file."""
    folder = folder / "FaceXModel" if (folder / "FaceXModel").is_dir() else folder
    neutral = folder / "generic_neutral_mesh.obj"
    if not neutral.is_file():
        raise AssetError(f"{folder} has no generic_neutral_mesh.obj; give the FaceXModel folder of ICT-FaceKit.")
    vertices, uv, faces, faces_uv = _read_obj(neutral)
    shapes: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.obj")):
        if path != neutral:
            lines = re.findall(r"^v .*", path.read_text(), re.M)
            if len(lines) != len(vertices):
                raise AssetError(
                    f"{path.name} has {len(lines)} vertices, the neutral mesh {len(vertices)}; get it again."
                )
            shapes[path.stem] = np.array([line.split()[1:4] for line in lines], dtype=np.float32) - vertices
    identity = [shapes.pop(name) for name in sorted(shapes) if re.fullmatch(r"identity\d+", name)]
    if not identity or not shapes:
        raise AssetError(f"{folder} lacks identity or expression shapes (*.obj); clone ICT-FaceKit again.")
    return {
        "vertices": vertices, "uv": uv, "faces": faces, "faces_uv": faces_uv,
        "identity": np.stack(identity), "expression": np.stack(list(shapes.values())),
        "expression_names": np.array(list(shapes)),
    }  # fmt: skip


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    keys = ("vertices", "uv", "faces", "faces_uv", "identity", "expression", "expression_names")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST:
                raise ValueError(f"it unpacks to more than {_LARGEST / 1e6:.0f} MB")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys}
    except Exception as error:  # numpy and zipfile have many kinds
        raise AssetError(
            f"{path} is not an ICT-FaceKit npz file ({_first_line(error)}); expected arrays {', '.join(keys)}."
        ) from None


def _first_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _triangles(quads: np.ndarray) -> np.ndarray:
    """Quads (-1 pads triangles) -> triangles of the first corner's fan."""
    second = quads[quads[:, 3] >= 0][:, [0, 2, 3]]
    return np.concatenate([quads[:, :3], second])


def _regions(vertices: np.ndarray, faces: np.ndarray) -> dict[str, np.ndarray]:
    """Regions of triangles, by the source's vertex ranges and, within the skin, by place on the mean head (0.1 m)."""

    def of(name: str) -> np.ndarray:
        low, high = _PARTS[name]
        return ((faces >= low) & (faces < high)).all(1)

    center = vertices[faces].mean(1) - _ORIGIN
    points = vertices[list(LANDMARKS)] - _ORIGIN
    skin, eyes = of("skin"), of("eye_left") | of("eye_right")
    lips = skin & in_polygon(center[:, 0], center[:, 1], points[48:60, :2]) & (center[:, 2] > 0.95)
    lids = np.zeros(len(faces), dtype=bool)
    for eye in (points[36:42], points[42:48]):
        middle, reach = eye.mean(0), np.abs(eye - eye.mean(0)).max(0)
        near = ((center - middle) / [1.3 * reach[0], 2.6 * reach[1], 1.0])[:, :2]
        lids |= of("narrow") & ((near**2).sum(1) < 1)
    ears = skin & ~of("narrow") & (np.abs(center[:, 0]) > 0.73) & (np.abs(center[:, 1] - 0.15) < 0.5)
    ears &= np.abs(center[:, 2] - 0.2) < 0.35
    jaw_line = -0.78 + 0.75 * np.maximum(1.0 - center[:, 2], 0)  # from under the chin up to behind the ears
    neck = skin & ~of("narrow") & ~ears & (center[:, 1] < np.minimum(jaw_line, -0.2))
    mouth = of("mouth_bag") | of("gums") | of("teeth")
    return {
        "face": of("narrow") | eyes,
        "skin": skin,
        "eyes": eyes,
        "sockets": of("sockets"),
        "mouth": mouth,
        "teeth": of("teeth"),
        "lips": lips,
        "lids": lids,
        "ears": ears,
        "neck": neck,
        "scalp": skin & ~of("narrow") & ~ears & ~neck,
    }


def ict_model(arrays: Mapping[str, np.ndarray], num_identity: int | None = None) -> MorphableModel:
    """The head model of ICT-FaceKit's arrays.

    Args:
        arrays: vertices (26719, 3); uv (T, 2), one tile per unit of u; faces, faces_uv (Q, 4), -1 pads triangles;
            identity (I, 26719, 3); expression (E, 26719, 3); expression_names (E,).
        num_identity: leading identity modes to keep; None keeps all.

    Raises:
        AssetError: not these arrays.
        ConfigError: more modes than there are.
    """
    for key in ("vertices", "uv", "identity", "expression"):
        if arrays[key].dtype.kind != "f" or not np.isfinite(arrays[key]).all():
            raise AssetError(f"'{key}' of ICT-FaceKit must hold finite numbers; get it again.")
    if arrays["vertices"].shape != (NUM_VERTICES, 3):
        raise AssetError(
            f"expected the {NUM_VERTICES} vertices of ICT-FaceKit Light; got {arrays['vertices'].shape}. "
            "Use its FaceXModel."
        )
    if arrays["faces"].shape != (_QUADS, 4):
        raise AssetError(f"expected the {_QUADS} faces of ICT-FaceKit Light; got {len(arrays['faces'])}. Get it again.")
    available = len(arrays["identity"])
    count = available if num_identity is None else num_identity
    if not 0 <= count <= available:
        raise ConfigError(f"num_identity must be 0..{available} for 'ict'; got {num_identity}.")
    source = arrays["vertices"][:_KEPT].astype(np.float64)
    vertices = source / 10 + np.array(_ORIGIN)

    faces, uv_faces = _triangles(arrays["faces"]), _triangles(arrays["faces_uv"])
    parts = ("skin", "mouth_bag", "sockets", "gums", "teeth", "eye_left", "eye_right")
    part_of = np.full(NUM_VERTICES, -1)
    for index, name in enumerate(parts):
        part_of[slice(*_PARTS[name])] = index
    keep = (part_of[faces] >= 0).all(1)
    faces, uv_faces = faces[keep].astype(np.int64), uv_faces[keep].astype(np.int64)
    part = part_of[faces[:, 0]]

    # one copy of a UV for each place that uses it, moved there
    place = np.select(
        [part == parts.index(name) for name in ("gums", "teeth", "eye_left", "eye_right")],
        [list(_TILES).index(name) for name in ("gums", "teeth", "eye_left", "eye_right")],
        np.floor(arrays["uv"][uv_faces[:, 0], 0]).astype(int),
    )
    keys, uv_corners = np.unique(np.stack([uv_faces, np.repeat(place[:, None], 3, 1)], -1).reshape(-1, 2),
                                 axis=0, return_inverse=True)  # fmt: skip
    table = np.array([_TILES[name] for name in _TILES])[keys[:, 1]]
    uvs = (arrays["uv"][keys[:, 0]] - table[:, :1] * [1.0, 0.0]) * table[:, 3:] + table[:, 1:3]

    names = [str(name) for name in arrays["expression_names"]]
    units: dict[str, np.ndarray] = {}
    for name, offsets in zip(names, arrays["expression"]):
        if not name.startswith("PupilDilate"):
            offsets = offsets[:_KEPT].astype(np.float32) / 10
            units[arkit_name(name)] = units.get(arkit_name(name), 0) + offsets

    # every landmark is a vertex: a face that has it, with all the weight on that corner
    landmark_faces, corners = zip(*((int(x[0]) for x in np.nonzero(faces == vertex)) for vertex in LANDMARKS))
    topology = bare_topology(
        "ict",
        faces,
        uvs,
        uv_corners.reshape(-1, 3).astype(np.int64),
        (np.array(landmark_faces), np.eye(3)[list(corners)]),
        mirror_vertices(source).astype(np.int64),
        _regions(vertices, faces),
    )
    identity = arrays["identity"][:count, :_KEPT].astype(np.float32) / 10
    return MorphableModel(
        mean=torch.from_numpy(vertices.astype(np.float32)),
        identity_basis=torch.from_numpy(identity),
        expression_basis=torch.from_numpy(np.stack(list(units.values()))),
        topology=topology,
        name="ict",
        expression_names=tuple(units),
        expression_bounds=(0.0, 1.0),
    )


@in_own_modes
def load_ict(path: str | Path, num_identity: int | None = None) -> MorphableModel:
    """ICT-FaceKit Light, frozen, in eval mode.

    Args:
        path: an npz file with the arrays of :func:`ict_model`, the clone of ICT-FaceKit, or a converted file.
        num_identity: leading identity modes to keep; None keeps all 100.

    Raises:
        AssetError: nothing is there, or it is something else.
        ConfigError: more modes than there are.
    """
    path = Path(path)
    if not path.exists():
        raise AssetError(
            f"{path} does not exist; run: git clone https://github.com/ICT-VGL/ICT-FaceKit {json.dumps(str(path))}"
        )
    if path.suffix == ".safetensors":
        return read_face_model(path, num_identity)
    try:
        arrays = _read_clone(path) if path.is_dir() else _read_npz(path)
        return ict_model(arrays, num_identity).eval().requires_grad_(False)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, OSError) as error:
        raise AssetError(f"{path} does not hold ICT-FaceKit's arrays ({_first_line(error)}); get it again.") from None
