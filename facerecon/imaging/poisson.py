"""Poisson editing: the gradients of one image inside the border of another (Perez et al. 2003; Sec. 3.1.3)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import splu
from torch import Tensor

from facerecon.errors import InputError, check_shape

__all__ = ["PoissonSolver"]


class PoissonSolver:
    """Poisson editing inside one mask, factorized once for any number of images and channels.

    Inside the mask the discrete Laplacian of the result is the guide's; on the pixels around it the result is the
    base image; at the image border nothing flows out. With f = guide + u this is the Laplace equation for u.

    Args:
        mask: (H, W) or (1, 1, H, W); pixels above 0.5 are edited.

    Raises:
        InputError: the mask covers the whole image, so that no pixel is left to start from.
    """

    def __init__(self, mask: Tensor) -> None:
        inside = (mask.detach().cpu().reshape(mask.shape[-2:]) > 0.5).numpy()
        if inside.all():
            raise InputError("a Poisson mask must leave pixels unedited; got one that covers the whole image.")
        self.inside = inside
        count = int(inside.sum())
        number = np.full(inside.shape, -1, np.int64)
        number[inside] = np.arange(count)
        everywhere = np.arange(inside.size).reshape(inside.shape)
        rows, columns, outer_rows, outer_pixels = [], [], [], []
        down, up = np.s_[:-1, :], np.s_[1:, :]
        right, left = np.s_[:, :-1], np.s_[:, 1:]
        for here, there in ((down, up), (up, down), (right, left), (left, right)):
            p, q = number[here], number[there]
            both, edge = (p >= 0) & (q >= 0), (p >= 0) & (q < 0)
            rows.append(p[both])
            columns.append(q[both])
            outer_rows.append(p[edge])
            outer_pixels.append(everywhere[there][edge])
        row, column = np.concatenate(rows), np.concatenate(columns)
        self._outer_row, self._outer_pixel = np.concatenate(outer_rows), np.concatenate(outer_pixels)
        degree = np.bincount(np.concatenate([row, self._outer_row]), minlength=count).astype(np.float64)
        neighbors = coo_array((np.ones(len(row)), (row, column)), (count, count))
        matrix = (diags_array(degree) - neighbors).tocsc()
        options = {"diag_pivot_thresh": 0, "options": {"SymmetricMode": True}}
        self._factor = splu(matrix, "MMD_AT_PLUS_A", **options) if count else None

    def __call__(self, base: Tensor, guide: Tensor) -> Tensor:
        """``base`` (B, C, H, W) outside the mask, the gradients of ``guide`` (B, C, H, W) inside; not clamped."""
        check_shape("base", base, f"B C {self.inside.shape[0]} {self.inside.shape[1]}")
        check_shape("guide", guide, " ".join(map(str, base.shape)))
        if self._factor is None:
            return base.detach().clone()
        b, c, h, w = base.shape
        difference = (base - guide).detach().double().cpu().reshape(b * c, h * w).numpy()
        right = np.zeros((self._factor.shape[0], b * c))
        np.add.at(right, self._outer_row, difference[:, self._outer_pixel].T)
        correction = torch.from_numpy(self._factor.solve(right).T.copy()).to(base)
        result = base.detach().reshape(b * c, h * w).clone()
        where = torch.from_numpy(np.flatnonzero(self.inside)).to(base.device)
        result[:, where] = guide.detach().reshape(b * c, h * w)[:, where] + correction
        return result.reshape(b, c, h, w)
