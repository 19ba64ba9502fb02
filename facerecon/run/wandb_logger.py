"""Rows of numbers in Weights & Biases, offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from facerecon.errors import ConfigError, nearest_name

__all__ = ["numbers_of", "row_logger"]


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The items of a row that are numbers."""
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


def row_logger(
    config: Mapping[str, Any],
    numbers: Callable[[dict[str, Any]], dict[str, float]] = numbers_of,
    step: str | None = None,
) -> Callable[[dict[str, Any]], None]:
    """A function that logs one row of metrics where ``logger`` of a configuration says: "none" or "wandb".

    Args:
        config: plain values of the run; ``logger`` and ``out`` are read, all of it is kept with the metrics.
        numbers: row -> {name: number}, what is logged of it.
        step: key of the row that counts; None: rows count.

    Raises:
        ConfigError: an unknown logger.
    """
    if config["logger"] == "none":
        return lambda row: None
    if config["logger"] != "wandb":
        raise ConfigError(nearest_name(config["logger"], ("none", "wandb"), "logger"))
    os.environ.setdefault("WANDB_MODE", "offline")
    import wandb  # by a script's option only

    wandb_run = wandb.init(project="facerecon", dir=str(config["out"]), config=dict(config))
    return lambda row: wandb_run.log(numbers(row), step=None if step is None else row[step])
