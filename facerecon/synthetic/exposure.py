"""What a camera does to a picture: exposure, white balance and tone curve, in linear light."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.geometry.lighting import GAMMA
from facerecon.synthetic.scene import Draws

__all__ = ["exposed", "random_exposure"]


def exposed(
    image: Tensor,
    exposure: float | Tensor = 1.0,
    white_balance: Tensor | None = None,
    gamma: float | Tensor = 1.0,
) -> Tensor:
    """The picture that a camera would have taken with another exposure, white balance and tone curve.

    Intensities, value ** 2.2, are multiplied; what exceeds 1 is clipped; then encoded values are raised to ``gamma``.
    ``exposed(x, 1 / e, 1 / w)`` undoes ``exposed(x, e, w)`` but for what was clipped.

    Args:
        image: (B, 3, H, W) encoded RGB >= 0; above 1 where the scene is brighter than white.
        exposure: (B,) or a number > 0, factor of all intensities.
        white_balance: (B, 3) or (3,), factors > 0 of the intensities of each channel; None: ones.
        gamma: (B,) or a number > 0; above 1 the tones between black and white come out darker.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    check_shape("image", image, "B 3 H W")
    gain = torch.as_tensor(exposure).to(image).reshape(-1, 1, 1, 1)
    if white_balance is not None:
        gain = gain * white_balance.to(image).reshape(-1, 3, 1, 1)
    curve = torch.as_tensor(gamma).to(image).reshape(-1, 1, 1, 1)
    return (image * gain ** (1 / GAMMA)).clamp(0, 1) ** curve


def random_exposure(draws: Draws) -> tuple[Tensor, Tensor]:
    """Exposures (B,), evenly in their log from 0.5 to 1.8, and white balances (B, 3), red and blue by up to 25 %."""
    exposure = 0.5 * 3.6 ** draws.uniform()
    side = draws.uniform(2, low=0.75, high=1.25)
    return exposure, torch.stack([side[:, 0], torch.ones(len(side)), side[:, 1]], 1)
