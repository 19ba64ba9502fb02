"""Face ids on a CPU: numba kernels on horizontal bands, run by a pool of Python threads.

The kernels release the GIL, so plain threads run them in parallel. numba's own ``parallel=True`` would kill
forked DataLoader workers (its OpenMP layer) or abort under concurrent callers (its workqueue layer).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from facerecon.run.thread_pool import compiled, run_bands

__all__ = ["band_count", "face_ids"]

MAX_BANDS = 8  # every band walks over all faces, and gradients need one buffer per band


def band_count(batch: int) -> int:
    """How many bands to cut each image into, so that ``batch`` images keep torch's threads busy."""
    return max(1, min(MAX_BANDS, -(-torch.get_num_threads() // batch)))


@compiled()
def _draw_band(screen, faces, first_row, last_row, cull, nearest, ids):
    """Z-buffer rows [first_row, last_row) of one image.

    screen (V, 4) float64, faces (F, 3) int64; nearest (H, W) float32 and ids (H, W) int64 are written.
    """
    height, width = ids.shape
    for row in range(first_row, last_row):
        for column in range(width):
            nearest[row, column] = np.float32(-1.0)
            ids[row, column] = -1
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ya, yb, yc = screen[a, 1], screen[b, 1], screen[c, 1]
        top, bottom = min(ya, min(yb, yc)), max(ya, max(yb, yc))
        if not (bottom >= first_row and top <= last_row):
            continue
        if screen[a, 3] <= 0.0 or screen[b, 3] <= 0.0 or screen[c, 3] <= 0.0:
            continue
        xa, xb, xc = screen[a, 0], screen[b, 0], screen[c, 0]
        # Twice the signed area with y down: negative for a face that looks at the camera.
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0.0 or (cull and area > 0.0):
            continue
        left, right = min(xa, min(xb, xc)), max(xa, max(xb, xc))
        if not (right >= 0.0 and left <= width):
            continue
        column0 = int(max(0.0, np.ceil(left - 0.5)))
        column1 = int(min(width - 1.0, np.floor(right - 0.5)))
        row0 = int(max(0.0, np.ceil(top - 0.5)))
        start = max(first_row, row0)
        stop = min(last_row - 1, int(min(height - 1.0, np.floor(bottom - 0.5))))
        if column0 > column1 or start > stop:
            continue
        # Edge functions e_i = c_i + b_i dy + a_i dx from the center of the box's first pixel, >= 0 inside.
        sign = -1.0 if area < 0.0 else 1.0
        x0, y0 = column0 + 0.5, row0 + 0.5
        xa, xb, xc, ya, yb, yc = xa - x0, xb - x0, xc - x0, ya - y0, yb - y0, yc - y0
        a0, a1, a2 = sign * (yb - yc), sign * (yc - ya), sign * (ya - yb)
        b0, b1, b2 = sign * (xc - xb), sign * (xa - xc), sign * (xb - xa)
        c0, c1, c2 = sign * (xb * yc - xc * yb), sign * (xc * ya - xa * yc), sign * (xa * yb - xb * ya)
        scale = 1.0 / abs(area)
        n0, n1, n2 = screen[a, 2] * scale, screen[b, 2] * scale, screen[c, 2] * scale
        for row in range(start, stop + 1):
            dy = float(row - row0)
            r0, r1, r2 = c0 + b0 * dy, c1 + b1 * dy, c2 + b2 * dy
            for column in range(column0, column1 + 1):
                dx = float(column - column0)
                e0, e1, e2 = r0 + a0 * dx, r1 + a1 * dx, r2 + a2 * dx
                if e0 >= 0.0 and e1 >= 0.0 and e2 >= 0.0:
                    near = np.float32((e0 * n0 + e1 * n1) + e2 * n2)
                    if near > nearest[row, column] and near >= 0.0 and near <= 1.0:
                        nearest[row, column] = near
                        ids[row, column] = face


def face_ids(screen: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> Tensor:
    """Face ids of CPU tensors; see the package's docstring for the contract."""
    height, width = size
    batch = screen.shape[0]
    points, triangles = screen.contiguous().numpy(), faces.contiguous().numpy()
    ids = torch.empty(batch, height, width, dtype=torch.int64)
    out = ids.numpy()
    nearest = np.empty((batch, height, width), np.float32)
    bands = band_count(batch)
    run_bands(
        _draw_band,
        [
            (points[b], triangles, k * height // bands, (k + 1) * height // bands, cull, nearest[b], out[b])
            for b in range(batch)
            for k in range(bands)
        ],
    )
    return ids
