"""How accurate is what we measure and fit on photos? One command, one page of figures.

    python -m benchmarks.accuracy --out accuracy.json --images more/*.jpg

* Landmarks: mean error over the inter-ocular distance (outer eye corners) against the landmarks that the released
  preprocessing found; and face masks: intersection over union with the released segmentations.
* Photos: photometric error, CSIM (cosine of 1024-d identity embeddings, never optimized) and landmark error of the fit
  after each stage, and the seconds each stage took.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from facerecon.evaluation import stage_metrics
from facerecon.geometry.alignment import invert_affine
from facerecon.imaging.files import read_image
from facerecon.imaging.warp import crop_affine
from facerecon.perception import observe
from facerecon.perception.landmarks import map_points
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.types import Observation

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT.parent / "shared" / "reference" / "ffhq_uv"
ICT_FILE = REFERENCE.parent / "ict" / "ict_facekit_light.npz"
VIEWS = ("left", "front", "right")
"""In the order of the channels of the released segmentation."""
FACE_LABELS = (1, 2, 3, 4, 5, 10, 11, 12, 13)
"""Skin, brows, eyes, nose, mouth interior and lips among the 19 classes of CelebAMask-HQ."""


def released(folder: Path) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, image (3, H, W), landmarks (68, 2) px, face mask (H, W)) of the released preprocessing."""
    with np.load(folder / "fitting_000007.npz") as arrays:
        image, mask = (torch.from_numpy(arrays[key][0]).float() for key in ("image", "parse_mask"))
        found = [("fitting_000007", image / 255, arrays["landmarks_yup"][0], mask[0])]
    segments = (read_image(folder / "01223_final_seg_result.png") * 255).round().long()
    with np.load(folder / "01223_lm68_2d.npz") as arrays:
        for channel, view in enumerate(VIEWS):
            mask = torch.isin(segments[channel], torch.tensor(FACE_LABELS)).float()
            found.append((f"01223_{view}", read_image(folder / f"01223_{view}.jpg"), arrays[view], mask))
    result = []
    for name, image, points, mask in found:
        points = torch.from_numpy(points).float()
        points = torch.stack([points[:, 0], image.shape[-2] - 1 - points[:, 1]], -1)  # they point up
        result.append((name, image, points, mask))
    return result


def measure(folder: Path) -> list[dict[str, Any]]:
    """Landmark error in percent (all; without the jaw) and mask IoU for each released image."""
    rows = []
    for name, image, points, mask in released(folder):
        seen = observe(image)
        found = map_points(seen.fit.to_photo, seen.landmarks68)[0]
        error = 100 * (found - points).norm(dim=1) / (points[36] - points[45]).norm()
        to_crop = invert_affine(seen.full.to_photo)
        ours = crop_affine(seen.full.face_mask, to_crop, tuple(image.shape[-2:]), padding="zeros")[0, 0]
        overlap = torch.minimum(ours, mask).sum() / torch.maximum(ours, mask).sum()
        rows.append(
            {
                "image": name,
                "landmarks_percent": error.mean().item(),
                "without_jaw_percent": error[17:].mean().item(),
                "mask_iou": overlap.item(),
            }
        )
    return rows


def fit(paths: list[Path], preset: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Metrics of each photo after each stage: [{"image", "seconds", "stages": {stage: {metric: value}}}]."""
    from facerecon.configs.compose import compose
    from facerecon.fit.models import build_fitter, prepare
    from facerecon.perception import load_eval_identity

    config = compose("reconstruct", [f"fitting={preset}", "img=none", *overrides])
    device = prepare(config)
    fitter, eval_identity = build_fitter(config, device), load_eval_identity().to(device)
    rows = []
    for number, path in enumerate([paths[0], *paths]):  # the first one warms up
        clock = time.perf_counter()
        photo: Observation = observe(path).to(device)
        observing = time.perf_counter() - clock
        result = fitter(photo)
        if number == 0:
            continue
        metrics, _ = stage_metrics(fitter, photo, result, eval_identity)
        seconds = {"observe": observing} | result.seconds
        rows.append({"image": path.stem, "seconds": seconds, "stages": metrics})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="more photos to fit")
    parser.add_argument("--preset", default="default", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="folder with the released examples")
    parser.add_argument("--out", type=Path, help="JSON with every metric")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"preset": arguments.preset, "set": arguments.set}
    if arguments.reference.is_dir():
        result["released"] = measure(arguments.reference)
        print("| released image | landmarks, % of the inter-ocular distance | without the jaw | face mask IoU |")
        print("|---|---|---|---|")
        for row in result["released"]:
            print(
                f"| {row['image']} | {row['landmarks_percent']:.2f} | {row['without_jaw_percent']:.2f} "
                f"| {row['mask_iou']:.3f} |"
            )
        print()
    else:
        print(f"note: {arguments.reference} is not here; no comparison with the released landmarks and masks.\n")

    paths = [arguments.reference / name for name in ("fitting_000007.jpg", "01223_photo.jpg")]
    paths = [path for path in paths if path.is_file()] + [ROOT / "samples" / "astronaut.jpg", *arguments.images]
    result["photos"] = fit(paths, arguments.preset, arguments.set)
    print("| photo | after | photometric error | CSIM | landmarks, % | seconds |")
    print("|---|---|---|---|---|---|")
    for row in result["photos"]:
        print(f"| {row['image']} | observe | | | | {row['seconds']['observe']:.1f} |")
        for name, values in row["stages"].items():
            print(
                f"| {row['image']} | {name} | {values['photometric']:.4f} | {values['identity']:.3f} "
                f"| {100 * values['nme']:.2f} | {row['seconds'].get(name, 0.0):.1f} |"
            )
        print(f"| {row['image']} | all | | | | {sum(row['seconds'].values()):.1f} |")
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    sys.exit(exit_status(main))
