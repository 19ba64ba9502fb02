"""Checkpoints: a tree of tensors and plain values in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facerecon.errors import InputError
from facerecon.modes import in_own_modes
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole

__all__ = ["Checkpoints", "is_due", "load_checkpoint", "save_checkpoint"]


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON, with tensors taken out and named by their place."""
    if isinstance(value, Tensor):
        while name in tensors:  # "a.b" beside {"a": {"b": ...}}
            name += "_"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # keys may be integers, as in an optimizer's state
        pairs = [[key, _pack(item, f"{name}.{key}" if name else str(key), tensors)] for key, item in value.items()]
        for key, _ in pairs:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise InputError(f"a checkpoint's keys must be text or integers; got {key!r} at '{name}'.")
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{i}" if name else str(i), tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise InputError(
        f"a checkpoint holds tensors, numbers, text, lists, tuples and dictionaries; "
        f"got {type(value).__name__} at '{name}'. Convert it first (a module: state_dict())."
    )


def _unpack(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_unpack(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content


def save_checkpoint(path: str | os.PathLike, tree: dict[str, Any]) -> Path:
    """Write a tree such as ``{"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}``.

    Args:
        path: the file; it is replaced only once the new one is complete and on disk.
        tree: nested dictionaries (text or integer keys), lists and tuples of tensors, numbers, text and None.

    Raises:
        InputError: the tree holds something else.
        OutputError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    packed = json.dumps(_pack(tree, "", tensors))
    return write_whole(path, safetensors_bytes(tensors, {"type": "checkpoint", "tree": packed}))


@in_own_modes
def load_checkpoint(path: str | os.PathLike, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint.
    """
    advice = "use an older checkpoint, one written by facerecon"
    tensors, meta = read_safetensors(path, "a whole checkpoint", advice, error=InputError, device=device, finite=False)
    if meta.get("type") != "checkpoint":
        raise InputError(f"{path} is a safetensors file but no checkpoint; check the path.")
    try:
        tree = _unpack(parse_json(meta["tree"]), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged ({reason}); {advice}.") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} is damaged (no mapping in it); {advice}.")
    return tree


class Checkpoints:
    """The last few checkpoints of a run, by step.

    Args:
        folder: where they are; made when the first one is saved.
        keep: how many of the latest stay.
    """

    _NAME = re.compile(r"step-(\d{9,})\.safetensors")

    def __init__(self, folder: str | os.PathLike, keep: int = 2) -> None:
        if keep < 1:
            raise InputError(f"keep must be 1 or more; got {keep}.")
        self.folder = Path(folder)
        self.keep = keep

    def path(self, step: int) -> Path:
        """File of one step."""
        return self.folder / f"step-{step:09d}.safetensors"

    def steps(self) -> list[int]:
        """Steps that have a file, ascending."""
        matches = (self._NAME.fullmatch(path.name) for path in self.folder.glob("step-*.safetensors"))
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int, tree: dict[str, Any]) -> Path:
        """Write a step, then remove all but the last ``keep``."""
        path = save_checkpoint(self.path(step), {"step": step, "tree": tree})
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)
        return path

    def latest(self, device: str | torch.device = "cpu") -> tuple[int, dict[str, Any]] | None:
        """(step, tree) of the last readable checkpoint, or None; warns about one that is damaged."""
        for step in reversed(self.steps()):
            try:
                tree = load_checkpoint(self.path(step), device)
                if "tree" not in tree:
                    raise InputError(f"{self.path(step)} is not of a series of steps; use an older checkpoint.")
                return step, tree["tree"]
            except InputError as error:
                warnings.warn(f"{error} Trying the one before.", stacklevel=2)
        return None


def is_due(images: int, batch: int, kimg: float) -> bool:
    """Whether the last step, of ``batch`` images up to ``images`` in all, crossed a multiple of ``kimg`` thousands."""
    every = max(1, round(kimg * 1000))
    return images // every > (images - batch) // every
