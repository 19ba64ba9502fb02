"""Names of places on a face that every head model shares: 68 landmarks, their mirror, and regions of faces.

The 68 points are iBUG's: 0-16 jaw contour, 17-26 brows, 27-35 nose, 36-47 eyes, 48-59 outer and 60-67 inner lips;
the person's right comes first, which is the left of the image.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

__all__ = [
    "JAW_OUTWARD",
    "LANDMARK_MIRROR",
    "REGIONS",
    "in_polygon",
    "makehuman_regions",
    "mirror_vertices",
]

LANDMARK_MIRROR = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *(27, 28, 29, 30),
    *(35, 34, 33, 32, 31),
    *(45, 44, 43, 42, 47, 46),
    *(39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48),
    *(59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60),
    *(67, 66, 65),
)
"""The landmark on the other side of each landmark."""

_JAW_HALF = (
    (-1.0, 0.0),
    (-1.0, 0.0),
    (-1.0, 0.0),
    (-1.0, -0.12),
    (-0.92, -0.40),
    (-0.75, -0.66),
    (-0.5, -0.87),
    (-0.25, -0.97),
    (0.0, -1.0),
)
JAW_OUTWARD = (*_JAW_HALF, *((-x, y) for x, y in _JAW_HALF[-2::-1]))
"""Outward direction of the jaw contour at points 0-16 in an upright image (x right, y up), not normalized."""

REGIONS = {
    "face": "what a fit renders: skin from hairline to under the chin, ear to ear, with lips, lids and eyeballs",
    "skin": "all skin of the head: face, ears, scalp, neck",
    "eyes": "eyeballs",
    "sockets": "inside of the lids, behind the eyeballs",
    "mouth": "inside of the mouth: bag, teeth and tongue",
    "teeth": "upper and lower teeth",
    "tongue": "tongue",
    "lips": "vermilion of both lips",
    "lids": "upper and lower eyelids",
    "nose": "nose, as compared in millimeters (REALY)",
    "mouth_area": "lips and the skin around them, as compared in millimeters (REALY's mouth)",
    "forehead": "brows and forehead, as compared in millimeters (REALY)",
    "cheek": "both cheeks, as compared in millimeters (REALY)",
    "brows": "the hairy part of the brows",
    "ears": "both ears",
    "scalp": "where hair grows on the head",
    "neck": "neck and under-jaw",
}
"""Regions of triangles and what they mean; a model has those that its source defines."""


def makehuman_regions(
    centers: np.ndarray, part: np.ndarray, parts: tuple[str, ...], lips: np.ndarray, lids: np.ndarray, ears: np.ndarray
) -> dict[str, np.ndarray]:
    """Regions of the MakeHuman head from its template's geometry and the masks that come with it: {name: (F,) bool}.

    Args:
        centers: (F, 3) triangle centers on the template (base-mesh frame, 0.1 m).
        part: (F,) index into ``parts``.
        lips, lids, ears: (F,) in [0, 1], the source's own masks.
    """
    kind = {name: part == index for index, name in enumerate(parts)}
    skin = kind["skin"]
    x, y, z = np.abs(centers[:, 0]), centers[:, 1], centers[:, 2]
    ear = skin & (ears > 0.5)
    under_jaw = y < np.where(z > 1.05, 6.2, np.minimum(6.2 + 0.95 * (1.05 - z), 6.74))
    neck = skin & ~ear & (under_jaw & (z < 1.36) | (y < 6.1) | ((z < 0.62) & (y < 6.72 - 0.45 * (0.62 - z))))
    hairline = 7.98 - 0.75 * np.maximum(x - 0.28, 0) ** 1.5
    face_skin = skin & ~ear & ~neck & (y < hairline) & (z > 0.64)
    eyes = kind["eye_left"] | kind["eye_right"]
    teeth = kind["teeth_upper"] | kind["teeth_lower"]
    lip = skin & (lips > 0.5)
    nose_half_width = np.interp(y, [6.82, 6.95, 7.05, 7.32], [0.235, 0.235, 0.16, 0.10])
    nose = face_skin & ~lip & (y > 6.81) & (y < 7.33) & (x < nose_half_width) & (z > 1.38)
    mouth_area = face_skin & (y > 6.42) & (y < 6.81) & (x < 0.36) & (z > 1.2)
    brow_line = np.interp(x, [0.1, 0.35, 0.55], [7.455, 7.49, 7.41])
    forehead = face_skin & (y > np.interp(x, [0.0, 0.12, 0.35, 0.6], [7.36, 7.40, 7.43, 7.36])) & (z > 0.95)
    eye_area = (y > 7.16) & (y <= 7.45) & (x < 0.52)
    cheek = face_skin & ~nose & ~mouth_area & ~forehead & ~eye_area & (y > 6.5) & (y < 7.25) & (z > 0.85) & (x > 0.14)
    return {
        "face": face_skin | eyes,
        "skin": skin,
        "eyes": eyes,
        "sockets": kind["socket_left"] | kind["socket_right"],
        "mouth": kind["mouth"] | teeth | kind["tongue"],
        "teeth": teeth,
        "tongue": kind["tongue"],
        "lips": lip,
        "lids": skin & (lids > 0.5),
        "nose": nose,
        "mouth_area": mouth_area,
        "forehead": forehead,
        "cheek": cheek,
        "brows": face_skin & (np.abs(y - brow_line) < 0.05) & (x > 0.1) & (x < 0.56),
        "ears": ear,
        "scalp": skin & ~ear & ~neck & ~face_skin,
        "neck": neck,
    }


def mirror_vertices(points: np.ndarray) -> np.ndarray:
    """(V,) the nearest vertex to each mirrored one; the few without a mutual partner are paired among themselves."""
    _, nearest = cKDTree(points).query(points * [-1, 1, 1])
    alone = np.flatnonzero(nearest[nearest] != np.arange(len(points)))
    open_rows = list(alone)
    while open_rows:
        row = open_rows.pop(0)
        distance = np.linalg.norm(points[[row, *open_rows]] - points[row] * [-1, 1, 1], axis=1)
        pick = int(distance.argmin())
        partner = row if pick == 0 else open_rows.pop(pick - 1)
        nearest[row], nearest[partner] = partner, row
    return nearest


def in_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Whether points lie in a closed polygon (even-odd rule)."""
    inside = np.zeros(len(x), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside
