"""How close generated maps are to real ones as a whole: Frechet distances of features, and what a decoder can fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import AssetError, InputError, check_shape
from facerecon.perception.identity import load_identity
from facerecon.storage import read_safetensors

__all__ = [
    *("DistanceFrom", "FeatureStatistics", "frechet_distance"),
    *("identity_features", "inception_features", "statistics_of"),
]

FEATURES = ("conv64_3", "conv128_2")


class FeatureStatistics:
    """Mean and covariance of features, batch by batch.

    Attributes:
        count: feature vectors so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, features: Tensor) -> FeatureStatistics:
        """Count in (B, C) features."""
        check_shape("features", features, "B C")
        x = features.detach().double().cpu()
        if self._sum is None:
            self._sum, self._products = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
        self.count += len(x)
        self._sum += x.sum(0)
        self._products += x.T @ x
        return self

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        return self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C) float64, unbiased.

        Raises:
            InputError: fewer than two vectors.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs two feature vectors or more; got {self.count}.")
        mean = self.mean
        return (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared Frechet distance of two Gaussians (arXiv:1706.08500, Eq. 6).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. It falls with the number of samples: compare at equal numbers only.
    """
    a, b = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()  # tr of the root of C1 C2
    distance = (first.mean - second.mean).square().sum() + a.trace() + b.trace() - 2 * cross
    return max(float(distance), 0.0)


def identity_features() -> Callable[[Tensor], Tensor]:
    """Pooled features (B, 192) of maps (B, 3, S, S) in [0, 1], which are averaged to 150 px, of the open pack's 128-d
    identity network (its last blocks of 64 and of 128 channels).

    Raises:
        AssetError: the network was not fetched.
    """
    net = load_identity().net

    def features(maps: Tensor) -> Tensor:
        small = F.interpolate(maps, (net.size, net.size), mode="bilinear", antialias=True, align_corners=False)
        with torch.no_grad():
            found, _ = net.to(maps.device).features(small, FEATURES)
        return torch.cat([x.mean((2, 3)) for x in found], 1)

    return features


def inception_features(path: str | os.PathLike) -> Callable[[Tensor], Tensor]:
    """Features (B, 2048) of maps (B, 3, S, S) in [0, 1], for an FID, of torchvision's Inception v3 (not of the
    TensorFlow port that published FIDs are of).

    Args:
        path: its weights (``Inception_V3_Weights.IMAGENET1K_V1``) as .safetensors.

    Raises:
        AssetError: the file is missing, or of another network.
    """
    from torchvision.models import inception_v3

    advice = "save the state_dict of torchvision's inception_v3 with safetensors"
    tensors, _ = read_safetensors(path, "torchvision's Inception v3", advice)
    net = inception_v3(weights=None, init_weights=False, transform_input=False)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise AssetError(f"{path} is not torchvision's Inception v3 ({' '.join(str(error).split())[:120]}).") from None
    net.fc = torch.nn.Identity()
    net.eval().requires_grad_(False)

    def features(maps: Tensor) -> Tensor:
        large = F.interpolate(maps, (299, 299), mode="bilinear", antialias=True, align_corners=False)
        with torch.no_grad():
            return net.to(maps.device)(large * 2 - 1)

    return features


def statistics_of(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> FeatureStatistics:
    """Statistics of the features of batches of maps (B, 3, S, S) in [0, 1]."""
    statistics = FeatureStatistics()
    for batch in batches:
        statistics.add(features(batch.clamp(0, 1)))
    return statistics


class DistanceFrom:
    """Frechet distance of images from a fixed set, whose statistics are measured at the first call.

    Args:
        features: of images.
        images: gives the batches (B, 3, S, S) in [0, 1] of the set.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], images: Callable[[], Iterable[Tensor]]) -> None:
        self.features, self.images = features, images
        self.statistics: FeatureStatistics | None = None

    def __call__(self, batches: Iterable[Tensor]) -> float:
        """Distance of batches (B, 3, S, S) in [0, 1]."""
        if self.statistics is None:
            self.statistics = statistics_of(self.features, self.images())
        return frechet_distance(statistics_of(self.features, batches), self.statistics)
