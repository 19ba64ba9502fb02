"""Frames of a video: a film file, an animated picture, or a folder of numbered pictures; and films written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError
from torch import Tensor

from facerecon.errors import ConfigError, InputError
from facerecon.imaging.files import from_uint8, list_images, read_image, write_bytes

__all__ = ["ANIMATED", "FILMS", "Frame", "chosen_frames", "film_reader", "is_film", "read_frames", "write_film"]

FILMS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
"""Endings of files that PyAV reads."""

ANIMATED = (".gif", ".webp", ".png", ".apng", ".tif", ".tiff")
"""Endings of files that may hold several pictures, which Pillow reads."""

_RATE = 25.0  # frames a second of numbered pictures


@dataclass(frozen=True)
class Frame:
    """One frame.

    Args:
        number: from 0, in the file or folder. time: seconds from the first frame. image: (3, H, W) in [0, 1].
        name: of the picture's file, or of the film and the frame's number.
    """

    number: int
    time: float
    image: Tensor
    name: str


def is_film(source: Any) -> bool:
    """Whether a path names a film by its ending."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in FILMS


def film_reader() -> Any:
    """PyAV, which reads and writes films.

    Raises:
        InputError: it is not installed; how to get it, and how to do without.
    """
    try:
        import av
    except ImportError:
        raise InputError(
            "films need PyAV, which is not installed: pip install 'facerecon[video]' (or: pip install av); without it "
            "give an animated .gif or .webp, or a folder of frames."
        ) from None
    return av


def chosen_frames(total: int, count: int) -> list[int]:
    """``count`` frames of ``total``, evenly spread from the first to the last; all where there are no more.

    Raises:
        ConfigError: ``count`` is below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"frames must be a whole number, 1 or more; got {count!r}.")
    if count >= total:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def read_frames(source: str | os.PathLike, count: int = 16) -> Iterator[Frame]:
    """Frames evenly spread over a video, one at a time.

    Args:
        source: a film (read by PyAV), an animated picture, a folder or a pattern of pictures in natural order, which
            are taken as 25 a second.
        count: frames to take; all where there are no more.

    Raises:
        InputError: nothing is there, the file is no video, or PyAV is needed and missing. ConfigError: ``count``.
    """
    chosen_frames(1, count)
    path = Path(source).expanduser()
    if is_film(path):
        if not path.is_file():
            raise InputError(f"{path} does not exist; expected a film, an animated picture or a folder of frames.")
        return _of_film(path, count)
    if path.is_file() and path.suffix.lower() in ANIMATED:
        return _of_animation(path, count)
    return _of_pictures(list_images(source), count)


def _of_pictures(paths: Sequence[Path], count: int) -> Iterator[Frame]:
    for number in chosen_frames(len(paths), count):
        yield Frame(number, number / _RATE, read_image(paths[number]), paths[number].name)


def _of_animation(path: Path, count: int) -> Iterator[Frame]:
    try:
        with Image.open(path) as picture:
            total = getattr(picture, "n_frames", 1)
            wanted, time = set(chosen_frames(total, count)), 0.0
            for number, frame in enumerate(ImageSequence.Iterator(picture)):
                lasts = float(frame.info.get("duration") or 1000 / _RATE) / 1000
                if number in wanted:
                    pixels = np.asarray(frame.convert("RGBA").convert("RGB"))
                    yield Frame(number, time, from_uint8(pixels), f"{path.name} frame {number}")
                time += lasts
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); check the file.") from None


def _of_film(path: Path, count: int) -> Iterator[Frame]:
    av = film_reader()
    try:
        with av.open(str(path)) as film:
            if not film.streams.video:
                raise InputError(f"{path} holds no pictures, only sound; give a film.")
            total = sum(1 for _ in film.decode(video=0))  # what a container says of it is not always so
        wanted, first = set(chosen_frames(total, count)), None
        with av.open(str(path)) as film:
            rate = float(film.streams.video[0].average_rate or _RATE)
            for number, frame in enumerate(film.decode(video=0)):
                time = number / rate if frame.time is None else float(frame.time)
                first = time if first is None else first
                if number in wanted:
                    image = from_uint8(_upright(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0)))
                    yield Frame(number, time - first, image, f"{path.name} frame {number}")
    except av.error.FFmpegError as error:
        raise InputError(f"{path} cannot be read as a film ({error.strerror}); check the file.") from None


def _upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """A phone's film is stored lying; ``rotation`` degrees, counter-clockwise, bring it up."""
    return np.ascontiguousarray(np.rot90(pixels, round(rotation / 90) % 4))


def write_film(path: str | os.PathLike, frames: Sequence[Image.Image], fps: float = 20.0) -> Path:
    """Write pictures of one size as an H.264 film (.mp4), which browsers play; whole or not at all.

    Args:
        path: the file. frames: RGB pictures; an odd last row or column is left out. fps: frames a second.

    Raises:
        InputError: no frames, or PyAV is missing. ConfigError: another ending.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"a film must end in .mp4; got {path.name}.")
    if not frames:
        raise InputError("a film needs at least one frame; got none.")
    av = film_reader()
    buffer = io.BytesIO()
    width, height = (side - side % 2 for side in frames[0].size)
    with av.open(buffer, "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=max(1, round(fps)), options={"crf": "20", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in frames:
            pixels = np.asarray(picture.convert("RGB"))[:height, :width]
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        film.mux(stream.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_bytes(path, buffer.getvalue())
