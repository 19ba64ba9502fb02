"""Random numbers that can be had again: one seed for a run, one generator for an item."""

from __future__ import annotations

import hashlib
import os
import random
from typing import Any

import numpy as np
import torch

__all__ = ["item_generator", "item_seed", "restore_rng_state", "rng_state", "seed_everything"]


def seed_everything(seed: int, deterministic: bool = False) -> torch.Generator:
    """Seed Python, NumPy and torch (every device).

    Args:
        seed: 0 <= seed < 2**32.
        deterministic: also ask torch for deterministic algorithms, slower; an operation that has none warns.

    Returns:
        A CPU generator with that seed, for code that draws from a generator of its own.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..{2**32 - 1}; got {seed}.")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - other packages draw from the global state
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic, warn_only=deterministic)
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


def rng_state() -> dict[str, Any]:
    """The global random state of Python, NumPy and torch, as tensors and plain values for a checkpoint."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(internal, dtype=torch.int64), next_gauss],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` gave; states of GPUs that are not here are ignored."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state.cpu(), index)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), next_gauss))
