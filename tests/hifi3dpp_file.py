"""A `.mat` file laid out as HiFi3D++'s, of the full official dimensions: the real one needs registration.

Mesh, UVs and mean albedo are those of the shared head in HiFi3D++ topology, so that a flipped or transposed texture
shows; landmarks are the release's; the bases are smooth random fields.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from facerecon.morphable.hifi3dpp import LANDMARKS_68_OF_86, LANDMARKS_86


def read_head(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, uvs, faces and uv faces (from 0) of the shared OBJ."""
    rows: dict[str, list] = {"v": [], "vt": [], "f": []}
    for line in path.read_text().splitlines():
        kind, *rest = line.split()
        rows[kind].append([part.split("/")[:2] for part in rest] if kind == "f" else [float(x) for x in rest])
    corners = np.array(rows["f"], dtype=np.int64) - 1
    return np.array(rows["v"]), np.array(rows["vt"])[:, :2], corners[..., 0], corners[..., 1]


def smooth_fields(points: np.ndarray, count: int, seed: int, length: float = 0.35) -> np.ndarray:
    """(V, 3, count) random fields of unit variance that change over ``length``."""
    rng = np.random.default_rng(seed)
    phase = points @ rng.normal(0, 1 / length, (3, 64)) + rng.uniform(0, 2 * np.pi, 64)
    waves = (np.sqrt(2 / 64) * np.cos(phase)).astype(np.float32)
    return (waves @ rng.normal(size=(64, 3 * count)).astype(np.float32)).reshape(-1, 3, count)


def hifi3dpp_arrays(reference: Path) -> dict[str, np.ndarray]:
    """The arrays of ``hifi3dpp_model_info.mat``, in the release's own conventions."""
    vertices, uvs, faces, uv_faces = read_head(reference / "ffhq_uv" / "teaser1_hifi3dpp_head.obj")
    count = len(vertices)
    uv = np.zeros((count, 2))
    uv[faces] = uvs[uv_faces]
    places = np.stack([1 - uv[:, 1], uv[:, 0]], 1) * 512
    texture = np.asarray(Image.open(reference / "ffhq_uv" / "teaser1_texture.png").convert("RGB"))
    size = len(texture)
    row, column = np.clip((places * (size / 512)).astype(int), 0, size - 1).T
    meantex = texture[row, column].astype(np.float32)

    center = vertices[faces].mean(1)
    at_front = np.where(center[:, 2] > -0.4, 0, 100) + np.where((uvs[uv_faces].mean(1)[:, 1] > 0.86), 100, 0)
    region = np.sort(np.argsort(at_front + (center[:, 0] / 0.8) ** 2 + ((center[:, 1] - 0.1) / 0.95) ** 2)[:18318])

    incident = np.full((count, 8), len(faces) + 1)
    filled = np.zeros(count, dtype=int)
    for corner in faces.T:
        for number, vertex in enumerate(corner, start=1):
            if filled[vertex] < 8:
                incident[vertex, filled[vertex]] = number
                filled[vertex] += 1
    fall = (0.12 / np.sqrt(1 + np.arange(532)) / 2).astype(np.float32)
    near_mouth = np.exp(-((vertices - [0, -0.3, 0.55]) ** 2).sum(1) / 0.3)[:, None, None].astype(np.float32)
    return {
        "meanshape": (vertices + [0.01, -0.02, 0.03]).reshape(1, -1).astype(np.float32),
        "meantex": meantex.reshape(1, -1),
        "idBase": (smooth_fields(vertices, 532, 1) * fall).reshape(3 * count, 532),
        "exBase": (smooth_fields(vertices, 45, 2, 0.15) * near_mouth * 0.05).reshape(3 * count, 45),
        "texBase": (smooth_fields(vertices, 439, 3) * fall[:439] * 100).reshape(3 * count, 439),
        "tri": faces[region].astype(np.int32) + 1,
        "head_tri": faces.astype(np.int32) + 1,
        "tri_vt": uv_faces[region].astype(np.int32) + 1,
        "head_tri_vt": uv_faces.astype(np.int32) + 1,
        "vt_list": uvs.astype(np.float32),
        "vtx_vt": places.astype(np.float32),
        "keypoints": np.array(LANDMARKS_86)[list(LANDMARKS_68_OF_86)][None].astype(np.int32) + 1,
        "point_buf": incident.astype(np.int32),
        "skinmask": (center_weight(vertices) > 0).astype(np.float32)[None],
    }


def center_weight(vertices: np.ndarray) -> np.ndarray:
    """Positive on the front of the face."""
    return 1 - (vertices[:, 0] / 0.8) ** 2 - ((vertices[:, 1] - 0.1) / 0.95) ** 2 - (vertices[:, 2] < 0)


def write_hifi3dpp(reference: Path, path: Path) -> Path:
    """The file itself, about 250 MB."""
    savemat(path, hifi3dpp_arrays(reference))
    return path
