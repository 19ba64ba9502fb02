"""ICT-FaceKit Light as a head model, held against the source's own arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon.errors import AssetError, ConfigError
from facerecon.geometry.alignment import five_points
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.ict import LANDMARKS, arkit_name, load_ict
from facerecon.morphable.makehuman import ARKIT_NAMES
from facerecon.render.uv import uv_raster


@pytest.fixture(scope="module")
def source(reference: Path) -> Path:
    return reference / "ict" / "ict_facekit_light.npz"


@pytest.fixture(scope="module")
def arrays(source: Path) -> dict[str, np.ndarray]:
    with np.load(source) as file:
        return {key: file[key] for key in file}


@pytest.fixture(scope="module")
def model(source: Path) -> MorphableModel:
    return load_face_model("ict", num_identity=None, path=source)


def test_shape_is_the_sources_in_decimeters(model: MorphableModel, arrays: dict) -> None:
    params = model.neutral(1)
    identity, expression = torch.randn(1, 100), torch.zeros(1, model.num_expression)
    expression[0, model.expression_names.index("jawOpen")] = 0.7
    expression[0, model.expression_names.index("cheekPuff")] = 0.5
    names = list(arrays["expression_names"])
    expected = arrays["vertices"].astype(np.float64) + np.tensordot(identity[0].double().numpy(), arrays["identity"], 1)
    for name, weight in (("jawOpen", 0.7), ("cheekPuff_L", 0.5), ("cheekPuff_R", 0.5)):
        expected += weight * arrays["expression"][names.index(name)].astype(np.float64)
    shape = model.shape(params.replace(identity=identity, expression=expression))[0].double().numpy()
    shift = shape[0] - expected[0] / 10
    assert np.abs(shape - expected[: len(shape)] / 10 - shift).max() < 1e-5


def test_landmarks_are_the_listed_vertices(model: MorphableModel) -> None:
    shape = model.shape(model.sample(torch.Generator().manual_seed(3), 2))
    assert torch.equal(model.landmarks3d(shape), shape[:, list(LANDMARKS)])
    points = model.landmarks3d(model.mean[None])[0]
    assert points[30, 2] == points[:, 2].max()  # the tip of the nose
    assert (points[36, 0] < 0 < points[45, 0]) and points[8, 1] == points[:, 1].min()


def test_lies_in_the_released_frame(model: MorphableModel) -> None:
    from facerecon.perception import MEAN_FIVE_POINTS

    five = five_points(model.landmarks3d(model.mean[None]))[0]
    assert (five - MEAN_FIVE_POINTS).abs().max() < 0.02  # 2 mm


def test_expression_units_have_arkit_names(model: MorphableModel) -> None:
    assert set(ARKIT_NAMES) - {"tongueOut"} <= set(model.expression_names)
    assert arkit_name("mouthSmile_R") == "mouthSmileRight" and arkit_name("browInnerUp_L") == "browInnerUp"
    smile = model.expression_basis[model.expression_names.index("mouthSmileLeft")]
    corner = smile[LANDMARKS[54]]
    assert corner[1] > 0.03 and corner[0] > 0 and smile[LANDMARKS[48]].norm() < 0.01


def test_mirror_is_an_involution_and_mirrors(model: MorphableModel) -> None:
    mirror = model.topology.mirror
    assert torch.equal(mirror[mirror], torch.arange(len(mirror)))
    flipped = model.mean[mirror] * torch.tensor([-1.0, 1.0, 1.0])
    assert (flipped - model.mean).norm(dim=1).max() < 5e-3


def test_uv_charts_lie_apart_in_the_unit_square(model: MorphableModel) -> None:
    topology = model.topology
    assert topology.uvs.min() >= 0 and topology.uvs.max() <= 1
    corners = topology.uvs[topology.uv_faces].double()
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]).abs().sum() / 2
    covered = (uv_raster(topology, 512).face_index >= 0).double().mean()
    assert abs(area.item() - covered.item()) < 0.01  # nothing overlaps


def test_faces_look_outward_and_regions_are_where_they_belong(model: MorphableModel) -> None:
    topology = model.topology
    corners = model.mean[topology.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    center = corners.mean(1)
    outward = (normal * (center - torch.tensor([0.0, 0.1, 0.3]))).sum(1) > 0
    assert outward[topology.regions["scalp"]].float().mean() > 0.95
    forehead = topology.regions["face"] & (center[:, 1] > 0.75)
    assert forehead.sum() > 300 and (normal[forehead, 2] > 0).all()
    assert not (topology.regions["face"] & topology.regions["neck"]).any()
    height = {name: center[rows, 1].mean().item() for name, rows in topology.regions.items()}
    assert height["neck"] < height["lips"] < height["ears"] < height["eyes"] < height["scalp"]


def test_reads_a_clone_of_the_repository(arrays: dict, model: MorphableModel, tmp_path: Path) -> None:
    folder = tmp_path / "ICT-FaceKit" / "FaceXModel"
    folder.mkdir(parents=True)
    mean = arrays["vertices"]

    def write(name: str, vertices: np.ndarray, rest: str = "") -> None:
        lines = "\n".join("v {:.6f} {:.6f} {:.6f}".format(*v) for v in vertices)
        (folder / f"{name}.obj").write_text(lines + "\n" + rest)

    rest = ["vt {:.6f} {:.6f}".format(*uv) for uv in arrays["uv"]]
    for quad, uv_quad in zip(arrays["faces"], arrays["faces_uv"]):
        rest.append("f " + " ".join(f"{v + 1}/{t + 1}" for v, t in zip(quad, uv_quad) if v >= 0))
    write("generic_neutral_mesh", mean, "\n".join(rest) + "\n")
    write("identity000", mean + arrays["identity"][0])
    names = list(arrays["expression_names"])
    write("jawOpen", mean + arrays["expression"][names.index("jawOpen")])
    read = load_ict(tmp_path / "ICT-FaceKit")
    assert torch.equal(read.topology.faces, model.topology.faces)
    assert torch.allclose(
        read.topology.uvs[read.topology.uv_faces], model.topology.uvs[model.topology.uv_faces], atol=1e-5
    )
    assert torch.allclose(read.identity_basis[0], model.identity_basis[0], atol=1e-6)
    jaw = model.expression_basis[model.expression_names.index("jawOpen")]
    assert read.expression_names == ("jawOpen",) and torch.allclose(read.expression_basis[0], jaw, atol=1e-6)


def test_missing_or_wrong_files_say_what_to_do(tmp_path: Path, source: Path) -> None:
    with pytest.raises(AssetError, match=r"git clone https://github\.com/ICT-VGL/ICT-FaceKit"):
        load_face_model("ict", path=tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(AssetError, match="expected arrays vertices"):
        load_ict(tmp_path / "text.npz")
    with pytest.raises(AssetError, match="FaceXModel"):
        load_ict(tmp_path)
    with pytest.raises(ConfigError, match=r"0\.\.100"):
        load_ict(source, num_identity=101)
