"""The directions of a W space that texture maps depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import ConfigError, ShapeError

__all__ = ["linear_maps", "predictive_directions"]


@torch.no_grad()
def predictive_directions(
    codes: Tensor, maps: Tensor, samples: Tensor, count: int, ridge: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Reduced-rank ridge regression of maps on the codes of the faces they were made from.

    Maps are predicted linearly, ``map = mean + (w - mean_w) B``; the principal components of what is predicted for many
    mapped samples are scores linear in w. They come sorted by how much of the maps they explain, uncorrelated, and of
    unit variance over the samples.

    Args:
        codes: (N, C).
        maps: (N, ...), their maps, small ones do.
        samples: (M, C) mapped latents.
        count: K, directions to keep, at most C and N - 1.
        ridge: penalty, as a share of the mean squared length of the centered codes.

    Returns:
        (C,) center and (K, C) directions: ``score = directions (w - center)``.

    Raises:
        ShapeError: shapes that do not fit.
        ConfigError: too many directions.
    """
    if codes.dim() != 2 or len(maps) != len(codes) or samples.dim() != 2 or samples.shape[1] != codes.shape[1]:
        raise ShapeError(
            f"codes must be (N, C), maps (N, ...), samples (M, C); got {tuple(codes.shape)}, {tuple(maps.shape)}, "
            f"{tuple(samples.shape)}."
        )
    if not 1 <= count <= min(codes.shape[1], len(codes) - 1):
        raise ConfigError(
            f"{count} directions of W cannot be told from {len(codes)} codes of {codes.shape[1]} numbers; ask for "
            "fewer."
        )
    codes, samples, maps = codes.double(), samples.double(), maps.flatten(1).double()
    centered, deviation = codes - codes.mean(0), maps - maps.mean(0)
    gram = centered.T @ centered
    penalty = ridge * centered.square().sum(1).mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    regression = torch.linalg.solve(gram + penalty * eye, centered.T @ deviation)  # (C, D)
    center = samples.mean(0)
    scatter = (samples - center).T @ (samples - center) / len(samples)
    # principal components of (w - center) B over the samples, by way of the C x C matrix R^T (B B^T) R, S = R R^T
    values, vectors = torch.linalg.eigh(scatter)
    root = vectors * values.clamp(min=1e-12).sqrt()
    _, inner = torch.linalg.eigh(root.T @ (regression @ regression.T) @ root)
    inner = inner.flip(1)[:, :count]
    whitener = vectors / values.clamp(min=1e-12).sqrt()  # root^-T
    directions = (whitener @ inner).T
    return center.float(), directions.float().contiguous()


@torch.no_grad()
def linear_maps(codes: Tensor, maps: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least-squares prediction of maps, ``map = intercept + codes . directions``: (3, s, s) and (K, 3, s, s).

    Args:
        codes: (N, K).
        maps: (N, 3, s, s).
        noise: (K, K) covariance of noise on the codes, over which the squared error is averaged (a ridge penalty of N
            times it).
    """
    mean, average = codes.double().mean(0), maps.double().mean(0)
    centered, deviation = codes.double() - mean, (maps.double() - average).flatten(1)
    gram = centered.T @ centered
    if noise is not None:
        gram = gram + len(codes) * noise.double()
    directions = torch.linalg.solve(gram, centered.T @ deviation)
    intercept = average - (mean @ directions).view_as(average)
    return intercept.float(), directions.view(-1, *maps.shape[1:]).float()
