"""Subjects of a set by their position: faces of a generator, photos, or entries of a manifest; and their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from facerecon import assets
from facerecon.dataset.engines import Item, Outcome
from facerecon.dataset.manifest import Manifest
from facerecon.dataset.pipeline import Search
from facerecon.dataset.sampling import set_seeds
from facerecon.imaging.files import list_images, write_bytes
from facerecon.run import RunDirectory
from facerecon.stylegan.load import load_face_generator

__all__ = ["SetRecords", "generated_subjects", "manifest_subjects", "photo_subjects"]

Subjects = tuple[Callable[[int], Item | None], int | None]
"""A function from a position to a subject, and how many there are (None: not known; the function gives None after the
last)."""


def generated_subjects(
    generator: str, first_seed: int, truncation: float, balance: bool, dark_share: float | None, seed: int
) -> Subjects:
    """Faces of a generator, to be asked for at 0, 1, 2, ...; see :func:`facerecon.dataset.sampling.set_seeds`."""
    seeds = set_seeds(load_face_generator(generator), first_seed, truncation, balance, dark_share, seed)

    def draw(position: int) -> Item | None:
        number = next(seeds, None)
        return None if number is None else Item(number, seed=number)

    return draw, None


def photo_subjects(folder: str) -> Subjects:
    """The photos of a folder or pattern."""
    paths = list_images(folder)
    return lambda i: Item(i, path=str(paths[i])), len(paths)


def manifest_subjects(path: str, count: int | None = None) -> Subjects:
    """The first entries of a manifest, whose search is done; "open" is the shipped one."""
    path = assets.shipped("open_uv_manifest.safetensors") if path == "open" else path
    rows = list(Manifest.load(path).items())[:count]

    def make(i: int) -> Item:
        number, seed, tensors, figures = rows[i]
        descriptors = {k[11:]: v for k, v in tensors.items() if k.startswith("descriptor_")}
        known = {k: v for k, v in figures.items() if v == v}
        search = Search(tensors["source"], tensors["views"], figures=known, descriptors=descriptors)
        return Item(number, seed=seed, search=search.to_bytes())

    return make, len(rows)


def _source_digest(item: Item) -> str:
    """Digest of the photo, or of the manifest's entry; "" for a seed, which is its number."""
    if item.path is None and item.search is None:
        return ""
    try:
        content = Path(item.path).read_bytes() if item.search is None else item.search
    except OSError:
        content = b""  # the worker's error tells what is wrong with it
    return hashlib.sha256(content).hexdigest()[:12]


def _files_of(folder: Path, name: str) -> list[Path]:
    """Every file of a subject that is there."""
    parts = ("uv-maps", "observed", "face-latents", "fit", "search", "views", "refused", "thumbs")
    return [path for part in parts for path in folder.glob(f"{part}/{name}.*")]


class SetRecords:
    """What is finished of a set, and its files.

    Args:
        folder: of the run, held by this process.
        facts: what each record keeps: ``settings`` and ``searched``, digests of what the maps and their searches depend
            on, and ``goal``, the maps that are wanted.
        resume: keep subjects that were finished with the same settings.

    Attributes:
        done: {name: facts} of finished subjects.
        searched: names whose saved search can be used again.
    """

    def __init__(self, folder: RunDirectory, facts: Mapping[str, Any], resume: bool | str) -> None:
        self.folder, self.facts = folder, facts
        done = folder.completed()
        self.done = {name: of for name, of in done.items() if resume and of.get("settings") == facts["settings"]}
        self.searched = {name for name, of in done.items() if of.get("searched") == facts["searched"]}
        self._recorded = {name: of.get("source", "") for name, of in done.items()}
        self._sources: dict[str, str] = {}

    def accepted(self) -> list[str]:
        """Names of the maps that are finished, in order."""
        return sorted(name for name, facts in self.done.items() if facts.get("accepted"))

    def note_source(self, item: Item) -> None:
        """Note what a subject is made of; one of another photo under the same number is forgotten."""
        self._sources[item.name] = source = _source_digest(item)
        if self._recorded.get(item.name, source) != source:
            self.forget([item.name])

    def write(self, outcome: Outcome) -> None:
        """The files of one subject, then its record: after a crash the record tells what can be trusted."""
        path, name = self.folder.path, outcome.name
        for stale in _files_of(path, name):
            relative = stale.relative_to(path).as_posix()
            if relative not in outcome.files and not relative.startswith("search/"):
                stale.unlink(missing_ok=True)
        for relative, content in sorted(outcome.files.items()):
            write_bytes(path / relative, content)
        if outcome.error is not None:
            self.folder.fail(name, outcome.error)
            self.done.pop(name, None)
            return
        row = {"item": name, "origin": outcome.origin, "accepted": outcome.accepted, "reasons": outcome.reasons}
        self.folder.metrics.write(row | {"figures": outcome.figures, "seconds": outcome.seconds})
        self.done[name] = {**self.facts, "source": self._sources[name], "accepted": outcome.accepted}
        self.folder.complete(name, **self.done[name])

    def cut(self, order: Sequence[str], count: int) -> list[str]:
        """Keep exactly ``count`` maps: what workers made beyond, in the order of the seeds, goes.

        Returns:
            The names that stay, in order.
        """
        wanted = [name for name in order if self.done.get(name, {}).get("accepted")][:count]
        if len(wanted) < count:
            return list(order)
        last, done = int(wanted[-1]), self.folder.completed()
        surplus = [name for name, of in done.items() if int(name) > last and of.get("goal", 0) <= count]
        self.forget([*surplus, *(name for name in self.folder.failures() if int(name) > last)])
        return [name for name in order if int(name) <= last]

    def forget(self, names: Iterable[str]) -> None:
        """Remove records and files of subjects that are not, or no longer, in the set."""
        names = sorted(names)
        if names:
            self.folder.drop(names)
        for name in names:
            self.done.pop(name, None)
            self.searched.discard(name)
            for path in _files_of(self.folder.path, name):
                path.unlink(missing_ok=True)
