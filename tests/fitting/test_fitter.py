"""The stages on a real photo: they descend, keep their constraints, and treat faces of a batch independently."""

import dataclasses
import itertools
import math
import threading
from pathlib import Path

import pytest
import torch

from facerecon import losses
from facerecon.errors import ConfigError, FitError, InputError, ShapeError
from facerecon.fitting import DetailSettings, Fitter, fit_landmarks, fit_light, run_stage
from facerecon.fitting.variables import Variables
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import sh_basis
from facerecon.morphable import load_face_model
from facerecon.render import Renderer
from facerecon.run import thread_pool
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.types import Camera, FaceParams, Observation, SHLight

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"
SHORT = {"texture": {"steps": 6, "sphere": True}, "joint": {"steps": 8}}


@pytest.fixture(scope="module")
def model(request):
    from facerecon import assets
    from facerecon.errors import AssetError

    try:
        assets.locate("makehuman")
        assets.locate("identity128")
    except AssetError as error:
        pytest.skip(str(error))
    return load_face_model("makehuman", num_identity=40)


@pytest.fixture(scope="module")
def photos(model) -> Observation:
    """The sample photo and its mirror image."""
    from facerecon.imaging.files import read_image
    from facerecon.perception import observe

    image = read_image(SAMPLE)
    return Observation.cat([observe(image), observe(image.flip(-1))])


@pytest.fixture(scope="module")
def fitter(model) -> Fitter:
    from facerecon.stylegan.load import load_decoder

    return Fitter(
        model, load_decoder("linear"), Renderer(224, antialias=True), stages=SHORT, detail=DetailSettings(size=256)
    )


@pytest.fixture(scope="module")
def fitted(fitter, photos):
    return fitter(photos)


@pytest.fixture(scope="module")
def face(fitted):
    return fitted.face


def test_a_term_of_every_second_step_is_carried_on(fitter, photos, fitted) -> None:
    """Its value is that of its last step, and its gradient there counts for both."""
    photo, (params, latent) = photos[:1], (part[:1] for part in fitted.stages["start"])
    runs = {}
    for k in (1, 2):
        stage = dataclasses.replace(
            fitter.stages["texture"], steps=3, weights={"id": 1.0, "reg_z": 1e-6}, every={"id": k}, sphere=False
        )
        variables = Variables(params, latent, fitter.model.expression_bounds, fitter.decoder)
        runs[k] = run_stage(fitter.objective, stage, photo, variables).losses
    first, second, third = runs[2]["id"][0].tolist()
    assert first == second != third
    assert runs[1]["id"][0, 0].item() == first
    torch.testing.assert_close(runs[2]["total"], runs[2]["id"] + 1e-6 * runs[2]["reg_z"])
    assert third < first


def test_between_two_textures_the_latent_rests_and_the_head_moves(fitter, photos, fitted) -> None:
    photo, (params, latent) = photos[:1], (part[:1] for part in fitted.stages["start"])
    stage = dataclasses.replace(fitter.stages["joint"], steps=5, every={"texture": 3}, coarse_steps=5, coarse_size=64)
    variables, seen = Variables(params, latent, fitter.model.expression_bounds, fitter.decoder), []
    run = run_stage(fitter.objective, stage, photo, variables, callback=seen.append)
    moves = [not torch.equal(a.latent.codes, b.latent.codes) for a, b in itertools.pairwise(seen)]
    assert moves == [False, False, True, False]  # with the texture that shows it
    assert not torch.equal(variables.tensors["latent"], seen[-1].latent.codes)
    assert all(not torch.equal(a.params.rotation, b.params.rotation) for a, b in itertools.pairwise(seen))
    assert run.losses["id"][0, 0] == run.losses["id"][0, 1] == run.losses["id"][0, 2] != run.losses["id"][0, 3]
    assert run.losses["pix"][0, 0] != run.losses["pix"][0, 1]


@pytest.mark.usefixtures("two_threads")
def test_a_texture_decoded_meanwhile_is_that_of_one_decoded_in_turns(fitter, photos, fitted, monkeypatch) -> None:
    stage = dataclasses.replace(fitter.stages["joint"], steps=5, every={"texture": 3}, coarse_steps=5, coarse_size=64)
    params, latent = (part.map(torch.clone) for part in fitted.stages["start"])

    def run() -> tuple[Variables, dict]:
        variables = Variables(params, latent, fitter.model.expression_bounds, fitter.decoder)
        return variables, run_stage(fitter.objective, stage, photos, variables).losses

    decoding = []
    albedo = type(fitter.objective).albedo
    monkeypatch.setattr(
        type(fitter.objective), "albedo", lambda *args: decoding.append(threading.current_thread()) or albedo(*args)
    )
    meanwhile, losses = run()
    assert [thread is threading.main_thread() for thread in decoding] == [True, False]
    monkeypatch.setattr("facerecon.fitting.optimize.begin", lambda job, here: thread_pool.begin(job, True))
    in_turns, same = run()
    assert [thread is threading.main_thread() for thread in decoding[2:]] == [True, True]
    torch.testing.assert_close(losses, same, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(meanwhile.tensors["latent"], in_turns.tensors["latent"], rtol=0, atol=0.02)
    assert (meanwhile.tensors["latent"] - latent.codes).abs().max() > 0.3


@pytest.mark.usefixtures("two_threads")
def test_a_fit_that_breaks_off_gives_the_threads_back(fitter, photos, fitted) -> None:
    stage = dataclasses.replace(fitter.stages["joint"], steps=5, every={"texture": 3}, coarse_steps=5, coarse_size=64)
    params, latent = (part[:1] for part in fitted.stages["start"])

    def stop(report) -> None:
        if report.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(fitter.objective, stage, photos[:1], Variables(params, latent, decoder=fitter.decoder), stop)
    assert torch.get_num_threads() == 2


def test_networks_side_by_side_have_the_gradients_of_one_after_the_other(fitter, photos, fitted) -> None:
    stage, (params, latent) = fitter.stages["joint"], fitted.stages["start"]
    targets, found, before = fitter.objective.targets(photos, stage, params), [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        variables = Variables(params, latent, fitter.model.expression_bounds, fitter.decoder)
        variables.groups(stage)
        terms, _ = fitter.objective.terms(stage, photos, variables.current, variables.code, targets)
        (terms["lpips"] * torch.tensor([1.0, 2.0]) + 3 * terms["id"]).sum().backward()
        found.append((terms["lpips"].detach(), terms["id"].detach(), {k: t.grad for k, t in variables.tensors.items()}))
    torch.set_num_threads(before)
    (lpips, identity, gradients), (same_lpips, same_identity, same) = found
    torch.testing.assert_close((same_lpips, same_identity), (lpips, identity), rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        assert (same[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_landmark_fit_recovers_known_parameters(model) -> None:
    torch.manual_seed(1)
    true = FaceParams(
        identity=0.8 * torch.randn(3, model.num_identity),
        expression=torch.zeros(3, model.num_expression),
        albedo=torch.zeros(3, 0),
        rotation=torch.tensor([[0.1, 0.3, -0.05], [-0.2, -0.5, 0.1], [0.0, 0.8, 0.0]]),
        translation=torch.tensor([[0.1, 0.0, 0.2], [-0.2, 0.1, -0.3], [0.0, 0.0, 0.0]]),
        light=SHLight.ambient(3),
    )
    jaw = model.expression_names.index("jawOpen")
    true.expression[:, jaw] = torch.tensor([0.0, 0.5, 0.2])
    camera = Camera.deep3d(batch=3)
    vertices = model(true)
    target = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    found = fit_landmarks(model, target, camera)
    points = project(camera, model.landmarks3d(model(found), camera))[..., :2]
    assert (points - target).norm(dim=-1).mean() < 0.7  # px
    assert (found.rotation - true.rotation).abs().max() < math.radians(6)
    assert found.expression.min() >= 0
    assert found.expression.max() <= 1
    # closer than the mean head, in shape
    mean = model.neutral(3)
    error = (model.shape(found) - model.shape(true)).norm(dim=-1).mean()
    assert error < 0.75 * (model.shape(mean) - model.shape(true)).norm(dim=-1).mean()


def test_light_is_recovered_in_closed_form() -> None:
    torch.manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(4000, 3) + torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    true = SHLight.ambient().coefficients[0] + 0.15 * torch.randn(9, 1) + 0.01 * torch.randn(9, 3)
    albedo = torch.rand(4000, 3) * 0.3 + 0.5
    image = albedo * (sh_basis(normals) @ true)
    image[:200] = 0.0  # a hair, a shadow
    found = fit_light(image, albedo, normals, prior=1e-4, color_prior=1e-3)
    shading = sh_basis(normals) @ found
    assert (shading - sh_basis(normals) @ true).abs().mean() < 0.02


def test_losses_fall_and_constraints_hold(fitter, fitted, face) -> None:
    history = face.history
    for name in ("texture", "joint"):
        total = history[f"{name}.total"]
        assert total.shape == (2, SHORT[name]["steps"])
        assert (total[:, -1] < total[:, 0]).all()
        terms = [weight * history[f"{name}.{term}"] for term, weight in fitter.stages[name].weights.items()]
        torch.testing.assert_close(total, sum(terms), rtol=1e-5, atol=1e-5)
    code = fitted.stages["texture"][1].codes
    assert torch.allclose(code.norm(dim=-1), torch.tensor(math.sqrt(code.shape[-1])), rtol=1e-4)
    assert face.params.expression.min() >= 0
    assert face.params.expression.max() <= 1
    assert face.texture.min() >= 0
    assert face.texture.max() <= 1
    assert face.texture.shape == (2, 3, 256, 256)
    assert list(fitted.stages) == list(fitted.seconds)[:3] == ["start", "texture", "joint"]
    assert fitted.used == (0, 1) and fitted.observed.batch == 2


def test_a_fitter_keeps_nothing_of_its_last_call(fitter, photos, fitted) -> None:
    before = dict(vars(fitter))
    fitter(photos[0])
    assert vars(fitter).keys() == before.keys()
    assert all(vars(fitter)[name] is value for name, value in before.items())


def test_files_of_earlier_versions_load(face, photos, tmp_path) -> None:
    """What was called ``seen`` and ``judge`` then."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for record, now, before in ((face, "visibility", "seen"), (photos, "eval_identity", "judge")):
        path = record.save(tmp_path / "record.safetensors")
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        tensors = load_file(path)
        tensors[before] = tensors.pop(now)
        save_file(tensors, path, meta)
        assert torch.equal(getattr(type(record).load(path), now), getattr(record, now))


def test_stage_two_leaves_the_shape_alone(fitted) -> None:
    start, texture = fitted.stages["start"][0], fitted.stages["texture"][0]
    for name in ("identity", "expression", "rotation", "translation"):
        assert torch.equal(getattr(start, name), getattr(texture, name))


def test_a_photo_alone_and_in_a_batch(fitter, photos, face) -> None:
    alone = fitter(photos[0]).face
    for term in ("texture.total", "texture.pix", "joint.lm"):
        first = face.history[term][0, 0], alone.history[term][0, 0]
        assert abs(first[0] - first[1]) < 1e-4 * max(1.0, float(first[0].abs())), term
    camera = Camera.deep3d()
    points = [
        project(camera, fitter.model.landmarks3d(fitter.model(one.params), camera))[..., :2] for one in (face[0], alone)
    ]
    assert (points[0] - points[1]).norm(dim=-1).max() < 0.4  # px: rounding, and what Adam makes of it in 8 steps


def test_the_photo_camera_agrees_with_the_crop(fitter, photos, face) -> None:
    face, photo = face[1], photos[1]
    posed = fitter.model(face.params)
    crop = project(Camera.deep3d(), posed[:, ::500])[..., :2]
    to_photo = photo.fit.to_photo
    expected = crop @ to_photo[:, :, :2].mT + to_photo[:, None, :, 2]
    assert torch.allclose(project(face.camera, posed[:, ::500])[..., :2], expected, atol=0.02)


@pytest.fixture(scope="module")
def undisturbed(fitter, photos):
    """Both faces fitted on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    face = fitter(photos).face
    torch.set_num_threads(threads)
    return face


def check_same(face, other) -> None:
    """The first face of both, but for what Adam makes of rounding in 16 steps."""
    assert (face.params.identity[0] - other.params.identity[0]).abs().max() < 3e-2
    assert (face.texture[0] - other.texture[0]).abs().mean() < 2e-3  # single texels may turn from seen to unseen


def test_one_thread_gives_the_same_bits(fitter, photos, undisturbed, one_thread) -> None:
    again = fitter(photos).face
    for name in ("texture", "visibility", "vertices"):
        assert torch.equal(getattr(again, name), getattr(undisturbed, name)), name
    assert torch.equal(again.params.identity, undisturbed.params.identity)


def test_a_face_that_cannot_be_measured_is_reported_and_leaves_the_other_alone(
    fitter, photos, undisturbed, one_thread
) -> None:
    broken = photos.replace(fit=photos.fit.replace(image=photos.fit.image.clone()))
    broken.fit.image[1, :, 100:110] = math.nan
    with pytest.warns(UserWarning, match="could not be fitted, what was measured on it is not finite"):
        result = fitter(broken)
    face = result.face
    assert set(result.failed) == {1} and not result.diverged
    assert face.params.identity[1].isnan().all() and face.texture[1].isnan().all()
    check_same(face, undisturbed)
    with pytest.raises(FitError, match="observe it again"):
        fitter(broken[1])


class Poisoned(LinearDecoder):
    """A decoder that multiplies the texture of face 1 by ``value`` in steps ``steps`` of a stage; its own callback."""

    def __init__(self, decoder: LinearDecoder, value: float, stage: str, steps: range) -> None:
        super().__init__(decoder.mean, decoder.basis)
        self.value, self.stage, self.steps, self.at = value, stage, steps, ("texture", 0)

    def synthesis(self, codes, size=None):
        factor = torch.ones(len(codes), 1, 1, 1)
        if self.at[0] == self.stage and self.at[1] in self.steps:
            factor[1] = self.value
        return super().synthesis(codes, size) * factor

    def follow(self, report) -> None:
        last = report.step + 1 == report.steps
        following = {"texture": "joint", "joint": "end"}[report.stage] if last else report.stage
        self.at = following, 0 if last else report.step + 1


@pytest.mark.parametrize(
    "value, stage, where",
    [
        (math.nan, "joint", "diverged"),
        (math.inf, "joint", "diverged"),
        (1e4, "joint", "diverged"),
        (math.nan, "texture", "failed"),
    ],
)
def test_a_face_that_diverges_goes_back_and_leaves_the_other_alone(
    value, stage, where, fitter, photos, undisturbed, one_thread
) -> None:
    steps = range(2, 8) if where == "diverged" else range(8)
    poisoned = Poisoned(fitter.decoder, value, stage, steps)
    other = Fitter(fitter.model, poisoned, fitter.renderer, stages=SHORT, detail=fitter.detail)
    with pytest.warns(UserWarning, match="its loss is not finite or blew up"):
        result = other(photos, callback=poisoned.follow)
    face = result.face
    assert set(getattr(result, where)) == {1}
    check_same(face, undisturbed)
    if where == "failed":
        assert face.texture[1].isnan().all() and face.params.rotation[1].isnan().all()
    else:
        assert "step 7 of 8 of stage 'joint'" in result.diverged[1]  # its texture is decoded after step 4
        assert face.texture[1].isfinite().all()
        before = result.stages["texture"][1].codes[1]
        assert (face.latent.codes[1] - before).abs().max() < 0.97  # at most two steps of 0.48 from where stage 2 ended
        assert not result.failed


def test_no_tensor_leaves_the_device_in_a_step(fitter, photos, monkeypatch) -> None:
    """With the backend that a GPU uses, a step copies no tensor to the host; only sizes and two scalars are read.

    CUDA itself could not be run: the calls that would copy are counted on a CPU, in 1 and in 4 steps.
    """
    import traceback

    start = fitter.initialize(photos)
    objective = dataclasses.replace(fitter.objective, renderer=Renderer(224, backend="torch", antialias=True))
    calls: list[str] = []

    def counted(name: str):
        original = getattr(torch.Tensor, name)

        def call(self, *args, **kwargs):
            stack = [frame.filename for frame in traceback.extract_stack() if "facerecon" in frame.filename]
            calls.append(f"{name} {Path(stack[-1]).name if stack else ''}")
            return original(self, *args, **kwargs)

        return call

    for name in ("cpu", "numpy", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    seen = []
    for steps in (1, 4):
        calls.clear()
        stage = dataclasses.replace(fitter.stages["joint"], steps=steps)
        run_stage(objective, stage, photos, Variables(start.params, start.latent, fitter.model.expression_bounds))
        seen.append({call: calls.count(call) for call in calls})
    grown = {call for call, count in seen[1].items() if count > seen[0].get(call, 0)}
    # where to cut the candidates into chunks; pixels an image; which part of the picture an aligned crop needs
    assert grown <= {"tolist torch_scatter.py", "tolist interpolate.py", "tolist warp.py"}


def test_what_holds_the_shape(fitter, photos) -> None:
    """``reg_id`` and ``reg_exp`` of the first step: 0 around the start, squared norms around the mean face."""
    start = fitter.initialize(photos)
    params, latent = start.params, start.latent
    params = params.replace(identity=params.identity.add(0.3), expression=torch.full_like(params.expression, 0.2))
    stage = dataclasses.replace(fitter.stages["joint"], steps=2)
    found = {}
    for prior in ("start", "mean"):
        objective = dataclasses.replace(fitter.objective, shape_prior=prior)
        variables = Variables(params, latent, fitter.model.expression_bounds)
        found[prior] = run_stage(objective, stage, photos, variables).losses
    assert found["start"]["reg_id"][:, 0].eq(0).all() and found["start"]["reg_exp"][:, 0].eq(0).all()
    assert found["start"]["reg_id"][:, 1].max() > 0
    torch.testing.assert_close(found["mean"]["reg_id"][:, 0], params.identity.square().sum(1))
    torch.testing.assert_close(found["mean"]["reg_exp"][:, 0], params.expression.square().sum(1))


def test_landmarks_that_are_turned_away_weigh_less(fitter, photos) -> None:
    """By ``facing`` in the loss of stage 3 as the start has the head turned; a jaw and a frontal head as
    the release has them."""
    stage, start = fitter.stages["joint"], fitter.initialize(photos).params
    frontal = start.replace(rotation=torch.zeros_like(start.rotation))
    turned = frontal.replace(rotation=torch.tensor([[0.0, 0.7, 0.0]]).expand(photos.batch, 3))
    release = losses.landmark_weights("release")
    assert release.max() == 20
    objective = dataclasses.replace(fitter.objective, landmark_weighting="facing")
    front, side = (objective.targets(photos, stage, params)["lm"] for params in (frontal, turned))
    torch.testing.assert_close(front, release.expand(photos.batch, 68))
    torch.testing.assert_close(side[:, :17], front[:, :17], atol=1e-4, rtol=1e-5)
    assert (side[:, 17:] < front[:, 17:] + 1e-4).all() and (side[:, 60:] < 0.9 * front[:, 60:]).sum() > 2
    plain = Fitter(fitter.model, fitter.decoder, fitter.renderer, stages=SHORT, landmark_weighting="release")
    torch.testing.assert_close(plain.objective.targets(photos, stage, turned)["lm"], release)
    with pytest.raises(ConfigError, match="facing"):
        Fitter(fitter.model, fitter.decoder, fitter.renderer, stages=SHORT, landmark_weighting="facign")


def test_the_prior_of_stage_1_holds_stage_3(fitter, photos) -> None:
    """Each coefficient around its center in its own deviation, landmarks and mesh points over their noise."""
    start = fitter.initialize(photos)
    prior, settings = start.prior, fitter.start
    assert prior.identity.eq(0).all() and prior.identity_deviation.eq(1).all()
    assert prior.expression_deviation.eq(settings.sigma_expression).all()
    mesh = len(fitter.model.topology.mesh_points)
    noise = [settings.sigma_jaw] * 17 + [settings.sigma] * 51 + [settings.sigma_mesh] * mesh
    assert prior.landmark_noise.tolist() == [pytest.approx(noise)] * photos.batch
    deviation = torch.linspace(0.1, 2.0, fitter.model.num_identity).expand_as(prior.identity)
    prior = dataclasses.replace(prior, identity=prior.identity + 0.3, identity_deviation=deviation)
    variables = Variables(start.params, start.latent, fitter.model.expression_bounds, prior=prior)
    found = run_stage(fitter.objective, dataclasses.replace(fitter.stages["joint"], steps=1), photos, variables).losses
    expected = ((start.params.identity - 0.3) / deviation).square().sum(1)
    torch.testing.assert_close(found["reg_id"][:, 0], expected)
    camera = photos.camera
    vertices = fitter.model(start.params)
    points = torch.cat([fitter.model.landmarks3d(vertices, camera), fitter.model.mesh_points3d(vertices)], 1)
    seen = torch.cat([photos.landmarks68, photos.mesh468[:, fitter.model.topology.mesh_points, :2]], 1)
    apart = ((project(camera, points)[..., :2] - seen) / prior.landmark_noise[..., None]).square().sum(-1)
    facing = losses.facing_weights(fitter.model.landmarks3d(fitter.model.mean[None])[0], start.params.rotation)
    apart[:, :68] *= facing
    torch.testing.assert_close(found["lm"][:, 0], apart.sum(1), rtol=1e-4, atol=1e-3)


# Doors ---------------------------------------------------------------------------------------------------


def test_a_fitter_is_given_models_not_their_names(model) -> None:
    for given in (("makehuman", "linear", Renderer(224)), (model, "linear", Renderer(224))):
        with pytest.raises(ConfigError, match="load_") as error:
            Fitter(*given)
        assert "got str" in str(error.value)


def test_a_photo_is_observed_and_a_list_says_what_to_use(fitter, photos) -> None:
    for source in (SAMPLE, str(SAMPLE)):
        assert torch.allclose(fitter._taken(source).landmarks68, photos[0].landmarks68, atol=0.05)
    with pytest.raises(InputError, match=r"of 2\. Use multiview"):
        fitter([photos[0], photos[1]])
    with pytest.raises(InputError, match=r"nowhere\.jpg does not exist"):
        fitter.multiview(["nowhere.jpg"])


@pytest.mark.parametrize("size", [225, 512, (224, 200)])
def test_a_renderer_of_another_size_is_one_line(size, fitter, photos, monkeypatch) -> None:
    monkeypatch.setattr(fitter, "renderer", Renderer(size))
    with pytest.raises(ConfigError, match=r"the fit crop has 224 x 224; use Renderer\(size=224\)"):
        fitter(photos)
    with pytest.raises(ConfigError, match="the fit crop has 224 x 224"):
        fitter.multiview(photos)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_or_a_mixture_is_one_line(kind, model, photos) -> None:
    decoder = LinearDecoder(torch.full((3, 8, 8), 0.5), torch.rand(2, 3, 8, 8))
    small = load_face_model("makehuman", num_identity=1)
    called = str(kind).removeprefix("torch.")
    params, camera = small.neutral(), Camera.deep3d(32)
    vertices, texture = small(params), torch.rand(1, 3, 8, 8)
    other = params.to(kind)
    mixed = [
        lambda: Fitter(small.to(kind), decoder, Renderer(224))(photos),
        lambda: small(params),
        lambda: Fitter(model, decoder, Renderer(224))(photos.to(kind)),
        lambda: model(other.replace(identity=torch.zeros(1, 40, dtype=kind))),
        lambda: decoder(torch.zeros(1, 1, 2, dtype=kind)),
        lambda: Renderer(32)(vertices, texture, model.topology, camera, other.light),
    ]
    if kind != torch.float64:
        mixed += [
            lambda: small(other),
            lambda: decoder.to(kind)(torch.zeros(1, 1, 2, dtype=kind)),
            lambda: Renderer(32)(vertices.to(kind), texture, model.topology, camera, params.light),
            lambda: Renderer(32)(vertices, texture.to(kind), model.topology, camera, params.light),
        ]
    for call in mixed:
        with pytest.raises(ShapeError, match=r"must be float(32|64).*; got") as error:
            call()
        assert called in str(error.value) and "\n" not in str(error.value)
