"""GNM Head v3 (Google, 2026, arXiv:2607.23687; code and weights Apache-2.0) as a head model.

A statistical head from scans, with eyes, teeth and tongue. ``python -m facerecon.assets fetch gnm`` gets and converts
it. :func:`read_gnm` holds ``gnm_head.npz`` and ``head_sparse_68.txt`` against :data:`LAYOUT`, which is read off the
published reader; it has never met the real file.

Vertices keep the source's numbers. Meters become 0.1 m, and the origin moves so that the face lies in the released
camera's frame. Of the 253 identity components those of the head are taken, then those of the eyeballs; shapes of teeth
are left out. The 383 expression components are statistical (left eye, right eye, lower face, tongue, pupils):
:mod:`facerecon.correspond.gnm` makes ARKit's units of them. All parts of the source share one UV square: each gets a
place of its own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from facerecon.errors import AssetError
from facerecon.geometry.alignment import five_points
from facerecon.geometry.surface import Surface
from facerecon.modes import in_own_modes
from facerecon.morphable.convert import FIVE_POINT_CENTER
from facerecon.morphable.model import MorphableModel, bare_topology, read_face_model

__all__ = ["LAYOUT", "NUM_VERTICES", "gnm_model", "load_gnm", "read_gnm"]

NUM_VERTICES = 17821
NUM_TRIANGLES = 35324
_LARGEST = 1 << 30  # bytes of all arrays: those that are read have 160 MB

LAYOUT: dict[str, tuple[int, ...]] = {
    "template_vertex_positions": (NUM_VERTICES, 3),
    "vertex_identity_basis": (253, NUM_VERTICES, 3),
    "identity_names": (253,),
    "expression_basis": (383, NUM_VERTICES, 3),
    "expression_names": (383,),
    "triangles": (NUM_TRIANGLES, 3),
    "triangle_uvs": (NUM_TRIANGLES, 3, 2),
    "mirror_indices": (NUM_VERTICES,),
    "mesh_component_names": (-1,),
    "vertex_group_names": (-1,),
    "vertex_groups": (-1, NUM_VERTICES),
}
"""Arrays of ``gnm_head.npz`` that are read, and their shapes; -1 is any number."""

_PLACES = {
    # part of the mesh -> place (u, v) and side of its UV square in the atlas
    "skin": (0.0, 0.25, 0.75),
    "left_eye": (0.0, 0.0, 0.25),
    "right_eye": (0.25, 0.0, 0.25),
    "tongue": (0.5, 0.0, 0.25),
    "upper_teeth_and_gums": (0.75, 0.25, 0.25),
    "lower_teeth_and_gums": (0.75, 0.5, 0.25),
}
_LANDMARKS = Path("gnm", "shape", "data", "landmarks", "head_sparse_68.txt")
_WEIGHTS = Path("gnm", "shape", "data", "versions", "v3_0", "gnm_head.npz")


def read_gnm(path: Path) -> dict[str, np.ndarray]:
    """The arrays of :data:`LAYOUT`, ``landmark_vertices`` (68, 3) and ``landmark_weights`` (68, 3).

    Args:
        path: a folder with ``gnm_head.npz`` and ``head_sparse_68.txt``, a clone of google/GNM (older ones hold the
            weights), or the npz file with the text file beside it.

    Raises:
        AssetError: a file is missing or is something else.
    """
    folder = path if path.is_dir() else path.parent
    weights = path if path.is_file() else _first(folder / "gnm_head.npz", folder / _WEIGHTS)
    text = _first(
        folder / "head_sparse_68.txt", folder / _LANDMARKS, weights.parents[2] / "landmarks" / _LANDMARKS.name
    )
    try:
        with zipfile.ZipFile(weights) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST:
                raise ValueError(f"it unpacks to more than {_LARGEST / 1e6:.0f} MB")
        with np.load(weights, allow_pickle=False) as file:
            arrays = {key: file[key] for key in LAYOUT}
    except Exception as error:  # numpy and zipfile have many kinds
        raise AssetError(f"{weights} is not GNM Head v3 ({_first_line(error)}); fetch it again.") from None
    for key, shape in LAYOUT.items():
        array = arrays[key]
        kind = "U" if key.endswith("names") else "iu" if key in ("triangles", "mirror_indices") else "fiu"
        fits = len(array.shape) == len(shape) and all(b in (a, -1) for a, b in zip(array.shape, shape))
        if not fits or array.dtype.kind not in kind or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise AssetError(f"'{key}' of {weights} must be finite {shape}; got {array.dtype} {array.shape}.")
    if len(arrays["vertex_groups"]) != len(arrays["vertex_group_names"]):
        raise AssetError(
            f"{weights} names {len(arrays['vertex_group_names'])} of {len(arrays['vertex_groups'])} groups."
        )
    try:
        if text.stat().st_size > 100_000:
            raise ValueError("it is too long")
        table = np.loadtxt(text, dtype=np.float64, ndmin=2)
        if table.shape != (68, 6) or not np.isfinite(table).all():
            raise ValueError(f"its table is {table.shape}")
    except (ValueError, OSError) as error:
        raise AssetError(
            f"{text} must hold 68 lines of vertex, weight, vertex, weight, vertex, weight ({_first_line(error)})."
        ) from None
    arrays["landmark_vertices"], arrays["landmark_weights"] = table[:, ::2].astype(np.int64), table[:, 1::2]
    for key in ("triangles", "mirror_indices", "landmark_vertices"):
        if arrays[key].min() < 0 or arrays[key].max() >= NUM_VERTICES:
            raise AssetError(f"'{key}' of GNM must count vertices 0..{NUM_VERTICES - 1}.")
    if np.abs(arrays["landmark_weights"].sum(1) - 1).max() > 0.01:
        raise AssetError(f"the weights of each line of {text} must sum to 1.")
    return arrays


def _first_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _first(*places: Path) -> Path:
    """The first that is there."""
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise AssetError(f"{places[0]} does not exist; give the folder that holds it.")
    return found


def _regions(arrays: Mapping[str, np.ndarray], faces: np.ndarray) -> dict[str, np.ndarray]:
    """Regions of triangles by the source's names; those that it does not name are left out."""
    names = [str(name) for name in arrays["vertex_group_names"]]

    def of(*groups: str) -> np.ndarray:
        """Triangles whose corners are all in one of the groups."""
        flags = np.zeros(len(faces), dtype=bool)
        for name in groups:
            if name in names:
                flags |= (arrays["vertex_groups"][names.index(name)] > 0.5)[faces].all(1)
        return flags

    jaws = of("upper_teeth_and_gums", "lower_teeth_and_gums")
    teeth = jaws & of("teeth") if "teeth" in names else jaws
    bag, sockets = of("skin") & of("mouth_sock"), of("skin") & of("eye_sockets")
    regions = {
        "skin": of("skin") & ~bag & ~sockets,
        "eyes": of("left_eye", "right_eye"),
        "sockets": sockets & ~bag,
        "mouth": bag | jaws | of("tongue"),
        "teeth": teeth,
        "tongue": of("tongue"),
        "lips": of("upper_lip", "lower_lip"),
        "ears": of("ears", "left_ear", "right_ear"),
        "face": of("hockey_mask"),
    }
    for name in ("lips", "ears", "face"):
        regions[name] &= regions["skin"]
        if not regions[name].any():
            del regions[name]
    if "face" in regions:
        regions["face"] |= regions.get("lips", False) | regions["eyes"]
    return regions


def gnm_model(arrays: Mapping[str, np.ndarray]) -> MorphableModel:
    """The head model of GNM's arrays, with its own 383 expression components in standard deviations, unbounded.

    Args:
        arrays: of :func:`read_gnm`.

    Raises:
        AssetError: parts of the mesh or landmarks are not as expected.
    """
    names = [str(name) for name in arrays["vertex_group_names"]]
    components = [str(name) for name in arrays["mesh_component_names"]]
    if missing := [name for name in _PLACES if name not in components or name not in names]:
        raise AssetError(f"GNM Head has no part '{missing[0]}'; its parts are {', '.join(components)[:200]}.")
    groups = {name: arrays["vertex_groups"][names.index(name)] > 0.5 for name in names}
    faces = arrays["triangles"].astype(np.int64)
    part = np.select([groups[name][faces].all(1) for name in _PLACES], range(len(_PLACES)), -1)
    # eyes are drawn as their outer shells
    keep = (part >= 0) & ~groups.get("eye_interiors", np.zeros(NUM_VERTICES, dtype=bool))[faces].all(1)
    faces, part = faces[keep], part[keep]

    corners = arrays["triangle_uvs"][keep].astype(np.float64)
    corners -= np.floor(corners.reshape(len(corners), -1, 2).min(1) + 1e-6)[:, None]  # of whatever UDIM tile
    if corners.min() < -1e-3 or corners.max() > 1 + 1e-3:
        raise AssetError("'triangle_uvs' of GNM must lie in one tile for each triangle.")
    table = np.array(list(_PLACES.values()))[part]
    corners = np.clip(corners, 0, 1) * table[:, None, 2:] + table[:, None, :2]
    uvs, uv_faces = np.unique(corners.reshape(-1, 2).astype(np.float32), axis=0, return_inverse=True)

    regions = _regions(arrays, faces)
    vertices = arrays["template_vertex_positions"].astype(np.float64) * 10
    points = np.einsum("nkc,nk->nc", vertices[arrays["landmark_vertices"]], arrays["landmark_weights"])
    if (np.diff(points[:17, 0]) <= 0).any():
        raise AssetError(
            "the jaw points of GNM's head_sparse_68.txt are out of order; take the file of google/GNM 0ae8cc7 or later."
        )
    vertices -= five_points(torch.from_numpy(points)[None])[0].numpy().mean(0) * [0, 1, 1]
    vertices += FIVE_POINT_CENTER
    points = np.einsum("nkc,nk->nc", vertices[arrays["landmark_vertices"]], arrays["landmark_weights"])
    rows = np.flatnonzero(part == list(_PLACES).index("skin"))
    found, barycentric, distance, _ = Surface(vertices, faces[rows]).locate(points)
    if distance.max() > 0.02:
        raise AssetError("the landmarks of GNM's head_sparse_68.txt do not lie on its skin.")

    mirror = arrays["mirror_indices"].astype(np.int64)
    if (mirror[mirror] != np.arange(NUM_VERTICES)).any():
        raise AssetError("'mirror_indices' of GNM must name each vertex's partner.")
    kinds = [str(name).rpartition("_")[0] for name in arrays["identity_names"]]
    used = [i for kind in ("head", "eyes", "eyeballs") for i, own in enumerate(kinds) if own == kind]
    if not used:
        raise AssetError(f"GNM Head names no identity 'head_000'; its first is '{arrays['identity_names'][0]}'.")
    return MorphableModel(
        mean=torch.from_numpy(vertices.astype(np.float32)),
        identity_basis=torch.from_numpy(arrays["vertex_identity_basis"][used].astype(np.float32) * 10),
        expression_basis=torch.from_numpy(arrays["expression_basis"].astype(np.float32) * 10),
        topology=bare_topology(
            "gnm",
            faces,
            uvs,
            uv_faces.reshape(-1, 3).astype(np.int64),
            (rows[found], barycentric),
            mirror,
            regions,
        ),
        name="gnm",
        expression_names=tuple(str(name) for name in arrays["expression_names"]),
    )


@in_own_modes
def load_gnm(path: str | Path, num_identity: int | None = None) -> MorphableModel:
    """GNM Head v3, frozen, in eval mode.

    Args:
        path: the converted file.
        num_identity: leading identity components to keep; None keeps all 173.

    Raises:
        AssetError: it is not a converted file.
        ConfigError: more components than there are.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise AssetError(f"{path} must be converted first; run: python -m facerecon.assets convert gnm {path}")
    return read_face_model(path, num_identity)
