"""What goes into and comes out of one subject's way through the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Item", "Outcome", "Refused"]


@dataclass(frozen=True)
class Item:
    """One subject to make a map of. Plain values only: it travels between processes and machines.

    Args:
        number: names the files, ``NNNNNN``.
        seed: of the open generator, or None.
        path: of a photo, or None.
        search: the bytes of a search that was done before (``search/NNNNNN.safetensors``), or None.
    """

    number: int
    seed: int | None = None
    path: str | None = None
    search: bytes | None = None

    @property
    def name(self) -> str:
        """Six digits, e.g. ``000123``."""
        return f"{self.number:06d}"

    @property
    def origin(self) -> str:
        """What a user knows it by."""
        return self.path if self.path is not None else f"seed {self.seed}"


@dataclass
class Outcome:
    """What came of one item.

    Args:
        name: of the item.
        origin: its seed or photo.
        reasons: what speaks against it, each ``"filter: what was measured"``.
        kept: whether it is in the set; with filters off, in spite of reasons.
        error: one line, where it could not be done at all (a corrupt photo).
        figures: every measurement, plain numbers and short lists.
        files: {path relative to the data set's folder: content}.
        seconds: {step: seconds}.
    """

    name: str
    origin: str
    reasons: list[str] = field(default_factory=list)
    error: str | None = None
    kept: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether its map is in the set."""
        return self.kept and self.error is None


class Refused(Exception):
    """Raised by a step to end an item early.

    Args:
        reasons: as in :class:`Outcome`.
    """

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
