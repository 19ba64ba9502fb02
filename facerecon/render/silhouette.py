"""Antialiased silhouettes: how far the nearer surface reaches into the pixel beside it, with gradients.

A rasterized mask is a step function of the vertices: its gradient is 0, so outlines cannot move shape. Here every
crossing of a visible silhouette edge with the segment between two neighboring pixel centers is found, and the two
pixels are blended by the coverage that the crossing implies: the pair-wise analytic antialiasing of Laine et al.,
"Modular Primitives for High-Performance Differentiable Rendering" (2020). Two things differ from it. Crossings are
found by walking along the edges instead of looking at the faces that pixel centers happened to hit, so slivers
narrower than a pixel are not missed. And a crossing with a row and one with a column are weighted by n_x^2 and
n_y^2 of the edge's normal, so that together they count every piece of the outline once, whatever its direction: the
blended mask's sum is the outline's area to first order, and so is its derivative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.geometry.mesh import cached
from facerecon.render.rasterize import to_screen

__all__ = ["Outline", "find_outline", "opposite_faces"]

BEHIND = 5e-3  # relative depth by which the pixel inside may lie behind its edge: half a centimeter at 1 m


@dataclass(frozen=True)
class Outline:
    """The N crossings of visible silhouette edges with segments between neighboring pixel centers.

    Attributes:
        shape: (B, H, W).
        near, far: (N,) int64, flat pixels (into B * H * W): inside, and beyond the edge.
        reach: (N,) in [0, 1], how far from the near center towards the far one the edge lies, in pixels;
            differentiable in the vertices.
        weight: (N,) in [0, 1], the share of this crossing's axis.
    """

    shape: tuple[int, int, int]
    near: Tensor
    far: Tensor
    reach: Tensor
    weight: Tensor

    def detach(self) -> Outline:
        """The same outline, cut from the graph."""
        return replace(self, reach=self.reach.detach())

    def blend(self, image: Tensor) -> Tensor:
        """Antialias an image drawn with hard edges.

        Where the edge lies beyond the border of the two pixels (reach above 1/2), the near color spills into
        the far pixel by reach - 1/2; otherwise the far color into the near one by 1/2 - reach.

        Args:
            image: (B, C, H, W), or (M, C, H, W) with B = 1; gradients reach it and the outline's vertices.
        """
        check_shape("image", image, f"B C {self.shape[1]} {self.shape[2]}")
        count, channels = image.shape[:2]
        flat = image.transpose(0, 1).reshape(channels, -1)
        near, far, reach, weight = self.near, self.far, self.reach.to(image.dtype), self.weight.to(image.dtype)
        if count > self.shape[0]:
            step = self.shape[1] * self.shape[2] * torch.arange(count, device=near.device)[:, None]
            near, far = (near + step).flatten(), (far + step).flatten()
            reach, weight = reach.repeat(count), weight.repeat(count)
        spill = reach > 0.5
        target, source = torch.where(spill, far, near), torch.where(spill, near, far)
        amount = weight * (reach - 0.5).abs()
        change = amount * (flat.index_select(1, source) - flat.index_select(1, target))
        return flat.index_add(1, target, change).view(channels, count, *self.shape[1:]).transpose(0, 1)


def opposite_faces(faces: Tensor) -> Tensor:
    """(F, 3) int64: the face on the other side of the edge from corner k to corner k + 1, or -1; cached.

    An edge of more than two faces, or of two that run along it the same way, has no other side.
    """

    def build() -> Tensor:
        corners = faces.cpu().numpy()
        start, stop = corners.reshape(-1), corners[:, [1, 2, 0]].reshape(-1)
        size = int(corners.max()) + 1 if corners.size else 1
        key, twin = start * size + stop, stop * size + start
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        at = np.searchsorted(ordered, twin).clip(max=max(len(key) - 1, 0))
        known, counts = np.unique(key, return_counts=True)
        single = counts[np.searchsorted(known, key)] == 1
        found = (ordered[at] == twin) & single[order[at]] & single
        return torch.from_numpy(np.where(found, order[at] // 3, -1).reshape(-1, 3)).to(faces.device)

    return cached("opposite faces", build, faces)


@torch.no_grad()
def _silhouette(screen: Tensor, faces: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Image, start and end vertex of every edge between a face that can be seen and one that cannot."""
    corners = screen.index_select(1, faces.reshape(-1)).view(len(screen), -1, 3, 4)
    a, b, c = corners.unbind(2)
    area = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (c[..., 0] - a[..., 0]) * (b[..., 1] - a[..., 1])
    seen = (area < 0) & (corners[..., 3] > 0).all(-1)
    if drawn is not None:
        seen &= drawn
    other = torch.cat([seen, seen.new_zeros(len(seen), 1)], 1)[:, opposite_faces(faces)]  # -1 is the last, unseen
    image, face, corner = (seen[..., None] & ~other).nonzero().unbind(1)
    return image, faces[face, corner], faces[face, (corner + 1) % 3]


def _screen_of(clip: Tensor, image: Tensor, vertex: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """x and y in pixels, and w, of some vertices; float64, differentiable."""
    x, y, _, w = clip.reshape(-1, 4).index_select(0, image * clip.shape[1] + vertex).double().unbind(-1)
    return (x / w + 1) * (size[1] / 2), (1 - y / w) * (size[0] / 2), w


def find_outline(clip: Tensor, faces: Tensor, index: Tensor, depth: Tensor, drawn: Tensor | None = None) -> Outline:
    """Where the silhouettes of a rendered mesh cross between pixel centers.

    Args:
        clip: (B, V, 4) clip coordinates, which get gradients.
        faces: (F, 3), of which those seen from behind are not drawn.
        index: (B, H, W) visible face ids, -1 on background.
        depth: (B, H, W) world units.
        drawn: (F,) bool, the faces that were drawn; all if left out. The border to what is not drawn is an outline.
    """
    shape = tuple(index.shape)
    height, width = shape[1:]
    image, start, stop = _silhouette(to_screen(clip, (height, width)), faces, drawn)
    x0, y0, w0 = _screen_of(clip, image, start, (height, width))
    x1, y1, w1 = _screen_of(clip, image, stop, (height, width))
    with torch.no_grad():
        square = ((x1 - x0).square() + (y1 - y0).square()).clamp(min=1e-12)
    parts = []
    for axis in ("row", "column"):
        lines, others, p0, p1, q0, q1 = (
            (height, width, y0, y1, x0, x1) if axis == "row" else (width, height, x0, x1, y0, y1)
        )
        # Lines p = k + 1/2 through pixel centers; the edge meets those of [min(p0, p1), max(p0, p1)).
        with torch.no_grad():
            first = (torch.minimum(p0, p1) - 0.5).ceil().clamp(0, lines).long()
            last = (torch.maximum(p0, p1) - 0.5).ceil().clamp(0, lines).long()
            edge = torch.repeat_interleave(last - first)
            before = torch.cumsum(last - first, 0) - (last - first)
            line = first[edge] + torch.arange(len(edge), device=edge.device) - before[edge]
            along = (line + 0.5 - p0[edge]) / (p1 - p0)[edge]
            at = q0[edge] + along * (q1 - q0)[edge]
            left = (at - 0.5).floor()
            keep = ((left >= 0) & (left < others - 1)).nonzero()[:, 0]
            edge, line, left, along = edge[keep], line[keep], left[keep].long(), along[keep]
            # y points down: an edge that runs down has its face on its right, one to the right has it above.
            forward = (p1 > p0 if axis == "row" else p1 < p0)[edge]
            step, base = (1, line * width + left) if axis == "row" else (width, left * width + line)
            base = base + image[edge] * (height * width)
            near, far = base + step * forward, base + step * ~forward
            edge_depth = 1 / ((1 - along) / w0[edge] + along / w1[edge])
            ids, depths = index.reshape(-1), depth.detach().reshape(-1)
            inside = (ids[near] >= 0) & (depths[near] <= edge_depth * (1 + BEHIND))
            beyond = (ids[far] < 0) | (depths[far] > edge_depth)
            keep = (inside & beyond).nonzero()[:, 0]
            edge, line, left, near, far, forward = (t[keep] for t in (edge, line, left, near, far, forward))
            share = ((p1 - p0).square() / square)[edge]
        at = q0[edge] + (line + 0.5 - p0[edge]) / (p1[edge] - p0[edge]) * (q1[edge] - q0[edge])
        reach = torch.where(forward, left + 1.5 - at, at - left - 0.5)
        outermost = _outermost(near * 2 + forward, reach, 2 * index.numel())
        parts.append(tuple(t[outermost] for t in (near, far, reach, share)))
    return Outline(shape, *(torch.cat(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def _outermost(pair: Tensor, reach: Tensor, pairs: int) -> Tensor:
    """Indices of the crossings that reach farthest, one for each pair of pixels."""
    farthest = reach.new_full((pairs,), -1.0).scatter_reduce_(0, pair, reach, "amax")
    candidates = (reach == farthest[pair]).nonzero()[:, 0]
    chosen = torch.full((pairs,), -1, dtype=torch.int64, device=pair.device)
    chosen.scatter_reduce_(0, pair[candidates], candidates, "amax")
    return candidates[chosen[pair[candidates]] == candidates]
