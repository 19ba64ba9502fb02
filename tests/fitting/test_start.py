"""Stage 1 by N_enc: refinement on landmarks, and the photos that are out of its depth."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from facerecon.errors import ConfigError
from facerecon.fitting import (
    DetailSettings,
    Fitter,
    LandmarkStart,
    RegressorStart,
    fit_landmarks,
    params_to_coefficients,
    start_from_regressor,
)
from facerecon.fitting.expression_scores import CALIBRATION
from facerecon.fitting.initialize import _solved
from facerecon.geometry.alignment import deep3d_crop_transform
from facerecon.geometry.camera import project
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.morphable import load_face_model
from facerecon.perception import Coefficients, Regressor, RegressorConfig
from facerecon.perception.face_landmarker import EXPRESSION_SCORES
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.render import Renderer
from facerecon.stylegan.load import load_decoder
from facerecon.types import Camera, Crop, FaceParams, Observation, SHLight

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"
IDENTITY = 20


@pytest.fixture(scope="module")
def model(asset):
    asset("makehuman")
    return load_face_model("makehuman", num_identity=IDENTITY)


class Oracle(nn.Module):
    """Says what it was told, whatever it sees; of the mirror image of what it saw last, what ``other`` is."""

    def __init__(self, said: Coefficients, other: Coefficients) -> None:
        super().__init__()
        self.said, self.other, self.known, self.seen = said, other, {}, None
        self.shape_head = None
        sizes = {name: getattr(said, name).shape[1] for name in ("identity", "expression", "texture")}
        self.config = RegressorConfig(expression_high=1.0, **sizes)

    def residual(self, name: str) -> torch.Tensor | None:
        return self.known.get(name)

    def sized(self, crops: torch.Tensor) -> torch.Tensor:
        return crops

    def forward(self, images: torch.Tensor) -> Coefficients:
        assert images.shape == (len(self.said.angles), 3, 224, 224)
        again = self.seen is not None and torch.equal(images, self.seen.flip(-1))
        self.seen = None if again else images
        return self.other if again else self.said


def heads(model, yaws: list[float]) -> FaceParams:
    """Random heads, turned by so many degrees."""
    batch = len(yaws)
    expression = torch.zeros(batch, model.num_expression)
    expression[:, model.expression_names.index("jawOpen")] = 0.2
    rotation = torch.zeros(batch, 3)
    rotation[:, 1] = torch.tensor(yaws).deg2rad()
    return FaceParams(
        identity=0.8 * torch.randn(batch, IDENTITY),
        expression=expression,
        albedo=torch.zeros(batch, 0),
        rotation=rotation,
        translation=0.1 * torch.randn(batch, 3),
        light=SHLight(SHLight.ambient(batch).coefficients + 0.1 * torch.rand(batch, 9, 3)),
    )


def moved(params: FaceParams, scale: float = 1.0) -> FaceParams:
    """What a good, imperfect regressor says of heads."""
    return params.replace(
        identity=params.identity + scale * 0.2 * torch.randn_like(params.identity),
        rotation=params.rotation + scale * 0.03 * torch.randn_like(params.rotation),
        translation=params.translation + scale * 0.03 * torch.randn_like(params.translation),
    )


def landmarks_of(model, params: FaceParams) -> torch.Tensor:
    camera = Camera.deep3d(batch=len(params.rotation)).to(dtype=params.rotation.dtype)
    return project(camera, model.landmarks3d(model(params), camera))[..., :2]


def observed(model, params: FaceParams) -> Observation:
    """What would be measured on photos of heads; the photos are gray."""
    batch, camera = len(params.rotation), Camera.deep3d(batch=len(params.rotation))
    gray, ones = torch.full((batch, 3, 224, 224), 0.5), torch.ones(batch, 1, 224, 224)
    gray[..., 0, 0] = 0.6  # a mirror image is another one
    crop = Crop(gray, torch.eye(2, 3).expand(batch, 2, 3), *[ones] * 6)
    mesh = torch.zeros(batch, 468, 3)
    points = project(camera, model.mesh_points3d(model(params)))[..., :2]
    mesh[:, model.topology.mesh_points, :2] = points
    return Observation(
        fit=crop, full=crop, landmarks68=landmarks_of(model, params), mesh468=mesh,
        box=torch.tensor([[10.0, 10, 160, 170]]).repeat(batch, 1), score=torch.ones(batch),
        identity=torch.zeros(batch, 128), eval_identity=torch.zeros(batch, 1024), expression=torch.zeros(batch, 7),
        age=torch.zeros(batch), male=torch.zeros(batch), path=tuple(f"{i}.jpg" for i in range(batch)),
        photo_size=((224, 224),) * batch, mask_given=(False,) * batch,
    )  # fmt: skip


start_from_said = functools.partial(start_from_regressor, settings=RegressorStart(realigned=False))
"""What says the same whatever it sees cannot be shown another crop."""


def oracle(params: FaceParams, other: FaceParams | None = None) -> Oracle:
    """Of the mirror image it says ``other``; without, the mirror image of the same."""
    other = load_face_model("makehuman", num_identity=IDENTITY).mirrored(params) if other is None else other
    sizes = RegressorConfig(identity=IDENTITY, texture=0)
    return Oracle(params_to_coefficients(params, sizes), params_to_coefficients(other, sizes))


# -- expression scores ---------------------------------------------------------------------------------------


def scores_of(model, expression: torch.Tensor) -> torch.Tensor:
    """(B, 52) scores that ask for these coefficients."""
    scores = torch.zeros(len(expression), 52)
    for name, (slope, offset, _) in CALIBRATION.items():
        asked = expression[:, model.expression_names.index(name)]
        scores[:, EXPRESSION_SCORES.index(name)] = (asked - offset) / slope
    return scores


def test_scores_move_a_start_by_the_precisions_of_both(model) -> None:
    """Without steps on landmarks: the mean of N_enc and score, weighted by their inverse variances; bounds hold."""
    true = heads(model, [0.0, 0.0])
    said = true.replace(expression=torch.full_like(true.expression, 0.2))
    asked = torch.full_like(true.expression, 0.6)
    settings = LandmarkStart(refine=0, refine_expression=0.1, score_noise=2.0)
    points, scores = landmarks_of(model, true), scores_of(model, asked)
    found = fit_landmarks(model, points, settings=settings, start=said, scores=scores).expression
    for i, name in enumerate(model.expression_names):
        expected = 0.2
        if name in CALIBRATION:
            own, other = 0.1**-2, (2 * CALIBRATION[name][2]) ** -2
            expected = (0.2 * own + 0.6 * other) / (own + other)
        assert found[:, i].tolist() == pytest.approx([expected] * 2, abs=1e-5), name
    without = dataclasses.replace(settings, score_noise=None)
    same = fit_landmarks(model, points, settings=without, start=said, scores=scores).expression
    torch.testing.assert_close(same, said.expression)


@pytest.mark.parametrize("shared", [False, True])
def test_right_scores_make_the_fit_to_landmarks_better(model, shared: bool) -> None:
    """Closed lids and raised brows, of which 68 landmarks alone leave much open."""
    true = heads(model, [5.0, -10.0])
    at = [model.expression_names.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight", "browOuterUpLeft")]
    true.expression[:, at] = 0.6
    true = true.replace(identity=true.identity[:1].expand(2, -1) if shared else true.identity)
    points, scores = landmarks_of(model, true), scores_of(model, true.expression)
    without, given = (
        fit_landmarks(
            model, points, settings=LandmarkStart(score_noise=n), shared_identity=shared, shared_expression=shared,
            scores=scores,
        ).expression
        for n in (None, 1.0)
    )  # fmt: skip
    errors = [(found - true.expression)[:, at].abs().mean() for found in (without, given)]
    assert errors[1] < 0.7 * errors[0]


# -- Gauss-Newton from a start -----------------------------------------------------------------------------


def test_no_steps_take_the_start_as_it_is(model) -> None:
    true = heads(model, [10.0, -20.0])
    found = fit_landmarks(model, landmarks_of(model, heads(model, [0.0, 0.0])), settings=LandmarkStart(refine=0),
                          start=true)  # fmt: skip
    for name in ("identity", "expression", "albedo", "translation"):
        assert torch.equal(getattr(found, name), getattr(true, name))
    assert torch.allclose(found.rotation, true.rotation, atol=1e-6)
    assert torch.equal(found.light.coefficients, true.light.coefficients)


def test_refinement_minimizes_landmarks_with_priors_around_the_start(model) -> None:
    """Where it ends, no small step lowers the objective of the docstring; where the prior is at 0, one does."""
    true = heads(model, [15.0])
    start, target = moved(true), landmarks_of(model, true)
    settings = LandmarkStart(refine=25, sigma_jaw=1e4, sigma_mesh=0, refine_identity=0.4, refine_expression=1e-3)

    def objective(params: FaceParams, center: FaceParams) -> float:
        points = landmarks_of(model.double(), params.to(dtype=torch.float64))
        value = ((points - target.double())[:, 17:] / (settings.refine_noise * settings.sigma)).square().sum()
        value += ((params.identity - center.identity).double() / settings.refine_identity).square().sum()
        value += ((params.expression - center.expression).double() / settings.refine_expression).square().sum()
        return value.item()

    found = fit_landmarks(model, target, settings=settings, start=start)
    try:
        least = objective(found, start)
        assert least < 0.2 * objective(start, start)
        middle = start.replace(identity=0 * start.identity, expression=0 * start.expression)
        lower = []
        for _ in range(30):
            step = 0.02 * torch.randn(1, IDENTITY)
            trial = found.replace(identity=found.identity + step)
            assert objective(trial, start) > least - 1e-4
            lower.append(objective(trial, middle) < objective(found, middle))
        assert any(lower)
    finally:
        model.float()


def test_refinement_brings_landmarks_nearer_and_keeps_what_they_do_not_tell(model) -> None:
    true = heads(model, [0.0, 20.0, -35.0])
    start, target = moved(true), landmarks_of(model, true)
    found = fit_landmarks(model, target, start=start, settings=LandmarkStart(sigma_mesh=0))
    alone = fit_landmarks(model, target, settings=LandmarkStart(sigma_mesh=0))

    def apart(params: FaceParams) -> float:
        return (landmarks_of(model, params) - target)[:, 17:].norm(dim=-1).mean().item()

    assert apart(found) < 0.4 * apart(start)
    error = {k: (p.identity - true.identity).norm(dim=1) for k, p in {"found": found, "alone": alone}.items()}
    assert (error["found"] < error["alone"]).all()  # the start knew what landmarks cannot say


def test_shared_coefficients_start_at_their_mean(model) -> None:
    true = heads(model, [0.0, 30.0])
    true = true.replace(identity=true.identity[:1].expand(2, -1), expression=true.expression[:1].expand(2, -1))
    start = moved(true)
    none = LandmarkStart(refine=0)
    joint = fit_landmarks(model, landmarks_of(model, true), settings=none, shared_identity=True, start=start)
    assert torch.allclose(joint.identity, start.identity.mean(0).expand(2, -1))
    assert torch.equal(joint.expression, start.expression)
    both = fit_landmarks(model, landmarks_of(model, true), shared_identity=True, shared_expression=True, start=start)
    assert torch.equal(both.identity[0], both.identity[1]) and torch.equal(both.expression[0], both.expression[1])
    apart = (landmarks_of(model, both) - landmarks_of(model, true))[:, 17:].norm(dim=-1).mean()
    assert apart < 0.5 * (landmarks_of(model, start) - landmarks_of(model, true))[:, 17:].norm(dim=-1).mean()


def test_residuals_say_which_coefficients_may_move(model) -> None:
    """As with one number for all where they are equal; a coefficient that is known well stays."""
    true = heads(model, [10.0])
    start, target = moved(true), landmarks_of(model, true)
    even = {"identity": torch.full((IDENTITY,), 0.4), "expression": torch.full((model.num_expression,), 0.1)}
    by_file = fit_landmarks(model, target, start=start, start_residual=even)
    by_setting = fit_landmarks(
        model, target, start=start, settings=LandmarkStart(refine_identity=0.4, refine_expression=0.1)
    )
    assert torch.allclose(by_file.identity, by_setting.identity, atol=1e-4)
    known = fit_landmarks(model, target, start=start, start_residual=even | {
        "identity": torch.where(torch.arange(IDENTITY) == 3, 1e-3, 0.4)})  # fmt: skip
    assert (known.identity - start.identity)[0, 3].abs() < 1e-3 < (by_file.identity - start.identity)[0, 3].abs()
    default = fit_landmarks(model, target, start=start)
    fixed = fit_landmarks(
        model, target, start=start, settings=LandmarkStart(refine_identity=0.5, refine_expression=0.2)
    )
    assert torch.allclose(default.identity, fixed.identity, atol=1e-4)


def test_residuals_of_fewer_coefficients_leave_the_rest_to_the_prior(model) -> None:
    true = heads(model, [0.0])
    said = moved(true)
    network = oracle(said)
    network.said = network.said.replace(identity=network.said.identity[:, :12])
    network.known = {"identity": torch.full((12,), 1e-3)}
    params, _, reasons, _ = start_from_regressor(model, network, observed(model, true), Camera.deep3d(batch=1),
                                              settings=RegressorStart(max_error=30))  # fmt: skip
    assert reasons == {}
    assert (params.identity[:, :12] - said.identity[:, :12]).abs().max() < 1e-3
    assert params.identity[:, 12:].abs().max() > 0.05


# -- N_enc --------------------------------------------------------------------------------------------------


def test_what_it_says_is_where_the_fit_starts(model) -> None:
    true = heads(model, [0.0, 25.0])
    photo = observed(model, true)
    params, said, reasons, _ = start_from_said(
        model, oracle(moved(true)), photo, Camera.deep3d(batch=2), LandmarkStart(refine=0)
    )
    assert reasons == {}
    assert torch.allclose(params.identity, said.identity, atol=1e-5)
    refined, _, _, _ = start_from_said(model, oracle(moved(true, 0.3)), photo, Camera.deep3d(batch=2))
    assert (refined.identity - true.identity).abs().mean() < 0.1
    assert (refined.rotation - true.rotation).abs().max() < 0.01


def test_a_person_starts_where_the_photos_that_can_be_read_agree(model) -> None:
    true = heads(model, [0.0, 25.0, 65.0, -20.0])
    true = true.replace(identity=true.identity[:1].expand(4, -1))
    photo, camera = observed(model, true), Camera.deep3d(batch=4)
    said = moved(true, 0.3)
    said.identity[2] = torch.nan
    params, _, reasons, _ = start_from_said(model, oracle(said), photo, camera, shared_identity=True)
    assert sorted(reasons) == [2]
    assert torch.equal(params.identity, params.identity[:1].expand(4, -1))
    assert params.light.coefficients.isfinite().all()
    single = [start_from_said(model, oracle(said[[i]]), photo[i], camera[i])[0] for i in (0, 1, 3)]
    alone = torch.stack([(of.identity - true.identity[:1]).norm() for of in single])
    assert (params.identity - true.identity)[0].norm() < alone.mean()  # three words instead of one
    assert (params.rotation - true.rotation).abs().max() < 0.05  # of the photo that cannot be read, too
    # nothing of it can be read: the landmarks of all
    nothing = said.replace(identity=said.identity * torch.nan)
    params, _, reasons, _ = start_from_said(model, oracle(nothing), photo, camera, shared_identity=True)
    assert len(reasons) == 4
    expected = fit_landmarks(model, photo.landmarks68, camera, photo.mesh468, shared_identity=True, averaged=True)
    assert torch.allclose(params.identity, expected.identity, atol=1e-4)
    # one photo of a person is a photo
    one, _, _, _ = start_from_said(model, oracle(said[[1]]), photo[1], camera[1], shared_identity=True)
    assert (model(one) - model(single[1])).abs().max() < 1e-2  # 1 mm: two ways to the same optimum


def test_photos_out_of_its_depth_start_from_their_landmarks(model) -> None:
    true = heads(model, [0.0, 76.0, 0.0, 0.0, 0.0, 20.0])
    photo, camera = observed(model, true), Camera.deep3d(batch=6)
    photo.box[2] = torch.tensor([0.0, 0.0, 44.0, 90.0])
    said = moved(true)
    said.translation[3, 0] += 0.2  # 20 px to the right
    said.identity[4, 3] = torch.nan
    params, _, reasons, _ = start_from_said(model, oracle(said), photo, camera)
    assert sorted(reasons) == [1, 2, 3, 4]
    for i, words in ((1, "turned by "), (2, "44 px wide"), (3, "misses its landmarks by "), (4, "not finite")):
        assert words in reasons[i]
    assert 15 < float(reasons[3].split(" by ")[1].split()[0]) < 25
    assert 68 < float(reasons[1].split("turned by ")[1].split()[0]) < 86
    rows = torch.tensor([1, 2, 3, 4])
    alone = fit_landmarks(model, photo.landmarks68[rows], camera[rows], photo.mesh468[rows])
    assert torch.allclose(params[rows].identity, alone.identity, atol=1e-4)
    assert torch.allclose(params[rows].light.coefficients, SHLight.ambient(4).coefficients)
    # the others are what they are without them
    fine = torch.tensor([0, 5])
    others, _, none, _ = start_from_said(model, oracle(said[fine]), photo[fine], camera[fine])
    assert none == {}
    assert torch.allclose(params[fine].identity, others.identity, atol=1e-4)
    # N_enc's own word counts for the yaw as well: it may see what the landmarks do not
    turned = said.replace(rotation=said.rotation + torch.tensor([0.0, 1.4, 0.0]))
    _, _, reasons, _ = start_from_said(model, oracle(turned), photo, camera)
    assert "turned" in reasons[0]
    # and the limits are settings
    wide = RegressorStart(max_yaw=88, smallest_face=10, max_error=60, realigned=False)
    _, _, reasons, _ = start_from_said(model, oracle(said), photo, camera, settings=wide)
    assert sorted(reasons) == [4]


@pytest.fixture(scope="module")
def photo(observe_models) -> Observation:
    from facerecon.perception import observe

    return observe(SAMPLE)


def network_that_says(params: FaceParams) -> Regressor:
    """A network whose heads say a pose whatever it sees, and the mean face."""
    network = Regressor(RegressorConfig(backbone="resnet10", width=0.125, identity=IDENTITY, texture=64)).eval()
    with torch.no_grad():
        network.heads["angles"].bias.copy_(params.rotation[0])
        network.heads["shift"].bias.copy_(params.translation[0, :2])
        network.heads["depth"].bias.copy_(params.translation[0, 2:])
    return network


def build(model, **options) -> Fitter:
    return Fitter(
        model, load_decoder("linear"), Renderer(224, antialias=True),
        stages={"texture": {"steps": 0}, "joint": {"steps": 2}}, detail=DetailSettings(size=128), **options,
    )  # fmt: skip


def test_a_fit_that_starts_by_the_network(model, photo) -> None:
    landmarks = fit_landmarks(model, photo.landmarks68, mesh_points=photo.mesh468, scores=photo.expression_scores)
    network = network_that_says(landmarks)
    fitter = build(model, regressor=network)
    result = fitter(photo)  # the mean face in that pose is near enough to be refined
    assert result.fallbacks == {} and not result.failed
    start = result.stages["start"][0]
    apart = euler_to_matrix(start.rotation).mT @ euler_to_matrix(landmarks.rotation)
    assert math.degrees(torch.arccos(((apart[0].trace() - 1) / 2).clamp(max=1)).item()) < 5
    assert start.identity.norm() < landmarks.identity.norm()
    assert result.face.texture.isfinite().all()

    with torch.no_grad():
        network.heads["shift"].bias += 0.5
    with pytest.warns(UserWarning, match=r"astronaut\.jpg: stage 1 starts from its landmarks.*misses"):
        result = fitter(photo)
    assert list(result.fallbacks) == [0]
    assert torch.allclose(result.stages["start"][0].identity, landmarks.identity, atol=1e-4)


def test_light_and_texture_may_be_the_networks(model, photo) -> None:
    network = network_that_says(fit_landmarks(model, photo.landmarks68, mesh_points=photo.mesh468))
    with torch.no_grad():
        network.heads["light"].bias += torch.arange(27) / 100
        network.heads["texture"].bias += torch.arange(64) / 10
    options = {"tone": "off", "light_space": "encoded"}
    fitter = build(model, regressor=network, regressor_start=RegressorStart(appearance="regressor"), **options)
    start = fitter.initialize(photo)
    latent, light = start.latent, start.params.light.coefficients[0]
    assert torch.allclose(light[:, 1], torch.arange(9, 18) / 100 + 0.8 * (torch.arange(9) == 0), atol=1e-6)
    assert torch.allclose(latent.codes[0, 0], torch.arange(64) / 10) and latent.space == "linear"
    with torch.no_grad():
        network.heads["shift"].bias += 0.5
    again, closed = fitter.initialize(photo), build(model, **options).initialize(photo)
    assert torch.allclose(again.params.light.coefficients, closed.params.light.coefficients, atol=1e-4)
    assert torch.allclose(again.latent.codes, closed.latent.codes, atol=1e-3)


def test_a_network_of_another_head_is_refused(model) -> None:
    config = RegressorConfig(backbone="resnet10", width=0.125, identity=IDENTITY)
    with pytest.raises(ConfigError, match="'ict'"):
        build(model, regressor=Regressor(dataclasses.replace(config, face_model="ict")))
    with pytest.raises(ConfigError, match="45 expressions"):
        build(model, regressor=Regressor(dataclasses.replace(config, expression=45)))
    with pytest.raises(ConfigError, match="regressor"):
        RegressorStart(appearance="regresor")


# -- mirror images ---------------------------------------------------------------------------------------


def test_mirrored_parameters_render_the_mirror_image(asset) -> None:
    """A rendering of the mirrored parameters is the mirror image of the rendering, lit from the other side."""
    asset("makehuman")
    head = load_face_model(num_identity=30)
    params = head.sample(torch.Generator().manual_seed(1), 1)
    names = list(head.expression_names)
    params.expression[:, names.index("mouthSmileLeft")] = 0.8
    params = params.replace(rotation=torch.tensor([[0.1, 0.4, 0.15]]), translation=torch.tensor([[0.2, 0.1, 0.3]]))
    params.light.coefficients[:] += 0.2 * torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(2))
    other = head.mirrored(params)
    assert torch.allclose(other.expression[:, names.index("mouthSmileRight")], torch.tensor([0.8]), atol=1e-3)
    texture = torch.full((1, 3, 16, 16), 0.6)
    renderer = Renderer(112)
    a, b = (renderer(head(p), texture, head.topology, Camera.deep3d(), p.light).image for p in (params, other))
    away = (a - b.flip(-1)).abs().mean(1)
    assert (away > 0.05).float().mean() < 0.01  # single pixels of the outline
    assert (a - a.flip(-1)).abs().mean(1).gt(0.05).float().mean() > 0.1
    again = head.mirrored(other)
    for name in ("identity", "expression", "rotation", "translation"):
        assert torch.allclose(getattr(again, name), getattr(params, name), atol=1e-4), name


def test_what_the_regressor_says_of_both_images_is_averaged(model) -> None:
    true = heads(model, [10.0])
    photo, camera = observed(model, true), Camera.deep3d(batch=1)
    said, of_mirror = moved(true), moved(true)
    start = LandmarkStart(refine=0)
    both, _, _, _ = start_from_said(model, oracle(said, model.mirrored(of_mirror)), photo, camera, start)
    alone, _, _, _ = start_from_said(
        model,
        oracle(said, model.mirrored(of_mirror)),
        photo,
        camera,
        start,
        settings=RegressorStart(mirrored=False, realigned=False),
    )
    assert torch.allclose(alone.identity, said.identity)
    for name in ("identity", "translation", "rotation"):
        middle = (getattr(said, name) + getattr(of_mirror, name)) / 2
        assert torch.allclose(getattr(both, name), middle, atol=1e-4), name


# -- a second look ----------------------------------------------------------------------------------------


class Follower:
    """Knows the heads: says of each crop where they are in it, as its pictures are cut out of the first ones.

    The first pictures are ramps, red from left to right and green from top to bottom: a crop shows where it lies.
    """

    def __init__(self, params: FaceParams, error: float) -> None:
        self.config = RegressorConfig(identity=IDENTITY, texture=0, size=112)
        self.params, self.error, self.seen, self.shape_head = params, error, [], None

    def residual(self, name: str) -> None:
        return None

    def sized(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(crops, 2)

    def __call__(self, image: torch.Tensor) -> Coefficients:
        column, row, _ = image[:, :, 55:57, 55:57].mean((2, 3)).unbind(1)  # of the middle
        wide = (image[:, 0, 56, 80] - image[:, 0, 56, 31]) / ((80 - 31) / 112)
        middle = torch.stack([column, row], 1) * 224
        self.seen.append((wide, middle))
        # a crop that is ``wide`` of the first: nearer by that, and moved
        p, focal = self.params, 1015.0
        depth = 10 - p.translation[:, 2]
        x, y = 112 + focal * p.translation[:, 0] / depth, 112 - focal * p.translation[:, 1] / depth
        x, y = ((v - m) / wide + 112 for v, m in ((x, middle[:, 0]), (y, middle[:, 1])))
        depth = depth * wide
        moved = torch.stack([(x - 112) * depth / focal, -(y - 112) * depth / focal, 10 - depth], 1)
        identity = p.identity + self.error * (len(self.seen) == 1)
        return params_to_coefficients(p.replace(translation=moved, identity=identity), self.config)


def test_a_second_look_is_at_the_crop_its_own_landmarks_ask_for(model) -> None:
    """The second crop is where the landmarks of the first answer would put it; what it says of that is brought back."""
    true = heads(model, [0.0, 20.0, -10.0])
    shifts = torch.tensor([[0.0, 0.26, 0.0], [0.08, 0.16, -0.5], [-0.1, 0.31, 0.5]])  # about in the crop's middle
    true = true.replace(translation=shifts)
    photo, camera = observed(model, true), Camera.deep3d(batch=3)
    axis = (torch.arange(224) + 0.5) / 224
    photo.image[:, 0], photo.image[:, 1] = axis.expand(224, 224), axis[:, None].expand(224, 224)
    follower = Follower(true, error=0.05)
    settings = RegressorStart(mirrored=False)
    start, _, reasons, _ = start_from_regressor(model, follower, photo, camera, LandmarkStart(refine=0), settings)
    assert reasons == {} and len(follower.seen) == 2
    wanted = deep3d_crop_transform(landmarks_of(model, true.replace(identity=true.identity + 0.05)), MEAN_FIVE_POINTS)
    wide, middle = follower.seen[1]
    assert torch.allclose(wide, wanted[:, 0, 0], atol=0.01)
    assert torch.allclose(middle, wanted[:, :, :2].sum(2) * 112 + wanted[:, :, 2], atol=0.6)
    assert (wide - 1).abs().max() > 0.03
    assert torch.allclose(start.identity, true.identity, atol=1e-6)  # what it said the second time
    assert (landmarks_of(model, start) - landmarks_of(model, true)).abs().max() < 0.7
    # far away from the first crop it is not believed, and the first word counts
    far = heads(model, [0.0]).replace(translation=torch.tensor([[0.6, 0.0, 0.0]]))
    photo = observed(model, far)
    photo.image[:, 0], photo.image[:, 1] = axis.expand(224, 224), axis[:, None].expand(224, 224)
    follower = Follower(far, error=0.05)
    start, _, _, _ = start_from_regressor(model, follower, photo, Camera.deep3d(), LandmarkStart(refine=0), settings)
    assert torch.allclose(start.identity, far.identity + 0.05, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_normal_equations_of_a_batch_are_solved_by_any_number_of_threads(threads) -> None:
    """LU factorizations of several such systems at once break off on some CPUs."""
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    jacobian = torch.randn(4, 400, 218, generator=generator)
    system = jacobian.mT @ jacobian + 400 * torch.eye(218)
    right = torch.randn(4, 218, generator=generator)
    system[2] = torch.nan
    torch.set_num_threads(threads)
    try:
        step = _solved(system, right)
    finally:
        torch.set_num_threads(before)
    assert step[2].isnan().all()
    for b in (0, 1, 3):
        torch.testing.assert_close(system[b] @ step[b], right[b], rtol=0, atol=1e-4)
