"""Adam (arXiv:1412.6980) without ``torch.optim.Optimizer``, whose first use imports torch's compiler, 2 s long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

__all__ = ["Adam"]


class Adam:
    """``torch.optim.Adam`` to the last bit, as far as a fit needs it.

    Args:
        groups: of parameters; each has "params", a list of leaves, and "lr", which may change from step to step.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.param_groups, self.betas, self.eps = list(groups), betas, eps
        self._state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}  # both moments, number of steps

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient."""
        for group in self.param_groups:
            leaves = [leaf for leaf in group["params"] if leaf.grad is not None]
            if not leaves:
                continue
            for leaf in leaves:
                if leaf not in self._state:
                    self._state[leaf] = torch.zeros_like(leaf), torch.zeros_like(leaf), torch.tensor(0.0)
            first, second, steps = map(list, zip(*(self._state[leaf] for leaf in leaves), strict=True))
            adam(
                leaves, [leaf.grad for leaf in leaves], first, second, [], steps,
                amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=group["lr"], weight_decay=0.0, eps=self.eps,
                maximize=False,
            )  # fmt: skip
