"""Metrics as JSON lines: one object a line, appended whole, readable after a crash."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from facerecon.errors import InputError

__all__ = ["MetricsWriter", "drop_after", "plain", "read_metrics"]

_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def plain(value: Any) -> Any:
    """JSON for a value: tensors and arrays become numbers or lists, non-finite numbers their names."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return _SPECIAL.get(value, value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return value


class MetricsWriter:
    """Append objects to a JSON-lines file.

    Each line is one ``write`` in append mode: lines of several processes do not mix on a local disk.
    A last line that a crash cut short is ended first, and skipped by :func:`read_metrics`.

    Args:
        path: the file; made with its folder when first written to.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._started = False

    def write(self, row: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Append one row, e.g. ``write(step=3, loss=0.5)``; tensors of one element become numbers.

        Raises:
            InputError: the file cannot be written.
        """
        line = json.dumps(plain({**(row or {}), **values}), allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                if not self._started:
                    line = ("\n" if _torn(handle) else "") + line
                    self._started = True
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise InputError(
                f"cannot write {self.path} ({error.strerror}); choose another out= or free space."
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """All whole rows so far; none when the file does not exist yet."""
        return read_metrics(self.path) if self.path.exists() else []


def _torn(handle: int) -> bool:
    size = os.fstat(handle).st_size
    if size == 0:
        return False
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) != b"\n"


def _rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield _numbers(row)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Every whole row of a JSON-lines file; a torn line is skipped.

    Raises:
        InputError: the file is missing, or holds text but no JSON object at all.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); expected a metrics.jsonl of a run.") from None
    rows = list(_rows(text))
    if not rows and text.count("\n") > 1:
        raise InputError(f"{path} holds no JSON object; expected a metrics.jsonl of a run.")
    return rows


def drop_after(path: str | os.PathLike, step: int, key: str = "step") -> int:
    """Remove rows later than ``step``, atomically: what a resumed run will write again.

    Args:
        path: a JSON-lines file; nothing happens when it does not exist.
        step: the last step that is kept.
        key: the field that counts; rows without it are kept.

    Returns:
        How many rows were removed.
    """
    path = Path(path)
    if not path.exists():
        return 0
    rows = read_metrics(path)
    kept = [row for row in rows if not (isinstance(row.get(key), (int, float)) and row[key] > step)]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(plain(row), allow_nan=False) + "\n" for row in kept)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return len(rows) - len(kept)
