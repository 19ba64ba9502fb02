"""MorphableModel against closed forms, on a small made-up head and on the converted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from facerecon.errors import AssetError, ConfigError, ShapeError
from facerecon.geometry.camera import project
from facerecon.morphable import MorphableModel, load_face_model, read_face_model
from facerecon.render import Renderer
from facerecon.types import Camera, MeshTopology


def tiny_model(identity: int = 3, expression: int = 2) -> MorphableModel:
    """A 12-vertex cloud with 68 landmarks on random triangles, each jaw point with two candidates."""
    generator = torch.Generator().manual_seed(0)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    weights = torch.rand(68, 2, 3, generator=generator)
    topology = MeshTopology(
        faces=faces,
        uvs=torch.rand(12, 2, generator=generator),
        uv_faces=faces,
        landmark_faces=torch.randint(0, 4, (68, 2), generator=generator),
        landmark_barycentric=weights / weights.sum(-1, keepdim=True),
        mesh_points=torch.tensor([1, 7]),
        mesh_point_faces=torch.tensor([0, 3]),
        mesh_point_barycentric=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]),
        mirror=torch.arange(12),
        regions={"face": torch.tensor([True, True, False, True])},
        name="tiny",
    )
    return MorphableModel(
        torch.randn(12, 3, generator=generator),
        torch.randn(identity, 12, 3, generator=generator),
        torch.randn(expression, 12, 3, generator=generator),
        topology,
        name="tiny",
        expression_names=("a", "b"),
        expression_bounds=(0.0, 1.0),
    )


def random_params(model: MorphableModel, batch: int = 2):
    params = model.sample(torch.Generator().manual_seed(1), batch)
    return params.replace(
        expression=torch.rand(batch, model.num_expression),
        rotation=torch.randn(batch, 3) * 0.4,
        translation=torch.randn(batch, 3),
    )


def test_shape_is_the_sum_over_components() -> None:
    model = tiny_model()
    params = random_params(model)
    shape = model.shape(params)
    for b in range(2):
        expected = model.mean.clone()
        for i in range(3):
            expected = expected + params.identity[b, i] * model.identity_basis[i]
        torch.testing.assert_close(model.neutral_shape(params)[b], expected)
        for e in range(2):
            expected = expected + params.expression[b, e] * model.expression_basis[e]
        torch.testing.assert_close(shape[b], expected)


def test_posed_is_rotated_unposed_plus_translation() -> None:
    model = tiny_model()
    params = random_params(model).replace(rotation=torch.tensor([[0.0, torch.pi / 2, 0.0], [torch.pi / 2, 0.0, 0.0]]))
    unposed, posed = model.shape(params), model(params)
    x, y, z = unposed[0].unbind(-1)
    torch.testing.assert_close(posed[0], torch.stack([z, y, -x], -1) + params.translation[0])
    x, y, z = unposed[1].unbind(-1)
    torch.testing.assert_close(posed[1], torch.stack([x, -z, y], -1) + params.translation[1])


def test_neutral_is_the_mean_and_a_batch_is_its_members() -> None:
    model = tiny_model()
    torch.testing.assert_close(model(model.neutral(2)), model.mean.expand(2, -1, -1))
    params = random_params(model, 3)
    torch.testing.assert_close(model(params)[1:2], model(params[1]))


def test_landmarks_interpolate_their_first_candidate() -> None:
    model = tiny_model()
    vertices = torch.randn(2, 12, 3)
    points = model.landmarks3d(vertices)
    topology = model.topology
    for k in (0, 16, 40):
        corners = vertices[:, topology.faces[topology.landmark_faces[k, 0]]]
        expected = (corners * topology.landmark_barycentric[k, 0][None, :, None]).sum(1)
        torch.testing.assert_close(points[:, k], expected)
    torch.testing.assert_close(model.mesh_points3d(vertices)[:, 0], vertices[:, 0])
    torch.testing.assert_close(model.mesh_points3d(vertices)[:, 1], vertices[:, [10, 11]].mean(1))


def test_topology_is_what_was_given_and_moves_with_the_model() -> None:
    model = tiny_model().double()
    assert model.topology.uvs.dtype == torch.float64
    assert model.topology.faces.dtype == torch.int64
    assert model.topology.regions["face"].tolist() == [True, True, False, True]
    assert model.topology.name == "tiny"


def test_sampling_is_reproducible_and_standard_normal() -> None:
    model = tiny_model(identity=50)
    one, two = (model.sample(torch.Generator().manual_seed(5), 400).identity for _ in range(2))
    torch.testing.assert_close(one, two)
    assert abs(float(one.std()) - 1) < 0.02
    assert float(model.sample(batch=2).expression.abs().max()) == 0


def test_wrong_coefficients_name_the_expected_count() -> None:
    model = tiny_model()
    params = model.neutral(1)
    with pytest.raises(ShapeError, match=r"identity coefficients must be \(B, 3\).*'tiny'; got \(1, 5\)"):
        model.shape(params.replace(identity=torch.zeros(1, 5)))
    with pytest.raises(ShapeError, match=r"expression coefficients must be \(B, 2\)"):
        model.shape(params.replace(expression=torch.zeros(2)))
    with pytest.raises(ShapeError, match=r"vertices must be \(B, 12, 3\).*vertices\[None\]"):
        model.landmarks3d(model.mean)
    with pytest.raises(ShapeError, match="identity_basis"):
        MorphableModel(torch.zeros(4, 3), torch.zeros(2, 5, 3), torch.zeros(0, 4, 3), model.topology)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'makehuman'"):
        load_face_model("makehumen")


def test_unreadable_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_text("not a model")
    with pytest.raises(AssetError, match="is not a head model"):
        read_face_model(tmp_path / "head.safetensors")


def test_gradients_through_pose_and_sliding_landmarks() -> None:
    model = tiny_model().double()
    params = random_params(model).to(torch.float64)
    camera = Camera.deep3d(64, batch=2).to(torch.float64)

    def points(identity, expression, rotation, translation):
        moved = params.replace(identity=identity, expression=expression, rotation=rotation, translation=translation)
        return model.landmarks3d(model(moved), camera)[:, [0, 8, 30, 60]]

    inputs = (params.identity, params.expression, params.rotation, params.translation)
    assert torch.autograd.gradcheck(points, [value.clone().requires_grad_() for value in inputs])


# -- the converted head ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(asset) -> MorphableModel:
    asset("makehuman")
    return load_face_model("makehuman", num_identity=20)


def test_load_slices_and_freezes(head: MorphableModel) -> None:
    assert (head.num_identity, head.num_expression, head.num_albedo) == (20, 52, 0)
    assert not head.training
    assert not any(value.requires_grad for value in head.buffers())
    with pytest.raises(ConfigError, match=r"num_identity must be 0\.\.\d+"):
        load_face_model("makehuman", num_identity=100_000)


@pytest.fixture(params=[("makehuman_artist", 0.15), ("makehuman", 2.0)], ids=["first", "second"])
def contour_head(request, asset) -> tuple[MorphableModel, float]:
    """An edition of the head, and how many px its contour may be off: the candidates were placed on the first."""
    asset("makehuman")
    return load_face_model(request.param[0], num_identity=0), request.param[1]


def test_frontal_camera_keeps_the_frontal_contour(contour_head: tuple[MorphableModel, float]) -> None:
    head, slack = contour_head
    vertices = head(head.neutral(1))
    camera = Camera.deep3d()
    still, slid = project(camera, head.landmarks3d(vertices)), project(camera, head.landmarks3d(vertices, camera))
    assert float((still - slid)[..., :2].norm(dim=-1).max()) < 1.0 + slack
    torch.testing.assert_close(still[:, 17:], slid[:, 17:])


@pytest.mark.parametrize("yaw", [-0.6, -0.3, 0.3, 0.6])
def test_jaw_slides_outward_as_the_head_turns(contour_head: tuple[MorphableModel, float], yaw: float) -> None:
    head, slack = contour_head
    params = head.neutral(1).replace(rotation=torch.tensor([[0.0, yaw, 0.0]]))
    vertices, camera = head(params), Camera.deep3d()
    still = project(camera, head.landmarks3d(vertices))[0, :17, 0]
    slid = project(camera, head.landmarks3d(vertices, camera))[0, :17, 0]
    assert (slid[:6] <= still[:6] + slack).all(), "the person's right side moves left in the image, or stays"
    assert (slid[11:] >= still[11:] - slack).all()
    far = slice(0, 4) if yaw < 0 else slice(13, 17)  # the side that turns away
    assert float((slid - still)[far].abs().min()) > 1.0


@pytest.mark.parametrize("yaw", [-0.5, 0.5])
def test_far_contour_is_on_the_outline_of_the_face(head: MorphableModel, yaw: float) -> None:
    """Slow twin: the farthest face vertex in each point's horizontal strip of the image."""
    params = head.neutral(1).replace(rotation=torch.tensor([[0.0, yaw, 0.0]]))
    vertices, camera = head(params), Camera.deep3d()
    slid = project(camera, head.landmarks3d(vertices, camera))[0]
    topology = head.topology
    pixels = project(camera, vertices)[0, topology.faces[topology.regions["face"]].unique()]
    for point in (1, 2, 3) if yaw < 0 else (15, 14, 13):
        strip = pixels[(pixels[:, 1] - slid[point, 1]).abs() < 1.5, 0]
        edge = strip.min() if yaw < 0 else strip.max()
        assert abs(float(edge - slid[point, 0])) < 2.5


def test_jaw_slides_the_same_way_when_the_image_is_rolled(head: MorphableModel) -> None:
    upright = head.neutral(1).replace(rotation=torch.tensor([[0.0, 0.5, 0.0]]))
    rolled = head.neutral(1).replace(rotation=torch.tensor([[0.0, 0.5, 0.6]]))
    camera = Camera.deep3d()
    one = head.landmarks3d(head(upright), camera)
    two = head.landmarks3d(head(rolled), camera)
    back = head.pose(one, head.neutral(1).replace(rotation=torch.tensor([[0.0, 0.0, 0.6]])))
    assert float((two - back).norm(dim=-1).median()) < 1e-4
    assert float((two - back).norm(dim=-1).max()) < 0.12, "perspective may pick the neighboring candidate"


def test_blink_closes_the_eye_and_jaw_opens_the_mouth(head: MorphableModel) -> None:
    def opening(name: str, strength: float) -> tuple[float, float]:
        params = head.neutral(1)
        params.expression[0, head.expression_names.index(name)] = strength
        points = head.landmarks3d(head.shape(params))[0]
        return float((points[[43, 44], 1] - points[[47, 46], 1]).mean()), float(points[62, 1] - points[66, 1])

    eye, mouth = opening("eyeBlinkLeft", 0.0)
    assert opening("eyeBlinkLeft", 1.0)[0] < 0.15 * eye
    assert opening("jawOpen", 1.0)[1] > mouth + 0.2


def test_a_cropped_head_shows_the_same_face_and_points(head: MorphableModel) -> None:
    params = head.sample(torch.Generator().manual_seed(3))
    params = params.replace(rotation=torch.tensor([[0.1, 0.5, 0.2]]))
    params.expression[:] = 0.2 * torch.rand(params.expression.shape, generator=torch.Generator().manual_seed(4))
    camera, texture = Camera.deep3d(), torch.rand(1, 3, 64, 64)
    found = []
    for model in (head, head.cropped("face")):
        given = params.map(lambda t: t.clone().requires_grad_(True))
        vertices = model(given)
        points = model.landmarks3d(vertices, camera)
        view = Renderer(64, antialias=True).prepare(vertices, model.topology, camera, given.light, "face", points)
        drawn, mesh = view.shade(texture), model.mesh_points3d(vertices)
        (drawn.image.square().sum() + drawn.mask.square().sum() + drawn.landmarks.sum() + mesh.sum()).backward()
        slopes = [given.identity.grad, given.expression.grad, given.rotation.grad, given.light.coefficients.grad]
        found.append([drawn.image, drawn.mask, drawn.landmarks, mesh, *slopes])
    assert found[0][1].sum() > 500
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())
    cropped = head.cropped("face")
    assert head.num_vertices / 3 < cropped.num_vertices < head.num_vertices / 2
    assert torch.equal(cropped.topology.mirror[cropped.topology.mirror], torch.arange(cropped.num_vertices))
    assert cropped.topology.regions["face"].sum() == head.topology.regions["face"].sum()
    with pytest.raises(ConfigError, match="did you mean 'face'"):
        head.cropped("fase")
