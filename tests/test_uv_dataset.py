"""train/uv_dataset.py on a bad folder, killed at random moments, and by another engine."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ("makehuman", "mobile_stylegan", "face_detector", "landmarks68", "facemesh478", "identity128", "faceres1024",
          "expression7", "age_gender", "bisenet")  # fmt: skip
PLAIN = ("editing=false", "multi_view=false", "check=false", "size=64")  # a second a subject
TIMES = {"seconds", "seconds_a_subject"}


@pytest.fixture(scope="module", autouse=True)
def _assets() -> None:
    from facerecon import assets
    from facerecon.errors import AssetError

    try:
        for name in ASSETS:
            assets.locate(name)
    except AssetError as error:
        pytest.skip(str(error))


def start(out: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train" / "uv_dataset.py"), f"out={out}", "workers=1", *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finished(process: subprocess.Popen, timeout: float = 500) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed


def plain(value):
    """Without what a clock measured."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    return [plain(item) for item in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, object]:
    """{relative path: bytes}; records as their rows, in any order, without times."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".jsonl":
            rows = [json.dumps(plain(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines()]
            found[name] = sorted(rows)
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text()))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def differing(a: dict, b: dict) -> list[str]:
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def rows(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def killed_again_and_again(tmp_path: Path, items: int, kills: int) -> None:
    """Kill a run after it has finished a few more items, or none, at an arbitrary moment; then let it end."""
    reference, out = tmp_path / "reference", tmp_path / "out"
    status, printed = finished(start(reference, f"n={items}", *PLAIN))
    assert status == 0, printed
    undisturbed = content(reference)
    draw = random.Random(int(os.environ.get("FACERECON_RESTART_SEED", "0")))
    most = max(1, 2 * items // (kills + 1))
    done = 0
    while done < kills:
        process = start(out, f"n={items}", *PLAIN)
        goal = rows(out / "completed.jsonl") + draw.randint(0, most)
        stop = time.monotonic() + 200
        while process.poll() is None and rows(out / "completed.jsonl") < goal and time.monotonic() < stop:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 1.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            finals = [p for p in out.rglob("*") if p.is_file() and p.suffix in (".png", ".npy", ".safetensors")]
            for path in finals:
                assert path.read_bytes() == undisturbed[path.relative_to(out).as_posix()], path
            print(
                f"kill {done}: {rows(out / 'completed.jsonl')} of {items} done, {len(list(out.rglob('*.part')))} parts"
            )
        else:  # it ended before the kill
            assert finished(process)[0] == 0 and differing(content(out), undisturbed) == []
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
    status, printed = finished(start(out, f"n={items}", *PLAIN))
    assert status == 0, printed
    assert differing(content(out), undisturbed) == []


def test_interrupted_at_a_file_it_ends_with_the_same_files(run_script, monkeypatch, tmp_path):
    """In the second subject a file is not written to the end; another process left half of one, too."""
    reference, out = tmp_path / "reference", tmp_path / "out"
    keys, sync, written = ("n=2", "workers=1", *PLAIN), os.fsync, []
    assert run_script("train/uv_dataset.py", f"out={reference}", *keys).returncode == 0
    undisturbed = content(reference)

    def stop(handle: int) -> None:
        written.extend([handle] * rows(out / "completed.jsonl"))  # once for each file after the first subject's
        if len(written) == 3:
            raise KeyboardInterrupt
        sync(handle)

    monkeypatch.setattr(os, "fsync", stop)
    run = run_script("train/uv_dataset.py", f"out={out}", *keys)
    assert run.returncode == 130 and rows(out / "completed.jsonl") == 1, run.stderr
    for path in out.rglob("*"):
        if path.suffix in (".png", ".npy", ".safetensors"):
            assert path.read_bytes() == undisturbed[path.relative_to(out).as_posix()], path
    (out / "uv-maps" / ".000001.png.abcdefgh.part").write_bytes(b"half")
    assert run_script("train/uv_dataset.py", f"out={out}", *keys).returncode == 0
    assert differing(content(out), undisturbed) == []


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    """Forty subjects; about ten minutes on two cores."""
    killed_again_and_again(tmp_path, items=40, kills=20)


@pytest.fixture
def bad_folder(tmp_path_factory) -> Path:
    """A portrait, a group, a cat, an empty file, a cut-off picture, and a text with a picture's name."""
    skimage = pytest.importorskip("skimage.data", reason="the cat is scikit-image's")
    folder = tmp_path_factory.mktemp("portraits")
    with Image.open(ROOT / "samples" / "astronaut.jpg") as portrait:
        portrait.load()
    portrait.save(folder / "portrait.jpg")
    group = Image.new("RGB", (2 * portrait.width, portrait.height), "gray")
    group.paste(portrait.resize((portrait.width * 3 // 4, portrait.height * 3 // 4)), (0, 0))
    group.paste(ImageOps.mirror(portrait), (portrait.width, 0))
    group.save(folder / "group.jpg")
    Image.fromarray(skimage.chelsea()).save(folder / "cat.png")
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes((folder / "portrait.jpg").read_bytes()[:5000])
    (folder / "text.png").write_text("not a picture")
    (folder / "notes.txt").write_text("no photo's name")
    return folder


INVERSION = ("source=photos", "inversion.w_steps=2", "inversion.plus_steps=1")


def test_a_bad_folder_finishes_with_reasons(bad_folder, run_script, tmp_path):
    """Exit status 1, a map for each usable photo, one line for each other."""
    run = run_script("train/uv_dataset.py", f"out={tmp_path}", "workers=1", f"dir={bad_folder}", *INVERSION, *PLAIN)
    printed = run.stdout + run.stderr
    assert run.returncode == 1, printed
    assert "2 map(s) of 6 subject(s)" in printed and "4 failed" in printed
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    failures = {row["item"]: row["message"] for row in lines}
    names = sorted(path.name for path in bad_folder.iterdir() if path.suffix != ".txt")
    reasons = {names[int(item)]: error for item, error in failures.items()}
    assert sorted(reasons) == ["cat.png", "cut.jpg", "empty.jpg", "text.png"]
    assert "no face found" in reasons["cat.png"]
    assert all("\n" not in line and name in line for name, line in reasons.items())
    maps = sorted(int(path.stem) for path in (tmp_path / "uv-maps").iterdir())
    assert [names[i] for i in maps] == ["group.jpg", "portrait.jpg"]
    page = (tmp_path / "index.html").read_text()
    assert "cat.png" in page and "no face found" in page


@pytest.mark.slow
def test_a_folder_that_changed(bad_folder, tmp_path):
    """A second run tries the failed photos alone; one after a change gives what a fresh one does."""
    quick = (f"dir={bad_folder}", *INVERSION, *PLAIN)
    assert finished(start(tmp_path, *quick))[0] == 1
    before = content(tmp_path)
    status, printed = finished(start(tmp_path, *quick))
    assert status == 1 and "4 subject(s) in" in printed
    assert differing(content(tmp_path), before) == []

    # another face where the cat was, and the group is gone: every later photo has another number
    ImageOps.mirror(Image.open(bad_folder / "portrait.jpg")).save(bad_folder / "cat.png")
    (bad_folder / "group.jpg").unlink()
    status, printed = finished(start(tmp_path, *quick))
    assert status == 1 and "2 map(s) of 5 subject(s)" in printed, printed
    status, printed = finished(start(tmp_path / "fresh", *quick))
    fresh = content(tmp_path / "fresh")
    assert differing({name: v for name, v in content(tmp_path).items() if not name.startswith("fresh/")}, fresh) == []


def test_ray_makes_the_same_maps(tmp_path):
    pytest.importorskip("ray", reason="the optional engine (pip install 'facerecon[ray]') is not installed")
    alone = start(tmp_path / "local", "n=2", *PLAIN)
    assert finished(alone)[0] == 0
    status, printed = finished(start(tmp_path / "ray", "n=2", "engine=ray", *PLAIN))
    assert status == 0, printed
    different = differing(content(tmp_path / "local"), content(tmp_path / "ray"))
    assert [name for name in different if not name.endswith((".json", ".html"))] == []
