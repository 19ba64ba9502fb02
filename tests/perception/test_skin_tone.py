"""Skin colors: known angles, and a tint that goes as far as it is asked to."""

from __future__ import annotations

import math

import pytest
import torch

from facerecon.perception.skin_tone import neutral_gain, skin_color, skin_tone


def test_the_median_of_the_chosen_texels():
    texture = torch.rand(2, 3, 8, 8)
    where = torch.zeros(1, 1, 8, 8)
    where[..., :3, :3] = 1
    expected = texture[:, :, :3, :3].flatten(2).median(2).values
    assert torch.equal(skin_color(texture, where), expected)
    assert skin_color(texture, torch.zeros(1, 1, 8, 8)).isnan().all()


def test_a_tint_of_the_light_is_taken_off():
    skin = torch.tensor([[0.75, 0.56, 0.46], [0.35, 0.22, 0.15]])
    usual = skin * neutral_gain(skin, 0.0)[..., 0, 0]
    assert torch.allclose(neutral_gain(usual, 0.0), torch.ones(2, 3, 1, 1), atol=1e-5)  # nothing is left to take off
    tinted = usual * torch.tensor([1.1, 1.0, 0.8])
    tinted = tinted * (usual.log().mean(1) - tinted.log().mean(1)).exp()[:, None]
    assert torch.allclose(tinted * neutral_gain(tinted, 0.0)[..., 0, 0], usual, atol=1e-4)
    half = tinted * neutral_gain(tinted, 0.5)[..., 0, 0]
    assert torch.allclose(half.log(), (tinted.log() + usual.log()) / 2, atol=1e-4)


def test_brightness_and_unknown_colors_stay():
    skin = torch.rand(5, 3).clamp(min=0.05)
    gain = neutral_gain(skin, 0.3)[..., 0, 0]
    assert torch.allclose((skin * gain).log().mean(1), skin.log().mean(1), atol=1e-5)
    assert torch.equal(neutral_gain(skin, 1.0), torch.ones(5, 3, 1, 1))
    assert torch.equal(neutral_gain(torch.full((1, 3), math.nan), 0.0), torch.ones(1, 3, 1, 1))


def test_the_typology_angle_of_known_colors():
    # L* 74.875, b* 19.059 and L* 27.625, b* 16.944 by the CIE formulas
    angle = skin_tone(torch.tensor([[220, 175, 150], [95, 55, 40]]) / 255)
    assert angle.tolist() == pytest.approx([52.541, -52.864], abs=0.05)
