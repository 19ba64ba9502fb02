"""Build the template texture T_bar of the MakeHuman head (Sec. 3.1.3): facerecon/data/template_makehuman.png.

    python tools/build_template.py VIEWS        (folder with NAME_front.jpg, NAME_left.jpg, NAME_right.jpg; 4 s a face)
    python -m facerecon.assets seal             (writes its checksum)

Everything that views do not show falls back to this map. The face is the robust symmetric mean of a first pass: views
of many people are extracted in even light, divided by each one's skin color, and the weighted median over people and
both sides is taken. Around it, smooth skin without hair, ears, eyeballs, teeth, tongue and the inside of the mouth are
painted on the mean head by position, and joined as any map is completed. Exactly mirror-symmetric; albedo in sRGB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter
from torch import Tensor
from tqdm import tqdm

from facerecon import load_face_model
from facerecon.dataset.complete import CompleteSettings, complete, load_template
from facerecon.dataset.extract import Extraction, ExtractSettings, extract
from facerecon.dataset.layout import FaceLayout, face_layout, landmark_texels
from facerecon.geometry.lighting import sh_basis
from facerecon.geometry.mesh import edges, vertex_normals
from facerecon.imaging import masks
from facerecon.imaging.files import read_image, write_png
from facerecon.morphable import MorphableModel
from facerecon.render.interpolate import interpolate
from facerecon.render.rasterize import rasterize
from facerecon.render.uv import pad_islands, uv_raster

SKIN = np.array([0.80, 0.62, 0.535])
BLUSH = np.array([0.80, 0.52, 0.46])
SHADE = np.array([0.66, 0.47, 0.40])
LIPS = np.array([0.69, 0.43, 0.41])
SCLERA, SCLERA_RIM = np.array([0.81, 0.79, 0.77]), np.array([0.80, 0.62, 0.58])
IRIS_OUT, IRIS_IN, PUPIL = np.array([0.20, 0.13, 0.09]), np.array([0.42, 0.28, 0.17]), np.array([0.04, 0.035, 0.03])
MOUTH, THROAT = np.array([0.58, 0.30, 0.29]), np.array([0.24, 0.10, 0.10])
TEETH, TONGUE = np.array([0.89, 0.86, 0.79]), np.array([0.70, 0.40, 0.39])
LASHES, LIP_LINE = 0.3, 0.4
"""How dark the rims of the lids are, and where the lips meet."""
SUPPORT, LID_SUPPORT = 0.4, 0.15
"""Share of the faces that must show a texel of the mean; lids are seldom seen."""
IRIS_ANGLE, PUPIL_ANGLE = 0.49, 0.17
"""Half angles seen from the eyeball's center (rad): a 11.5 mm iris and a 4 mm pupil on a 24 mm eyeball."""


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
        frame = torch.stack([side, torch.linalg.cross(side, view, dim=0), view])
        place = (points - points.mean(0)) @ frame.T / 2.2
        clip = torch.cat([place[:, :2], -place[:, 2:], torch.ones(len(place), 1)], 1)[None]
        face = rasterize(clip, faces, (size, size), cull=False)[0]
        depth = torch.full((size, size), 9.0)
        hit = face >= 0
        depth[hit] = (-place[:, 2][faces[face[hit]]]).min(1).values
        column = ((place[:, 0] + 1) / 2 * size).long().clamp(0, size - 1)
        row = ((1 - place[:, 1]) / 2 * size).long().clamp(0, size - 1)
        visible = (-place[:, 2] < depth[row, column] + 0.012).float()
        weight = (normals @ view).clamp(min=0)
        seen += weight * visible
        facing += weight
    return seen / facing.clamp(min=1e-6)


def region_share(model: MorphableModel, name: str, rounds: int) -> Tensor:
    """(V,) soft membership of vertices in a region of faces, smoothed over neighbors."""
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


def paint(model: MorphableModel, size: int) -> Tensor:
    """(1, 3, size, size) in [0, 1]."""
    topology = model.topology
    vertices = model.mean[None]
    found = uv_raster(topology, size)
    inside = found.face_index[0] >= 0
    lips, ears = region_share(model, "lips", 2) + region_share(model, "mouth", 0), region_share(model, "ears", 4)
    fields = torch.stack([*model.mean.T, openness(vertices, topology.faces), lips, ears], 1)
    values = interpolate(found, fields[None], topology.faces)[0].numpy()
    x, y, z = np.abs(values[..., 0]), values[..., 1], values[..., 2]
    air, lips, ears = (values[..., 3 + k] for k in range(3))
    region = {
        name: (rows[found.face_index[0].clamp(min=0)] & inside).numpy() for name, rows in topology.regions.items()
    }
    marks = model.landmarks3d(vertices)[0].numpy()

    noise = np.random.default_rng(0).normal(size=(2, size, size))
    noise = noise + noise[:, :, ::-1]
    mottle = sum(gaussian_filter(n, s) * s * a for n, s, a in zip(noise, (1.2, 9.0), (0.003, 0.004)))
    skin = np.broadcast_to(SKIN, (size, size, 3)) * (1 + mottle[..., None])

    def blob(center: np.ndarray, radius: tuple[float, float, float]) -> np.ndarray:
        offset = np.stack([x - abs(center[0]), y - center[1], z - center[2]], -1) / np.array(radius)
        return np.exp(-(offset**2).sum(-1))

    nose, mouth, eye = marks[30], marks[[48, 54]].mean(0), marks[42:48].mean(0)
    cheek = np.array([0.42, (nose[1] + mouth[1]) / 2 + 0.1, eye[2]])
    skin = mix(skin, BLUSH, 0.45 * blob(cheek, (0.2, 0.18, 0.4)) + 0.5 * blob(nose, (0.16, 0.14, 0.25)) + 0.12 * ears)
    skin = mix(skin, SHADE, 0.15 * blob(eye + [0, -0.02, 0], (0.22, 0.14, 0.3)))
    layout = face_layout(model, size)
    nostril = masks.erode(layout.corrected * layout.nose_base, 0.6 * layout.unit)[0, 0].numpy()
    skin = mix(skin, SHADE * 0.45, 0.85 * gaussian_filter(nostril, 0.4 * layout.unit))
    skin = mix(skin, SHADE, 0.35 * gaussian_filter(ramp(air, 0.5, 0.2) * ears, size / 256))
    skin = mix(skin, LIPS, 0.85 * ramp(lips, 0.15, 0.75))

    holes = binary_fill_holes(region["skin"]) & ~region["skin"]
    near = np.exp(-((distance_transform_edt(~holes) / (0.5 * layout.unit)) ** 2))  # lashes, and the line of the lips
    rows = (np.arange(size) + 0.5)[:, None]
    eye_row = rows < landmark_texels(model, size)[33, 1].item()
    skin = mix(skin, SHADE * 0.35, np.where(eye_row, LASHES, LIP_LINE) * near)

    image = np.where(region["skin"][..., None], skin, SKIN)
    image = np.where(region["sockets"][..., None], mix(BLUSH, SHADE * 0.6, ramp(air, 0.3, 0)), image)
    for sign in (-1, 1):
        ball = region["eyes"] & (values[..., 0] * sign > 0)
        corners = topology.faces[topology.regions["eyes"]].unique()
        center = model.mean[corners][model.mean[corners, 0] * sign > 0].mean(0).numpy()
        ray = values[..., :3] - center
        angle = np.arccos(np.clip(ray[..., 2] / np.maximum(np.linalg.norm(ray, axis=-1), 1e-9), -1, 1))
        turn = np.arctan2(ray[..., 1], ray[..., 0] * sign)
        white = mix(SCLERA, SCLERA_RIM, ramp(angle, 0.85, 1.5))
        rays = 0.12 * (np.sin(turn * 23) * np.sin(turn * 41 + 1.3))
        iris = mix(IRIS_IN, IRIS_OUT, ramp(angle / IRIS_ANGLE, 0.45, 1.0)) * (1 + rays)[..., None]
        eyeball = mix(white, iris, ramp(angle, IRIS_ANGLE + 0.02, IRIS_ANGLE - 0.03))
        eyeball = mix(eyeball, PUPIL, ramp(angle, PUPIL_ANGLE + 0.02, PUPIL_ANGLE - 0.02))
        image = np.where(ball[..., None], eyeball, image)
    deep, front = ramp(z, mouth[2] + 0.05, mouth[2] - 0.45), ramp(z, mouth[2] + 0.03, mouth[2] - 0.22)
    for name, color, shadow in (("mouth", MOUTH, deep), ("teeth", TEETH, 0.9 * front), ("tongue", TONGUE, deep)):
        image = np.where(region[name][..., None], mix(color, THROAT, shadow), image)
    image = torch.from_numpy(np.clip(image, 0, 1)).float().permute(2, 0, 1)[None]
    return padded(image, model)


def first_pass(folder: Path, model: MorphableModel, size: int) -> tuple[Extraction, Tensor]:
    """The robust symmetric mean of the faces in a folder, as an extraction where enough of them show it; and their
    skin colors (N, 3)."""
    painted = paint(model, size)
    layout = load_template(model, size, painted).layout
    relative, weights, colors = [], [], []
    for front in tqdm(sorted(folder.glob("*_front.jpg")), desc="faces"):
        names = [front.with_name(front.name.replace("_front", f"_{side}")) for side in ("front", "left", "right")]
        found = extract(
            torch.stack([read_image(name) for name in names]), model, ExtractSettings(size=size), albedo=painted
        )
        plain = (found.observed * layout.plain)[0, 0] > 0.5
        color = found.texture[0][:, plain].median(1).values
        relative.append((found.texture[0] / color[:, None, None]).half())
        weights.append(found.observed[0].half())
        colors.append(color)
    mean, support = weighted_median(torch.stack(relative), torch.stack(weights))
    mean = mean / evenness(mean, layout, support, model)
    color = torch.stack(colors)
    texture = mean[None] * color.median(0).values[:, None, None]
    least = torch.where(layout.around_eyes > 0, LID_SUPPORT, SUPPORT)
    core = (support[None] > least).float() * layout.face
    core = masks.erode(torch.from_numpy(binary_fill_holes(core[0, 0])).float()[None, None], 0.5 * layout.unit) * core
    return found.replace(texture=texture, observed=core), color


def evenness(mean: Tensor, layout: FaceLayout, support: Tensor, model: MorphableModel) -> Tensor:
    """(1, S, S): what of the mean's brightness follows the normals: light that all photos share, from ahead."""
    faces = model.topology.faces
    normals = interpolate(uv_raster(model.topology, mean.shape[-1]), vertex_normals(model.mean[None], faces), faces)
    basis = sh_basis(F.normalize(normals[0], dim=-1))
    at = (layout.plain[0, 0] > 0) & (support[0] > SUPPORT)
    luma = mean.mean(0)
    light = torch.linalg.lstsq(basis[at], luma[at][:, None], driver="gels").solution
    level = (basis @ light)[..., 0]
    low, high = level[at].aminmax()
    return (level.clamp(low, high) / luma[at].mean())[None]


def weighted_median(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Over people and both sides: (N, 3, S, S), (N, 1, S, S) -> (3, S, S), and mean weight (1, S, S)."""
    result = torch.empty(values.shape[1:])
    support = torch.empty(weights.shape[1:])
    for rows in torch.arange(values.shape[2]).split(32):  # the whole would not fit in memory
        value = values[:, :, rows].float()
        weight = weights[:, :, rows].float()
        value, weight = torch.cat([value, value.flip(-1)]), torch.cat([weight, weight.flip(-1)])
        support[:, rows] = weight.mean(0)
        order = value.argsort(0)
        total = weight.expand_as(value).gather(0, order).cumsum(0)
        # the mean of the middle half: smoother than the median, as robust
        share = total / total[-1:].clamp(min=1e-6)
        before = torch.cat([torch.zeros_like(share[:1]), share[:-1]])
        middle = (share.clamp(max=0.75) - before.clamp(min=0.25)).clamp(min=0)
        result[:, rows] = (value.gather(0, order) * middle).sum(0) / middle.sum(0).clamp(min=1e-6)
    return result, support


def build(folder: Path, model: MorphableModel, size: int) -> Tensor:
    """(3, S, S): the template."""
    mean, color = first_pass(folder, model, size // 2)  # smooth: nothing in it needs more
    print(f"{len(color)} faces, median skin color {[round(v, 3) for v in color.median(0).values.tolist()]}")
    texture, observed = (
        F.interpolate(part, (size, size), mode="bicubic").clamp(0, 1) for part in (mean.texture, mean.observed)
    )
    template = load_template(model, size, paint(model, size))
    whole = complete(mean.replace(texture=texture, observed=observed), template, CompleteSettings(contrast=1.0))
    return padded(whole.texture, model)[0]


def padded(image: Tensor, model: MorphableModel) -> Tensor:
    """(1, 3, S, S) made symmetric, its islands padded."""
    image = pad_islands((image + image.flip(-1)) / 2, model.topology, None)
    return (image + image.flip(-1)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", type=Path, help="folder with NAME_front.jpg, NAME_left.jpg and NAME_right.jpg")
    parser.add_argument("--size", type=int, default=1024)
    data = Path(__file__).resolve().parents[1] / "facerecon" / "data"
    parser.add_argument("--out", type=Path, default=data / "template_makehuman.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_png(arguments.out, build(arguments.views, load_face_model("makehuman"), arguments.size), compress_level=9)
    print(arguments.out)


if __name__ == "__main__":
    main()
