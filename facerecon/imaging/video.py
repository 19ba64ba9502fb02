"""Frames of a video: a film file, an animated picture, or a folder of numbered pictures; and films written."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence
from torch import Tensor

from facerecon.errors import ConfigError, InputError
from facerecon.imaging.files import BROKEN, list_images, read_image, write_bytes

__all__ = ["ANIMATED", "FILMS", "Frame", "chosen_frames", "film_reader", "is_film", "read_frames", "write_film"]

FILMS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
"""Endings of files that PyAV reads."""

ANIMATED = (".gif", ".webp", ".png", ".apng", ".tif", ".tiff")
"""Endings of files that may hold several pictures, which Pillow reads."""

_RATE = 25.0  # frames a second of numbered pictures
_MAX_SIDE = 4096
_MAX_PIXELS = 100_000_000  # of a frame, as of a photo; and of all frames that are kept, which are reduced to it
_MAX_DECODED = 2_000_000_000  # of all frames of an animated picture: a thousand of 1920 x 1080


@dataclass(frozen=True)
class Frame:
    """One frame.

    Args:
        number: from 0, in the file or folder.
        time: seconds from the first frame.
        image: (3, H, W) in [0, 1].
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
        count: frames to take; all where there are no more. Their images are reduced (antialiased) where together they
            have more than 100 megapixels.

    Raises:
        InputError: nothing is there, the file is no video, a frame is broken or of more than 100 megapixels, an
        animated picture of more than 2000 in all, or PyAV is needed and missing.
        ConfigError: ``count``.
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


def _max_side(frames: int) -> int:
    """Px of each frame's longer side, such that so many may be kept."""
    return min(_MAX_SIDE, math.isqrt(_MAX_PIXELS // max(1, frames)))


def _refuse_large(name: str, width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise InputError(
            f"{name} has {width} x {height} pixels; at most {_MAX_PIXELS / 1e6:.0f} megapixels are read. Reduce it."
        )


def _frame(number: int, time: float, picture: Image.Image, path: Path, frames: int) -> Frame:
    name = f"{path.name} frame {number}"
    try:
        return Frame(number, time, read_image(picture, _max_side(frames)), name)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _of_pictures(paths: Sequence[Path], count: int) -> Iterator[Frame]:
    numbers = chosen_frames(len(paths), count)
    for number in numbers:
        image = read_image(paths[number], _max_side(len(numbers)))
        yield Frame(number, number / _RATE, image, paths[number].name)


def _of_animation(path: Path, count: int) -> Iterator[Frame]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures: handled here
            picture = Image.open(path)
        with picture:
            total = getattr(picture, "n_frames", 1)
            if total * math.prod(picture.size) > _MAX_DECODED:
                width, height = picture.size
                raise InputError(
                    f"{path} has {total} frames of {width} x {height} pixels; at most {_MAX_DECODED / 1e6:.0f} "
                    "megapixels are read in all. Shorten or reduce it, or give a film or a folder of frames."
                )
            wanted, time = set(chosen_frames(total, count)), 0.0
            for number, frame in enumerate(ImageSequence.Iterator(picture)):
                lasts = float(frame.info.get("duration") or 1000 / _RATE) / 1000
                if number in wanted:
                    _refuse_large(str(path), *frame.size)
                    yield _frame(number, time, frame, path, len(wanted))
                time += lasts
    except Image.DecompressionBombError:
        raise InputError(f"{path} has more pixels than can be decoded; reduce it first.") from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as a picture ({reason}); check the file.") from None


def _of_film(path: Path, count: int) -> Iterator[Frame]:
    av = film_reader()
    try:
        with av.open(str(path)) as film:
            if not film.streams.video:
                raise InputError(f"{path} holds no pictures, only sound; give a film.")
            total = sum(1 for _ in film.decode(video=0))  # a container's own count is not always right
        wanted, first = set(chosen_frames(total, count)), None
        with av.open(str(path)) as film:
            rate = float(film.streams.video[0].average_rate or _RATE)
            for number, frame in enumerate(film.decode(video=0)):
                time = number / rate if frame.time is None else float(frame.time)
                first = time if first is None else first
                if number in wanted:
                    _refuse_large(str(path), frame.width, frame.height)
                    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # a phone's film is stored lying
                    pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                    yield _frame(number, time - first, Image.fromarray(pixels), path, len(wanted))
    except av.error.FFmpegError as error:
        raise InputError(f"{path} cannot be read as a film ({error.strerror}); check the file.") from None


def write_film(path: str | os.PathLike, frames: Sequence[Image.Image], fps: float = 20.0) -> Path:
    """Write pictures of one size as an H.264 film (.mp4), which browsers play; whole or not at all.

    Args:
        path: the file.
        frames: RGB pictures; an odd last row or column is left out.
        fps: frames a second.

    Raises:
        InputError: no frames, or PyAV is missing.
        ConfigError: another ending.
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
