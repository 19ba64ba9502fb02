"""Regularizers of coefficients, light and latents (Sec. 4.2, Eqs. 4 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import InputError, check_shape

__all__ = [
    "coefficient_loss",
    "gaussian_loss",
    "geocross_loss",
    "light_color_loss",
    "radius_loss",
    "smoothness_loss",
]


def coefficient_loss(coefficients: Tensor) -> Tensor:
    """|p|^2, the squared norm of coefficients in standard deviations; (B, K) -> (B,)."""
    check_shape("coefficients", coefficients, "B K")
    return coefficients.square().sum(1)


def radius_loss(codes: Tensor) -> Tensor:
    """L_reg(z) of preset ``paper``: ``(|z|^2 / d - 1)^2``, 0 on the sphere of radius sqrt(d); (B,), mean over the rows.

    Args:
        codes: (B, N, d).
    """
    check_shape("codes", codes, "B N C")
    return (codes.square().mean(-1) - 1).square().mean(1)


def gaussian_loss(codes: Tensor, spread: float = 0.5) -> Tensor:
    """-log of a Gaussian of codes, per number (ours): rows share a mean of unit variance, and differ from it by less.

    ``mean_c m_c^2 + mean_(n, c) (z_nc - m_c)^2 / spread^2``, m the mean over rows. What a photo does not show stays
    near the mean texture. Of one row it is ``|z|^2 / d``.

    Args:
        codes: (B, N, C), standardized.
        spread: standard deviation of a row about the mean of all.
    """
    check_shape("codes", codes, "B N C")
    mean = codes.mean(1, keepdim=True)
    return mean.square().mean((1, 2)) + (codes - mean).square().mean((1, 2)) / spread**2


def geocross_loss(codes: Tensor) -> Tensor:
    """L_reg(w) of preset ``release``: how far the rows of a w+ code lie from one another on the sphere.

    Mean over all N x N pairs of rows X, Y of ``C * (2 atan2(|X - Y|, |X + Y|))^2 / 8``, 1e-9 under the roots
    (C = 512 in the release). 0 when there is one row; (B,).

    Args:
        codes: (B, N, C).
    """
    check_shape("codes", codes, "B N C")
    if codes.shape[1] == 1:
        return codes.new_zeros(codes.shape[0])
    x, y = codes[:, :, None], codes[:, None]
    difference = ((x - y).square().sum(-1) + 1e-9).sqrt()
    total = ((x + y).square().sum(-1) + 1e-9).sqrt()
    angle = 2 * torch.atan2(difference, total)
    return codes.shape[-1] * angle.square().flatten(1).mean(1) / 8


def smoothness_loss(values: Tensor, times: Tensor | None = None) -> Tensor:
    """How much a track bends: its squared second difference at each moment, 0 at both ends; (T,).

    ``|x[t-1] - 2 x[t] + x[t+1]|^2`` where the moments are one step apart; elsewhere the second derivative through three
    neighbors (divided differences), in the unit of the track's mean step. A track that moves evenly costs nothing.

    Args:
        values: (T, ...), one row a moment.
        times: (T,), increasing, any unit; evenly spaced if left out.

    Raises:
        InputError: times that do not increase.
    """
    count = len(values)
    if times is None:
        times = torch.arange(count, device=values.device)
    check_shape("times", times, f"{count}")
    bend = values.new_zeros(count)
    if count < 3:
        return bend
    steps = times.to(values).diff()
    if not bool((steps > 0).all()):
        raise InputError("times must increase from moment to moment; sort the frames and give each its own time.")
    steps = (steps / steps.mean()).view(-1, *[1] * (values.dim() - 1))
    speed = values.diff(dim=0) / steps
    second = speed.diff(dim=0) / ((steps[1:] + steps[:-1]) / 2)
    return torch.cat([bend[:1], second.square().flatten(1).sum(1), bend[:1]])


def light_color_loss(coefficients: Tensor) -> Tensor:
    """Variance of the light between color channels (release, stage 3), mean over the bands; (B,).

    Args:
        coefficients: (B, 9, 3).
    """
    check_shape("coefficients", coefficients, "B 9 3")
    return (coefficients - coefficients.mean(2, keepdim=True)).square().mean((1, 2))
