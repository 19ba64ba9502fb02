"""Pyramids come back exactly, and blends have no seam."""

from __future__ import annotations

import pytest
import torch

from facerecon.errors import ConfigError
from facerecon.imaging import pyramid


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (5, 1), (3, 129)])
def test_collapse_is_exact(size):
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    bands = pyramid.laplacian_pyramid(image, 5)
    assert len(bands) == 5
    assert torch.allclose(pyramid.collapse(bands), image, atol=1e-12)


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_constants_and_ramps(size):
    """The filters keep a constant everywhere, and a ramp away from the border."""
    flat = torch.full((1, 1, *size), 0.7, dtype=torch.float64)
    half = pyramid.downsample(flat)
    assert torch.allclose(half, torch.full_like(half, 0.7))
    assert torch.allclose(pyramid.upsample(half, size), flat)
    ramp = torch.arange(size[1], dtype=torch.float64).expand(1, 1, *size)
    there_and_back = pyramid.upsample(pyramid.downsample(ramp), size)
    assert torch.allclose(there_and_back[..., 6:-6], ramp[..., 6:-6])


def test_downsample_by_its_definition():
    image = torch.rand(1, 1, 9, 9, dtype=torch.float64)
    kernel = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 16
    expected = (image[0, 0, 2:7, 2:7] * kernel[:, None] * kernel).sum()
    assert torch.isclose(pyramid.downsample(image)[0, 0, 2, 2], expected)


def test_blend_ends_and_limits():
    first, second = torch.rand(1, 3, 90, 70), torch.rand(1, 3, 90, 70)
    ones = torch.ones(1, 1, 90, 70)
    assert torch.allclose(pyramid.laplacian_blend(first, second, ones), first, atol=1e-6)
    assert torch.equal(pyramid.laplacian_blend(first, second, 0 * ones), second)
    mask = torch.rand(1, 1, 90, 70)
    assert torch.allclose(pyramid.laplacian_blend(first, second, mask, levels=1), second + mask * (first - second))


def test_a_step_in_color_gets_a_wide_seam_and_detail_a_narrow_one():
    size = 256
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    dark, light = torch.full_like(mask, 0.3), torch.full_like(mask, 0.7)
    color = pyramid.laplacian_blend(dark, light, mask, levels=5)[0, 0, 100]
    assert color.diff().abs().max() < 0.03 < 0.4  # a hard seam would step by 0.4
    assert abs(color[0] - 0.3) < 1e-3 and abs(color[-1] - 0.7) < 1e-3
    checker = (torch.arange(size) % 2 * 2 - 1.0) * 0.2
    detail = pyramid.laplacian_blend(checker.expand_as(mask) + 0.5, 0 * mask + 0.5, mask, levels=5)[0, 0, 100]
    assert (detail[:124] - 0.5).abs().min() > 0.19 and (detail[134:] - 0.5).abs().max() < 0.02


def test_no_levels():
    with pytest.raises(ConfigError, match="at least 1"):
        pyramid.gaussian_pyramid(torch.zeros(1, 1, 4, 4), 0)


def test_push_pull_continues_what_is_known() -> None:
    weight = torch.zeros(1, 1, 64, 64)
    weight[..., 16:48, 16:48] = 1
    flat = torch.full((1, 2, 64, 64), 0.3)
    torch.testing.assert_close(pyramid.push_pull(flat * weight, weight), flat, atol=1e-5, rtol=0)
    ramp = (torch.arange(64) / 64.0).expand(1, 1, 64, 64)
    filled = pyramid.push_pull(ramp * weight, weight)
    assert (filled - ramp)[..., 20:44, 20:44].abs().max() < 0.02
    assert filled.min() >= ramp[..., 16].min() - 1e-5  # means of what is known: no overshoot
    assert filled.max() <= ramp[..., 47].max() + 1e-5
    assert filled[..., 32, 54] - filled[..., 32, 9] > 0.03  # each side continues its own
    assert pyramid.push_pull(ramp, torch.zeros_like(weight)).abs().max() == 0


def test_multiband_of_two_is_the_blend_of_two_and_the_order_does_not_matter() -> None:
    images = [torch.rand(1, 3, 48, 64, dtype=torch.float64) for _ in range(3)]
    mask = torch.rand(1, 1, 48, 64, dtype=torch.float64)
    two = pyramid.multiband_blend(images[:2], [mask, 1 - mask], 4)
    assert torch.allclose(two, pyramid.laplacian_blend(*images[:2], mask, 4), atol=1e-12)
    shares = torch.rand(3, 1, 1, 48, 64, dtype=torch.float64).softmax(0)
    three = pyramid.multiband_blend(images, list(shares), 4)
    turned = [2, 0, 1]
    other = pyramid.multiband_blend([images[i] for i in turned], [shares[i] for i in turned], 4)
    assert torch.allclose(three, other, atol=1e-12)
    # even shares of everything: the plain mean
    mean = pyramid.multiband_blend(images, [torch.full_like(mask, 1 / 3)] * 3, 4)
    assert torch.allclose(mean, sum(images) / 3, atol=1e-12)
    with pytest.raises(ConfigError, match="2 share"):
        pyramid.multiband_blend(images, [mask, mask])
