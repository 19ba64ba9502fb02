"""Skin colors: medians and known angles."""

from __future__ import annotations

import pytest
import torch

from facerecon.perception.skin_tone import skin_color, skin_tone


def test_the_median_of_the_chosen_texels():
    texture = torch.rand(2, 3, 8, 8)
    where = torch.zeros(1, 1, 8, 8)
    where[..., :3, :3] = 1
    expected = texture[:, :, :3, :3].flatten(2).median(2).values
    assert torch.equal(skin_color(texture, where), expected)
    assert skin_color(texture, torch.zeros(1, 1, 8, 8)).isnan().all()


def test_the_typology_angle_of_known_colors():
    # L* 74.875, b* 19.059 and L* 27.625, b* 16.944 by the CIE formulas
    angle = skin_tone(torch.tensor([[220, 175, 150], [95, 55, 40]]) / 255)
    assert angle.tolist() == pytest.approx([52.541, -52.864], abs=0.05)
