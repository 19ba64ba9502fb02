"""Linear models against closed forms, stationarity and the answers of a slow twin."""

import torch

from facerecon.editing.linear import cross_validate, cross_validate_ridge, logistic, ranked, ridge, support_vectors


def samples(n: int = 200, d: int = 6, noise: float = 0.3):
    chance = torch.Generator().manual_seed(5)
    x = torch.randn(n, d, generator=chance, dtype=torch.float64) + 3
    truth = torch.arange(1.0, d + 1, dtype=torch.float64)
    value = (x - 3) @ truth + 2 + noise * torch.randn(n, generator=chance, dtype=torch.float64)
    return x, value, truth


def test_ridge_finds_the_plane_and_its_gradient_vanishes() -> None:
    x, y, truth = samples()
    weight, bias = ridge(x, y, 0.5)
    rest = x @ weight + bias - y
    assert torch.allclose(x.T @ rest - x.mean(0) * rest.sum() + 0.5 * weight, torch.zeros(6).double(), atol=1e-9)
    assert (weight - truth).abs().max() < 0.1
    assert abs(float(rest.mean())) < 1e-10


def test_logistic_and_support_vectors_are_stationary() -> None:
    x, value, _ = samples(noise=4.0)
    there = (value > 2).long()
    sign = there * 2.0 - 1
    for fit, slope in (
        (logistic, lambda m: -sign * torch.sigmoid(-sign * m)),
        (support_vectors, lambda m: -2 * sign * (1 - sign * m).clamp(min=0)),
    ):
        weight, bias = fit(x, there, 0.7)
        first = slope(x @ weight + bias)
        assert torch.allclose((x - x.mean(0)).T @ first + 0.7 * weight, torch.zeros(6).double(), atol=1e-6)
        assert abs(float(first.sum())) < 1e-6
        again = fit(x, there, 0.7)
        assert torch.equal(weight, again[0])


def test_cross_validation_never_sees_its_fold() -> None:
    """A label that is pure chance cannot be predicted out of fold, though a fit in 150 dimensions explains it."""
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(160, 150, generator=chance, dtype=torch.float64)
    y = torch.randn(160, generator=chance, dtype=torch.float64)
    inside = x @ ridge(x, y, 1e-3)[0]
    outside = cross_validate(lambda a, b: ridge(a, b, 1e-3), x, y)
    assert torch.corrcoef(torch.stack([inside, y]))[0, 1] > 0.95
    assert torch.corrcoef(torch.stack([outside, y]))[0, 1] < 0.3
    fast = cross_validate_ridge(x, y[:, None], [1e-3, 10.0])
    assert torch.allclose(fast[0, :, 0], outside, rtol=1e-5, atol=1e-6)
    slow = cross_validate(lambda a, b: ridge(a, b, 10.0), x, y)
    assert torch.allclose(fast[1, :, 0], slow, rtol=1e-6, atol=1e-8)


def test_ranked_counts_pairs() -> None:
    assert ranked(torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0, 1, 1, 0])) == 1.0
    assert ranked(torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([0, 1, 0, 1])) == 0.5
