"""The registry is complete and consistent."""

from __future__ import annotations

import re

import pytest

from facerecon.assets import registry, store
from facerecon.errors import AssetError


def test_open_pack_holds_the_names_that_the_rooms_ask_for():
    assert set(registry.PACKS["open"]) == {
        "makehuman", "face_detector", "landmarks68", "identity128", "expression7", "age_gender",
        "faceres1024", "mobile_stylegan", "bisenet", "lpips_vgg16", "lpips_alexnet",
        "facemesh478", "expression52", "sface", "scan_mean", "scan_james", "viewer",
    }  # fmt: skip


@pytest.mark.parametrize("package", registry.PACKAGES.values(), ids=lambda p: p.name)
def test_packages_are_pinned_and_have_a_ledger_entry(package):
    assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
    assert package.version in package.archive
    assert package.registry in ("PyPI", "npm")
    sdist = package.archive.removesuffix(".tar.gz") if package.is_sdist else ""
    assert package.root == ("package" if package.registry == "npm" else sdist)
    assert package.archive_bytes > 1e6
    assert package.license and package.caveat


def test_the_open_pack_is_at_most_270_megabytes_to_download():
    packages = {registry.ASSETS[name].package for name in registry.PACKS["open"]}
    tools = {tool for asset in registry.ASSETS.values() for tool, _ in asset.tools.values()}
    needed = [registry.PACKAGES[key].archive_bytes for key in packages]
    assert sum(needed) + max(registry.PACKAGES[key].archive_bytes for key in tools) <= 270e6  # one tool a platform
    assert packages | tools == set(registry.PACKAGES), "a package that nothing is read from"


@pytest.mark.parametrize("asset", registry.ASSETS.values(), ids=lambda a: a.name)
def test_assets_are_complete(asset):
    assert asset.package in registry.PACKAGES
    assert re.fullmatch(r"facerecon(\.\w+)+:\w+", asset.converter)
    assert asset.converter_version >= 1 and asset.members
    assert asset.purpose and asset.license and asset.caveat
    assert registry.ASSETS[asset.name] is asset
    assert set(asset.shipped) <= set(store.shipped_names())


def test_a_program_is_pinned_for_each_platform(monkeypatch):
    viewer = registry.ASSETS["viewer"]
    for system, machine, package in (
        ("linux", "x86_64", "esbuild-linux-x64"),
        ("linux", "aarch64", "esbuild-linux-arm64"),
        ("darwin", "arm64", "esbuild-darwin-arm64"),
        ("win32", "AMD64", "esbuild-win32-x64"),
    ):
        monkeypatch.setattr(registry.sys, "platform", system)
        monkeypatch.setattr(registry.platform, "machine", lambda machine=machine: machine)
        key, _ = viewer.tool
        assert key == package and registry.PACKAGES[key].name == f"@esbuild/{package.removeprefix('esbuild-')}"
    monkeypatch.setattr(registry.platform, "machine", lambda: "riscv64")
    with pytest.raises(AssetError, match="not for win32-riscv64"):
        viewer.tool  # noqa: B018
    assert registry.ASSETS["makehuman"].tool is None


def test_entries_are_frozen():
    with pytest.raises(AttributeError):
        registry.ASSETS["makehuman"].license = "MIT"


def test_names_and_packs_resolve_without_repeats():
    assert registry.asset_names([]) == registry.PACKS["open"]
    assert registry.asset_names(["sface", "makehuman", "sface"]) == ("makehuman", "sface")
    assert registry.asset_names(["open", "sface"]) == registry.PACKS["open"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(AssetError, match="did you mean 'landmarks68'"):
        registry.asset_names(["landmark68"])
    with pytest.raises(AssetError, match="unknown asset 'makehumn'; did you mean 'makehuman'"):
        registry.entry("makehumn")
