"""The regressor's losses against what they stand for; steps learn, go on bit by bit, two processes do what one does."""

import copy
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import regression_process
import torch
import torch.nn.functional as F

from facerecon.errors import ConfigError, InputError
from facerecon.fitting import coefficients_to_params, params_to_coefficients
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import sh_basis
from facerecon.morphable import load_face_model
from facerecon.perception.regressor import Coefficients, Regressor, RegressorConfig, save_regressor
from facerecon.render import Renderer
from facerecon.run import load_checkpoint
from facerecon.run.processes import Processes
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces
from facerecon.training.regressor import (
    CoefficientLosses,
    PhotoBatch,
    RegressorTraining,
    StepSettings,
    SupervisedWeights,
    SyncedBatchNorm,
    WeakLosses,
    WeakWeights,
    landmark_model,
    start_network,
)
from facerecon.types import Camera

SCRIPT = Path(__file__).with_name("regression_process.py")
CONFIG = RegressorConfig("resnet10", 6, 52, 5, width=0.125, size=32, expression_high=1.0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def head(asset):
    asset("makehuman")
    return load_face_model(num_identity=6), load_decoder("linear", components=5)


@pytest.fixture(scope="module")
def losses(head):
    return CoefficientLosses(*head, 5)


@pytest.fixture(scope="module")
def batch(head):
    """Eight rendered faces of 32 px: pictures, coefficients, landmarks."""
    made = SyntheticFaces(*head, replace(WITHIN_MODEL, hair=0, glasses=0, occluded=0), seed=1, size=32)(range(8))
    return made.image, params_to_coefficients(made.params, CONFIG, made.texture), made.landmarks68


def test_regions_are_root_mean_squares_of_their_forms(head, losses) -> None:
    form = torch.diag(torch.arange(1.0, 59.0))
    weighed = CoefficientLosses(*head, 5, regions={"nose": form, "cheek": 4 * form})
    found, truth = drawn(1), drawn(2)
    away = torch.cat([found.identity - truth.identity, found.expression - truth.expression], 1)
    root = (away.square() * torch.arange(1.0, 59.0)).sum(1).sqrt()
    got = weighed(found, truth, torch.zeros(4, 68, 2))
    torch.testing.assert_close(got["regions"], 1.5 * root, rtol=0.02, atol=0.06)
    assert "regions" not in losses(found, truth, torch.zeros(4, 68, 2))


def test_intra_inter_ratio_is_the_deviation_of_a_person_over_that_between_people(head) -> None:
    """As numpy has it, of the coefficients and of what a form makes of them; of any size; led to alike pictures."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    form = torch.zeros(58, 58)
    form[:6, :6] = root @ root.T
    losses = CoefficientLosses(*head, 5, regions={"nose": form}, pictures=3)
    found = drawn(1, 12)
    ratios = []
    for values in (found.identity.numpy(), (found.identity @ root).numpy()):
        people = values.reshape(4, 3, 6)
        between = np.var(people.mean(1), axis=0, ddof=1).sum()
        ratios.append(np.sqrt(np.var(people, axis=1, ddof=1).mean(0).sum() / between))
    got = losses.intra_inter_ratio(found.identity)
    assert abs(float(got) - np.mean(ratios)) < 1e-3
    assert torch.allclose(losses.intra_inter_ratio(3 * found.identity), got, atol=1e-3)
    alike = found.identity[::3].repeat_interleave(3, 0)
    assert losses.intra_inter_ratio(alike) < 0.02
    assert losses.intra_inter_ratio(found.identity[:3]) == 0  # of one person alone nothing can be said
    start = found.identity.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.intra_inter_ratio(start), start)
    nearer = found.identity - 0.1 * gradient / gradient.norm()
    assert losses.intra_inter_ratio(nearer) < got


def drawn(seed: int, count: int = 4, amount: float = 0.5) -> Coefficients:
    draws = torch.Generator().manual_seed(seed)
    sizes = {"identity": 6, "expression": 52, "texture": 5, "angles": 3, "light": 27, "translation": 3}
    values = {k: amount * torch.randn(count, n, generator=draws) for k, n in sizes.items()}
    return Coefficients(**values | {"expression": values["expression"].abs().clamp(0, 1)})


def test_shape_errors_are_those_of_the_vertices(head, losses) -> None:
    """The quadratic form, against the vertices of the face's skin computed one by one, in mm."""
    model, _ = head
    a, b = drawn(0), drawn(1)
    topology = model.topology
    ids = torch.unique(topology.faces[topology.regions["face"] & topology.regions["skin"]])
    found = losses(a, b, torch.zeros(4, 68, 2))

    def rms(x: Coefficients, y: Coefficients) -> torch.Tensor:
        shapes = [model.shape(coefficients_to_params(c, model)) for c in (x, y)]
        return 100 * (shapes[0] - shapes[1])[:, ids].square().sum(-1).mean(1).sqrt()

    same = {"identity": a.replace(identity=b.identity), "expression": a.replace(expression=b.expression)}
    for key, other in {"shape": b, **same}.items():
        expected = rms(a, other)
        assert torch.allclose(found[key], (expected**2 + 0.01).sqrt() - 0.1, rtol=1e-3), key
        assert (found[key] - expected).abs().max() < 0.1


def test_texture_light_pose_and_landmarks(head, losses) -> None:
    model, decoder = head
    a, b = drawn(2), drawn(3)
    found = losses(a, b, torch.zeros(4, 68, 2))
    # the texture: of the averaged map, where it is the face
    from facerecon.render.uv import region_texels

    mask = region_texels(model.topology, "face", 64)[0, 0] > 0
    maps = [F.adaptive_avg_pool2d((c.texture @ decoder.basis.flatten(1)).view(4, 3, 256, 256), 64) for c in (a, b)]
    difference = 255 * (maps[0] - maps[1])[:, :, mask].square().mean((1, 2)).sqrt()
    assert torch.allclose(found["texture"], difference, rtol=0.02, atol=0.5)
    # the light: shading at the face's normals
    shading = [sh_basis(losses.normals) @ c.light.view(4, 3, 9).mT for c in (a, b)]
    rms = 100 * (shading[0] - shading[1]).square().mean((1, 2)).sqrt()
    assert torch.allclose(found["light"], rms, atol=0.6)
    assert torch.allclose(losses.shading(a.light), shading[0] + 0.8 * math.pi / math.sqrt(4 * math.pi), atol=1e-5)
    assert torch.allclose(found["angles"], torch.rad2deg((a.angles - b.angles).norm(dim=1)), atol=0.1)
    moved = (a.translation - b.translation) * torch.tensor([101.5, 101.5, 9.0])
    assert torch.allclose(found["translation"], moved.norm(dim=1), atol=0.1)
    # landmarks: the whole head's
    params = coefficients_to_params(a, model)
    camera = Camera.deep3d(224, 4)
    expected = project(camera, model.landmarks3d(model(params), camera))[..., :2]
    assert (losses.pixels(a) - expected).abs().max() < 0.01
    assert torch.allclose(found["landmarks"], expected.norm(dim=-1).mean(1), rtol=1e-4)
    assert landmark_model(model).num_vertices < 0.2 * model.num_vertices


def test_nothing_is_lost_on_the_truth(losses, batch) -> None:
    _, truth, landmarks = batch
    found = losses(truth, truth, landmarks)
    assert all(value.max() < 0.02 for value in found.values()), {k: float(v.max()) for k, v in found.items()}


@pytest.mark.parametrize("name", ["identity", "expression", "texture", "angles", "light", "translation"])
def test_every_coefficient_is_led_to_its_truth(losses, batch, name) -> None:
    """From a little beside it, a step against the gradient comes nearer; at the truth there is no NaN."""
    _, truth, landmarks = batch
    noise = 0.05 * torch.randn(getattr(truth, name).shape, generator=torch.Generator().manual_seed(1))
    start = (getattr(truth, name) + noise).requires_grad_()

    def total(value):
        found = losses(truth.replace(**{name: value}), truth, landmarks)
        return sum(getattr(SupervisedWeights(), k) * v for k, v in found.items()).sum()

    (gradient,) = torch.autograd.grad(total(start), start)
    assert (gradient * noise).sum() > 0
    (at_truth,) = torch.autograd.grad(total(start - noise), start)
    assert at_truth.isfinite().all()


def test_weak_losses_of_a_face_that_is_its_own_rendering(head) -> None:
    """A photo rendered from coefficients: no photometric and landmark loss there, a gradient beside them."""
    model, decoder = head
    c = drawn(4, 2, 0.1)
    c = c.replace(light=torch.zeros(2, 27), translation=torch.tensor([[0.0, 0.0, -0.4]]).expand(2, 3))
    weak = WeakLosses(model, decoder, 64, 5)
    params = coefficients_to_params(c, model)
    camera = Camera.deep3d(224, 2)
    vertices = model(params)
    landmarks = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    image = Renderer(64)(vertices, weak.texture(c.texture), model.topology, camera, params.light, "face").image
    photo = PhotoBatch(image, torch.ones(2, 1, 64, 64), landmarks, torch.zeros(2, 128))
    values, composite = weak(c, photo)
    assert values["photometric"].max() < 2e-3 and values["landmarks"].max() < 1e-3
    assert torch.allclose(composite, image, atol=1e-5)
    assert torch.allclose(values["identity"], c.identity.square().sum(1))
    assert values["light"].max() < 1e-6
    skin = weak.skin[0] > 0
    albedo = weak.texture(c.texture)[:, :, skin]
    assert torch.allclose(values["flatness"], albedo.var(-1, unbiased=False).mean(1), rtol=1e-3)
    brighter = c.replace(light=c.light.clone()).light.index_fill(1, torch.tensor([0, 9, 18]), 0.2).requires_grad_()
    lit, _ = weak(c.replace(light=brighter), photo)
    (gradient,) = torch.autograd.grad(lit["photometric"].sum(), brighter)
    assert (gradient[:, [0, 9, 18]] > 0).all()
    total = WeakLosses.total(values, WeakWeights())
    by_hand = (
        1.92 * values["photometric"] + 1.6e-3 * values["landmarks"] + 10 * values["light"] + 5 * values["flatness"]
        + 3e-4 * (values["identity"] + 0.8 * values["expression"] + 1.7e-3 * values["texture"])
    )  # fmt: skip
    assert torch.allclose(total, by_hand)


def training_of(head, losses, **changes) -> RegressorTraining:
    torch.manual_seed(3)
    return RegressorTraining(Regressor(CONFIG), losses, **{"images": 8 * 60} | changes)


def test_one_batch_is_learned_by_heart(head, losses, batch) -> None:
    run = training_of(head, losses, settings=StepSettings(lr=5e-3, rampdown=0.3, average=8))
    metrics = [regression_process.learn(run, *batch) for _ in range(60)]
    first, last = metrics[0], metrics[-1]
    assert last["loss"] < 0.35 * first["loss"]
    assert last["landmarks"] < 0.35 * first["landmarks"]
    found = run.predict(batch[0], average=True)
    assert run.losses(found, batch[1], batch[2])["landmarks"].mean() < 0.6 * first["landmarks"]
    assert found.expression.min() >= 0 and found.expression.max() <= 1


def test_a_run_that_was_cut_in_two_ends_alike(head, losses, batch, same) -> None:
    whole, first = training_of(head, losses), training_of(head, losses)
    for _ in range(4):
        regression_process.learn(whole, *batch)
    for _ in range(2):
        regression_process.learn(first, *batch)
    second = training_of(head, losses)
    second.load_state(copy.deepcopy(first.state()))
    for _ in range(2):
        regression_process.learn(second, *batch)
    same(whole.state(), second.state())
    with pytest.raises(InputError, match=r"this\.file does not fit this run"):
        second.load_state({"network": {}}, "this.file")


def test_two_processes_do_what_one_does(head, tmp_path) -> None:
    """The same batch in two halves, synchronized normalization: the weights of one process, to 1e-4."""
    out = tmp_path / "two.safetensors"
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run([*command, str(out)], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    two = load_checkpoint(out)
    one = regression_process.trained(Processes(torch.device("cpu"))).state()
    assert two["step"] == one["step"] == 2 and two["images"] == one["images"] == 24
    for name, value in one["network"].items():
        assert torch.allclose(two["network"][name].float(), value.float(), atol=1e-4), name


def test_normalization_over_processes_keeps_the_names_of_weights() -> None:
    network = Regressor(CONFIG)
    names = list(network.state_dict())
    SyncedBatchNorm.replace_in(network)
    assert list(network.state_dict()) == names and isinstance(network.backbone.bn1, SyncedBatchNorm)


def test_a_network_of_another_head_gives_what_does_not_depend_on_it(tmp_path) -> None:
    """Of another edition of the head: all but the identity; of another model: neither expression nor its texture."""
    kind = {"width": 0.125, "size": 32, "expression_high": 1.0}
    for face_model, kept in (("makehuman_artist", True), ("ict", False)):
        source = Regressor(RegressorConfig("resnet10", 9, 52, 5, face_model=face_model, **kind))
        for number, parameter in enumerate(source.parameters()):
            torch.nn.init.constant_(parameter, 0.01 * (number + 1))
        path = save_regressor(tmp_path / f"{face_model}.safetensors", source, dtype=torch.float32)
        network, told = start_network(CONFIG, str(path), 0)
        assert "of another head" in told and network.config == CONFIG
        assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)
        assert torch.equal(network.heads["angles"].weight, source.heads["angles"].weight)
        assert network.heads["identity"].weight.abs().max() == 0
        assert torch.equal(network.heads["expression"].weight, source.heads["expression"].weight) == kept
    other = Regressor(RegressorConfig("resnet18", 6, 52, 5, **kind))
    path = save_regressor(tmp_path / "other.safetensors", other, dtype=torch.float32)
    with pytest.raises(ConfigError, match="backbone=resnet18"):
        start_network(CONFIG, str(path), 0)
