"""The compact manifest: what it takes to build a set again without any search.

One safetensors file holds the source's and the three views' latent codes, the fit, and every figure of each accepted
item: about 6 KB an item of the open generator. ``source=manifest`` renders the codes and extracts the maps anew. The
shipped one (:meth:`Manifest.compact`) holds codes and figures alone, about 4 KB an item.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facerecon.errors import InputError
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole

__all__ = ["Manifest"]

_HALF = (
    "source",
    "views",
    "identity",
    "expression",
    "light",
    "descriptor_source",
    "descriptor_front",
    "descriptor_map",
)


@dataclass(frozen=True)
class Manifest:
    """N items of a set, in the order of their numbers.

    Args:
        numbers: (N,) int64, which name the files.
        seeds: (N,) int64, -1 where the source was a photo.
        tensors: {name: (N, ...)}. Always there: ``source`` (N, 512) or (N, 23, 512) and ``views`` (N, V, ...): codes
            of the source and of the V views, exact in half precision. Unless it is compact, of the fit: ``identity``
            (N, I), ``expression`` (N, V, E), ``rotation`` and ``translation`` (N, V, 3), ``light`` (N, V, 9, 3); and
            ``descriptor_*`` (N, 128): identity embeddings of the source, the front view and the rendered map.
        figures: {name: (N,)} measurements; NaN where one was not taken.
        facts: versions and settings, JSON-able; ``head_version`` of the head model that identities are of, which older
            manifests lack (:func:`facerecon.types.saved_head`).
    """

    numbers: Tensor
    seeds: Tensor
    tensors: Mapping[str, Tensor]
    figures: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def collect(
        cls, rows: Sequence[tuple[int, int | None, Mapping[str, Tensor], Mapping[str, Any]]], facts: Mapping[str, Any]
    ) -> Manifest:
        """From (number, seed, tensors, figures) of each item.

        Raises:
            InputError: no items, or items of different kinds.
        """
        if not rows:
            raise InputError("a manifest needs at least one item; got none.")
        rows = sorted(rows, key=lambda row: row[0])
        kinds = {tuple((k, tuple(v.shape)) for k, v in sorted(row[2].items())) for row in rows}
        if len(kinds) > 1:
            raise InputError("the items of a manifest must hold the same tensors; these come from different settings.")
        tensors = {key: torch.stack([row[2][key] for row in rows]) for key in sorted(rows[0][2])}
        names = sorted({key for row in rows for key, value in row[3].items() if isinstance(value, int | float)})
        figures = {
            name: torch.tensor([float(row[3].get(name, torch.nan)) for row in rows], dtype=torch.float32)
            for name in names
        }
        numbers = torch.tensor([row[0] for row in rows])
        seeds = torch.tensor([-1 if row[1] is None else row[1] for row in rows])
        return cls(numbers, seeds, tensors, figures, dict(facts))

    def compact(self) -> Manifest:
        """With the codes alone of its tensors: all that ``source=manifest`` needs. Fit and descriptors are measured
        again by such a run."""
        return replace(self, tensors={name: self.tensors[name] for name in ("source", "views")})

    def save(self, path: str | os.PathLike) -> Path:
        """Write it; codes and coefficients in half precision."""
        tensors = {f"tensor.{k}": value.half() if k in _HALF else value.float() for k, value in self.tensors.items()}
        tensors |= {"numbers": self.numbers.to(torch.int32), "seeds": self.seeds}
        names = list(self.figures)
        if names:
            tensors["figures"] = torch.stack([self.figures[name] for name in names], 1)
        meta = {"type": "Manifest", "figures": json.dumps(names), "facts": json.dumps(self.facts, sort_keys=True)}
        return write_whole(path, safetensors_bytes(tensors, meta))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Manifest:
        """Read it; floating-point tensors come back as float32.

        Raises:
            InputError: the file is missing or is no manifest.
        """
        advice = "expected the manifest.safetensors of a data set written by train/uv_dataset.py"
        tensors, meta = read_safetensors(path, "a manifest", advice, error=InputError, finite=False)
        if meta.get("type") != "Manifest" or "numbers" not in tensors or "tensor.views" not in tensors:
            raise InputError(f"{path} is no manifest; {advice}.")
        try:
            names, facts = parse_json(meta.get("figures", "[]")), parse_json(meta.get("facts", "{}"))
            columns = tensors["figures"].unbind(1) if names else ()
            figures = dict(zip(names, columns, strict=True))
            if not isinstance(facts, dict) or not all(isinstance(name, str) for name in figures):
                raise ValueError("its figures have no names")
            numbers, seeds = tensors["numbers"].long(), tensors["seeds"].long()
            if seeds.dim() != 1 or any(t.shape[:1] != numbers.shape for t in tensors.values()):
                raise ValueError("not a row an item in all of it")
            if any(column.dim() != 1 for column in columns):
                raise ValueError("its figures are no numbers")
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is no whole manifest ({reason}); {advice}.") from None
        kept = {key[7:]: value.float() for key, value in tensors.items() if key.startswith("tensor.")}
        return cls(numbers, seeds, kept, figures, facts)

    def items(self) -> Iterator[tuple[int, int | None, dict[str, Tensor], dict[str, float]]]:
        """(number, seed, tensors, figures) of each item."""
        for i, (number, seed) in enumerate(zip(self.numbers.tolist(), self.seeds.tolist(), strict=True)):
            tensors = {key: value[i] for key, value in self.tensors.items()}
            figures = {key: value[i].item() for key, value in self.figures.items()}
            yield number, None if seed < 0 else seed, tensors, figures
