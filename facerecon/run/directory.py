"""The folder of one run: its configuration, what is done, what failed, metrics and checkpoints."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from facerecon.errors import ConfigError, InputError
from facerecon.run.checkpoint import Checkpoints
from facerecon.run.metrics import MetricsWriter, plain

__all__ = ["RunDirectory"]

_FREE_TO_CHANGE = ("out", "resume", "overwrite", "device", "threads", "workers", "logger")


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys at which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            if not path and key in _FREE_TO_CHANGE:
                continue
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [path]


class RunDirectory:
    """One run's folder::

        config.json  metrics.jsonl  completed.jsonl  failures.jsonl  checkpoints/  and a folder per item

    Args:
        out: the folder; made with its parents.
        config: nested mapping of plain values, written as config.json. Top-level keys that may change between
            runs are out, resume, overwrite, device, threads, workers and logger.
        resume: continue a run that is there; its configuration must be the same. Without one, begin.
        overwrite: begin anew in a folder that holds a run. Its records are removed; results are replaced one
            by one as they are made.
        keep_checkpoints: how many checkpoints stay.

    Raises:
        ConfigError: the folder holds a run and neither ``resume`` nor ``overwrite`` is given, or the
            configuration differs (names the keys).
        InputError: the folder cannot be made or written.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        config: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        keep_checkpoints: int = 2,
    ) -> None:
        self.path = Path(out)
        self.config: dict[str, Any] = plain(config or {})
        self.metrics = MetricsWriter(self.path / "metrics.jsonl")
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep_checkpoints)
        self._completed = MetricsWriter(self.path / "completed.jsonl")
        self._failures = MetricsWriter(self.path / "failures.jsonl")
        self.resumed = False
        config_path = self.path / "config.json"
        if config_path.exists() and resume:
            differing = _differences(self._read_config(config_path), self.config)
            if differing:
                raise ConfigError(
                    f"{self.path} has another configuration (differs: {', '.join(differing[:5])}); "
                    "resume it with the same one, or choose another out=."
                )
            self.resumed = True
            return
        if config_path.exists() and not overwrite:
            raise ConfigError(f"{self.path} already holds a run; continue it with resume=true or choose another out=.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            records = (self.metrics.path, self._completed.path, self._failures.path)
            for record in (*records, *self.checkpoints.folder.glob("step-*.safetensors")):
                record.unlink(missing_ok=True)
            temporary = config_path.with_name(f".config.{os.getpid()}")
            temporary.write_text(json.dumps(self.config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(temporary, config_path)
        except OSError as error:
            raise InputError(
                f"cannot write to {self.path} ({error.strerror}); choose another out= or free space."
            ) from error

    @staticmethod
    def _read_config(path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); choose another out=.") from None

    def folder(self, item: str) -> Path:
        """A folder for one item's results, named after it; made when it is missing.

        Args:
            item: e.g. a photo's path; its stem names the folder. Two items of one run with the same stem need
                different names: pass ``"a_portrait"``, not ``"a/portrait.jpg"``.
        """
        name = re.sub(r"[^\w.+-]+", "_", Path(str(item)).stem, flags=re.UNICODE).strip("._") or "item"
        path = self.path / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {path} ({error.strerror}); choose another out=.") from error
        return path

    # -- items -----------------------------------------------------------------------------------

    def complete(self, item: str, **facts: Any) -> None:
        """Mark an item as done, once its results are on disk; ``facts`` (timings, scores) are kept."""
        self._completed.write({**facts, "item": str(item)})

    def fail(self, item: str, error: BaseException | str) -> None:
        """Note that an item failed, and go on."""
        kind = type(error).__name__ if isinstance(error, BaseException) else "error"
        text = (str(error).splitlines() or [""])[0]
        self._failures.write(item=str(item), kind=kind, message=text or kind)

    def completed(self) -> dict[str, dict[str, Any]]:
        """Facts of every finished item, by item."""
        return {row.pop("item"): row for row in self._completed.read() if "item" in row}

    def failures(self) -> dict[str, str]:
        """Message of every item whose last attempt failed, by item."""
        done = self.completed()
        rows = [row for row in self._failures.read() if "item" in row]
        return {row["item"]: row.get("message", "") for row in rows if row["item"] not in done}

    def pending(self, items: Iterable[str]) -> list[str]:
        """Those that are not done yet, in order; failed ones are tried again."""
        done = self.completed()
        return [item for item in items if str(item) not in done]

    def summary(self) -> str:
        """What came of the items, for the end of a run: one line, and one more for each failure."""
        failures = self.failures()
        lines = [f"{len(self.completed())} done, {len(failures)} failed: {self.path}"]
        return "\n".join([*lines, *(f"  {item}: {message}" for item, message in failures.items())])
