"""A film end to end: a person turns, smiles and looks around; what ``fit/reconstruct.py video=true`` makes of it.

    python -m benchmarks.film generated --out film_generated
    python -m benchmarks.film rendered --out film_rendered

``generated``: a face of the open generator whose yaw and smile follow smooth paths in W (:mod:`facerecon.editing`; its
planes know no gaze). ``rendered``: a random bald head of the model that fits it, before a gray wall,
whose yaw, pitch, smile and gaze are known in every frame. Both are written as H.264 and read back by
``fit/reconstruct.py``.

The smooth fit is compared with fits of each frame alone, of the same preset: landmarks and pose against the frames' own
(measured on the generated ones, known of the rendered ones), and jitter, the root mean square of second differences
along the film. Files in OUT: film.mp4, the folder of the fit, table.md, frames.jpg.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.several_photos import PICTURE, VARIED
from facerecon.editing.attributes import AttributeMeter
from facerecon.editing.directions import CLASSES, LIGHT, STEADY, load_directions
from facerecon.geometry.camera import project
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import contact_sheet, read_image, to_pil, write_jpg
from facerecon.imaging.video import read_frames, write_film
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.perception import observe
from facerecon.render import Renderer
from facerecon.storage import write_whole
from facerecon.stylegan.face_generator import load_generator
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import SyntheticFaces
from facerecon.synthetic.scene import CROP
from facerecon.types import Camera, FaceParams, Observation, SavedTrack

ROOT = Path(__file__).resolve().parents[1]
RATE, BACKDROP = 25.0, 0.5
GAZE = ("eyeLookOutLeft", "eyeLookInRight", "eyeLookInLeft", "eyeLookOutRight")
SMILE = ("mouthSmileLeft", "mouthSmileRight")


def paths(count: int) -> dict[str, Tensor]:
    """{name: (count,)}: yaw and pitch in [-1, 1], smile in [0, 1], gaze in [-1, 1], positive to the person's left."""
    turn = torch.linspace(0, 2 * math.pi, count)
    smile = (1 - turn.cos()) / 2
    return {"yaw": turn.sin(), "pitch": (2 * turn).sin(), "smile": smile, "gaze": (1.5 * turn).sin()}


@torch.inference_mode()
def generated_film(count: int, seed: int) -> list[Tensor]:
    """Frames (3, 512, 512) of a face of the open generator: 16 degrees to each side, a smile of two deviations."""
    generator, directions = load_generator(), load_directions()
    w = generator.sample(seed, 0.6)
    now, along = directions.read(w), paths(count)
    spread = directions.metrics["smile"]["std"]
    keep = (*STEADY, *LIGHT, *CLASSES[1:], "pitch")
    frames = []
    for yaw, smile in zip(along["yaw"], along["smile"], strict=True):
        targets = {"yaw": 16 * yaw[None], "smile": now["smile"] + (2 * smile - 1) * spread}
        image = generator(directions.step(w, now, targets, keep)).float()
        frames.append(F.avg_pool2d(image, 2)[0].clamp(0, 1))
    return frames


@torch.no_grad()
def rendered_film(count: int, seed: int, model: MorphableModel) -> tuple[list[Tensor], FaceParams]:
    """Frames (3, S, S) of a random head, and its parameters in each."""
    faces = SyntheticFaces(model, load_decoder("linear"), VARIED, seed=seed, size=PICTURE)
    drawn, along, camera = faces.truth([0]), paths(count), Camera.deep3d(CROP)
    unit = {name: k for k, name in enumerate(model.expression_names)}
    renderer, frames, truth = Renderer(PICTURE, antialias=True), [], []
    for i in range(count):
        yaw, pitch, smile, gaze = (float(along[name][i]) for name in ("yaw", "pitch", "smile", "gaze"))
        expression = torch.zeros_like(drawn.params.expression)
        expression[0, [unit[name] for name in SMILE]] = 0.7 * smile
        expression[0, [unit[name] for name in GAZE]] = 0.7 * torch.tensor([gaze, gaze, -gaze, -gaze]).clamp(min=0)
        rotation = torch.tensor([[math.radians(6 * pitch), math.radians(20 * yaw), 0.0]])
        params = drawn.params.replace(expression=expression, rotation=rotation)
        vertices = model(params)
        points = model.landmarks3d(vertices, camera)
        seen = renderer(vertices, drawn.textures, model.topology, camera, params.light, landmarks3d=points)
        frames.append((seen.image + BACKDROP * (1 - seen.mask))[0].clamp(0, 1))
        truth.append(params)
    return frames, FaceParams.cat(truth)


def jitter(values: Tensor) -> float:
    """Root mean square of the second differences of (T, ...)."""
    return float(values.diff(dim=0).diff(dim=0).square().mean().sqrt())


def yaw_pitch(params: FaceParams) -> Tensor:
    """(T, 2) degrees of where the face looks: to the image's right, and up."""
    ahead = euler_to_matrix(params.rotation.double())[:, :, 2]
    return torch.stack([torch.atan2(ahead[:, 0], ahead[:, 2]), ahead[:, 1].asin()], 1).rad2deg().float()


def along_film(params: FaceParams, camera: Camera, photo: Observation, model: MorphableModel) -> dict[str, Tensor]:
    """What is compared of T frames: degrees, weights, landmarks (T, 68, 2) in px of the film, and their error in %."""
    vertices = model(params)
    points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    seen = photo.landmarks68 @ photo.fit.to_photo[:, :, :2].mT + photo.fit.to_photo[:, None, :, 2]
    eyes = (seen[:, 36] - seen[:, 45]).norm(dim=-1)
    error = 100 * ((points - seen).norm(dim=-1).mean(1) / eyes)
    return {
        "angles": yaw_pitch(params),
        "weights": params.expression,
        "landmarks": points,
        "error": error,
        "seen": seen,
    }


def table(fits: dict[str, dict[str, Tensor]], own: Tensor, truth: FaceParams | None, names: tuple) -> str:
    """Markdown: one row a way of fitting."""
    head = ["", "landmarks, % of the distance of the eyes", "yaw, degrees off", "pitch, degrees off"]
    if truth is not None:
        head += ["smile, weight off", "gaze, weight off"]
    head += ["jitter of the pose, degrees", "of the expression, weights", "of the landmarks, px"]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for name, found in fits.items():
        off = (found["angles"] - own).abs().mean(0)
        cells = [name, f"{found['error'].mean():.2f}", f"{off[0]:.2f}", f"{off[1]:.2f}"]
        if truth is not None:
            for units in (SMILE, GAZE):
                rows = [names.index(unit) for unit in units]
                cells.append(f"{(found['weights'] - truth.expression)[:, rows].abs().mean():.3f}")
        cells += [f"{jitter(found['angles']):.3f}", f"{jitter(found['weights']):.4f}"]
        cells.append(f"{jitter(found['landmarks']):.3f}")
        lines.append(" | ".join(cells))
    known = truth is not None
    measured = ["the true ones" if known else "the measured ones", *[""] * (5 if known else 3), f"{jitter(own):.3f}"]
    measured.append(f"{jitter(truth.expression):.4f}" if known else "")
    lines.append(" | ".join([*measured, f"{jitter(next(iter(fits.values()))['seen']):.3f} (detected)"]))
    return "\n".join(f"| {line.strip()} |" if not line.startswith("-") else f"|{line}|" for line in lines)


def run(options: argparse.Namespace) -> str:
    """Make the film, fit it, compare; returns the table."""
    from facerecon.configs.compose import compose
    from facerecon.fit.models import build_fitter, prepare

    out, truth = options.out, None
    out.mkdir(parents=True, exist_ok=True)
    overrides = [f"fitting={options.preset}", *options.set]
    film = out / "film.mp4"
    if options.kind == "generated":
        frames = generated_film(options.frames, options.seed)
    else:
        frames, truth = rendered_film(options.frames, options.seed, load_face_model("makehuman"))
    write_film(film, [to_pil(frame) for frame in frames], RATE)
    command = [sys.executable, ROOT / "fit" / "reconstruct.py", "video=true", f"img={film}", f"frames={options.frames}"]
    done = subprocess.run([*command, f"out={out}", *overrides], cwd=ROOT)
    if not (out / "film" / "track.safetensors").is_file():
        sys.exit(done.returncode)  # its own message says why; frames that were left out are no reason to stop

    config = compose("reconstruct", ["img=none", "fitting.detail.enabled=false", *overrides])
    fitter = build_fitter(config, prepare(config))
    model = fitter.model
    track = SavedTrack.load(out / "film" / "track.safetensors")
    read = list(read_frames(film, options.frames))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photo = Observation.cat([observe(read[number].image) for number in track.frames.tolist()])
        meter = AttributeMeter()
        looked = [meter(read[number].image[None]) for number in track.frames.tolist()] if truth is None else []
    parts = [fitter(photo[i : i + 4]).face for i in range(0, len(track.frames), 4)]
    alone = FaceParams.cat([part.params for part in parts]), Camera.cat([part.camera for part in parts])
    with torch.no_grad():
        fits = {
            "along the film": along_film(track.face.params, track.face.camera, photo, model),
            "each frame alone": along_film(*alone, photo, model),
        }
        if truth is None:
            own = torch.stack([torch.cat([seen.yaw for seen in looked]), torch.cat([seen.pitch for seen in looked])], 1)
        else:
            truth = truth[track.frames]
            own = yaw_pitch(truth)
        text = table(fits, own, truth, model.expression_names)
    note = f"{len(own)} of {options.frames} frames ({options.kind}, seed {options.seed}), fitting={options.preset}"
    write_whole(out / "table.md", f"{note}\n\n{text}\n".encode())
    shown = [read_image(to_pil(read[n].image)) for n in torch.linspace(0, len(read) - 1, 8).round().int().tolist()]
    write_jpg(out / "frames.jpg", contact_sheet(shown, columns=8, size=224))
    return f"{note}\n\n{text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("generated", "rendered"))
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--seed", type=int, default=5003)
    parser.add_argument("--preset", default="fast", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--out", type=Path, required=True)
    print(run(parser.parse_args()))


if __name__ == "__main__":
    main()
