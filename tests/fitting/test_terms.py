"""Every term of a stage, and a step of one, computed by hand on a square of 4 x 4 px."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from facerecon.fitting import Fitter, Stage, run_stage
from facerecon.fitting.expression_scores import CALIBRATION
from facerecon.fitting.initialize import ShapePrior
from facerecon.fitting.stage import TERMS, VARIABLES
from facerecon.fitting.variables import Variables
from facerecon.perception.face_landmarker import EXPRESSION_SCORES
from facerecon.render import Renderer
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.types import FaceParams, Latent, Observation, SHLight

_spec = importlib.util.spec_from_file_location("flat_head", Path(__file__).parents[1] / "flat_head.py")
flat = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(flat)


class Identity(torch.nn.Module):
    """Two pixels of row 3 are the features, their mean is the embedding; keeps the landmarks it was given."""

    metric = "euclidean"

    def __init__(self) -> None:
        super().__init__()
        self.landmarks: list[torch.Tensor] = []

    def embed_with_features(self, image, landmarks):
        self.landmarks.append(landmarks)
        two = image[:, :, 3:4, 2:4]
        return [two], two.mean((2, 3))

    def features(self, image, landmarks):
        return self.embed_with_features(image, landmarks)[0]

    def forward(self, image, landmarks):
        return self.embed_with_features(image, landmarks)[1]


def fitter(**options) -> Fitter:
    """A decoder of even gray: 0.5 and 0.1 a unit of its only number."""
    decoder = LinearDecoder(torch.full((3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.1))
    options = {"landmark_weighting": "release", "perceptual": "face_features", **options}
    return Fitter(flat.flat_head(), decoder, Renderer(8), identity=Identity(), **options)


def photo_with_a_side() -> Observation:
    """A pixel of row 3 is unlike its mirror image."""
    photo = flat.flat_photo()
    photo.image[:, :, 3, 2] = torch.tensor([0.1, 0.2, 0.3])
    return photo


def start(identity: float = 0.0, expression: float = 0.0) -> FaceParams:
    params = flat.flat_head().neutral(1)
    return params.replace(identity=params.identity + identity, expression=params.expression + expression)


JOINT = Stage("joint", 1, 0.01, VARIABLES, dict.fromkeys(TERMS, 1.0))


def evaluated(fit: Fitter, stage: Stage = JOINT, view=None) -> dict[str, float]:
    """Terms of a head a pixel to the right, gray 0.7 under light of 1.2, 1 and 0.8, that began elsewhere."""
    photo = photo_with_a_side()
    gains = torch.tensor([1.2, 1.0, 0.8]) / math.sqrt(math.pi / 4)
    light = torch.zeros(1, 9, 3)
    light[:, 0] = gains
    params = start(identity=1.0).replace(light=SHLight(light))
    if view is not None:
        view = fit.objective.prepare(params, photo.camera)[0]
    targets = fit.objective.targets(photo, stage, start(0.25, 0.1))
    latent = Latent(torch.full((1, 1, 1), 2.0), "linear")
    terms, image = fit.objective.terms(stage, photo, params, latent, targets, view)
    assert torch.equal(image[..., 5:], photo.image[..., 5:])  # beyond the face mask
    return {name: value.item() for name, value in terms.items()}


COLOR = (0.84, 0.7, 0.56)  # of the rendered head
APART = [c - 0.5 for c in COLOR]  # from the photo, over the 8 px that the face mask leaves of it
LENGTH = math.sqrt(sum(c * c for c in COLOR))
IMAGE_TERMS = {
    "lpips": (2 - 2 * sum(COLOR) / LENGTH / math.sqrt(3)) / 2,  # mean of two pixels, one of them the photo's own
    "pix": sum(map(abs, APART)),
    "id": sum((a / 2) ** 2 for a in APART),  # half of the embedding is the photo's own
    "reg_z": 2.0**2,
}


def test_each_term_of_stage_3() -> None:
    found = evaluated(fitter())
    expected = IMAGE_TERMS | {
        "lm": (11 * 20 + 57) / 68,  # every point is 1 px off; 11 weigh 20
        "silhouette": (5 + 5 + 5) / 40,  # row 5: columns 0 to 2 missed, 5 and 6 too many; rows 6 and 7: all of 5 missed
        "reg_id": 0.75**2,
        "reg_exp": 0.1**2,
        "light": 2 * 0.2**2 / (math.pi / 4) / 27,
        "exp_scores": 0,  # none were measured
    }
    assert found == pytest.approx(expected, abs=1e-5) and set(found) == set(TERMS)


def test_the_expression_is_held_to_the_scores_of_its_names() -> None:
    """0.4 is asked for by a score of (0.4 - offset) / slope; no score asks for more than 1."""
    slope, offset, noise = CALIBRATION["mouthSmileLeft"]
    model = flat.flat_head()
    model.expression_names = ("mouthSmileLeft",)
    fit = dataclasses.replace(fitter().objective, model=model)
    photo = flat.flat_photo(2)
    scores = torch.zeros(2, 52)
    scores[:, EXPRESSION_SCORES.index("mouthSmileLeft")] = torch.tensor([(0.4 - offset) / slope, 9.0])
    photo = photo.replace(expression_scores=scores)
    params = model.neutral(2)
    params = params.replace(expression=params.expression + 0.3)
    targets = fit.targets(photo, JOINT, params)
    found, _ = fit.terms(JOINT, photo, params, Latent(torch.zeros(2, 1, 1), "linear"), targets)
    assert found["exp_scores"].tolist() == pytest.approx([(0.1 / noise) ** 2, (0.7 / noise) ** 2], rel=1e-4)


def test_units_of_a_basis_do_not_matter() -> None:
    """Half the basis, twice the coefficients and their deviations: the same head has the same terms."""
    found = []
    for k in (1.0, 2.0):
        model = flat.flat_head()
        model.identity_basis.div_(k)
        fit = dataclasses.replace(fitter().objective, model=model, landmark_weighting="noise")
        params, photo = start(identity=k), photo_with_a_side()
        even = torch.ones_like(params.identity)
        noise = torch.full((1, 68 + len(model.topology.mesh_points)), 0.5)
        prior = ShapePrior(0.25 * k * even, params.expression - 0.1, 0.3 * k * even, even, noise)
        targets = fit.targets(photo, JOINT, params, prior)
        terms, _ = fit.terms(JOINT, photo, params, Latent(torch.full((1, 1, 1), 2.0), "linear"), targets)
        found.append({name: value.item() for name, value in terms.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    assert (found[0]["reg_id"], found[0]["reg_exp"]) == pytest.approx(((0.75 / 0.3) ** 2, 0.1**2), rel=1e-4)
    # every point is 1 px off; a head without depth faces nowhere, which leaves a twentieth to all but the jaw
    assert found[0]["lm"] == pytest.approx((17 + 0.05 * 51) / 0.5**2, rel=1e-3)


def test_each_term_as_the_paper_has_it() -> None:
    found = evaluated(fitter(photometric="l2", shape_prior="mean", latent_prior="radius"))
    assert found["pix"] == pytest.approx(math.sqrt(sum(a * a for a in APART)), abs=2e-4)
    assert (found["reg_id"], found["reg_exp"], found["reg_z"]) == pytest.approx((1.0, 0.0, 9.0))
    assert evaluated(fitter(latent_prior="geocross"))["reg_z"] == 0  # one row


def test_stage_2_has_no_terms_of_shape() -> None:
    stage = Stage("texture", 1, 0.1, ("latent",), dict.fromkeys(IMAGE_TERMS, 1.0))
    assert evaluated(fitter(), stage, view=True) == pytest.approx(IMAGE_TERMS, abs=1e-5)
    assert evaluated(fitter(), stage, view=True) == pytest.approx(evaluated(fitter(), stage), abs=1e-6)
    one = Stage("texture", 1, 0.1, ("latent",), {"id": 1.0})  # without the pass that both share
    assert evaluated(fitter(), one, view=True) == pytest.approx({"id": IMAGE_TERMS["id"]}, abs=1e-5)


def test_faces_are_aligned_by_their_own_landmarks_where_the_head_moves() -> None:
    photo = flat.flat_photo().landmarks68
    for alignment, stage, shift in (("photo", JOINT, 0.0), ("own", JOINT, 1.0), ("own", "texture", 0.0)):
        fit = fitter(identity_alignment=alignment)
        if stage == "texture":
            stage = Stage("texture", 1, 0.1, ("latent",), {"id": 1.0})
        evaluated(fit, stage)
        torch.testing.assert_close(fit.identity.landmarks[0], photo)  # of the target
        torch.testing.assert_close(fit.identity.landmarks[-1], photo + torch.tensor([shift, 0.0]), atol=1e-4, rtol=0)


def test_outlines_are_compared_below_the_eyes_and_within_the_photo() -> None:
    photo = flat.flat_photo(2)
    photo.fit.valid[:, :, 6] = 0
    photo.landmarks68[:, :, 1] = 100
    photo.landmarks68[:, 36:42, 1], photo.landmarks68[:, 42:48, 1] = 3.75, 5.75  # 4.75 on average
    photo.landmarks68[1, 36:48, 1] -= 3
    below = fitter().objective.targets(photo, JOINT, start())["below"]
    rows = [[5, 7], [2, 3, 4, 5, 7]]
    for one, wanted in zip(below, rows, strict=True):
        assert one.shape == (1, 8, 8)
        assert one[0].nonzero().tolist() == [[row, column] for row in wanted for column in range(8)]


def test_the_identity_to_reach_is_the_photos() -> None:
    fit = fitter()
    target = fit.objective.targets(photo_with_a_side(), JOINT, start())["id"]
    assert target.tolist() == [pytest.approx([0.3, 0.35, 0.4])]  # of (0.1, 0.2, 0.3) and gray


def test_steps_of_adam_by_hand() -> None:
    """The first step of Adam is a rate long, whatever the slope, and so is each while the slope stays."""
    stage = Stage("joint", 3, 0.1, ("identity", "latent"), {"lm": 0.5, "pix": 3.0}, rate_scale={"latent": 4})
    fit = fitter(landmark_weighting="uniform")
    photo = flat.flat_photo()
    photo.landmarks68[..., 0] += 0.8
    params = start().replace(light=flat.even_light(1.0))
    variables = Variables(params, Latent(torch.ones(1, 1, 1), "linear"))
    seen = []
    run = run_stage(fit.objective, stage, photo, variables, callback=seen.append)
    found = {name: values[0].tolist() for name, values in run.losses.items()}
    # to the right by 0.1 px of 0.8, then by the mean of the slopes over their root mean square, late ones weighing more
    second = 0.1 * (0.9 * 0.8 + 0.7) / 1.9 / math.sqrt((0.999 * 0.8**2 + 0.7**2) / 1.999)
    left = [0.8, 0.7, 0.7 - second]
    assert found["lm"] == pytest.approx([x**2 for x in left], abs=1e-4)
    # gray from 0.6 to 0.56 and 0.52 in three channels, where the photo has 0.5
    assert found["pix"] == pytest.approx([0.3, 0.18, 0.06], abs=1e-4)
    assert found["total"] == pytest.approx([0.5 * lm + 3 * pix for lm, pix in zip(found["lm"], found["pix"])], abs=1e-5)
    assert [report.latent.codes.item() for report in seen] == pytest.approx([1.0, 0.6, 0.2], abs=1e-4)
    assert [report.params.identity.item() for report in seen] == pytest.approx([0.8 - x for x in left], abs=1e-4)
    assert [(report.step, report.total.item()) for report in seen] == list(enumerate(found["total"]))
    for name in ("expression", "rotation", "translation", "light"):  # not optimized
        assert torch.equal(variables.tensors[name], Variables(params, variables.latent).tensors[name])


@pytest.mark.parametrize("one_person", [True, False])
def test_what_one_person_shares_moves_by_the_mean_of_the_slopes(one_person) -> None:
    """A first step of Adam with an epsilon of 1 tells slopes: it is rate x slope / (slope + 1)."""
    stage = Stage("joint", 1, 0.1, ("identity", "expression"), {"lm": 1.0}, epsilon=1.0)
    fit = fitter(landmark_weighting="uniform")
    photo = flat.flat_photo(2)
    photo.landmarks68[0] += torch.tensor([0.8, -0.4])  # to the right, and up
    photo.landmarks68[1] += torch.tensor([0.4, -0.2])
    params = FaceParams.cat([start(), start()])
    variables = Variables(params, Latent(torch.ones(2, 1, 1), "linear"), one_person=one_person)
    run_stage(fit.objective, stage, photo, variables)
    expression = [0.1 * 0.8 / 1.8, 0.1 * 0.4 / 1.4]
    assert variables.current.expression[:, 0].tolist() == pytest.approx(expression, abs=1e-5)
    identity = [0.1 * 1.2 / 2.2] * 2 if one_person else [0.1 * 1.6 / 2.6, 0.1 * 0.8 / 1.8]
    assert variables.current.identity[:, 0].tolist() == pytest.approx(identity, abs=1e-5)
