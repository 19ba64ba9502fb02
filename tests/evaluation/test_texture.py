"""BS Error against the released maps' figures and closed forms; identity spread; sharpness of waves and noise."""

import math

import pytest
import torch

from facerecon.errors import ConfigError, InputError, ShapeError
from facerecon.evaluation.texture import (
    MapMetrics,
    brightness_symmetry_error,
    evenly_lit,
    identity_std_ratio,
    octave_sharpness,
)
from facerecon.imaging.color import yuv_to_rgb
from facerecon.imaging.files import read_image
from facerecon.imaging.masks import gaussian_blur, gaussian_kernel


@pytest.mark.parametrize("name, error", [("01223_final_uv.png", 5.697), ("teaser1_texture.png", 7.312)])
def test_released_maps_have_their_published_errors(reference, name, error) -> None:
    texture = read_image(reference / "ffhq_uv" / name)[None]
    assert brightness_symmetry_error(texture).item() == pytest.approx(error, abs=5e-4)
    half = torch.nn.functional.interpolate(texture, (512, 512), mode="area")
    assert brightness_symmetry_error(half).item() == pytest.approx(error, rel=2e-3)  # the blur scales with the map


def gray(brightness: torch.Tensor) -> torch.Tensor:
    """(1, 3, S, S) of a brightness (S, S) in [0, 1]."""
    yuv = torch.zeros(1, 3, *brightness.shape)
    yuv[:, 0] = brightness
    return yuv_to_rgb(yuv)


def test_error_of_a_linear_ramp_is_its_mean_absolute_asymmetry() -> None:
    size, slope = 256, 0.4
    x = (torch.arange(size) + 0.5) / size - 0.5
    texture = gray((0.5 + slope * x).expand(size, size))
    # a blur keeps a ramp but for its ends; |2 slope x| has the mean slope / 2
    assert brightness_symmetry_error(texture).item() == pytest.approx(255 * slope / 2, rel=0.02)
    assert brightness_symmetry_error((texture + texture.flip(-1)) / 2).item() < 1e-3


def test_error_over_a_mask_ignores_what_lies_outside_of_it() -> None:
    size = 128
    texture = gray(torch.full((size, size), 0.5))
    texture[..., 40:60, 90:120] = 1.0
    mask = torch.ones(1, 1, size, size)
    mask[..., 40:60, 90:120] = 0
    assert brightness_symmetry_error(texture).item() > 1
    assert brightness_symmetry_error(texture, mask).item() < 1e-3
    assert brightness_symmetry_error(texture, torch.zeros_like(mask)).isnan().all()
    # the whole map as a mask: the same but for the blur's mirrored border
    full = brightness_symmetry_error(texture, torch.ones_like(mask))
    assert full.item() == pytest.approx(brightness_symmetry_error(texture).item(), rel=1e-4)


def test_error_of_a_map_of_four_columns_by_hand() -> None:
    """Without a blur; the mirror partners are columns 0 and 3 (0.7 apart), 1 and 2 (0.2 apart)."""
    texture = gray(torch.tensor([0.1, 0.2, 0.4, 0.8]).expand(4, 4))

    def error(*rows: list[float]) -> float:
        mask = torch.tensor([rows[0]] * 3 + [rows[-1]]).view(1, 1, 4, 4)
        return brightness_symmetry_error(texture, mask, kernel_size=1).item()

    assert brightness_symmetry_error(texture, kernel_size=1).item() == pytest.approx(255 * 0.45, rel=1e-4)
    assert error([1.0, 1, 1, 1]) == pytest.approx(255 * 0.45, rel=1e-4)
    assert error([1.0, 1, 1, 0]) == pytest.approx(255 * 0.2, rel=1e-4)  # 0 has lost its partner, and does not count
    assert error([0.0, 1, 1, 1]) == pytest.approx(255 * 0.2, rel=1e-4)
    assert error([1.0, 0.5, 0.8, 1]) == pytest.approx(255 * (2 * 0.7 + 0.2) / 3, rel=1e-4)  # by the lesser of the two
    assert error([1.0, 0.04, 1, 1]) == pytest.approx(255 * 0.7, rel=1e-4)  # too little of 1 was seen to know its mean
    assert error([1.0, 0, 0, 1], [0.0, 1, 1, 0]) == pytest.approx(255 * (3 * 0.7 + 0.2) / 4, rel=1e-4)


def test_a_blur_takes_in_texels_of_the_mask_alone() -> None:
    """Three texels in a row weigh (1, k, 1) for a kernel of 3: a masked neighbor gives its weight to the others."""
    weights = gaussian_kernel(3).tolist()
    texture = gray(torch.tensor([0.2, 0.6, 0.9, 0.9]).expand(4, 4))
    mask = torch.tensor([1.0, 1, 1, 0]).expand(1, 1, 4, 4)
    left = (weights[0] * 0.2 + weights[1] * 0.6 + weights[2] * 0.9) / sum(weights)
    right = (weights[0] * 0.6 + weights[1] * 0.9) / sum(weights[:2])
    found = brightness_symmetry_error(texture, mask, kernel_size=3).item()
    assert found == pytest.approx(255 * (right - left), rel=1e-4)


def test_a_batch_gives_each_map_its_own_error() -> None:
    textures = torch.rand(3, 3, 64, 64)
    together = brightness_symmetry_error(textures)
    alone = torch.cat([brightness_symmetry_error(t[None]) for t in textures])
    torch.testing.assert_close(together, alone, atol=0, rtol=1e-4)


def test_identity_std_is_the_mean_of_the_dimensions_own() -> None:
    rendered = torch.tensor([[5.0, 3.0, -1.0], [5.0, 5.0, -1.0]])  # deviations 0, sqrt(2), 0
    source = torch.tensor([[0.0, 9.0, -7.0], [2.0, 9.0, -3.0], [4.0, 9.0, 1.0]])  # 2, 0, 4
    assert identity_std_ratio(rendered, source).item() == pytest.approx(math.sqrt(2) / 6)
    assert identity_std_ratio(3 * source - 8, source).item() == pytest.approx(3)


def noise(seed: int, size: int = 192) -> torch.Tensor:
    """(1, 3, S, S): gray values around 0.5 with detail in every octave."""
    draw = torch.Generator().manual_seed(seed)
    grains = [torch.randn(1, 1, size // 2**i, size // 2**i, generator=draw) for i in range(6)]
    grains = [torch.nn.functional.interpolate(grain, (size, size), mode="bilinear") for grain in grains]
    return (0.5 + 0.03 * sum(grains)).clamp(0, 1).expand(-1, 3, -1, -1)


def test_a_map_like_its_view_is_as_sharp_and_a_blurred_or_noisy_one_is_not() -> None:
    view, other = noise(0), noise(1)
    one = torch.ones(1, 1, 192, 192)
    maps = [view, gaussian_blur(view, 15, 2.0), (view + (other - 0.5)).clamp(0, 1), other]
    ratio, coherence = octave_sharpness(torch.cat(maps), *(x.expand(4, -1, -1, -1) for x in (view, one, one)))
    assert ratio.shape == coherence.shape == (4, 5)
    assert torch.allclose(ratio[0], torch.ones(5), atol=1e-4) and torch.allclose(coherence[0], torch.ones(5), atol=1e-4)
    # a blur of 2 texels takes the fine octaves and leaves the coarse ones
    assert ratio[1, 0] < 0.1 and ratio[1, 1] < 0.4 and (ratio[1].diff() > 0).all() and 0.9 < ratio[1, 4] < 1
    assert (ratio[2] > 1.2).all()  # noise of the same strength adds its variance
    assert torch.allclose(coherence[2], torch.full((5,), math.sqrt(0.5)), atol=0.12)
    assert (coherence[3].abs() < 0.25).all()


@pytest.mark.parametrize("octave, period", [(1, 5.7), (2, 11.3), (3, 22.6), (4, 45.3)])
def test_a_wave_is_seen_in_its_octave(octave, period) -> None:
    """A wave that is half as strong in the map lowers the ratio to a half where its period belongs, and least there."""
    size = 192
    wave = (torch.arange(size) * (2 * math.pi / period)).sin().expand(size, size)
    base = (noise(2) + 0.01).log()
    view, texture = (((base + strength * wave).exp() - 0.01).clamp(0, 1) for strength in (0.3, 0.15))
    one = torch.ones(1, 1, size, size)
    ratio, coherence = octave_sharpness(texture, view, one, one)
    assert ratio[0].argmin() == octave and 0.5 <= ratio[0, octave] < 0.65
    assert coherence[0, octave] > 0.9


def test_what_is_not_trusted_does_not_leak_in_and_only_what_counts_is_measured() -> None:
    view, texture = noise(3), noise(3).clone()
    weight = torch.ones(1, 1, 192, 192)
    weight[..., 100:] = 0
    texture[..., 100:] = 1.0  # beyond what the view shows
    ratio, coherence = octave_sharpness(texture, view, weight, weight)
    assert torch.allclose(ratio, torch.ones(1, 5), atol=1e-4) and torch.allclose(coherence, ratio, atol=1e-4)
    leaking, _ = octave_sharpness(texture, view, torch.ones_like(weight), weight)
    assert leaking[0, 4] > 1.1
    count = weight.clone()
    count[..., 60:] = 0
    texture[..., 61:100] = noise(4)[..., 61:100]  # trusted, but it does not count
    ratio, coherence = octave_sharpness(texture, view, weight, count)
    assert torch.allclose(ratio[:, :2], torch.ones(1, 2), atol=0.05) and (coherence[:, :2] > 0.95).all()
    assert all(x.isnan().all() for x in octave_sharpness(texture, view, weight, torch.zeros_like(weight)))
    assert octave_sharpness(texture, torch.full_like(view, 0.5), weight, weight, octaves=3)[0].shape == (1, 3)


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match="count"):
        octave_sharpness(*(torch.rand(1, 3, 8, 8) for _ in range(2)), torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 9))
    with pytest.raises(ConfigError, match="odd"):
        brightness_symmetry_error(torch.rand(1, 3, 32, 32), kernel_size=10)
    with pytest.raises(InputError, match="mask"):
        brightness_symmetry_error(torch.rand(2, 3, 32, 32), torch.rand(3, 1, 32, 32))
    with pytest.raises(InputError, match="2 faces"):
        identity_std_ratio(torch.rand(1, 4), torch.rand(5, 4))


def test_evenly_lit_heads_show_the_texture_s_own_gray(asset) -> None:
    from facerecon.geometry.camera import project
    from facerecon.morphable import load_face_model
    from facerecon.types import Camera

    asset("makehuman")
    model = load_face_model("makehuman")
    params = model.neutral(2)
    params = params.replace(identity=torch.randn(params.identity.shape))
    gray = torch.tensor([1.0, 0.4]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    image, landmarks = evenly_lit(model, params, gray)
    assert image.shape == (2, 3, 224, 224) and torch.allclose(image[:, :, :3, :3], torch.tensor(0.5))  # around them
    inside = (image - 0.5).abs().amax(1) > 0.02
    assert inside.float().mean() > 0.2
    for one, where, level in zip(image, inside, (0.9, 0.36), strict=True):  # on average 0.9 of the texture
        assert one[:, where].mean().item() == pytest.approx(level, abs=0.01)
    camera = Camera.deep3d(224, 2)
    expected = project(camera, model.landmarks3d(model(params), camera))[..., :2]
    assert torch.allclose(landmarks[:, 17:], expected[:, 17:], atol=0.05)  # the jaw slides with the pose


def test_pairs_of_maps_are_compared_by_both_lpips(asset) -> None:
    from facerecon import losses

    for name in ("makehuman", "identity128", "faceres1024", "lpips_vgg16", "lpips_alexnet"):
        asset(name)
    face = torch.zeros(1, 1, 32, 32)
    face[..., 8:24, 8:24] = 1
    maps = torch.rand(1, 3, 64, 64)
    targets = maps.clone()
    targets[..., 16:48, 16:48] = (targets[..., 16:48, 16:48] - 0.5).abs()
    metrics = MapMetrics(face)
    found, same = metrics(maps, targets), metrics(maps, maps)
    assert set(found) == {"l1", "l1_face", "lpips_vgg", "lpips_alex", "csim"}
    assert found["l1_face"].item() == pytest.approx(4 * found["l1"].item(), rel=1e-4) != 0
    for name in ("lpips_vgg", "lpips_alex"):
        torch.testing.assert_close(found[name], losses.load_perceptual(name)(maps, targets))
        assert found[name] > 0.05 and same[name] == 0
    assert found["csim"] < same["csim"] == pytest.approx(1, abs=1e-5)
