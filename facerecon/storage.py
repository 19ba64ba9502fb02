"""Files that are there whole or not at all, and tensor files that are read with suspicion.

Every writer of the library goes through :func:`write_whole`: a temporary file ``.NAME.RANDOM.part`` beside the final
one, synced to the disk, then renamed. What a killed process leaves is such a ``.part`` file, never half a result;
:func:`remove_leftovers` clears them away.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facerecon.errors import AssetError, FaceReconError, OutputError

if TYPE_CHECKING:  # these are imported where they are needed: models are fetched without them
    import numpy as np
    import torch
    from torch import Tensor

__all__ = [
    "all_finite",
    "csv_bytes",
    "file_sha256",
    "no_follow",
    "open_safetensors",
    "parse_json",
    "read_array",
    "read_bounded",
    "read_safetensors",
    "refuse_link",
    "refuse_pickle",
    "remove_leftovers",
    "safetensors_bytes",
    "write_whole",
]

_LEFTOVER = ".*.????????.part"
_PICKLE_NAMES = (".pkl", ".pickle", ".pth", ".pt", ".ckpt", ".joblib", ".npy.pickle", ".pth.tar")
_HINTS = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EFBIG: "the disk or a limit allows no larger file; choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder",
    errno.ELOOP: "a symbolic link may lead anywhere; remove it",
    errno.EISDIR: "a folder stands where a file is needed; choose another folder",
}


def output_error(path: str | os.PathLike, error: OSError) -> OutputError:
    """The operating system's refusal to write, as one line that says what to do."""
    hint = _HINTS.get(error.errno or 0, "choose another folder, or free space")
    return OutputError(f"{path} cannot be written ({error.strerror or error}); {hint}.")


def no_follow(path: str | os.PathLike, flags: int) -> int:
    """An opener, for ``open``, that refuses a symbolic link (ELOOP); a new file's mode is the umask's."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def refuse_link(path: str | os.PathLike) -> None:
    """Hold a place of a run's folder against one who made it a symbolic link to something else.

    Raises:
        OutputError: it is a link.
    """
    if os.path.islink(path):
        raise output_error(path, OSError(errno.ELOOP, "it is a symbolic link"))


def write_whole(path: str | os.PathLike, data: bytes | Iterable[bytes]) -> Path:
    """Write a file so that it is there whole or not at all, whenever the process or the machine stops.

    Args:
        path: the file; its folder is made if missing, a file that is there is replaced. Who may read it is the umask's.
        data: its content, or the pieces of it.

    Raises:
        OutputError: the folder cannot be made or written; a file that was there is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = path.parent / f".{path.name[:200]}.{secrets.token_hex(4)}.part"
        with open(free, "xb") as file:
            temporary = free
            for piece in (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise output_error(path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return path


def csv_bytes(rows: Iterable[Iterable[Any]]) -> bytes:
    """A table as UTF-8 text with commas; what is no text of that (names of files) is escaped."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def remove_leftovers(folder: str | os.PathLike) -> int:
    """Remove the temporary files of writers that were killed, in a folder and the folders in it; returns how many.

    Nobody else may be writing there. What a symbolic link leads to is left alone.
    """
    removed = 0
    for place in (Path(folder), *(path for path in Path(folder).glob("*/") if not path.is_symlink())):
        for path in place.glob(_LEFTOVER):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def file_sha256(path: str | os.PathLike) -> str:
    """sha256 of a file's content, in hex.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


# -- small files of others --------------------------------------------------------------------------------


def read_bounded(path: str | os.PathLike, largest: int) -> bytes:
    """A file's content, if it is no larger than such a file can be.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger.
    """
    with open(path, "rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest / 1e6:.3g} MB")
    return data


def parse_json(text: str | bytes) -> Any:
    """The content of JSON from outside.

    Raises:
        ValueError: it is none, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_array(path: str | os.PathLike, largest: int = 1 << 30) -> np.ndarray:
    """The array of a .npy file of ``largest`` bytes at most; nothing is unpickled.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or something else is in it.
    """
    import numpy as np

    data = read_bounded(path, largest)
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy's parser of headers has many kinds
        raise ValueError(_first_line(error)) from None
    if not isinstance(found, np.ndarray):
        raise ValueError("it is an archive (.npz), not one array (.npy)")
    return found


# -- tensor files ----------------------------------------------------------------------------------------


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file whose bytes depend on its content only: the library shuffles the header's metadata."""
    from safetensors.torch import save

    metadata = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in (metadata or {}).items()}
    content = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    rest = {name: value for name, value in header.items() if name != "__metadata__"}
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **rest}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def refuse_pickle(path: str | os.PathLike, error: type[FaceReconError] = AssetError) -> None:
    """Refuse a file that only unpickling could read (``torch.save``, ``pickle``): opening one can run any code.

    Raises:
        AssetError: it is one, by its name or its first bytes. Nothing of it is interpreted.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        head = b""
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return  # a safetensors file; the length of its header may look like the start of a pickle
    archive = head[:4] == b"PK\x03\x04" and path.suffix.lower() not in (".npz", ".zip")
    if path.name.lower().endswith(_PICKLE_NAMES) or archive or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"):
        raise error(
            f"{path} is a pickle (torch.save), which can run code when it is opened, so it was not opened; "
            "give a .safetensors file."
        )


@contextlib.contextmanager
def open_safetensors(path: str | os.PathLike, device: str = "cpu") -> Iterator[Any]:
    """``safetensors.safe_open`` for torch, also of a path that is no UTF-8, which that refuses."""
    from safetensors import safe_open

    name = str(path)
    with open(path, "rb") as file:
        try:
            name.encode()
        except UnicodeEncodeError:
            name = f"/dev/fd/{file.fileno()}"
        with safe_open(name, framework="pt", device=device) as tensors:
            yield tensors


def read_safetensors(
    path: str | os.PathLike,
    what: str,
    advice: str,
    keys: Iterable[str] | None = None,
    error: type[FaceReconError] = AssetError,
    device: str | torch.device = "cpu",
    finite: bool = True,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Args:
        path: the file.
        what: it should hold, with its article, for messages ("a face decoder").
        advice: what to do when it does not, ended without a full stop.
        keys: the tensors to read; all if left out.
        error: the kind to raise.
        device: where the tensors go.
        finite: refuse NaN and infinity, as weights must.

    Raises:
        ``error``: missing, a pickle, truncated or inconsistent, without one of ``keys``, or holding NaN or infinity.
    """
    from safetensors import SafetensorError

    path = Path(path)
    if not path.is_file():
        raise error(f"{path} does not exist; expected {what}. {advice[:1].upper()}{advice[1:]}.")
    refuse_pickle(path, error)
    try:
        with open_safetensors(path, str(device)) as file:
            metadata = dict(file.metadata() or {})
            names = list(file.keys())
            wanted = names if keys is None else list(keys)
            missing = [name for name in wanted if name not in names]
            if missing:
                raise ValueError(f"no tensor '{missing[0]}' in it")
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as problem:
        raise error(f"{path} is not {what} ({_first_line(problem)}); {advice}.") from None
    for name, tensor in tensors.items() if finite else ():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise error(f"{path} holds NaN or infinite numbers (in '{name}'); {advice}.")
    return tensors, metadata


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite; memory stays bounded by slices of it."""
    import torch

    flat = tensor.detach().flatten()
    return all(bool(torch.isfinite(part).all()) for part in flat.split(1 << 22))


def _first_line(problem: Any) -> str:
    return (" ".join(str(problem).split()) or type(problem).__name__)[:200]
