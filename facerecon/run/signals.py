"""Signals and exit codes: a script that is asked to end, and what a user can mend as one line."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from facerecon.errors import FaceReconError, OutputError, output_closed, quietly

__all__ = [
    "Stopped",
    "check_stop",
    "exit_status",
    "names_kept",
    "patient_stops",
    "stop_status",
]


class Stopped(BaseException):
    """The process was asked to end (SIGTERM, SIGHUP); like KeyboardInterrupt, no ``except Exception`` holds it up."""

    number = int(signal.SIGTERM)


_asked: list[int] = []  # signals that asked this run to end
_SAME = 1.0  # s: `timeout`, torchrun and a terminal send one process the same request twice
_patient, _asked_at = False, 0.0


def _stop(number: int, frame: Any) -> None:
    global _asked_at
    now = time.monotonic()
    if _patient and _asked and now - _asked_at < _SAME:
        return
    _asked.append(number)
    _asked_at = now
    if not _patient or len(_asked) > 1:
        check_stop()


def check_stop() -> None:
    """Raise again what a signal asked for: Python drops an exception that a handler raises while a weak reference's
    callback or a ``__del__`` runs, so long work looks here between its steps.

    Raises:
        KeyboardInterrupt: after SIGINT.
        Stopped: after SIGTERM or SIGHUP.
    """
    if _asked:
        if _asked[-1] == signal.SIGINT:
            raise KeyboardInterrupt
        Stopped.number = _asked[-1]
        raise Stopped


def stop_status(stop: BaseException) -> int:
    """Exit status of a run that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 130 if isinstance(stop, KeyboardInterrupt) else 128 + Stopped.number


@contextlib.contextmanager
def patient_stops(patient: bool = True) -> Iterator[Callable[[], bool]]:
    """Meanwhile a first signal raises nothing, so that the work can keep what it has; a second one stops at once.

    Within, ``patient_stops(False)`` marks what may be cut off: there, a signal raises at once, also one from before.

    Yields:
        Whether the run was asked to end; to be looked at where it can. It raises after a second signal, as
        :func:`check_stop`, which the work calls once all is kept.
    """
    global _patient

    def asked() -> bool:
        if len(_asked) > 1:
            check_stop()
        return bool(_asked)

    before, _patient = _patient, patient
    try:
        if not patient:
            check_stop()
        yield asked
    finally:
        _patient = before


@contextlib.contextmanager
def names_kept(kept: Callable[[], str]) -> Iterator[None]:
    """A run that ends early tells what is kept of it.

    Args:
        kept: gives the words, such as "3 maps are finished in out".

    Raises:
        KeyboardInterrupt, Stopped, OutputError: as within, with these words in the message.
    """
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stop:
        raise type(stop)(kept()) from None
    except OutputError as error:
        words = kept()
        raise OutputError(f"{error} {words[0].upper()}{words[1:]}; the same command goes on.") from None


def exit_status(script: Callable[[], int | None]) -> int:
    """Exit status of a script, which ends in one line where it fails.

    What a user can mend is printed as one line on standard error: status 2. Ctrl-C ends with one line and status 130,
    SIGTERM with 143; a script that stops so may say what is kept in the exception's argument. Where nobody reads its
    output any more (``... | head -1``), it ends without a word, status 141.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the console cannot show stops nothing
    return quietly(lambda: _run(script))


def _listen() -> None:
    """Handle the signals that ask a run to end, but for those that whoever started it had ignored."""
    if threading.current_thread() is threading.main_thread():
        for signal_name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, signal_name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _stop)


def _run(script: Callable[[], int | None]) -> int:
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    _asked.clear()
    _listen()
    try:
        return int(script() or 0)
    except FaceReconError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno is None or (isinstance(error, BrokenPipeError) and output_closed()):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{where}; check the path, its permissions and the free space.",
            file=sys.stderr,
        )
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        kept = str(stop) or "what was finished is kept"
        print(f"interrupted; {kept}; run the same command again to go on.", file=sys.stderr)
        return stop_status(stop)
    finally:
        _asked.clear()  # answered: whoever called this goes on
