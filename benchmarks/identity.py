"""Which identity network tells people apart best: the same generated people in several pictures.

    python -m benchmarks.identity                       # 48 people in 7 pictures each
    python -m benchmarks.identity --n 100 --out identity.json

People are faces of the open generator, whose seeds are in no set, each as it is, turned by about 25 degrees to either
side, smiling, under light from a side, and looking up and down: steps in the generator's latent space that keep shape,
age, gender, skin and hair as measured. The identity embedding is not among what is kept: it would favor its own
network.

Of each network, d' of similarities (cosine, or less the Euclidean distance): the distance between the means of pairs of
the same and of different people, in standard deviations (the root of the mean variance). A column is pairs of the plain
picture with another; "all" is all pairs of pictures, "equal error" the rate at which both kinds of mistake are as
frequent there. "flipped" adds the mirrored picture's embedding, "centered" takes off the mean of all people's.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from facerecon.dataset.sampling import FIRST_HELD_OUT
from facerecon.editing.directions import CLASSES, MEASURED, load_directions
from facerecon.editing.inversion import face_points
from facerecon.perception import load_eval_identity, load_identity
from facerecon.stylegan.face_generator import load_generator

EDITS: dict[str, dict[str, float]] = {
    "plain": {},
    "left": {"yaw": -32.0},
    "right": {"yaw": 32.0},
    "smile": {"smile": 0.15},
    "side light": {"light3": 0.8},
    "up": {"pitch": 12.0},
    "down": {"pitch": -12.0},
}
"""What changes in each picture, in units of the attributes."""
COLUMNS = {"yaw 25": ("left", "right"), "smile": ("smile",), "side light": ("side light",), "pitch 12": ("up", "down")}
SIZE = 512


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    """One person in all pictures: (K, 3, S, S) in [0, 1], and landmarks (K, 68, 2) px."""
    generator, directions = load_generator(), load_directions()
    w = generator.sample(seed, truncation=0.8)
    keep = [name for name in directions.names if name not in CLASSES and not name.startswith("identity")]
    now = directions.read(w)
    front = directions.step(w, now, {name: torch.zeros(1) for name in ("yaw", "pitch")}, keep)
    zero, codes = {name: torch.zeros(1) for name in MEASURED}, []
    for edit in EDITS.values():
        wanted = {name: torch.full((1,), value) for name, value in edit.items()}
        codes.append(directions.step(front, zero, wanted, keep) if wanted else front)
    images = torch.cat([F.interpolate(generator(code), (SIZE, SIZE), mode="area") for code in codes])
    return images, face_points(images)


def mirrored(images: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures and landmarks, left and right exchanged."""
    order = [
        *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37,
        36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
    ]  # fmt: skip
    points = landmarks[:, order].clone()
    points[..., 0] = images.shape[-1] - points[..., 0]
    return images.flip(-1), points


def similarity(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """Of all pairs, (N, D) and (M, D) -> (N, M)."""
    return -torch.cdist(a, b) if metric == "euclidean" else F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def d_prime(same: Tensor, other: Tensor) -> float:
    """Distance of two samples' means in standard deviations."""
    return float((same.mean() - other.mean()) / ((same.var() + other.var()) / 2).sqrt())


def equal_error(same: Tensor, other: Tensor) -> float:
    """Rate of errors at the limit at which as many of the one kind as of the other are mistaken."""
    limits = torch.cat([same, other]).sort().values
    missed = torch.searchsorted(same.sort().values, limits) / len(same)
    taken = 1 - torch.searchsorted(other.sort().values, limits) / len(other)
    return float(((missed + taken) / 2)[(missed - taken).abs().argmin()])


def figures(vectors: Tensor, metric: str) -> dict[str, float]:
    """d' by kind of picture, and over all pairs; ``vectors`` (N, K, D)."""
    count, kinds = vectors.shape[:2]
    names, result = list(EDITS), {}
    eye = torch.eye(count, dtype=torch.bool)
    for column, edits in COLUMNS.items():
        pairs = [similarity(vectors[:, 0], vectors[:, names.index(edit)], metric) for edit in edits]
        same, other = (torch.cat([pair[mask] for pair in pairs]) for mask in (eye, ~eye))
        result[column] = d_prime(same, other)
        result[f"{column}: same"] = float(same.mean())
        result[f"{column}: other"] = float(other.mean())
    flat = vectors.flatten(0, 1)
    pair = similarity(flat, flat, metric)
    person = torch.arange(count).repeat_interleave(kinds)
    equal = person[:, None] == person
    once = torch.ones_like(equal).triu(1)
    same, other = pair[equal & once], pair[~equal & once]
    return result | {"all": d_prime(same, other), "equal error": equal_error(same, other)}


@torch.no_grad()
def measure(count: int) -> dict[str, Any]:
    """Figures of every network."""
    nets: dict[str, torch.nn.Module] = {name: load_identity(name) for name in ("identity128", "sface")}
    nets["faceres1024 (eval)"] = load_eval_identity()
    found: dict[str, list[Tensor]] = {name: [] for name in nets}
    mirror: dict[str, list[Tensor]] = {name: [] for name in nets}
    for k in tqdm(range(count)):
        images, points = pictures(FIRST_HELD_OUT + k)
        for name, net in nets.items():
            found[name].append(net(images, points))
            mirror[name].append(net(*mirrored(images, points)))
    result = {}
    for name, net in nets.items():
        vectors, flipped = torch.stack(found[name]), torch.stack(mirror[name])
        result[name] = figures(vectors, net.metric)
        result[f"{name}, flipped"] = figures(vectors + flipped, net.metric)
        if net.metric == "cosine":
            result[f"{name}, centered"] = figures(vectors - vectors.mean((0, 1)), net.metric)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=48, help="people")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    arguments = parser.parse_args()
    result = measure(arguments.n)
    columns = [*COLUMNS, "all", "equal error"]
    print(f"{'network':<28}" + "".join(f"{column:>12}" for column in columns))
    for name, row in result.items():
        print(f"{name:<28}" + "".join(f"{row[column]:12.3f}" for column in columns))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
