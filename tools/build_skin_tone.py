"""Learn which codes of the open generator show dark skin: facerecon/data/dark_skin.safetensors.

    python tools/build_skin_tone.py [--look sheet.jpg]

Logistic regression in W on the seeds of facerecon/data/skin_tone_labels.json, against random seeds as the rest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.imaging.files import contact_sheet, write_jpg
from facerecon.storage import safetensors_bytes, write_whole
from facerecon.stylegan.face_generator import load_generator

DATA = Path(__file__).resolve().parents[1] / "facerecon" / "data"
BACKGROUND = range(1_000_000, 1_003_000)  # taken for not dark: less than one in a hundred is
DECAY = 3e-3


def fit(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted logistic regression with weight decay, in float64."""
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        margin = (2 * y - 1) * (x @ parameters[:-1] + parameters[-1])
        loss = (weight * F.softplus(-margin)).sum() + DECAY * parameters[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return parameters.detach()[:-1], parameters.detach()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look", type=Path, help="contact sheet of the faces it finds among new seeds")
    options = parser.parse_args()
    labels = json.loads((DATA / "skin_tone_labels.json").read_text())
    generator = load_generator()
    truncation = labels["truncation"]
    dark, other = (generator.sample(labels[key], truncation).double() for key in ("dark", "not_dark"))
    rest = generator.sample(BACKGROUND, truncation).double()
    center, scale = rest.mean(0), rest.std(0)
    x = (torch.cat([dark, other, rest]) - center) / scale
    y = torch.cat([torch.ones(len(dark)), torch.zeros(len(other) + len(rest))]).double()
    weight = torch.cat([torch.full((len(t),), share / len(t)) for t, share in ((dark, 1), (other, 0.5), (rest, 0.5))])
    labeled = len(dark) + len(other)
    fold = torch.randperm(labeled, generator=torch.Generator().manual_seed(0)) % 5
    margin = torch.zeros(labeled, dtype=torch.float64)
    for k in range(5):
        held = torch.cat([fold == k, torch.zeros(len(rest), dtype=torch.bool)])
        direction, bias = fit(x[~held], y[~held], weight[~held])
        margin[fold == k] = x[held] @ direction + bias
    right = (margin > 0) == (y[:labeled] > 0.5)
    direction, bias = fit(x, y, weight)
    direction, bias = direction / scale, bias - (center / scale) @ direction
    new = generator.sample(range(2_000_000, 2_040_000), truncation).double()
    score = new @ direction + bias
    rate = (score > 0).double().mean().item()
    figures = {"accuracy": round(right.double().mean().item(), 3), "dark": len(dark), "not_dark": len(other)}
    print(
        f"held-out accuracy on {labeled} labeled hard cases {figures['accuracy']:.3f}; "
        f"{rate:.2%} of seeds are taken for dark"
    )
    tensors = {"weight": direction.float(), "bias": bias.float()}
    meta = {"rate": f"{rate:.5f}", "figures": json.dumps(figures), "space": "w", "labels": "skin_tone_labels.json"}
    write_whole(DATA / "dark_skin.safetensors", safetensors_bytes(tensors, meta))
    if options.look:
        found = score.argsort(descending=True)[: (score > 0).sum()]
        found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:48]]
        generator = load_generator(dtype=torch.bfloat16)
        pictures = [F.interpolate(generator(new[i][None].float()), 128, mode="area")[0] for i in found]
        write_jpg(options.look, contact_sheet(pictures, 12, [f"{i} {score[i]:.1f}" for i in found.tolist()], 128))


if __name__ == "__main__":
    main()
