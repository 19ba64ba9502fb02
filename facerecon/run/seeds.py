"""Random numbers that can be had again: one seed for a run, one generator for an item."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch

__all__ = ["item_generator", "item_seed", "seed_everything"]


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch (every device).

    Args:
        seed: 0 <= seed < 2**32.

    Returns:
        A CPU generator with that seed, for code that draws from a generator of its own.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..{2**32 - 1}; got {seed}.")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - other packages draw from the global state
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def item_seed(seed: int, *key: Any) -> int:
    """A seed in 0..2**63 - 1 for one item, from the run's seed and what names the item (its path, its index).

    It depends on nothing else: not on the order of items, the number of workers, or where a run was resumed.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in key)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def item_generator(seed: int, *key: Any, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded with :func:`item_seed`."""
    return torch.Generator(device=device).manual_seed(item_seed(seed, *key))
