"""Twenty-four faces that are hard in different ways, fitted, on one sheet to look at.

    python benchmarks/contact_sheet.py --out sheet
    python benchmarks/contact_sheet.py --out sheet_before --script ../before/fit/reconstruct.py   # another checkout
    python benchmarks/contact_sheet.py --out few --seeds 60000 60012 60020 60021 60024 60030  # docs/generated_heads.jpg

Writes OUT/photos, OUT/faces (as fit/reconstruct.py does) and OUT/sheet_*.jpg, the panels. Sources: seeds of the open
face generator, chosen by eye out of 40000 to 40119 at truncation 0.85; the sample photo; the released photos, where
the folder shared/reference stands beside the repository; and heads fitted here, seen from 45 and 60 degrees in strong
side light, since the generator hardly turns beyond 40. With --seeds these faces of the generator instead, at truncation
0.75, and OUT/rows.jpg: a row each of photo, overlay, shape, texture and three views.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.compose import compose
from facerecon.errors import FaceReconError
from facerecon.imaging.files import contact_sheet, read_image, write_jpg, write_png
from facerecon.imaging.masks import gaussian_blur
from facerecon.perception import observe
from facerecon.render import Renderer
from facerecon.stylegan.face_generator import load_generator
from facerecon.types import Camera, SHLight
from fit.models import build_fitter, prepare

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT.parent / "shared" / "reference" / "ffhq_uv"

SEEDS = {
    40002: "sunglasses",
    40005: "child, shadows of leaves",
    40012: "dark skin, headscarf, broad smile",
    40018: "profile, hair over the cheek",
    40022: "dark skin, wrinkles",
    40024: "profile, glasses, cap",
    40027: "beard, turned",
    40037: "tinted glasses",
    40047: "hand at the chin",
    40049: "strong side light",
    40053: "fringe",
    40058: "glasses and beard",
    40061: "sunglasses",
    40065: "hair over one eye",
    40076: "dark-skinned child, turned",
    40080: "baby",
    40082: "very dark skin, cap, hard light",
    40116: "grey beard",
}
"""What is hard about each generated face."""

RELEASED = ("01223_left.jpg", "01223_right.jpg")
TURNED = ((20031, 45, 0.0), (20063, 60, 0.0), (20015, -60, 0.0))
"""Seed, yaw in degrees, and pitch of the heads that are rendered."""


def generated(folder: Path, seeds: dict[int, str], truncation: float) -> None:
    generator = load_generator()
    for seed, note in seeds.items():
        path = folder / f"{seed}_{note.replace(', ', '_').replace(' ', '-')}".rstrip("_")
        path = path.with_name(f"{path.name}.png")
        if not path.exists():
            write_png(path, generator(generator.sample(seed, truncation))[0])


def row_of(panel: Tensor) -> Tensor:
    """First and last row of a panel (3, H, W) side by side, without the tile that says what was seen."""
    width = panel.shape[2]
    gap = round(width / (4 * 32 + 5))  # of a sheet of four tiles, each 32 gaps wide
    height = (panel.shape[1] - gap) // 3
    return torch.cat([panel[:, :height], panel[:, 2 * height : 3 * height, gap : round(width * 0.75)]], 2)


def side_light(yaw: float) -> SHLight:
    """A window on the side that the face turns to."""
    light = SHLight.ambient()
    light.coefficients[0, 0] = 0.55
    light.coefficients[0, 2] = 0.12
    light.coefficients[0, 3] = -0.35 * np.sign(yaw)
    return light


def background(size: int, seed: int) -> Tensor:
    """(3, size, size) of soft blotches."""
    noise = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return gaussian_blur(F.interpolate(noise, (size, size), mode="bicubic"), 31)[0].clamp(0, 1) * 0.6 + 0.1


def turned(folder: Path, size: int = 512) -> None:
    """Heads fitted to generated faces, seen from the side."""
    missing = [t for t in TURNED if not (folder / f"turned_{t[0]}_{t[1]}.png").exists()]
    if not missing:
        return
    config = compose("reconstruct", ["fitting=fast", "img=none"])
    fitter, generator = build_fitter(config, prepare(config)), load_generator()
    for seed, yaw, pitch in missing:
        face = fitter(observe(generator(generator.sample(seed))[0]))
        params = face.params.replace(
            rotation=torch.tensor([[np.radians(pitch), np.radians(yaw), 0.0]]).float(),
            translation=torch.zeros(1, 3),
            light=side_light(yaw),
        )
        view = Renderer(size).prepare(fitter.model(params), face.topology, Camera.deep3d(size), params.light)
        head, mask = view.shade(face.texture).image[0], view.rendering.mask[0]
        picture = head * mask + background(size, seed) * (1 - mask)
        write_png(folder / f"turned_{seed}_{yaw}.png", gaussian_blur(picture[None].clamp(0, 1), 3)[0])


def write_rows(path: Path, panels: list[Path]) -> None:
    """One picture, 1300 px wide, of a row for each panel."""
    rows = torch.cat([row_of(read_image(panel)) for panel in panels], 1)[None]
    size = [round(side * 1300 / rows.shape[3]) for side in rows.shape[2:]]
    write_jpg(path, F.interpolate(rows, size, mode="area")[0], quality=74)


def run(arguments: argparse.Namespace) -> int:
    photos, faces = arguments.out / "photos", arguments.out / "faces"
    photos.mkdir(parents=True, exist_ok=True)
    if arguments.seeds:
        generated(photos, dict.fromkeys(arguments.seeds, ""), 0.75)
    else:
        generated(photos, SEEDS, 0.85)
        turned(photos)
        shutil.copy(ROOT / "samples" / "astronaut.jpg", photos)
        for name in RELEASED:
            if (REFERENCE / name).is_file():
                shutil.copy(REFERENCE / name, photos)
    script = arguments.script.resolve()
    command = [sys.executable, str(script), f"img={photos.resolve()}", f"out={faces.resolve()}", "export=[panel]"]
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    status = subprocess.run([*command, *arguments.set], env=environment, cwd=script.parents[1], check=False).returncode
    panels = sorted(faces.glob("*/panel.png"))
    if arguments.seeds:
        write_rows(arguments.out / "rows.jpg", panels)
        panels = []
    for number, start in enumerate(range(0, len(panels), 8), 1):
        chunk = panels[start : start + 8]
        sheet = contact_sheet([read_image(p) for p in chunk], 4, [p.parent.name for p in chunk], size=700)
        write_jpg(arguments.out / f"sheet_{number}.jpg", sheet)
    rows = [json.loads(line) for line in (faces / "metrics.jsonl").read_text().splitlines()]
    latest = {row["item"]: row["metrics"] for row in rows}
    print("| face | photometric | judge's cosine | landmarks, % |\n|---|---|---|---|")
    for name, metrics in sorted(latest.items()):
        last = metrics[list(metrics)[-1]]
        print(f"| {name} | {last['photometric']:.4f} | {last['identity']:.3f} | {100 * last['nme']:.2f} |")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--script", type=Path, default=ROOT / "fit" / "reconstruct.py", help="which fit to run")
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="of the generator, instead of the hard faces")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of fit/reconstruct.py")
    try:
        return run(parser.parse_args())
    except FaceReconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
