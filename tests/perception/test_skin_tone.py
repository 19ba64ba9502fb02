"""Skin colors: medians and known angles."""

from __future__ import annotations

import pytest
import torch

from facerecon.perception.skin_tone import mean_log_color, skin_color, skin_tone, tone_group


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


def test_mean_log_color_and_groups():
    texture = torch.full((1, 3, 4, 4), 0.25)
    texture[..., :2, :] = 0.5
    where = torch.zeros(1, 1, 4, 4)
    where[..., 1:3, :] = 1  # half of each
    expected = torch.tensor([[0.5, 0.25]]).log().mean().expand(1, 3)
    assert torch.allclose(mean_log_color(texture, where), expected)
    assert [tone_group(ita) for ita in (-31, -30, 27.9, 28, 41, 55.1)] == [
        "dark", "brown", "tan", "intermediate", "light", "very light"
    ]  # fmt: skip
