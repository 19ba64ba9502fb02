"""Adaptive augmentation: nothing at p = 0, differentiable, per sample, and p goes where it should."""

from dataclasses import replace

import pytest
import torch

from facerecon.stylegan.augment import Augment, AugmentSettings, draws_of

STILL = {"shift": 0.0, "scale": 0.0, "turn": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
SURE = AugmentSettings(**STILL)


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def augmented(p: float, mirror: bool = False, numbers=range(4), batch=None, **strengths) -> torch.Tensor:
    augment = Augment(replace(SURE, **strengths), mirror)
    augment.p = p
    return augment(images() if batch is None else batch, 7, "test", numbers)


def test_nothing_happens_at_zero() -> None:
    assert augmented(0.0, shift=0.2, turn=30.0, hue=90.0) is not None
    assert torch.equal(augmented(0.0, shift=0.2, turn=30.0, hue=90.0, brightness=1.0), images())


def test_p_follows_the_discriminator() -> None:
    augment = Augment(AugmentSettings(target=0.6, speed_kimg=1.0, limit=0.5))
    assert augment.adapt(0.9, 100) == pytest.approx(0.1)  # too sure of the real ones: more
    assert augment.adapt(0.9, 1000) == 0.5
    assert augment.adapt(0.2, 200) == pytest.approx(0.3)
    assert augment.adapt(0.6, 200) == pytest.approx(0.3)
    assert augment.adapt(-1.0, 5000) == 0.0


def test_a_translation_moves_whole_pixels() -> None:
    # away from the reflected border every pixel is one of the original's, bit for bit but for rounding
    batch = images(8)
    moved = augmented(1.0, shift=0.25, numbers=range(8), batch=batch)
    draws = draws_of(7, "test uniform", range(8), 12, normal=False)
    shift = ((2 * draws[:, 8:10] - 1) * 0.25 * 16).round().long()
    assert (shift != 0).any()
    for image, out, (dx, dy) in zip(batch, moved, shift.tolist(), strict=True):
        expected = image.roll((dy, dx), (1, 2))
        inside = (slice(None), slice(4, 12), slice(4, 12))
        assert torch.allclose(out[inside], expected[inside], atol=1e-4)


def test_rotation_and_zoom_keep_a_centered_disc_centered() -> None:
    y, x = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(32.0) - 15.5, indexing="ij")
    blob = torch.exp(-(x**2 + y**2) / 20).expand(6, 3, 32, 32) * 2 - 1
    turned = augmented(1.0, turn=45.0, numbers=range(6), batch=blob)
    assert torch.allclose(turned, blob, atol=0.04)  # of 2: what bicubic resampling loses
    zoomed = augmented(1.0, scale=0.5, numbers=range(6), batch=blob) + 1
    mass = zoomed.sum((1, 2, 3))
    assert float((mass / mass.mean() - 1).abs().max()) > 0.2
    assert float(((zoomed * x).sum((1, 2, 3)) / mass).abs().max()) < 0.05
    assert float(((zoomed * y).sum((1, 2, 3)) / mass).abs().max()) < 0.05


def test_colors_are_what_they_are_called() -> None:
    gray = torch.rand(4, 1, 8, 8).expand(4, 3, 8, 8) * 2 - 1
    for change in ({"hue": 180.0}, {"saturation": 2.0}):  # neither touches gray
        assert torch.allclose(augmented(1.0, batch=gray, **change), gray, atol=1e-5)
    batch = images()
    hue = augmented(1.0, hue=180.0)
    assert torch.allclose(hue.mean(1), batch.mean(1), atol=1e-5)  # a turn around the gray axis
    assert torch.allclose(hue.square().sum(1), batch.square().sum(1), atol=1e-4)
    assert float((hue - batch).abs().max()) > 0.3
    bright = augmented(1.0, brightness=0.5) - batch
    assert torch.allclose(bright, bright[:, :1, :1, :1].expand_as(bright), atol=1e-5)
    contrast = augmented(1.0, contrast=1.0) / batch
    assert torch.allclose(contrast, contrast[:, :1, :1, :1].expand_as(contrast), rtol=1e-3)


def test_mirror_flips_half_at_any_p() -> None:
    batch = images(400, 4)
    out = augmented(0.0, True, range(400), batch)
    flipped = (out == batch.flip(3)).all(3).all(2).all(1)
    same = (out == batch).all(3).all(2).all(1)
    assert bool((flipped ^ same).all())
    assert 150 < int(flipped.sum()) < 250


def test_each_sample_has_its_own_draws() -> None:
    strengths = {"shift": 0.2, "turn": 20.0, "scale": 0.3, "hue": 60.0, "brightness": 0.3}
    together = augmented(0.6, True, **strengths)
    alone = torch.cat([augmented(0.6, True, [i], images()[i : i + 1], **strengths) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)
    draws = draws_of(1, "a", [3, 4], 2)
    assert torch.equal(draws[1:], draws_of(1, "a", [4], 2))
    assert not torch.equal(draws, draws_of(1, "b", [3, 4], 2))
    assert not torch.equal(draws, draws_of(2, "a", [3, 4], 2))


def test_gradients_are_those_of_finite_differences() -> None:
    batch = images(2, 8).double().requires_grad_(True)
    strengths = {"shift": 0.2, "turn": 20.0, "scale": 0.3, "hue": 60.0, "brightness": 0.3, "contrast": 0.5}
    check = lambda x: augmented(1.0, True, range(2), x, **strengths)  # noqa: E731
    assert torch.autograd.gradcheck(check, batch, atol=1e-4, nondet_tol=1e-9, fast_mode=True)
