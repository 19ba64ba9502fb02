"""Adaptive augmentation: nothing at p = 0, differentiable, per sample, and p goes where it should."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from facerecon.training.ada import ADASettings, Augment, draws_of

STILL = {"shift": 0.0, "scale": 0.0, "turn": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
SURE = ADASettings(**STILL)


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def augmented(p: float, mirror: bool = False, numbers=range(4), batch=None, **strengths) -> torch.Tensor:
    augment = Augment(replace(SURE, **strengths), mirror)
    augment.p = p
    return augment(images() if batch is None else batch, 7, "test", numbers)


ALL = {"shift": 0.2, "scale": 0.2, "turn": 30.0, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 60.0}


def test_nothing_happens_at_zero() -> None:
    assert torch.equal(augmented(0.0, **ALL), images())


def test_each_transform_happens_with_probability_p() -> None:
    """Alone, each changes a share p of the images and leaves the others; each tosses a coin of its own."""
    batch, numbers = images(300, 4), range(300)
    changed = {}
    for name in ("scale", "turn", "brightness", "contrast", "saturation", "hue"):
        out = augmented(0.3, numbers=numbers, batch=batch, **{name: ALL[name]})
        changed[name] = ((out - batch).abs().flatten(1).amax(1) > 1e-3).double()
        assert abs(changed[name].mean() - 0.3) < 0.11, name  # four standard deviations
    for one, other in itertools.combinations(changed, 2):
        assert abs((changed[one] * changed[other]).mean() - 0.09) < 0.07, (one, other)


def test_a_spot_goes_where_the_draws_say() -> None:
    """Turned and moved away from the middle, then shifted: p' = zoom R(angle) p + shift."""
    size, count, (px, py) = 64, 12, (9.0, -4.0)
    y, x = torch.meshgrid(torch.arange(size) - 31.5, torch.arange(size) - 31.5, indexing="ij")
    spot = torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 8).expand(count, 3, size, size) - 1
    moved = augmented(1.0, numbers=range(count), batch=spot, shift=0.1, scale=0.3, turn=40.0) + 1
    uniform = draws_of(7, "test uniform", range(count), 12, normal=False)
    zoom = 2 ** (0.3 * draws_of(7, "test normal", range(count), 5)[:, 0])
    angle = (2 * uniform[:, 10] - 1) * math.radians(40)
    shift = ((2 * uniform[:, 8:10] - 1) * 0.1 * size).round()
    turned = torch.stack([px * angle.cos() - py * angle.sin(), px * angle.sin() + py * angle.cos()], 1)
    for image, (right, down) in zip(moved, zoom[:, None] * turned + shift, strict=True):
        near = image * ((x - right) ** 2 + (y - down) ** 2 < 100)  # beyond it the border's reflection may show
        assert near.sum() > 0.5 * spot[0].add(1).sum()
        assert abs(float((near * (x - right)).sum() / near.sum())) < 0.05
        assert abs(float((near * (y - down)).sum() / near.sum())) < 0.05


def test_colors_change_as_the_draws_say() -> None:
    """Gray g + b, then all times the contrast; what is not gray turned by the hue's angle and stretched."""
    batch = images()
    out = augmented(1.0, brightness=0.2, contrast=0.5, saturation=0.4, hue=70.0)
    normal = draws_of(7, "test normal", range(4), 5)
    bright, contrast, saturation = 0.2 * normal[:, 1], 2 ** (0.5 * normal[:, 2]), 2 ** (0.4 * normal[:, 3])
    angle = (2 * draws_of(7, "test uniform", range(4), 12, normal=False)[:, 11] - 1) * math.radians(70)
    gray, now = batch.mean(1), out.mean(1)
    assert torch.allclose(now, contrast[:, None, None] * (gray + bright[:, None, None]), atol=1e-5)
    color, other = batch - gray[:, None], out - now[:, None]
    length = color.norm(dim=1)
    assert torch.allclose(other.norm(dim=1), (contrast * saturation)[:, None, None] * length, rtol=1e-4, atol=1e-5)
    across = torch.linalg.cross(color, other, dim=1).sum(1) / math.sqrt(3)  # signed, along the gray axis
    turned = torch.atan2(across, (color * other).sum(1))
    assert torch.allclose(turned, angle[:, None, None].expand_as(turned), atol=1e-3)


def test_p_follows_the_discriminator() -> None:
    augment = Augment(ADASettings(target=0.6, speed_kimg=1.0, limit=0.5))
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
    assert torch.allclose(together, alone, atol=1e-4)
    draws = draws_of(1, "a", [3, 4], 2)
    assert torch.equal(draws[1:], draws_of(1, "a", [4], 2))
    assert not torch.equal(draws, draws_of(1, "b", [3, 4], 2))
    assert not torch.equal(draws, draws_of(2, "a", [3, 4], 2))


def test_gradients_are_those_of_finite_differences() -> None:
    batch = images(2, 8).double().requires_grad_(True)
    strengths = {"shift": 0.2, "turn": 20.0, "scale": 0.3, "hue": 60.0, "brightness": 0.3, "contrast": 0.5}
    check = lambda x: augmented(1.0, True, range(2), x, **strengths)  # noqa: E731
    assert torch.autograd.gradcheck(check, batch, atol=1e-4, nondet_tol=1e-9, fast_mode=True)
