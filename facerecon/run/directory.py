"""The folder of one run: its configuration, what is done, what failed, metrics and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from facerecon.errors import ConfigError
from facerecon.run.checkpoint import Checkpoints
from facerecon.run.lock import FolderLock
from facerecon.run.metrics import MetricsWriter, plain
from facerecon.settings import rename_keys
from facerecon.storage import file_sha256, output_error, parse_json, refuse_link, remove_leftovers, write_whole

__all__ = ["FREE_TO_CHANGE", "RunDirectory", "file_digest", "folder_name", "folder_names"]

_SUSPECT = "suspect"  # kind of a failure that leaves a result
FREE_TO_CHANGE = (
    *("out", "resume", "overwrite", "device", "threads", "workers", "logger"),
    *("kimg", "pretrain.kimg", "max_minutes"),  # of trainings: how long,
    *("log_kimg", "snapshot_kimg", "keep", "keep_decoders", "grid", "measure", "collapse", "file"),  # what is kept,
    *("memory_gb", "recompute_from", "cache", "prepare", "pack"),  # how it is computed, what other keys say again,
    *("data", "synthetic.maps", "synthetic.backgrounds", "weak.data"),  # where data lies whose content is compared
)
"""Keys that may differ between two starts of a run, without a word."""
_RESERVED = (
    *("config.json", "metrics.jsonl", "completed.jsonl", "failures.jsonl", "checkpoints"),
    *("index.html", "results.csv", "results.json", "overview.jpg"),
)


def file_digest(path: str | os.PathLike) -> str:
    """sha256 of a file's content, in hex; of its path where it cannot be read, which its reader will say."""
    try:
        return file_sha256(path)
    except OSError:
        return hashlib.sha256(b"unreadable " + os.fsencode(path)).hexdigest()


def folder_name(text: str) -> str:
    """A text as the name of a folder: what cannot be printed is ``_``; it is never hidden, empty or too long."""
    text = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text).lstrip(".")
    return text[:100].encode()[:200].decode("utf-8", "ignore") or "item"


def folder_names(
    contents: Mapping[Path, str],
    done: Mapping[str, Mapping[str, Any]] | None = None,
    numbered: bool = False,
    label: str | None = None,
) -> dict[Path, str]:
    """{file: name of its folder}: its stem; where others have that, its whole name, or its stem and content.

    Names do not depend on the order of the files and, but for files of one stem, not on which there are. Two are never
    one, not even where a file system takes capitals for small letters; only copies, files of one stem and content,
    share theirs.

    Args:
        contents: {path: digest of the content}, see :func:`file_digest`.
        done: {name: facts} of what is finished (:meth:`RunDirectory.completed`). A file keeps the name under which its
            ``content``, else its ``path``, is there; other names there, and those of their ``parts``, are taken.
        numbered: results may be called NAME_0, NAME_1, ..., which no other name may be, then.
        label: instead of the stem, for a single file.
    """
    done, taken = done or {}, {_folded(name) for name in _RESERVED}
    holders: dict[str, set[str]] = {}
    for item, facts in done.items():
        for name in (item, *facts.get("parts", ())):
            for key in (_folded(name), _series(name)) if numbered else (_folded(name),):
                holders.setdefault(key, set()).add(item)
    first: dict[tuple[str, str], Path] = {}
    options: dict[Path, list[str]] = {}
    own: dict[Path, tuple[list[str], list[str]]] = {}
    for path, content in contents.items():
        stem = folder_name(Path(path).stem if label is None else label)
        if first.setdefault((stem, content), path) is not path:
            continue
        whole = [folder_name(Path(path).name)] if label is None else []
        options[path] = [stem, *whole, f"{stem[:80]}-{content[:12]}"]
        there = [name for name in options[path] if name in done]
        own[path] = (
            [name for name in there if done[name].get("content") == content],
            [name for name in there if os.path.abspath(str(done[name].get("path", ""))) == os.path.abspath(path)],
        )
    wanted = Counter(key for of in options.values() for key in {_folded(name) for name in of})

    def alone(name: str) -> bool:
        return wanted[_folded(name)] == 1 and not (numbered and wanted[_series(name)[:-1]])

    names: dict[Path, str] = {}
    for turn in range(3):  # those that keep a name by content, by path, and the others
        for path, (by_content, by_path) in own.items():
            choice = (by_content, by_path, filter(alone, options[path]))[turn]
            for name in choice if path not in names else ():
                held = holders.get(_folded(name), set()) | holders.get(f"{_folded(name)}/", set())
                if _folded(name) not in taken and held <= {*by_content, *by_path}:
                    names[path] = name
                    taken.add(_folded(name))
                    break
    names = {path: names.get(path, of[-1]) for path, of in options.items()}
    return {
        path: names[first[folder_name(Path(path).stem if label is None else label), content]]
        for path, content in contents.items()
    }


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _series(name: str) -> str:
    """Of ``a_7``, which may be one of several results of a file: ``a/``; of other names nothing."""
    match = re.fullmatch(r"(.*)_\d+", _folded(name), re.DOTALL)
    return f"{match[1]}/" if match else ""


def _differences(old: Any, new: Any, shared: bool, path: str = "") -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old, new)} where two configurations differ; ``shared``: of the keys that both have."""
    if path in FREE_TO_CHANGE:
        return {}
    if isinstance(old, dict) and isinstance(new, dict):
        found = {}
        for key in sorted({*old} & {*new} if shared else {*old, *new}):
            found |= _differences(old.get(key), new.get(key), shared, f"{path}.{key}" if path else key)
        return found
    return {} if old == new else {path: (old, new)}


def _told(changes: Mapping[str, tuple[Any, Any]]) -> str:
    values = {key: [json.dumps(value)[:60] for value in pair] for key, pair in changes.items()}
    shown = [f"{key} {old} -> {new}" for key, (old, new) in values.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


class RunDirectory:
    """One run's folder::

        config.json  metrics.jsonl  completed.jsonl  failures.jsonl  checkpoints/  and a folder per item

    Args:
        out: the folder; made with its parents.
        config: nested mapping of plain values, written as config.json. Those of :data:`FREE_TO_CHANGE` may change
            between runs.
        resume: continue a run that is there; its configuration must be the same. Without one, begin. ``"force"``: go
            on with what changed, with a warning. ``"items"``: go on with this configuration, which is then recorded,
            since each item's facts hold its own settings.
        fixed: keys that cannot change even so; all if left out. Where they are given, a key that the run did not
            record, as one of an earlier version, is not compared.
        aliases: {dotted key of an earlier version: today's}, see :func:`facerecon.settings.rename_keys`.
        overwrite: begin anew in a folder that holds a run. Its records are removed; results are replaced one
            by one as they are made.
        keep_checkpoints: how many checkpoints stay.

    Raises:
        ConfigError: the folder holds a run and neither ``resume`` nor ``overwrite`` is given, or the
            configuration differs (names the keys), or another process is writing in a folder that is begun anew.
        OutputError: the folder cannot be made or written, or one of its records is a symbolic link.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        config: Mapping[str, Any] | None = None,
        *,
        resume: bool | str = False,
        fixed: Sequence[str] | None = None,
        aliases: Mapping[str, str | None] | None = None,
        overwrite: bool = False,
        keep_checkpoints: int = 2,
    ) -> None:
        self.path = Path(out)
        self.config: dict[str, Any] = plain(config or {})
        self.metrics = MetricsWriter(self.path / "metrics.jsonl")
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep_checkpoints)
        self._completed = MetricsWriter(self.path / "completed.jsonl")
        self._failures = MetricsWriter(self.path / "failures.jsonl")
        self.resumed = self._renewed = False
        config_path = self.path / "config.json"
        records = (self.metrics.path, self._completed.path, self._failures.path)
        for place in (config_path, *records, self.checkpoints.folder):
            refuse_link(place)
        if config_path.exists() and resume:
            recorded = self._read_config(config_path)
            if isinstance(recorded, dict):
                recorded = rename_keys(recorded, aliases or {})
            self._compare(recorded, fixed, resume)
            self.resumed = True
            return
        if config_path.exists() and not overwrite:
            raise ConfigError(f"{self.path} already holds a run; continue it with resume=true or choose another out=.")
        with FolderLock(self.path):  # what another process is writing is not removed under it
            try:
                for record in (*records, *self.checkpoints.folder.glob("step-*.safetensors")):
                    record.unlink(missing_ok=True)
            except OSError as error:
                raise output_error(self.path, error) from None
            self._write_config()

    def _compare(self, old: Any, fixed: Sequence[str] | None, resume: bool | str) -> None:
        """Hold the configuration of the run that is there against this one."""
        items, recorded = resume == "items", old if isinstance(old, dict) else {}
        if items:
            pairs = {key: (recorded.get(key), self.config.get(key)) for key in fixed}
            changes = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
        else:
            changes = _differences(old, self.config, fixed is not None)
        held = {
            key: pair for key, pair in changes.items()
            if fixed is None or any(f"{key}.".startswith(f"{name}.") for name in fixed)
        }  # fmt: skip
        if held:
            raise ConfigError(
                f"{self.path} cannot go on with what changed ({_told(held)}); "
                "resume it with the same configuration, or choose another out=."
            )
        if items:
            self._renewed = old != self.config
            return
        if changes and resume != "force":
            raise ConfigError(
                f"{self.path} was begun with another configuration ({_told(changes)}); "
                "go on with the change by resume=force, or choose another out=."
            )
        if changes:
            warnings.warn(f"{self.path} goes on with what changed ({_told(changes)}).", stacklevel=3)
        unknown = [key for key in self.config if key not in recorded]
        unknown = [key for key in unknown if fixed is not None and key not in FREE_TO_CHANGE]
        if unknown:
            warnings.warn(
                f"{self.path} is of an earlier version, which did not record {', '.join(unknown[:5])}"
                + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
                + "; whether they changed is unknown.",
                stacklevel=3,
            )
        self._renewed = bool(changes or unknown)

    def _write_config(self) -> None:
        write_whole(self.path / "config.json", (json.dumps(self.config, indent=2, allow_nan=False) + "\n").encode())

    @staticmethod
    def _read_config(path: Path) -> Any:
        try:
            return parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); choose another out=.") from None

    @contextlib.contextmanager
    def alone(self) -> Iterator[RunDirectory]:
        """Hold the folder for this process, and first mend what a killed one left in it.

        Temporary files are removed, and so are metrics of items that were not marked as complete: they will be made,
        and their rows written, again.

        Raises:
            ConfigError: another process is writing there; the message names it.
        """
        with FolderLock(self.path):
            remove_leftovers(self.path)
            if self._renewed:
                self._write_config()
            done = self.completed()
            parts = {part for facts in done.values() for part in facts.get("parts", ())}
            known = {*done, *parts}
            self.metrics.keep(lambda row: "item" not in row or row["item"] in known)
            self._completed.keep(lambda row: True)
            self._failures.keep(lambda row: True)
            yield self

    # -- items -----------------------------------------------------------------------------------

    def complete(self, item: str, **facts: Any) -> None:
        """Mark an item as done, once its results are on disk; ``facts`` (timings, scores) are kept."""
        self.complete_all({item: facts})

    def complete_all(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Mark several items as done at once: after a crash all of them are, or none."""
        self._completed.write_rows([{**of, "item": str(item)} for item, of in facts.items()])

    def fail(self, item: str, error: BaseException | str) -> None:
        """Note that an item failed, and go on."""
        kind = type(error).__name__ if isinstance(error, BaseException) else "error"
        text = (str(error).splitlines() or [""])[0]
        self._failures.write(item=str(item), kind=kind, message=text or kind)

    def doubt(self, item: str, reason: str) -> None:
        """Note that an item's result is not to be trusted; it may be done all the same."""
        self._failures.write(item=str(item), kind=_SUSPECT, message=reason)

    def forget_failures(self, items: Iterable[str]) -> None:
        """Drop what is noted about items that are tried again."""
        retried = set(items)
        self._failures.keep(lambda row: row.get("item") not in retried)

    def drop(self, items: Iterable[str]) -> None:
        """Forget items altogether: as if they had never been tried."""
        dropped = set(items)
        for records in (self.metrics, self._completed, self._failures):
            records.keep(lambda row: row.get("item") not in dropped)

    def tidy(self, items: Iterable[str]) -> None:
        """At the end of a run: the last record of each item, failures in the order of ``items``.

        A run that was stopped and started again so leaves the records of one that never was.
        """
        done, rank = self.completed(), {item: i for i, item in enumerate(items)}
        for records in (self.metrics, self._completed, self._failures):
            last = {row["item"]: i for i, row in enumerate(records.read()) if "item" in row}
            place = itertools.count()
            records.keep(lambda row, last=last, place=place: last.get(row.get("item"), at := next(place)) == at)
        self._failures.keep(
            lambda row: row.get("item") not in done or row.get("kind") == _SUSPECT,
            lambda row: rank.get(row.get("item"), len(rank)),
        )

    def failure_kinds(self) -> dict[str, str]:
        """Kind (name of the exception) of every failure, by item."""
        return {item: row.get("kind", "") for item, row in self._failed().items()}

    def completed(self) -> dict[str, dict[str, Any]]:
        """Facts of every finished item, by item."""
        return {row.pop("item"): row for row in self._completed.read() if "item" in row}

    def failures(self) -> dict[str, str]:
        """Message of every item whose last attempt failed, by item."""
        return {item: row.get("message", "") for item, row in self._failed().items()}

    def _failed(self) -> dict[str, dict[str, Any]]:
        done = self.completed()
        return {row["item"]: row for row in self._failures.read() if "item" in row and row["item"] not in done}

    def suspects(self) -> dict[str, str]:
        """What :meth:`doubt` noted, by item."""
        rows = [row for row in self._failures.read() if row.get("kind") == _SUSPECT and "item" in row]
        return {row["item"]: row.get("message", "") for row in rows}
