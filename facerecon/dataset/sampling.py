"""Which seeds of the open generator a set is made of.

FFHQ, and so its generators, show dark skin rarely; the released set adds about a thousand such faces by hand. Here a
linear classifier in W, learned from committed labels, finds them by seed: mapping a seed to W costs next to nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facerecon import assets
from facerecon.errors import ConfigError, NoFaceError
from facerecon.modes import kept
from facerecon.perception import observe
from facerecon.run.seeds import item_generator
from facerecon.storage import read_safetensors

if TYPE_CHECKING:
    from facerecon.stylegan.face_generator import MobileGenerator
    from facerecon.stylegan.ffhq_generator import FFHQFaces

__all__ = ["FIRST_HELD_OUT", "dark_skin_score", "draw_seeds", "held_out_faces"]

_CHUNK = 256
FIRST_HELD_OUT = 100_001
"""Seeds from here on are in no set, and nothing that is shipped has learned from their faces."""


@kept()
def _classifier() -> tuple[Tensor, Tensor, float]:
    path = assets.shipped("dark_skin.safetensors")
    tensors, meta = read_safetensors(path, "a classifier of W", "install facerecon again")
    return tensors["weight"], tensors["bias"], float(meta["rate"])


def dark_skin_score(w: Tensor) -> Tensor:
    """(B, 512) codes in W -> (B,), above 0 where the face is likely to have dark skin (`tools/build_skin_tone.py`)."""
    weight, bias, _ = _classifier()
    return w @ weight.to(w) + bias.to(w)


def draw_seeds(
    generator: MobileGenerator | FFHQFaces,
    first: int = 0,
    truncation: float = 0.7,
    dark_share: float | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Seeds from ``first`` on, without end; whether one is taken depends on itself alone.

    Args:
        generator: whose mapping is used.
        first: the first seed looked at.
        truncation: of the samples.
        dark_share: share of faces with dark skin to aim at: other seeds are left out at random until it is reached.
            None takes every seed.
        seed: of that draw.
    """
    if dark_share is None:
        yield from itertools.count(first)
    if not 0 < dark_share < 1:
        raise ConfigError(f"dark_share must be between 0 and 1, or null; got {dark_share}.")
    _, _, rate = _classifier()
    keep = min(1.0, rate * (1 - dark_share) / (dark_share * (1 - rate)))
    while True:
        seeds = range(first, first + _CHUNK)
        scores = dark_skin_score(generator.sample(seeds, truncation))
        for number, score in zip(seeds, scores.tolist(), strict=True):
            if score > 0 or torch.rand((), generator=item_generator(number + seed * 1_000_003, "keep")).item() < keep:
                yield number
        first += _CHUNK


def held_out_faces(
    count: int, first: int = FIRST_HELD_OUT, truncation: float = 0.7, dark_share: float | None = 0.15
) -> Iterator[tuple[int, Tensor]]:
    """Faces of the open generator whose seeds lie beyond those of any set, and in which a face is found.

    Args:
        count: how many.
        first, truncation, dark_share: see :func:`draw_seeds`.

    Yields:
        (seed, (3, 1024, 1024) in [0, 1]); the first ones are the same whatever ``count`` is.
    """
    from facerecon.stylegan.face_generator import load_generator

    generator = load_generator(dtype=torch.bfloat16)
    seeds = draw_seeds(generator, first, truncation=truncation, dark_share=dark_share)
    found = 0
    while found < count:
        seed = next(seeds)
        with torch.no_grad():
            image = generator(generator.sample(seed, truncation))[0].float().clamp(0, 1)
        try:
            observe(image)
        except NoFaceError:
            continue
        found += 1
        yield seed, image
