"""What is N_enc worth as stage 1? Shape in mm, over yaw, its spread over light and expression, losses, seconds.

    python benchmarks/regressor.py --out outputs/regressor_benchmark
    python benchmarks/regressor.py --weights regressor.safetensors --parts ict yaw --n 20 --yaw-heads 6

Parts (all by default, with few items each):

* synthetic: held-out heads of the fit's own head model, as train/regressor.py draws them, with blur, noise and JPEG.
* ict: heads of ICT-FaceKit in generated skins, seen by another camera, with blur, noise and JPEG (as in recovery.py).
  Of both, error by region in mm (nose, mouth, forehead, cheek; distances to the surface after REALY's alignments, and
  by REALY's own protocol) of the mean face, the start from landmarks, what N_enc says, that refined on landmarks, and
  the full three stages after each start.
* yaw: ICT heads from -45 to 45 degrees, error of the starts; a curve (yaw.png).
* spread: the identity that is found for one person under 8 lights and with 8 expressions: its spread against that
  between people. N_enc passes with a third.
* fits: stages 2 and 3 after each start on unseen generated faces and photos: final losses at equal steps, and the steps
  that the start by N_enc saves at equal loss.
* limits: ICT heads turned ever further, and in ever smaller pictures, read by N_enc however far it is out of its depth:
  where its start is no longer better than the landmarks', `fitting.regressor` should end.
* speed: seconds of stage 1 by part.

Writes regressor.json, regressor.md, yaw.png and heads.jpg. It goes on where it was stopped: an item that is in the JSON
with the same settings is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.accuracy import ROOT
from benchmarks.reconstruction import photos, save
from benchmarks.recovery import ICT_FILE
from configs.compose import compose
from facerecon.errors import ConfigError, FaceReconError, InputError
from facerecon.evaluation import bootstrap_interval, head_regions, region_errors
from facerecon.evaluation.realy import realy_errors, scan_of_head
from facerecon.fitting import RegressorStart, coefficients_to_params, fit_landmarks, start_from_regressor
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import sh_basis
from facerecon.imaging.files import contact_sheet, read_image, write_bytes, write_jpg
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.perception import observe
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces
from facerecon.synthetic.ict_heads import SyntheticHead, SyntheticHeads, degrade, gray_view
from facerecon.synthetic.scene import lamp_coefficients
from facerecon.types import Camera, FaceParams, Observation, SHLight

PARTS = ("synthetic", "ict", "yaw", "spread", "limits", "fits", "speed")
REGIONS = ("nose", "mouth", "forehead", "cheek")
STARTS = ("landmarks", "regressor", "regressor, refined")
METHODS = ("mean face", *STARTS, "landmarks, all stages", "regressor, all stages")
YAWS = tuple(range(-45, 46, 15))
LIMIT_YAWS = (40, 50, 60, 70, 80)
LIMIT_SIDES = (96, 64, 48, 32, 24, 16)
"""Of the part limits: degrees, and px of the face's side in the picture."""

TEST_SEED = 90_001
"""Of held-out heads; training draws from its own seed, small numbers."""

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
    """The models, and the journal of what has been measured.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from omegaconf import OmegaConf

        from fit.models import build_fitter, prepare

        self.options = options
        overrides = [f"fitting={options.preset}", "img=none", "stage1=regressor", f"face_model={options.face_model}"]
        overrides += [f"regressor={options.weights}"] if options.weights else []
        overrides += [f"threads={options.threads}"] if options.threads else []
        config = compose("reconstruct", [*overrides, *options.set])
        self.fitter = build_fitter(config, prepare(config))
        self.model: MorphableModel = self.fitter.model
        self.network = self.fitter.regressor
        self.config = config
        content = b"".join(p.detach().cpu().numpy().tobytes() for p in self.network.state_dict().values())
        plain = json.dumps(OmegaConf.to_container(config, resolve=True), sort_keys=True, default=str).encode()
        self.digest = hashlib.sha256(content + plain + str(options.seed).encode()).hexdigest()[:16]
        self.out: Path = options.out
        (self.out / "pictures").mkdir(parents=True, exist_ok=True)
        self.journal = self.out / "regressor.json"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.journal.is_file():
            self.rows = json.loads(self.journal.read_text())["items"]

    def measured(self, key: str, measure: Callable[[], dict[str, Any]], method: str | None = None) -> dict[str, Any]:
        """An item of the journal, measured unless it is there (with the errors of a method, if one is named); a photo
        without a face is noted as such."""
        row = self.rows.get(key)
        lacks = row is not None and method is not None and "errors" in row and method not in row["errors"]
        if row is None or row["settings"] != self.digest or lacks:
            clock = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of faces out of its depth, which are counted
                    row = measure()
            except InputError as error:
                row = {"skipped": str(error)}
            row["settings"] = self.digest
            self.rows[key] = row
            save(self.journal, {"command": " ".join(sys.argv), "about": self.network.about, "items": self.rows})
            print(f"{key}: {in_words(row)} ({time.perf_counter() - clock:.1f} s)", flush=True)
        return row

    def items(self, part: str, count: int) -> list[dict[str, Any]]:
        """Measured rows of a part, those without a face left out."""
        rows = [self.rows.get(f"{part}/{i}") for i in range(count)]
        return [row for row in rows if row is not None and row["settings"] == self.digest and "skipped" not in row]

    # -- starts ------------------------------------------------------------------------------------

    def starts(
        self, photo: Observation, believed: RegressorStart | None = None
    ) -> tuple[dict[str, FaceParams], str | None]:
        """Each of :data:`STARTS` for one face, and why N_enc cannot read it, if so; all are the landmarks' then."""
        camera = Camera.deep3d(photo.image.shape[-1], 1, photo.image.device)
        f = self.fitter
        points = fit_landmarks(self.model, photo.landmarks68, camera, photo.mesh468, f.start)
        prediction, refined = (
            start_from_regressor(self.model, self.network, photo, camera, start, believed or f.regressor_start)
            for start in (replace(f.start, refine=0), f.start)
        )
        return dict(zip(STARTS, (points, prediction[0], refined[0]))), refined[2].get(0)

    def fits(self, photo: Observation) -> dict[str, tuple[FaceParams, dict[str, Tensor]]]:
        """{start: (parameters after the last stage, history)} of full fits."""
        found = {}
        for name in ("landmarks", "regressor"):
            self.fitter.regressor = self.network if name == "regressor" else None
            try:
                face = self.fitter(photo)
            finally:
                self.fitter.regressor = self.network
            found[name] = (face.params, face.history)
        return found

    # -- heads ---------------------------------------------------------------------------------------

    @cached_property
    def ict(self) -> MorphableModel:
        return load_face_model("ict", num_identity=None, path=self.options.ict)

    @cached_property
    def synthetic_heads(self) -> SyntheticHeads:
        return SyntheticHeads(self.ict, self.options.seed)

    def subject(self, number: int, **given: Any) -> SyntheticHead:
        """An ICT head by number; what is not given is drawn from that number alone."""
        return self.synthetic_heads.sample(number, **given)

    @cached_property
    def ict_regions(self) -> dict[str, Any]:
        return head_regions(self.ict)

    @cached_property
    def own_regions(self) -> dict[str, Any]:
        return head_regions(self.model)

    @cached_property
    def synthetic(self) -> SyntheticFaces:
        if self.model.name != "makehuman" and self.network.config.decoder != "albedo":
            raise ConfigError("the part synthetic needs the linear texture of the head; use --parts ict yaw spread.")
        decoder = load_decoder(self.network.config.decoder)
        settings = replace(WITHIN_MODEL, yaw_limit=45.0)
        return SyntheticFaces(self.model, decoder, settings, seed=TEST_SEED + self.options.seed, size=448)

    def errors(self, params: FaceParams | None, truth: tuple[Any, Any, Any], regions: dict[str, Any]) -> dict:
        """{region: mm} of a head, of the mean face if None, against (vertices, faces, landmarks)."""
        params = self.model.neutral(1) if params is None else params
        shape = self.model.shape(params)
        points = self.model.landmarks3d(shape)[0]
        found = region_errors(shape[0], self.model.topology.faces, points, *truth, regions)
        return {name: round(value, 4) for name, value in found.items()}

    def realy(self, params: FaceParams | None, truth: tuple[Any, Any, Any], regions: dict[str, Any]) -> dict:
        """The same by REALY's own protocol, which searches correspondences, too."""
        params = self.model.neutral(1) if params is None else params
        shape = self.model.shape(params)
        points = self.model.landmarks3d(shape)[0]
        found = realy_errors(shape[0], self.model.topology.faces, points, scan_of_head(*truth, regions))
        return {name: round(value, 4) for name, value in found.errors.items()}

    def compare(
        self, name: str, photo: Observation, truth: tuple[Any, Any, Any], regions: dict, true_model: MorphableModel
    ) -> dict[str, Any]:
        """Errors of every method on one head, and its pictures."""
        heads, reason = self.starts(photo)
        if not self.options.starts_only:
            heads |= {f"{start}, all stages": params for start, (params, _) in self.fits(photo).items()}
        named = {"mean face": None} | heads
        errors = {method: self.errors(params, truth, regions) for method, params in named.items()}
        realy = {method: self.realy(params, truth, regions) for method, params in named.items()}
        tiles = {"photo": photo.image[0], "true": gray_view(true_model, truth[0])}
        tiles |= {method: gray_view(self.model, self.model.shape(params)[0]) for method, params in heads.items()}
        for method, tile in tiles.items():
            write_jpg(self.out / "pictures" / f"{name.replace('/', '_')}_{method}.jpg", tile)
        return {"errors": errors, "realy": realy, "fallback": reason}

    @property
    def last_method(self) -> str:
        """The one that takes longest, of those wanted."""
        return STARTS[-1] if self.options.starts_only else METHODS[-1]

    # -- parts ---------------------------------------------------------------------------------------

    def run_synthetic(self) -> None:
        """Heads of the fit's own model."""

        def measure(number: int) -> dict[str, Any]:
            batch = self.synthetic([number])
            photo = observe(degrade(batch.image, np.random.default_rng([self.options.seed, number])))
            check_found(photo, batch.landmarks68[0] * (batch.image.shape[-1] / 224))
            shape = self.model.shape(batch.params)
            truth = shape[0], self.model.topology.faces, self.model.landmarks3d(shape)[0]
            return self.compare(f"synthetic/{number}", photo, truth, self.own_regions, self.model)

        for number in range(self.options.n):
            self.measured(f"synthetic/{number}", lambda number=number: measure(number), self.last_method)

    def run_ict(self) -> None:
        """Heads of another model."""

        def measure(number: int) -> dict[str, Any]:
            subject = self.subject(number)
            photo = observe(subject.photo)
            check_found(photo, subject.pixels)
            truth = subject.vertices, self.ict.topology.faces, subject.landmarks
            return self.compare(f"ict/{number}", photo, truth, self.ict_regions, self.ict)

        for number in range(self.options.n):
            self.measured(f"ict/{number}", lambda number=number: measure(number), self.last_method)

    def run_yaw(self) -> None:
        """ICT heads turned from side to side."""

        def measure(number: int, yaw: float) -> dict[str, Any]:
            subject = self.subject(number, yaw=yaw, expression={})
            truth = subject.vertices, self.ict.topology.faces, subject.landmarks
            heads, reason = self.starts(observe(subject.photo))
            errors = {"mean face": self.errors(None, truth, self.ict_regions)}
            errors |= {method: self.errors(params, truth, self.ict_regions) for method, params in heads.items()}
            return {"errors": errors, "fallback": reason, "head": number, "yaw": yaw}

        for number in range(self.options.yaw_heads):
            for yaw in YAWS:
                self.measured(f"yaw/{number}/{yaw}", lambda n=number, y=yaw: measure(n, y))

    def run_spread(self) -> None:
        """One person in many photos."""

        def measure(number: int, **given: Any) -> dict[str, Any]:
            photo = observe(self.subject(number, yaw=8.0, **given).photo)
            heads, reason = self.starts(photo)
            found = {method: [round(v, 4) for v in params.identity[0].tolist()] for method, params in heads.items()}
            return {"identity": found, "fallback": reason, "person": number}

        for number in range(self.options.people):
            for name, light in lights().items():
                key = f"spread/{number}/light/{name}"
                self.measured(key, lambda n=number, g=light: measure(n, light=g, expression={}))
            for name, weights in EXPRESSIONS.items():
                key = f"spread/{number}/expression/{name}"
                self.measured(key, lambda n=number, g=weights: measure(n, light=lights()["front"], expression=g))

    def run_limits(self) -> None:
        """N_enc out of its depth."""
        allowed = replace(self.fitter.regressor_start, max_yaw=180.0, smallest_face=0.0, max_error=1e9)

        def measure(number: int, yaw: float, side: int | None) -> dict[str, Any]:
            subject = self.subject(number, yaw=yaw, expression={})
            photo = observe(subject.photo)
            if side is not None:
                factor = side / float((photo.box[:, 2:] - photo.box[:, :2]).amin())
                size = max(16, round(subject.photo.shape[-1] * factor))
                small = F.interpolate(subject.photo[None], (size, size), mode="bilinear", antialias=True)[0]
                photo = observe(small.clamp(0, 1))
            heads, _ = self.starts(photo, allowed)
            apart, camera = {}, Camera.deep3d(photo.image.shape[-1], 1)
            for name, params in heads.items():
                seen = project(camera, self.model.landmarks3d(self.model(params), camera))[..., :2]
                away = (seen - photo.landmarks68)[:, 17:].norm(dim=-1).mean() * (224 / photo.image.shape[-1])
                apart[name] = round(float(away), 2)
            truth = subject.vertices, self.ict.topology.faces, subject.landmarks
            errors = {method: self.errors(params, truth, self.ict_regions) for method, params in heads.items()}
            return {"errors": errors, "apart": apart, "head": number, "yaw": yaw, "side": side}

        for number in range(self.options.yaw_heads):
            for yaw in LIMIT_YAWS:
                sign = yaw if number % 2 else -yaw
                self.measured(f"limits/{number}/yaw {yaw}", lambda n=number, y=sign: measure(n, y, None))
            for side in LIMIT_SIDES:
                self.measured(f"limits/{number}/side {side}", lambda n=number, w=side: measure(n, 8.0, w))

    def run_fits(self) -> None:
        """Losses of stages 2 and 3 after each start."""
        o = self.options
        given = argparse.Namespace(faces=o.faces, first_seed=100_001, truncation=0.7, dark_share=0.15, images=o.images)

        def measure(source: Any) -> dict[str, Any]:
            photo = observe(source)
            found: dict[str, Any] = {}
            for start, (_, history) in self.fits(photo).items():
                found[start] = {
                    name.removesuffix(".total"): [round(v, 6) for v in values[0].tolist()]
                    for name, values in history.items() if name.endswith(".total")
                }  # fmt: skip
            return {"losses": found, "fallback": self.fitter.fallbacks.get(0)}

        for name, source in photos(given):
            self.measured(f"fits/{name}", lambda source=source: measure(source))

    def run_speed(self) -> None:
        """Seconds of stage 1."""

        def measure() -> dict[str, Any]:
            photo, f = observe(ROOT / "samples" / "astronaut.jpg"), self.fitter
            camera = Camera.deep3d(photo.image.shape[-1], 1)
            landmarks = lambda: fit_landmarks(self.model, photo.landmarks68, camera, photo.mesh468, f.start)  # noqa: E731
            network = lambda: self.network(self.network.sized(photo.image))  # noqa: E731
            first = coefficients_to_params(network(), self.model)
            refine = lambda: fit_landmarks(self.model, photo.landmarks68, camera, photo.mesh468, f.start, start=first)  # noqa: E731
            parts = {"network": network, "refinement": refine, "all of stage 1": lambda: f.initialize(photo),
                     "landmarks instead": landmarks}  # fmt: skip
            found = {}
            for name, call in parts.items():
                with torch.no_grad():
                    call()
                    wall, cpu = [], []
                    for _ in range(7):
                        a, b = time.perf_counter(), time.process_time()
                        call()
                        wall.append(time.perf_counter() - a)
                        cpu.append(time.process_time() - b)
                found[name] = {"wall": float(np.median(wall)), "cpu": float(np.median(cpu))}
            return {"seconds": found, "threads": torch.get_num_threads(), "fallback": f.fallbacks.get(0)}

        self.measured("speed", measure)

    # -- report --------------------------------------------------------------------------------------

    def report(self) -> str:
        """Markdown of everything in the journal that was measured with these settings."""
        o, c = self.options, self.network.config
        about = f"{c.backbone}, width {c.width:g}, face model {c.face_model}, preset {o.preset}, seed {o.seed}"
        lines = [f"# N_enc as stage 1 ({about})", ""]
        titles = {"synthetic": "Held-out synthetic heads", "ict": "ICT-FaceKit heads, another camera, spoiled"}
        for part, title in titles.items():
            rows = self.items(part, o.n)
            if rows:
                lines += [f"## {title} ({len(rows)})", "", *region_table(rows), ""]
                lines += ["By REALY's own protocol:", "", *region_table(rows, "realy"), "", *self.counts(part), ""]
        sections = self.yaw_lines(), self.spread_lines(), self.limit_lines(), self.fit_lines(), self.speed_lines()
        for section in sections:
            lines += [*section, ""] if section else []
        return "\n".join(lines)

    def counts(self, part: str) -> list[str]:
        """How many photos of a part N_enc could not read, and how many had no face."""
        rows = [row for key, row in self.rows.items() if key.startswith(f"{part}/") and row["settings"] == self.digest]
        missed = sum("skipped" in row for row in rows)
        fallen = [row["fallback"] for row in rows if row.get("fallback")]
        text = f"Out of N_enc's depth, so started from landmarks: {len(fallen)} of {len(rows) - missed}"
        text += f" (for example: {fallen[0]})" if fallen else ""
        return [text + f". Photos in which no face was found, or something else: {missed}."]

    def yaw_lines(self) -> list[str]:
        keys = [f"yaw/{n}/{yaw}" for n in range(self.options.yaw_heads) for yaw in YAWS]
        rows = [self.rows[k] for k in keys if self.rows.get(k, {}).get("settings") == self.digest]
        rows = [row for row in rows if "skipped" not in row]
        if not rows:
            return []
        methods = ("mean face", *STARTS)
        curves: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
        lines = ["## Yaw", "", "| degrees | heads | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
        for yaw in YAWS:
            of = [row for row in rows if row["yaw"] == yaw]
            if not of:
                continue
            cells = []
            for method in methods:
                value = float(np.mean([mean_error(row["errors"][method]) for row in of]))
                curves[method].append((yaw, value))
                cells.append(f"{value:.2f}")
            lines.append(f"| {yaw:+d} | {len(of)} | " + " | ".join(cells) + " |")
        plot(self.out / "yaw.png", curves, "yaw, degrees", "mm, mean of four regions", "Error of stage 1 over yaw")
        return [*lines, "", "Mean over four regions, in mm; the curve is in yaw.png.", *self.counts("yaw")]

    def spread_lines(self) -> list[str]:
        people = range(self.options.people)
        lines: list[str] = []
        basis = self.model.identity_basis[:, self.model.topology.faces[self.model.topology.regions["face"]].unique()]
        for method in STARTS:
            sets: dict[str, list[Tensor]] = {"light": [], "expression": []}
            for kind, names in (("light", _LAMPS), ("expression", EXPRESSIONS)):
                for person in people:
                    rows = [self.rows.get(f"spread/{person}/{kind}/{name}", {}) for name in names]
                    rows = [r for r in rows if r.get("settings") == self.digest and "skipped" not in r]
                    if len(rows) > 1:
                        sets[kind].append(torch.tensor([r["identity"][method] for r in rows]))
            if min(len(sets["light"]), len(sets["expression"])) < 2:
                return []
            cells = []
            for to in (lambda x: x, lambda x: 100 * torch.einsum("nk,kvc->nvc", x, basis).flatten(1)):
                within = {
                    kind: float(torch.stack([to(x).var(0).mean() for x in of]).mean().sqrt())
                    for kind, of in sets.items()
                }
                means = torch.stack([to(torch.cat(pair)).mean(0) for pair in zip(*sets.values(), strict=True)])
                between = float(means.var(0).mean().sqrt())
                cells += [f"{within[k]:.2f} ({within[k] / between:.2f})" for k in sets] + [f"{between:.2f}"]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        head = "| start | 8 lights | 8 expressions | people | mm: 8 lights | 8 expressions | people |"
        note = (
            "Standard deviations of the identity coefficients of one person, in brackets over that between people (at "
            "most 0.33 is asked of the regressor); and of the neutral face's vertices, in mm an axis."
        )
        title = f"## Spread of one person's identity ({len(people)} people)"
        return [title, "", head, "|---" * 7 + "|", *lines, "", note, *self.counts("spread")]

    def limit_lines(self) -> list[str]:
        heads, lines = range(self.options.yaw_heads), []
        kinds = [f"yaw {yaw}" for yaw in LIMIT_YAWS] + [f"side {side}" for side in LIMIT_SIDES]
        for kind in kinds:
            rows = [self.rows.get(f"limits/{n}/{kind}", {}) for n in heads]
            rows = [r for r in rows if r.get("settings") == self.digest]
            found = [r for r in rows if "skipped" not in r]
            if rows:
                mean = [f"{np.mean([mean_error(r['errors'][m]) for r in found]):.2f}" if found else "" for m in STARTS]
                away = [f"{np.mean([r['apart'][m] for r in found]):.1f}" if found else "" for m in STARTS[:2]]
                cells = [kind, f"{len(found)} of {len(rows)}", *mean, *away]
                lines.append("| " + " | ".join(cells) + " |")
        if not lines:
            return []
        head = "| degrees or px | heads found | " + " | ".join(STARTS) + " | landmarks: off, px | regressor: off, px |"
        note = "Mean over four regions, in mm; px of 224 by which the inner landmarks of the head are off those found."
        return ["## N_enc out of its depth", "", head, "|---" * 7 + "|", *lines, "", note]

    def fit_lines(self) -> list[str]:
        rows = {k: r for k, r in self.rows.items() if k.startswith("fits/") and r["settings"] == self.digest}
        rows = {k: r for k, r in rows.items() if "skipped" not in r}
        if not rows:
            return []
        lines = [f"## Stages 2 and 3 after each start ({len(rows)} photos)", ""]
        lines += [
            "| stage | steps | loss after landmarks | after regressor | difference | steps saved |",
            "|---" * 6 + "|",
        ]
        for stage in next(iter(rows.values()))["losses"]["landmarks"]:
            ends, saved = [], []
            for row in rows.values():
                a, b = (np.minimum.accumulate(row["losses"][start][stage]) for start in ("landmarks", "regressor"))
                ends.append((a[-1], b[-1]))
                saved.append(steps_saved(a, b))
            a, b = np.array(ends).T
            mean, low, high = bootstrap_interval(torch.tensor(b - a))
            lines.append(
                f"| {stage} | {len(row['losses']['landmarks'][stage])} | {a.mean():.4f} | {b.mean():.4f} | {mean:+.4f} "
                f"({low:+.4f} to {high:+.4f}) | {np.mean(saved):+.1f} |"
            )
        note = (
            "Least weighted loss at equal steps, means; the difference with a bootstrap interval of 95 %. Steps "
            "saved: by how many the start by N_enc is ahead where both reach the worse of the two ends."
        )
        return [*lines, "", note, *self.counts("fits")]

    def speed_lines(self) -> list[str]:
        row = self.rows.get("speed", {})
        if row.get("settings") != self.digest:
            return []
        lines = [f"## Seconds of stage 1 ({row['threads']} threads)", "", "| part | wall | CPU |", "|---|---|---|"]
        lines += [f"| {name} | {v['wall']:.3f} | {v['cpu']:.3f} |" for name, v in row["seconds"].items()]
        return [*lines, "", "Medians of seven; all of stage 1 is network, refinement, light and texture."]

    def sheet(self) -> None:
        """heads.jpg: photo, true shape and what each method makes of it."""
        kinds = ("photo", "true", *STARTS, "landmarks, all stages", "regressor, all stages")
        tiles, labels = [], []
        for part in ("synthetic", "ict"):
            for number in range(min(self.options.n, 6)):
                files = {kind: self.out / "pictures" / f"{part}_{number}_{kind}.jpg" for kind in kinds}
                row = self.rows.get(f"{part}/{number}", {})
                shown = [kind for kind in kinds if files[kind].is_file()]
                if row.get("settings") != self.digest or "skipped" in row or len(shown) < len(kinds):
                    continue
                for kind in shown:
                    tiles.append(read_image(files[kind]))
                    error = row["errors"].get(kind)
                    labels.append(f"{kind}, {mean_error(error):.2f} mm" if error else f"{part} {number}: {kind}")
        if tiles:
            write_jpg(self.out / "heads.jpg", contact_sheet(tiles, len(kinds), labels, size=208))


# -- figures -----------------------------------------------------------------------------------------------


def check_found(photo: Observation, truth: Tensor) -> None:
    """Is what the detector found the face? An eye behind glasses, say, is not.

    Args:
        photo: one observed face.
        truth: (68, 2), px of the photo.

    Raises:
        InputError: its inner landmarks are off by over 15 % of their extent, so nothing about the head was measured.
    """
    to_photo = photo.fit.to_photo[0]
    found = photo.landmarks68[0] @ to_photo[:, :2].T + to_photo[:, 2]
    inner = truth[17:]
    extent = (inner.amax(0) - inner.amin(0)).max()
    if (found[17:] - inner).norm(dim=1).mean() > 0.15 * extent:
        raise InputError("the photo: something else was taken for the face.")


def mean_error(errors: dict[str, float]) -> float:
    """Over the four regions."""
    return float(np.mean([errors[region] for region in REGIONS]))


def in_words(row: dict[str, Any]) -> str:
    """An item in a few words."""
    if "skipped" in row:
        return f"skipped, {row['skipped']}"
    text = ", ".join(f"{name} {mean_error(e):.2f}" for name, e in row.get("errors", {}).items())
    return (text + " mm" if text else "measured") + (f"; fell back: {row['fallback']}" if row.get("fallback") else "")


def region_table(rows: list[dict[str, Any]], kind: str = "errors") -> list[str]:
    """Mean and standard deviation by method and region, and what the issue asks, answered; ``kind``: or "realy"."""
    methods = [m for m in METHODS if all(m in row.get(kind, {}) for row in rows)]
    lines = ["| mm | " + " | ".join(REGIONS) + " | mean |", "|---|" + "---|" * 5]
    of: dict[str, dict[str, np.ndarray]] = {}
    for method in methods:
        values = {region: np.array([row[kind][method][region] for row in rows]) for region in REGIONS}
        of[method] = values | {"mean": np.mean(list(values.values()), 0)}
        cells = [f"{v.mean():.2f} ± {v.std():.2f}" for v in of[method].values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines.append("")
    for a, b in (("regressor", "landmarks"), ("regressor, refined", "landmarks"),
                 ("regressor, all stages", "landmarks, all stages")):  # fmt: skip
        if a in of:
            apart = of[a]["mean"] - of[b]["mean"]
            mean, low, high = bootstrap_interval(torch.tensor(apart))
            lines.append(
                f"* {a} minus {b}: {mean:+.3f} mm ({low:+.3f} to {high:+.3f}), better on "
                f"{100 * (apart < 0).mean():.0f} % of the heads."
            )
    pairs = {"landmarks": "landmarks, all stages", "regressor, refined": "regressor, all stages"}
    for start, end in pairs.items():
        if end in of:
            worse = [
                f"{region} by {of[end][region].mean() - of[start][region].mean():.2f}"
                for region in REGIONS if of[end][region].mean() > of[start][region].mean()
            ]  # fmt: skip
            lines.append(
                f"* {end}, against its start: "
                + (f"worse in {', '.join(worse)} mm." if worse else "no region is worse.")
            )
    return lines


def steps_saved(without: np.ndarray, by: np.ndarray) -> int:
    """Steps that ``by`` is ahead of ``without`` where the worse of the two ends; negative: behind."""
    level = max(without[-1], by[-1])
    return int(np.argmax(without <= level)) - int(np.argmax(by <= level))


_COLORS = ((150, 150, 150), (36, 99, 235), (217, 119, 6), (5, 150, 105), (190, 24, 93), (88, 28, 135))


def plot(path: Path, curves: dict[str, list[tuple[float, float]]], x_label: str, y_label: str, title: str) -> None:
    """Lines on axes, as a PNG.

    Args:
        path: to write.
        curves: {name: points}.
        x_label, y_label, title: texts.
    """
    scale, width, height = 3, 760, 440
    left, right, top, bottom = 64, 178, 48, 56
    picture = Image.new("RGB", (width * scale, height * scale), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    every = [point for points in curves.values() for point in points]
    (x0, low), (x1, high) = (tuple(extreme(values) for values in zip(*every, strict=True)) for extreme in (min, max))
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if (high - low) / s <= 6)
    y0, y1 = step * max(0, np.floor(low / step) - 1), step * np.ceil(high / step + 0.1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - right) * (x - x0) / max(x1 - x0, 1e-9)
        return across * scale, (height - bottom - (height - top - bottom) * (y - y0) / (y1 - y0)) * scale

    def write(x: float, y: float, text: str, size: int, anchor: str, color: tuple = (60, 60, 60)) -> None:
        draw.text((x * scale, y * scale), text, color, ImageFont.load_default(size * scale), anchor=anchor)

    for k in range(round((y1 - y0) / step) + 1):
        value = y0 + k * step
        (a, y), (b, _) = at(x0, value), at(x1, value)
        draw.line([(a, y), (b, y)], (225, 225, 225), scale)
        write(left - 8, y / scale, f"{value:.6g}", 12, "rm")
    for x in sorted({x for x, _ in every}):
        write(at(x, y0)[0] / scale, height - bottom + 8, f"{x:+g}" if x else "0", 12, "mt")
    write(left, 14, title, 15, "lt", (20, 20, 20))
    write(left, 34, y_label, 11, "lt", (110, 110, 110))
    write((left + width - right) / 2, height - 14, x_label, 12, "mb")
    for k, (name, points) in enumerate(curves.items()):
        color = _COLORS[k % len(_COLORS)]
        places = [at(x, y) for x, y in points]
        draw.line(places, color, 2 * scale, joint="curve")
        for x, y in places:
            draw.ellipse([x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale], color)
        y = top + 12 + 22 * k
        draw.line(
            [((width - right + 16) * scale, y * scale), ((width - right + 36) * scale, y * scale)], color, 3 * scale
        )
        write(width - right + 42, y, name, 12, "lm")
    data = io.BytesIO()
    picture.resize((width, height), Image.Resampling.BOX).save(data, "PNG")
    write_bytes(path, data.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of the regressor; what comes with the library if left out")
    parser.add_argument("--face-model", default="makehuman")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--n", type=int, default=4, help="heads of the parts synthetic and ict, each")
    parser.add_argument("--yaw-heads", type=int, default=2)
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument(
        "--faces", type=int, default=3, help="of the open generator, beside the photos of the part fits"
    )
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="more photos for the part fits")
    parser.add_argument("--starts-only", action="store_true", help="without the full stages in synthetic and ict")
    parser.add_argument("--preset", default="default", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--ict", type=Path, default=ICT_FILE, help="npz file or clone of ICT-FaceKit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("outputs/regressor_benchmark"))
    options = parser.parse_args()
    try:
        bench = Bench(options)
        for part in options.parts:
            getattr(bench, f"run_{part}")()
        text = bench.report()
        write_bytes(options.out / "regressor.md", text.encode())
        bench.sheet()
        print("\n" + text)
    except FaceReconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
