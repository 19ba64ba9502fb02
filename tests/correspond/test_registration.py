"""Registration of two heads, against a deformation that is known, and on the models that are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon.correspond.registration import carry_points, nonrigid_icp, skin_surface
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.regions import REGIONS
from facerecon.types import MeshTopology


@pytest.fixture(scope="module")
def source(asset) -> MorphableModel:
    asset("makehuman")
    return load_face_model("makehuman", num_identity=8)


@pytest.fixture(scope="module")
def warped(source: MorphableModel) -> tuple[MorphableModel, torch.Tensor]:
    """Another person, scaled, turned and moved, with shuffled vertices, one candidate a landmark and few regions;
    and the true place of each source vertex."""
    generator = torch.Generator().manual_seed(5)
    params = source.sample(generator)
    shape = source.shape(params.replace(identity=0.7 * params.identity))[0]
    turn = torch.linalg.qr(torch.eye(3) + 0.05 * torch.randn(3, 3, generator=generator))[0]
    turn = turn * torch.sign(torch.diagonal(turn))
    truth = 1.15 * shape @ turn.T + torch.tensor([0.1, -0.2, 0.3])
    order = torch.randperm(len(truth), generator=generator)
    new = torch.empty_like(order)
    new[order] = torch.arange(len(order))
    here = source.topology
    topology = MeshTopology(
        faces=new[here.faces],
        uvs=here.uvs,
        uv_faces=here.uv_faces,
        landmark_faces=here.landmark_faces[:, :1],
        landmark_barycentric=here.landmark_barycentric[:, :1],
        mesh_points=torch.zeros(0, dtype=torch.int64),
        mesh_point_faces=torch.zeros(0, dtype=torch.int64),
        mesh_point_barycentric=torch.zeros(0, 3),
        mirror=new[here.mirror[order]],
        regions={name: here.regions[name] for name in ("skin", "eyes", "mouth", "face")},
        name="warped",
    )
    empty = torch.zeros(0, len(truth), 3)
    model = MorphableModel(truth[order], empty, empty, topology, "warped").eval()
    return model, truth


@pytest.fixture(scope="module")
def registered(source: MorphableModel, warped) -> np.ndarray:
    return nonrigid_icp(source, warped[0])


def test_a_known_deformation_is_found(source: MorphableModel, warped, registered: np.ndarray) -> None:
    regions = source.topology.regions
    face = np.unique(source.topology.faces[regions["face"] & regions["skin"]].numpy())
    error = np.linalg.norm(registered - warped[1].double().numpy(), axis=1)
    assert np.median(error[face]) < 0.015 and np.percentile(error[face], 95) < 0.06  # 1.5 and 6 mm of 0.1 m
    skin = np.unique(source.topology.faces[regions["skin"]].numpy())
    assert skin_surface(warped[0])[0].distance(registered[skin]).mean() < 0.005


def test_points_and_regions_land_where_they_belong(source: MorphableModel, warped, registered: np.ndarray) -> None:
    model, truth = warped
    ready = carry_points(source, model, registered)
    assert ready.topology.landmark_faces.shape[1] == 1 + source.topology.landmark_faces.shape[1]
    assert torch.allclose(ready.landmarks3d(model.mean[None]), model.landmarks3d(model.mean[None]), atol=1e-5)

    kept = {int(point): row for row, point in enumerate(source.topology.mesh_points)}
    rows = [kept[int(point)] for point in ready.topology.mesh_points]
    expected = source.mesh_points3d(truth[None])[0][rows]
    error = (ready.mesh_points3d(model.mean[None])[0] - expected).norm(dim=1)
    assert len(rows) > 200 and error.median() < 0.015

    overlap = {}
    for name in ("lips", "lids", "nose", "ears", "scalp", "neck", "forehead"):
        ours, true = ready.topology.regions[name], source.topology.regions[name]
        overlap[name] = ((ours & true).sum() / (ours | true).sum()).item()
    assert min(overlap.values()) > 0.75, overlap
    assert set(ready.topology.regions) <= set(REGIONS)


def test_the_carried_jaw_contour_slides(source: MorphableModel, warped, registered: np.ndarray) -> None:
    """Turned to the side, the contour of the far cheek moves as far out as the source's own does."""
    from facerecon.geometry.camera import project
    from facerecon.types import Camera

    model, truth = warped
    ready = carry_points(source, model, registered)
    camera = Camera.deep3d()
    params = source.neutral(1).replace(rotation=torch.tensor([[0.0, 0.5, 0.0]]))

    def contour(head: MorphableModel, vertices: torch.Tensor) -> torch.Tensor:
        return project(camera, head.landmarks3d(head.pose(vertices[None], params), camera))[0, :17, :2]

    fixed = project(camera, model.pose(model.landmarks3d(model.mean[None]), params))[0, :17, :2]
    moved, expected = contour(ready, model.mean), contour(source, truth)
    assert (moved - expected).norm(dim=1).mean() < 1.5  # px of 224
    assert (fixed - expected).norm(dim=1).mean() > 2 * (moved - expected).norm(dim=1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ict", "hifi3dpp"])
def test_real_heads_touch_everywhere_on_the_face(name: str, source: MorphableModel, request) -> None:
    if name == "ict":
        path = request.getfixturevalue("reference") / "ict" / "ict_facekit_light.npz"
    else:
        path: Path = request.getfixturevalue("hifi3dpp_mat")
    target = load_face_model(name, num_identity=0, path=path)
    registered = nonrigid_icp(source, target)
    regions = source.topology.regions
    face = np.unique(source.topology.faces[regions["face"] & regions["skin"] & ~regions["lids"] & ~regions["lips"]])
    distance = skin_surface(target)[0].distance(registered[face])
    assert np.median(distance) < 0.002 and np.percentile(distance, 99) < 0.06
    ready = carry_points(source, target, registered)
    points = (
        source.landmarks3d(torch.from_numpy(registered).float()[None])[0] - target.landmarks3d(target.mean[None])[0]
    )
    assert points[27:].norm(dim=1).mean() < 0.01 and len(ready.topology.mesh_points) > 200
    center = target.mean[target.topology.faces].mean(1)
    height = {part: center[rows, 1].mean().item() for part, rows in ready.topology.regions.items()}
    assert height["neck"] < height["lips"] < height["nose"] < height["brows"] < height["forehead"]
