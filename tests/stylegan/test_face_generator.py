"""The open face generator against its original runtime, and the transform it is built on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from facerecon import assets
from facerecon.errors import AssetError, InputError, ShapeError
from facerecon.stylegan import face_generator as mobile


@pytest.fixture(scope="module")
def generator() -> mobile.MobileGenerator:
    try:
        return mobile.load_generator()
    except AssetError as error:
        pytest.skip(str(error))


def seeded(seed: int) -> torch.Tensor:
    return torch.randn(1, 512, generator=torch.Generator().manual_seed(seed))


def test_inverse_haar_of_the_forward_transform():
    """Oracle: the analysis by its definition, sums and differences of 2 x 2 blocks."""
    x = torch.randn(2, 6, 10, 3, dtype=torch.float64)
    a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
    bands = [a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]
    restored = mobile.inverse_haar(torch.cat(bands, -1) / 2)
    assert torch.allclose(restored, x)


def test_agrees_with_the_original_runtime(generator):
    """Literals: OpenVINO 2026.4 in float32 on the package's own graphs, z of torch seeds 0 and 1."""
    w = torch.cat([generator.mapping(seeded(seed)) for seed in (0, 1)])
    expected_w = torch.tensor([[-0.09194963, 0.7364206, -0.3010487], [0.5881163, -0.29756013, -0.14112207]])
    assert torch.allclose(w[:, :3], expected_w, atol=1e-4)
    with torch.no_grad():
        image = generator.synthesis(w)
    assert image.shape == (2, 3, 1024, 1024) and image.min() >= 0 and image.max() <= 1
    expected = {
        (0, 0): ((0.10692, 0.21033, 0.15432), (0.7447, 0.74699, 0.70101)),
        (300, 400): ((0.65318, 0.53347, 0.62064), (0.73317, 0.52778, 0.46266)),
        (512, 512): ((0.64816, 0.53145, 0.66213), (0.97344, 0.78257, 0.68895)),
        (700, 600): ((0.47961, 0.2938, 0.41769), (0.9567, 0.72374, 0.63194)),
        (1023, 1023): ((0.07522, 0.19126, 0.27353), (0.34166, 0.25584, 0.27635)),
    }
    for (row, column), colors in expected.items():
        assert torch.allclose(image[:, :, row, column], torch.tensor(colors), atol=2e-4), (row, column)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_every_block_agrees_with_the_original_runtime(generator, dtype, tolerance):
    """Recorded by original_generator.py: the whole picture in averages of 64 x 64 px; so is a fused bfloat16 one."""
    record = json.loads((Path(__file__).parent / "original_generator.json").read_text())
    own = generator if dtype == torch.float32 else mobile.load_generator(dtype=dtype)
    w = torch.cat([generator.mapping(seeded(seed)) for seed in record["seeds"]])
    with torch.no_grad():
        blocks = torch.nn.functional.avg_pool2d(own.synthesis(w), 64)
    assert (blocks - torch.tensor(record["blocks"])).abs().max() < tolerance


def test_a_batch_w_and_w_plus_agree(generator):
    w = generator.sample([3, 4])
    with torch.no_grad():
        both = generator.synthesis(w)
        alone = generator.synthesis(w[1:, None].expand(1, 23, 512))
    assert (both[1] - alone[0]).abs().max() < 2e-4


def test_samples_depend_on_the_seed_alone(generator):
    one = generator.sample(7)
    assert torch.allclose(generator.sample([5, 6, 7])[2:], one, atol=1e-4)
    assert torch.allclose(generator.sample(7, truncation=0)[0], generator.mean_w)
    full = generator.sample(7, truncation=1)
    assert torch.allclose(full, generator.mapping(seeded(7)), atol=1e-4)
    assert torch.allclose(one, generator.mean_w + 0.7 * (full - generator.mean_w), atol=1e-4)


def test_mean_w_is_the_mean(generator):
    """A second, independent sample of W has that mean and deviation."""
    z = torch.randn(4000, 512, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        w = generator.mapping(z)
    assert ((w.mean(0) - generator.mean_w) / generator.std_w).abs().max() < 0.09  # 4 sigma of the difference
    assert (w.std(0) / generator.std_w - 1).abs().max() < 0.12


def test_gradient_reaches_w(generator):
    """Directional derivative against a central difference."""
    w = generator.sample(11)[:, None].repeat(1, 23, 1).requires_grad_()
    direction = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(2)) + 1

    def loss(value):
        return (generator.synthesis(value, clamp=False) * weight).mean()

    (gradient,) = torch.autograd.grad(loss(w), w)
    with torch.no_grad():
        step = 1e-2
        numeric = (loss(w + step * direction) - loss(w - step * direction)) / (2 * step)
    assert torch.isclose((gradient * direction).sum(), numeric, rtol=0.03)


WINDOW = (250, 322, 0, 130)  # px; touches the left border


def unfused(generator, dtype=torch.float32):
    """The torch path of the same weights, which is the oracle of the fused one."""
    slow = copy.deepcopy(generator.synthesis).to(dtype)
    slow.fused = False
    return slow


def test_fused_steps_agree_with_the_torch_path(generator):
    w = generator.sample([1, 2])[:, None].repeat(1, 23, 1)
    w[:, 5:] += 0.1 * torch.randn(18, 512, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = unfused(generator)(w, clamp=False)
        assert (generator.synthesis(w, clamp=False) - expected).abs().max() < 2e-4
        fast = unfused(generator, torch.bfloat16)
        slow_error = (fast(w, clamp=False) - expected).square().mean((1, 2, 3))
        fast.fused = True
        error = (fast(w, clamp=False) - expected).square().mean((1, 2, 3))
    assert (error < slow_error).all()  # the fused steps round less often


@pytest.mark.parametrize("fused", [True, False])
def test_a_window_is_a_part_of_the_picture(generator, fused):
    synthesis = generator.synthesis if fused else unfused(generator)
    w = generator.sample(6)
    top, bottom, left, right = WINDOW
    with torch.no_grad():
        part, whole = synthesis(w, window=WINDOW), synthesis(w)
    assert part.shape == (1, 3, 72, 130)
    assert torch.allclose(part, whole[:, :, top:bottom, left:right], atol=2e-4)


def test_fused_steps_do_not_depend_on_threads_or_batch(generator):
    w = generator.sample([8, 9])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = generator.synthesis(w[1:], window=WINDOW)
        torch.set_num_threads(3)
        both = generator.synthesis(w, window=WINDOW)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(both[1], alone[0], atol=2e-4)


def test_gradient_through_a_window(generator):
    """Gradients of a part are those of the whole picture's part."""
    w = generator.sample(4).requires_grad_()
    top, bottom, left, right = WINDOW
    (part,) = torch.autograd.grad(generator.synthesis(w, window=WINDOW).square().sum(), w)
    (whole,) = torch.autograd.grad(generator.synthesis(w)[:, :, top:bottom, left:right].square().sum(), w)
    assert torch.allclose(part, whole, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


def test_previews_are_the_picture_at_256_px(generator):
    """Of a seed that the read-out was not fitted to; a whole one, a part of it, and by the torch path."""
    w = generator.sample(2001, 0.8)
    window = mobile.Window(232, 992, 140, 884)
    with torch.no_grad():
        picture = torch.nn.functional.interpolate(generator.synthesis(w), (256, 256), mode="area")
        preview = generator.synthesis(w, preview=True)
        part = generator.synthesis(w, preview=True, window=window)
        slow = unfused(generator)(w, preview=True, window=window)
    assert -10 * (preview - picture).square().mean().log10() > 24  # dB
    assert torch.allclose(part, preview[:, :, 58:248, 35:221], atol=2e-4)
    assert torch.allclose(slow, part, atol=2e-4)
    whole = mobile.framed(part, window)
    assert whole.shape == preview.shape and torch.equal(whole[:, :, 58:248, 35:221], part)
    assert torch.equal(whole[:, :, 0, 0], part[:, :, 0, 0])


def test_the_read_out_is_a_least_squares_one(generator):
    """Its errors over the pictures it was fitted to have mean 0, and are smaller there than the committed one's."""
    own = copy.deepcopy(generator)
    own.synthesis.preview_weight, own.synthesis.preview_bias = mobile.fit_preview(own, [5, 6])
    w = generator.sample([5, 6], 0.8)
    with torch.no_grad():
        picture = torch.nn.functional.interpolate(generator.synthesis(w), (256, 256), mode="area")
        error = own.synthesis(w, clamp=False, preview=True) - picture
        other = generator.synthesis(w, clamp=False, preview=True) - picture
    assert error.mean((0, 2, 3)).abs().max() < 1e-3
    assert error.square().mean() < other.square().mean()


@pytest.mark.parametrize("window", [(0, 1026, 0, 10), (3, 10, 0, 10), (10, 10, 0, 10), (-2, 10, 0, 10)])
def test_a_wrong_window_says_so(generator, window):
    with pytest.raises(InputError, match="window must be"):
        generator.synthesis(torch.zeros(1, 512), window=window)


def test_wrong_styles_say_so(generator):
    with pytest.raises(ShapeError, match="W does"):
        generator.synthesis(torch.zeros(1, 18, 512))
    with pytest.raises(ShapeError, match="512"):
        generator.mapping(torch.zeros(1, 100))


def test_bfloat16_is_close(generator):
    fast = mobile.load_generator(dtype=torch.bfloat16)
    w = generator.sample([1, 2])
    with torch.no_grad():
        error = (fast.synthesis(w) - generator.synthesis(w)).square().mean((1, 2, 3))
    assert (-10 * error.log10() > 45).all()  # dB


def test_another_package_is_refused(tmp_path):
    from facerecon.stylegan import convert

    with pytest.raises(AssetError, match="MappingNetwork"):
        convert.mobile_stylegan(tmp_path, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())
    assert "mobile_stylegan" in assets.registry.ASSETS
