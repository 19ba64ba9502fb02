"""Eyes of a head: where they are, eyeballs for heads that have sockets only, and how an eye looks.

The makehuman and ICT heads have eyeballs, which follow identity and gaze; HiFi3D++ has sockets. An eyeball's picture is
drawn on an azimuthal map around its axis: the distance from the middle is the angle from the axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerecon.geometry.alignment import fit_sphere
from facerecon.geometry.surface import Surface
from facerecon.modes import kept
from facerecon.types import MeshTopology

__all__ = [
    "IRISES",
    "Eye",
    "Eyeball",
    "eye_color",
    "eye_map",
    "eye_uvs",
    "eyeball",
    "find_eyes",
    "iris_color",
    "landmark_points",
    "smooth_step",
    "socket_sphere",
    "vertices_of",
]

MAP_ANGLE = math.radians(95)
"""Angle from an eyeball's axis at the middle of the sides of its map."""

IRIS_OF_OPENING = 0.2
"""Radius of the iris over the width of the opening between the lids: 11.7 mm across, of 29 mm."""

IRISES = {
    "dark": (0.14, 0.085, 0.06),
    "brown": (0.29, 0.17, 0.10),
    "hazel": (0.38, 0.29, 0.17),
    "green": (0.35, 0.38, 0.27),
    "blue": (0.34, 0.43, 0.52),
    "gray": (0.42, 0.45, 0.47),
}
"""Mean sRGB colors of irises, in [0, 1]."""

SCLERA = (0.75, 0.715, 0.69)
PUPIL = 0.36
"""Radius of the pupil over that of the iris."""

GAZE = {"Up": (-20.0, 0.0), "Down": (25.0, 0.0), "Out": (0.0, 28.0), "In": (0.0, -28.0)}
"""Degrees about x and y by which ARKit's units eyeLook... turn the left eye at full strength."""


@dataclass(frozen=True)
class Eye:
    """One eye of a head.

    Args:
        left: the person's left, at x > 0.
        rows: (N,) its faces.
        bulges: an eyeball, a piece of its own; else a socket, sewn to the skin.
        center: (3,), radius: of the sphere through its vertices.
        opening: (2,) x and y of the middle between the lids.
        width: of the opening.
        lids: (6, 3) its landmarks.
    """

    left: bool
    rows: NDArray
    bulges: bool
    center: NDArray
    radius: float
    opening: NDArray
    width: float
    lids: NDArray

    @property
    def iris_angle(self) -> float:
        """Angle (radians) between the axis and the rim of the iris."""
        return math.asin(min(IRIS_OF_OPENING * self.width / self.radius, 0.9))


def landmark_points(vertices: NDArray, topology: MeshTopology) -> NDArray:
    """(68, 3) first candidates of the landmarks on vertices (V, 3)."""
    corners = vertices[topology.faces.cpu().numpy()[topology.landmark_faces[:, 0].cpu().numpy()]]
    return np.einsum("nkc,nk->nc", corners, topology.landmark_barycentric[:, 0].cpu().double().numpy())


def vertices_of(faces: NDArray, count: int) -> NDArray:
    """(V,) bool, which of ``count`` vertices some of these faces have."""
    used = np.zeros(count, dtype=bool)
    used[faces] = True
    return used


def find_eyes(vertices: NDArray, topology: MeshTopology) -> list[Eye]:
    """The eyes of a head: one at x < 0, one at x > 0; none where the topology names no region "eyes".

    Args:
        vertices: (V, 3) float64, unposed.
        topology: with 68 landmarks.
    """
    if "eyes" not in topology.regions:
        return []
    faces = topology.faces.cpu().numpy()
    points = landmark_points(vertices, topology)
    in_eyes = topology.regions["eyes"].cpu().numpy()
    every = in_eyes.nonzero()[0]
    side = vertices[faces[every]].mean(1)[:, 0] > points[27:31, 0].mean()
    sewn = vertices_of(faces[~in_eyes], len(vertices))  # to the skin, as a socket is
    eyes = []
    for left in (False, True):
        rows = every[side == left]
        if not len(rows):
            continue
        used = vertices[np.unique(faces[rows])]
        bulges = not sewn[faces[rows]].any()
        center, radius = fit_sphere(used)
        lids = points[42:48] if left else points[36:42]
        eyes.append(Eye(left, rows, bulges, center, radius, lids[:, :2].mean(0), float(np.ptp(lids[:, 0])), lids))
    return eyes


def socket_sphere(inside: NDArray, on_skin: NDArray, lids: NDArray) -> tuple[NDArray, float]:
    """Center (3,) and radius of the eyeball that fits behind the lids of a socket.

    Args:
        inside: (N, 3) vertices of the socket.
        on_skin: (N,) bool, which of them lie on the rim, shared with the skin.
        lids: (6, 3) landmarks of the lids.
    """
    middle, width = lids.mean(0), np.ptp(lids[:, 0])
    radius = 0.48 * width
    reach = np.linalg.norm(inside[:, :2] - middle[:2], axis=1)
    front = np.sqrt(np.maximum(radius**2 - reach**2, 0))
    rim = on_skin & (reach < 0.9 * radius)
    depth = (inside[:, 2] - front)[rim].min() - 0.005 if rim.any() else middle[2] - radius
    return np.array([middle[0], middle[1], depth]), float(radius)


# -- eyeballs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eyeball:
    """A sphere in a socket.

    Args:
        vertices: (N, 3).
        faces: (M, 3), counter-clockwise from outside.
        eye: what it is made for, with the sphere's own center and radius.
    """

    vertices: NDArray
    faces: NDArray
    eye: Eye

    def turned(self, unit: str) -> NDArray:
        """(N, 3) displacements of one of ARKit's units, at full strength; 0 for one that does not move this eye."""
        name, side = unit.removeprefix("eyeLook"), "Left" if self.eye.left else "Right"
        angles = GAZE.get(name.removesuffix(side)) if unit.startswith("eyeLook") and name.endswith(side) else None
        if angles is None:
            return np.zeros_like(self.vertices)
        x, y = math.radians(angles[0]), math.radians(angles[1] * (1 if self.eye.left else -1))
        about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
        about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
        offset = self.vertices - self.eye.center
        return offset @ (about_y @ about_x).T - offset


def eyeball(vertices: NDArray, topology: MeshTopology, eye: Eye, rings: int = 24, segments: int = 32) -> Eyeball:
    """An eyeball in a socket: a sphere whose pole is the pupil, with rings dense at the front.

    Args:
        vertices, topology: (V, 3) float64 of the head, and its mesh.
        eye: of :func:`find_eyes`.
        rings, segments: of the mesh.
    """
    faces = topology.faces.cpu().numpy()
    inside = np.unique(faces[eye.rows])
    on_skin = vertices_of(faces[~topology.regions["eyes"].cpu().numpy()], len(vertices))
    center, radius = socket_sphere(vertices[inside], on_skin[inside], eye.lids)
    polar = math.pi * (np.arange(1, rings) / rings) ** 1.4
    around = 2 * math.pi * np.arange(segments) / segments
    ring = np.stack(
        [np.sin(polar)[:, None] * np.cos(around), np.sin(polar)[:, None] * np.sin(around),
         np.repeat(np.cos(polar)[:, None], segments, 1)], -1,
    ).reshape(-1, 3)  # fmt: skip
    points = np.concatenate([[[0.0, 0.0, 1.0]], ring, [[0.0, 0.0, -1.0]]])
    triangles = []
    for s in range(segments):
        t = (s + 1) % segments
        triangles.append([0, 1 + s, 1 + t])
        for r in range(rings - 2):
            a, b = 1 + r * segments, 1 + (r + 1) * segments
            triangles += [[a + s, b + s, b + t], [a + s, b + t, a + t]]
        last = 1 + (rings - 2) * segments
        triangles.append([last + s, len(points) - 1, last + t])
    sphere = replace(eye, bulges=False, center=center, radius=radius)
    return Eyeball(center + radius * points, np.array(triangles, dtype=np.int64), sphere)


def eye_uvs(vertices: NDArray, center: NDArray) -> NDArray:
    """(N, 2) places on the azimuthal map of points (N, 3) on an eyeball that looks at +z; what lies behind is taken to
    the map's rim."""
    offset = vertices - center
    across = np.linalg.norm(offset[:, :2], axis=1)
    angle = np.arctan2(across, offset[:, 2])
    share = np.minimum(0.5 * angle / MAP_ANGLE, 0.499) / np.maximum(across, 1e-12)
    return 0.5 + offset[:, :2] * share[:, None]


# -- looks -------------------------------------------------------------------------------------------------


def smooth_step(value: NDArray, low: float, high: float) -> NDArray:
    """From 0 at ``low`` to 1 at ``high``."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def eye_color(
    offset: NDArray,
    iris_angle: float,
    iris: tuple[float, float, float],
    sclera: tuple[float, float, float] = SCLERA,
) -> NDArray:
    """(N, 3) sRGB color of an eyeball in [0, 1].

    Pupil, iris with fibers and a dark rim, and a sclera that reddens to the corners and lies in the shade of the lids;
    no highlight, which is the light's.

    Args:
        offset: (N, 2) angle from the axis times (cos, sin) of the direction around it, radians; y up.
        iris_angle: of the rim of the iris.
        iris: its mean color.
        sclera: that of the white.
    """
    angle = np.linalg.norm(offset, axis=1)
    around = np.arctan2(offset[:, 1], offset[:, 0])
    r = angle / iris_angle
    rng = np.random.default_rng(7)
    fibers = np.zeros_like(r)
    for waves in (9, 14, 23, 37, 53, 71):
        phase, bend = rng.uniform(0, 2 * math.pi, 2)
        fibers += np.cos(waves * around + phase + 0.9 * np.sin(3 * around + bend) + 2.5 * r * np.cos(bend)) / 6
    ruff = np.exp(-(((r - PUPIL - 0.13 - 0.03 * fibers) / 0.09) ** 2))  # the collarette
    shade = 0.94 + 0.26 * fibers * smooth_step(r, PUPIL, 0.6) + 0.22 * ruff
    shade *= 1 - 0.62 * smooth_step(r, 0.80, 1.02)  # limbal ring
    shade *= 1 - 0.28 * smooth_step(offset[:, 1] / iris_angle, -0.1, 1.0)  # the upper lid's shade
    warm = np.array([1.10, 0.98, 0.82])
    colors = np.array(iris) * (1 + ruff[:, None] * (warm - 1)) * shade[:, None]
    colors *= smooth_step(r, PUPIL - 0.06, PUPIL + 0.05)[:, None] * 0.97 + 0.03

    side = np.abs(offset[:, 0])
    veins = np.zeros_like(r)
    for waves in (17, 29, 47):
        phase = rng.uniform(0, 2 * math.pi)
        line = np.abs(np.sin(waves * 0.5 * around + phase + 1.3 * np.sin(9 * angle + phase)))
        veins += np.exp(-((line / 0.10) ** 2))
    red = 0.10 * smooth_step(side, 0.45, 1.2) + 0.025 * veins * smooth_step(side, iris_angle * 1.2, 1.1)
    white = np.array(sclera) * (1 - red[:, None] * np.array([0.35, 1.0, 0.9]))
    lids = smooth_step(offset[:, 1], -0.1, 0.55) * 0.5 + smooth_step(-offset[:, 1], 0.25, 0.75) * 0.22
    white *= np.maximum(1 - lids - 0.32 * smooth_step(side, 0.35, 1.15), 0.2)[:, None]
    share = smooth_step(r, 0.93, 1.09)[:, None]
    return np.clip(colors * (1 - share) + white * share, 0, 1)


@kept(4)
def eye_map(
    iris_angle: float,
    iris: tuple[float, float, float] = IRISES["brown"],
    sclera: tuple[float, float, float] = SCLERA,
    size: int = 512,
) -> Tensor:
    """The azimuthal map of an eye: (1, 3, S, S) in [0, 1], for :func:`eye_uvs`. Not to be changed in place."""
    places = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(places, -places)
    offset = np.stack([x.ravel(), y.ravel()], 1) * MAP_ANGLE
    colors = eye_color(offset, iris_angle, iris, sclera).reshape(size, size, 3)
    return torch.from_numpy(colors).float().permute(2, 0, 1)[None]


def iris_color(
    texture: Tensor, vertices: NDArray, topology: MeshTopology, eyes: list[Eye]
) -> tuple[float, float, float]:
    """The mix of natural irises nearest to what a texture shows on a head's eyeballs, sRGB; brown if it has none.

    Args:
        texture: (1, 3, S, S).
        vertices: (V, 3) float64, unposed.
        topology: of the head.
        eyes: of :func:`find_eyes`.
    """
    colors = []
    for eye in eyes:
        if not eye.bulges:
            continue
        # the lower half, between pupil and rim: lashes shade the upper one, and highlights lie there
        r, around = np.meshgrid(np.linspace(0.5, 0.85, 8), np.radians(np.linspace(-170, -10, 41)))
        angle = r.ravel() * eye.iris_angle
        direction = np.stack([np.sin(angle) * np.cos(around.ravel()), np.sin(angle) * np.sin(around.ravel()),
                              np.cos(angle)], 1)  # fmt: skip
        surface = Surface(vertices, topology.faces.cpu().numpy()[eye.rows])
        face, weights, _, _ = surface.locate(eye.center + eye.radius * direction)
        corners = topology.uvs.cpu().double().numpy()[topology.uv_faces.cpu().numpy()[eye.rows[face]]]
        uv = np.einsum("nkc,nk->nc", corners, weights)
        size = texture.shape[-1]
        column, row = np.clip((uv * [1, -1] + [0, 1]) * size, 0, size - 1).astype(np.int64).T
        colors.append(texture[0, :, row, column].T.double().cpu().numpy())
    if not colors:
        return IRISES["brown"]
    measured = np.maximum(np.median(np.concatenate(colors), 0), 1e-3)
    palette = np.array(list(IRISES.values()))
    # hue and saturation tell more than brightness, which the shade of the lids changes
    chroma = palette / palette.sum(1, keepdims=True) - measured / measured.sum()
    brightness = np.log(palette.sum(1) / measured.sum())
    weights = np.exp(-(chroma**2).sum(1) / 0.055**2 - brightness**2 / 0.8**2)
    mixed = (weights[:, None] * palette).sum(0) / max(weights.sum(), 1e-12)
    mixed = mixed * np.sqrt(np.clip(1.2 * measured.sum() / max(mixed.sum(), 1e-9), 0.6, 1.5))
    return tuple(float(x) for x in (mixed if weights.sum() > 1e-9 else palette[1]))
