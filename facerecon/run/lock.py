"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from facerecon.errors import ConfigError
from facerecon.storage import no_follow, output_error

__all__ = ["FolderLock"]

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class FolderLock:
    """A lock on a folder that the operating system gives back when the process ends, however it ends.

    The file ``.lock`` in the folder names the holder. What counts is the lock on it, not that it is there: a file left
    by a killed process, or copied with the folder, blocks nothing. It is removed when the lock is given back.

    Args:
        folder: which exists, or can be made.

    Raises (on entering):
        ConfigError: another process holds it; the message names its id, machine and start.
        OutputError: the folder cannot be made or written, or ``.lock`` is a symbolic link.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.path = self.folder / ".lock"
        self._lock = FileLock(self.path, timeout=0, thread_local=False, fallback_to_soft=False)

    def __enter__(self) -> FolderLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{self.folder} is being written by another run{self._holder()}; wait for it, stop it, or choose "
                "another out=."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise output_error(self.path if error.errno == errno.ELOOP else self.folder, error) from None
            warnings.warn(  # a network disk
                f"{self.folder} cannot be locked ({error.strerror}); start no second run there.", stacklevel=2
            )
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError), open(self.path, "w", opener=no_follow) as file:
            json.dump(facts, file)  # not on a full disk: the lock holds, it is only anonymous
        return self

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._lock.release()

    def _holder(self) -> str:
        try:
            with open(self.path, opener=no_follow) as file:
                facts = json.loads(file.read(4096))
            return f" (process {facts['pid']} on {facts['host']}, since {facts['started']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""
