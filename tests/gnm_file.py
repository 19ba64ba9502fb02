"""Files laid out as GNM Head v3's, of the full official dimensions: the real ones were not at hand.

The mesh is the makehuman head with coarser eye sockets and small octahedra in its eyeballs, its vertices renumbered;
the mean is another of its heads, bent a little, in meters and in a frame of its own. Identity is makehuman's, the
expression components mix its units with smooth random fields; eyeballs rest, as GNM's do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facerecon.geometry.mesh import face_components
from facerecon.morphable import MorphableModel
from facerecon.morphable.gnm import NUM_TRIANGLES, NUM_VERTICES

OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
SIDES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])


def smooth_fields(points: np.ndarray, count: int, rng: np.random.Generator, length: float = 0.5) -> np.ndarray:
    """(count, V, 3) random fields of unit variance that change over ``length``."""
    waves = np.cos(points @ rng.normal(0, 1 / length, (3, 64)) + rng.uniform(0, 2 * np.pi, 64)) * np.sqrt(2 / 64)
    return (waves @ rng.normal(size=(count, 3, 64)).transpose(0, 2, 1)).astype(np.float32)


def thinned(
    faces: np.ndarray, uvs: np.ndarray, candidates: np.ndarray, twin: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge ``number`` vertices into neighbors, half of them ``candidates``, half their twins: faces, uvs, and which
    faces are left; each merger takes two."""
    faces, uvs, alive = faces.copy(), uvs.copy(), np.ones(len(faces), dtype=bool)
    of: dict[int, set[int]] = {}
    for row, corners in enumerate(faces.tolist()):
        for vertex in corners:
            of.setdefault(vertex, set()).add(row)

    def around(vertex: int) -> set[int]:
        return {v for row in of[vertex] for v in faces[row].tolist()} - {vertex}

    def merge(vertex: int, into: int) -> None:
        for row in list(of[vertex]):
            if into in faces[row]:
                alive[row] = False
                for other in faces[row].tolist():
                    of[other].discard(row)
            else:
                faces[row, faces[row] == vertex] = into
                of[into].add(row)
        del of[vertex]

    left = number // 2
    while left:
        before = left
        for vertex in candidates.tolist():
            if not left or vertex not in of or len(of[vertex]) != len(around(vertex)):  # gone, or at a rim
                continue
            goals = [v for v in around(vertex) if len(around(v) & around(vertex)) == 2]
            if goals:
                goal = min(goals, key=lambda v: len(of[v]))
                merge(vertex, goal)
                merge(int(twin[vertex]), int(twin[goal]))
                left -= 1
        assert left < before
    return faces, uvs, alive


def write_gnm(head: MorphableModel, folder: Path) -> np.ndarray:
    """Write ``gnm_head.npz`` and ``head_sparse_68.txt``.

    Args:
        head: the makehuman head with 170 identity components or more.
        folder: where to.

    Returns:
        (17821,) the makehuman vertex of each vertex; -1 in the eyeballs' insides.
    """
    rng = np.random.default_rng(3)
    topology, count = head.topology, head.num_vertices
    faces, regions = topology.faces.numpy(), {name: rows.numpy() for name, rows in topology.regions.items()}

    def vertices_of(rows: np.ndarray) -> np.ndarray:
        flags = np.zeros(count, dtype=bool)
        flags[faces[rows]] = True
        return flags

    # thin out the sockets, which nobody sees, the same on both sides; what is one face too many leaves a hole there
    only = vertices_of(regions["sockets"]) & ~vertices_of(~regions["sockets"])
    mean, twin = head.mean.double().numpy(), topology.mirror.numpy()
    uvs = topology.uvs.numpy()[topology.uv_faces.numpy()]
    faces, uvs, alive = thinned(faces, uvs, np.flatnonzero(only & (mean[:, 0] < 0)), twin, count + 12 - NUM_VERTICES)
    cut = only & ~vertices_of(alive)
    deep = np.flatnonzero(alive & regions["sockets"])
    alive[deep[: alive.sum() + 2 * len(SIDES) - NUM_TRIANGLES]] = False
    keep_faces = np.flatnonzero(alive)

    # renumber
    order = rng.permutation(NUM_VERTICES)
    origin = np.concatenate([np.flatnonzero(~cut), np.full(2 * len(OCTAHEDRON), -1)])[order]
    place = np.full(count, -1)
    place[origin[origin >= 0]] = np.flatnonzero(origin >= 0)
    inner = np.argsort(order)[-2 * len(OCTAHEDRON) :].reshape(2, -1)  # of the right, then the left eye
    triangles = np.concatenate([place[faces[keep_faces]], inner[0][SIDES], inner[1][SIDES]])

    def arrange(values: np.ndarray) -> np.ndarray:
        """(..., V', 3) on makehuman -> (..., V, 3); 0 inside the eyeballs."""
        return np.where((origin >= 0)[:, None], values[..., np.maximum(origin, 0), :], 0)

    # parts and groups
    eyes = vertices_of(regions["eyes"])
    label = face_components(faces, count)
    pieces = np.unique(label[regions["teeth"]])
    height = {piece: mean[faces[label == piece]].mean((0, 1))[1] for piece in pieces}
    upper = np.isin(label, [p for p in pieces if height[p] > np.median(list(height.values()))])
    groups = {
        "left_eye": eyes & (mean[:, 0] > 0),
        "right_eye": eyes & (mean[:, 0] < 0),
        "upper_teeth_and_gums": vertices_of(regions["teeth"] & upper),
        "lower_teeth_and_gums": vertices_of(regions["teeth"] & ~upper),
        "tongue": vertices_of(regions["tongue"]),
    }
    groups["skin"] = ~np.logical_or.reduce(list(groups.values()))
    components = tuple(groups)
    bag = vertices_of(regions["mouth"] & ~regions["teeth"] & ~regions["tongue"])
    groups |= {
        "mouth_sock": bag & ~vertices_of(regions["skin"]),
        "eye_sockets": only,
        "upper_lip": vertices_of(regions["lips"]) & (mean[:, 1] > head.landmarks3d(head.mean[None])[0, 62, 1].item()),
        "lower_lip": vertices_of(regions["lips"]),
        "ears": vertices_of(regions["ears"]),
        "hockey_mask": vertices_of(regions["face"] & ~regions["eyes"]),
        "teeth": vertices_of(regions["teeth"]),
        "left": mean[:, 0] > 0,
    }
    weights = {name: (origin >= 0) & rows[np.maximum(origin, 0)] for name, rows in groups.items()}
    weights["eye_interiors"] = np.zeros(NUM_VERTICES, dtype=bool)
    for side, rows in zip(("right_eye", "left_eye"), inner):
        weights["eye_interiors"][rows] = weights[side][rows] = True

    # shapes, in 0.1 m
    sample = 0.5 * rng.normal(size=head.num_identity)
    bent = mean + np.einsum("i,ivc->vc", sample, head.identity_basis.double().numpy())
    template = arrange(bent + 0.01 * smooth_fields(mean, 1, rng)[0])
    for side, rows in zip(("right_eye", "left_eye"), inner):
        own = weights[side] & (origin >= 0)
        template[rows] = template[own].mean(0) + 0.03 * OCTAHEDRON
    units = head.expression_basis.numpy()
    mixing = np.linalg.qr(rng.normal(size=(len(units), len(units))))[0]
    fields = 0.005 * smooth_fields(mean, 383 - len(units), rng)
    expressions = arrange(np.concatenate([0.5 * np.einsum("ku,uvc->kvc", mixing, units), fields]))
    expressions[:, weights["left_eye"] | weights["right_eye"]] = 0
    identity = np.zeros((253, NUM_VERTICES, 3), np.float32)
    identity[:170] = arrange(head.identity_basis[:170].numpy())
    identity[170:173, weights["left_eye"] | weights["right_eye"]] = 0.01
    identity[173:, weights["teeth"]] = 0.02

    # each part's chart fills a square of its own, one over the other
    uvs = np.concatenate([uvs[keep_faces], np.tile([[0.5, 0.5], [0.6, 0.5], [0.5, 0.6]], (2 * len(SIDES), 1, 1))])
    for name in components:
        rows = np.flatnonzero(weights[name][triangles].all(1))[: -len(SIDES) if name.endswith("eye") else None]
        low, high = uvs[rows].min((0, 1)), uvs[rows].max((0, 1))
        uvs[rows] = (uvs[rows] - low) / (high - low)

    mirror = np.empty(NUM_VERTICES, dtype=np.int64)
    outer = origin >= 0
    mirror[outer] = place[topology.mirror.numpy()[origin[outer]]]
    mirror[inner[0]], mirror[inner[1]] = inner[1], inner[0]
    np.savez(
        folder / "gnm_head.npz",
        version="3.0",
        variant="head",
        template_vertex_positions=(template / 10 + [0.0, 0.21, 0.05]).astype(np.float32),
        vertex_identity_basis=identity / 10,
        identity_names=[f"{n}_{i:03d}" for n, k in (("head", 170), ("eyes", 3), ("teeth", 80)) for i in range(k)],
        expression_basis=(expressions / 10).astype(np.float32),
        expression_names=[f"lower_face_region_{i:03d}" for i in range(383)],
        triangles=triangles.astype(np.int32),
        triangle_uvs=uvs.astype(np.float32),
        mirror_indices=mirror.astype(np.int32),
        mesh_component_names=list(components),
        vertex_group_names=list(weights),
        vertex_groups=np.stack(list(weights.values())).astype(np.float32),
    )
    corners = place[faces[topology.landmark_faces[:, 0].numpy()]]
    shares = topology.landmark_barycentric[:, 0].numpy()
    lines = [" ".join(f"{v} {w:.6f}" for v, w in zip(*row)) for row in zip(corners, shares)]
    (folder / "head_sparse_68.txt").write_text("\n".join(lines) + "\n")
    return origin
