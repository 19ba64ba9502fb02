"""benchmarks/texture_decoder.py on tiny maps: its components, its tables, what it keeps, and what it calls a copy."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from facerecon.errors import ConfigError
from facerecon.imaging.files import write_png
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.linear_basis import principal_components, read_linear_basis, write_linear_basis
from facerecon.stylegan.texture_decoder import save_decoder
from facerecon.training.uv_maps import MapMemory, UVMaps, held_out, share_of

ROOT = Path(__file__).resolve().parents[1]
SIZE, COUNT = 32, 30


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("texture_decoder_benchmark", ROOT / "benchmarks/texture_decoder.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_maps(symmetric: bool) -> torch.Tensor:
    """(N, 3, S, S): a mean and four patterns of strengths that fall, with little noise."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 3, 8, 8, generator=draw)
    patterns = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    if symmetric:
        patterns = (patterns + patterns.flip(-1)) / 2
    strengths = torch.randn(COUNT, 4, generator=draw) * torch.tensor([0.08, 0.05, 0.03, 0.02])
    return (0.5 + torch.einsum("nk,kcij->ncij", strengths, patterns)).clamp(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("set")
    for i, texture in enumerate(made_maps(symmetric=False)):
        write_png(where / "uv-maps" / f"{i:06d}.png", texture)
    return where


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("decoder") / "tiny.safetensors"
    config = GeneratorConfig(size=SIZE, z_dim=16, w_dim=16, mapping_layers=2, channel_base=256, channel_max=8)
    save_decoder(target, Generator(config), samples=1000, textures=100)
    return target


@pytest.fixture
def layout() -> SimpleNamespace:
    face = torch.zeros(1, 1, SIZE, SIZE)
    face[..., 8:24, 8:24] = 1
    return SimpleNamespace(face=face, crop=lambda x: x[..., 8:24, 8:24])


def run(bench: ModuleType, layout: SimpleNamespace, *arguments: object) -> dict:
    options = bench.parser().parse_args([*map(str, arguments), "--l1-only", "--features", "none", "--threads", "1"])
    threads = torch.get_num_threads()
    try:
        bench.run(options, layout)
    finally:
        torch.set_num_threads(threads)
    return json.loads((options.out / "results.json").read_text())


# -- principal components --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_gb", [8.0, 0.0])
def test_components_of_maps_and_mirror_images_are_those_of_all_of_them(bench, folder, limit_gb) -> None:
    memory = MapMemory(folder, SIZE, limit_gb)
    rows = share_of(len(memory))
    bench._SLAB, before = 8 * len(rows) * 3 * SIZE, bench._SLAB  # four slabs
    try:
        found = bench.PrincipalComponents(memory, rows, mirror=True)
        basis = found.basis(6)
    finally:
        bench._SLAB = before
    maps = memory.images(rows)[0] * 0.5 + 0.5
    mean, expected, variances = principal_components(torch.cat([maps, maps.flip(-1)]), 6)
    torch.testing.assert_close(found.mean, mean, atol=1e-5, rtol=0)
    scale = ((2 * len(rows) - 1) / (2 * len(rows))) ** 0.5  # of N against N - 1
    for k in range(6):
        sign = torch.sign((basis[k] * expected[k]).sum())
        torch.testing.assert_close(
            sign * basis[k], scale * expected[k], atol=2e-3 * float(basis[k].abs().max()), rtol=0
        )
        torch.testing.assert_close(basis[k].flip(-1), found.parity[k] * basis[k], atol=1e-6, rtol=0)
    assert set(found.parity[:6].tolist()) == {1, -1}
    share = variances.cumsum(0) / variances.sum()
    torch.testing.assert_close(found.share[:6].float(), share[:6], atol=1e-3, rtol=0)
    assert found.rank <= 2 * len(rows) - 1
    with pytest.raises(ConfigError, match="ask"):
        found.basis(found.rank + 1)


def test_components_without_mirror_images(bench, folder) -> None:
    memory = MapMemory(folder, SIZE)
    rows = share_of(len(memory), 0.3)
    found = bench.PrincipalComponents(memory, rows, mirror=False)
    assert found.rank == len(rows) - 1
    maps = memory.images(rows)[0] * 0.5 + 0.5
    basis = found.basis(found.rank).flatten(1)
    apart = (maps - found.mean).flatten(1)
    codes = torch.linalg.lstsq(basis.T, apart.T, driver="gelsd").solution
    assert (codes.T @ basis - apart).abs().max() < 1e-3  # they span all maps
    assert codes.square().mean().item() == pytest.approx(1, rel=0.01)  # in standard deviations


def test_what_a_file_gives_back_and_its_size(bench, tmp_path) -> None:
    for i, texture in enumerate(made_maps(symmetric=True)):
        write_png(tmp_path / "uv-maps" / f"{i:06d}.png", texture)
    memory = MapMemory(tmp_path, SIZE)
    found = bench.PrincipalComponents(memory, share_of(len(memory)), mirror=True)
    assert (found.parity[:4] == 1).all()  # the maps are their own mirror images
    path = tmp_path / "basis.safetensors"
    write_linear_basis(path, found.mean, found.basis(3))
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    content = path.stat().st_size - header
    assert [found.fitting(content + extra) for extra in (-1, 0, 1)] == [2, 3, 3]
    for ours, read in zip(found.stored(3), read_linear_basis(path), strict=True):
        torch.testing.assert_close(ours, read, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="pca-bytes"):
        found.fitting(1000)


def test_what_a_file_gives_back_of_odd_components(bench, folder) -> None:
    found = bench.PrincipalComponents(MapMemory(folder, SIZE), range(COUNT), mirror=True)
    _, stored = found.stored(6)
    basis = found.basis(6)
    for k, parity in enumerate(found.parity[:6].tolist()):
        torch.testing.assert_close(stored[k].flip(-1), parity * stored[k], atol=1e-6, rtol=0)
        assert (stored[k] - basis[k]).norm() < 0.35 * basis[k].norm()


# -- the run ---------------------------------------------------------------------------------------------------


def test_methods_are_compared_on_held_out_maps(bench, folder, decoder, layout, tmp_path, capsys) -> None:
    arguments = (folder, f"tiny={decoder}:w", "--pca", "1,5", "--mirror", "--steps", "40", "--out", tmp_path)
    result = run(bench, layout, *arguments, "--against", "pca1")
    names = [f"{i:06d}.png" for i in held_out(COUNT)]
    assert {name: sorted(rows) for name, rows in result["maps"].items()} == dict.fromkeys(
        ["tiny", "pca1", "pca5"], names
    )
    means = result["tables"]["expressed"]
    assert means["pca5"]["l1"]["value"] < 0.5 * means["pca1"]["l1"]["value"] < means["tiny"]["l1"]["value"]
    assert means["pca5"]["numbers"]["value"] == 5 and means["tiny"]["numbers"]["value"] == 16
    apart = result["tables"]["minus pca1"]["pca5"]
    expected = [result["maps"]["pca5"][n]["l1"] - result["maps"]["pca1"][n]["l1"] for n in names]
    assert apart["l1"]["value"] == pytest.approx(sum(expected) / len(expected))
    assert apart["l1"]["low"] <= apart["l1"]["value"] <= apart["l1"]["high"] < 0
    assert apart["l1 better"]["value"] == 1 and result["tables"]["minus pca1"]["tiny"]["l1 better"]["value"] == 0
    assert "| pca5 |" in capsys.readouterr().out and (tmp_path / "expressed.jpg").is_file()

    kept = (tmp_path / "rows.jsonl").read_text()
    assert run(bench, layout, *arguments)["maps"] == result["maps"]
    assert (tmp_path / "rows.jsonl").read_text() == kept  # nothing was done again
    run(bench, layout, *arguments, "--maps", "1", "--steps", "10")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(kept.splitlines()) + 3


def test_paired_differences_know_which_way_is_better(bench) -> None:
    first = {str(i): {"l1": 0.1, "csim": 0.8} for i in range(4)}
    second = {str(i): {"l1": 0.1 + d, "csim": 0.8 + d} for i, d in enumerate((0.01, 0.02, 0.03, -0.01))}
    table = bench.paired_table({"a": first, "b": second | {"9": {"l1": 7.0}}}, "a")
    (row,) = table.rows
    assert row.label == "b" and row.cells["l1"].value == pytest.approx(0.0125) and row.cells["l1"].count == 4
    assert row.cells["l1 better"].value == 0.25 and row.cells["csim better"].value == 0.75
    assert bench.paired_table({"a": first}, "a") is None


def test_random_samples_are_compared_with_the_maps_to_train_on(bench, folder, decoder, layout, tmp_path) -> None:
    result = run(
        bench, layout, folder, f"tiny={decoder}", "--pca", "5", "--steps", "2", "--memory", "6", "--out", tmp_path
    )
    memory, rows = result["memory"], result["tables"]["remembered"]
    assert set(memory) == {"held-out maps", "tiny", "pca5"} and memory["tiny"]["space"] == "z"
    assert len(memory["held-out maps"]["l1"]) == 3 and len(memory["tiny"]["l1"]) == 6
    assert rows["tiny (z)"]["nearer"]["value"] == 0 and rows["tiny (z)"]["l1"]["value"] > 0.1
    assert (tmp_path / "memory_tiny.jpg").is_file() and (tmp_path / "memory_pca5.jpg").is_file()


def test_a_copy_and_a_mirrored_copy_are_found(bench, folder, layout) -> None:
    maps = UVMaps(folder)
    rows = share_of(COUNT)
    known = bench.Remembered(maps, rows, layout, networks=False, atlas="makehuman")
    copies = [maps[rows[4]]["texture"], maps[rows[7]]["texture"].flip(-1), maps[9]["texture"]]
    facts, found = known(copies, 3)
    assert facts["l1"][0] < 1e-6 and facts["l1"][1] < 1e-6 < 1e-3 < facts["l1"][2]
    assert [int(which[0]) for _, _, which in found[:2]] == [4, 7 + len(rows)]
    torch.testing.assert_close(known.picture(7 + len(rows)), copies[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is compared"),
        (["--pca", "99"], "--pca asks for 99"),
        (["--pca", "2,2"], "two methods are called pca2"),
        (["--pca", "2", "--against", "pca3"], "--against pca3"),
        (["--pca-bytes", "10"], "--pca-bytes 10"),
        (["--pca", "2", "--share", "0.25"], "share must be"),
    ],
)
def test_what_is_wrong_is_said(bench, folder, layout, tmp_path, arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run(bench, layout, folder, *arguments, "--pca-size", SIZE, "--out", tmp_path)
