"""Measures of albedo on cases whose result is known beforehand."""

import math

import pytest
import torch

from facerecon.errors import InputError, ShapeError
from facerecon.evaluation import (
    fine_detail,
    ita_errors,
    person_spread,
    rank_correlation,
    seam_contrast,
    texture_errors,
)

SIZE = 200


def test_errors_by_group_bias_and_sign() -> None:
    truth = [-40, -20, 0, 20, 35, 45, 60]
    found = ita_errors([-30, -24, 4, 20, 37, 45, 50], truth)
    assert found.groups == {"dark": 10, "brown": 4, "tan": 0, "intermediate": 2, "light": 0, "very light": 10}
    assert found.mean == pytest.approx(30 / 7)
    assert found.offset == pytest.approx((10 - 4 + 4 + 2 - 10) / 7)
    deviations = [value - 26 / 6 for value in (10, 4, 0, 2, 0, 10)]
    assert found.bias == pytest.approx(math.sqrt(sum(d * d for d in deviations) / 6))
    assert found.worst == 10


def test_groups_that_fare_alike_have_no_bias() -> None:
    assert ita_errors([-34, 14], [-40, 20]).bias == 0
    assert math.isnan(ita_errors([30.0], [31.0]).bias)


def test_unusable_tones_are_refused() -> None:
    for fitted, truth in (([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])):
        with pytest.raises(InputError, match="numbers"):
            ita_errors(fitted, truth)


def test_spread_is_the_mean_deviation_within_persons() -> None:
    values, persons = [10, 14, 50, 50, 50, -20], ["a", "a", "b", "b", "b", "alone"]
    assert person_spread(values, persons) == pytest.approx(math.sqrt(8) / 2)
    with pytest.raises(InputError, match="two pictures"):
        person_spread([1, 2], ["a", "b"])
    with pytest.raises(InputError, match="a person a picture"):
        person_spread([1, 2], ["a"])


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 8, 27, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, -9]) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, 1, -1, 0)
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(1 - 6 * 2 / 60)
    assert rank_correlation([1, 1, 2], [5, 5, 9]) == pytest.approx(1)


def test_texture_error_after_scale_forgives_light() -> None:
    truth = torch.rand(2, 3, 16, 16) * 0.5 + 0.2
    factor = torch.tensor([1.2, 1.0, 0.8]).view(3, 1, 1)
    where = torch.zeros(1, 1, 16, 16)
    where[..., :8] = 1
    texture = torch.where(where > 0, truth * factor, torch.zeros(()))
    found = texture_errors(texture, truth, where)
    expected = (truth * (factor - 1)).abs()[..., :8].mean((1, 2, 3))
    torch.testing.assert_close(found["texture"], expected)
    assert found["texture_scaled"].max() < 1e-6
    other = texture_errors(1 - truth, truth, where)  # what is no factor stays
    assert other["texture_scaled"].min() > 0.05
    with pytest.raises(ShapeError):
        texture_errors(texture, truth[..., :8, :8], where)


def _patterned(size: int = SIZE) -> torch.Tensor:
    """Skin with pores: (1, 3, S, S)."""
    noise = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(1)) - 0.5
    return (0.5 + 0.1 * noise).expand(1, 3, -1, -1).clone()


def _round(size: int = SIZE, radius: float = 0.3) -> torch.Tensor:
    axis = (torch.arange(size) + 0.5) / size - 0.5
    return ((axis[:, None].square() + axis.square()).sqrt() < radius).float()[None, None]


def test_a_line_along_the_border_shows_and_one_elsewhere_does_not() -> None:
    plain, visible, skin = _patterned(), _round(), torch.ones(1, 1, SIZE, SIZE)
    assert seam_contrast(plain, visible, skin).ratio.item() == pytest.approx(1, abs=0.25)
    step = seam_contrast(plain * (1 - 0.2 * visible), visible, skin)
    assert step.ratio > 2
    weaker = seam_contrast(plain * (1 - 0.1 * visible), visible, skin)
    assert 1.2 < weaker.ratio < step.ratio
    elsewhere = seam_contrast(plain * (1 - 0.2 * _round(radius=0.34)), visible, skin)
    assert elsewhere.ratio < 1


def test_a_seam_is_of_its_size_at_any_resolution_and_exposure() -> None:
    """A step without pores: the derivative of its blur, per hundredth of the map."""
    heights = []
    for size in (200, 400):
        visible = _round(size)
        texture = (0.5 - 0.1 * visible).expand(1, 3, -1, -1)
        for factor in (1.0, 0.6):
            heights.append(seam_contrast(texture * factor, visible, torch.ones(1, 1, size, size), 1.0).border.item())
    expected = math.log(0.5 / 0.4) / (0.25 * math.sqrt(2 * math.pi))  # of a Gaussian of 1/400 of the map
    assert heights[0] == pytest.approx(heights[1], rel=1e-3)
    assert heights[2] == pytest.approx(heights[3], rel=1e-3)
    for height in heights:
        assert 0.5 * expected < height < 1.05 * expected  # differences of texels are a little less steep


def test_only_skin_counts_for_seams() -> None:
    visible = _round()
    texture = _patterned() * (1 - 0.3 * visible)
    skin = torch.ones(1, 1, SIZE, SIZE)
    skin[..., SIZE // 2 :] = 0
    black = torch.where(skin > 0, _patterned(), torch.zeros(()))
    assert seam_contrast(black, visible, skin).ratio < 1.3  # not the edge of the skin itself
    half = seam_contrast(texture, visible, skin)
    assert half.ratio == pytest.approx(seam_contrast(texture, visible, torch.ones_like(skin)).ratio, rel=0.15)
    assert seam_contrast(texture, torch.ones_like(skin), skin).ratio.isnan()


def test_fine_detail_counts_pores_not_tone() -> None:
    texture, where = _patterned(), _round()
    full = fine_detail(texture, where)
    torch.testing.assert_close(fine_detail(texture * 0.5, where), full, rtol=1e-4, atol=0)
    half = fine_detail((0.5 + (texture - 0.5) / math.sqrt(2)), where)
    assert half.item() == pytest.approx(full.item() / 2, rel=0.02)
    ramp = torch.linspace(0.3, 0.6, SIZE).expand(1, 3, SIZE, SIZE)
    assert fine_detail(ramp, where) < 1e-3 * full
    outside = torch.where(where > 0, texture, torch.rand(1, 3, SIZE, SIZE))
    assert fine_detail(outside, where).item() == pytest.approx(full.item(), rel=1e-5)


def test_what_changes_along_the_border_is_no_seam() -> None:
    visible = torch.zeros(1, 1, SIZE, SIZE)
    visible[..., : SIZE // 2] = 1
    rows = 0.5 + 0.1 * torch.sin(torch.arange(SIZE) / 3)
    stripes = rows[:, None].expand(1, 3, SIZE, SIZE)
    skin = torch.ones_like(visible)
    assert seam_contrast(stripes, visible, skin).border < 1e-4
    assert seam_contrast(stripes.mT, visible, skin).border > 0.05
