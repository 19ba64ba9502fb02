"""HiFi3D++: a file of full official size in the release's conventions, against the arrays it was written from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from facerecon.errors import AssetError, ConfigError, FaceReconError, ShapeError
from facerecon.export import views
from facerecon.geometry.camera import clip_coordinates, project
from facerecon.geometry.lighting import sh_basis
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import read_image
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.convert import hifi3dpp as convert_hifi3dpp
from facerecon.morphable.hifi3dpp import (
    COEFFICIENTS,
    LANDMARKS_68_OF_86,
    LANDMARKS_86,
    LAYOUT,
    HiFi3DPP,
    fill_sockets,
    join_coefficients,
    params_to_vector,
    read_hifi3dpp,
    split_coefficients,
    vector_to_params,
)
from facerecon.morphable.regions import LANDMARK_MIRROR
from facerecon.perception import observe
from facerecon.render.rasterize import rasterize
from facerecon.types import Camera, SHLight


@pytest.fixture(scope="module")
def written(hifi3dpp_mat: Path) -> dict[str, np.ndarray]:
    return loadmat(hifi3dpp_mat)


@pytest.fixture(scope="module")
def source(hifi3dpp_mat: Path) -> HiFi3DPP:
    return read_hifi3dpp(hifi3dpp_mat)


@pytest.fixture(scope="module")
def model(hifi3dpp_mat: Path) -> MorphableModel:
    return load_face_model("hifi3dpp", num_identity=None, path=hifi3dpp_mat)


def test_arrays_are_the_files_in_this_librarys_conventions(source: HiFi3DPP, written: dict) -> None:
    mean = written["meanshape"].reshape(-1, 3).astype(np.float64)
    assert np.abs(source.mean - (mean - mean.mean(0))).max() < 1e-6
    assert np.abs(source.mean.mean(0)).max() < 1e-6
    for key, found in (("idBase", source.identity), ("exBase", source.expression)):
        assert np.array_equal(found.reshape(len(found), -1).T, written[key])
    assert np.allclose(source.albedo.reshape(439, -1).T * 255, written["texBase"], atol=1e-4)
    assert source.albedo_mean.min() >= 0 and source.albedo_mean.max() <= 1 and source.albedo_mean.mean() > 0.2
    for key, found in (("head_tri", source.faces), ("head_tri_vt", source.uv_faces), ("tri", source.face_region)):
        assert np.array_equal(found + 1, written[key])
        assert found.min() == 0 or key == "tri"
    assert tuple(source.keypoints) == tuple(np.array(LANDMARKS_86)[list(LANDMARKS_68_OF_86)])


def test_a_shape_is_the_releases_sum(model: MorphableModel, written: dict) -> None:
    generator = torch.Generator().manual_seed(1)
    params = model.neutral(1).replace(
        identity=torch.randn(1, 532, generator=generator),
        expression=torch.rand(1, 45, generator=generator),
        albedo=torch.randn(1, 439, generator=generator),
    )
    identity, expression, albedo = (x[0].double().numpy() for x in (params.identity, params.expression, params.albedo))
    shape = written["meanshape"][0] + written["idBase"] @ identity + written["exBase"] @ expression
    shape = shape.reshape(-1, 3) - written["meanshape"].reshape(-1, 3).mean(0)
    assert np.abs(model.shape(params)[0].numpy() - shape).max() < 2e-5
    color = (written["meantex"][0] + written["texBase"] @ albedo).reshape(-1, 3) / 255
    assert np.abs(model.albedo(params)[0].numpy() - color).max() < 2e-5


def test_texture_places_of_vertices_agree_with_their_uvs(source: HiFi3DPP) -> None:
    uv = np.zeros((len(source.mean), 2))
    uv[source.faces] = source.uvs[source.uv_faces]
    places = source.texel_places
    assert np.abs(np.stack([places[:, 1], 512 - places[:, 0]], 1) / 512 - uv).max() < 1e-4
    forehead, chin = source.mean[:, 1].argmax(), source.keypoints[8]
    assert source.texel_places[forehead, 0] < source.texel_places[chin, 0]  # rows run down


def test_the_68_points_are_symmetric_and_where_faces_have_them(model: MorphableModel, source: HiFi3DPP) -> None:
    points = model.landmarks3d(model.mean[None])[0]
    assert torch.equal(points, model.mean[source.keypoints])
    mirrored = points[list(LANDMARK_MIRROR)] * torch.tensor([-1.0, 1.0, 1.0])
    assert (mirrored - points).norm(dim=1).max() < 0.05  # the shared head is a person, not symmetric
    assert points[30, 2] == points[:, 2].max() and points[8, 1] == points[:, 1].min()
    assert (points[62, 1] > points[66, 1]) and (points[51, 1] > points[62, 1]) and (points[66, 1] > points[57, 1])
    assert (points[[37, 38], 1].min() > points[[40, 41], 1].max()) and points[36, 0] < points[39, 0]
    other = source.keypoints[np.array(LANDMARK_MIRROR)]
    inner = np.arange(17, 68)
    same = model.topology.mirror.numpy()[source.keypoints[inner]] == other[inner]
    assert same.mean() > 0.5  # many listed points are exact mirror images


def test_mirror_and_regions_of_the_release(model: MorphableModel, source: HiFi3DPP) -> None:
    topology = model.topology
    assert torch.equal(topology.mirror[topology.mirror], torch.arange(model.num_vertices))
    flipped = model.mean[topology.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    assert (flipped - model.mean).norm(dim=1).max() < 0.1
    count = {name: int(rows.sum()) for name, rows in topology.regions.items()}
    assert count["skin"] + count["eyes"] + count["mouth"] == 40832
    assert count["face"] >= 18318 and count["eyes"] == 2056
    center = model.mean[topology.faces].mean(1)
    assert center[topology.regions["eyes"], 1].min() > center[topology.regions["mouth"], 1].max()


def test_the_head_stands_upright_in_its_own_map(model: MorphableModel, reference: Path, observe_models) -> None:
    """A face is found on the render, its landmarks are the model's; a flipped or transposed map loses them."""
    texture = read_image(reference / "ffhq_uv" / "teaser1_texture.png")[None]
    vertices = model.mean[None]
    camera, pivot = views.portrait_camera(vertices, margin=1.0)
    shown = vertices - pivot
    truth = project(camera, model.landmarks3d(vertices) - pivot)[0, :, :2] * 512
    distance = (truth[45] - truth[36]).norm()

    def error(image: torch.Tensor) -> float:
        shot = views.shoot(shown, image, model.topology, camera, 512)
        # no shading: only the texture can tell where eyes, brows and lips are
        picture = (views.textured(shot, SHLight.ambient()) + 0.7 * (1 - shot.mask)).clamp(0, 1)
        try:
            photo = observe(picture)
        except FaceReconError:
            return math.inf
        points = photo.landmarks68[0] @ photo.fit.to_photo[0, :, :2].mT + photo.fit.to_photo[0, :, 2]
        return float(((points - truth)[17:].norm(dim=1).mean()) / distance)

    upright = error(texture)
    assert upright < 0.06
    for wrong in (texture.flip(2), texture.mT, texture.mT.flip(2)):
        assert error(wrong) > 3 * upright


def test_filled_sockets_bulge_behind_the_lids(model: MorphableModel) -> None:
    filled, topology = fill_sockets(model), model.topology
    moved = filled.mean - model.mean
    eyes = topology.regions["eyes"]
    sockets = torch.zeros(model.num_vertices, dtype=torch.bool)
    sockets[topology.faces[eyes].unique()] = True
    assert not moved[~sockets].any() and not moved[:, :2].any() and moved[:, 2].min() >= 0
    assert filled.identity_basis is model.identity_basis and filled.topology.faces is topology.faces
    points = model.landmarks3d(model.mean[None])[0]
    for lids in (points[36:42], points[42:48]):
        middle = lids.mean(0)
        near = sockets & ((model.mean[:, :2] - middle[:2]).norm(dim=1) < 0.03)
        before, after = model.mean[near, 2] - middle[2], filled.mean[near, 2] - middle[2]
        assert before.max() < -0.1 and after.min() > -0.05  # 1 cm deep, then level with the lids
        assert after.max() < 0.06
    # seen from in front, every lid landmark still lies before the socket
    shown = rasterize(clip_coordinates(Camera.deep3d(512), filled.mean[None]), topology.faces, (512, 512))[0]
    opening = project(Camera.deep3d(512), points[None])[0, 36:48, :2].round().long()
    seen = eyes[shown.clamp(min=0)] & (shown >= 0)
    low, high = opening.amin(0) - 8, opening.amax(0) + 8
    inside = torch.zeros_like(seen)
    inside[low[1] : high[1], low[0] : high[0]] = True
    assert seen.sum() > 400 and not (seen & ~inside).any()


# -- wrong files -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def light(written: dict) -> dict[str, np.ndarray]:
    """The same arrays with empty bases: quick to write."""
    small = {key: written[key] for key in LAYOUT}
    for key in ("idBase", "exBase", "texBase"):
        small[key] = np.zeros(LAYOUT[key], np.int8)
    return small


def _zero_based(arrays: dict) -> None:
    arrays["head_tri"] = arrays["head_tri"] - 1


def _transposed(arrays: dict) -> None:
    arrays["exBase"] = arrays["exBase"].T


def _missing(arrays: dict) -> None:
    del arrays["head_tri_vt"]


def _short(arrays: dict) -> None:
    arrays["meanshape"] = arrays["meanshape"][:, :-3]


def _not_finite(arrays: dict) -> None:
    arrays["meantex"] = np.where(np.arange(3 * 20481) == 7, np.nan, arrays["meantex"])


def _columns_first(arrays: dict) -> None:
    arrays["vtx_vt"] = arrays["vtx_vt"][:, ::-1]


def _struct(arrays: dict) -> None:
    arrays["tri"] = {"rows": arrays["tri"]}


def _objects(arrays: dict) -> None:
    arrays["keypoints"] = np.array([[1, "x"]], dtype=object)


def _uvs_in_pixels(arrays: dict) -> None:
    arrays["vt_list"] = arrays["vt_list"] * 512


@pytest.mark.parametrize(
    "degrade, words",
    [
        (_zero_based, "head_tri must hold whole numbers from 1 to 20481; got 0 to 20480"),
        (_transposed, r"exBase must be \(61443, 45\); got \(45, 61443\): it is transposed, save exBase.T"),
        (_missing, "lacks head_tri_vt"),
        (_short, r"meanshape must be \(1, 61443\); got \(1, 61440\)"),
        (_not_finite, "meantex holds NaN"),
        (_columns_first, r"vtx_vt must be \(row, column\)"),
        (_struct, "tri is a struct"),
        (_objects, "keypoints is a cell"),
        (_uvs_in_pixels, r"vt_list must lie in \[0, 1\]"),
    ],
)
def test_a_wrong_file_is_one_clear_line(degrade, words, light: dict, tmp_path: Path) -> None:
    arrays = dict(light)
    degrade(arrays)
    savemat(tmp_path / "model.mat", arrays)
    with pytest.raises(AssetError, match=words) as caught:
        read_hifi3dpp(tmp_path / "model.mat")
    assert "\n" not in str(caught.value)


def test_vectors_may_lie_either_way(light: dict, tmp_path: Path) -> None:
    arrays = {**light, "keypoints": light["keypoints"].T, "skinmask": light["skinmask"].T}
    savemat(tmp_path / "hifi3dpp_model_info.mat", arrays)
    assert len(read_hifi3dpp(tmp_path).keypoints) == 68  # a folder will do


def test_files_of_another_kind_are_refused(tmp_path: Path, hifi3dpp_mat: Path) -> None:
    with pytest.raises(AssetError, match="does not exist"):
        load_face_model("hifi3dpp", path=tmp_path / "nothing.mat")
    (tmp_path / "text.mat").write_text("not a mat file" * 100)
    with pytest.raises(AssetError, match="not a MATLAB 5 file"):
        read_hifi3dpp(tmp_path / "text.mat")
    (tmp_path / "empty.mat").write_bytes(b"")
    with pytest.raises(AssetError, match="not a MATLAB 5 file"):
        read_hifi3dpp(tmp_path / "empty.mat")
    (tmp_path / "cut.mat").write_bytes(hifi3dpp_mat.read_bytes()[: 1 << 20])
    with pytest.raises(AssetError):
        read_hifi3dpp(tmp_path / "cut.mat")
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 40)
    with pytest.raises(AssetError, match=r"7\.3"):
        read_hifi3dpp(tmp_path / "new.mat")
    with pytest.raises(ConfigError, match=r"0\.\.532"):
        read_hifi3dpp(hifi3dpp_mat, num_identity=533)


# -- the file of the library, the unwrap table -------------------------------------------------------------


def test_a_converted_file_holds_the_same_model(hifi3dpp_mat: Path, model: MorphableModel, tmp_path: Path) -> None:
    convert_hifi3dpp(hifi3dpp_mat, tmp_path / "hifi3dpp.safetensors")
    read = load_face_model("hifi3dpp", num_identity=100, path=tmp_path / "hifi3dpp.safetensors")
    assert read.num_identity == 100 and read.num_albedo == 439 and read.expression_bounds == model.expression_bounds
    assert torch.equal(read.mean, model.mean) and torch.equal(read.expression_basis, model.expression_basis)
    assert (read.identity_basis - model.identity_basis[:100]).abs().max() < 1e-3 * model.identity_basis.abs().max()
    for key in ("faces", "uvs", "uv_faces", "mirror", "landmark_faces"):
        assert torch.equal(getattr(read.topology, key), getattr(model.topology, key))
    for name, rows in model.topology.regions.items():
        assert torch.equal(read.topology.regions[name], rows)


# -- coefficients ------------------------------------------------------------------------------------------


def test_coefficients_there_and_back() -> None:
    vector = torch.randn(3, 1049, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    params = vector_to_params(vector)
    assert torch.allclose(params_to_vector(params), vector, atol=1e-14)
    parts = split_coefficients(vector)
    assert [part.shape[1] for part in parts.values()] == [532, 45, 439, 3, 27, 3]
    assert torch.equal(join_coefficients(parts), vector)
    cut = params_to_vector(vector_to_params(vector, num_identity=80))
    assert torch.equal(cut[:, :80], vector[:, :80]) and not cut[:, 80:532].any()
    assert torch.allclose(cut[:, 532:], vector[:, 532:])
    codes = torch.randn(3, 60)
    assert torch.equal(params_to_vector(params, codes)[:, 577 : 577 + 60], codes.double())


def test_wrong_coefficients_are_named(model: MorphableModel) -> None:
    with pytest.raises(ShapeError, match="1049"):
        split_coefficients(torch.zeros(1, 1048))
    with pytest.raises(ShapeError, match="lack 'trans'"):
        join_coefficients({name: torch.zeros(1, size) for name, size in COEFFICIENTS.items() if name != "trans"})
    params = model.neutral(1)
    with pytest.raises(ShapeError, match="face_model=hifi3dpp"):
        params_to_vector(params.replace(expression=torch.zeros(1, 52)))


@pytest.mark.parametrize("view", ["front", "left", "right"])
def test_released_coefficients_pose_and_light_as_the_release_does(reference: Path, view: str) -> None:
    with np.load(reference / "ffhq_uv" / "01223_coeffs.npz") as file:
        parts = {name: torch.from_numpy(file[f"{view}/{name}"]) for name in COEFFICIENTS}
    vector = join_coefficients(parts)
    assert vector.shape == (1, 1049)
    params = vector_to_params(vector)
    assert torch.allclose(params_to_vector(params), vector, atol=1e-6)

    # R = (Rz Ry Rx)^T, applied on the right
    x, y, z = parts["angle"][0].double().tolist()
    rx = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    ry = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    rz = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    rotation = torch.from_numpy((rz @ ry @ rx).T)
    points = torch.randn(20, 3, dtype=torch.float64)
    ours = points @ euler_to_matrix(params.rotation.double())[0].T
    assert torch.allclose(ours, points @ rotation, atol=1e-6)

    # gamma (3, 9) with 0.8 on the 0th band of each color
    gamma = parts["gamma"].reshape(3, 9).double().clone()
    gamma[:, 0] += 0.8
    normals = torch.nn.functional.normalize(points, dim=1)
    shading = sh_basis(normals) @ params.light.coefficients[0].double()
    assert torch.allclose(shading, sh_basis(normals) @ gamma.T, atol=1e-6)
    yaw = {"front": 0.0, "left": 22.2, "right": -23.0}[view]  # degrees, as the release's regressor measures
    assert abs(math.degrees(params.rotation[0, 1]) - yaw) < 2
