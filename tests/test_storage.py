"""Files that are there whole or not at all: what happens in which order, and what is left when it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from facerecon.errors import OutputError
from facerecon.storage import write_whole


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    path = tmp_path / "out" / "head.glb"
    path.parent.mkdir()
    path.write_bytes(b"old")
    steps = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append(("sync", os.fstat(handle).st_size, path.read_bytes()))
        sync(handle)

    def replaced(source: str, target: Path) -> None:
        steps.append(("replace", Path(source).read_bytes(), Path(source).parent, Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    assert write_whole(path, (piece for piece in (b"new ", b"", b"content"))) == path
    assert steps == [("sync", 11, b"old"), ("replace", b"new content", path.parent, path)]
    assert path.read_bytes() == b"new content" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_refusal_of_the_disk_leaves_the_old_file_alone(broken, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "head.glb"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OutputError, match=r"head.glb cannot be written \(No space left on device\); free some space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_is_interrupted_leaves_the_old_file_alone(tmp_path) -> None:
    def pieces():
        yield b"half"
        raise KeyboardInterrupt

    path = tmp_path / "head.glb"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, pieces())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
