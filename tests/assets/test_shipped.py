"""Files that come with the library are the ones that were released."""

from __future__ import annotations

import hashlib

import pytest

from facerecon import assets
from facerecon.assets import store
from facerecon.dataset import Manifest
from facerecon.errors import AssetError


def test_every_shipped_file_is_listed_and_unchanged():
    sums = store._shipped_sums(store._data_folder())
    assert sorted(sums) == store.shipped_names(), "run: python -m facerecon.assets seal"
    for name, expected in sums.items():
        assert hashlib.sha256(assets.shipped(name).read_bytes()).hexdigest() == expected


def test_shipped_weights_stay_small():
    folder = store._data_folder()
    assert sum((folder / name).stat().st_size for name in store.shipped_names()) <= 40e6


def test_the_shipped_manifest_holds_codes_and_figures_alone():
    path = assets.shipped("open_uv_manifest.safetensors")
    manifest = Manifest.load(path)
    assert set(manifest.tensors) == {"source", "views"} and "skin_tone" in manifest.figures
    assert path.stat().st_size <= 8e6


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_data_folder", lambda: tmp_path)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "regions.json").write_text("{}")
    (tmp_path / "__init__.py").write_text("")
    store.seal_shipped()
    return tmp_path


def test_sealed_files_are_found(data):
    assert (data / "SHA256SUMS").read_text().endswith("  maps/regions.json\n")
    assert assets.shipped("maps/regions.json") == data / "maps" / "regions.json"


def test_an_altered_file_is_refused(data):
    (data / "maps" / "regions.json").write_text('{"face": 1}')
    with pytest.raises(AssetError, match=r"was altered.*install facerecon again"):
        assets.shipped("maps/regions.json")


def test_missing_unlisted_and_unknown_files_are_told_apart(data):
    (data / "new.json").write_text("1")
    with pytest.raises(AssetError, match=r"not listed: run python -m facerecon.assets seal"):
        assets.shipped("new.json")
    with pytest.raises(AssetError, match=r"did you mean 'maps/regions.json'"):
        assets.shipped("maps/region.json")
    (data / "maps" / "regions.json").unlink()
    with pytest.raises(AssetError, match="is missing; install facerecon again"):
        assets.shipped("maps/regions.json")
