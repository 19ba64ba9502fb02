"""Checkpoints in the packages of the open pack: read as data, and converted as the released file itself is."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from facerecon import assets
from facerecon.assets import registry
from facerecon.errors import AssetError


@pytest.fixture
def archives(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "home"))
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives"


def pack(monkeypatch, archives: Path, name: str, file: Path) -> None:
    """The asset's package with another file in it, as if that were the pinned one."""
    asset = registry.ASSETS[name]
    package = registry.PACKAGES[asset.package]
    path = archives / package.archive
    with tarfile.open(path, "w:gz") as archive:
        archive.add(file, f"{package.root}/{asset.members[0]}")
    pinned = dataclasses.replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), archive_bytes=1)
    monkeypatch.setitem(registry.PACKAGES, asset.package, pinned)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["bisenet", "lpips_vgg16", "lpips_alexnet"])
def test_a_hostile_pickle_is_one_line_and_not_run(monkeypatch, tmp_path, archives, name) -> None:
    pytest.importorskip(registry.ASSETS[name].converter.partition(":")[0])
    (tmp_path / "hostile").write_bytes(pickle.dumps({"state_dict": Hostile(tmp_path / "ran")}, protocol=2))
    pack(monkeypatch, archives, name, tmp_path / "hostile")
    with pytest.raises(AssetError, match=rf"^{name}: ") as error:
        assets.fetch(name, archives=archives)
    text = str(error.value)
    assert "\n" not in text and "report this" not in text and "no converter" not in text
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "home" / "assets").glob(f"{name}*"))


def test_packaged_bisenet_is_the_released_file(monkeypatch, tmp_path, archives, reference) -> None:
    path = Path(__file__).resolve().parents[1] / "released_files.py"
    spec = importlib.util.spec_from_file_location("released_files", path)
    released = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(released)
    state = released.random_state(released.official_shapes(reference, "bisenet_parsing19"))
    file = released.save(state, tmp_path / "79999_iter.pth")
    pack(monkeypatch, archives, "bisenet", file)
    packaged = assets.fetch("bisenet", archives=archives)["bisenet"]
    assert assets.convert("bisenet", file) == packaged
    assert assets.locate("bisenet") == packaged
