"""One head for several photos: the joint landmark fit against synthetic heads, and against its own separate fits."""

import math

import pytest
import torch

from facerecon.fitting import LandmarkStart, fit_landmarks
from facerecon.geometry.camera import project
from facerecon.morphable import load_face_model
from facerecon.types import Camera, FaceParams, SHLight


@pytest.fixture(scope="module")
def model(asset):
    asset("makehuman")
    return load_face_model("makehuman", num_identity=40)


def views(model, noise: float, seed: int = 0) -> tuple[FaceParams, torch.Tensor, torch.Tensor]:
    """A head from the front, the left and the right, and its noisy landmarks and mesh points."""
    generator = torch.Generator().manual_seed(seed)
    identity = 0.8 * torch.randn(1, model.num_identity, generator=generator)
    expression = torch.zeros(1, model.num_expression)
    expression[:, model.expression_names.index("jawOpen")] = 0.2
    true = FaceParams(
        identity=identity.expand(3, -1),
        expression=expression.expand(3, -1),
        albedo=torch.zeros(3, 0),
        rotation=torch.tensor([[0.05, 0.0, 0.0], [0.0, math.radians(30), 0.02], [-0.05, math.radians(-30), 0.0]]),
        translation=torch.tensor([[0.1, 0.0, 0.2], [-0.2, 0.1, -0.3], [0.0, 0.0, 0.0]]),
        light=SHLight.ambient(3),
    )
    camera = Camera.deep3d(batch=3)
    vertices = model(true)
    points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    dense = torch.zeros(3, 468, 2)
    dense[:, model.topology.mesh_points] = project(camera, model.mesh_points3d(vertices))[..., :2]
    points = points + noise * torch.randn(points.shape, generator=generator)
    return true, points, dense + noise * torch.randn(dense.shape, generator=generator)


def shape_error(model, found: FaceParams, true: FaceParams) -> float:
    """mm, mean over the face's vertices after removing the mean."""
    face = model.topology.faces[model.topology.regions["face"]].unique()
    difference = (model.neutral_shape(found) - model.neutral_shape(true))[:, face]
    return 100 * (difference - difference.mean(1, keepdim=True)).norm(dim=-1).mean().item()


def test_joint_fit_shares_the_person_and_is_nearer_to_the_truth(model) -> None:
    joint, separate = [], []
    settings = LandmarkStart(sigma_mesh=2.0)
    for seed in range(3):
        true, points, dense = views(model, noise=1.0, seed=seed)
        one = fit_landmarks(
            model, points, mesh_points=dense, settings=settings, shared_identity=True, shared_expression=True
        )
        assert torch.equal(one.identity, one.identity[:1].expand(3, -1))
        assert torch.equal(one.expression, one.expression[:1].expand(3, -1))
        assert (one.rotation - true.rotation).abs().max() < math.radians(4)
        own = fit_landmarks(model, points, mesh_points=dense, settings=settings)
        joint.append(shape_error(model, one, true))
        separate.append(shape_error(model, own, true))
    assert sum(joint) < 0.8 * sum(separate)


def test_expression_may_stay_each_views_own(model) -> None:
    _, points, dense = views(model, noise=0.0)
    found = fit_landmarks(model, points, mesh_points=dense, shared_identity=True)
    assert torch.equal(found.identity, found.identity[:1].expand(3, -1))
    assert not torch.equal(found.expression[0], found.expression[1])


def test_joint_fit_of_one_photo_is_the_separate_fit(model) -> None:
    _, points, dense = views(model, noise=1.0)
    one = fit_landmarks(model, points[:1], mesh_points=dense[:1], shared_identity=True, shared_expression=True)
    own = fit_landmarks(model, points[:1], mesh_points=dense[:1])
    vertices = model(one) - model(own)
    assert vertices.abs().max() < 1e-2  # 1 mm: two ways to the same optimum


def test_copies_of_one_photo_weigh_the_prior_less(model) -> None:
    """Three equal photos are one with a third of the variance: the prior counts once for all of them."""
    _, points, dense = views(model, noise=1.0)
    same, dense = points[:1].expand(3, -1, -1), dense[:1].expand(3, -1, -1)
    together = fit_landmarks(model, same, mesh_points=dense, shared_identity=True, shared_expression=True)
    plain = LandmarkStart()
    third = LandmarkStart(
        sigma=plain.sigma / 3**0.5, sigma_jaw=plain.sigma_jaw / 3**0.5, sigma_mesh=plain.sigma_mesh / 3**0.5
    )
    alone = fit_landmarks(model, same[:1], mesh_points=dense[:1], settings=third)
    assert (model(together)[:1] - model(alone)).abs().max() < 2e-2


def test_averaged_errors_weigh_the_prior_as_one_photo_does(model) -> None:
    """The same photo three times is one photo; summed, three times the evidence."""
    _, points, dense = views(model, noise=1.0)
    points, dense = points[1:2], dense[1:2]
    thrice = {"landmarks": points.expand(3, -1, -1), "mesh_points": dense.expand(3, -1, -1), "shared_identity": True}
    one = fit_landmarks(model, points, mesh_points=dense)
    mean, total = fit_landmarks(model, **thrice, averaged=True), fit_landmarks(model, **thrice)
    assert (model(mean) - model(one)).abs().max() < 1e-2  # 1 mm: two ways to the same optimum
    assert total.identity[0].norm() > 1.05 * mean.identity[0].norm()
