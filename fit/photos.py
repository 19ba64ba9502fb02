"""The photos of a run: which they are, what a user corrects of them, and what is measured on them."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facerecon.errors import ConfigError, FaceReconError, InputError
from facerecon.imaging.files import EXTENSIONS
from facerecon.perception import LANDMARK_FORMATS
from facerecon.run.signals import check_stop
from facerecon.types import Observation

KINDS = {"landmarks": LANDMARK_FORMATS, "mask": EXTENSIONS}


@dataclass(frozen=True)
class Corrections:
    """What replaces the detected landmarks and mask of one photo; None where they are detected."""

    landmarks: Path | None = None
    mask: Path | None = None

    def digest(self, settings: str) -> str:
        """``settings`` with the content of the files, so that a changed file is a changed setting."""
        given = [(kind, path) for kind, path in vars(self).items() if path is not None]
        if not given:
            return settings
        content = hashlib.sha256(settings.encode())
        for kind, path in given:
            try:
                content.update(kind.encode() + os.fsencode(path.suffix) + path.read_bytes())
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from None
        return content.hexdigest()[:12]


def find_corrections(config: Any, paths: Sequence) -> dict[Any, Corrections]:
    """The corrections of each photo.

    ``landmarks`` and ``mask`` of the configuration are null, a file (for one photo), or a folder whose files are called
    as the photos are; photos without one are detected as usual.
    """
    found: dict[Any, dict[str, Path]] = {path: {} for path in paths}
    for kind, endings in KINDS.items():
        if config.get(kind) is None:
            continue
        if str(config["face"]) == "all":
            raise ConfigError(f"{kind}= belongs to one face; got face=all. Use face=largest or an index.")
        source = Path(str(config[kind])).expanduser()
        if not source.exists():
            raise InputError(f"{kind}={source} does not exist; check the path.")
        if source.is_file():
            if len(paths) > 1:
                raise ConfigError(
                    f"{kind}={source} is one file for {len(paths)} photos; give a folder whose files are named as they."
                )
            found[paths[0]][kind] = source
            continue
        stems: dict[str, list[Path]] = {}
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix.lower() in endings:
                stems.setdefault(file.stem, []).append(file)
        shared = Counter(Path(path).stem for path in paths)
        for path in paths:
            stem = Path(path).stem
            files = stems.get(stem, [])
            if files and shared[stem] > 1:
                raise ConfigError(
                    f"{files[0]} could belong to any of {shared[stem]} photos named '{stem}'; "
                    "give them different names, or do them one by one."
                )
            if len(files) > 1:
                raise ConfigError(f"{source} holds {len(files)} files named '{stem}'; leave one for {kind}=.")
            if files:
                found[path][kind] = files[0]
        if not any(kind in given for given in found.values()):
            raise ConfigError(
                f"no file in {kind}={source} is named as a photo (expected e.g. {Path(paths[0]).stem}{endings[0]})."
            )
    return {path: Corrections(**given) for path, given in found.items()}


@dataclass(frozen=True)
class Source:
    """A photo, or a frame of a video."""

    image: Any  # what :func:`facerecon.observe` takes
    name: str  # what messages call it
    folder: str  # name of the folder of its results
    given: Corrections
    time: float = 0.0  # seconds, of a frame
    number: int = 0  # of a frame in its video, of a photo among the photos


def observe_sources(
    sources: Iterable[Source], config: Any, fail: Callable[[Source, Exception], None]
) -> Iterator[tuple[Source, Observation, float]]:
    """(source, observation, seconds) of every photo that shows a face; ``fail`` is called with each other, and why."""
    from facerecon.perception import observe

    face = face_choice(config.face)
    for source in sources:
        check_stop()
        clock = time.perf_counter()
        try:
            photo = observe(source.image, face, landmarks=source.given.landmarks, mask=source.given.mask)
        except FaceReconError as error:
            fail(source, error)
            continue
        yield source, photo, time.perf_counter() - clock


def is_finished(facts: Mapping[str, Any], settings: str, content: str) -> bool:
    """Whether what a run noted of an item is of these settings and this content; runs of old kept no content."""
    return facts.get("settings") == settings and facts.get("content", content) == content


def face_choice(value: Any) -> str | int:
    """The key ``face``: "largest", "all" or an index."""
    text = str(value)
    return int(text) if text.lstrip("-").isdigit() else text
