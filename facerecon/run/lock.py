"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import warnings
from pathlib import Path
from types import TracebackType

from facerecon.errors import ConfigError
from facerecon.storage import output_error

try:
    import fcntl
except ImportError:  # not on Windows: there the file is opened for one process, see _try
    fcntl = None

__all__ = ["FolderLock"]


class FolderLock:
    """A lock on a folder that the operating system gives back when the process ends, however it ends.

    The file ``.lock`` in the folder names the holder. What counts is the lock on it (flock), not that it is there: a
    file left by a killed process, or copied with the folder, blocks nothing. It is removed when the lock is given back.

    Args:
        folder: which exists, or can be made.

    Raises (on entering):
        ConfigError: another process holds it; the message names its id, machine and start.
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.path = self.folder / ".lock"
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._handle is None:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    self._lock(handle)
                    if self._is_current(handle):  # else its last holder removed it between the two calls
                        self._handle, handle = handle, -1
                finally:
                    if handle >= 0:
                        os.close(handle)
        except OSError as error:
            raise output_error(self.folder, error) from None
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        with contextlib.suppress(OSError):  # a full disk: the lock holds, it is only anonymous
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, text.encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            if fcntl is None:
                import msvcrt

                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ConfigError(
                f"{self.folder} is being written by another run{self._holder(handle)}; wait for it, stop it, or choose "
                "another out=."
            ) from None
        except OSError as error:  # a network disk without locks
            warnings.warn(
                f"{self.folder} cannot be locked ({error.strerror}); start no second run there.", stacklevel=4
            )

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self, handle: int) -> str:
        try:
            facts = json.loads(os.pread(handle, 4096, 0))
            return f" (process {facts['pid']} on {facts['host']}, since {facts['started']})"
        except (OSError, AttributeError, ValueError, KeyError, TypeError):
            return ""
