"""Synthetic faces: the truth is what was rendered, a face depends on its number alone, and crops lie as real ones."""

import math
from dataclasses import replace

import pytest
import torch

from facerecon.errors import ConfigError, ShapeError
from facerecon.geometry.alignment import deep3d_crop_transform
from facerecon.geometry.lighting import sh_basis
from facerecon.morphable import load_face_model
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.render import Renderer
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces, SyntheticSettings
from facerecon.synthetic.population import Population
from facerecon.synthetic.scene import lamp_coefficients
from facerecon.types import Camera

BARE = {"hair": 0.0, "shoulders": 0.0, "glasses": 0.0, "occluded": 0.0}

NEAR = 1e-4
"""Mean difference of pictures of one face: rounding moves vertices by 1e-5 px, and single pixels over an outline."""


@pytest.fixture(scope="module")
def head(asset):
    asset("makehuman")
    return load_face_model(num_identity=12), load_decoder("linear", components=6)


@pytest.fixture(scope="module")
def faces(head):
    return SyntheticFaces(*head, WITHIN_MODEL, seed=3, size=112)


def test_stored_landmarks_are_the_rendered_ones(head, faces) -> None:
    """The truth, posed and projected anew by the plain projection formula, falls on the stored landmarks."""
    model, _ = head
    batch = faces(range(6))
    camera = Camera.deep3d(224, 6)
    points = model.landmarks3d(model(batch.params), camera)
    x, y, z = points.unbind(-1)
    expected = torch.stack([112 + 1015 * x / (10 - z), 112 - 1015 * y / (10 - z)], -1)
    assert (batch.landmarks68 - expected).abs().max() < 0.01


def test_a_point_of_the_mesh_is_where_the_picture_shows_it(head) -> None:
    """A texture with one dark dot at the nose tip: its center in the picture is the stored landmark, to half a px."""
    model, decoder = head
    size = decoder.size
    topology = model.topology
    face, weights = topology.landmark_faces[30, 0], topology.landmark_barycentric[30, 0]
    uv = (topology.uvs[topology.uv_faces[face]] * weights[:, None]).sum(0)
    row, column = (torch.arange(size) + 0.5) / size, (torch.arange(size) + 0.5) / size
    near = ((column[None] - uv[0]).square() + (1 - row[:, None] - uv[1]).square()).sqrt() < 0.012
    dotted = torch.where(near, 0, 255).to(torch.uint8).expand(1, 3, size, size).contiguous()
    settings = replace(WITHIN_MODEL, **BARE, yaw=8, wide=0, texture=0, p_directional=0, smile=0)
    made = SyntheticFaces(model, decoder, settings, seed=1, size=224, maps=dotted)
    made.basis = made.basis * 0  # the dot alone
    batch = made(range(4))
    axis = torch.arange(224) + 0.5
    for image, landmarks in zip(batch.image, batch.landmarks68, strict=True):
        x, y = landmarks[30]
        around = ((axis[None] - x).abs() < 9) & ((axis[:, None] - y).abs() < 9)
        dark = (image.mean(0) < 0.5 * image.mean(0)[around].max()) & around
        weight = dark.float()
        seen = torch.stack([(weight * axis[None]).sum(), (weight * axis[:, None]).sum()]) / weight.sum()
        assert (seen - landmarks[30]).abs().max() < 1.0


def test_a_face_is_the_same_in_any_batch(faces, head) -> None:
    one, many = faces([5]), faces([2, 5, 9])
    assert (one.image[0] - many.image[1]).abs().mean() < NEAR
    assert torch.allclose(one.params.translation[0], many.params.translation[1], atol=1e-4)
    again = SyntheticFaces(*head, WITHIN_MODEL, seed=3, size=112)([2, 5, 9])
    assert (again.image - many.image).abs().mean() < NEAR
    other = SyntheticFaces(*head, WITHIN_MODEL, seed=4, size=112)([5])
    assert not torch.allclose(one.params.identity, other.params.identity)
    assert (one.image - other.image).abs().mean() > 100 * NEAR


def test_a_person_in_several_pictures(faces) -> None:
    """Identity and texture are the person's, all else is the picture's."""
    of_person, plain = faces([4, 5, 9], persons=[4, 4, 4]), faces([4, 5, 9])
    assert (of_person.image[0] - plain.image[0]).abs().mean() < NEAR
    assert torch.equal(of_person.params.identity, plain.params.identity[:1].expand(3, -1))
    assert torch.equal(of_person.texture, plain.texture[:1].expand(3, -1))
    assert torch.equal(of_person.params.expression, plain.params.expression)
    assert torch.equal(of_person.params.rotation, plain.params.rotation)
    assert torch.equal(of_person.params.light.coefficients, plain.params.light.coefficients)
    assert not torch.equal(of_person.params.translation[1], plain.params.translation[1])  # where the crop is found anew
    with pytest.raises(ShapeError, match="one a picture"):
        faces([1, 2], persons=[1])


def test_crops_lie_as_the_released_alignment_would_put_them(head) -> None:
    """Without errors of landmarks the alignment of the truth changes nothing; with them it errs as asked."""
    exact = SyntheticFaces(*head, replace(WITHIN_MODEL, scale=0.0, shift=0.0), size=32)
    params = exact.truth(range(64)).params
    model = head[0]
    points = model.landmarks3d(model(params), Camera.deep3d(224, 64))
    x, y, z = points.unbind(-1)
    landmarks = torch.stack([112 + 1015 * x / (10 - z), 112 - 1015 * y / (10 - z)], -1)
    found = deep3d_crop_transform(landmarks, MEAN_FIVE_POINTS)
    assert torch.allclose(found, torch.eye(2, 3).expand(64, 2, 3), atol=0.02)
    varied = SyntheticFaces(*head, replace(WITHIN_MODEL, scale=0.05, shift=6.0), size=32)(range(64))
    found = deep3d_crop_transform(varied.landmarks68, MEAN_FIVE_POINTS)
    assert 0.035 < found[:, 0, 0].log().std() < 0.065
    middle = found[:, :, :2].sum(2) * 112 + found[:, :, 2] - 112
    assert 4.5 < middle.std() < 7.5


def test_truth_stays_in_its_bounds(faces) -> None:
    params, codes, texture = faces.truth(range(200))[:3]
    degrees = torch.rad2deg(params.rotation).abs().amax(0)
    assert (degrees <= torch.tensor([30, 60, 25]) + 1e-3).all()
    assert degrees[1] > 45
    assert params.expression.min() >= 0 and params.expression.max() <= 1
    assert 0.9 < params.identity.std() < 1.1
    assert 0.9 < codes.std() < 1.1
    assert texture.min() >= 0 and texture.max() <= 1
    normals = torch.nn.functional.normalize(torch.tensor([[0, 0, 1.0], [0.5, 0, 1], [-0.5, 0, 1]]), dim=1)
    shading = (sh_basis(normals) @ params.light.coefficients).mean((1, 2))
    assert shading.quantile(0.02) > 0.25 and shading.max() < 1.4


def test_lamps_shade_as_clamped_cosines(head) -> None:
    """Second-order SH of max(0, n . d), against the closed form of Ramamoorthi and Hanrahan at random normals."""
    direction = torch.nn.functional.normalize(torch.randn(2, 3, 3), dim=-1)
    color = torch.rand(2, 3, 3)
    found = sh_basis(normals := torch.nn.functional.normalize(torch.randn(50, 3), dim=1)) @ lamp_coefficients(
        direction, color
    )
    cosine = torch.einsum("nc,blc->bnl", normals, direction)
    series = 1 / 4 + cosine / 2 + 5 / 16 * (3 * cosine**2 - 1) / 2
    assert torch.allclose(found, series @ color, atol=5e-5)
    assert (series - cosine.clamp(min=0)).abs().max() < 0.13  # and that is what it stands for


def test_codes_of_maps_are_least_squares(head) -> None:
    """Maps made of the basis have the codes that made them; a picture is of its map."""
    model, decoder = head
    mean, basis = decoder.start_basis()
    codes = torch.randn(5, 6) * 0.3
    maps = (mean + torch.einsum("nk,kchw->nchw", codes, basis)).clamp(0, 1)
    pixels = (maps * 255).round().to(torch.uint8)
    faces = SyntheticFaces(model, decoder, replace(WITHIN_MODEL, texture=0.0), size=32, maps=pixels)
    assert (faces.codes - codes).abs().max() < 0.05
    _, found, texture = faces.truth(range(8))[:3]
    away = (texture[:, None] - pixels[None].float() / 255).abs().amax((2, 3, 4))
    assert (away.amin(1) < 1e-6).all()
    assert torch.equal(found, faces.codes[away.argmin(1)])


def test_nothing_before_a_bare_head(head) -> None:
    """With all that hides left out, the picture inside the head is the plain rendering."""
    faces = SyntheticFaces(*head, replace(WITHIN_MODEL, **BARE), seed=2, size=224)
    batch = faces(range(3))
    params, _, texture = faces.truth(range(3))[:3]
    drawn = Renderer(224, antialias=True)(
        head[0](params), texture, head[0].topology, Camera.deep3d(224, 3), params.light
    )
    inside = drawn.mask.expand_as(drawn.image) > 0.999
    assert inside.float().mean() > 0.2
    assert (batch.image - drawn.image.clamp(0, 1))[inside].abs().mean() < NEAR
    covered = SyntheticFaces(*head, replace(WITHIN_MODEL, occluded=1.0), seed=2, size=224)(range(3))
    assert (covered.image - batch.image)[inside].abs().mean() > 100 * NEAR


def test_what_cannot_be_sampled_from(head) -> None:
    model, decoder = head
    with pytest.raises(ConfigError, match=r"synthetic.hair must be a number, 0 to 1; got 2"):
        SyntheticSettings(hair=2)
    with pytest.raises(ConfigError, match="0 or more"):
        SyntheticSettings(yaw=math.nan)
    with pytest.raises(ConfigError, match=r"0\.\.6 components"):
        SyntheticFaces(model, decoder, components=7)
    with pytest.raises(ShapeError, match="uint8"):
        SyntheticFaces(model, decoder, maps=torch.zeros(1, 3, 8, 8))


def test_another_head_model(reference, asset) -> None:
    """ICT heads, with the makehuman texture carried over: landmarks of the truth, and losses that vanish there."""
    from facerecon.correspond.resample import decoder_for, retarget
    from facerecon.fitting import params_to_coefficients
    from facerecon.perception.regressor import RegressorConfig
    from facerecon.training.regressor import CoefficientLosses

    asset("makehuman")
    retargeted = retarget(load_face_model("ict", 5, reference / "ict" / "ict_facekit_light.npz"))
    model, decoder = retargeted.model, decoder_for(retargeted.model, "linear", retargeted=retargeted)
    batch = SyntheticFaces(model, decoder, WITHIN_MODEL, seed=0, size=32, components=4)(range(3))
    x, y, z = model.landmarks3d(model(batch.params), Camera.deep3d(224, 3)).unbind(-1)
    expected = torch.stack([112 + 1015 * x / (10 - z), 112 - 1015 * y / (10 - z)], -1)
    assert (batch.landmarks68 - expected).abs().max() < 0.01
    config = RegressorConfig(identity=5, expression=model.num_expression, texture=4, expression_high=1.0)
    truth = params_to_coefficients(batch.params, config, batch.texture)
    losses = CoefficientLosses(model, decoder, 4)
    assert all(value.max() < 0.02 for value in losses(truth, truth, batch.landmarks68).values())
    wrong = losses(truth.map(torch.zeros_like), truth, batch.landmarks68)
    assert wrong["shape"].min() > 0.5 and wrong["landmarks"].min() > 3


def test_lamps_around_the_head(head) -> None:
    """Some light comes from below, none from behind; all that lamps do not light stays as it is."""
    bare = {**BARE, "p_directional": 1.0}
    mostly_above, around = (
        SyntheticFaces(*head, replace(WITHIN_MODEL, **bare, p_full_sphere_lights=a), seed=3, size=32) for a in (0, 1)
    )
    numbers = range(200)
    one, other = mostly_above.truth(numbers).params, around.truth(numbers).params
    assert torch.equal(one.identity, other.identity) and torch.equal(one.rotation, other.rotation)
    up = torch.tensor([[0.0, 1.0, 0.0]])
    for params, least, most, before in ((one, 0.0, 0.25, 0.8), (other, 0.3, 0.6, 1.0)):
        light = params.light.coefficients.mean(2)
        from_below = (sh_basis(-up) @ light[:, :, None] > sh_basis(up) @ light[:, :, None]).float().mean()
        assert least <= from_below <= most
        front, back = (sh_basis(torch.tensor([[0.0, 0.0, z]])) @ light[:, :, None] for z in (1.0, -1.0))
        assert (front > back - 1e-5).float().mean() >= before
    with pytest.raises(ConfigError, match=r"synthetic\.p_full_sphere_lights must be a number, 0 to 1"):
        SyntheticSettings(p_full_sphere_lights=2.0)


def test_faces_seen_from_near_and_far(head) -> None:
    """The crop is the same, by its landmarks, and so is the truth; only the camera stands elsewhere."""
    plain = SyntheticFaces(*head, replace(WITHIN_MODEL, **BARE), seed=3, size=112)
    varied = SyntheticFaces(*head, replace(WITHIN_MODEL, **BARE, perspective=0.3), seed=3, size=112)
    numbers = range(16)
    one, other, truth = plain(numbers), varied(numbers), varied.truth(numbers)
    for name in ("identity", "expression", "rotation", "translation"):
        assert torch.equal(getattr(one.params, name), getattr(other.params, name))
    assert 0.15 < truth.further.log().std() < 0.45
    cut = [deep3d_crop_transform(batch.landmarks68, MEAN_FIVE_POINTS) for batch in (one, other)]
    assert torch.allclose(*cut, atol=0.02)
    # by hand: a head seen from its own distance by a longer or shorter lens
    model, camera = head[0], varied.camera(truth.further)
    seen = truth.params.replace(translation=varied.place(truth.params, truth, camera))
    x, y, z = model.landmarks3d(model(seen), camera).unbind(-1)
    focal = 1015 * truth.further[:, None]
    expected = torch.stack([112 + focal * x / (10 - z), 112 - focal * y / (10 - z)], -1)
    assert (other.landmarks68 - expected).abs().max() < 0.01
    away = (one.landmarks68 - other.landmarks68).norm(dim=-1).mean(1)
    assert away[truth.further.log().abs() > 0.2].mean() > 0.8  # px: noses and jaws are larger or smaller


def test_a_share_of_people_is_scanned(head) -> None:
    """With ``scanned`` 1 all identities follow the population, and what else is drawn stays as it is without it."""
    model, decoder = head
    numbers = range(300)
    factor = torch.zeros(2, model.num_identity)
    factor[0, 0], factor[1, 3] = 2.0, 0.5
    people = Population(torch.arange(12.0), factor)
    plain = SyntheticFaces(model, decoder, WITHIN_MODEL, seed=3)
    drawn = {
        s: SyntheticFaces(model, decoder, replace(WITHIN_MODEL, scanned=s), 3, population=people) for s in (0, 0.5, 1)
    }
    without = plain.truth(numbers)
    found = {s: faces.truth(numbers).params for s, faces in drawn.items()}
    assert torch.equal(found[0].identity, without.params.identity)
    deviation = found[1].identity - people.mean
    assert (deviation.std(0)[[0, 3]] - torch.tensor([2.0, 0.5])).abs().max() < 0.3
    assert deviation[:, [1, 2, *range(4, 12)]].abs().max() < 1e-5
    share = (found[0.5].identity == found[1].identity).all(1).float().mean()
    assert 0.4 < share < 0.6
    assert torch.equal(found[1].expression, without.params.expression)
