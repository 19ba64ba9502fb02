"""Metrics as JSON lines: one object a line, appended whole, readable after a crash."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from facerecon.errors import InputError
from facerecon.storage import no_follow, output_error, write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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

    Each line is one ``write`` in append mode, under a lock: lines of several processes do not mix on a local disk, and
    none takes another's for one that was cut short.
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
            OutputError: the file cannot be written.
        """
        self.write_rows([{**(row or {}), **values}])

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append several rows at once: all of them, or, on a full disk, none.

        Raises:
            OutputError: the file cannot be written.
        """
        data = "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = no_follow(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                if fcntl is not None:
                    with contextlib.suppress(OSError):  # a file system without locks
                        fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed
                if not self._started:
                    data = (b"\n" if _torn(handle) else b"") + data
                    self._started = True
                size, done = os.fstat(handle).st_size, 0
                try:
                    while done < len(data):  # a full disk takes a part, and says so at the next call
                        done += os.write(handle, data[done:])
                except OSError:
                    if done and os.fstat(handle).st_size == size + done:  # nobody else has written since
                        os.ftruncate(handle, size)
                    raise
            finally:
                os.close(handle)
        except OSError as error:
            raise output_error(self.path, error) from None

    def keep(self, wanted: Callable[[dict[str, Any]], bool], key: Callable[[dict[str, Any]], Any] | None = None) -> int:
        """Rewrite the file with the rows that are ``wanted``, whole or not at all; a torn line goes too.

        Args:
            wanted: says of a row whether it stays.
            key: also sort the rows by it (equal ones stay in order).

        Returns:
            How many lines were removed. Nobody else may be writing.
        """
        if not self.path.exists():
            return 0
        lines = [line for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
        kept = [row for row in _rows("\n".join(lines)) if wanted(row)]
        ordered = kept if key is None else sorted(kept, key=key)
        if len(kept) < len(lines) or ordered != kept:
            write_whole(self.path, [(json.dumps(plain(r), allow_nan=False) + "\n").encode() for r in ordered])
        return len(lines) - len(kept)

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
                row = _numbers(json.loads(line))
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


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
        How many lines were removed, a torn one among them.
    """
    return MetricsWriter(path).keep(lambda row: not (isinstance(row.get(key), (int, float)) and row[key] > step))
