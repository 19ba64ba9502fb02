"""YUV, Eq. 1, blur and the BS Error of the released maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2yuv

from facerecon.dataset.complete import CompleteSettings
from facerecon.errors import ShapeError
from facerecon.imaging import color, files, masks


def test_yuv_is_that_of_scikit_image():
    image = torch.rand(3, 3, 7, 5, dtype=torch.float64)
    expected = rgb2yuv(image.permute(0, 2, 3, 1).numpy())
    assert np.allclose(color.rgb_to_yuv(image).permute(0, 2, 3, 1).numpy(), expected, atol=1e-7)
    assert torch.allclose(color.yuv_to_rgb(color.rgb_to_yuv(image)), image)
    assert torch.allclose(color.yuv_to_rgb(color.rgb_to_yuv(image.float())), image.float(), atol=1e-6)


def test_match_color_gives_the_moments_of_eq_1():
    """After Eq. 1 each YUV channel has the target's mean and 1 / w of its deviation, over the masks."""
    source, target = torch.rand(2, 3, 40, 30, dtype=torch.float64), torch.rand(2, 3, 40, 30, dtype=torch.float64)
    target = target * torch.tensor([0.3, 0.5, 0.2])[:, None, None] + 0.3
    one, two = (torch.rand(2, 1, 40, 30) > 0.4).double(), (torch.rand(2, 1, 40, 30) > 0.7).double()
    for w in (1.0, 1.5):
        matched = color.rgb_to_yuv(color.match_color(source, target, one, two, w=w))
        for b in range(2):
            for c in range(3):
                got = matched[b, c][one[b, 0] > 0]
                want = color.rgb_to_yuv(target)[b, c][two[b, 0] > 0]
                assert torch.isclose(got.mean(), want.mean())
                assert torch.isclose(got.std(unbiased=False), want.std(unbiased=False) / w)


def test_match_color_of_two_pixels_by_hand():
    """Eq. 1 with its w = 1.5: gray 0.2 and 0.6 around 0.4 take the mean 0.7 and 1 / 1.5 of the deviation 0.15."""
    source = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    target = torch.tensor([0.0, 0.55, 0.85], dtype=torch.float64).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    one, two = (torch.tensor(m, dtype=torch.float64).view(1, 1, 1, 3) for m in ([1.0, 1, 0], [0.0, 1, 1]))
    matched = color.match_color(source, target, one, two)
    assert matched[0, 0, 0].tolist() == pytest.approx([0.6, 0.8, 1.0], abs=1e-6)  # the third: beyond the mask, changed
    assert matched[0, 1:].flatten().tolist() == pytest.approx([0.6, 0.8, 1.0] * 2, abs=1e-6)
    # without a mask of its own the target's moments are taken over the source's
    matched = color.match_color(source, target, one)
    assert matched[0, 0, 0, :2].tolist() == pytest.approx([0.275 - 0.275 / 1.5, 0.275 + 0.275 / 1.5], abs=1e-6)
    assert CompleteSettings().contrast == 1.5


def test_match_color_without_contrast_or_texels():
    flat = torch.full((1, 3, 8, 8), 0.5)
    target = torch.rand(1, 3, 8, 8)
    matched = color.match_color(flat, target)
    assert torch.allclose(matched, target.mean((2, 3), keepdim=True).expand_as(flat), atol=1e-5)
    source = torch.rand(1, 3, 8, 8)
    assert torch.equal(color.match_color(source, target, torch.zeros(1, 1, 8, 8)), source)
    with pytest.raises(ShapeError, match="target"):
        color.match_color(source, target[..., :4])


@pytest.mark.parametrize("name, expected", [("01223_final_uv.png", 5.697), ("teaser1_texture.png", 7.312)])
def test_brightness_symmetry_error_of_released_maps(reference, name, expected):
    """BS(T) = |B(Y) - flip(B(Y))|, kernel 55 (Sec. 3.2): the known figures of two released maps."""
    texture = files.read_image(reference / "ffhq_uv" / name)[None]
    blurred = masks.gaussian_blur(color.rgb_to_yuv(texture)[:, :1] * 255, 55)
    assert (blurred - blurred.flip(-1)).abs().mean().item() == pytest.approx(expected, abs=0.01)
