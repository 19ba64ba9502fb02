"""Blur, growing and shrinking against slow or foreign twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import morphology

from facerecon.errors import ConfigError, ShapeError
from facerecon.imaging import masks


def test_opencv_default_sigma():
    """OpenCV's documented formula at the sizes the release uses (21, 31, 51, 55)."""
    assert [round(masks.default_sigma(k), 4) for k in (3, 21, 31, 51, 55)] == [0.8, 3.5, 5.0, 8.0, 8.6]
    kernel = masks.gaussian_kernel(3)
    assert torch.allclose(kernel, torch.tensor([0.23899, 0.52201, 0.23899], dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("shape, size", [((40, 33), 7), ((9, 12), 55), ((1, 5), 9)])
def test_blur_is_scipys_with_mirrored_border(shape, size):
    """scipy's 'mirror' mode is OpenCV's reflect-101; also where the kernel is larger than the image."""
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    sigma = masks.default_sigma(size)
    kernel = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = ndimage.convolve1d(image.numpy(), kernel, axis=2, mode="mirror")
    expected = ndimage.convolve1d(expected, kernel, axis=3, mode="mirror")
    assert np.allclose(masks.gaussian_blur(image, size).numpy(), expected)


@pytest.mark.parametrize("radius", [0, 1, 2.5, 4])
def test_dilate_and_erode_are_those_of_scikit_image(radius):
    mask = torch.rand(1, 2, 24, 31) * (torch.rand(1, 2, 24, 31) > 0.9)
    whole = int(radius)
    y, x = np.mgrid[-whole : whole + 1, -whole : whole + 1]
    disk = (x**2 + y**2 <= radius**2 + 1e-9).astype(np.uint8)
    for c in range(2):
        plane = mask[0, c].numpy()
        grown = morphology.dilation(plane, disk)
        shrunk = morphology.erosion(1 - plane, disk)
        assert np.allclose(masks.dilate(mask, radius)[0, c].numpy(), grown)
        assert np.allclose(masks.erode(1 - mask, radius)[0, c].numpy(), shrunk)


def test_feather_stays_inside_and_reaches_one():
    mask = torch.zeros(1, 1, 60, 60)
    mask[..., 10:50, 10:50] = 1
    soft = masks.feather(mask, 8)
    assert (soft <= mask).all() and soft[0, 0, 30, 30] == 1
    edge = soft[0, 0, 30, 10:20]
    assert (edge.diff() >= -1e-6).all() and edge[0] < 0.1 and edge[-1] > 0.999
    assert torch.equal(masks.feather(mask, 0), mask)


def test_blur_gradient():
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: masks.gaussian_blur(x, 5), image)


def test_wrong_arguments_say_so():
    with pytest.raises(ConfigError, match="odd"):
        masks.gaussian_blur(torch.zeros(1, 1, 4, 4), 4)
    with pytest.raises(ConfigError, match="erode"):
        masks.dilate(torch.zeros(1, 1, 4, 4), -1)
    with pytest.raises(ShapeError, match="B, C, H, W"):
        masks.dilate(torch.zeros(4, 4), 1)
