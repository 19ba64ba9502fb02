"""Paint the template texture of the MakeHuman head: facerecon/data/template_makehuman.png.

    python tools/build_template.py

Everything a photo does not show falls back to this map: plain skin with lips and a hint of brows, a short-hair scalp,
eyeballs with iris and pupil looking straight ahead, teeth, tongue and the inside of the mouth. It is painted on the
mean head by position, texel by texel, and is exactly mirror-symmetric. Colours are albedo in sRGB, [0, 1].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter
from torch import Tensor

from facerecon import load_face_model
from facerecon.geometry.mesh import edges, vertex_normals
from facerecon.imaging.files import write_png
from facerecon.morphable import MorphableModel
from facerecon.render.interpolate import interpolate
from facerecon.render.rasterize import rasterize
from facerecon.render.uv import pad_islands, uv_raster

SKIN = np.array([0.80, 0.62, 0.535])
BLUSH = np.array([0.80, 0.52, 0.46])
SHADE = np.array([0.66, 0.47, 0.40])
LIPS = np.array([0.69, 0.43, 0.41])
HAIR = np.array([0.30, 0.23, 0.19])
SCLERA, SCLERA_RIM = np.array([0.81, 0.79, 0.77]), np.array([0.80, 0.62, 0.58])
IRIS_OUT, IRIS_IN, PUPIL = np.array([0.20, 0.13, 0.09]), np.array([0.42, 0.28, 0.17]), np.array([0.04, 0.035, 0.03])
MOUTH, THROAT = np.array([0.58, 0.30, 0.29]), np.array([0.24, 0.10, 0.10])
TEETH, TONGUE = np.array([0.89, 0.86, 0.79]), np.array([0.70, 0.40, 0.39])
IRIS_ANGLE, PUPIL_ANGLE = 0.49, 0.17
"""Half angles seen from the eyeball's centre (rad): a 11.5 mm iris and a 4 mm pupil on a 24 mm eyeball."""


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth step from 0 at ``low`` to 1 at ``high`` (which may be the smaller one)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(base: np.ndarray, color: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """``base`` moved towards ``color`` by ``amount`` in [0, 1]."""
    return base + (color - base) * amount[..., None]


def openness(vertices: Tensor, faces: Tensor, views: int = 48, size: int = 384) -> Tensor:
    """(V,) share of directions of its hemisphere from which a vertex is seen: small inside nostrils and folds."""
    points = vertices[0]
    normals = vertex_normals(vertices, faces)[0]
    index = torch.arange(views, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * index / views, index * np.pi * (3 - 5**0.5)
    flat = (1 - height**2).sqrt()
    directions = torch.stack([flat * turn.cos(), height, flat * turn.sin()], 1).float()
    seen, facing = torch.zeros(len(points)), torch.zeros(len(points))
    for view in directions:
        side = torch.linalg.cross(view, torch.tensor([0.0, 1.0, 0.0]), dim=0)
        side = side / side.norm()
        up = torch.linalg.cross(side, view, dim=0)
        frame = torch.stack([side, up, view])
        place = (points - points.mean(0)) @ frame.T / 2.2
        clip = torch.cat([place[:, :2], -place[:, 2:], torch.ones(len(place), 1)], 1)[None]
        face = rasterize(clip, faces, (size, size), cull=False)[0]
        depth = torch.full((size, size), 9.0)
        hit = face >= 0
        corner = -place[:, 2][faces[face[hit]]]
        depth[hit] = corner.min(1).values
        column = ((place[:, 0] + 1) / 2 * size).long().clamp(0, size - 1)
        row = ((1 - place[:, 1]) / 2 * size).long().clamp(0, size - 1)
        visible = (-place[:, 2] < depth[row, column] + 0.012).float()
        weight = (normals @ view).clamp(min=0)
        seen += weight * visible
        facing += weight
    return seen / facing.clamp(min=1e-6)


def region_share(model: MorphableModel, name: str, rounds: int) -> Tensor:
    """(V,) soft membership of vertices in a region of faces, smoothed over neighbours."""
    faces, rows = model.topology.faces, model.topology.regions[name].float()
    total = torch.zeros(model.num_vertices).index_add(0, faces.flatten(), rows.repeat_interleave(3))
    count = torch.zeros(model.num_vertices).index_add(0, faces.flatten(), torch.ones(faces.numel()))
    value = total / count.clamp(min=1)
    pairs = edges(faces)
    degree = torch.zeros(model.num_vertices).index_add(0, pairs.flatten(), torch.ones(pairs.numel())).clamp(min=1)
    for _ in range(rounds):
        near = torch.zeros(model.num_vertices).index_add(0, pairs[:, 0], value[pairs[:, 1]])
        near = near.index_add(0, pairs[:, 1], value[pairs[:, 0]])
        value = (value + near / degree) / 2
    return value


def paint(model: MorphableModel, size: int) -> np.ndarray:
    """(size, size, 3) in [0, 1]."""
    topology = model.topology
    vertices = model.mean[None]
    found = uv_raster(topology, size)
    inside = found.face_index[0] >= 0
    fields = torch.cat(
        [
            model.mean,
            openness(vertices, topology.faces)[:, None],
            region_share(model, "lips", 2)[:, None],
            region_share(model, "ears", 4)[:, None],
        ],
        1,
    )
    values = interpolate(found, fields[None], topology.faces)[0].numpy()
    x, y, z = np.abs(values[..., 0]), values[..., 1], values[..., 2]
    air, lips, ears = (values[..., 3 + k] for k in range(3))
    region = {
        name: (rows[found.face_index[0].clamp(min=0)] & inside).numpy() for name, rows in topology.regions.items()
    }
    marks = model.landmarks3d(vertices)[0].numpy()

    noise = np.random.default_rng(0).normal(size=(2, size, size))
    noise = noise + noise[:, :, ::-1]
    mottle = sum(gaussian_filter(n, s) * s * a for n, s, a in zip(noise, (1.2, 9.0), (0.012, 0.02)))
    skin = np.broadcast_to(SKIN, (size, size, 3)) * (1 + mottle[..., None])

    def blob(center: np.ndarray, radius: tuple[float, float, float]) -> np.ndarray:
        offset = np.stack([x - abs(center[0]), y - center[1], z - center[2]], -1) / np.array(radius)
        return np.exp(-(offset**2).sum(-1))

    nose, mouth, eye = marks[30], marks[[48, 54]].mean(0), marks[42:48].mean(0)
    cheek = np.array([0.42, (nose[1] + mouth[1]) / 2 + 0.1, eye[2]])
    skin = mix(skin, BLUSH, 0.45 * blob(cheek, (0.2, 0.18, 0.4)) + 0.5 * blob(nose, (0.16, 0.14, 0.25)) + 0.4 * ears)
    skin = mix(skin, SHADE, 0.30 * blob(eye + [0, -0.02, 0], (0.22, 0.14, 0.3)))
    skin = mix(
        skin, SHADE * 0.4, 0.95 * ramp(air, 0.5, 0.2) * (blob(nose + [0.07, -0.08, -0.12], (0.14, 0.13, 0.2)) > 0.3)
    )
    skin = mix(skin, SHADE, 0.6 * ramp(air, 0.6, 0.2))
    skin = mix(skin, LIPS, 0.85 * ramp(lips, 0.15, 0.75))

    brow = marks[22:27]
    across = np.clip((x - brow[0, 0]) / (brow[-1, 0] - brow[0, 0]), -0.3, 1.3)
    middle = PchipInterpolator(brow[:, 0], brow[:, 1], extrapolate=True)(
        np.clip(x, brow[0, 0] - 0.05, brow[-1, 0] + 0.05)
    )
    thick = 0.042 * (1 - 0.55 * np.clip(across, 0, 1))
    strokes = gaussian_filter(noise[0], (0.6, 2.2)) * 2.0
    hairs = np.exp(-(((y - middle + 0.012) / thick) ** 2)) * ramp(across, -0.12, 0.1) * ramp(across, 1.12, 0.85)
    hairs = hairs * (z > eye[2] - 0.35) * np.clip(0.8 + strokes, 0.35, 1.0)
    skin = mix(skin, HAIR, 0.72 * hairs)

    # The hairline: over the forehead, down before the ear, behind it to the nape.
    top, ear = nose[1] + 1.0, eye[1] - 0.12
    side = ramp(x, 0.25, 0.72)
    line = top * (1 - side) + (eye[1] + 0.18) * side
    front = ramp(y - line + 0.012 * gaussian_filter(noise[1], 3) * 12, -0.06, 0.10)
    behind = ramp(z, -0.60, -0.78) * ramp(y, ear - 0.95, ear - 0.55)
    sideburn = ramp(z, -0.42, -0.55) * ramp(y, ear - 0.02, ear + 0.12)
    hair = np.maximum.reduce([front, behind, sideburn]) * (1 - ramp(ears, 0.2, 0.6))
    grain = 1 + 0.10 * gaussian_filter(noise[0], (2.0, 0.8)) * 2.0
    skin = mix(skin, HAIR, 0.78 * hair) * (1 + (grain - 1) * hair)[..., None]

    image = np.where(region["skin"][..., None], skin, SKIN)
    image = np.where(
        region["sockets"][..., None], mix(np.broadcast_to(BLUSH, image.shape), SHADE * 0.6, ramp(air, 0.3, 0)), image
    )
    for sign in (-1, 1):
        ball = region["eyes"] & (values[..., 0] * sign > 0)
        corners = topology.faces[topology.regions["eyes"]].unique()
        center = model.mean[corners][model.mean[corners, 0] * sign > 0].mean(0).numpy()
        ray = values[..., :3] - center
        angle = np.arccos(np.clip(ray[..., 2] / np.maximum(np.linalg.norm(ray, axis=-1), 1e-9), -1, 1))
        turn = np.arctan2(ray[..., 1], ray[..., 0] * sign)
        white = mix(np.broadcast_to(SCLERA, image.shape), SCLERA_RIM, ramp(angle, 0.85, 1.5))
        rays = 0.12 * (np.sin(turn * 23) * np.sin(turn * 41 + 1.3))
        iris = (
            mix(np.broadcast_to(IRIS_IN, image.shape), IRIS_OUT, ramp(angle / IRIS_ANGLE, 0.45, 1.0))
            * (1 + rays)[..., None]
        )
        eyeball = mix(white, iris, ramp(angle, IRIS_ANGLE + 0.02, IRIS_ANGLE - 0.03))
        eyeball = mix(eyeball, PUPIL, ramp(angle, PUPIL_ANGLE + 0.02, PUPIL_ANGLE - 0.02))
        image = np.where(ball[..., None], eyeball, image)
    deep = ramp(z, mouth[2] + 0.05, mouth[2] - 0.45)
    image = np.where(region["mouth"][..., None], mix(np.broadcast_to(MOUTH, image.shape), THROAT, deep), image)
    image = np.where(
        region["teeth"][..., None],
        mix(np.broadcast_to(TEETH, image.shape), THROAT, 0.9 * ramp(z, mouth[2] + 0.03, mouth[2] - 0.22)),
        image,
    )
    image = np.where(region["tongue"][..., None], mix(np.broadcast_to(TONGUE, image.shape), THROAT, deep), image)
    image = torch.from_numpy(np.clip(image, 0, 1)).float().permute(2, 0, 1)[None]
    image = pad_islands((image + image.flip(-1)) / 2, topology, None)
    return ((image + image.flip(-1)) / 2)[0].permute(1, 2, 0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    data = Path(__file__).resolve().parents[1] / "facerecon" / "data"
    parser.add_argument("--out", type=Path, default=data / "template_makehuman.png")
    arguments = parser.parse_args()
    image = paint(load_face_model("makehuman"), arguments.size)
    write_png(arguments.out, torch.from_numpy(image).permute(2, 0, 1))
    print(arguments.out)


if __name__ == "__main__":
    main()
