"""What are the face landmarker's expression scores worth? On rendered heads with expressions, whose truth is known.

    python -m benchmarks.expression_scores --learn 150  (what CALIBRATION in fitting/expression_scores.py holds)
    python -m benchmarks.expression_scores --fits 12 --preset fast

* learn: of every unit the correlation of score and coefficient, least squares (slope, offset, noise), and that of the
  score with what stage 1 without scores leaves of the coefficient: what it would add.
* fits: the same heads fitted with and without the scores. Expression: root mean square error of the coefficients, all
  and those of CALIBRATION. Neutral shape: mm on the face, after a similarity. Paired means, and how many heads improve.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.face_mesh import Heads
from facerecon.configs.compose import compose
from facerecon.errors import FaceReconError
from facerecon.fit.models import build_fitter, prepare
from facerecon.fitting.expression_scores import CALIBRATION
from facerecon.geometry.alignment import apply_similarity, similarity_transform
from facerecon.perception import observe
from facerecon.perception.face_landmarker import EXPRESSION_SCORES
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.types import FaceParams, Observation

WITH = ("fitting.start.score_noise=1", "fitting.stages.joint.weights.exp_scores=2e-4")


def fitter_of(preset: str, *overrides: str) -> Any:
    config = compose("reconstruct", [f"fitting={preset}", "img=none", *overrides])
    return build_fitter(config, prepare(config))


def seen(heads: Heads, number: int) -> tuple[FaceParams, Observation] | None:
    """An expressive head by number, turned by up to 25 degrees, and what is observed of it."""
    params, texture = heads.draw(2 * number + 1)
    chance = torch.Generator().manual_seed(number)
    turn = params.rotation.clone()
    turn[:, 1:] = torch.deg2rad((torch.rand(1, 2, generator=chance) - 0.5) * torch.tensor([50.0, 20.0]))
    image, _ = heads.render(params.replace(rotation=turn), texture)
    try:
        return params, observe(image[0])
    except FaceReconError as error:
        print(f"head {number}: {error}")
        return None


def learn(count: int, first: int) -> dict[str, dict[str, float]]:
    """{unit: figures}."""
    heads, fitter = Heads(), fitter_of("fast")
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in range(first, first + count):
        if (found := seen(heads, number)) is not None:
            params, photo = found
            rows.append(
                (params.expression[0], photo.expression_scores[0], fitter.initialize(photo).params.expression[0])
            )
    truth, scores, started = (torch.stack(part).double() for part in zip(*rows, strict=True))
    return calibrate(list(fitter.model.expression_names), truth, scores, started)


def calibrate(names: list[str], truth: Tensor, scores: Tensor, started: Tensor) -> dict[str, dict[str, float]]:
    """{unit: figures} of true coefficients (N, E), scores (N, 52) and the coefficients of stage 1 (N, E)."""
    result = {}
    for unit in sorted(set(names) & set(EXPRESSION_SCORES)):
        x, y = scores[:, EXPRESSION_SCORES.index(unit)], truth[:, names.index(unit)]
        left = y - started[:, names.index(unit)]
        if x.std() < 1e-3 or y.std() < 1e-3:
            continue
        slope = ((x - x.mean()) * (y - y.mean())).mean() / x.var(correction=0)
        offset = y.mean() - slope * x.mean()
        noise = (y - slope * x - offset).square().mean().sqrt()
        asked = (slope * x + offset).clamp(0, 1) - started[:, names.index(unit)]
        result[unit] = {
            "r": torch.corrcoef(torch.stack([x, y]))[0, 1].item(), "slope": slope.item(), "offset": offset.item(),
            "noise": noise.item(), "start": left.square().mean().sqrt().item(),
            "r left": torch.corrcoef(torch.stack([asked, left]))[0, 1].item(),
            "gain": ((asked * left).mean() / asked.square().mean().clamp(min=1e-9)).item(),
        }  # fmt: skip
    return result


def neutral_error(model: Any, fitted: FaceParams, truth: FaceParams) -> float:
    """mm, mean over the face's vertices, of the neutral heads after a similarity."""
    face = model.topology.faces[model.topology.regions["face"]].unique()
    zero = torch.zeros_like(truth.expression)
    ours, theirs = (model.shape(p.replace(expression=zero))[:, face] for p in (fitted, truth))
    moved = apply_similarity(similarity_transform(ours, theirs), ours)
    return 100 * (moved - theirs).norm(dim=-1).mean().item()


def fits(count: int, first: int, preset: str, overrides: list[str]) -> list[dict[str, dict[str, float]]]:
    """For each head {"without" or "with", and stage: figures}."""
    heads = Heads()
    fitters = {"without": fitter_of(preset, *overrides), "with": fitter_of(preset, *WITH, *overrides)}
    names, result = list(heads.model.expression_names), []
    scored = [names.index(name) for name in CALIBRATION if name in names]
    for number in range(first, first + count):
        if (found := seen(heads, number)) is None:
            continue
        truth, photo, row = *found, {}
        for kind, fitter in fitters.items():
            for stage, (params, _) in fitter(photo).stages.items():
                error = params.expression[0] - truth.expression[0]
                row[f"{kind}, {stage}"] = {
                    "expression": error.square().mean().sqrt().item(),
                    "scored": error[scored].square().mean().sqrt().item(),
                    "neutral": neutral_error(heads.model, params, truth),
                }
        result.append(row)
        print(
            f"head {number}: " + json.dumps({k: {n: round(v, 4) for n, v in f.items()} for k, f in row.items()}),
            flush=True,
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", type=int, default=0, help="heads to learn from")
    parser.add_argument("--fits", type=int, default=0, help="heads to fit")
    parser.add_argument("--first", type=int, default=1000, help="number of the first head")
    parser.add_argument("--preset", default="fast", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--out", type=Path, help="JSON with every figure")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {}
    if arguments.learn:
        result["learn"] = learn(arguments.learn, arguments.first)
        for unit, row in sorted(result["learn"].items(), key=lambda item: -item[1]["r"]):
            print(f"{unit:22s} " + "  ".join(f"{name} {value:.2f}" for name, value in row.items()))
    if arguments.fits:
        rows = result["fits"] = fits(arguments.fits, arguments.first, arguments.preset, arguments.set)
        for stage in sorted({key.split(", ")[1] for key in rows[0]}):
            for name in ("expression", "scored", "neutral"):
                pairs = torch.tensor([[row[f"{kind}, {stage}"][name] for kind in ("without", "with")] for row in rows])
                better = int((pairs[:, 1] < pairs[:, 0]).sum())
                before, after = pairs.mean(0).tolist()
                print(f"{stage:8s} {name:11s} {before:.4f} -> {after:.4f}, better in {better} of {len(pairs)}")
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    sys.exit(exit_status(main))
