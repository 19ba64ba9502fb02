"""Face ids in plain torch on any device: list (face, pixel) candidates, keep the nearest by scatter-max."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["face_ids"]

CPU_CHUNK = 1 << 17  # candidates at a time: temporaries stay in cache
CUDA_CHUNK = 1 << 23


def face_ids(screen: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> Tensor:
    """Face ids by scatter; arithmetic and order are those of the numba kernel, so ids agree exactly."""
    height, width = size
    batch, face_count, device = screen.shape[0], faces.shape[0], screen.device
    corners = screen[:, faces.reshape(-1)].view(batch * face_count, 3, 4)
    x, y, near, w = (t.mT.contiguous() for t in corners.unbind(-1))  # (3, N) each
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    drawn = (area < 0 if cull else area != 0) & (w > 0).all(0)
    left, right = (x.amin(0) - 0.5).ceil().clamp(min=0), (x.amax(0) - 0.5).floor().clamp(max=width - 1)
    top, bottom = (y.amin(0) - 0.5).ceil().clamp(min=0), (y.amax(0) - 0.5).floor().clamp(max=height - 1)
    columns, rows = (right - left + 1).clamp(min=0), (bottom - top + 1).clamp(min=0)
    count = torch.where(drawn, columns * rows, torch.zeros_like(area)).nan_to_num(0.0, 0.0, 0.0).long()

    kept = count.nonzero()[:, 0]
    buffer = torch.full((batch * height * width,), -1, dtype=torch.int64, device=device)
    if len(kept) == 0:
        return buffer.view(batch, height, width)
    count, columns, left, top, area = (t[kept] for t in (count, columns.nan_to_num().long(), left, top, area))
    x, y = x[:, kept] - (left + 0.5), y[:, kept] - (top + 0.5)
    sign = torch.sign(area)
    slope_x = sign * (y[[1, 2, 0]] - y[[2, 0, 1]])
    slope_y = sign * (x[[2, 0, 1]] - x[[1, 2, 0]])
    corner = sign * (x[[1, 2, 0]] * y[[2, 0, 1]] - x[[2, 0, 1]] * y[[1, 2, 0]])
    near = near[:, kept] * (1.0 / area.abs())
    origin = (kept // face_count) * (height * width) + top.long() * width + left.long()
    rank = face_count - 1 - kept % face_count  # greater for smaller ids, which win ties

    ends = torch.cumsum(count, 0)
    chunk = CUDA_CHUNK if device.type == "cuda" else CPU_CHUNK
    marks = torch.tensor(range(chunk, int(ends[-1]), chunk), dtype=torch.int64, device=device)
    cuts = [0, *torch.searchsorted(ends, marks).tolist(), len(kept)]
    for first, last in pairwise(cuts):
        if first == last:
            continue
        part = slice(first, last)
        face = torch.repeat_interleave(count[part]) + first
        step = torch.arange(len(face), device=device) - (ends[face] - count[face] - (ends[first] - count[first]))
        down = torch.div(step, columns[face], rounding_mode="floor")
        across = step - down * columns[face]
        dy, dx = down.double(), across.double()
        e0, e1, e2 = (corner[i][face] + slope_y[i][face] * dy + slope_x[i][face] * dx for i in range(3))
        nearness = (e0 * near[0][face] + e1 * near[1][face] + e2 * near[2][face]).float()
        hit = (e0 >= 0) & (e1 >= 0) & (e2 >= 0) & (nearness >= 0) & (nearness <= 1)
        hit = hit.nonzero()[:, 0]
        face = face[hit]
        # Bits of a float >= 0 are ordered like the float: nearness above, rank below.
        key = ((nearness[hit] + 0.0).view(torch.int32).long() << 32) | rank[face]
        pixel = origin[face] + down[hit] * width + across[hit]
        buffer.scatter_reduce_(0, pixel, key, "amax")
    ids = torch.where(buffer >= 0, face_count - 1 - (buffer & 0xFFFFFFFF), buffer)
    return ids.view(batch, height, width)
