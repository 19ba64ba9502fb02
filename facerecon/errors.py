"""Errors that facerecon raises on purpose, and the shape contracts that raise them.

Every message says what was expected, what came, and what to do next, in one line. Scripts print
``str(error)`` alone and exit with status 2; a traceback from facerecon is therefore always a bug.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import select
import sys
from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "AssetError",
    "ConfigError",
    "FaceReconError",
    "FitError",
    "InputError",
    "NoFaceError",
    "OutputError",
    "ShapeError",
    "check_floats",
    "check_number",
    "check_shape",
    "nearest_name",
    "output_closed",
    "quietly",
]


class FaceReconError(Exception):
    """Base of every error a user can cause or mend; its text is one line that can be read, whatever was put into it."""

    def __str__(self) -> str:
        words = super().__str__().split()  # no path has one of 500 characters, a damaged file may
        return " ".join(word if len(word) <= 500 else f"{word[:200]}...{word[-50:]}" for word in words)


class InputError(FaceReconError):
    """An input file or array cannot be used (missing, corrupt, too small, not an image)."""


class NoFaceError(InputError):
    """No face was found in an otherwise readable photo."""


class FitError(FaceReconError):
    """A face could not be fitted: what is computed from it is not finite."""


class OutputError(FaceReconError):
    """A result cannot be written (no space, no permission, a file in the way)."""


class ShapeError(FaceReconError, ValueError):
    """A tensor has the wrong shape."""


class AssetError(FaceReconError):
    """A model file is missing, altered or cannot be fetched."""


class ConfigError(FaceReconError):
    """A configuration holds an unknown key, an unknown name, or a value out of range."""


def nearest_name(name: str, known: Iterable[str], kind: str = "name") -> str:
    """Sentence for an unknown ``name``: the nearest known one, then all of them.

    Args:
        name: what the user wrote.
        known: the names that exist.
        kind: what such a name is called in the message ("loss term", "config key").

    Returns:
        One line, e.g. ``unknown loss term 'lpip'; did you mean 'lpips'? Known: id, lpips, pix.``
    """
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"unknown {kind} '{name}'{hint} Known: {', '.join(known)}."


def check_shape(name: str, tensor: Any, pattern: str, hint: str = "") -> dict[str, int]:
    """Hold a tensor's shape against a pattern such as ``"B V 3"``.

    Args:
        name: what the argument is called in the caller's signature.
        tensor: anything with ``.shape``.
        pattern: space-separated axes; integers must match, letters bind and must agree when repeated.
        hint: what to do when it does not fit, added to the message.

    Returns:
        The bound axes, e.g. ``{"B": 2, "V": 20481}``.

    Raises:
        ShapeError: the tensor has another number of axes, or an axis of another length.
    """
    axes = pattern.split()
    shape = tuple(tensor.shape)
    bound: dict[str, int] = {}
    fits = len(axes) == len(shape)
    if fits:
        for axis, length in zip(axes, shape, strict=True):
            expected = int(axis) if axis.isdigit() else bound.setdefault(axis, length)
            fits = fits and expected == length
    if not fits:
        if not hint and len(shape) == len(axes) - 1 and axes[0] == "B":
            hint = f"Add a batch axis: {name}[None]."
        raise ShapeError(f"{name} must be ({', '.join(axes)}); got {shape}. {hint}".rstrip())
    return bound


def check_floats(name: str, tensor: Any, like: Any = None, owner: str = "") -> None:
    """Hold a tensor's type: float32 or float64, and that of ``like``, of which ``owner`` is the name.

    Raises:
        ShapeError: half precision, whole numbers, or another type than ``like``.
    """
    known = ("torch.float32", "torch.float64")
    found, wanted = str(tensor.dtype), known[0] if like is None else str(like.dtype)
    if like is not None and wanted not in known:
        name, found, wanted, like = owner, wanted, known[0], None
    if found not in known or (like is not None and found != wanted):
        as_owner = f", as {owner}" if like is not None else ""
        wanted, found = wanted.removeprefix("torch."), found.removeprefix("torch.")
        how = "float" if wanted == "float32" else "double"
        raise ShapeError(
            f"{name} must be {wanted}{as_owner}; got {found}. Call .{how}() on it, and use no autocast around it."
        )


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, whole: bool = False, unit: str = ""
) -> None:
    """Hold a setting against its range.

    Args:
        name: of the setting.
        value: what the user gave.
        least, most: the range.
        whole: only whole numbers will do.
        unit: what is counted, for the message ("px").

    Raises:
        ConfigError: no number, NaN or infinite, not whole, or out of range.
    """
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not (good and math.isfinite(value) and least <= value <= most):
        kind = ("a whole number" if whole else "a number") + (f" of {unit}" if unit else "")
        span = f", {least:g} to {most:g}" if least > -math.inf and most < math.inf else ""
        span = span or (f", {least:g} or more" if least > -math.inf else "")
        raise ConfigError(f"{name} must be {kind}{span}; got {value!r}.")


def output_closed() -> bool:
    """Whether nobody reads what the process prints any more: ``... | head -1`` has seen its line."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            if hasattr(select, "poll"):  # what could not be written is not kept, so a second flush may say nothing
                watch = select.poll()
                watch.register(stream.fileno(), select.POLLOUT)
                if any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0)):
                    return True
        except BrokenPipeError:
            return True
        except (OSError, ValueError):  # no file of the system, in a notebook
            continue
    return False


def quietly(command: Callable[[], int]) -> int:
    """Exit status of a command; 141, without a word, where nobody reads its output any more."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not output_closed():
            raise
        with open(os.devnull, "w") as nothing:  # for what Python itself flushes at the end
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(nothing.fileno(), stream.fileno())
        return 141
