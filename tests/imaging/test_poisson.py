"""Poisson editing against a dense solve written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facerecon.errors import InputError
from facerecon.imaging.poisson import PoissonSolver


def dense_edit(base: np.ndarray, guide: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One channel: minimize the sum over neighbor pairs touching the mask of (f_p - f_q - g_p + g_q)^2."""
    height, width = mask.shape
    inside = {p: i for i, p in enumerate(zip(*np.nonzero(mask), strict=True))}
    rows, right = [], []
    for y in range(height):
        for x in range(width):
            for p, q in (((y, x), (y + 1, x)), ((y, x), (y, x + 1))):
                if q[0] >= height or q[1] >= width or (p not in inside and q not in inside):
                    continue
                row, value = np.zeros(len(inside)), guide[p] - guide[q]
                for point, sign in ((p, 1), (q, -1)):
                    if point in inside:
                        row[inside[point]] = sign
                    else:
                        value -= sign * base[point]
                rows.append(row)
                right.append(value)
    solution = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    result = base.copy()
    for point, index in inside.items():
        result[point] = solution[index]
    return result


def test_against_a_dense_solve():
    """Irregular masks with islands, some at the image border, for each face of a batch."""
    rng = np.random.default_rng(0)
    base, guide = rng.random((2, 2, 12, 14)), rng.random((2, 2, 12, 14))
    mask = rng.random((2, 1, 12, 14)) > 0.45
    mask[0, 0, :3, :4] = True
    for b in range(2):
        result = PoissonSolver(torch.from_numpy(mask[b]))(torch.from_numpy(base), torch.from_numpy(guide))
        for a in range(2):
            for c in range(2):
                assert np.allclose(result[a, c].numpy(), dense_edit(base[a, c], guide[a, c], mask[b, 0]), atol=1e-10)


def test_constant_offset_of_the_guide_does_not_matter():
    base, guide = torch.rand(3, 3, 40, 40), torch.rand(3, 3, 40, 40)
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 10:30, 5:25] = 1
    solve = PoissonSolver(mask)
    one, two = solve(base, guide), solve(base, guide + 5)
    assert torch.allclose(one, two, atol=1e-4)
    assert torch.equal(one[:, :, :10], base[:, :, :10])
    assert torch.allclose(solve(base, base - 0.3), base, atol=1e-5)


def test_a_mask_without_border_is_refused():
    with pytest.raises(InputError, match="whole image"):
        PoissonSolver(torch.ones(8, 8))
