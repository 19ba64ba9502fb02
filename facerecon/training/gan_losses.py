"""Losses of StyleGAN2's training (arXiv:1912.04958): logistic, R1, path length."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["discriminator_loss", "generator_loss", "path_length", "r1_penalty"]


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating logistic loss, ``softplus(-D(G(z)))``: (B, 1) logits -> (B,)."""
    return F.softplus(-fake).flatten()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss, ``softplus(-D(x)) + softplus(D(G(z)))``: (B, 1) logits each -> (B,)."""
    return (F.softplus(-real) + F.softplus(fake)).flatten()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared gradient norm at real images, ``|dD/dx|^2`` (arXiv:1801.04406); its weight is gamma / 2.

    Args:
        logits: (B, 1) of D.
        images: (B, C, H, W) that they were computed from, requiring a gradient.

    Returns:
        (B,), differentiable.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def path_length(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of ``J_w^T y`` for random images y (Eq. 4): what the path-length penalty keeps constant.

    Args:
        images: (B, C, H, W) synthesized from ``ws``.
        ws: (B, rows, w_dim), requiring a gradient.
        noise: (B, C, H, W), N(0, 1); divided here by sqrt(H W).

    Returns:
        (B,), root of the mean over rows of the squared norms; differentiable.
    """
    scale = 1 / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum() * scale, ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
