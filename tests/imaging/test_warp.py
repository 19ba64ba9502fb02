"""Crops against closed forms: what a crop pixel shows, how it averages, and its gradients."""

from __future__ import annotations

import math

import pytest
import torch

from facerecon.errors import ShapeError
from facerecon.imaging import warp


def affine(scale: float, angle: float, x: float, y: float) -> torch.Tensor:
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[[c, -s, x], [s, c, y]]], dtype=torch.float64)


def plane(height: int, width: int) -> torch.Tensor:
    """(1, 2, H, W): channel 0 is x, channel 1 is y of each pixel's center."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])[None].double()


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0, 3.7, 15.0])
def test_a_crop_pixel_shows_the_mapped_point(scale):
    """On a linear image, averaging over a footprint gives the value at its middle, whatever the scale."""
    matrix = affine(scale, 0.4, 200, 120)
    crop = warp.crop_affine(plane(900, 1000), matrix, 20)[0]
    grid = plane(20, 20)[0].reshape(2, -1)
    expected = (matrix[0, :, :2] @ grid + matrix[0, :, 2:]).reshape(2, 20, 20)
    assert torch.allclose(crop, expected, atol=1e-9)


def test_identity_and_whole_pixel_shifts_copy():
    image = torch.rand(1, 3, 30, 40)
    assert torch.allclose(warp.crop_affine(image, affine(1, 0, 0, 0).float(), (30, 40)), image, atol=1e-5)
    shifted = warp.crop_affine(image, affine(1, 0, 7, 3).float(), 16)
    assert torch.allclose(shifted, image[:, :, 3:19, 7:23], atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 6, 12])
def test_whole_reductions_are_the_mean_of_blocks(factor):
    image = torch.rand(1, 1, 48, 48, dtype=torch.float64)
    crop = warp.crop_affine(image, affine(factor, 0, 0, 0), 48 // factor)
    blocks = torch.nn.functional.avg_pool2d(image, factor)
    assert torch.allclose(crop, blocks, atol=1e-9)


def test_fine_stripes_turn_gray_and_do_not_alias():
    stripes = (torch.arange(800) % 2).double().expand(1, 1, 800, 800)
    for scale in (2.0, 3.3, 5.1, 9.7):
        crop = warp.crop_affine(stripes, affine(scale, 0.1, 60, 0), 64)
        assert (crop - 0.5).abs().mean() < 0.06, scale  # 0.5 in the photo, about 0.3 when point-sampled


def test_a_crop_does_not_depend_on_the_batch():
    photos = torch.rand(2, 3, 120, 120)
    maps = torch.cat([affine(0.5, 0.2, 10, 10), affine(3.5, -0.3, 5, 40)]).float()
    together = warp.crop_affine(photos, maps, 24)
    for b in range(2):
        assert torch.allclose(warp.crop_affine(photos[b : b + 1], maps[b : b + 1], 24)[0], together[b], atol=1e-4)
    one = warp.crop_affine(photos[:1], maps, 24)
    assert torch.allclose(one[0], together[0], atol=1e-4)


def test_valid_marks_the_photo():
    valid = warp.crop_valid((10, 20), affine(1, 0, -5, -3), 30)
    expected = torch.zeros(1, 1, 30, 30)
    expected[:, :, 3:13, 5:25] = 1
    assert torch.equal(valid, expected)


def test_gradients_of_image_and_map():
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    image = (torch.sin(x / 3) + torch.cos(y / 4)).double()[None, None].requires_grad_()
    for scale in (0.31, 2.2):
        matrix = affine(scale, 0.37, 5.13, 4.71).requires_grad_()
        assert torch.autograd.gradcheck(lambda i, m: warp.crop_affine(i, m, 2), (image, matrix), eps=1e-7)


def test_scale_and_wrong_shapes():
    assert warp.affine_scale(affine(2.5, 1.0, 3, 4)).item() == pytest.approx(2.5)
    with pytest.raises(ShapeError, match="1 or 3"):
        warp.crop_affine(torch.zeros(2, 3, 8, 8), torch.zeros(3, 2, 3), 4)
    with pytest.raises(ShapeError, match="image"):
        warp.crop_affine(torch.zeros(3, 8, 8), torch.zeros(1, 2, 3), 4)
