"""What the face landmarker's scores say about the expression coefficients of the same names (ours, not the paper's)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facerecon.perception.face_landmarker import EXPRESSION_SCORES

__all__ = ["CALIBRATION", "ScoredExpressions", "read_scores"]

_BOTH_SIDES = {
    "eyeBlink": (1.16, -0.075, 0.07),
    "browDown": (0.57, -0.01, 0.11),
    "browOuterUp": (0.8, 0.02, 0.135),
    "mouthSmile": (0.585, 0.025, 0.16),
    "mouthUpperUp": (1.0, 0.08, 0.13),
}
CALIBRATION = {name + side: figures for name, figures in _BOTH_SIDES.items() for side in ("Left", "Right")}
"""{unit: (slope, offset, noise)}: coefficient = slope * score + offset, with an error of that standard deviation."""


@dataclass(frozen=True)
class ScoredExpressions:
    """The units of a head model that scores tell of.

    Args:
        index: (K,) int64 into the expression coefficients.
        value: (B, K) coefficients that the scores ask for.
        noise: (K,) standard deviations of their errors.
    """

    index: Tensor
    value: Tensor
    noise: Tensor


def read_scores(names: Sequence[str], scores: Tensor) -> ScoredExpressions | None:
    """The coefficients that scores ask for; None where a head model has no unit of a known name.

    Args:
        names: of the head model's expression units.
        scores: (B, 52), of :data:`~facerecon.perception.face_landmarker.EXPRESSION_SCORES`.
    """
    units = [name for name in CALIBRATION if name in names]
    if not units:
        return None
    slope, offset, noise = scores.new_tensor([CALIBRATION[name] for name in units]).T
    value = scores[:, [EXPRESSION_SCORES.index(name) for name in units]] * slope + offset
    index = torch.tensor([list(names).index(name) for name in units], device=scores.device)
    return ScoredExpressions(index, value.clamp(0, 1), noise)
