"""Keeping a run: seeds, its folder, checkpoints, metrics, device and threads.

Names are imported on first use, so that :func:`set_threads` can be called before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "autocast": "device",
    "available_cores": "device",
    "choose_device": "device",
    "choose_precision": "device",
    "choose_training_precision": "device",
    "set_threads": "device",
    "supports_bfloat16": "device",
    "item_generator": "seeds",
    "item_seed": "seeds",
    "seed_everything": "seeds",
    "Checkpoints": "checkpoint",
    "is_due": "checkpoint",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "MetricsWriter": "metrics",
    "drop_after": "metrics",
    "read_metrics": "metrics",
    "RunDirectory": "directory",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOME))
