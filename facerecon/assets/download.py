"""Files from the web: pinned addresses, checked, resumed where they broke off.

``FACERECON_MIRROR`` names a copy: the file of ``https://HOST/PATH`` is taken from ``$FACERECON_MIRROR/HOST/PATH``, as
``wget -x`` lays files out. Proxies are those of the environment (``https_proxy``, ``no_proxy``).
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from facerecon.assets.registry import RemoteFile
from facerecon.errors import AssetError
from facerecon.storage import file_sha256

__all__ = ["download"]

_CHUNK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
_WAITS = (1.0, 3.0, 10.0)  # seconds before each further try
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _BrokenOff(OSError):
    """The connection ended before the file did."""


_BREAKS = (
    *(urllib.error.URLError, http.client.HTTPException, ssl.SSLError),
    *(TimeoutError, ConnectionError, _BrokenOff),
)


def _check_address(url: str) -> str:
    """Https, or any http on this very machine (a mirror, a test)."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")):
        return url
    raise AssetError(f"{url} is not an https address; FACERECON_MIRROR must be https, or http on this machine.")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, newurl):
        return super().redirect_request(request, file, code, message, headers, _check_address(newurl))


def _address(url: str) -> str:
    mirror = os.environ.get("FACERECON_MIRROR", "").rstrip("/")
    return _check_address(f"{mirror}/{url.removeprefix('https://')}" if mirror else url)


def download(files: Iterable[RemoteFile], folder: Path, progress: Callable[[int], None]) -> dict[str, str]:
    """Fetch files into a folder; what is there already stays, a file that broke off is continued.

    Args:
        files: what to get.
        folder: where to; ``NAME.part`` is a file that has not come whole. Made if missing.
        progress: told how many bytes are there, of all files.

    Returns:
        {path: sha256} of every file.

    Raises:
        AssetError: no connection, a refusal, too many bytes or another content than the pinned one; one line.
    """
    # proxies are read from the environment now, not at import
    opener = urllib.request.build_opener(_SafeRedirects)
    sums, before = {}, 0
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or (file.sha256 and file_sha256(path) != file.sha256):
            path.unlink(missing_ok=True)
            _get(opener, file, path, lambda size, start=before: progress(start + size))
        sums[file.path] = file_sha256(path)
        before += path.stat().st_size
        progress(before)
    return sums


def _get(opener: urllib.request.OpenerDirector, file: RemoteFile, path: Path, progress: Callable[[int], None]) -> None:
    url, part = _address(file.url), path.with_name(path.name + ".part")
    for wait in (*_WAITS, None):
        try:
            resumed = _receive(opener, url, file, part, progress)
            if not file.sha256 or file_sha256(part) == file.sha256:
                os.replace(part, path)
                return
            part.unlink()
            if not resumed:
                raise AssetError(f"{url} is not the expected file: its sha256 is not {file.sha256[:16]}...")
            reason: Exception | str = "what came before the break does not fit"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # what is there is no beginning of this file
                part.unlink(missing_ok=True)
            elif error.code not in _PASSING:
                raise AssetError(f"{url} was refused ({error.code} {error.reason}).") from None
            reason = f"{error.code} {error.reason}"
        except _BREAKS as error:
            reason = getattr(error, "reason", error)
        if wait is not None:
            time.sleep(wait)
    raise AssetError(f"could not download {url} ({' '.join(str(reason).split()) or type(reason).__name__}).")


def _receive(
    opener: urllib.request.OpenerDirector, url: str, file: RemoteFile, part: Path, progress: Callable[[int], None]
) -> bool:
    """Append the rest to ``part``, or write all of it; returns whether there was a beginning.

    Only a file of known sha256 is continued: what was there and what comes are then checked together.
    """
    start = part.stat().st_size if file.sha256 and part.is_file() else 0
    if file.sha256 and start >= file.limit:
        part.unlink()
        start = 0
    headers = {"User-Agent": "facerecon", "Accept-Encoding": "identity"} | (
        {"Range": f"bytes={start}-"} if start else {}
    )
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
        if start and answer.status != 206:  # a server that sends all of it
            start = 0
        expected = answer.headers.get("Content-Length")
        with open(part, "ab" if start else "wb") as out:
            size = start
            while block := answer.read(_CHUNK):
                size += len(block)
                if size > file.limit:
                    out.close()
                    part.unlink()
                    raise AssetError(f"{url} sends more than the {file.limit / 1e6:.1f} MB that it should have.")
                out.write(block)
                progress(size)
        if expected is not None and size - start < int(expected):
            raise _BrokenOff(f"broke off after {size} of {start + int(expected)} bytes")
    return start > 0
