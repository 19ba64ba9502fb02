"""Does the fit recover heads of another model? Region error in mm against the mean face (Sec. 4.3).

    python benchmarks/recovery.py --n 20 --out recovery.json --save-sheet recovery.png

Truth: random heads of ICT-FaceKit (identity modes from light-stage scans), with a mild expression and pose, wearing
the skin of a generated face, in random spherical-harmonic light, seen by another camera than the fit's (another focal
length and distance, off-center, slightly rolled), before a coarse picture; then blurred, with noise, JPEG-compressed.
Nothing of how they were made is told to the fit. Compared: our model's mean face, and the fit after each stage, all
aligned in the same way; the truth and the fits have their expression, pose is taken out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from facerecon.errors import FaceReconError, InputError
from facerecon.evaluation import head_regions, reconstruction_metrics, region_errors
from facerecon.fitting import LandmarkStart, fit_landmarks
from facerecon.imaging.files import contact_sheet, write_png
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.perception import observe
from facerecon.synthetic.ict_heads import SKINS, SyntheticHead, gray_view, make_head, sample_textures
from facerecon.types import FaceParams, Observation

ICT_FILE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "ict" / "ict_facekit_light.npz"


# -- the benchmark ---------------------------------------------------------------------------------------------


def table(errors: dict[str, list[dict[str, float]]], regions: list[str]) -> str:
    """Markdown: mean and standard deviation a region, and the share of heads that beat the mean face."""
    lines = ["| mm | " + " | ".join(regions) + " | mean |", "|---|" + "---|" * (len(regions) + 1)]
    base = errors["mean face"]
    for method, rows in errors.items():
        cells = []
        for region in [*regions, None]:
            mine, theirs = (
                np.array([row[region] if region else np.mean([row[r] for r in regions]) for row in of])
                for of in (rows, base)
            )
            cell = f"{mine.mean():.2f} ± {mine.std():.2f}"
            cells.append(cell if method == "mean face" else f"{cell} ({100 * (mine < theirs).mean():.0f} %)")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="heads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="default", help="configs/fitting/PRESET.yaml; 'start' fits landmarks only")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--batch", type=int, default=5, help="heads fitted at once")
    parser.add_argument("--ict", type=Path, default=ICT_FILE, help="npz file or clone of ICT-FaceKit")
    parser.add_argument("--out", type=Path, help="JSON with every figure")
    parser.add_argument("--save-sheet", type=Path, help="PNG: photo, fit, true shape, fitted shape")
    arguments = parser.parse_args()
    try:
        return run(arguments)
    except FaceReconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


@torch.no_grad()
def prepare(ict: MorphableModel, count: int, seed: int) -> list[tuple[SyntheticHead, Observation]]:
    """Heads with their photos, observed; a photo in which no face is found is counted, said, and made again."""
    rng = np.random.default_rng(seed)
    prepared: list[tuple[SyntheticHead, Observation]] = []
    backdrop = None
    rounds = [rng.permutation(SKINS) for _ in range(1 + 2 * count // len(SKINS))]
    for texture, picture in sample_textures(ict, np.concatenate(rounds)):
        backdrop = picture if backdrop is None else backdrop
        subject = make_head(ict, texture, backdrop, rng)
        backdrop = picture
        try:
            prepared.append((subject, observe(subject.photo)))
        except InputError as error:
            print(f"note: head {len(prepared)} made again: {error}")
            continue
        if len(prepared) == count:
            break
    return prepared


def run(arguments: argparse.Namespace) -> int:
    from configs.compose import compose
    from fit.models import build_fitter
    from fit.models import prepare as prepare_run

    clock = time.perf_counter()
    ict = load_face_model("ict", num_identity=None, path=arguments.ict)
    preset = "default" if arguments.preset == "start" else arguments.preset
    config = compose("reconstruct", [f"fitting={preset}", "img=none", f"seed={arguments.seed}", *arguments.set])
    device = prepare_run(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare(ict, arguments.n, arguments.seed)
    seconds: dict[str, float] = {"heads": time.perf_counter() - clock}

    fitter = None
    if arguments.preset == "start":
        model = load_face_model(config.face_model, num_identity=config.pack.num_identity)
        start = LandmarkStart(**config.fitting.start)
    else:
        fitter = build_fitter(config, device)
        model = fitter.model
    fits: dict[str, list[FaceParams]] = {}
    pictures: list[Tensor] = []
    figures: dict[str, list[dict[str, float]]] = {}
    for at in range(0, arguments.n, arguments.batch):
        photo = Observation.cat([observed for _, observed in prepared[at : at + arguments.batch]]).to(device)
        clock = time.perf_counter()
        if fitter is None:
            stages = {"start": (fit_landmarks(model, photo.landmarks68, None, photo.mesh468, start), None)}
            seconds["start"] = seconds.get("start", 0) + time.perf_counter() - clock
        else:
            fitter(photo)
            stages = fitter.stage_params
            for name, value in fitter.seconds.items():
                seconds[name] = seconds.get(name, 0) + value
        for name, (params, latent) in stages.items():
            fits.setdefault(name, []).extend(params[i].to("cpu") for i in range(photo.batch))
            if fitter is not None:
                texture = fitter.decoder(latent).detach().clamp(0, 1)
                values, image = reconstruction_metrics(photo, params, texture, model, fitter.renderer)
                for i in range(photo.batch):
                    figures.setdefault(name, []).append({key: value[i].item() for key, value in values.items()})
        if fitter is not None:
            pictures.extend(image.cpu())

    clock = time.perf_counter()
    model = model.to("cpu")
    regions = head_regions(ict)
    mean_face = model.shape(model.neutral(1))
    errors: dict[str, list[dict[str, float]]] = {"mean face": []}
    rows = []
    for i, (subject, observed) in enumerate(prepared):
        candidates = {"mean face": mean_face} | {name: model.shape(of[i]) for name, of in fits.items()}
        for name, shape in candidates.items():
            errors.setdefault(name, []).append(
                region_errors(
                    shape[0], model.topology.faces, model.landmarks3d(shape)[0],
                    subject.vertices, ict.topology.faces, subject.landmarks, regions,
                )
            )  # fmt: skip
        found = observed.landmarks68[0] @ observed.fit.to_photo[0, :, :2].mT + observed.fit.to_photo[0, :, 2]
        inner = (found[27:] - subject.pixels[27:]).norm(dim=-1).mean()
        between = (subject.pixels[45] - subject.pixels[36]).norm()
        rows.append({"landmark_error": (inner / between).item(), "errors": {k: v[i] for k, v in errors.items()}})
    seconds["errors"] = time.perf_counter() - clock

    names = list(regions)
    text = table(errors, names)
    print(f"{arguments.n} heads of ICT-FaceKit, seed {arguments.seed}, preset {arguments.preset}\n")
    print(text)
    print(
        f"\nmean ± standard deviation over heads; in brackets the share of heads nearer than the mean face. Landmarks "
        f"found on the photos: {100 * np.mean([row['landmark_error'] for row in rows]):.1f} % of the inter-ocular "
        "distance from the true ones (without jaw and brows)."
    )
    for name, values in figures.items():
        shown = ", ".join(f"{key} {np.mean([v[key] for v in values]):.4f}" for key in values[0])
        print(f"after {name}: {shown}")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    summary = {
        method: {
            region: {"mean": float(np.mean(of)), "std": float(np.std(of))}
            for region, of in ((name, [row[name] for row in rows_of]) for name in names)
        }
        for method, rows_of in errors.items()
    }
    last = list(fits)[-1]
    worse = [name for name in names if summary[last][name]["mean"] >= summary["mean face"][name]["mean"]]
    print("beats the mean face in every region" if not worse else f"does NOT beat the mean face in: {', '.join(worse)}")
    if arguments.out:
        plain: dict[str, Any] = {
            "n": arguments.n, "seed": arguments.seed, "preset": arguments.preset, "set": arguments.set,
            "summary_mm": summary, "heads": rows, "figures": figures, "seconds": seconds,
        }  # fmt: skip
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(plain, indent=1))
    if arguments.save_sheet:
        tiles, labels = [], []
        for i, (subject, observed) in enumerate(prepared):
            fitted = gray_view(model, model.shape(fits[last][i])[0])
            picture = pictures[i] if pictures else observed.image[0]
            tiles += [subject.photo, picture, gray_view(ict, subject.vertices), fitted]
            mean_error = np.mean(list(errors[last][i].values()))
            labels += [f"head {i}", "fit", "true shape", f"fitted, {mean_error:.2f} mm"]
        arguments.save_sheet.parent.mkdir(parents=True, exist_ok=True)
        write_png(arguments.save_sheet, contact_sheet(tiles, columns=8, labels=labels, size=224))
    return 0


if __name__ == "__main__":
    sys.exit(main())
