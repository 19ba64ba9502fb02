"""Is a head of nothing marked, and a head of a face not? Rates by kind of picture.

    python -m benchmarks.trust                    # 200 faces and 20 pictures of each other kind
    python -m benchmarks.trust --n 50 --each 10 --out trust.json --sheet trust.jpg

Pictures, all made here from seeds:

* generated: faces of the open generator, whose seeds are in no set; each in a guise of its own (as it is, grayscale,
  small, dark, a strong JPEG, tilted);
* turned: such faces turned by quarters and by angles between them;
* covered: by more than half, by a mask, a balaclava, a bar over one side, the lower or the upper half;
* drawn: edges, contours, pencil, one or two bits a channel, black and white, a cartoon;
* non-faces: noise, blobs, cut-up faces, pieces of skin, a chin mirrored over a mouth; the first in which the detector
  sees a face.

Each is observed and goes through stage 1 (N_enc and landmarks, linear decoder); nothing more is fitted, as nothing more
is asked. A picture is refused (observe finds no face), marked (``FitResult.suspect``), or passes. A turned one that
passes must have been put upright: its landmarks must lie within 5 % of the face's extent of those of the upright
picture.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor
from tqdm import tqdm

from facerecon import Renderer, load_face_model
from facerecon.correspond.resample import decoder_for
from facerecon.dataset.sampling import FIRST_HELD_OUT, draw_seeds
from facerecon.errors import FaceReconError
from facerecon.fitting import Fitter
from facerecon.imaging.files import contact_sheet, from_uint8, to_pil, write_jpg
from facerecon.perception import load_regressor, observe
from facerecon.perception.detection import load_detector
from facerecon.perception.landmarks import map_points
from facerecon.stylegan.face_generator import load_generator
from facerecon.types import Observation

ANGLES = (90, 180, 270, 120, 240, 150, 210, 135, 225, 105)
AGREE = 0.05  # of the face's extent: how far the landmarks of a turned picture may lie from the upright one's


def tensor(picture: Image.Image) -> Tensor:
    return from_uint8(np.asarray(picture.convert("RGB")))


def in_photo(seen: Observation) -> Tensor:
    """(68, 2) landmarks in photo pixels."""
    return map_points(seen.fit.to_photo, seen.landmarks68)[0]


# -- guises of faces ---------------------------------------------------------------------------------------


def _compressed(image: Tensor) -> Tensor:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=25)
    return tensor(Image.open(buffer))


GUISES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda image: image,
    "grayscale": lambda image: image.mean(0, keepdim=True).expand(3, -1, -1).contiguous(),
    "small": lambda image: F.interpolate(image[None], (140, 140), mode="area")[0],
    "dark": lambda image: 0.35 * image,
    "JPEG": _compressed,
    "tilted": lambda image: turned(image, 20),
}


def turned(image: Tensor, degrees: float) -> Tensor:
    """Turned clockwise, on a canvas of its mean color that holds all of it."""
    fill = tuple(int(255 * v) for v in image.mean((1, 2)))
    return tensor(to_pil(image).rotate(-degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=fill))


def turned_points(points: Tensor, degrees: float, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Where points (N, 2) of a picture of ``size`` (H, W) lie after :func:`turned`."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    middle, new_middle = torch.tensor(size[::-1]) / 2, torch.tensor(new_size[::-1]) / 2
    return (points - middle) @ turn.T + new_middle


# -- what covers them --------------------------------------------------------------------------------------


def _painted(image: Tensor, points: np.ndarray, color: Any, random: np.random.Generator, hole: Any = None) -> Tensor:
    """A polygon (px) filled with cloth of a color, 0..255; ``hole``: a polygon that stays open."""
    picture = to_pil(image)
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    draw.polygon([tuple(p) for p in np.asarray(points, float).tolist()], fill=255)
    if hole is not None:
        draw.polygon([tuple(p) for p in np.asarray(hole, float).tolist()], fill=0)
    alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(1.5)), float)[..., None] / 255
    rows = np.arange(picture.height)[:, None, None]
    folds = 1 + 0.06 * np.sin(80 * rows / picture.height) + random.normal(0, 0.02, (*alpha.shape[:2], 1))
    mixed = np.asarray(picture) * (1 - alpha) + folds * np.asarray(color, float) * alpha
    return tensor(Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)))


def _frame(landmarks: np.ndarray) -> Callable[[list], np.ndarray]:
    """A function from places in distances between the outer eye corners, about the nose's tip, to pixels."""
    unit = np.linalg.norm(landmarks[45] - landmarks[36])
    across = (landmarks[45] - landmarks[36]) / unit
    axes = unit * np.stack([across, [-across[1], across[0]]])
    return lambda places: landmarks[30] + np.asarray(places) @ axes


def mask(image: Tensor, landmarks: np.ndarray, random: np.random.Generator) -> Tensor:
    """As surgeons wear it: from the ridge of the nose to below the chin."""
    color = [(150, 190, 210), (235, 235, 235), (30, 30, 35), (200, 120, 140)][random.integers(4)]
    ridge = [0.4 * landmarks[15] + 0.6 * landmarks[28], landmarks[28], 0.4 * landmarks[1] + 0.6 * landmarks[28]]
    return _painted(image, np.stack([*landmarks[1:16], *ridge]), color, random)


def balaclava(image: Tensor, landmarks: np.ndarray, random: np.random.Generator) -> Tensor:
    place, angles = _frame(landmarks), np.linspace(0, 2 * np.pi, 60)
    eyes = place([(-0.7, -0.6), (0.7, -0.6), (0.7, -0.22), (-0.7, -0.22)])
    oval = place(np.stack([1.1 * np.cos(angles), 1.5 * np.sin(angles)], 1))
    return _painted(image, oval, (35, 35, 40), random, eyes)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Callable[..., Tensor]:
    def cover(image: Tensor, landmarks: np.ndarray, random: np.random.Generator) -> Tensor:
        corners = _frame(landmarks)([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        return _painted(image, corners, random.integers(20, 230, 3), random)

    return cover


COVERS = {
    "mask": mask,
    "balaclava": balaclava,
    "left half": _rectangle(-3, -3, 0.1, 3),
    "lower half": _rectangle(-3, -0.25, 3, 3),
    "upper half": _rectangle(-3, -3, 3, 0.1),
}


# -- drawings ----------------------------------------------------------------------------------------------


def cartoon(picture: Image.Image) -> Image.Image:
    """Six flat colors and black outlines."""
    flat = picture
    for _ in range(3):
        flat = flat.filter(ImageFilter.MedianFilter(7))
    lines = picture.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    white = lines.point(lambda v: 0 if v > 22 else 255).filter(ImageFilter.MinFilter(3))
    return Image.composite(flat.quantize(6).convert("RGB"), Image.new("RGB", picture.size), white)


def pencil(picture: Image.Image) -> Image.Image:
    lines = picture.convert("L").filter(ImageFilter.GaussianBlur(1.5)).filter(ImageFilter.FIND_EDGES)
    return lines.point(lambda v: max(0, 255 - 6 * v))


DRAWINGS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "edges": lambda picture: picture.filter(ImageFilter.FIND_EDGES),
    "contours": lambda picture: picture.filter(ImageFilter.CONTOUR),
    "pencil": pencil,
    "1 bit a channel": lambda picture: ImageOps.posterize(picture, 1),
    "2 bits a channel": lambda picture: ImageOps.posterize(picture, 2),
    "black and white": lambda picture: picture.convert("L").filter(ImageFilter.GaussianBlur(2)).point(
        lambda v: 255 * (v > 110)
    ),
    "cartoon": cartoon,
}  # fmt: skip


# -- what is no face ---------------------------------------------------------------------------------------


def noise(face: Tensor, random: np.random.Generator) -> Tensor:
    """Clouds: noise whose amplitude falls with frequency."""
    size, power = face.shape[-1], random.uniform(0.9, 1.8)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    radius[0, 0] = 1
    waves = np.exp(2j * np.pi * random.random((4, size, size))) / radius**power
    clouds = np.fft.ifft2(waves).real
    channels = 0.75 * clouds[:1] + 0.25 * clouds[1:]
    channels = (channels - channels.mean((1, 2), keepdims=True)) / channels.std((1, 2), keepdims=True)
    return torch.from_numpy(np.clip(0.45 + 0.2 * channels + random.normal(0, 0.08, (3, 1, 1)), 0, 1)).float()


def blobs(face: Tensor, random: np.random.Generator) -> Tensor:
    """Two dark spots over a third, on an oval."""
    picture = to_pil(noise(face, random))
    draw, unit = ImageDraw.Draw(picture), random.uniform(50, 110)
    x, y = random.uniform(200, 312, 2)

    def oval(dx: float, dy: float, width: float, height: float, color: Any) -> None:
        left, top = x + (dx - width) * unit, y + (dy - height) * unit
        box = [left, top, left + 2 * width * unit, top + 2 * height * unit]
        draw.ellipse(box, fill=tuple(int(v) for v in color))

    if random.random() < 0.7:
        oval(0, 0.3, 1.3, 1.7, (random.integers(150, 240), random.integers(110, 190), random.integers(80, 160)))
    for side in (-0.55, 0.55):
        size = random.uniform(0.15, 0.35)
        oval(side, 0, size, 0.7 * size, random.integers(0, 60, 3))
    oval(0, 1.17, random.uniform(0.3, 0.7), 0.13, random.integers(20, 140, 3))
    return tensor(picture.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 6)))))


def cut_up(face: Tensor, random: np.random.Generator) -> Tensor:
    """The squares of a grid in another order."""
    count = int(random.integers(2, 5))
    side = face.shape[-1] // count
    tiles = [face[:, i * side : (i + 1) * side, j * side : (j + 1) * side] for i in range(count) for j in range(count)]
    mixed = [tiles[i] for i in random.permutation(len(tiles))]
    return torch.cat([torch.cat(mixed[i : i + count], 2) for i in range(0, len(mixed), count)], 1)


def skin(face: Tensor, random: np.random.Generator) -> Tensor:
    """A small part of the picture, enlarged, upright or not."""
    size = int(random.integers(80, 160))
    top, left = int(random.integers(175, 512 - size)), int(random.integers(50, 462 - size))
    piece = torch.rot90(face[:, top : top + size, left : left + size], int(random.integers(4)), (1, 2))
    return F.interpolate(piece[None], (512, 512), mode="bilinear")[0]


def mirrored(face: Tensor, random: np.random.Generator) -> Tensor:
    """The chin, and above it the same upside down."""
    row = int(random.integers(290, 350))
    count = 512 - row
    below = face[:, row:]
    return torch.cat([face[:, : row - count], below.flip(1), below], 1)


NON_FACES = {f.__name__: f for f in (noise, blobs, cut_up, skin, mirrored)}


# -- rates -------------------------------------------------------------------------------------------------


def pictures(n: int, each: int, first: int) -> Iterator[tuple[str, str, Tensor, Any]]:
    """(kind, what it is, (3, H, W), and of a turned one (the upright picture, degrees))."""
    generator = load_generator(dtype=torch.bfloat16)
    seeds = list(islice(draw_seeds(generator, first, truncation=0.8, dark_share=0.25), n + max(each, 20)))

    def face_at(index: int) -> Tensor:
        """(3, 512, 512) in [0, 1]."""
        with torch.no_grad():
            image = generator(generator.sample(seeds[index], 0.8)).float().clamp(0, 1)
        return F.interpolate(image, (512, 512), mode="area")[0]

    names = list(GUISES)
    for i in range(n):
        guise = names[i % len(names)] if i % 2 else "as it is"
        yield "generated", f"{guise} {i}", GUISES[guise](face_at(i)), None
    for i in range(each):
        face, angle = face_at(n + i), ANGLES[i % len(ANGLES)]
        yield "turned", f"{angle} degrees {i}", turned(face, angle), (face, angle)
    for i in range(each):
        face, name = face_at(n + i), list(COVERS)[i % len(COVERS)]
        image = COVERS[name](face, in_photo(observe(face)).numpy(), np.random.default_rng(i))
        yield "covered", f"{name} {i}", image, None
    for i in range(each):
        name = list(DRAWINGS)[i % len(DRAWINGS)]
        yield "drawn", f"{name} {i}", tensor(DRAWINGS[name](to_pil(face_at(n + i)))), None
    detector = load_detector()
    for k, (name, make) in enumerate(NON_FACES.items()):
        found = seed = 0
        while found < each // len(NON_FACES):
            image = make(face_at(n + seed % 20), np.random.default_rng([k, seed]))
            seed += 1
            if detector(image):
                found += 1
                yield "non-faces", f"{name} {seed - 1}", image, None


def outcome_of(fitter: Fitter, image: Tensor, upright: Any) -> tuple[str, str]:
    """What becomes of a picture in observation and stage 1, and why."""
    try:
        seen = observe(image)
    except FaceReconError as error:
        return "refused", str(error)
    why = fitter.initialize(seen).suspect.get(0, "")
    if why or upright is None:
        return "marked" if why else "passed", why
    face, degrees = upright
    wanted = turned_points(in_photo(observe(face)), degrees, face.shape[-2:], image.shape[-2:])
    away = (in_photo(seen) - wanted).norm(dim=1).mean() / (wanted.amax(0) - wanted.amin(0)).amax()
    return ("put upright" if away < AGREE else "passed"), f"landmarks {100 * away:.1f} % off"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="generated faces")
    parser.add_argument("--each", type=int, default=20, help="pictures of each other kind")
    parser.add_argument("--first", type=int, default=FIRST_HELD_OUT, help="the first seed of the generator")
    parser.add_argument("--out", type=Path, help="JSON with every picture's outcome")
    parser.add_argument("--sheet", type=Path, help="JPEG of the pictures that went wrong")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, clock = load_face_model("makehuman"), time.perf_counter()
    fitter = Fitter(model, decoder_for(model, "linear"), Renderer(224), regressor=load_regressor(model))
    rows: list[dict[str, str]] = []
    wrong: list[Tensor] = []
    bar = tqdm(total=arguments.n + 3 * arguments.each + arguments.each // 5 * 5, unit="picture", disable=None)
    for kind, name, image, upright in pictures(arguments.n, arguments.each, arguments.first):
        outcome, why = outcome_of(fitter, image, upright)
        rows.append({"kind": kind, "picture": name, "outcome": outcome, "why": why})
        if (outcome == "passed") != (kind == "generated") and outcome != "put upright":
            wrong.append(F.interpolate(image[None], (256, 256), mode="bilinear", antialias=True)[0])
            tqdm.write(f"{kind}, {name}: {outcome} {why}")
        bar.update()
    bar.close()
    print("| kind | pictures | refused | marked | put upright | passed | as it should be |")
    print("|---|---|---|---|---|---|---|")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        found = [row["outcome"] for row in rows if row["kind"] == kind]
        counts = [found.count(outcome) for outcome in ("refused", "marked", "put upright", "passed")]
        right = counts[3] if kind == "generated" else sum(counts[:3])
        print(f"| {kind} | {len(found)} | {' | '.join(map(str, counts))} | {100 * right / len(found):.1f} % |")
    print(f"{time.perf_counter() - clock:.0f} s")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))
    if arguments.sheet and wrong:
        write_jpg(arguments.sheet, contact_sheet(torch.stack(wrong), 6, size=256))


if __name__ == "__main__":
    main()
