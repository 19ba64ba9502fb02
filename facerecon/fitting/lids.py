"""Lids at rest: a neutral head has its eyes open."""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.morphable import MorphableModel
from facerecon.types import FaceParams

__all__ = ["lid_gaps", "open_lids"]

OPEN = 0.8
"""Least distance of the lids of a neutral head, over the mean head's. Of identities drawn from the model 2 % have less,
and a fit may take a squint for one."""


def lid_gaps(landmarks: Tensor, left: bool) -> Tensor:
    """(..., 2) distances between upper and lower lid at two places, of 68 landmarks (..., 68, 2 or 3)."""
    first = 42 if left else 36
    pairs = ((landmarks[..., first + u, :], landmarks[..., first + v, :]) for u, v in ((1, 5), (2, 4)))
    return torch.stack([(upper - lower).norm(dim=-1) for upper, lower in pairs], -1)


def neutral_gaps(vertices: Tensor, model: MorphableModel) -> Tensor:
    """(B, 2) mean distances of the right and the left lids of heads (B, V, 3)."""
    landmarks = model.landmarks3d(vertices)
    return torch.stack([lid_gaps(landmarks, left).mean(-1) for left in (False, True)], -1)


@torch.no_grad()
def open_lids(params: FaceParams, model: MorphableModel, least: float = OPEN) -> FaceParams:
    """Parameters whose neutral head has its eyes open; those of a head that has are given back as they are.

    The identity moves by the fewest standard deviations that it takes; eyeBlink... closes again what that opens, so
    that the head with its expression keeps its lids.

    Args:
        params: of B faces.
        model: the head model.
        least: distance of the lids over the mean head's.
    """
    wanted = least * neutral_gaps(model.mean[None], model)[0]
    params = params.replace(identity=params.identity.clone(), expression=params.expression.clone())
    for b in range(params.batch):
        for _ in range(3):  # a distance is nearly linear in the coefficients
            identity = params.identity[b].clone().requires_grad_()
            with torch.enable_grad():
                now = neutral_gaps(model.neutral_shape(params[b].replace(identity=identity[None])), model)[0]
            short = (wanted - now.detach()).clamp(min=0)
            if not bool((short > 1e-4 * wanted).any()):
                break
            ones = torch.eye(2).to(now)
            slopes = torch.stack([torch.autograd.grad(now, identity, one, retain_graph=True)[0] for one in ones])
            rows = short > 0
            step = torch.linalg.pinv(slopes[rows]) @ (1.002 * short[rows])
            params.identity[b] = identity.detach() + step
            _close(params.expression[b], slopes @ step, model)
    return params


def _close(expression: Tensor, opened: Tensor, model: MorphableModel) -> None:
    """Let the lids blink by what they were ``opened`` by (2,), in place."""
    high = (model.expression_bounds or (0.0, 1.0))[1]
    mean = neutral_gaps(model.mean[None], model)[0]
    for k, name in enumerate(("eyeBlinkRight", "eyeBlinkLeft")):
        if name in model.expression_names:
            unit = model.expression_names.index(name)
            little = 0.1  # the lids turn: a small blink tells how far a unit closes them
            closed = mean - neutral_gaps((model.mean + little * model.expression_basis[unit])[None], model)[0]
            expression[unit] = (expression[unit] + little * opened[k] / closed[k].clamp(min=1e-6)).clamp(max=high)
