"""Several photos of one person: the shared fit against fits of single photos, sums of gradients, and permutations."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import ConfigError, FitError, InputError
from facerecon.fitting import (
    DetailSettings,
    Fitter,
    OcclusionSettings,
    SmoothnessSettings,
    Variables,
    add_detail,
    add_shared_detail,
)
from facerecon.imaging.masks import gaussian_blur
from facerecon.morphable import load_face_model
from facerecon.render import Renderer
from facerecon.render.uv import region_texels
from facerecon.types import Camera, Observation

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"
SHORT = {"texture": {"steps": 2}, "joint": {"steps": 2}}


@pytest.fixture(scope="module")
def fitter(fit_models) -> Fitter:
    from facerecon.stylegan.load import load_decoder

    model = load_face_model("makehuman", num_identity=40)
    renderer = Renderer(224, antialias=True)
    settings = {"detail": DetailSettings(size=128, eyes=False), "occlusion": OcclusionSettings(enabled=False)}
    return Fitter(model, load_decoder("linear"), renderer, stages=SHORT, **settings)


@pytest.fixture(scope="module")
def photos(fitter) -> Observation:
    """The sample photo, its mirror image, and it in dim light: three photos of somebody."""
    from facerecon.imaging.files import read_image
    from facerecon.perception import observe

    image = read_image(SAMPLE)
    return Observation.cat([observe(image), observe(image.flip(-1)), observe(0.7 * image)])


@pytest.fixture(scope="module")
def together(fitter, photos):
    return fitter.multiview(photos).face


def check_alike(one, other, rows=slice(None)) -> None:
    """Of one optimum: Adam's steps, of a length that does not depend on the gradient's, make much of rounding."""
    for name in ("vertices", "neutral_vertices"):
        assert (getattr(one, name)[rows] - getattr(other, name)).norm(dim=-1).max() < 2e-3, name  # 0.2 mm
    for name in ("texture", "decoded", "visibility"):
        assert (getattr(one, name)[rows] - getattr(other, name)).abs().mean() < 2e-3, name
    assert (one.params.rotation[rows] - other.params.rotation).abs().max() < 2e-3


def test_one_photo_together_is_the_ordinary_fit(fitter, photos) -> None:
    alone, shared = fitter(photos[0]).face, fitter.multiview([photos[0]]).face
    check_alike(alone, shared)
    assert set(alone.history) == set(shared.history)
    for name, values in alone.history.items():
        torch.testing.assert_close(shared.history[name], values, atol=1e-2, rtol=1e-2)
        if name.startswith("texture."):  # before the first step
            torch.testing.assert_close(shared.history[name][:, :1], values[:, :1], atol=1e-5, rtol=1e-4)


def test_a_person_is_shared_and_the_rest_is_each_photos_own(together) -> None:
    assert together.batch == 3
    for shared in (together.params.identity, together.latent.codes, together.texture, together.visibility):
        assert torch.equal(shared, shared[:1].expand_as(shared))
    assert torch.equal(together.neutral_vertices[0], together.neutral_vertices[2])
    assert together.texture.stride(0) == 0  # once in memory
    params = together.params
    for own in (params.expression, params.rotation, params.translation, params.light.coefficients):
        assert not torch.equal(own[0], own[1])
    assert not torch.equal(params.light.coefficients[0], params.light.coefficients[2])
    for name in SHORT:
        total = together.history[f"{name}.total"]
        assert total.shape == (3, 2)
    assert together.history["texture.total"].mean(0).diff() < 0


def gradients(fitter, photo, params, latent, one_person) -> dict[str, torch.Tensor]:
    """Of the first step of the joint stage, as the optimizer gets them."""
    stage = fitter.stages["joint"]
    variables = Variables(params, latent, fitter.model.expression_bounds, fitter.decoder, one_person)
    variables.groups(stage)
    targets = fitter.objective.targets(photo, stage, params)
    terms, _ = fitter.objective.terms(stage, photo, variables.current, variables.code, targets)
    sum((stage.weights[name] * value).expand(photo.batch) for name, value in terms.items()).sum().backward()
    variables.average()
    return {name: tensor.grad.clone() for name, tensor in variables.tensors.items()}


def test_what_photos_share_moves_by_the_mean_of_their_gradients(fitter, photos) -> None:
    start = fitter.initialize(photos, one_person=True)
    params, latent = start.params, start.latent
    joint = gradients(fitter, photos, params, latent, one_person=True)
    single = [gradients(fitter, photos[i], params[i], latent[i], one_person=False) for i in range(3)]
    for name, gradient in joint.items():
        parts = [of[name] for of in single]
        expected = sum(parts) / 3 if name in ("identity", "latent") else torch.cat(parts)
        assert gradient.shape == expected.shape, name
        error = (gradient - expected).abs().max() / expected.abs().max()
        assert error < 1e-2, name  # float32, and the 128 px decoder in other batches
        wrong = torch.cat(parts).flatten(1).std(0).max() if name in ("identity", "latent") else None
        assert wrong is None or wrong > 20 * (gradient - expected).abs().max()  # the photos do pull apart


def test_the_order_of_the_photos_does_not_matter(fitter, photos, together) -> None:
    order = [2, 0, 1]
    other = fitter.multiview(photos[order]).face
    check_alike(together, other, order)


def test_a_stumbled_observation_is_left_out_and_the_rest_goes_on(fitter, photos, together) -> None:
    landmarks = photos.landmarks68.clone()
    landmarks[1, 3] = torch.nan
    with pytest.warns(UserWarning, match="left out, what was measured"):
        result = fitter.multiview(photos.replace(landmarks68=landmarks))
    assert result.used == (0, 2) and not result.failed
    assert result.face.batch == result.observed.batch == 2
    check_alike(result.face, fitter.multiview(photos[[0, 2]]).face)
    with pytest.raises(FitError, match="not finite"):
        fitter.multiview(photos.replace(landmarks68=landmarks * torch.nan))


def test_a_blown_loss_takes_the_person_back_not_one_photo(fitter, photos) -> None:
    wild = dataclasses.replace(fitter.stages["joint"], steps=3, learning_rate=1e6)
    stages = fitter.stages
    try:
        fitter.stages = stages | {"joint": wild}
        with pytest.warns(UserWarning, match="kept at its best state") as seen:
            result = fitter.multiview(photos)
    finally:
        fitter.stages = stages
    assert len([w for w in seen if "best state" in str(w.message)]) == 1  # one person, one line
    face = result.face
    assert sorted(result.diverged) == [0, 1, 2]
    assert torch.equal(face.params.identity, face.params.identity[:1].expand(3, -1))
    assert face.vertices.isfinite().all()
    assert face.vertices.abs().max() < 10


# -- video -------------------------------------------------------------------------------------------------


def bend(face) -> torch.Tensor:
    return face.params.rotation.diff(n=2, dim=0).norm()


def test_a_video_is_smoother_with_weight_and_says_what_it_cost(fitter, photos) -> None:
    clip = photos[[0, 1, 0]]
    loose = fitter.multiview(clip, smoothness=SmoothnessSettings(0, 0, 0, 0)).face
    firm = fitter.multiview(clip, smoothness=SmoothnessSettings(rotation=1e4)).face
    plain = fitter.multiview(clip).face
    check_alike(loose, plain)
    assert bend(firm) < bend(plain)
    assert not any("smooth" in name for name in loose.history)
    assert {n for n in firm.history if "smooth" in n} == {
        f"joint.smooth_{name}" for name in ("expression", "rotation", "translation", "light")
    }
    found = firm.history["joint.smooth_rotation"]
    assert found.shape == (3, 2)
    assert (found[[0, -1]] == 0).all()


def test_bad_videos_are_one_line(fitter, photos) -> None:
    with pytest.raises(InputError, match="no photo to fit"):
        fitter.multiview([])
    with pytest.raises(InputError, match="times belong to a video"):
        fitter.multiview(photos, times=[0, 1, 2])
    with pytest.raises(InputError, match=r"times must be \(3,\)"):
        fitter.multiview(photos, times=[0, 1], smoothness=SmoothnessSettings())
    with pytest.raises(InputError, match="increase"):
        fitter.multiview(photos, times=[0, 2, 1], smoothness=SmoothnessSettings())
    with pytest.raises(ConfigError, match="number >= 0"):
        SmoothnessSettings(rotation=-1)


# -- one texture of several photos -------------------------------------------------------------------------


def blurred(photo: Observation, sigma: float) -> Observation:
    """The photo as a small copy of it would be: its full crop is that soft, and has that few pixels."""
    image = gaussian_blur(photo.full.image, 8 * round(sigma) + 1, sigma)
    small = {name: getattr(photo, name).to_photo / (2 * sigma) for name in ("fit", "full")}
    full = photo.full.replace(image=image, to_photo=small["full"])
    return photo.replace(full=full, fit=photo.fit.replace(to_photo=small["fit"]))


def test_each_texel_comes_from_the_photo_that_shows_it_best(fitter, photos, together) -> None:
    """A sharp photo of which half the face is hidden, and a soft one of the whole face."""
    settings = DetailSettings(size=256, mirror=0.0)
    sharp = photos[0]
    soft = blurred(sharp, 4.0)
    half = torch.ones_like(sharp.full.face_mask)
    half[..., : round(float(sharp.full.image.shape[-1]) / 2)] = 0
    masks = {name: getattr(sharp.full, name) * half for name in ("face_mask", "eye_mask", "mouth_mask")}
    hidden = sharp.replace(full=sharp.full.replace(**masks))
    model, params = fitter.model, together.params[0]
    posed, light = model(params), params.light
    common = (light, Camera.deep3d(), model.topology, settings)
    of_sharp, seen_sharp, _ = add_detail(hidden, posed, together.decoded[:1], *common)
    of_soft, seen_soft, _ = add_detail(soft, posed, together.decoded[:1], *common)
    both = Observation.cat([soft, hidden])
    twice = params.light.replace(coefficients=light.coefficients.expand(2, -1, -1))
    texture, seen, residual = add_shared_detail(
        both, posed.expand(2, -1, -1), together.decoded[:1], twice, Camera.deep3d(batch=2), *common[2:]
    )
    assert texture.shape == (1, 3, 256, 256)
    assert residual.shape == (2, 3, 256, 256)
    skin = region_texels(model.topology, ("eyes", "mouth", "teeth", "tongue"), 256) < 0.5
    assert ((seen - torch.maximum(seen_sharp, seen_soft)) * skin).abs().mean() < 1e-4
    eyes = region_texels(model.topology, "eyes", 256) > 0.5  # both from the one photo that shows both
    assert ((seen - seen_soft) * eyes).abs().mean() < 1e-4

    def fine(x: torch.Tensor) -> torch.Tensor:
        return x - gaussian_blur(x, 9)

    inside = -F.max_pool2d(-(seen_sharp > 0.99).float(), 17, 1, 8) > 0.5
    only_soft = -F.max_pool2d(-((seen_soft > 0.99) & (seen_sharp < 0.01)).float(), 17, 1, 8) > 0.5
    assert inside.sum() > 500
    assert only_soft.sum() > 500
    for where, right, wrong in ((inside, of_sharp, of_soft), (only_soft, of_soft, of_sharp)):
        near, far = ((fine(texture) - fine(of)) * where for of in (right, wrong))
        assert near.square().sum() < 0.1 * far.square().sum()
    without = dataclasses.replace(settings, enabled=False)
    plain, _, none = add_shared_detail(
        both, posed.expand(2, -1, -1), together.decoded[:1], twice, Camera.deep3d(batch=2), model.topology, without
    )
    alone, *_ = add_detail(hidden, posed, together.decoded[:1], *common[:-1], without)
    assert (plain - alone).abs().mean() < 1e-4
    assert none is None


def test_eyes_look_ahead_where_the_head_does(fitter) -> None:
    """By the cosine of the turn; which of two photos gives the eyes depends on it."""
    from facerecon.fitting.detail import _frontal

    model = fitter.model
    params = model.neutral(3).replace(rotation=torch.tensor([[0.0, 0, 0], [0, 0.5, 0], [0, -2.0, 0]]))
    ahead = _frontal(model(params), model.topology, Camera.deep3d(batch=3))
    assert ahead[0] > 0.8
    assert ahead[1] == pytest.approx(ahead[0] * math.cos(0.5), abs=0.03)
    assert ahead[2] == 0
