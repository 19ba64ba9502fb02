"""Random tensors from the official key lists, in containers like the released ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor


def official_shapes(reference: Path, name: str) -> dict[str, tuple[int, ...]]:
    """{parameter: shape} of a released network."""
    listed = json.loads((reference / "official_keys" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in listed.items()}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of a size that keeps activations near one, and no statistic left at its default."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("running_var"):
            value = 1 + 0.2 * value.tanh()
        elif len(shape) >= 2:
            value = value * math.sqrt(1.5 / math.prod(shape[1:]))
        elif name.endswith("weight"):  # of normalization and PReLU
            value = 0.6 + 0.2 * value.tanh()
        else:
            value = 0.1 * value
        state[name] = value
    return state


def save(state: object, path: Path, **options: object) -> Path:
    """``torch.save``, as the release has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, **options)
    return path
