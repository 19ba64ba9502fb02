"""What is N_enc worth as stage 1 where fit/evaluate.py does not look? Over yaw, light and expression; losses, seconds.

    python -m benchmarks.regressor --out outputs/regressor_benchmark
    python -m benchmarks.regressor --weights regressor.safetensors --parts yaw --yaw-heads 6

Errors by region on held-out heads, of every start and of full fits, are those of ``fit/evaluate.py parts=[shape]``
(``set='regressor=regressor.safetensors'``, ``set=stage1=landmarks``). Parts here, all by default, with few items each:

* yaw: heads of ICT-FaceKit in generated skins, seen by another camera, with blur, noise and JPEG, turned from -45 to 45
  degrees: error of the starts in mm (distances to the surface after REALY's alignments), and a chart (yaw.png).
* intra_inter: the identity that is found for one person under 8 lights and with 8 expressions: its standard deviation
  over that between people. N_enc passes with a third.
* limits: ICT heads turned ever further, and in ever smaller pictures, read by N_enc however far they are outside its
  valid range: where its start is no longer better than the landmarks', `fitting.regressor` should end.
* fits: stages 2 and 3 after each start on unseen generated faces and photos: final losses at equal steps, and the steps
  that the start by N_enc saves at equal loss.
* speed: seconds of stage 1 by part.

Writes regressor.json, regressor.md and yaw.png. It goes on where it was stopped: an item that is in the JSON with the
same settings is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.accuracy import ICT_FILE, ROOT
from facerecon.configs.compose import compose
from facerecon.dataset.sampling import held_out_faces
from facerecon.errors import InputError
from facerecon.evaluation import bootstrap_interval, head_regions, region_errors, stage1_heads
from facerecon.export import Bar, bar_chart
from facerecon.fit.models import build_fitter, prepare
from facerecon.fitting import coefficients_to_params, fit_landmarks
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import sh_basis
from facerecon.imaging.files import read_image, write_bytes, write_png
from facerecon.morphable import load_face_model
from facerecon.perception import observe
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.synthetic.ict_heads import SyntheticHeads
from facerecon.synthetic.scene import lamp_coefficients
from facerecon.types import Camera, FaceParams, SHLight

REGIONS = ("nose", "mouth", "forehead", "cheek")
STARTS = ("landmarks", "regressor", "refined")
YAWS = tuple(range(-45, 46, 15))
LIMIT_YAWS = (40, 50, 60, 70, 80)
LIMIT_SIDES = (96, 64, 48, 32, 24, 16)
"""Of the part limits: degrees, and px of the face's side in the picture."""

EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7},
    "open": {"jawOpen": 0.4},
    "laugh": {"mouthSmileLeft": 0.6, "mouthSmileRight": 0.6, "jawOpen": 0.25},
    "surprise": {"browInnerUp": 0.7, "browOuterUpLeft": 0.6, "browOuterUpRight": 0.6},
    "frown": {"browDownLeft": 0.7, "browDownRight": 0.7, "mouthFrownLeft": 0.5, "mouthFrownRight": 0.5},
    "pucker": {"mouthPucker": 0.6},
    "squint": {"eyeSquintLeft": 0.8, "eyeSquintRight": 0.8, "mouthStretchLeft": 0.4, "mouthStretchRight": 0.4},
}
"""Eight expressions, in the units of ICT-FaceKit."""

_LAMPS = {
    # direction to the lamp, its share of the light, its tint
    "even": ((0, 0, 1), 0.0, (1, 1, 1)),
    "front": ((0, 0.2, 1), 0.5, (1, 1, 1)),
    "left": ((-1, 0.2, 0.6), 0.7, (1, 1, 1)),
    "right": ((1, 0.2, 0.6), 0.7, (1, 1, 1)),
    "above": ((0, 1, 0.5), 0.6, (1, 1, 1)),
    "below": ((0, -1, 0.7), 0.5, (1, 1, 1)),
    "warm left": ((-0.7, 0.4, 0.7), 0.5, (1.15, 1, 0.8)),
    "cool right": ((0.7, 0.4, 0.7), 0.5, (0.85, 1, 1.15)),
}


def lights() -> dict[str, SHLight]:
    """Eight lights: an ambient one and a lamp, as bright as each other on what faces the camera."""
    made = {}
    band0 = float(sh_basis(torch.zeros(3))[0])
    for name, (direction, share, tint) in _LAMPS.items():
        towards = F.normalize(torch.tensor([[direction]], dtype=torch.float32), dim=-1)
        light = lamp_coefficients(towards, share * torch.tensor([[tint]], dtype=torch.float32))
        light[:, 0] += (1 - share) / band0
        facing = sh_basis(F.normalize(torch.tensor([[0, 0, 1], [0.5, 0, 1], [-0.5, 0, 1]]), dim=1)) @ light
        made[name] = SHLight(light * (0.95 / facing.mean()))
    return made


class Bench:
    """The models, and the journal of what has been measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        overrides = [f"fitting={options.preset}", "img=none", "stage1=regressor", f"face_model={options.face_model}"]
        overrides += [f"regressor={options.weights}"] if options.weights else []
        overrides += [f"threads={options.threads}"] if options.threads else []
        config = compose("reconstruct", [*overrides, *options.set])
        self.fitter = build_fitter(config, prepare(config))
        self.model, self.network = self.fitter.model, self.fitter.regressor
        content = b"".join(p.detach().cpu().numpy().tobytes() for p in self.network.state_dict().values())
        plain = json.dumps(OmegaConf.to_container(config, resolve=True), sort_keys=True, default=str).encode()
        self.digest = hashlib.sha256(content + plain + str(options.seed).encode()).hexdigest()[:16]
        self.journal = options.out / "regressor.json"
        self.rows = json.loads(self.journal.read_text())["items"] if self.journal.is_file() else {}
        if {"yaw", "intra_inter", "limits"} & set(options.parts):
            self.ict = load_face_model("ict", num_identity=None, path=options.ict)
            self.regions, self.heads = head_regions(self.ict), SyntheticHeads(self.ict, options.seed)

    def measured(self, key: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure an item unless it is in the journal; a photo without a face is noted as such."""
        row = self.rows.get(key)
        if row is not None and row["settings"] == self.digest:
            return
        clock = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of faces outside the valid range, which are counted
                row = measure()
        except InputError as error:
            row = {"skipped": str(error)}
        self.rows[key] = row | {"settings": self.digest}
        content = {"command": " ".join(sys.argv), "about": self.network.about, "items": self.rows}
        write_whole(self.journal, (json.dumps(content, indent=1) + "\n").encode())
        shown = ", ".join(f"{name} {mean_error(of):.2f} mm" for name, of in row.get("errors", {}).items())
        note = row.get("skipped") or row.get("fallback") or ""
        print(f"{key}: {shown or 'measured'} ({time.perf_counter() - clock:.1f} s) {note}".rstrip(), flush=True)

    def found(self, prefix: str) -> list[dict[str, Any]]:
        """Rows of these settings whose key begins so, without those that have no face."""
        return [row for row in self.all(prefix) if "skipped" not in row]

    def all(self, prefix: str) -> list[dict[str, Any]]:
        return [row for key, row in self.rows.items() if key.startswith(prefix) and row["settings"] == self.digest]

    def counts(self, part: str) -> str:
        """How many photos of a part N_enc could not read, and how many had no face."""
        rows = self.found(f"{part}/")
        fallen = [row["fallback"] for row in rows if row.get("fallback")]
        text = f"Outside N_enc's valid range, so started from landmarks: {len(fallen)} of {len(rows)}"
        text += f" (for example: {fallen[0]})" if fallen else ""
        return f"{text}. Photos in which no face was found: {len(self.all(f'{part}/')) - len(rows)}."

    def errors(self, params: FaceParams | None, subject: Any) -> dict[str, float]:
        """{region: mm} of a head, of the mean face if None, against an ICT head."""
        shape = self.model.shape(self.model.neutral(1) if params is None else params)
        points = self.model.landmarks3d(shape)[0]
        found = region_errors(
            shape[0], self.model.topology.faces, points,
            subject.vertices, self.ict.topology.faces, subject.landmarks, self.regions,
        )  # fmt: skip
        return {name: round(value, 4) for name, value in found.items()}


def mean_error(errors: dict[str, float]) -> float:
    """Over the four regions."""
    return float(np.mean([errors[region] for region in REGIONS]))


# -- yaw -------------------------------------------------------------------------------------------------------


def run_yaw(bench: Bench) -> None:
    """ICT heads turned from side to side."""

    def measure(number: int, yaw: float) -> dict[str, Any]:
        subject = bench.heads.sample(number, yaw=yaw, expression={})
        heads, reason = stage1_heads(bench.fitter, observe(subject.photo))
        errors = {name: bench.errors(params, subject) for name, params in {"mean face": None, **heads}.items()}
        return {"errors": errors, "fallback": reason, "head": number, "yaw": yaw}

    for number in range(bench.options.yaw_heads):
        for yaw in YAWS:
            bench.measured(f"yaw/{number}/{yaw}", partial(measure, number, yaw))


def yaw_lines(bench: Bench) -> list[str]:
    methods, groups, lines = ("mean face", *STARTS), [], []
    for yaw in YAWS:
        rows = [row for row in bench.found("yaw/") if row["yaw"] == yaw]
        if rows:
            values = [float(np.mean([mean_error(row["errors"][method]) for row in rows])) for method in methods]
            groups.append((f"{yaw:+d} degrees", [Bar(*pair, series=k) for k, pair in enumerate(zip(methods, values))]))
            lines.append(f"| {yaw:+d} | {len(rows)} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    if not lines:
        return []
    chart = bar_chart("Error of stage 1 over yaw", groups, "mm, mean of four regions", methods)
    write_png(bench.options.out / "yaw.png", read_image(chart))
    head = "| degrees | heads | " + " | ".join(methods) + " |"
    note = "Mean over four regions, in mm; the chart is yaw.png."
    return ["## Yaw", "", head, "|---" * 6 + "|", *lines, "", note, bench.counts("yaw")]


# -- one person in many photos -----------------------------------------------------------------------------------


def run_intra_inter(bench: Bench) -> None:
    """One person in many photos."""

    def measure(number: int, **given: Any) -> dict[str, Any]:
        heads, reason = stage1_heads(bench.fitter, observe(bench.heads.sample(number, yaw=8.0, **given).photo))
        found = {method: [round(v, 4) for v in params.identity[0].tolist()] for method, params in heads.items()}
        return {"identity": found, "fallback": reason}

    lamps = lights()
    for number in range(bench.options.people):
        for name, light in lamps.items():
            key = f"intra_inter/{number}/light/{name}"
            bench.measured(key, partial(measure, number, light=light, expression={}))
        for name, weights in EXPRESSIONS.items():
            key = f"intra_inter/{number}/expression/{name}"
            bench.measured(key, partial(measure, number, light=lamps["front"], expression=weights))


def intra_inter_lines(bench: Bench) -> list[str]:
    topology, lines = bench.model.topology, []
    basis = bench.model.identity_basis[:, topology.faces[topology.regions["face"]].unique()]
    for method in STARTS:
        sets: dict[str, list[Tensor]] = {"light": [], "expression": []}
        for kind, of in sets.items():
            for person in range(bench.options.people):
                rows = [row["identity"][method] for row in bench.found(f"intra_inter/{person}/{kind}/")]
                of += [torch.tensor(rows)] if len(rows) > 1 else []
        if min(len(sets["light"]), len(sets["expression"])) < 2:
            return []
        cells = []
        for to in (lambda x: x, lambda x: 100 * torch.einsum("nk,kvc->nvc", x, basis).flatten(1)):
            intra = {k: float(torch.stack([to(x).var(0).mean() for x in of]).mean().sqrt()) for k, of in sets.items()}
            means = torch.stack([to(torch.cat(pair)).mean(0) for pair in zip(*sets.values(), strict=True)])
            inter = float(means.var(0).mean().sqrt())
            cells += [f"{value:.2f} ({value / inter:.2f})" for value in intra.values()] + [f"{inter:.2f}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    head = "| start | 8 lights | 8 expressions | people | mm: 8 lights | 8 expressions | people |"
    note = (
        "Standard deviations of the identity coefficients of one person, in brackets over that between people (at most "
        "0.33 is asked of the regressor); and of the neutral face's vertices, in mm an axis."
    )
    title = f"## Identity of one person in many photos ({bench.options.people} people)"
    return [title, "", head, "|---" * 7 + "|", *lines, "", note, bench.counts("intra_inter")]


# -- outside the valid range -------------------------------------------------------------------------------------


def run_limits(bench: Bench) -> None:
    """ICT heads outside N_enc's valid range."""
    limits = replace(bench.fitter.regressor_start, max_yaw=180.0, smallest_face=0.0, max_error=1e9)

    def measure(number: int, yaw: float, side: int | None) -> dict[str, Any]:
        subject = bench.heads.sample(number, yaw=yaw, expression={})
        photo = observe(subject.photo)
        if side is not None:
            factor = side / float((photo.box[:, 2:] - photo.box[:, :2]).amin())
            size = max(16, round(subject.photo.shape[-1] * factor))
            small = F.interpolate(subject.photo[None], (size, size), mode="bilinear", antialias=True)[0]
            photo = observe(small.clamp(0, 1))
        heads, _ = stage1_heads(bench.fitter, photo, limits)
        away, camera = {}, Camera.deep3d(photo.image.shape[-1], 1)
        for name, params in heads.items():
            seen = project(camera, bench.model.landmarks3d(bench.model(params), camera))[..., :2]
            pixels = (seen - photo.landmarks68)[:, 17:].norm(dim=-1).mean() * (224 / photo.image.shape[-1])
            away[name] = round(float(pixels), 2)
        return {"errors": {name: bench.errors(params, subject) for name, params in heads.items()}, "apart": away}

    for number in range(bench.options.yaw_heads):
        for yaw in LIMIT_YAWS:
            bench.measured(f"limits/yaw {yaw}/{number}", partial(measure, number, yaw if number % 2 else -yaw, None))
        for side in LIMIT_SIDES:
            bench.measured(f"limits/side {side}/{number}", partial(measure, number, 8.0, side))


def limits_lines(bench: Bench) -> list[str]:
    lines = []
    for kind in [f"yaw {yaw}" for yaw in LIMIT_YAWS] + [f"side {side}" for side in LIMIT_SIDES]:
        rows, found = bench.all(f"limits/{kind}/"), bench.found(f"limits/{kind}/")
        if rows:
            mean = [f"{np.mean([mean_error(r['errors'][m]) for r in found]):.2f}" if found else "" for m in STARTS]
            away = [f"{np.mean([r['apart'][m] for r in found]):.1f}" if found else "" for m in STARTS[:2]]
            lines.append("| " + " | ".join([kind, f"{len(found)} of {len(rows)}", *mean, *away]) + " |")
    if not lines:
        return []
    head = "| degrees or px | heads found | " + " | ".join(STARTS) + " | landmarks: off, px | regressor: off, px |"
    note = "Mean over four regions, in mm; px of 224 by which the inner landmarks of the head are off those found."
    return ["## N_enc outside its valid range", "", head, "|---" * 7 + "|", *lines, "", note]


# -- losses and seconds ------------------------------------------------------------------------------------------


def run_fits(bench: Bench) -> None:
    """Losses of stages 2 and 3 after each start."""

    def measure(source: Any) -> dict[str, Any]:
        photo, losses, reasons = observe(source), {}, {}
        for start, network in (("landmarks", None), ("regressor", bench.network)):
            bench.fitter.regressor = network
            result = bench.fitter(photo)
            losses[start] = {
                name.removesuffix(".total"): [round(v, 6) for v in values[0].tolist()]
                for name, values in result.face.history.items() if name.endswith(".total")
            }  # fmt: skip
            reasons = result.fallbacks
        return {"losses": losses, "fallback": reasons.get(0)}

    paths = [ROOT / "samples" / "astronaut.jpg", *bench.options.images]
    photos = {f"seed_{seed}": image for seed, image in held_out_faces(bench.options.faces)}
    for name, source in (photos | {path.stem: path for path in paths}).items():
        bench.measured(f"fits/{name}", partial(measure, source))


def fits_lines(bench: Bench) -> list[str]:
    rows = bench.found("fits/")
    if not rows:
        return []
    lines = [f"## Stages 2 and 3 after each start ({len(rows)} photos)", ""]
    lines += ["| stage | steps | loss after landmarks | after regressor | difference | steps saved |", "|---" * 6 + "|"]
    for stage in rows[0]["losses"]["landmarks"]:
        ends, saved = [], []
        for row in rows:
            a, b = (np.minimum.accumulate(row["losses"][start][stage]) for start in STARTS[:2])
            ends.append((a[-1], b[-1]))
            saved.append(steps_saved(a, b))
        a, b = np.array(ends).T
        mean, low, high = bootstrap_interval(torch.tensor(b - a))
        lines.append(
            f"| {stage} | {len(rows[0]['losses']['landmarks'][stage])} | {a.mean():.4f} | {b.mean():.4f} | {mean:+.4f} "
            f"({low:+.4f} to {high:+.4f}) | {np.mean(saved):+.1f} |"
        )
    note = (
        "Least weighted loss at equal steps, means; the difference with a bootstrap interval of 95 %. Steps saved: by "
        "how many the start by N_enc is ahead where both reach the worse of the two ends."
    )
    return [*lines, "", note, bench.counts("fits")]


def steps_saved(without: np.ndarray, by: np.ndarray) -> int:
    """Steps that ``by`` is ahead of ``without`` where the worse of the two ends; negative: behind."""
    level = max(without[-1], by[-1])
    return int(np.argmax(without <= level)) - int(np.argmax(by <= level))


def run_speed(bench: Bench) -> None:
    """Seconds of stage 1."""

    def measure() -> dict[str, Any]:
        photo, f, network = observe(ROOT / "samples" / "astronaut.jpg"), bench.fitter, bench.network
        camera = Camera.deep3d(photo.image.shape[-1], 1)
        landmarks = partial(fit_landmarks, bench.model, photo.landmarks68, camera, photo.mesh468, f.start)
        prediction = coefficients_to_params(network(network.sized(photo.image)), bench.model)
        parts = {
            "network": lambda: network(network.sized(photo.image)),
            "refinement": partial(landmarks, start=prediction),
            "all of stage 1": lambda: f.initialize(photo),
            "landmarks instead": landmarks,
        }
        seconds = {name: timed(call) for name, call in parts.items()}
        return {"seconds": seconds, "threads": torch.get_num_threads(), "fallback": None}

    bench.measured("speed/", measure)


@torch.no_grad()
def timed(call: Callable[[], object], rounds: int = 7) -> dict[str, float]:
    """Median wall-clock and CPU seconds of a call."""
    call()
    found = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return dict(zip(("wall", "cpu"), np.median(found, 0).tolist()))


def speed_lines(bench: Bench) -> list[str]:
    lines = []
    for row in bench.found("speed/"):
        lines += [f"## Seconds of stage 1 ({row['threads']} threads)", "", "| part | wall | CPU |", "|---|---|---|"]
        lines += [f"| {name} | {v['wall']:.3f} | {v['cpu']:.3f} |" for name, v in row["seconds"].items()]
        lines += ["", "Medians of seven; all of stage 1 is network, refinement, light and texture."]
    return lines


PARTS = {
    "yaw": (run_yaw, yaw_lines),
    "intra_inter": (run_intra_inter, intra_inter_lines),
    "limits": (run_limits, limits_lines),
    "fits": (run_fits, fits_lines),
    "speed": (run_speed, speed_lines),
}


def run(options: argparse.Namespace) -> None:
    bench = Bench(options)
    for part in options.parts:
        PARTS[part][0](bench)
    c = bench.network.config
    about = f"{c.backbone}, width {c.width:g}, face model {c.face_model}, preset {options.preset}, seed {options.seed}"
    lines = [f"# N_enc as stage 1 ({about})", ""]
    for _, table in PARTS.values():
        section = table(bench)
        lines += [*section, ""] if section else []
    write_bytes(options.out / "regressor.md", "\n".join(lines).encode())
    print("\n" + "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of the regressor; what comes with the library if left out")
    parser.add_argument("--face-model", default="makehuman")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--yaw-heads", type=int, default=2, help="heads of the parts yaw and limits")
    parser.add_argument("--people", type=int, default=3, help="of the part intra_inter")
    parser.add_argument("--faces", type=int, default=3, help="of the generator, beside the photos of the part fits")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="more photos for the part fits")
    parser.add_argument("--preset", default="default", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--ict", type=Path, default=ICT_FILE, help="npz file or clone of ICT-FaceKit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("outputs/regressor_benchmark"))
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
