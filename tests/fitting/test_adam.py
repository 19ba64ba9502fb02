"""The Adam of the stages against torch's own."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from facerecon.fitting.adam import Adam


def groups() -> list[dict]:
    torch.manual_seed(1)
    leaves = [torch.randn(shape).requires_grad_() for shape in ((2, 5), (3,), (4, 1, 7), (1,))]
    return [{"params": leaves[:2], "lr": 0.1, "scale": 1.0}, {"params": leaves[2:], "lr": 0.02, "scale": 0.2}]


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"eps": 1e-8, "betas": (0.9, 0.99)}])
def test_every_step_is_torchs_to_the_last_bit(options: dict) -> None:
    ours, theirs = groups(), groups()
    optimizers = Adam(ours, **options), torch.optim.Adam(theirs, **options)
    draw = torch.Generator().manual_seed(2)
    for step in range(40):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = (0.1 / (1 + step)) * group["scale"]
                for leaf in group["params"]:
                    leaf.grad = None
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            for j, (a, b) in enumerate(zip(mine["params"], other["params"], strict=True)):
                if (step + i + 2 * j) % 4 and not (i and step in (5, 6)):  # none at some steps, of a whole group at two
                    a.grad = torch.randn(a.shape, generator=draw) * 10.0 ** (step % 7 - 3)
                    b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for i, j in product(range(2), range(2)):
            a, b = ours[i]["params"][j], theirs[i]["params"][j]
            assert torch.equal(a, b) and a.is_leaf and a.requires_grad, (step, i, j)
    assert not torch.equal(ours[0]["params"][0], groups()[0]["params"][0])


def test_a_parameter_without_a_gradient_stays() -> None:
    leaf = torch.ones(3, requires_grad=True)
    Adam([{"params": [leaf], "lr": 1.0}]).step()
    assert leaf.tolist() == [1, 1, 1]
