"""L_id: distance of identity embeddings (Sec. 4.2, Eqs. 4 and 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, check_shape, nearest_name

__all__ = ["identity_loss", "identity_similarity"]


def identity_loss(embedding: Tensor, target: Tensor, metric: str = "cosine") -> Tensor:
    """Distance in the metric that the identity network was trained for; (B,).

    Args:
        embedding, target: (B, D).
        metric: ``"cosine"`` (ArcFace: 1 - cos) or ``"euclidean"`` (the open pack's 128-d network: squared distance,
            same person below about 0.36).
    """
    check_shape("embedding", embedding, "B D")
    check_shape("target", target, " ".join(map(str, embedding.shape)))
    if metric == "cosine":
        return 1 - F.cosine_similarity(embedding, target, dim=1)
    if metric == "euclidean":
        return (embedding - target).square().sum(1)
    raise ConfigError(nearest_name(metric, ("cosine", "euclidean"), "identity metric"))


def identity_similarity(embedding: Tensor, target: Tensor) -> Tensor:
    """Cosine similarity in [-1, 1], the figure that reports quote; (B,)."""
    return F.cosine_similarity(embedding, target, dim=1)
