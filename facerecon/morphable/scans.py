"""Scanned faces that come in a package: the mean of many, and one textured scan.

PyPI menpo3d holds a template (53,349 vertices in micrometers, by its layout the mean of a scan-based face model, which
the package does not say) and one person's face with its photo texture (millimeters). Both have the 68 iBUG landmarks.
Here they become head meshes in this library's frame: 0.1 m, y up, the face looks at +z.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerecon import assets
from facerecon.errors import AssetError
from facerecon.modes import in_own_modes
from facerecon.storage import parse_json, read_bounded, read_safetensors, safetensors_bytes, write_whole

__all__ = ["ScannedFace", "convert_mean", "convert_person", "load_scan"]

_FOLDER = Path("menpo3d") / "data"
_LARGEST = 1 << 25  # bytes of a file
_TEMPLATE = 53_349, 106_111  # vertices, faces
_PERSON = 6_393, 12_228
_PERSON_ORDER = (*range(17), *range(29, 34), *range(43, 48), *range(34, 43), *range(17, 29), *range(48, 68))
"""iBUG's 68 points in the person's file, whose groups are chin, eyes, brow, nose, brow, mouth."""


@dataclass(frozen=True)
class ScannedFace:
    """A face as it was scanned.

    Args:
        vertices: (V, 3), 0.1 m, y up, the face looks at about +z.
        faces: (F, 3) int64.
        landmarks: (68, 3), iBUG.
        uvs: (T, 2), origin bottom-left; None without a texture.
        uv_faces: (F, 3) int64, or None.
        texture: its picture as a JPEG file, (N,) uint8, or None; holds the light of the scan.
    """

    vertices: Tensor
    faces: Tensor
    landmarks: Tensor
    uvs: Tensor | None = None
    uv_faces: Tensor | None = None
    texture: Tensor | None = None


@in_own_modes
def load_scan(name: str, path: Path | None = None) -> ScannedFace:
    """A scan: ``scan_mean`` or ``scan_james``, of the cache or of the file that is given.

    Raises:
        AssetError: it is not there yet, or its file is damaged.
    """
    keys = ["vertices", "faces", "landmarks"] + (["uvs", "uv_faces", "texture"] if name == "scan_james" else [])
    path = assets.locate(name) if path is None else path
    tensors = read_safetensors(path, "a scanned face", "run: python -m facerecon.assets fetch open", keys)[0]
    return ScannedFace(**{key: t.long() if key.endswith("faces") else t.clone() for key, t in tensors.items()})


def convert_mean(source: Path, target: Path) -> None:
    """The template of menpo3d.

    Args:
        source: folder of the unpacked package.
        target: the safetensors file, written whole or not at all.

    Raises:
        AssetError: a file is missing or is not the expected one.
    """
    folder = Path(source) / _FOLDER
    vertices, faces = _read_ply(folder / "template.ply")
    points = _read_landmarks(folder / "template.ljson")
    _write(target, _checked(vertices, faces, _TEMPLATE, "template.ply"), points, 1e-5)


def convert_person(source: Path, target: Path) -> None:
    """The textured scan of menpo3d; otherwise as :func:`convert_mean`."""
    folder = Path(source) / _FOLDER
    arrays = _read_obj(folder / "james.obj")
    _checked(arrays["vertices"], arrays["faces"], _PERSON, "james.obj")
    points = _read_landmarks(folder / "james.ljson")[list(_PERSON_ORDER)]
    picture = _bytes(folder / "james.jpg")
    _write(target, arrays | {"texture": np.frombuffer(picture, dtype=np.uint8)}, points, 1e-2)


def _bytes(path: Path) -> bytes:
    try:
        return read_bounded(path, _LARGEST)
    except (OSError, ValueError) as error:
        raise AssetError(f"{path} cannot be read ({error}); expected the unpacked menpo3d 0.8.6.") from None


def _checked(vertices: NDArray, faces: NDArray, counts: tuple[int, int], name: str) -> dict[str, NDArray]:
    if (len(vertices), len(faces)) != counts or not np.isfinite(vertices).all() or faces.max() >= counts[0]:
        raise AssetError(f"{name} is not the mesh of menpo3d 0.8.6: it has {len(vertices)} vertices, not {counts[0]}.")
    return {"vertices": vertices, "faces": faces}


def _read_ply(path: Path) -> tuple[NDArray, NDArray]:
    """Vertices (V, 3) and triangles (F, 3) of a binary little-endian PLY: positions first, colors after them."""
    head, mark, body = _bytes(path).partition(b"end_header\n")
    lines = head.decode("ascii", "replace").splitlines()
    counts = {words[1]: int(words[2]) for words in map(str.split, lines) if words[:1] == ["element"]}
    vertex = np.dtype([("place", "<f4", 3), ("color", "u1", 4)])
    face = np.dtype([("count", "u1"), ("corners", "<i4", 3)])
    size = counts.get("vertex", 0) * vertex.itemsize
    if not mark or len(body) != size + counts.get("face", 0) * face.itemsize:
        raise AssetError(f"{path} is not the PLY file of menpo3d 0.8.6; fetch it again.")
    faces = np.frombuffer(body[size:], face)["corners"]
    return np.frombuffer(body[:size], vertex)["place"].astype(np.float64), faces.astype(np.int64)


def _read_obj(path: Path) -> dict[str, NDArray]:
    """Vertices, UVs and triangles of an OBJ file without polygons."""
    rows: dict[str, list[list[str]]] = {"v": [], "vt": [], "f": []}
    for line in _bytes(path).decode("ascii", "replace").splitlines():
        kind, *fields = line.split() or [""]
        if kind in rows:
            rows[kind].append(fields)
    try:
        corners = np.array([[field.split("/")[:2] for field in face] for face in rows["f"]], dtype=np.int64) - 1
        vertices, uvs = (np.array(rows[kind], dtype=np.float64)[:, :n] for kind, n in (("v", 3), ("vt", 2)))
        return {"vertices": vertices, "faces": corners[..., 0], "uvs": uvs, "uv_faces": corners[..., 1]}
    except (ValueError, IndexError):
        raise AssetError(f"{path} is not the OBJ file of menpo3d 0.8.6; fetch it again.") from None


def _read_landmarks(path: Path) -> NDArray:
    """(68, 3) points of a landmark file of menpo."""
    try:
        points = np.array(parse_json(_bytes(path))["groups"]["LJSON"]["landmarks"]["points"], dtype=np.float64)
    except (ValueError, LookupError, TypeError):
        points = np.zeros(0)
    if points.shape != (68, 3) or not np.isfinite(points).all():
        raise AssetError(f"{path} does not hold 68 points; fetch it again.")
    return points


def _write(target: Path, arrays: dict[str, NDArray], landmarks: NDArray, unit: float) -> None:
    arrays = arrays | {"vertices": arrays["vertices"] * unit, "landmarks": landmarks * unit}
    kinds = {"f": np.float32, "i": np.int32, "u": np.uint8}
    packed = {key: torch.from_numpy(array.astype(kinds[array.dtype.kind])) for key, array in arrays.items()}
    write_whole(target, safetensors_bytes(packed, {"source": "PyPI menpo3d 0.8.6"}))
