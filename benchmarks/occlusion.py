"""Do things in front of a face paint its texture? Composited occluders with known truth, with and without robust fit.

    python -m benchmarks.occlusion                      # a few minutes on two cores
    python -m benchmarks.occlusion --faces 8 --out occlusion.json --sheet occlusion.jpg

Truth: clean faces (samples/astronaut.jpg and seeds of the open face generator), onto which bars, a microphone, dark
glasses, fingers with another face's skin, strands of hair and letters are pasted, drawn here from a seed. Each picture
is fitted as any photo is: landmarks and masks are measured on the occluded one.

Reported for every kind, over the face of the clean photo: precision and recall of the pixels that the fit leaves out
(a margin of a hundredth of the crop counts as right); the texture's error where it is occluded (against the texture
of the clean photo's fit) and elsewhere; the share of the occluded texels that count as seen; the drift of the shape,
in mm, and of the 68 landmarks. And for the clean faces: the share of texels and pixels that are lost, photometric
error, landmarks and CSIM of both fits, over the pixels that the robust one keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from facerecon import losses
from facerecon.configs.compose import compose
from facerecon.errors import NoFaceError
from facerecon.evaluation import reconstruction_metrics
from facerecon.fit.models import build_fitter, prepare
from facerecon.fitting import Fitter
from facerecon.fitting.detail import full_crop_camera
from facerecon.geometry.alignment import invert_affine
from facerecon.geometry.camera import project
from facerecon.imaging.files import contact_sheet, read_image, write_jpg
from facerecon.imaging.warp import affine_scale, crop_affine
from facerecon.morphable import MorphableModel
from facerecon.perception import load_eval_identity, observe
from facerecon.perception.landmarks import map_points
from facerecon.render.uv import bake
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.stylegan.face_generator import load_generator
from facerecon.types import Camera, Observation, ReconstructedFace

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (20003, 20031, 20063, 20015, 20038, 20074, 20095, 20056)
"""Of the generator: no glasses, forehead free of hair, chosen by eye."""


# -- occluders ---------------------------------------------------------------------------------------------


class Canvas:
    """A photo (H, W, 3) in [0, 1], the frame of its face by 68 landmarks (px), and what is drawn over it."""

    def __init__(self, image: np.ndarray, landmarks: np.ndarray) -> None:
        self.image, self.alpha = image.astype(np.float64).copy(), np.zeros(image.shape[:2])
        right, left = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
        self.origin, across = (right + left) / 2, left - right
        self.unit = float(np.linalg.norm(across))
        """px: between the centers of the eyes."""
        self.axes = np.stack([across, [-across[1], across[0]]]) / self.unit  # to the right of the image, down
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
        local = (np.stack([x, y], -1) - self.origin) @ self.axes.T / self.unit
        self.x, self.y = local[..., 0], local[..., 1]
        """(H, W): positions in the face's frame; eyes at (-0.5, 0) and (0.5, 0), mouth about (0, 1.1)."""

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        return self.origin + self.unit * np.asarray(points) @ self.axes

    def paint(self, distance: np.ndarray, color: np.ndarray) -> None:
        """Cover where a signed distance (in the face's frame) is negative; antialiased."""
        self.blend(np.clip(0.5 - distance * self.unit, 0, 1), color)

    def blend(self, alpha: np.ndarray, color: np.ndarray) -> None:
        self.image = self.image * (1 - alpha[..., None]) + np.broadcast_to(color, self.image.shape) * alpha[..., None]
        self.alpha = np.maximum(self.alpha, alpha)

    def segment(self, a: tuple[float, float], b: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Distance from a segment, and the position along it in [0, 1]."""
        (ax, ay), (bx, by) = a, b
        along = ((self.x - ax) * (bx - ax) + (self.y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
        along = np.clip(along, 0, 1)
        return np.hypot(self.x - ax - along * (bx - ax), self.y - ay - along * (by - ay)), along

    def strokes(self, draw: Callable[[ImageDraw.ImageDraw, int], None]) -> np.ndarray:
        """(H, W) coverage of what ``draw(canvas, scale)`` draws in photo pixels times ``scale``."""
        scale = 3
        height, width = self.alpha.shape
        canvas = Image.new("L", (width * scale, height * scale))
        draw(ImageDraw.Draw(canvas), scale)
        return np.asarray(canvas.reduce(scale), np.float64) / 255


def _bar(canvas: Canvas, random: np.random.Generator, shade: float) -> None:
    center, angle = (random.uniform(-0.5, 0.5), random.uniform(-0.5, 1.4)), random.uniform(0, np.pi)
    x, y = canvas.x - center[0], canvas.y - center[1]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    tint = np.clip(shade + random.normal(0, 0.02, 3) + 0.04 * np.clip(u, -1, 1)[..., None], 0, 1)
    canvas.paint(np.maximum(np.abs(u) - 0.9, np.abs(v) - random.uniform(0.12, 0.22)), tint)


def dark_bar(canvas: Canvas, random: np.random.Generator, skin: np.ndarray) -> None:
    _bar(canvas, random, random.uniform(0.05, 0.15))


def light_bar(canvas: Canvas, random: np.random.Generator, skin: np.ndarray) -> None:
    _bar(canvas, random, random.uniform(0.85, 0.95))


def microphone(canvas: Canvas, random: np.random.Generator, skin: np.ndarray) -> None:
    side = random.choice([-1, 1])
    center, radius = np.array([0.25 * side + random.uniform(-0.1, 0.1), random.uniform(1.35, 1.6)]), 0.4
    handle, _ = canvas.segment(tuple(center), (center[0] + 0.5 * side, center[1] + 2.0))
    canvas.paint(handle - 0.22, np.array([0.08, 0.08, 0.09]))
    x, y = (canvas.x - center[0]) / radius, (canvas.y - center[1]) / radius
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    mesh = 0.5 + 0.25 * (np.sin(60 * np.arcsin(np.clip(x, -1, 1))) + np.sin(60 * np.arcsin(np.clip(y, -1, 1))))
    shade = 0.1 + 0.18 * z * mesh + 0.5 * np.clip(z * 0.8 - 0.5 * y - 0.4 * x, 0, 2) ** 12
    canvas.paint(np.hypot(x, y) * radius - radius, np.clip(shade, 0, 0.9)[..., None] * np.array([1, 1, 1.02]))


def dark_glasses(canvas: Canvas, random: np.random.Generator, skin: np.ndarray) -> None:
    tint = np.array([0.05, 0.05, 0.06]) + random.uniform(0, 0.05)
    for x in (-0.52, 0.52):
        across, down = (canvas.x - x) / 0.4, (canvas.y - 0.08) / 0.3
        lens = (np.abs(across) ** 2.6 + np.abs(down) ** 2.6) ** (1 / 2.6)
        canvas.paint((lens - 1) * 0.3, tint + 0.1 * np.clip(0.4 - down, 0, 1)[..., None])
        canvas.paint(np.abs(lens - 1) * 0.3 - 0.035, np.array([0.03, 0.03, 0.03]))
        arm, _ = canvas.segment((x * 1.7, -0.02), (x * 2.3, -0.08))
        canvas.paint(arm - 0.05, np.array([0.03, 0.03, 0.03]))
    bridge, _ = canvas.segment((-0.16, 0.0), (0.16, 0.0))
    canvas.paint(bridge - 0.04, np.array([0.03, 0.03, 0.03]))


def fingers(canvas: Canvas, random: np.random.Generator, skin: np.ndarray) -> None:
    side = random.choice([-1, 1])
    start, lean = random.uniform(0.75, 1.0), random.uniform(-0.15, 0.15)
    for k in range(4):
        tip = (side * (-0.1 + 0.08 * abs(k - 1.5)), start + 0.24 * k - lean)
        distance, _ = canvas.segment((side * 1.6, start + 0.5 + 0.27 * k), tip)
        radius = 0.125
        profile = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1))
        nail = np.hypot(canvas.x - tip[0] - side * 0.02, canvas.y - tip[1]) < 0.06
        color = skin * (0.45 + 0.6 * profile)[..., None] + 0.08 * nail[..., None]
        canvas.paint(distance - radius, np.clip(color, 0, 1))


def hair(canvas: Canvas, random: np.random.Generator, skin: np.ndarray) -> None:
    base = np.array([[0.07, 0.05, 0.04], [0.2, 0.12, 0.07], [0.42, 0.28, 0.15]])[random.integers(3)]
    time = np.linspace(0, 1, 24)[:, None]
    for _ in range(random.integers(3, 5)):
        root, end, bend = random.uniform(-0.9, 0.9), random.uniform(-0.5, 0.5), random.uniform(-0.5, 0.5)
        depth = random.uniform(-0.1, 0.7)
        for _ in range(random.integers(5, 9)):
            a = np.array([root, -1.7]) + random.normal(0, 0.04, 2)
            c = np.array([root + end, depth]) + random.normal(0, 0.07, 2)
            b = (a + c) / 2 + np.array([bend, 0.0]) + random.normal(0, 0.05, 2)
            curve = canvas.to_pixels((1 - time) ** 2 * a + 2 * time * (1 - time) * b + time**2 * c)
            width = random.uniform(0.01, 0.03) * canvas.unit

            def draw(on: ImageDraw.ImageDraw, scale: int, curve: np.ndarray = curve, width: float = width) -> None:
                line = [tuple(p) for p in (curve * scale).tolist()]
                on.line(line, fill=255, width=max(1, round(width * scale)), joint="curve")

            canvas.blend(0.9 * canvas.strokes(draw), np.clip(base * random.uniform(0.7, 1.4), 0, 1))


def letters(canvas: Canvas, random: np.random.Generator, skin: np.ndarray) -> None:
    center = canvas.to_pixels(np.array([random.uniform(-0.2, 0.2), random.uniform(0.3, 1.0)]))
    color = [np.ones(3), np.array([0.9, 0.1, 0.1]), np.array([0.1, 0.2, 0.8])][random.integers(3)]

    def draw(on: ImageDraw.ImageDraw, scale: int) -> None:
        font = ImageFont.load_default(size=0.7 * canvas.unit * scale)
        on.text(tuple(center * scale), "COPY", fill=255, font=font, anchor="mm", stroke_width=scale)

    canvas.blend(canvas.strokes(draw), color)


OCCLUDERS: dict[str, Callable[[Canvas, np.random.Generator, np.ndarray], None]] = {
    f.__name__: f for f in (dark_bar, light_bar, microphone, dark_glasses, fingers, hair, letters)
}


def occlude(image: Tensor, landmarks: Tensor, kind: str, seed: int, skin: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (3, H, W) with an occluder pasted over the face, and what it covers (1, H, W) in [0, 1]."""
    canvas = Canvas(image.permute(1, 2, 0).numpy(), landmarks.double().numpy())
    OCCLUDERS[kind](canvas, np.random.default_rng(seed), skin.double().numpy())
    return torch.from_numpy(canvas.image).permute(2, 0, 1).float(), torch.from_numpy(canvas.alpha)[None].float()


# -- metrics -----------------------------------------------------------------------------------------------


def clean_photos(count: int) -> dict[str, Tensor]:
    """{name: (3, H, W)}: the sample photo and generated faces."""
    photos = {"astronaut": read_image(ROOT / "samples" / "astronaut.jpg")}
    if count > 1:
        generator = load_generator()
        for seed in SEEDS[: count - 1]:
            photos[str(seed)] = generator(generator.sample(seed))[0]
    return photos


def skin_color(photo: Observation) -> Tensor:
    return (photo.image * photo.skin_mask).sum((0, 2, 3)) / photo.skin_mask.sum()


def fitted(fitter: Fitter, photos: list[Observation], batch: int) -> list[tuple[ReconstructedFace, Observation]]:
    """Each photo's head, and the observation without what was found to hide it."""
    found = []
    for start in range(0, len(photos), batch):
        chunk = photos[start : start + batch]
        result = fitter(Observation.cat(chunk))
        found += [(result.face[i], result.observed[i]) for i in range(len(chunk))]
    return found


def compare(
    model: MorphableModel, clean: tuple[ReconstructedFace, Observation], covered: Tensor,
    other: tuple[ReconstructedFace, Observation],
) -> dict[str, float]:  # fmt: skip
    """Metrics of one occluded photo's fit against its clean photo's."""
    (truth, seen), (face, believed) = clean, other
    size = seen.full.image.shape[-1]
    hidden = crop_affine(covered[None], seen.full.to_photo, size, padding="zeros")
    # what the fit leaves out, on the crop of the clean photo, where that shows the face
    back = invert_affine(believed.full.to_photo)
    into_other = back[:, :, :2] @ seen.full.to_photo
    into_other[:, :, 2] += back[:, :, 2]
    kept = crop_affine(believed.full.face_mask, into_other, size, padding="zeros")
    face_area = seen.full.face_mask > 0.5
    left_out, hides = (kept < 0.5) & face_area, (hidden > 0.5) & face_area
    both = float((left_out & hides).sum())
    near = F.max_pool2d(hidden, 15, 1, 7) > 0.05  # within 7 px of 896: the margin is no error
    # texels that the clean photo shows and the occluder covers
    side = truth.texture.shape[-1]
    texels, visible = bake(hidden, model(truth.params), truth.topology, full_crop_camera(Camera.deep3d(), seen), side)
    shown = truth.visibility * (visible > 0.05)
    vertices = model.topology.faces[model.topology.regions["face"]].unique()
    shift = (face.neutral_vertices - truth.neutral_vertices)[0, vertices]
    iod = (seen.landmarks68[:, 36:42].mean(1) - seen.landmarks68[:, 42:48].mean(1)).norm()
    points = [
        project(f.camera, model.landmarks3d(model(f.params), f.camera))[..., :2] for f in (face, truth)
    ]  # of both heads, in the photo
    photo_iod = iod * affine_scale(seen.fit.to_photo)
    return {
        "precision": float((left_out & near).sum()) / max(1.0, float(left_out.sum())),
        "recall": both / max(1.0, float(hides.sum())),
        "texture_covered": losses.masked_mean_error(face.texture, truth.texture, shown * texels).item(),
        "texture_elsewhere": losses.masked_mean_error(face.texture, truth.texture, shown * (1 - texels)).item(),
        "seen_covered": float((face.visibility * shown * texels).sum() / (shown * texels).sum().clamp(min=1e-6)),
        "shape_mm": 100 * float((shift - shift.mean(0)).norm(dim=-1).mean()),
        "landmarks_percent": 100 * float((points[0] - points[1]).norm(dim=-1).mean() / photo_iod),
    }


def clean_metrics(fitter: Fitter, eval_identity: torch.nn.Module, plain: list, robust: list) -> list[dict[str, float]]:
    """What robustness costs where nothing is hidden."""
    rows = []
    for (before, everything), (after, believed) in zip(plain, robust, strict=True):
        metrics = [
            reconstruction_metrics(believed, f.params, f.texture, fitter.model, fitter.renderer, eval_identity)[0]
            for f in (before, after)
        ]
        rows.append(
            {
                "texels_lost": 1 - float(after.visibility.sum() / before.visibility.sum()),
                "pixels_lost": 1 - float(believed.full.face_mask.sum() / everything.full.face_mask.sum()),
                **{f"{k}_{n}": float(v) for n, of in zip(("plain", "robust"), metrics) for k, v in of.items()},
            }
        )
    return rows


def run(arguments: argparse.Namespace) -> None:
    config = compose("reconstruct", [f"fitting={arguments.preset}", "img=none", *arguments.set])
    device = prepare(config)
    fitter, eval_identity = build_fitter(config, device), load_eval_identity().to(device)
    settings = fitter.occlusion
    images = clean_photos(arguments.faces)
    clean = {name: observe(image) for name, image in images.items()}
    names, kinds = list(images), arguments.kinds
    cases: list[tuple[str, str, Tensor]] = []
    photos: list[Observation] = []
    for i, name in enumerate(names):
        skin = skin_color(clean[names[(i + 1) % len(names)]])
        for kind in kinds:
            seed = 1000 * i + list(OCCLUDERS).index(kind)
            landmarks = map_points(clean[name].fit.to_photo, clean[name].landmarks68)[0]
            picture, covered = occlude(images[name], landmarks, kind, seed, skin)
            try:
                photos.append(observe(picture))
            except NoFaceError:
                print(f"note: no face is found in {name} with {kind}; left out.")
                continue
            cases.append((name, kind, covered))

    found = {}
    for label, enabled in (("plain", False), ("robust", True)):
        fitter.occlusion = replace(settings, enabled=enabled)
        found[label] = fitted(fitter, [*clean.values(), *photos], config.batch)
    result: dict[str, Any] = {"preset": arguments.preset, "faces": names, "occluded": [], "clean": []}
    for label, faces in found.items():
        base = dict(zip(names, faces))
        for (name, kind, covered), other in zip(cases, faces[len(names) :], strict=True):
            row = compare(fitter.model, base[name], covered, other)
            result["occluded"].append({"face": name, "kind": kind, "fit": label, **row})
    result["clean"] = clean_metrics(fitter, eval_identity, *(faces[: len(names)] for faces in found.values()))
    report(result, kinds)
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1).encode())
    if arguments.sheet:
        tiles = []
        for k, photo in enumerate(photos):
            textures = [found[label][len(names) + k][0].texture[0] for label in ("plain", "robust")]
            tiles += [photo.full.image[0], *textures]
        write_jpg(arguments.sheet, contact_sheet(tiles, columns=3 * min(len(kinds), 4)))


def report(result: dict[str, Any], kinds: list[str]) -> None:
    keys = ("precision", "recall", "texture_covered", "texture_elsewhere", "seen_covered",
            "shape_mm", "landmarks_percent")  # fmt: skip
    print("| occluder | fit | " + " | ".join(keys) + " |\n" + "|---" * (len(keys) + 2) + "|")
    for kind in (*kinds, "all"):
        for fit in ("plain", "robust"):
            rows = [r for r in result["occluded"] if r["fit"] == fit and kind in (r["kind"], "all")]
            if rows:
                values = [f"{np.mean([r[key] for r in rows]):.3f}" for key in keys]
                print(f"| {kind} | {fit} | " + " | ".join(values) + " |")
    print("\nclean faces: mean (worst)")
    for key in result["clean"][0]:
        values = [row[key] for row in result["clean"]]
        worst = min(values) if key.startswith("identity") else max(values)
        print(f"  {key}: {np.mean(values):.4f} ({worst:.4f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=3, help=f"clean faces, up to {1 + len(SEEDS)}")
    parser.add_argument("--kinds", nargs="*", default=list(OCCLUDERS), choices=list(OCCLUDERS))
    parser.add_argument("--preset", default="fast", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--out", type=Path, help="JSON with every metric")
    parser.add_argument("--sheet", type=Path, help="JPEG of every picture with its two textures")
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
