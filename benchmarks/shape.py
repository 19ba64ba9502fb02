"""How near do mean face, starts and full fit of a head model come to a known shape? By both measures, stage by stage.

    python -m benchmarks.shape --out outputs/shape                             # one real scan in 12 poses and lights
    python -m benchmarks.shape --out outputs/shape --heads ict --n 20          # random heads of ICT-FaceKit
    python -m benchmarks.shape --out outputs/shape --name ict --set face_model=ict face_model_path=ICT-FaceKit

``scan``: a real face of PyPI menpo3d (:mod:`facerecon.synthetic.scan`), whose texture has the light of its scanner's
room baked in; one man with a beard, so that the figures are about him. ``ict``: the heads of ``fit/evaluate.py``
(:mod:`facerecon.synthetic.ict_heads`), by --seed.

Of each photo the region errors (:func:`facerecon.evaluation.region_errors`, distances to the surface) and REALY's
protocol (:func:`facerecon.evaluation.realy_errors`), in mm; and on how many photos the full fit is no worse than its
start. Writes OUT/NAME.json, NAME.md and NAME.jpg (photos, clay renders of the full fits, truth). It goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy import ICT_FILE
from benchmarks.consistency import METHODS, model_digest, text
from facerecon.configs.compose import compose
from facerecon.errors import FaceReconError
from facerecon.evaluation import bootstrap_summary, head_errors, head_regions, region_errors, scan_of_head, stage1_heads
from facerecon.export.views import head_views
from facerecon.fit.models import build_fitter, fit_digest, prepare
from facerecon.imaging.files import contact_sheet, write_jpg
from facerecon.morphable import load_face_model
from facerecon.perception import observe
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.synthetic.ict_heads import SyntheticHead, SyntheticHeads
from facerecon.synthetic.scan import VIEWS, ScanViews
from facerecon.types import FaceParams

REGIONS = ("nose", "mouth", "forehead", "cheek")
MEASURES = {"regions": "region errors", "realy": "REALY's protocol"}
MEAN = "mean face"
TILE = 200


class Truth:
    """Heads whose shape is known: photos by number, and errors of a fit."""

    def __init__(self, kind: str, seed: int, ict: Path) -> None:
        if kind == "scan":
            views = ScanViews(seed=seed)
            self.sample, self.faces, self.regions = views.sample, views.faces, views.regions
        else:
            model = load_face_model("ict", num_identity=None, path=ict)
            self.sample = SyntheticHeads(model, seed).sample
            self.faces, self.regions = model.topology.faces, head_regions(model)

    def errors(self, model: Any, params: FaceParams, head: SyntheticHead) -> dict[str, dict[str, float]]:
        """{measure: {region: mm}}."""
        scan = scan_of_head(head.vertices, self.faces, head.landmarks, self.regions)
        result, shape = head_errors(model, params, scan)
        points = model.landmarks3d(shape[None])[0]
        near = region_errors(
            shape, model.topology.faces, points, head.vertices, self.faces, head.landmarks, self.regions
        )
        found = {"regions": near, "realy": result.errors}
        return {key: {name: round(value, 4) for name, value in of.items()} for key, of in found.items()}


def mean(errors: dict[str, float]) -> float:
    """Over the four regions."""
    return float(np.mean([errors[region] for region in REGIONS]))


def start_of(row: dict[str, Any]) -> str:
    """The method by which the fit of a photo started."""
    return "refined" if "refined" in row["errors"] else "landmarks"


def measure(fitter: Any, truth: Truth, number: int, fits: bool) -> dict[str, Any]:
    """Errors by every method on one photo."""
    head = truth.sample(number)
    photo = observe(head.photo).to(fitter.model.mean.device)
    heads, reason = stage1_heads(fitter, photo)
    heads = {MEAN: fitter.model.neutral(1)} | heads | ({"fit": fitter(photo).face.params} if fits else {})
    errors = {name: truth.errors(fitter.model, params, head) for name, params in heads.items()}
    last = list(heads.values())[-1]
    shown = {key: [round(v, 5) for v in getattr(last, key)[0].tolist()] for key in ("identity", "expression")}
    return {"errors": errors, "fallback": reason, "last": shown}


def table(rows: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Markdown and figures, means over photos."""
    lines, figures = [], {}
    methods = [MEAN, *(name for name in METHODS if all(name in row["errors"] for row in rows))]
    for key, title in MEASURES.items():
        lines += ["", f"| {title}, mm | " + " | ".join([*REGIONS, "mean"]) + " |", "|---" * (2 + len(REGIONS)) + "|"]
        for method in methods:
            of = [row["errors"][method][key] for row in rows]
            cells = [f"{np.mean([e[region] for e in of]):.2f}" for region in REGIONS]
            whole = bootstrap_summary([mean(e) for e in of])
            figures.setdefault(method, {})[key] = {r: round(float(np.mean([e[r] for e in of])), 4) for r in REGIONS}
            figures[method][key]["mean"] = round(whole.value, 4)
            lines.append(f"| {METHODS.get(method, method)} | " + " | ".join([*cells, text(whole)]) + " |")
    told = []
    for key, title in MEASURES.items() if "fit" in methods else ():
        pairs = [(mean(row["errors"]["fit"][key]), mean(row["errors"][start_of(row)][key])) for row in rows]
        figures[f"no worse, {key}"] = sum(fit <= start for fit, start in pairs)
        told.append(f"{figures[f'no worse, {key}']} of {len(rows)} by {title}")
    fallen = sum(bool(row["fallback"]) for row in rows)
    lines += ["", f"The full fit is no worse than its start on {', '.join(told)}." if told else "Without full fits."]
    lines.append(f"Outside N_enc's valid range: {fallen}.")
    return lines, figures


def sheet(model: Any, truth: Truth, rows: dict[int, dict[str, Any]]) -> Tensor:
    """Photos, full fits (or starts) as clay from the front and from the side."""
    tiles, labels = [], []
    for number, row in rows.items():
        given = {key: torch.tensor([values]) for key, values in row["last"].items()}
        shape = model.shape(model.neutral(1).replace(**given))
        tiles.append(truth.sample(number).photo)
        tiles += [head_views(shape, None, model.topology, (yaw,), TILE)[0] for yaw in (0, 60)]
        errors = [mean(row["errors"][name]["realy"]) for name in (start_of(row), "fit") if name in row["errors"]]
        labels += [f"photo {number}", f"REALY {' -> '.join(f'{error:.2f}' for error in errors)} mm", ""]
    return contact_sheet(tiles, columns=6, labels=labels, size=TILE)


def run(options: argparse.Namespace) -> None:
    overrides = [f"fitting={options.preset}", "img=none", "fitting.detail.enabled=false"]
    config = compose("reconstruct", [*overrides, *shlex.split(" ".join(options.set))])
    fitter, truth = build_fitter(config, prepare(config)), Truth(options.heads, options.seed, options.ict)
    settings = f"{fit_digest(config)}-{model_digest(fitter.model)}-{options.seed}"
    journal = options.out / f"{options.name}.json"
    items = json.loads(journal.read_text())["items"] if journal.is_file() else {}

    def save(figures: dict[str, Any]) -> None:
        content = {"command": " ".join(sys.argv), "metrics": figures, "items": items}
        write_whole(journal, (json.dumps(content) + "\n").encode())

    rows, skipped = {}, []
    for number in range(options.n):
        key, clock = f"{options.heads}/{number}", time.perf_counter()
        kept = items.get(key, {})
        enough = options.starts or "skipped" in kept or "fit" in kept.get("errors", ())
        if kept.get("settings") != settings or not enough:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of faces outside the valid range, which are counted
                    row = measure(fitter, truth, number, not options.starts)
            except FaceReconError as error:
                row = {"skipped": str(error)}
            items[key] = row | {"settings": settings, "seconds": round(time.perf_counter() - clock, 1)}
            save({})
        row = items[key]
        if "skipped" in row:
            skipped.append(f"{key} ({row['skipped']})")
            continue
        rows[number] = row
        shown = [f"{name} {mean(of['regions']):.2f} / {mean(of['realy']):.2f}" for name, of in row["errors"].items()]
        print(f"{key}: {', '.join(shown)} ({row['seconds']:.0f} s)", flush=True)
    if not rows:
        print(f"no face was found: {'; '.join(skipped)}")
        return
    lines, figures = table(list(rows.values()))
    what = "one scanned face" if options.heads == "scan" else "heads of ICT-FaceKit"
    about = f"{fitter.model.name}, preset {options.preset}{''.join(f', {part}' for part in options.set)}"
    page = [f"# Shape error on {what} ({about})", *lines]
    page += [f"{len(rows)} photos, seed {options.seed}; left out: {'; '.join(skipped) or 'none'}."]
    page += ["", f"Head model {model_digest(fitter.model)}, fit {fit_digest(config)}."]
    save(figures)
    write_whole(options.out / f"{options.name}.md", ("\n".join(page) + "\n").encode())
    write_jpg(options.out / f"{options.name}.jpg", sheet(fitter.model.to("cpu"), truth, rows))
    print("\n" + "\n".join(page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", choices=("scan", "ict"), default="scan")
    parser.add_argument("--n", type=int, default=len(VIEWS), help="photos")
    parser.add_argument("--seed", type=int, default=0, help="of the photos")
    parser.add_argument("--starts", action="store_true", help="no full fits, which take most of the time")
    parser.add_argument("--preset", default="default", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--ict", type=Path, default=ICT_FILE, help="npz file or clone of ICT-FaceKit, for --heads ict")
    parser.add_argument("--name", default="shape", help="of the files, where several heads share one --out")
    parser.add_argument("--out", type=Path, default=Path("outputs/shape"))
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
