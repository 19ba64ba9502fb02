"""The belief over a person's tone: what exposures change of it, whom it finds lighter, and what the file holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from facerecon import assets
from facerecon.errors import AssetError
from facerecon.perception import observe
from facerecon.perception.skin_tone import skin_tone
from facerecon.perception.tone import COLORS, ToneNet, load_tone_net, tone_features
from facerecon.storage import read_safetensors
from facerecon.synthetic.exposure import exposed

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"


@pytest.fixture(scope="module")
def photo(observe_models):
    return observe(SAMPLE)


def _again(photo, exposure, balance=(1.0, 1.0, 1.0), gamma=1.0):
    """Features and skin color of the crops as another camera would have taken them."""
    full, fit = (
        crop.replace(image=exposed(crop.image, exposure, torch.tensor(balance), gamma))
        for crop in (photo.full, photo.fit)
    )
    return tone_features(full, fit, photo.landmarks68)


def test_contrasts_do_not_follow_the_exposure_and_the_color_does(photo):
    (usual, color), (dim, darker) = _again(photo, 1.0), _again(photo, 0.7, (1.2, 1.0, 0.9))
    shift = torch.tensor([0.84, 0.7, 0.63]).log() / 2.2
    torch.testing.assert_close(darker - color, shift[None], atol=0.01, rtol=0)
    contrasts = (usual - dim)[:, : COLORS - 5]  # before the color itself and what is clipped
    assert contrasts.nan_to_num(0).abs().median() < 0.01
    cosine = torch.nn.functional.cosine_similarity(usual[:, COLORS:], dim[:, COLORS:])
    assert cosine.item() > 0.97


def test_the_tone_hardly_follows_the_exposure(photo):
    tones = [skin_tone(load_tone_net()(_again(photo, e)[0]).mean.exp()).item() for e in (0.6, 1.0, 1.5)]
    seen = [skin_tone(_again(photo, e)[1].exp()).item() for e in (0.6, 1.0, 1.5)]
    assert max(tones) - min(tones) < 0.4 * (max(seen) - min(seen))


def test_observe_holds_the_belief_and_it_survives_a_file(photo, tmp_path):
    assert photo.tone.mean.shape == (1, 3) and photo.tone.covariance.shape == (1, 3, 3)
    assert torch.linalg.eigvalsh(photo.tone.covariance[0]).min() > 0
    loaded = type(photo).load(photo.save(tmp_path / "photo.safetensors"))
    assert torch.equal(loaded.tone.mean, photo.tone.mean)


def test_a_picture_without_skin_has_a_belief_all_the_same(photo):
    nothing = photo.full.replace(
        skin_mask=torch.zeros_like(photo.full.skin_mask), classes=torch.zeros_like(photo.full.classes)
    )
    features, _ = tone_features(nothing, photo.fit, photo.landmarks68)
    assert load_tone_net()(features).mean.isfinite().all()


def test_the_regression_by_hand():
    net = ToneNet(2, 1)
    net.center, net.scale = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    net.weight, net.bias = torch.tensor([[1.0], [10.0], [100.0]]).expand(3, 3), torch.tensor([-899.5, -900.0, -900.5])
    mean = net(torch.tensor([[3.0, 0.2], [1.0, float("nan")], [99.0, 0.0]])).mean
    # x = (1, 0.2): 1 + 2 + 100 (1 - 1); x = (0, unknown): 100 (0 - 1); x = (3 at most, 0): 3 + 100 (9 - 1)
    torch.testing.assert_close(mean, torch.tensor([[3.0], [-100.0], [803.0]]) + net.bias)
    net.bias = torch.tensor([0.5, 0.0, -0.5])  # no skin is that light: its red stays below the most that skin reflects
    lightest = net(torch.tensor([[3.0, 0.2]])).mean[0]
    torch.testing.assert_close(lightest, math.log(0.82) + torch.tensor([0.0, -0.5, -1.0]))


def test_the_shipped_file_says_how_it_fares():
    tensors, meta = read_safetensors(assets.shipped("tone.safetensors"), "a regression of skin tones", "restore it")
    figures = json.loads(meta["figures"])
    assert figures["mean"] < 11 and figures["spread"] < 5.5 and figures["rank"] > 0.93
    deviation = tensors["covariance"].diagonal().sqrt()
    assert deviation.min() > 0.05 and deviation.max() < 0.2


def test_a_damaged_file_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "tone.safetensors"
    path.write_bytes(b"no tensors")
    monkeypatch.setattr("facerecon.perception.tone.assets.shipped", lambda name: path)
    load_tone_net.cache_clear()
    with pytest.raises(AssetError, match="tone"):
        load_tone_net()
    load_tone_net.cache_clear()
