"""The metrics of a fitted head, computed by hand on a square of 4 x 4 px."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from facerecon.evaluation import reconstruction
from facerecon.evaluation.reconstruction import (
    fit_metrics,
    identity_vectors,
    lpips_metrics,
    reconstruction_metrics,
    stage_metrics,
)
from facerecon.fitting import FitResult
from facerecon.render import Renderer
from facerecon.types import FaceParams, Observation, SHLight

_spec = importlib.util.spec_from_file_location("flat_head", Path(__file__).parents[1] / "flat_head.py")
flat = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(flat)

COLOR = torch.tensor([0.9, 0.4, 0.2]).view(1, 3, 1, 1)


class EvalIdentity:
    """Embeds a picture as its mean color, and keeps what it was shown."""

    def __call__(self, image: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        self.image, self.landmarks = image, landmarks
        return image.mean((2, 3))


class Apart:
    """A distance of one face at a time: the mean absolute difference."""

    def __init__(self, name: str) -> None:
        self.name, self.prepared = name, 0

    def prepare(self, target: torch.Tensor) -> torch.Tensor:
        self.prepared += 1
        return target

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert len(image) == len(target) == 1
        return (image - target).abs().mean((1, 2, 3))


def heads(*gains: float, right: tuple[float, ...] = (0.0,)) -> FaceParams:
    """Heads under light of these gains, moved to the right by so many pixels."""
    params = flat.flat_head().neutral(len(gains))
    return params.replace(identity=torch.tensor(right).view(-1, 1).expand(len(gains), 1), light=flat.even_light(*gains))


def two_photos() -> Observation:
    """The same photo twice; one pixel of it has the texture's color. Landmarks are 1 px off, the eyes' otherwise."""
    photo = flat.flat_photo(2)
    photo.image[:, :, 2, 2] = COLOR.flatten()
    points = photo.landmarks68 + torch.tensor([0.6, 0.8])
    points[:, 36], points[:, 45] = torch.tensor([0.0, 6.0]), torch.tensor([6.0, 6.0])  # 6 px apart; the head's are 4
    return photo.replace(landmarks68=points)


def measured(params: FaceParams, texture: torch.Tensor, eval_identity: EvalIdentity | None = None):
    return reconstruction_metrics(two_photos(), params, texture, flat.flat_head(), Renderer(8), eval_identity)


def test_photometric_error_is_that_of_the_visible_face() -> None:
    """The first head shows 12 px within the face mask, one of them without error; the second, a pixel further to the
    right, 8. It is lit twice as bright, and a picture ends at 1."""
    metrics, image = measured(heads(1.0, 2.0, right=(0.0, 1.0)), COLOR.expand(2, 3, 4, 4))
    first, second = (0.4 + 0.1 + 0.3) / 3, (0.5 + 0.3 + 0.1) / 3
    assert metrics["photometric"].tolist() == pytest.approx([first * 11 / 12, second], abs=1e-5)
    assert set(metrics) == {"photometric", "nme"}
    expected = two_photos().image.clone()
    expected[0, :, 2:6, 2:5] = COLOR[0, :, :, 0, None]
    expected[1, :, 2:6, 3:5] = torch.tensor([1.0, 0.8, 0.4])[:, None, None]
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_landmarks_are_measured_by_the_photo_s_eyes() -> None:
    metrics, _ = measured(heads(1.0, 1.0, right=(0.0, 1.0)), COLOR.expand(2, 3, 4, 4))
    first = (66 * 1 + 2 + 0) / 68  # px; 36 is 2 px off, 45 right
    second = (66 * math.hypot(0.4, 0.8) + 3 + 1) / 68
    assert metrics["nme"].tolist() == pytest.approx([first / 6, second / 6], abs=1e-5)


def test_csim_compares_the_composite_with_the_photo() -> None:
    """Its embedding of the photo was measured before: (1, 0, 0) and (0, 1, 0)."""
    eval_identity = EvalIdentity()
    metrics, image = measured(heads(1.0, 1.0), COLOR.expand(2, 3, 4, 4), eval_identity)
    # 12 px of the head, one of which has that color anyway; 4 px of the square are beyond the face mask; 48 px around
    red, green, blue = (12 * c + 4 * 0.5 + 48 for c in (0.9, 0.4, 0.2))
    size = math.hypot(red, green, blue)
    assert metrics["identity"].tolist() == pytest.approx([red / size, green / size], abs=1e-6)
    assert torch.equal(eval_identity.image, image) and torch.equal(eval_identity.landmarks, two_photos().landmarks68)


def test_a_large_map_is_averaged_before_it_is_drawn() -> None:
    """One column of four is white: 0.25 all over at 512 texels; each of 2,048 columns is 1 or 0."""
    texture = (torch.arange(2048) % 4 == 0).float().expand(2, 3, 4, 2048)
    _, image = measured(heads(1.0, 1.0), texture)
    torch.testing.assert_close(image[:, :, 2:6, 2:5], torch.full((2, 3, 4, 3), 0.25), atol=1e-5, rtol=0)


@pytest.mark.parametrize("detailed", [True, False])
def test_each_stage_has_its_own_head_and_texture(detailed) -> None:
    """Gray textures on the gray photo (0.5); codes are the decoder's gray, which ends at 1 before it is lit."""
    fitter = SimpleNamespace(
        model=flat.flat_head(),
        renderer=Renderer(8),
        decoder=lambda latent: latent.view(1, 1, 1, 1).expand(1, 3, 4, 4),
    )
    stages = {
        "start": (heads(1.0), torch.tensor([0.3])),
        "texture": (heads(0.5), torch.tensor([1.8])),
        "joint": (heads(1.0, right=(1.0,)), torch.tensor([0.1])),
    }
    face = SimpleNamespace(
        params=heads(1.0, right=(-1.0,)), texture=torch.full((1, 3, 4, 4), 0.5), decoded=torch.zeros(1, 3, 4, 4),
        topology=None,
        texture_in_photo=lambda: torch.full((1, 3, 4, 4), 0.55),
    )  # fmt: skip
    photo = flat.flat_photo()
    eval_identity = EvalIdentity()
    result = FitResult(face, stages, photo, seconds={"detail" if detailed else "texture map": 1.0})
    metrics, images = stage_metrics(fitter, photo, result, eval_identity)
    found = {
        "start": {"photometric": 0.2, "nme": 0.0},
        "texture": {"photometric": 0.0, "nme": 0.0},
        "joint": {"photometric": 0.4, "nme": 0.25},
        "detail": {"photometric": (0.05 * 12 + 0.45 * 4) / 16, "nme": 0.25},  # its column 1 lies before the white
    }
    if not detailed:
        del found["detail"]
    assert list(metrics) == list(images) == list(found)
    for name, values in found.items():
        identity = metrics[name].pop("identity")
        assert identity == pytest.approx(1 / math.sqrt(3), abs=1e-5), name  # gray against (1, 0, 0)
        assert metrics[name] == pytest.approx(values, abs=1e-5), name
        assert type(identity) is float and images[name].shape == (1, 3, 8, 8)
    assert images["start"][0, 0, 2, 2] == pytest.approx(0.3, abs=1e-5)
    assert images["joint"][0, 0, 2, 2] == pytest.approx(0.5) and images["joint"][0, 0, 2, 4] == pytest.approx(0.1)
    assert set(stage_metrics(fitter, photo, result)[0]["start"]) == {"photometric", "nme"}


def test_a_fit_is_measured_after_its_last_stage_and_with_the_photo_s_own_texels(monkeypatch) -> None:
    """Gray maps tell what was measured: the decoder's is 0.25, the final one 0.75."""
    values = {"start": 0.1, "texture": 0.2, "joint": 0.3, "detail": 0.4}
    stages = {name: {"photometric": value, "nme": value + 2} for name, value in values.items()}
    face = SimpleNamespace(decoded=torch.full((1, 3, 4, 4), 0.25), texture=torch.full((1, 3, 4, 4), 0.75))
    images = {name: torch.full((1, 3, 4, 4), value) for name, value in values.items()}
    monkeypatch.setattr(reconstruction, "stage_metrics", lambda *given: (stages, images))
    monkeypatch.setattr(reconstruction, "brightness_symmetry_error", lambda map_: map_[0, 0, 0, 0])
    photo = SimpleNamespace(image=torch.zeros(1, 3, 4, 4))
    measured = fit_metrics(None, photo, SimpleNamespace(face=face), None, [Apart("lpips_a")])
    assert (measured.pop("lpips_a"), measured.pop("lpips_a_final")) == pytest.approx((0.3, 0.4))
    for name in ("joint", "detail"):
        del stages[name]["lpips_a"]
    assert fit_metrics(None, photo, SimpleNamespace(face=face)) == {
        "photometric": 0.3, "nme": 2.3, "photometric_final": 0.4, "nme_final": 2.4, "bs": 0.25, "bs_final": 0.75,
    }  # fmt: skip
    del stages["detail"]  # where there is no such step, the last is the final one
    found = fit_metrics(None, photo, SimpleNamespace(face=face))
    assert found["photometric"] == found["photometric_final"] == 0.3


def test_lpips_is_measured_face_by_face() -> None:
    """Of each composite and its own photo; the photo's features are computed once for all stages."""
    photo = torch.tensor([0.5, 0.25]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    images = {"joint": photo + torch.tensor([0.125, 0.25]).view(2, 1, 1, 1), "detail": photo}
    first, second = Apart("lpips_a"), Apart("lpips_b")
    expected = {"joint": [0.125, 0.25], "detail": [0.0, 0.0]}
    found = lpips_metrics(images, photo, [first, second])
    assert found == {stage: {"lpips_a": values, "lpips_b": values} for stage, values in expected.items()}
    assert first.prepared == second.prepared == 2
    assert lpips_metrics(images, photo, []) == {"joint": {}, "detail": {}}


def test_identities_are_of_the_photo_and_of_the_neutral_head(monkeypatch) -> None:
    params = FaceParams(*torch.ones(5, 1, 3), SHLight(torch.ones(1, 9, 3)))
    face = SimpleNamespace(params=params, decoded=torch.full((1, 3, 4, 4), 0.25))
    photo = SimpleNamespace(image=torch.full((1, 3, 4, 4), 0.5), landmarks68=torch.zeros(1, 68, 2))

    def evenly_lit(model, still, map_):
        assert model == "head" and still.identity.eq(1).all() and still.light.coefficients.eq(1).all()
        assert not any(getattr(still, name).any() for name in ("expression", "rotation", "translation"))
        return map_, photo.landmarks68

    class Identity(torch.nn.Module):
        def forward(self, image, landmarks):
            return image[:, :2, 0, 0]

    monkeypatch.setattr(reconstruction, "evenly_lit", evenly_lit)
    monkeypatch.setattr(reconstruction, "load_identity", Identity)
    found = identity_vectors("head", photo, face)
    assert {name: vector.tolist() for name, vector in found.items()} == {"photo": [0.5, 0.5], "render": [0.25, 0.25]}
