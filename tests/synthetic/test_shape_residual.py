"""Heads that a model lacks: how large the reliefs are, and that the head said to be nearest is."""

from dataclasses import replace

import pytest
import torch

from facerecon.errors import ConfigError
from facerecon.evaluation import head_regions, region_errors
from facerecon.geometry.camera import project
from facerecon.morphable import load_face_model
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces, SyntheticSettings
from facerecon.synthetic.shape_residual import ShapeResidual
from facerecon.types import Camera


@pytest.fixture(scope="module")
def head(asset):
    asset("makehuman")
    return load_face_model(num_identity=24), load_decoder("linear", components=6)


@pytest.fixture(scope="module")
def relief(head):
    return ShapeResidual(head[0], count=40)


@pytest.fixture(scope="module")
def fields(head, relief):
    return torch.einsum("di,ivc->dvc", relief.nearest, head[0].identity_basis) + relief.left


def test_a_relief_moves_the_face_by_a_millimeter(head, fields) -> None:
    model = head[0]
    face = model.topology.faces[model.topology.regions["face"] & ~model.topology.regions["eyes"]].unique()
    codes = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    moved = torch.einsum("nd,dvc->nvc", codes, fields[:, face])
    assert 0.9 < 100 * moved.square().sum(2).mean().sqrt() < 1.1
    # most are the same on both sides
    mirrored = fields[:, model.topology.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    alike = ((fields - mirrored).abs().amax((1, 2)) < 1e-6).float().mean()
    assert 0.6 < alike < 0.9


def test_what_it_says_adds_up_to_the_relief(head, relief, fields) -> None:
    model = head[0]
    codes = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    identity, left = relief(codes)
    whole = torch.einsum("bi,ivc->bvc", identity, model.identity_basis) + left
    torch.testing.assert_close(whole, torch.einsum("bd,dvc->bvc", codes, fields), atol=1e-6, rtol=1e-4)


def test_the_nearest_head_is_nearer_than_others(head, relief, fields) -> None:
    """By :func:`region_errors`, which the projection linearizes: nearer than the mean face and than any step beside."""
    model = head[0]
    regions, faces = head_regions(model), model.topology.faces
    codes = 3 * torch.randn(4, 40, generator=torch.Generator().manual_seed(2))
    identity, _ = relief(codes)
    draws = torch.Generator().manual_seed(3)

    def error(coefficients, truth) -> float:
        heads = [model.mean + torch.einsum("i,ivc->vc", coefficients, model.identity_basis), truth]
        points = [model.landmarks3d(v[None])[0] for v in heads]
        found = region_errors(heads[0], faces, points[0], truth, faces, points[1], regions, iterations=20)
        return sum(found.values()) / 4

    for code, near in zip(codes, identity, strict=True):
        truth = model.mean + torch.einsum("d,dvc->vc", code, fields)
        nearest = error(near, truth)
        assert nearest < 0.9 * error(torch.zeros_like(near), truth)
        assert nearest < error(near + 0.5 * torch.randn(24, generator=draws), truth)


def test_rendered_heads_have_it(head) -> None:
    """Landmarks of the picture are the whole head's; a person keeps its residual; without, nothing changes."""
    model, decoder = head
    plain = SyntheticFaces(model, decoder, WITHIN_MODEL, seed=3, size=32)
    raised = SyntheticFaces(model, decoder, replace(WITHIN_MODEL, shape_residual=3.0), seed=3, size=32)
    a, b = plain.truth(range(6)), raised.truth(range(6))
    assert a.moved is None
    assert torch.equal(a.params.expression, b.params.expression) and torch.equal(a.codes, b.codes)
    added = b.params.identity - a.params.identity
    assert added.abs().amax(1).median() > 0.1
    batch = raised(range(6))
    camera = Camera.deep3d(224, 6)
    posed = model.pose(model.shape(batch.params) + b.moved, batch.params)
    points = project(camera, model.landmarks3d(posed, camera))[..., :2]
    assert (points - batch.landmarks68).abs().max() < 0.01
    without = project(camera, model.landmarks3d(model(batch.params), camera))[..., :2]
    assert 0.1 < (without - batch.landmarks68).norm(dim=-1).mean() < 5
    of_person = raised.truth([4, 5], persons=[4, 4])
    torch.testing.assert_close(of_person.moved[0], of_person.moved[1], atol=1e-7, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"synthetic\.shape_residual must be a number, 0 or more"):
        SyntheticSettings(shape_residual=-1.0)


def test_several_pictures_of_each_person(head) -> None:
    faces = SyntheticFaces(
        *head, replace(WITHIN_MODEL, pictures=3, shape_residual=2.0, uv_jitter=0.01), seed=3, size=32
    )
    batch, alone = faces(range(6)), faces([4])
    for first in (0, 3):
        identity = batch.params.identity[first : first + 3]
        torch.testing.assert_close(identity, identity[:1].expand(3, -1), atol=1e-5, rtol=1e-5)
    assert (batch.params.identity[2] - batch.params.identity[3]).abs().max() > 0.1
    assert not torch.equal(batch.params.expression[0], batch.params.expression[1])
    # a picture depends on its number alone
    torch.testing.assert_close(alone.params.identity[0], batch.params.identity[3], atol=1e-4, rtol=0)
    assert (alone.image[0] - batch.image[4]).abs().mean() < 1e-4  # rounding moves pixels at outlines
    for wrong in (0, 1.5, True):
        with pytest.raises(ConfigError, match=r"synthetic\.pictures must be a whole number"):
            SyntheticSettings(pictures=wrong)


def test_textures_are_jittered_smoothly(head) -> None:
    """A map of its own coordinates shows by how much each place lies elsewhere: as wide as asked, and smooth."""
    model, decoder = head
    size = decoder.size
    axis = (torch.arange(size) + 0.5) / size
    ramp = torch.stack([axis.expand(size, size), axis[:, None].expand(size, size), torch.zeros(size, size)])
    maps = (ramp * 255).round().to(torch.uint8)[None]
    settings = replace(WITHIN_MODEL, texture=0.0, uv_jitter=0.01)
    faces = SyntheticFaces(model, decoder, settings, seed=0, size=32, maps=maps)
    faces.basis = faces.basis * 0
    texture = faces.truth(range(40)).textures
    away = (texture - maps.float() / 255)[:, :2, 32:-32, 32:-32]
    assert 0.006 < away.std() < 0.012
    steps = (away[..., 1:] - away[..., :-1]).abs().mean()
    assert steps < 0.4 / 255 + 0.01 * 7 / size
