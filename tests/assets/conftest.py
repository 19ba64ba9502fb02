"""A pretend registry of two tiny packages, with archives made on the spot."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from facerecon.assets import registry, store
from facerecon.assets.registry import Asset, Package

SDIST = "pretend_sdist-1.0"

CONVERTERS = '''
"""Converters of the pretend assets; each call leaves a line in calls.txt beside this file."""
import json, os, time
from pathlib import Path

def _write(target, text):
    data = text.encode()
    header = json.dumps({"bytes": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    Path(target).write_bytes(len(header).to_bytes(8, "little") + header + data)

def _called(name):
    with open(Path(__file__).with_name("calls.txt"), "a") as file:
        file.write(f"{os.getpid()} {name}\\n")

def head(source, target):
    _called("head")
    while "PRETEND_WAIT_FOR" in os.environ and not os.path.exists(os.environ["PRETEND_WAIT_FOR"]):
        time.sleep(0.02)
    _write(target, (source / "pretend/data/mesh.txt").read_text())

def eyes(source, target):
    _called("eyes")
    _write(target, (source / "model/eyes.bin").read_text())

def hair(source, target):
    _called("hair")
    _write(target, (source if source.is_file() else source / "hair/net.pth").read_text())

def with_metadata(source, target):
    import torch
    from safetensors.torch import save_file
    metadata = {name: f"é of {name}" for name in "zyxwvuts"}
    save_file({"x": torch.arange(5), "a": torch.ones(2, 3)}, str(target), metadata=metadata)

def broken(source, target):
    raise ValueError("axis 7 is out of range\\nsecond line")

def half(source, target):
    Path(target).write_bytes(b"\\x40\\0\\0\\0\\0\\0\\0\\0{}")

def full_disk(source, target):
    Path(target).write_bytes(b"x" * 100)
    raise OSError(28, "No space left on device")

def full_disk_in_rust(source, target):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
'''


def wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def tarball(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(text.encode())
            archive.addfile(item, io.BytesIO(text.encode()))
    return path


class Pretend:
    """Two packages (a wheel and a tarball), their archives in a folder, and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.archives = folder / "archives"
        self.archives.mkdir()
        self.ran = folder / "setup-ran.txt"
        (folder / "pretend_converters.py").write_text(CONVERTERS)
        self.packages: dict[str, Package] = {}
        self.assets: dict[str, Asset] = {}
        self.give_wheel({"pretend/data/mesh.txt": "v 0 0 1", "pretend/data/secret.txt": "not needed"})
        self.give_tarball({"package/model/eyes.bin": "two eyes", "package/README.md": "not needed"})
        self.give_sdist({f"{SDIST}/hair/net.pth": "a net", f"{SDIST}/setup.py": f"open({str(self.ran)!r}, 'w')"})
        self.add("head", "wheel", ("pretend/data/mesh.txt",))
        self.add("eyes", "tarball", ("model/eyes.*",))
        self.add("hair", "sdist", ("hair/net.pth",))
        self.change("hair", takes_file=True)

    def _package(self, key: str, kind: str, path: Path, root: str) -> None:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.packages[key] = Package(kind, f"pretend-{key}", "1.0", path.name, sha256, 1000, root, "CC0", "-")

    def swap_wheel(self, members: dict[str, str]) -> Path:
        """Another wheel under the same name, unknown to the registry."""
        return wheel(self.archives / "pretend-1.0.whl", members)

    def give_wheel(self, members: dict[str, str]) -> None:
        self._package("wheel", "PyPI", self.swap_wheel(members), "")

    def give_tarball(self, members: dict[str, str]) -> None:
        self._package("tarball", "npm", tarball(self.archives / "pretend-1.0.tgz", members), "package")

    def give_sdist(self, members: dict[str, str]) -> None:
        self._package("sdist", "PyPI", tarball(self.archives / f"{SDIST}.tar.gz", members), SDIST)

    def give_tool(self, members: dict[str, str]) -> Path:
        """The archive of a program that a converter runs."""
        archive = tarball(self.archives / "tool-1.0.tgz", members)
        self._package("tool", "npm", archive, "package")
        return archive

    def add(self, name: str, package: str, members: tuple[str, ...], function: str | None = None) -> None:
        converter = f"pretend_converters:{function or name}"
        self.assets[name] = Asset(name, package, converter, 1, members, "tests", "CC0", "-", 1000)

    def change(self, name: str, **fields) -> None:
        self.assets[name] = dataclasses.replace(self.assets[name], **fields)

    def calls(self) -> list[str]:
        log = self.folder / "calls.txt"
        return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []

    def manifest(self) -> dict:
        return json.loads((self.home / "assets" / "manifest.json").read_text())["assets"]

    def files(self) -> list[str]:
        """Everything in the cache but the lock."""
        folder = self.home / "assets"
        return sorted(p.name for p in folder.iterdir() if p.name != ".lock") if folder.is_dir() else []


@pytest.fixture
def pretend(tmp_path, monkeypatch) -> Pretend:
    made = Pretend(tmp_path)
    monkeypatch.setenv("FACERECON_HOME", str(made.home))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pretend_converters", raising=False)
    monkeypatch.setattr(registry, "ASSETS", made.assets)
    monkeypatch.setattr(registry, "PACKAGES", made.packages)
    monkeypatch.setattr(registry, "PACKS", {"open": ("head", "eyes")})
    monkeypatch.setattr(store, "_verified", {})
    return made
