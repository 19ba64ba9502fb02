"""Photo to code: FFHQ's alignment in closed form, the encoder against least squares, faces whose code is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from facerecon.editing import inversion
from facerecon.editing.inversion import InversionSettings, LinearEncoder
from facerecon.errors import AssetError, InputError, ShapeError
from facerecon.stylegan.face_generator import MobileGenerator, load_generator

SHORT = InversionSettings(w_steps=5, plus_steps=2, refresh=3, patience=9)


def simple_face() -> torch.Tensor:
    """68 points with the eyes at (40, 50) and (60, 50) and the mouth's corners at (44, 70) and (56, 70)."""
    points = torch.full((1, 68, 2), 50.0)
    points[:, 36:42] = torch.tensor([40.0, 50.0])
    points[:, 42:48] = torch.tensor([60.0, 50.0])
    points[:, 48], points[:, 54] = torch.tensor([44.0, 70.0]), torch.tensor([56.0, 70.0])
    return points


def test_ffhq_alignment_of_an_upright_face():
    """Side 4 x 20, centered a tenth of the way down from the eyes: by hand."""
    transform = inversion.ffhq_transform(simple_face(), 160)
    assert torch.allclose(transform, torch.tensor([[[0.5, 0.0, 10.0], [0.0, 0.5, 12.0]]]))


def test_ffhq_alignment_turns_with_the_face():
    angle, scale, shift = 0.4, 3.0, torch.tensor([30.0, -7.0])
    turn = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = inversion.ffhq_transform(simple_face() @ turn.T + shift)
    still = inversion.ffhq_transform(simple_face())
    assert torch.allclose(moved[:, :, :2], turn @ still[:, :, :2], atol=1e-5)
    assert torch.allclose(moved[0, :, 2], turn @ still[0, :, 2] + shift, atol=1e-4)


def test_ffhq_crop_shows_the_square_and_mirrors_beyond():
    rows = torch.linspace(0, 1, 100)[None, None, :, None].expand(1, 3, 100, 100)
    crop = inversion.ffhq_crop(rows, simple_face(), 80)  # one crop pixel is one photo pixel, from (10, 12)
    assert torch.allclose(crop[0, 0, :, 40], rows[0, 0, 12:92, 0], atol=1e-5)
    low = inversion.ffhq_crop(rows, simple_face() + torch.tensor([0.0, 20.0]), 80)  # to row 112: twelve rows beyond
    assert torch.allclose(low[0, 0, 68:, 40], low[0, 0, 56:68, 40].flip(0), atol=1e-5)


def test_an_aligned_picture_stays_where_it_is(reference, asset):
    """FFHQ's own alignment of the reference photo, from our landmarks: within 4 % and 20 px of 1024."""
    asset("landmarks68"), asset("facemesh478")
    photo = picture(reference / "ffhq_uv" / "01223_photo.jpg")
    transform = inversion.ffhq_transform(inversion.face_points(photo))[0]
    assert (transform[:, :2] - torch.eye(2)).abs().max() < 0.04  # two deviations of our landmarks
    assert (transform @ torch.tensor([512.0, 512.0, 1.0]) - 512).abs().max() < 20


def picture(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255


def test_encoder_is_least_squares(tmp_path):
    """Without ridge and of full rank it finds a linear map; of lower rank it is as good as its best factor."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 20, generator=generator) * torch.logspace(-3, 1, 20) + 5
    true = torch.randn(20, 512, generator=generator) / torch.logspace(-3, 1, 20)[:, None]
    w = (features - 5) @ true + 1
    encoder = LinearEncoder.fit(features, w, ridge=0, rank=20)
    assert torch.allclose(encoder.decode(features), w, atol=1e-2)
    poorer = LinearEncoder.fit(features, w, ridge=0, rank=7)
    values = torch.linalg.svdvals((w - w.mean(0)).double())
    left = (poorer.decode(features) - w).square().sum().double()
    assert torch.isclose(left, values[7:].square().sum(), rtol=0.01)
    poorer.save(tmp_path / "e.safetensors")
    again = LinearEncoder.load(tmp_path / "e.safetensors")
    assert (again.decode(features) - poorer.decode(features)).abs().max() < 0.02 * w.std()
    assert again.decode(features + 1e9).abs().max() < 200 * w.std()  # clipped, however odd the picture


@pytest.fixture(scope="module")
def generator() -> MobileGenerator:
    try:
        return load_generator(dtype=torch.bfloat16)
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def face(generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A face that the encoder was not fitted to: w and picture."""
    w = generator.sample(777_001, 0.7)
    return w[0], generator(w)


@pytest.mark.usefixtures("one_thread")
def test_a_known_code_is_approached_and_a_killed_run_goes_on(generator, face, tmp_path, asset):
    for name in ("landmarks68", "facemesh478", "identity128", "faceres1024"):
        asset(name)
    w, image = face
    start = LinearEncoder.load()(image)
    assert (start - w).norm() < 0.85 * (generator.mean_w - w).norm()
    seen = []
    with torch.no_grad():  # as a pipeline calls it
        result = inversion.invert(image, generator, SHORT, progress=lambda *step: seen.append(step))
    assert result.code.shape == (23, 512) and result.image.shape == (3, 1024, 1024)
    assert (result.w - w).norm() < 0.95 * (start - w).norm()
    assert result.trace[-1]["loss"] < 0.6 * result.trace[0]["loss"]
    assert seen[0] == ("w", 0, 5) and seen[-1] == ("w+", 1, 2)
    assert (result.image - generator(result.code[None])[0]).abs().mean() < 1e-3

    def stop(phase: str, step: int, steps: int) -> None:
        if (phase, step) == ("w+", 1):
            raise KeyboardInterrupt

    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        inversion.invert(image, generator, SHORT, progress=stop, state=state)
    resumed: list = []
    again = inversion.invert(image, generator, SHORT, progress=lambda *step: resumed.append(step), state=state)
    assert resumed[0] == ("w+", 0, 2)
    assert torch.equal(again.code, result.code) and again.quality == result.quality and again.trace == result.trace
    finished: list = []
    inversion.invert(image, generator, SHORT, progress=lambda *step: finished.append(step), state=state)
    assert finished == []
    state.write_bytes(b"spoilt")
    none = replace(SHORT, w_steps=0, plus_steps=0)
    with torch.no_grad():
        mean = inversion.invert(image[0], generator, none, encoder=lambda crop: generator.mean_w, state=state)
    assert torch.allclose(mean.code, generator.mean_w.expand(23, -1), atol=1e-5)


def test_quality_tells_the_face_from_another(generator, face, asset):
    """The encoder's slot: w or 23 rows, and no step after it."""
    for name in ("landmarks68", "facemesh478", "identity128", "faceres1024"):
        asset(name)
    w, image = face
    settings = InversionSettings(w_steps=0, plus_steps=0)
    rows = w.expand(23, -1) + 0.01 * torch.randn(23, 512, generator=torch.Generator().manual_seed(0))
    right = inversion.invert(image, generator, settings, encoder=lambda crop: rows)
    assert right.quality["csim"] > 0.98 and right.quality["identity"] < 0.1 and right.quality["error"] < 0.02
    assert torch.allclose(right.code, rows, atol=1e-4) and torch.allclose(right.w, rows.mean(0), atol=1e-4)
    other = inversion.invert(image, generator, settings, encoder=lambda crop: generator.sample(777_002)[0])
    assert other.quality["csim"] < 0.6 and other.quality["identity"] > 0.5 and other.quality["error"] > 0.05


def test_face_mask_is_the_face(generator, face, asset):
    asset("landmarks68"), asset("facemesh478")
    points = inversion.face_points(face[1]) / 4
    mask = inversion._face_mask(points)
    at = points[0].round().long()
    assert mask[0, 0, at[30, 1], at[30, 0]] > 0.99 and mask[0, 0, at[27, 1] - 15, at[27, 0]] > 0.99  # nose, forehead
    assert mask[0, 0, :20].max() < 0.01 and mask[0, 0, 250:].max() < 0.5 and mask[0, 0, :, :20].max() < 0.01
    assert F.interpolate(mask, (8, 8), mode="area").mean() < 0.35


def test_wrong_input_says_so(generator):
    with pytest.raises(ShapeError, match="crop must be"):
        inversion.invert(torch.zeros(1, 3, 512, 512), generator)
    with pytest.raises(ShapeError, match="an encoder must give"):
        points = torch.rand(1, 68, 2) * 500 + 300
        inversion.invert(
            torch.zeros(1, 3, 1024, 1024), generator, encoder=lambda crop: crop.new_zeros(18, 512), landmarks68=points
        )
    with pytest.raises(InputError, match="at least"):
        InversionSettings(refresh=0)
