"""train/texture_gan.py as a user runs it: files, going on bit by bit, and what can go wrong."""

import contextlib
import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facerecon.dataset import Manifest
from facerecon.run import load_checkpoint, read_metrics, save_checkpoint
from facerecon.stylegan.weights import read_generator
from facerecon.training import snapshots, texture_networks
from facerecon.training.texture_gan import TextureTraining

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train" / "texture_gan.py"
_spec = importlib.util.spec_from_file_location("texture_gan", SCRIPT)
texture_gan = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(texture_gan)

TINY = {
    "size": 16, "channel_base": 128, "channel_max": 8, "w_dim": 8, "batch": 4, "kimg": 0.032, "snapshot_kimg": 0.016,
    "log_kimg": 0.008, "measure.features": 0, "measure.inversion": 1, "measure.inversion_steps": 2, "grid.samples": 4,
    "grid.cell": 16, "average_kimg": 0.01, "precision": "float32", "device": "cpu", "threads": 1,
}  # fmt: skip
TINY = [f"{key}={value}" for key, value in TINY.items()]


SOME = [
    "codes=maps",
    "base=linear",
    "mirror=true",
    "pretrain.kimg=0.02",
    "pretrain.batch=4",
    "pretrain.coarse=0",
    "kimg=0.024",
]
SOME += ["adversarial.pairs=0.5", "adversarial.pair_weight=1", "pretrain.code_noise=0.1", "adversarial.r1_every=3"]
SOME += ["snapshot_kimg=0.028", "log_kimg=0.016"]  # steps 7 and 11, 4, 8 and 11; five are supervised


@contextlib.contextmanager
def put_back():
    """What a run changes of its process."""
    threads, show = torch.get_num_threads(), warnings.showwarning
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    kept = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    yield
    torch.set_num_threads(threads)
    warnings.showwarning = show
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for key, value in kept.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Fewer samples for statistics and directions of W."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "STATISTICS", {"samples": 2000, "textures": 32})
        patch.setattr(texture_networks, "_DIRECTIONS", 600)
        yield


@pytest.fixture(autouse=True)
def as_before():
    with put_back():
        yield


def make_maps(folder: Path) -> Path:
    """Twenty smooth maps of 16 px, named as a set's; always the same ones."""
    (folder / "uv-maps").mkdir(parents=True)
    draws = np.random.default_rng(0)
    for i in range(20):
        coarse = Image.fromarray(draws.integers(0, 255, (3, 3, 3), dtype=np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(folder / "uv-maps" / f"{3 * i:06d}.png")
    return folder


@pytest.fixture
def maps(tmp_path) -> Path:
    return make_maps(tmp_path / "set")


def untouched(tmp_path_factory, *keys: str) -> Path:
    folder = tmp_path_factory.mktemp("untouched")
    with put_back():
        assert train(f"data={make_maps(folder / 'set')}", f"out={folder / 'o'}", *keys) == 0
    return folder / "o"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody stopped."""
    return untouched(tmp_path_factory, "mirror=true")


@pytest.fixture(scope="module")
def whole_some(tmp_path_factory) -> Path:
    """One with a supervised phase."""
    return untouched(tmp_path_factory, *SOME)


def train(*overrides: str) -> int:
    """Run it in this process."""
    from facerecon.configs.compose import run

    return run(texture_gan.main, "texture_gan", texture_gan.__doc__, [*TINY, *overrides])


def refused(capsys, *overrides: str) -> str:
    """The one line of a run that fails."""
    capsys.readouterr()
    assert train(*overrides) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def state_of(out: Path) -> dict:
    return load_checkpoint(sorted((out / "checkpoints").glob("*.safetensors"))[-1])["tree"]


def rows_of(out: Path) -> list[dict]:
    """Its metrics, without what depends on the clock."""
    timing = ("images_per_second", "eta_minutes")
    return [{k: v for k, v in row.items() if k not in timing} for row in read_metrics(out / "metrics.jsonl")]


def same_run(a: Path, b: Path, same) -> None:
    """Two runs that ended alike, to the last bit."""
    same(state_of(a), state_of(b))
    assert rows_of(a) == rows_of(b)
    names = sorted(path.relative_to(a) for path in a.rglob("*") if path.suffix == ".png" or "decoder" in path.name)
    assert names == sorted(
        path.relative_to(b) for path in b.rglob("*") if path.suffix == ".png" or "decoder" in path.name
    )
    for name in names:
        assert (a / name).is_dir() or (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_run_and_one_that_was_cut_in_two_end_alike(maps, whole, tmp_path, capsys, same) -> None:
    parts = tmp_path / "parts"
    assert train(f"data={maps}", f"out={parts}", "mirror=true", "kimg=0.016") == 0
    assert "18 maps of 16 px to train on, 2 held out, 0 with codes" in capsys.readouterr().out
    assert train(f"data={maps}", f"out={parts}", "mirror=true") == 0
    assert "goes on from step 4" in capsys.readouterr().out
    same(state_of(whole), state_of(parts))
    rows = rows_of(whole)
    assert rows == rows_of(parts)
    assert (whole / "decoder.safetensors").read_bytes() == (parts / "decoder.safetensors").read_bytes()
    names = {path.name for path in whole.iterdir()}
    assert {"real.png", "samples-000000.0.png", "interpolations-000000.0.png", "decoders", "config.json"} <= names
    assert [row["images"] for row in rows if "snapshot" in row] == [16, 32]
    assert all(0 < row["held_out_inversion_l1"] < 1 for row in rows if "snapshot" in row)
    generator, facts = read_generator(whole / "decoder.safetensors")
    assert generator.size == 16
    assert facts["about"]["maps"] == 18
    capsys.readouterr()
    assert train(f"data={maps}", f"out={whole}", "mirror=true") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_pairs_come_first_and_stay(maps, tmp_path, asset, capsys) -> None:
    asset("mobile_stylegan")
    rows = [(3 * i, i, {"source": torch.randn(512), "views": torch.randn(3, 512)}, {}) for i in range(20)]
    Manifest.collect(rows, {"settings": {"truncation": 0.5}}).save(maps / "manifest.safetensors")
    keys = (
        "pretrain.kimg=0.04",
        "pretrain.coarse=0.3",
        "adversarial.pairs=0.5",
        "adversarial.pair_weight=1",
        "kimg=0.016",
    )
    assert train(f"data={maps}", f"out={tmp_path / 'o'}", "w_dim=6", *keys) == 0
    rows = read_metrics(tmp_path / "o" / "metrics.jsonl")
    assert [row["phase"] for row in rows if "snapshot" not in row] == ["pretrain"] * 5 + ["adversarial"] * 2
    assert all("pair" in row for row in rows if "snapshot" not in row)
    assert all(0 < row["held_out_pair_l1"] < 0.5 for row in rows if "snapshot" in row)
    generator, facts = read_generator(tmp_path / "o" / "decoder.safetensors")
    assert facts["about"] | {"pair_truncation": 0.5, "mapping": "open", "pretrain_kimg": 0.04} == facts["about"]
    assert generator.config.w_dim == 6
    assert (tmp_path / "o" / "held-out-000000.0.png").is_file()


def test_codes_of_maps_are_learned_along_and_resume(maps, tmp_path, capsys, same) -> None:
    """Any folder of maps: their coordinates are the codes; one run, and one that was cut in two, learn the same."""
    some = ["codes=maps", "base=linear", "mirror=true", "pretrain.kimg=0.032", "pretrain.batch=4", "pretrain.coarse=0"]
    some += [
        f"data={maps}",
        "adversarial.pairs=0.5",
        "adversarial.pair_weight=1",
        "pretrain.code_noise=0.1",
        "kimg=0.008",
    ]
    assert train(*some, f"out={tmp_path / 'whole'}") == 0
    state = state_of(tmp_path / "whole")
    table = state["table"]
    assert table.shape == (40, 8)
    held = [9, 19, 29, 39]
    generator, facts = read_generator(tmp_path / "whole" / "decoder.safetensors")
    assert generator.synthesis.linear.shape == (8, 3, 16, 16)
    assert generator.config.mapping_layers == 0 and facts["about"]["codes"] == "maps"
    from facerecon.training.uv_maps import MapCodes, MapMemory, share_of

    memory = MapMemory(maps, 16)
    first = MapCodes(memory, share_of(20), 8, mirror=True).table
    moved = (table - first).abs().amax(1)
    assert all(moved[i] == 0 for i in held) and int((moved > 0).sum()) == 32  # each of 32 images another row
    assert train(*some, f"out={tmp_path / 'cut'}", "max_minutes=0") == 0
    assert train(*some, f"out={tmp_path / 'cut'}") == 0
    same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))


@pytest.mark.parametrize(
    "key", ["size=12", "batch=0", "pretrain.noise=gauss", "mapping=foreign", "share=0.25", "kimg=0"]
)
def test_settings_that_cannot_be(maps, tmp_path, capsys, key) -> None:
    assert key.split("=")[0].split(".")[-1] in refused(capsys, f"data={maps}", f"out={tmp_path / 'o'}", key)
    assert not (tmp_path / "o").exists()


def test_folders_that_cannot_be_trained_on(maps, tmp_path, capsys) -> None:
    out = f"out={tmp_path / 'o'}"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no image file" in refused(capsys, f"data={empty}", out)
    assert "nowhere is not a folder" in refused(capsys, f"data={tmp_path / 'nowhere'}", out)
    assert "smaller than size=32; choose size=16" in refused(capsys, f"data={maps}", out, "size=32")
    assert "manifest.safetensors does not exist" in refused(capsys, f"data={maps}", out, "pretrain.kimg=1")
    odd = maps / "uv-maps" / "000099.png"
    Image.new("RGB", (32, 32)).save(odd)
    line = refused(capsys, f"data={maps}", out)
    assert "different sizes" in line
    assert "000099.png 32 px" in line
    Image.new("RGB", (16, 20)).save(odd)
    assert "000099.png is 16 x 20 px; a UV map is square" in refused(capsys, f"data={maps}", out)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("memory", ["memory_gb=8", "memory_gb=0"])
def test_a_corrupt_map_is_left_out(maps, tmp_path, capsys, memory) -> None:
    bad = maps / "uv-maps" / "000012.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    assert train(f"data={maps}", f"out={tmp_path / 'o'}", memory, "snapshot_kimg=1") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "000012.png is left out" in line]
    assert len(warned) == 1
    for i in (3, 4, 5):
        (maps / "uv-maps" / f"{3 * i:06d}.png").write_bytes(b"not a picture")
    assert "of 20 maps cannot be read" in refused(capsys, f"data={maps}", f"out={tmp_path / 'p'}", memory)


def test_a_full_disk_at_a_snapshot(maps, whole, tmp_path, capsys, monkeypatch, same) -> None:
    from facerecon import storage

    out = tmp_path / "o"
    keys = (f"data={maps}", f"out={out}", "mirror=true")
    assert train(*keys, "kimg=0.016") == 0
    before = {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", full)
        line = refused(capsys, *keys)
    assert "No space left" in line
    assert "The last checkpoint" in line
    assert "is of step 4" in line
    assert {path: path.read_bytes() for path in (out / "checkpoints").iterdir()} == before
    assert train(*keys) == 0
    same(state_of(out), state_of(whole))


def test_numbers_that_are_none_stop_the_run(maps, tmp_path, capsys) -> None:
    out = tmp_path / "o"
    assert train(f"data={maps}", f"out={out}", "kimg=0.016") == 0
    before = {path.name for path in (out / "checkpoints").iterdir()}
    again = (f"data={maps}", f"out={out}", "resume=force")
    line = refused(capsys, *again, "adversarial.lr=1e30", "adversarial.path_weight=0")
    assert "training stopped at step" in line
    assert "The last checkpoint is kept" in line
    assert {path.name for path in (out / "checkpoints").iterdir()} == before
    assert train(*again) == 0  # goes on from before


def test_what_changed_is_named(maps, tmp_path, capsys) -> None:
    """Another rate goes on by force, other maps do not; the same maps may lie elsewhere."""
    out = f"out={tmp_path / 'o'}"
    assert train(f"data={maps}", out, "kimg=0.004") == 0
    maps = maps.rename(tmp_path / "moved")
    assert train(f"data={maps}", out, "kimg=0.004", "snapshot_kimg=1", "grid.samples=9") == 0
    capsys.readouterr()
    change = ("adversarial.lr=0.001", "batch=2")
    line = refused(capsys, f"data={maps}", out, *change)
    assert "(adversarial.lr 0.002 -> 0.001, batch 4 -> 2); go on with the change by resume=force" in line
    assert train(f"data={maps}", out, *change, "resume=force", "kimg=0.008") == 0
    printed = capsys.readouterr()
    assert "goes on with what changed (adversarial.lr 0.002 -> 0.001, batch 4 -> 2)" in printed.err
    assert "goes on from step 1" in printed.out and state_of(tmp_path / "o")["step"] == 3
    Image.new("RGB", (16, 16), "red").save(maps / "uv-maps" / "000003.png")
    for resume in ("true", "force"):
        line = refused(capsys, f"data={maps}", out, *change, f"resume={resume}")
        assert "cannot go on with what changed (maps.content " in line
    (maps / "uv-maps" / "000003.png").unlink()
    assert "maps.files 20 -> 19" in refused(capsys, f"data={maps}", out, *change, "resume=force")


def test_a_run_of_an_earlier_version_goes_on(maps, tmp_path, capsys) -> None:
    """It recorded what cannot change, and no word of the maps or of rates."""
    keys, path = (f"data={maps}", f"out={tmp_path / 'o'}", "kimg=0.004"), tmp_path / "o" / "config.json"
    assert train(*keys) == 0
    whole = json.loads(path.read_text())
    old = {key: whole[key] for key in (*texture_gan.STRUCTURE, "script", "batch") if key != "train_mapping"}
    path.write_text(json.dumps(old))
    assert "cannot go on with what changed (size 16 -> 8)" in refused(capsys, *keys, "size=8")
    assert train(*keys) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("whether they changed is unknown.") and "of an earlier version, which did not record" in line
    assert json.loads(path.read_text()) == whole


def test_a_run_with_names_of_before_goes_on(maps, whole_some, tmp_path, capsys, same) -> None:
    """Its configuration and checkpoint speak of a warm phase, of rates and figures; so may the command."""
    out = tmp_path / "o"
    keys = [f"data={maps}", f"out={out}", *(key.replace("pretrain.", "warm.") for key in SOME)]
    assert train(*keys, "max_minutes=1e-6") == 0
    assert "note: key 'warm.kimg' is now 'pretrain.kimg'" in capsys.readouterr().err
    config = json.loads((out / "config.json").read_text())
    config["warm"] = config.pop("pretrain")
    config["warm"] |= {"rate": config["warm"].pop("lr"), "code_rate": config["warm"].pop("code_lr")}
    config["adversarial"]["rate"] = config["adversarial"].pop("lr")
    config["collapse"]["spread"] = config["collapse"].pop("sample_std")
    (out / "config.json").write_text(json.dumps(config))
    state = state_of(out)
    old = {"phase": "warm", "warm_images": state.pop("pretrain_images"), "figures": state.pop("metrics")}
    save_checkpoint(out / "checkpoints" / "step-000000001.safetensors", {"step": 1, "tree": state | old})
    assert train(*keys, "adversarial.rate=0.001") == 2
    assert "(adversarial.lr 0.002 -> 0.001)" in capsys.readouterr().err
    assert train(*keys) == 0
    printed = capsys.readouterr()
    assert "goes on from step 1" in printed.out and "unknown" not in printed.err
    same(state_of(whole_some), state_of(out))


def test_collapse_stops_the_run(maps, tmp_path, capsys) -> None:
    keys = (f"data={maps}", f"out={tmp_path / 'o'}", "collapse.patience=3")
    assert "all alike (collapse)" in refused(capsys, *keys, "collapse.sample_std=10")
    assert "logits passed 1e-09" in refused(capsys, *keys, "collapse.logits=1e-9")


def test_another_resolution(maps, tmp_path, capsys) -> None:
    out = tmp_path / "o"
    assert train(f"data={maps}", f"out={out}", "kimg=0.016", "size=8") == 0
    assert "cannot go on with what changed (size 8 -> 16)" in refused(capsys, f"data={maps}", f"out={out}")
    init = f"init={out / 'decoder.safetensors'}"
    assert train(f"data={maps}", f"out={tmp_path / 'p'}", "kimg=0.016", init) == 0
    assert "grown from 8 to 16 px" in capsys.readouterr().out
    assert "channel_base=128 channel_max=8" in refused(
        capsys, f"data={maps}", f"out={tmp_path / 'q'}", "channel_max=4", init
    )
    checkpoint = next((out / "checkpoints").iterdir())
    assert "not a texture generator" in refused(capsys, f"data={maps}", f"out={tmp_path / 'r'}", f"init={checkpoint}")


def test_time_is_up(maps, tmp_path, capsys) -> None:
    assert train(f"data={maps}", f"out={tmp_path / 'o'}", "max_minutes=1e-6", "kimg=100") == 0
    assert "stopped after 1e-06 minutes" in capsys.readouterr().out
    assert state_of(tmp_path / "o")["step"] == 1


def stopped(capsys, number: int, *overrides: str) -> str:
    """The one line of a run that a signal stopped."""
    capsys.readouterr()
    assert train(*overrides) == 128 + number
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("interrupted; ")
    assert lines[0].endswith("run the same command again to go on.")
    return lines[0]


def in_step(monkeypatch, step: int, *signals: int) -> None:
    """Signals in the middle of one step of whatever runs."""
    enter = TextureTraining.enter

    def hit(training, phase: str) -> None:
        if training.phase and training.steps == step and signals:
            for number in signals:
                signal.raise_signal(number)
        enter(training, phase)

    monkeypatch.setattr(TextureTraining, "enter", hit)


def test_a_signal_ends_the_step_and_keeps_it(maps, whole_some, tmp_path, capsys, monkeypatch, same) -> None:
    """In the supervised phase and in the other, between rows of metrics: nothing is lost, and nothing else is made."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may start with it ignored
    cut = tmp_path / "cut"
    assert [row["images"] for row in rows_of(whole_some)] == [16, 28, 32, 44, 44]
    keys = (f"data={maps}", f"out={cut}", *SOME)
    for step, number in ((2, signal.SIGTERM), (5, signal.SIGINT), (9, signal.SIGTERM)):
        with monkeypatch.context() as patch:
            in_step(patch, step, number)
            assert f"cut is of step {step + 1};" in stopped(capsys, number, *keys)
        assert state_of(cut)["step"] == step + 1
        assert (cut / "decoder.safetensors").exists() == (step == 9)
    assert [row["images"] for row in rows_of(cut)] == [16, 28, 32]
    assert train(*keys) == 0
    same_run(whole_some, cut, same)


def test_a_second_signal_does_not_wait(maps, tmp_path, capsys, monkeypatch) -> None:
    from facerecon.run import signals

    keys = (f"data={maps}", f"out={tmp_path / 'o'}", *SOME)
    in_step(monkeypatch, 2, signal.SIGTERM, signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(signals, "_SAME", 0.0)
        assert "no checkpoint yet" in stopped(capsys, signal.SIGTERM, *keys)
    assert not list((tmp_path / "o").rglob("step-*"))
    assert "is of step 3" in stopped(capsys, signal.SIGTERM, *keys)  # at once: one request, sent twice


@pytest.mark.parametrize("kimg", [0.028, 0.044])
def test_a_signal_while_pictures_are_made(maps, whole_some, tmp_path, capsys, monkeypatch, same, kimg) -> None:
    """They do not hold it up, and the run begins with them when it goes on; also where they are all that is left."""
    cut = tmp_path / "cut"
    keys = (f"data={maps}", f"out={cut}", *SOME)
    show = snapshots.TextureSnapshots._show

    def hit(made, name: str) -> None:
        if made.training.images == round(1000 * kimg):
            signal.raise_signal(signal.SIGTERM)
        show(made, name)

    for _ in range(2):  # again while the run goes on with them
        with monkeypatch.context() as patch:
            patch.setattr(snapshots.TextureSnapshots, "_show", hit)
            assert f"is of step {round(250 * kimg)};" in stopped(capsys, signal.SIGTERM, *keys)
        assert all(row["images"] < 1000 * kimg for row in rows_of(cut) if "snapshot" in row)
    assert train(*keys) == 0
    same_run(whole_some, cut, same)
    capsys.readouterr()
    assert train(*keys) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_sigterm_to_a_process(maps, tmp_path, same) -> None:
    """As a scheduler or a closed terminal sends it, at a moment of its own."""
    out = tmp_path / "o"
    keys = [*TINY, f"data={maps}", "snapshot_kimg=10", "log_kimg=0.012", f"out={out}"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *keys, "kimg=100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and len(read_metrics(out / "metrics.jsonl")) > 1:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 143
    step = state_of(out)["step"]
    assert step >= 6
    lines = [line for line in text.decode().splitlines() if "img/s" not in line]
    assert lines == [
        f"interrupted; the last checkpoint in {out} is of step {step}; run the same command again to go on."
    ]
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl", "real.png"]
    keys.append(f"kimg={0.004 * (step + 4)}")
    assert train(*keys) == 0
    whole = tmp_path / "w"
    assert train(*keys, f"out={whole}") == 0
    same_run(whole, out, same)


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step(maps, tmp_path, same) -> None:
    """Two processes, of which one is asked to end; they go on as two that nobody stopped."""
    import socket

    def start(out: Path) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        keys = [*TINY, "batch=8", "kimg=0.4", "snapshot_kimg=0.216", "log_kimg=0.024", f"data={maps}", f"out={out}"]
        return [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), *keys], env={**os.environ, **shared, "RANK": str(rank)},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for rank in (0, 1)
        ]  # fmt: skip

    said = []

    def end(ranks: list[subprocess.Popen]) -> list[int]:
        said[:] = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
        return [rank.returncode for rank in ranks]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert end(start(whole)) == [0, 0]
    ranks, deadline = start(cut), time.monotonic() + 120
    while not (cut / "metrics.jsonl").exists() or len(read_metrics(cut / "metrics.jsonl")) < 2:
        assert ranks[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGTERM)
    assert end(ranks) == [143, 143]
    assert ["interrupted" in text for text in said] == [True, False]
    assert 6 <= state_of(cut)["step"] < 50
    assert end(start(cut)) == [0, 0]
    same_run(whole, cut, same)


def test_the_decoder_of_a_finished_run_holds_statistics(whole_some, monkeypatch, same) -> None:
    """So that no fit has to measure them; those of snapshots on the way do not, and are read as well."""
    from facerecon.stylegan import texture_decoder as texture
    from facerecon.stylegan.load import load_decoder

    final, plain = whole_some / "decoder.safetensors", whole_some / "decoders" / "decoder-000000.0.safetensors"
    (generator, facts), (last, other) = read_generator(final), read_generator(plain)
    assert facts["mapping"] and facts["about"]["mapping_network"] == "own"
    assert facts["statistics"] and not other["statistics"]
    assert {k: v for k, v in facts["about"].items() if k != "mapping_network"} == other["about"]
    same(generator.state_dict(), last.state_dict())
    measured = texture.measure_statistics(last.map, last.synthesis, last.rows, 8, 2000, 32, 16)
    asked = []
    monkeypatch.setattr(texture, "kept_statistics", lambda network, key: asked.append(key) or measured)
    decoders = [load_decoder(str(path), space="w+") for path in (final, plain)]
    assert len(asked) == 1
    assert decoders[0].w_mean.tolist() == pytest.approx(decoders[1].w_mean.tolist(), abs=1e-6)
    assert torch.allclose(decoders[0].start_texture, decoders[1].start_texture, atol=0.02)
    codes = torch.randn(1, last.rows, 8)
    assert torch.allclose(decoders[0].synthesis(codes), decoders[1].synthesis(codes), atol=1e-4)


def built(*keys: str):
    """Data and training of a run, as the script builds them."""
    from omegaconf import OmegaConf

    from facerecon.configs.compose import compose
    from facerecon.run.processes import Processes

    config = compose("texture_gan", [*TINY, *keys])
    values = OmegaConf.to_container(config, resolve=True)
    data, source = texture_gan.load_data(config, values)
    processes = Processes(torch.device("cpu"))
    training, distances = texture_gan.build_training(config, values, data, source, processes)
    return config, values, data, training, distances


def test_codes_follow_the_table_and_take_noise(maps, tmp_path) -> None:
    """Learned codes are looked up where they are learned; noise has the deviation of all codes times the setting."""
    from facerecon.training.ada import draws_of

    _, _, data, t, _ = built(f"data={maps}", *SOME)
    rows = [3, 21, 3]
    with torch.no_grad():
        t.table[3] += 1.0
    assert torch.equal(data.codes_of(rows, t.generator.projection), t.table.detach()[rows])
    noise = data.codes_of(rows, t.generator.projection, [7, 8, 9]) - t.table.detach()[rows]
    assert torch.allclose(noise, 0.1 * draws_of(0, "code noise", [7, 8, 9], 8), atol=1e-6)


def test_each_step_takes_its_turn(maps, tmp_path, monkeypatch) -> None:
    """The generator begins after its delay, counted from the end of the supervised phase; both regularizations come at
    the steps of the run that their interval divides."""
    from facerecon.run import training_loop

    some = ["adversarial.r1_every=3", "adversarial.path_every=2", "adversarial.delay_kimg=0.008", "pretrain.coarse=0"]
    some += ["codes=maps", "pretrain.kimg=0.008", "pretrain.batch=4", "kimg=0.024", f"out={tmp_path / 'o'}"]
    config, values, data, training, distances = built(f"data={maps}", *some)
    taken, turns = [], []
    for name in ("pretrain", "generator", "path", "discriminator", "r1"):
        monkeypatch.setattr(training, f"{name}_step", lambda *_, name=name: taken.append(name) or {})
    finish = training.finish_step

    def finished(*settings) -> dict:
        turns.append(" ".join(taken))
        taken.clear()
        return finish(*settings)

    monkeypatch.setattr(training, "finish_step", finished)
    monkeypatch.setattr(training_loop.Checkpoints, "latest", lambda *_: None)
    assert texture_gan.train(config, values, data, training, distances, None) == 0
    assert turns == [
        "pretrain",
        "pretrain",
        "discriminator",
        "discriminator r1",
        "generator path discriminator",
        "generator discriminator",
        "generator path discriminator r1",
        "generator discriminator",
    ]


@pytest.mark.slow
def test_killed_at_any_moment(maps, tmp_path, same) -> None:
    """SIGKILL in the middle, several times; the same command ends with the files of a run that nobody touched."""
    out = tmp_path / "o"
    keys = [*TINY, f"data={maps}", "kimg=0.2"]
    command = [sys.executable, str(SCRIPT), *keys, f"out={out}"]

    def newest() -> int:
        return max((path.stat().st_mtime_ns for path in out.glob("checkpoints/step-*")), default=0)

    for _ in range(2):
        before, deadline = newest(), time.monotonic() + 120
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and newest() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    assert train(f"data={maps}", "kimg=0.2", f"out={tmp_path / 'w'}") == 0
    same(state_of(out), state_of(tmp_path / "w"))
    assert not list(out.rglob("*.part"))


def test_help(capsys) -> None:
    assert train("--help") == 0
    text = capsys.readouterr().out
    assert "code_noise" in text
    assert "torchrun" in text
