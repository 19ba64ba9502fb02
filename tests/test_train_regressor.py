"""train/regressor.py as a user runs it: files, going on bit by bit, a cache that is shared, and what can go wrong."""

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

from facerecon.perception.regressor import read_regressor
from facerecon.run import load_checkpoint, read_metrics
from facerecon.training.regressor import RegressorTraining
from facerecon.training.uv_maps import epoch_order

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train" / "regressor.py"
_spec = importlib.util.spec_from_file_location("train_regressor", SCRIPT)
regressor = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(regressor)

TINY = {
    "num_identity": 4, "texture": 3, "backbone": "resnet10", "width": 0.125, "size": 32, "batch": 8, "kimg": 0.032,
    "synthetic.cached": 12, "synthetic.shape_residual": 0, "snapshot_kimg": 0.016, "log_kimg": 0.008, "measure": 4,
    "grid": 2, "step.average": 16, "precision": "float32", "device": "cpu", "threads": 1,
}  # fmt: skip
TINY = [f"{key}={value}" for key, value in TINY.items()]


@pytest.fixture(autouse=True)
def as_before(asset):
    asset("makehuman")
    threads, show = torch.get_num_threads(), warnings.showwarning
    kept = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    yield
    torch.set_num_threads(threads)
    warnings.showwarning = show
    for key, value in kept.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(*overrides: str) -> int:
    """Run it in this process."""
    from facerecon.configs.compose import run

    return run(regressor.main, "regressor", regressor.__doc__, [*TINY, *overrides])


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


def test_a_run_and_one_that_was_cut_in_two_end_alike(tmp_path, cache, capsys, same) -> None:
    whole, parts, shared = tmp_path / "whole", tmp_path / "parts", f"cache={cache}"
    assert train(shared, "prepare=true") == 0
    assert "is whole" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert train(shared, f"out={whole}") == 0
    assert "at random (width is not 1)" in capsys.readouterr().out
    assert train(shared, f"out={parts}", "max_minutes=1e-6") == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert train(shared, f"out={parts}") == 0
    assert "goes on from step 1" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == made
    same(state_of(whole), state_of(parts))
    assert (whole / "regressor.safetensors").read_bytes() == (parts / "regressor.safetensors").read_bytes()
    rows = [row for row in read_metrics(whole / "metrics.jsonl") if "snapshot" in row]
    assert [row["images"] for row in rows] == [16, 32]
    assert all(0 < row["held_out_shape"] < 10 < row["held_out_mean_face_landmarks"] for row in rows)
    assert {"faces-000000.0.png", "config.json"} <= {path.name for path in whole.iterdir()}
    network = read_regressor(whole / "regressor.safetensors")
    spread = network.residual("identity")  # of an untrained network, what it misses is the truth: 1
    assert spread.shape == (network.config.identity,) and 0.3 < spread.square().mean().sqrt() < 1.5
    assert network.config.face_model == "makehuman" and network.config.bounds == (0, 1)
    assert network.about["kimg"] == 0.032 and network.about["synthetic_faces"] == 12
    assert train(shared, f"out={whole}") == 0
    assert "nothing to do" in capsys.readouterr().out
    for key, words in (
        ("batch=4", "(batch 8 -> 4); go on with the change by resume=force"),
        ("size=64", "cannot go on with what changed (size 32 -> 64)"),
    ):
        assert words in refused(capsys, f"cache={tmp_path / 'c'}", f"out={whole}", key)
    assert "settings (differs: settings)" in refused(capsys, shared, f"out={tmp_path / 'o'}", "synthetic.yaw=3")


def test_rendered_on_the_fly(tmp_path, same) -> None:
    for name in ("a", "b"):
        assert train(f"out={tmp_path / name}", "synthetic.cached=0", "kimg=0.016", "measure=0") == 0
    same(state_of(tmp_path / "a"), state_of(tmp_path / "b"))
    assert not (tmp_path / "a" / "cache").exists()


def test_persons_in_several_pictures(tmp_path, capsys) -> None:
    keys = [
        "synthetic.pictures=2",
        "synthetic.shape_residual=2",
        "synthetic.uv_jitter=0.01",
        "loss.intra_inter_ratio=2",
        "kimg=0.016",
        "measure=5",
    ]
    assert train(*keys, f"out={tmp_path / 'o'}") == 0
    rows = read_metrics(tmp_path / "o" / "metrics.jsonl")
    assert rows[0]["intra_inter_ratio"] >= 0 and rows[-1]["held_out_intra_inter_ratio"] > 0
    order = epoch_order(12, 0, "faces", list(range(24)), 2)
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12)) and order[:12] != order[12:]
    assert all(a % 2 == 0 and b == a + 1 for a, b in zip(order[::2], order[1::2], strict=True))
    assert "synthetic.cached=13 is not a multiple" in refused(capsys, *keys, "synthetic.cached=13")
    assert "in groups of 2" in refused(capsys, *keys, "batch=7")


def test_photos_without_truth(tmp_path, cache, capsys, observe_models, monkeypatch) -> None:
    from facerecon.training import crops

    kept, observe = {}, crops.observe

    def once(path: Path, **options):
        """Ten photos of one content are looked at once."""
        content = path.read_bytes()
        if content not in kept:
            kept[content] = observe(path, **options)
        return kept[content]

    monkeypatch.setattr(crops, "observe", once)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(10):  # the tenth is held out
        (photos / f"astronaut{i}.jpg").write_bytes((ROOT / "samples" / "astronaut.jpg").read_bytes())
    (photos / "broken.jpg").write_bytes(b"not a picture")
    keys = [f"cache={cache / 'photos'}", "synthetic.cached=8", f"weak.data={photos}", "weak.share=0.25", "kimg=0.016"]
    assert train(*keys, f"out={tmp_path / 'o'}") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "broken.jpg is left out" in line]
    assert len(warned) == 1
    row = read_metrics(tmp_path / "o" / "metrics.jsonl")[0]
    assert 0 < row["weak_photometric"] < 1 and 0 < row["weak_features"] < 2 and row["weak_landmarks"] > 1
    last = read_metrics(tmp_path / "o" / "metrics.jsonl")[-1]
    assert 0 < last["held_out_weak_photometric"] < 1 and last["held_out_weak_landmarks"] > 1
    assert (tmp_path / "o" / "photos-000000.0.png").is_file()
    for i in range(10):
        (photos / f"astronaut{i}.jpg").unlink()
    assert "differs: names, photos" in refused(capsys, *keys, f"out={tmp_path / 'p'}")
    again = [f"cache={tmp_path / 'c'}", *keys[1:]]
    assert "not one of 1 samples could be made" in refused(capsys, *again, f"out={tmp_path / 'p'}")
    (photos / "broken.jpg").unlink()
    assert "holds no image file" in refused(capsys, *again, f"out={tmp_path / 'q'}")


def test_maps_and_backgrounds(tmp_path, capsys) -> None:
    maps, pictures = tmp_path / "maps", tmp_path / "pictures"
    draws = np.random.default_rng(0)
    for folder, count in ((maps, 3), (pictures, 2)):
        folder.mkdir()
        for i in range(count):
            coarse = Image.fromarray(draws.integers(80, 200, (4, 4, 3), dtype=np.uint8))
            coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    keys = [f"synthetic.maps={maps}", f"synthetic.backgrounds={pictures}", "kimg=0.008", f"out={tmp_path / 'o'}"]
    assert train(*keys) == 0
    assert read_regressor(tmp_path / "o" / "regressor.safetensors").about["texture_maps"] == 3
    other = Image.open(pictures / "0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    other.save(pictures / "0.png")
    assert "cannot go on with what changed (files.backgrounds.content" in refused(capsys, *keys, "resume=force")
    (maps / "0.png").write_bytes(b"cut")
    assert "0.png" in refused(capsys, keys[0], f"out={tmp_path / 'p'}")
    for path in pictures.iterdir():
        path.write_bytes(b"cut")
    assert "none of 2 pictures can be read" in refused(capsys, keys[1], f"out={tmp_path / 'p'}")


@pytest.mark.parametrize(
    "key, words",
    [
        ("batch=0", "batch must be a whole number, 1 or more; got 0"),
        ("kimg=0", "kimg must be above 0"),
        ("weak.share=1.5", "weak.share must be 0 to 1"),
        ("backbone=resnet19", "resnet18"),
        ("file=int4", "file must be float32, float16 or int8"),
        ("synthetic.hair=2", "synthetic.hair must be a number, 0 to 1"),
        ("augment.blur=-1", "augment.blur is a share"),
        ("loss.shape=-1", "loss.shape must be a number, 0 or more"),
        ("texture=1000", "texture must be 0..64 components"),
        ("synthetic.haiir=1", "did you mean 'synthetic.hair'"),
        ("face_model=makehumann", "did you mean 'makehuman'"),
    ],
)
def test_settings_that_cannot_be(tmp_path, capsys, key, words) -> None:
    assert words in refused(capsys, f"out={tmp_path / 'o'}", key)
    assert not (tmp_path / "o").exists()


def test_another_network_to_start_from(tmp_path, cache, capsys) -> None:
    shared = f"cache={cache}"
    assert train(shared, f"out={tmp_path / 'o'}", "kimg=0.008", "file=int8") == 0
    init = f"init={tmp_path / 'o' / 'regressor.safetensors'}"
    assert train(shared, f"out={tmp_path / 'p'}", "kimg=0.008", init) == 0
    assert "started from" in capsys.readouterr().out
    assert "differs: width); set width=0.125" in refused(capsys, shared, f"out={tmp_path / 'q'}", "width=0.25", init)


def test_the_mean_of_several_networks(tmp_path, cache, capsys) -> None:
    """It is measured and saved as it is; names what it is of; and may be trained on."""
    shared, files = f"cache={cache}", []
    for kimg in ("0.008", "0.032"):
        assert train(shared, f"out={tmp_path / kimg}", f"kimg={kimg}") == 0
        files.append(str(tmp_path / kimg / "regressor.safetensors"))
    init = f"init=[{','.join(files)}]"
    for _ in range(2):  # the second time measures it anew
        assert train(shared, f"out={tmp_path / 'mean'}", "kimg=0", init, "file=float32") == 0
    assert len((tmp_path / "mean" / "metrics.jsonl").read_text().splitlines()) == 1
    assert f"started from {files[0]} and {files[1]}" in capsys.readouterr().out
    mean, *networks = (read_regressor(file) for file in (tmp_path / "mean" / "regressor.safetensors", *files))
    assert mean.about["mean_of"] == 2 and mean.about["metrics"]["held_out_shape"] > 0
    states = [network.state_dict() for network in networks]
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2, atol=1e-6, rtol=1e-5)
    assert train(shared, f"out={tmp_path / 'more'}", "kimg=0.008", init) == 0
    wrong = f"init=[{files[0]},{tmp_path / 'none.safetensors'}]"
    assert "none.safetensors" in refused(capsys, shared, f"out={tmp_path / 'q'}", "kimg=0", wrong)


def test_numbers_that_are_none_stop_the_run(tmp_path, cache, capsys) -> None:
    out = [f"cache={cache}", f"out={tmp_path / 'o'}", "resume=force"]
    assert train(*out, "kimg=0.016") == 0
    before = {path.name for path in (tmp_path / "o" / "checkpoints").iterdir()}
    assert "The last checkpoint is kept" in refused(capsys, *out, "step.lr=1e30")
    assert {path.name for path in (tmp_path / "o" / "checkpoints").iterdir()} == before
    assert train(*out) == 0


def test_a_signal_ends_the_step_and_keeps_its_metrics(tmp_path, cache, capsys, monkeypatch, same) -> None:
    """Between two rows: their means are of the steps before and after it; names of before are taken, too."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    keys = [f"cache={cache}", "log_kimg=0.032", "wear.blur=0.3", "step.rate=0.002"]
    assert train(*keys, f"out={tmp_path / 'w'}") == 0
    assert "note: key 'step.rate' is now 'step.lr'" in capsys.readouterr().err
    loss = RegressorTraining.loss

    def hit(training, *batch):
        if training.steps == 2:
            signal.raise_signal(signal.SIGTERM)
        return loss(training, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(RegressorTraining, "loss", hit)
        assert train(*keys, f"out={tmp_path / 'o'}") == 143
    assert "is of step 3;" in capsys.readouterr().err
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    config["wear"] = config.pop("augment")
    config["loss"]["spread"] = config["loss"].pop("intra_inter_ratio")
    (tmp_path / "o" / "config.json").write_text(json.dumps(config))
    assert train(*keys, f"out={tmp_path / 'o'}") == 0
    printed = capsys.readouterr()
    assert "goes on from step 3" in printed.out and "unknown" not in printed.err
    same(state_of(tmp_path / "w"), state_of(tmp_path / "o"))
    rows = [
        [{k: v for k, v in row.items() if k not in ("images_per_second", "eta_minutes")} for row in read_metrics(path)]
        for path in (tmp_path / "w" / "metrics.jsonl", tmp_path / "o" / "metrics.jsonl")
    ]
    assert rows[0] == rows[1] and [row["images"] for row in rows[0]] == [16, 32, 32]
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_asked_to_end_it_keeps_its_last_step(tmp_path, cache, same) -> None:
    """SIGTERM in the loop: a checkpoint of that step, status 143; the same command ends as an untouched run."""
    out = tmp_path / "o"
    keys = [*TINY, f"cache={cache}", "kimg=0.4", "snapshot_kimg=10"]
    command = [sys.executable, str(SCRIPT), *keys, f"out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "the last checkpoint in" in errors and "run the same command again" in errors
    assert 0 < state_of(out)["step"] < 50
    assert train(*keys[len(TINY) :], f"out={out}") == 0
    assert train(*keys[len(TINY) :], f"out={tmp_path / 'w'}") == 0
    same(state_of(out), state_of(tmp_path / "w"))
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_two_processes_of_the_script(tmp_path) -> None:
    """torchrun: each rank renders its shards and learns from its part; the weights are those of one process."""
    keys = [*TINY, "batch=32", "kimg=0.128", "synthetic.cached=600", "measure=0", "augment.group=16"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command, out in ((launch, "two"), ([sys.executable], "one")):
        done = subprocess.run(
            [*command, str(SCRIPT), *keys, f"out={tmp_path / out}"], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert one["step"] == two["step"] == 4
    for name, value in one["network"].items():
        assert torch.allclose(two["network"][name].float(), value.float(), atol=2e-3), name


def test_help(capsys) -> None:
    assert train("--help") == 0
    text = capsys.readouterr().out
    assert "torchrun" in text and "augment" in text and "truncation" in text
