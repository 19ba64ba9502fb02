"""Which seeds of the open generator a set is made of.

FFHQ, and so its generators, show dark skin rarely; the released set adds about a thousand such faces by hand. Here
linear functions of W find faces by seed, since mapping a seed to W costs next to nothing: predictions of skin tone, age
and sex, by which a balanced set is drawn, and a classifier of dark skin, learned from committed labels.
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

__all__ = [
    "FIRST_HELD_OUT",
    "balance_cells",
    "dark_skin_score",
    "draw_balanced_seeds",
    "draw_seeds",
    "held_out_faces",
    "set_seeds",
]

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
            if score > 0 or _drawn(number, seed) < keep:
                yield number
        first += _CHUNK


@kept()
def _balance() -> dict[str, Tensor]:
    return read_safetensors(assets.shipped("balance.safetensors"), "a table of shares", "install facerecon again")[0]


def balance_cells(traits: Tensor, tone_edges: Tensor, age_edges: Tensor) -> Tensor:
    """Cells of the table by which a balanced set is drawn.

    Args:
        traits: (B, 3): skin tone (ITA, degrees), age (years) and logit of male.
        tone_edges: (T - 1,), rising, between T classes of skin tone.
        age_edges: (A - 1,), rising, between A classes of age.

    Returns:
        (B,) int64, index into a table (T, A, 2) flattened; of the last axis, 1 is male.
    """
    tone, age = (torch.bucketize(traits[:, i].contiguous(), edges) for i, edges in enumerate((tone_edges, age_edges)))
    return (tone * (len(age_edges) + 1) + age) * 2 + (traits[:, 2] > 0)


def draw_balanced_seeds(
    generator: MobileGenerator | FFHQFaces, first: int = 0, truncation: float = 0.7, seed: int = 0
) -> Iterator[int]:
    """Seeds from ``first`` on, to just before ``FIRST_HELD_OUT``, whose faces spread over skin tones, ages and sexes.

    Each of six classes of tone, four of age and two of sex, as W predicts them, is to have the same share (of the
    darkest, of which there are too few, all seeds are taken). About 2.5 % of seeds are taken; whether one is depends on
    itself alone.

    Args:
        generator: whose mapping is used.
        first: the first seed looked at.
        truncation: of the samples; the shares were chosen for 0.7.
        seed: of the draw.
    """
    data = _balance()
    for start in range(first, FIRST_HELD_OUT, _CHUNK):
        seeds = range(start, min(start + _CHUNK, FIRST_HELD_OUT))
        w = generator.sample(seeds, truncation)
        traits = (w @ data["weight"].to(w).T + data["bias"].to(w)).cpu()
        shares = data["table"].flatten()[balance_cells(traits, data["tone_edges"], data["age_edges"])]
        yield from (n for n, share in zip(seeds, shares.tolist(), strict=True) if _drawn(n, seed) < share)


def _drawn(number: int, seed: int) -> float:
    """A number in [0, 1) of a seed's own; the least share of such seeds at which it is taken."""
    return torch.rand((), generator=item_generator(number + seed * 1_000_003, "keep")).item()


def set_seeds(
    generator: MobileGenerator | FFHQFaces,
    first: int = 0,
    truncation: float = 0.7,
    balance: bool = True,
    dark_share: float | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Seeds of a set's faces, from ``first`` on, to just before ``FIRST_HELD_OUT``.

    Args:
        generator, first, truncation, seed: see :func:`draw_balanced_seeds`.
        balance: draw by :func:`draw_balanced_seeds`, else by :func:`draw_seeds`.
        dark_share: see :func:`draw_seeds`.

    Raises:
        ConfigError: ``first`` is held out, or ``dark_share`` is given beside ``balance``.
    """
    if first >= FIRST_HELD_OUT:
        raise ConfigError(f"first_seed must be below {FIRST_HELD_OUT}: later seeds are held out; got {first}.")
    if balance and dark_share is not None:
        raise ConfigError("dark_share has no place in a balanced draw; add balance=false.")
    if balance:
        return draw_balanced_seeds(generator, first, truncation, seed)
    drawn = draw_seeds(generator, first, truncation, dark_share, seed)
    return itertools.takewhile(lambda number: number < FIRST_HELD_OUT, drawn)


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
