"""Frechet distances against closed forms."""

import pytest
import torch

from facerecon.errors import AssetError, InputError
from facerecon.evaluation.distribution import (
    FeatureStatistics,
    frechet_distance,
    identity_features,
    inception_features,
    statistics_of,
)


def statistics(x: torch.Tensor) -> FeatureStatistics:
    return FeatureStatistics().add(x)


def test_statistics_are_those_of_the_whole() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    found = FeatureStatistics().add(x[:20]).add(x[20:])
    assert torch.allclose(found.mean, x.mean(0))
    assert torch.allclose(found.covariance, torch.cov(x.T))
    with pytest.raises(InputError, match="two feature vectors"):
        _ = statistics(x[:1]).covariance


def test_frechet_distance_of_known_gaussians() -> None:
    x = torch.randn(400, 3, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.cholesky(torch.linalg.inv(torch.cov(x.T)))  # exactly N(0, 1)
    assert frechet_distance(statistics(x), statistics(x)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(statistics(x), statistics(x + 2)) == pytest.approx(12)
    assert frechet_distance(statistics(x), statistics(3 * x)) == pytest.approx(3 * (3 - 1) ** 2)
    scales = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    a, b = statistics(x * scales), statistics(x @ turn)
    # against N(0, 1): tr(C) + 3 - 2 tr(C^(1/2)), however either is turned
    assert frechet_distance(a, b) == pytest.approx(float((scales**2).sum() + 3 - 2 * scales.sum()))
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_identity_features_tell_sets_apart(asset) -> None:
    asset("identity128")
    features = identity_features()
    draws = torch.Generator().manual_seed(0)
    maps = torch.rand(12, 3, 4, 4, generator=draws)
    maps = torch.nn.functional.interpolate(maps, (64, 64), mode="bicubic").clamp(0, 1)
    assert features(maps).shape == (12, 192)
    plain, again = statistics_of(features, [maps[:5], maps[5:]]), statistics_of(features, maps.split(4))
    noisy = statistics_of(features, [maps + 0.2 * torch.randn(maps.shape, generator=draws)])
    assert frechet_distance(plain, again) < 1e-3 * frechet_distance(plain, noisy)


def test_inception_is_never_replaced(tmp_path) -> None:
    with pytest.raises(AssetError, match="torchvision's Inception v3"):
        inception_features(tmp_path / "none.safetensors")
