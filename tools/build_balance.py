"""Learn by which seeds a set is spread over skin tones, ages and sexes: facerecon/data/balance.safetensors.

    python tools/build_balance.py SET/manifest.safetensors

Ridge regression from W to the skin tone, age and logit of male that a set's manifest says its subjects have, then, by
iterative proportional fitting, the share of seeds to take in each cell of predicted tone, age and sex, so that each
class of the three is as common as the others. The shipped file was learned from the first edition of the shipped set,
400 subjects; another file draws other seeds. Then: python -m facerecon.assets seal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from facerecon.dataset import Manifest
from facerecon.dataset.sampling import balance_cells
from facerecon.storage import safetensors_bytes, write_whole
from facerecon.stylegan.face_generator import load_generator

OUTPUT = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "balance.safetensors"
TONE_EDGES, AGE_EDGES = (-30.0, 10.0, 28.0, 41.0, 55.0), (18.0, 30.0, 42.0)
SEEDS, CHUNK, WANTED = 100_000, 2000, 2400  # seeds to draw from, and how many of them are to be taken
TRUNCATION = 0.7
RIDGE = 0.3  # of the mean squared length of a code
ROUNDS, START = 200, 0.022
OTHERS = ((1, 2), (0, 2), (0, 1))  # axes of the table beside each


def regression(manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Weight (3, 512) and bias (3,) from W to tone, age and logit of male; by its dual, since subjects are few."""
    codes = manifest.tensors["source"].double()
    center = codes.mean(0)
    x = codes - center
    gram = x @ x.T
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(x)).double()
    goals = [manifest.figures[name].double() for name in ("skin_tone", "age", "male")]
    goals[2] = torch.logit(goals[2].clamp(0.01, 0.99))
    weight = torch.stack([x.T @ torch.linalg.solve(gram, y - y.mean()) for y in goals])
    bias = torch.stack([y.mean() - center @ w for y, w in zip(goals, weight, strict=True)])
    return weight.float(), bias.float()


def shares(count: Tensor) -> Tensor:
    """Share of the seeds of each cell to take, so that the sums over classes are alike.

    Args:
        count: (T, A, 2) seeds in each cell.
    """
    table = torch.full_like(count, START)
    for _ in range(ROUNDS):
        for axis, rest in enumerate(OTHERS):
            have = (table * count).sum(rest, keepdim=True).clamp(min=1e-9)
            table = (table * (WANTED / count.shape[axis] / have)).clamp(max=1)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="manifest.safetensors of a set")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    manifest, generator = Manifest.load(options.manifest), load_generator()
    weight, bias = regression(manifest)
    tone_edges, age_edges = torch.tensor(TONE_EDGES), torch.tensor(AGE_EDGES)
    chunks = (range(start, start + CHUNK) for start in range(0, SEEDS, CHUNK))
    with torch.no_grad():
        traits = torch.cat([generator.sample(chunk, TRUNCATION) @ weight.T + bias for chunk in chunks])
    shape = (len(tone_edges) + 1, len(age_edges) + 1, 2)
    count = torch.bincount(balance_cells(traits, tone_edges, age_edges), minlength=48).view(shape).float()
    table = shares(count)
    for name, rest in zip(("tone", "age", "sex"), OTHERS, strict=True):
        print(f"{name}: {count.sum(rest).int().tolist()} seeds, {(table * count).sum(rest).int().tolist()} to take")
    tensors = {"weight": weight, "bias": bias, "tone_edges": tone_edges, "age_edges": age_edges, "table": table}
    meta = {"subjects": str(len(manifest)), "tool": "tools/build_balance.py", "space": "w"}
    write_whole(options.output, safetensors_bytes(tensors, meta))


if __name__ == "__main__":
    main()
