"""Linear models in float64 that give the same numbers every time: ridge, support vectors, logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import InputError

__all__ = ["cross_validate", "cross_validate_ridge", "fit_class", "logistic", "ranked", "ridge", "support_vectors"]


def ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Ridge regression ``y = x @ weight + bias``: weight (D,) or (D, K), bias () or (K,).

    Args:
        x: (N, D).
        y: (N,) or (N, K).
        strength: added to the diagonal of the centered x^T x.
    """
    x, y = x.double(), y.double()
    center, offset = x.mean(0), y.mean(0)
    moved = x - center
    system = moved.T @ moved + strength * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.cholesky_solve((moved.T @ (y - offset)).view(x.shape[1], -1), torch.linalg.cholesky(system))
    weight = weight.view(x.shape[1], *y.shape[1:])
    return weight, offset - center @ weight


def _newton(x: Tensor, strength: float, slope: Any, rounds: int = 60) -> tuple[Tensor, Tensor]:
    """Minimum of sum_i f_i(x_i . weight + bias) + strength/2 |weight|^2; ``slope(margin)`` gives f, f' and f''."""
    n, d = x.shape
    center = x.mean(0)
    design = torch.cat([x - center, torch.ones(n, 1, dtype=x.dtype)], 1)
    penalty = torch.full((d + 1,), float(strength), dtype=x.dtype)
    penalty[-1] = 1e-9
    state = torch.zeros(d + 1, dtype=x.dtype)

    def energy(state: Tensor) -> Tensor:
        return slope(design @ state)[0].sum() + 0.5 * (penalty * state.square()).sum()

    value = energy(state)
    for _ in range(rounds):
        _, first, second = slope(design @ state)
        gradient = design.T @ first + penalty * state
        hessian = (design * second[:, None]).T @ design + torch.diag(penalty)
        move = torch.linalg.solve_ex(hessian, gradient)[0]
        length = 1.0
        while length > 1e-6 and not energy(state - length * move) <= value:
            length *= 0.5
        state = state - length * move
        before, value = value, energy(state)
        if before - value <= 1e-12 * (1 + abs(float(value))):
            break
    return state[:-1], state[-1] - center @ state[:-1]


def support_vectors(x: Tensor, y: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Linear support vector machine with the squared hinge, in the primal (Newton).

    Args:
        x: (N, D).
        y: (N,) of 0 and 1.
        strength: of |weight|^2 / 2 against the sum of the losses.

    Returns:
        weight (D,), bias (): the margin is ``x @ weight + bias``, beyond +-1 where a sample costs nothing.
    """
    sign = y.double() * 2 - 1

    def slope(margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gap = (1 - sign * margin).clamp(min=0)
        return gap.square(), -2 * sign * gap, 2 * (gap > 0).double()

    return _newton(x.double(), strength, slope)


def logistic(x: Tensor, y: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logistic regression (Newton); arguments and result as for :func:`support_vectors`, margins are log odds."""
    sign = y.double() * 2 - 1

    def slope(margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wrong = torch.sigmoid(-sign * margin)
        return F.softplus(-sign * margin), -sign * wrong, wrong * (1 - wrong)

    return _newton(x.double(), strength, slope)


def cross_validate(fit: Any, x: Tensor, y: Tensor, folds: int = 5) -> Tensor:
    """(N,) prediction of each sample by a model fitted without its fold (sample i is in fold i mod ``folds``)."""
    result = torch.zeros(len(x), dtype=torch.float64)
    fold = torch.arange(len(x)) % folds
    for k in range(folds):
        weight, bias = fit(x[fold != k], y[fold != k])
        result[fold == k] = x[fold == k].double() @ weight + bias
    return result


def cross_validate_ridge(x: Tensor, y: Tensor, strengths: Sequence[float], folds: int = 5) -> Tensor:
    """(S, N, K) predictions out of fold by :func:`ridge` at each strength; one eigenvalue problem a fold."""
    x, y = x.double(), y.double()
    result = torch.zeros(len(strengths), *y.shape, dtype=torch.float64)
    fold = torch.arange(len(x)) % folds
    for k in range(folds):
        known, held = x[fold != k], x[fold == k]
        center, offset = known.mean(0), y[fold != k].mean(0)
        moved = known - center
        values, vectors = torch.linalg.eigh(moved.T @ moved)
        projected = vectors.T @ (moved.T @ (y[fold != k] - offset))
        for i, strength in enumerate(strengths):
            weight = vectors @ (projected / (values.clamp(min=0) + strength)[:, None])
            result[i, fold == k] = (held - center) @ weight + offset
    return result


def ranked(margin: Tensor, there: Tensor) -> float:
    """Share of pairs (there, not there) whose margins are in order."""
    pairs = margin[there > 0][:, None] - margin[there == 0]
    return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())


def fit_class(
    name: str, fit: Any, x: Tensor, there: Tensor, strengths: Sequence[float], folds: int
) -> tuple[tuple[Tensor, Tensor], Tensor, dict[str, float]]:
    """Fit a class with the strength that predicts it best out of fold.

    Args:
        name: for messages.
        fit: (x, there, strength) -> weight (D,) and bias (), such as :func:`logistic`.
        x: (N, D).
        there: (N,) of 0 and 1.
        strengths: to choose from.
        folds: of the cross-validation.

    Returns:
        weight and bias; (N,) margins out of fold; accuracy, area under the curve and rates of these.

    Raises:
        InputError: one side of the class has fewer than ``folds`` members.
    """
    positive = int(there.sum())
    if min(positive, len(there) - positive) < folds:
        raise InputError(f"class '{name}' has {positive} of {len(there)} samples; each side needs {folds} or more.")
    tried = []
    for strength in strengths:
        guess = cross_validate(lambda a, b, s=strength: fit(a, b, s), x, there, folds)
        loss = F.binary_cross_entropy_with_logits(guess, there.double())
        tried.append((float(loss), strength, guess))
    _, strength, guess = min(tried, key=lambda item: item[:2])
    return fit(x, there, strength), guess, _class_metrics(guess, there) | {"strength": strength}


def _class_metrics(margin: Tensor, there: Tensor) -> dict[str, float]:
    """Accuracy, area under the curve, true and false positive rates of margins (N,) against classes (N,) of 0 and 1."""
    right = ((margin > 0) == (there > 0)).double()
    return {
        "accuracy": round(float(right.mean()), 4),
        "auc": round(ranked(margin, there), 4),
        "found": round(float(right[there > 0].mean()), 4),
        "false": round(float((1 - right[there == 0]).mean()), 4),
        "positive": int(there.sum()),
        "samples": len(there),
    }
