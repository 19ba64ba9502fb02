"""HiFi3D++ (the head model of FFHQ-UV): its `.mat` files, its conventions, and its 1049 coefficients.

Users get ``hifi3dpp_model_info.mat`` from the authors, after registration:
https://github.com/csbhr/FFHQ-UV. What a file must hold is in :data:`LAYOUT`; :func:`read_hifi3dpp` holds it against
that before anything is used. Only numeric arrays of MATLAB's version 5 format are read: nothing in a file is run.

Conventions of the release: faces, keypoints and ``point_buf`` count from 1; the mean shape is recentered on loading;
albedo is in 0..255; vertices are in 0.1 m in the released camera's frame; the head has no eyeballs, its eyes are
painted on the sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat, whosmat
from scipy.spatial import cKDTree
from torch import Tensor

from facerecon.errors import AssetError, ConfigError, ShapeError, check_shape
from facerecon.geometry.lighting import gamma_to_light, light_to_gamma
from facerecon.geometry.mesh import face_components
from facerecon.modes import in_own_modes
from facerecon.morphable.eyes import socket_sphere, vertices_of
from facerecon.morphable.model import MorphableModel, bare_topology, read_face_model
from facerecon.morphable.regions import in_polygon, mirror_vertices
from facerecon.types import FaceParams

__all__ = [
    "COEFFICIENTS",
    "LANDMARKS_68_OF_86",
    "LANDMARKS_86",
    "LAYOUT",
    "HiFi3DPP",
    "vector_to_params",
    "fill_sockets",
    "hifi3dpp_model",
    "join_coefficients",
    "load_hifi3dpp",
    "params_to_vector",
    "read_hifi3dpp",
    "split_coefficients",
]

NUM_VERTICES, NUM_UVS = 20481, 20792
NUM_FACES, NUM_FACE_REGION = 40832, 18318
NUM_IDENTITY, NUM_EXPRESSION, NUM_ALBEDO = 532, 45, 439

LAYOUT: dict[str, tuple[int, ...]] = {
    "meanshape": (1, 3 * NUM_VERTICES),
    "meantex": (1, 3 * NUM_VERTICES),
    "idBase": (3 * NUM_VERTICES, NUM_IDENTITY),
    "exBase": (3 * NUM_VERTICES, NUM_EXPRESSION),
    "texBase": (3 * NUM_VERTICES, NUM_ALBEDO),
    "tri": (NUM_FACE_REGION, 3),
    "head_tri": (NUM_FACES, 3),
    "tri_vt": (NUM_FACE_REGION, 3),
    "head_tri_vt": (NUM_FACES, 3),
    "vt_list": (NUM_UVS, 2),
    "vtx_vt": (NUM_VERTICES, 2),
    "keypoints": (1, 68),
    "point_buf": (NUM_VERTICES, 8),
    "skinmask": (1, NUM_VERTICES),
}
"""Arrays of ``hifi3dpp_model_info.mat`` and their shapes; a vector may lie either way."""

_COUNTED_FROM_1 = {
    "tri": NUM_VERTICES,
    "head_tri": NUM_VERTICES,
    "tri_vt": NUM_UVS,
    "head_tri_vt": NUM_UVS,
    "keypoints": NUM_VERTICES,
    "point_buf": NUM_FACES + 1,
}
"""Arrays of indices and the largest value each may have."""

COEFFICIENTS = {"id": 532, "exp": 45, "tex": 439, "angle": 3, "gamma": 27, "trans": 3}
"""Parts of the regressor's (B, 1049) vector, in their order."""

LANDMARKS_86 = (
    *(11592, 10911, 11580, 10681, 2653, 11654, 4566, 18648, 6648, 16094, 2022, 6476, 27, 5499, 6400, 5730, 6411),
    *(11877, 3454, 18705, 18707, 3484, 12056, 3513, 12133, 12130, 939, 16153, 16151, 909, 6712, 6965, 6969, 968, 6893),
    *(14083, 4644, 4649, 3933, 12559, 12384, 4647, 12775, 1388, 2109, 2104, 8983, 7227, 7416, 2107, 7636),
    *(741, 7450, 686, 7279, 13894, 8793, 12647, 7511, 14364, 9270, 12451, 12084, 7273, 6920, 7306),
    *(13226, 4302, 735, 1757, 8108, 7917, 13216, 8098, 16646, 19200, 13077, 7950, 13175, 726, 8049, 19180),
    *(7865, 16626, 19203, 16649),
)
"""Vertices (from 0) of the release's 86 landmarks."""

LANDMARKS_68_OF_86 = (
    *range(22),
    *range(26, 31),
    *(51, 52, 53, 54, 61, 62, 63, 64, 65),
    *(35, 36, 37, 38, 39, 40, 43, 44, 45, 46, 47, 48),
    *(66, 72, 67, 68, 69, 73, 70, 74, 85, 71, 84, 75),
    *(76, 78, 79, 80, 77, 83, 82, 81),
)
"""Which of the 86 are the 68 iBUG points: the others are lower edges of the brows, middles of the lids, sides of the
nose."""


# -- files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HiFi3DPP:
    """The arrays of ``hifi3dpp_model_info.mat`` in this library's conventions: indices from 0, albedo in [0, 1].

    Args:
        mean: (V, 3), mean of the vertices at 0.
        identity: (I, V, 3).
        expression: (45, V, 3).
        albedo_mean: (V, 3) in [0, 1].
        albedo: (439, V, 3), of albedo in [0, 1].
        faces, uv_faces: (40832, 3), the head.
        face_region: (18318, 3), what the release renders.
        uvs: (20792, 2), origin bottom-left.
        texel_places: (V, 2) (row, column) in 0..512 of each vertex.
        keypoints: (68,) vertices.
        skin: (V,) in [0, 1].
    """

    mean: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    albedo_mean: np.ndarray
    albedo: np.ndarray
    faces: np.ndarray
    uv_faces: np.ndarray
    face_region: np.ndarray
    uvs: np.ndarray
    texel_places: np.ndarray
    keypoints: np.ndarray
    skin: np.ndarray


def _read_mat(path: Path, layout: Mapping[str, tuple[int, ...]], what: str) -> dict[str, np.ndarray]:
    """Numeric arrays of a MATLAB 5 file, each of the layout's shape; vectors may lie either way."""
    advice = f"expected {what}, see the release's README"
    if not path.is_file():
        raise AssetError(f"{path} does not exist; ask its authors for it (https://github.com/csbhr/FFHQ-UV).")
    try:
        with open(path, "rb") as file:
            known = {name: (shape, kind) for name, shape, kind in whosmat(file)}
    except NotImplementedError:
        raise AssetError(f"{path} is a MATLAB 7.3 file; save it again with '-v7' or scipy.io.savemat.") from None
    except Exception as error:  # scipy's parser has many kinds
        raise AssetError(f"{path} is not a MATLAB 5 file ({_first_line(error)}); {advice}.") from None
    missing = [key for key in layout if key not in known]
    if missing:
        there = ", ".join(sorted(known)) or "nothing"
        raise AssetError(f"{path} lacks {', '.join(missing)}; {advice}. It holds: {there}.")
    for key, shape in layout.items():
        found, kind = known[key]
        if kind in ("cell", "struct", "object", "char", "function", "opaque", "sparse"):
            raise AssetError(f"{path}: {key} is a {kind}, expected a numeric array {shape}; {advice}.")
        if tuple(found) == shape or (1 in shape and sorted(found) == sorted(shape)):
            continue
        advice = f"it is transposed, save {key}.T" if tuple(found) == shape[::-1] else advice
        raise AssetError(f"{path}: {key} must be {shape}; got {tuple(found)}: {advice}.")
    try:
        with open(path, "rb") as file:
            arrays = loadmat(file, variable_names=list(layout), struct_as_record=False)
    except Exception as error:
        raise AssetError(f"{path} is damaged ({_first_line(error)}); get it again.") from None
    for key, shape in layout.items():
        array = arrays[key]
        if array.dtype.kind not in "iufb":
            raise AssetError(f"{path}: {key} holds {array.dtype}, expected real numbers; {advice}.")
        if not np.isfinite(array).all():
            raise AssetError(f"{path}: {key} holds NaN or infinity; get the file again.")
        arrays[key] = array.reshape(shape)
    return {key: arrays[key] for key in layout}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_hifi3dpp(path: str | Path, num_identity: int | None = None) -> HiFi3DPP:
    """Read and check ``hifi3dpp_model_info.mat``.

    Args:
        path: the file, or a folder that holds it.
        num_identity: leading identity components to keep; None keeps all.

    Raises:
        AssetError: missing, another kind of file, a missing key, a wrong or transposed shape, indices that do not count
            from 1, texture places in (column, row) order.
        ConfigError: more components than 532.
    """
    count = NUM_IDENTITY if num_identity is None else num_identity
    if not 0 <= count <= NUM_IDENTITY:
        raise ConfigError(f"num_identity must be 0..{NUM_IDENTITY} for 'hifi3dpp'; got {num_identity}.")
    path = Path(path)
    if path.is_dir():
        path = path / "hifi3dpp_model_info.mat"
    arrays = _read_mat(path, LAYOUT, "hifi3dpp_model_info.mat")
    for key, largest in _COUNTED_FROM_1.items():
        index = arrays[key]
        low, high = int(index.min()), int(index.max())
        if low < 1 or high > largest or (index != np.floor(index)).any():
            raise AssetError(f"{path}: {key} must hold whole numbers from 1 to {largest}; got {low} to {high}.")
        arrays[key] = index.astype(np.int64) - 1

    def vertices(values: np.ndarray) -> np.ndarray:
        """(3V, K) or (1, 3V) -> (K, V, 3) float32."""
        columns = values.T if values.shape[0] == 3 * NUM_VERTICES else values
        return np.ascontiguousarray(columns, dtype=np.float32).reshape(len(columns), NUM_VERTICES, 3)

    mean = arrays["meanshape"].astype(np.float64).reshape(NUM_VERTICES, 3)
    uvs = arrays["vt_list"].astype(np.float32)
    if uvs.min() < -1e-3 or uvs.max() > 1 + 1e-3:
        raise AssetError(f"{path}: vt_list must lie in [0, 1]; got {uvs.min():.3g} to {uvs.max():.3g}.")
    places = arrays["vtx_vt"].astype(np.float64)
    _check_order(path, places, uvs, arrays["head_tri"], arrays["head_tri_vt"])
    return HiFi3DPP(
        mean=(mean - mean.mean(0)).astype(np.float32),
        identity=vertices(arrays["idBase"][:, :count]),
        expression=vertices(arrays["exBase"]),
        albedo_mean=vertices(arrays["meantex"])[0] / 255,
        albedo=vertices(arrays["texBase"]) / 255,
        faces=arrays["head_tri"],
        uv_faces=arrays["head_tri_vt"],
        face_region=arrays["tri"],
        uvs=uvs,
        texel_places=places,
        keypoints=arrays["keypoints"].ravel(),
        skin=arrays["skinmask"].ravel().astype(np.float32),
    )


def _check_order(path: Path, places: np.ndarray, uvs: np.ndarray, faces: np.ndarray, uv_faces: np.ndarray) -> None:
    """Refuse texture places that lie in (column, row) order: half the vertices agree with their UVs only if swapped."""
    uv = np.zeros((len(places), 2))
    uv[faces] = uvs[uv_faces]
    expected = np.stack([1 - uv[:, 1], uv[:, 0]], 1) * 512
    right, swapped = (np.median(np.abs(order - expected).max(1)) for order in (places, places[:, ::-1]))
    if swapped < 3 < right:
        raise AssetError(f"{path}: vtx_vt must be (row, column) in 0..512; got (column, row): save vtx_vt[:, ::-1].")


# -- model -------------------------------------------------------------------------------------------------


def _parts(source: HiFi3DPP) -> dict[str, np.ndarray]:
    """Faces of the outer skin, the eye sockets and the mouth bag: islands of the UV map, told by where they lie."""
    of_face = face_components(source.uv_faces, len(source.uvs))
    skin = of_face == np.bincount(of_face).argmax()
    nose_base = source.mean[source.keypoints[33], 1]
    height = source.mean[source.faces].mean(1)[:, 1]
    middle = np.bincount(of_face, height) / np.maximum(np.bincount(of_face), 1)
    above = middle[of_face] > nose_base
    return {"skin": skin, "eyes": ~skin & above, "mouth": ~skin & ~above}


def _regions(source: HiFi3DPP) -> dict[str, np.ndarray]:
    """Regions of the head's faces; the others of :data:`~facerecon.morphable.regions.REGIONS` are carried over."""
    parts = _parts(source)

    def key(faces: np.ndarray) -> np.ndarray:
        ordered = np.sort(faces, 1)
        return (ordered[:, 0] * NUM_VERTICES + ordered[:, 1]) * NUM_VERTICES + ordered[:, 2]

    region = np.isin(key(source.faces), key(source.face_region))
    if not region.any():
        raise AssetError("the face region of the HiFi3D++ file shares no triangle with its head; get the file again.")
    center = source.mean[source.faces].mean(1)
    points = source.mean[source.keypoints]
    front = center[:, 2] > points[[48, 54], 2].min() - 0.1
    lips = parts["skin"] & front & in_polygon(center[:, 0], center[:, 1], points[48:60, :2])
    return {
        "face": (region & ~parts["mouth"]) | parts["eyes"],
        "skin": parts["skin"],
        "eyes": parts["eyes"],
        "mouth": parts["mouth"],
        "lips": lips,
    }


def _mirror(source: HiFi3DPP) -> np.ndarray:
    """(V,) the vertex on the other side: by the UV map, which is mirror symmetric; by the mean shape if it is not."""
    vertex = np.full(len(source.uvs), -1)
    vertex[source.uv_faces] = source.faces
    used = np.flatnonzero(vertex >= 0)
    distance, nearest = cKDTree(source.uvs[used]).query(source.uvs[used] * [-1, 1] + [1, 0])
    mirror = np.arange(len(source.mean))
    mirror[vertex[used]] = vertex[used[nearest]]
    if distance.max() > 1e-3 or (mirror[mirror] != np.arange(len(mirror))).any():
        return mirror_vertices(source.mean)
    return mirror


def hifi3dpp_model(source: HiFi3DPP) -> MorphableModel:
    """The head model of the file's arrays; albedo included, expression weights >= 0 as the release's regressor's."""
    faces = source.faces
    first = np.full((NUM_VERTICES, 2), -1)
    first[faces[::-1].ravel(), 0] = np.repeat(np.arange(len(faces))[::-1], 3)
    first[faces[::-1].ravel(), 1] = np.tile(np.arange(3), len(faces))
    if (first[source.keypoints] < 0).any():
        raise AssetError("a keypoint of the HiFi3D++ file lies on no face of its head; get the file again.")
    landmarks = first[source.keypoints, 0], np.eye(3)[first[source.keypoints, 1]]
    topology = bare_topology(
        "hifi3dpp", faces, source.uvs, source.uv_faces, landmarks, _mirror(source), _regions(source)
    )
    return MorphableModel(
        mean=torch.from_numpy(source.mean),
        identity_basis=torch.from_numpy(source.identity),
        expression_basis=torch.from_numpy(source.expression),
        topology=topology,
        name="hifi3dpp",
        expression_names=tuple(f"expression{index:02d}" for index in range(len(source.expression))),
        expression_bounds=(0.0, float("inf")),
        albedo_mean=torch.from_numpy(source.albedo_mean),
        albedo_basis=torch.from_numpy(source.albedo),
    )


def fill_sockets(model: MorphableModel) -> MorphableModel:
    """The same model with eyes that bulge: its sockets are brought forward to where an eyeball's front would be.

    The release paints eyes on the bottom of empty sockets, which look blind as soon as the head turns. Here the depth
    of the mean shape's socket vertices becomes that of a sphere behind the lids; their x and y, the rest of the head,
    the bases and so the coefficients stay. Unlike FFHQ-UV; :func:`load_hifi3dpp` alone gives the mean shape as it is.
    """
    topology = model.topology
    mean = model.mean.detach().cpu().double().numpy().copy()
    faces, eyes = topology.faces.cpu().numpy(), topology.regions["eyes"].cpu().numpy()
    points = model.landmarks3d(model.mean[None])[0].detach().cpu().double().numpy()
    on_skin = vertices_of(faces[~eyes], len(mean))
    inside = np.unique(faces[eyes])
    for lids in (points[36:42], points[42:48]):
        rows = inside[np.abs(mean[inside, 0] - lids[:, 0].mean()) < 0.96 * np.ptp(lids[:, 0])]
        center, radius = socket_sphere(mean[rows], on_skin[rows], lids)
        reach = np.linalg.norm(mean[rows, :2] - center[:2], axis=1)
        covered = (reach < radius) & ~on_skin[rows]
        front = center[2] + np.sqrt(np.maximum(radius**2 - reach**2, 0))
        mean[rows[covered], 2] = np.maximum(mean[rows[covered], 2], front[covered])
    return model.with_mean(torch.from_numpy(mean).to(model.mean))


@in_own_modes
def load_hifi3dpp(path: str | Path, num_identity: int | None = None) -> MorphableModel:
    """HiFi3D++, frozen, in eval mode.

    Args:
        path: ``hifi3dpp_model_info.mat``, a folder that holds it, or a converted file.
        num_identity: leading identity components to keep; None keeps all 532.

    Raises:
        AssetError: nothing is there, or it is something else.
        ConfigError: more components than there are.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_face_model(path, num_identity)
    return hifi3dpp_model(read_hifi3dpp(path, num_identity)).eval().requires_grad_(False)


# -- coefficients ------------------------------------------------------------------------------------------


def split_coefficients(vector: Tensor) -> dict[str, Tensor]:
    """Cut (B, 1049) into id, exp, tex, angle, gamma, trans (see :data:`COEFFICIENTS`)."""
    check_shape("coefficients", vector, f"B {sum(COEFFICIENTS.values())}")
    return dict(zip(COEFFICIENTS, vector.split(list(COEFFICIENTS.values()), 1)))


def join_coefficients(parts: Mapping[str, Tensor]) -> Tensor:
    """Put parts together again, gamma as (B, 27) or (B, 3, 9): (B, 1049).

    Raises:
        ShapeError: a part is missing or of another size.
    """
    rows = []
    for name, size in COEFFICIENTS.items():
        if name not in parts:
            raise ShapeError(f"coefficients lack '{name}'; expected {', '.join(COEFFICIENTS)}.")
        part = parts[name].flatten(1) if parts[name].ndim > 1 else parts[name]
        check_shape(name, part, f"B {size}")
        rows.append(part)
    return torch.cat(rows, 1)


def vector_to_params(vector: Tensor, num_identity: int | None = None) -> FaceParams:
    """The regressor's (B, 1049) vector as parameters of the HiFi3D++ model.

    gamma is (3 colors x 9 bands); the release adds 0.8 to band 0 when it shades, here the light includes it.

    Args:
        vector: (B, 1049).
        num_identity: components that the model was loaded with; the rest is cut off.

    Returns:
        FaceParams with identity (B, I), expression (B, 45), albedo (B, 439).
    """
    parts = split_coefficients(vector)
    return FaceParams(
        identity=parts["id"][:, :num_identity],
        expression=parts["exp"],
        albedo=parts["tex"],
        rotation=parts["angle"],
        translation=parts["trans"],
        light=gamma_to_light(parts["gamma"]),
    )


def params_to_vector(params: FaceParams, albedo: Tensor | None = None) -> Tensor:
    """Parameters of the HiFi3D++ model as the release's (B, 1049) vector; components that were cut off are 0.

    Args:
        params: of a fit with this model.
        albedo: (B, A) in place of ``params.albedo``; for a fit with decoder=albedo ``face.latent.codes[:, 0]``.

    Raises:
        ShapeError: parameters of another model.
    """
    parts = {"id": params.identity, "exp": params.expression, "tex": params.albedo if albedo is None else albedo}
    for name, part in parts.items():
        if part.ndim != 2 or part.shape[1] > COEFFICIENTS[name] or (name == "exp" and part.shape[1] != 45):
            raise ShapeError(
                f"{name} must be (B, up to {COEFFICIENTS[name]}) to be HiFi3D++ coefficients; got {tuple(part.shape)}. "
                "Fit with face_model=hifi3dpp."
            )
        parts[name] = torch.nn.functional.pad(part, (0, COEFFICIENTS[name] - part.shape[1]))
    gamma = light_to_gamma(params.light)
    return join_coefficients({**parts, "angle": params.rotation, "gamma": gamma, "trans": params.translation})
