"""A folder run that is stopped, in any way and at any moment, ends with the files of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageOps

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "astronaut.jpg"
QUICK = "export=[texture]"
PER_RUN = {"config.json", "metrics.jsonl", "completed.jsonl", "failures.jsonl", "index.html", ".lock"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, fit_models) -> Path:
    """Three faces in two batches, and a file between them that is no photo."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(SAMPLE) as image:
        image.save(folder / "a.png")
        ImageOps.mirror(image).save(folder / "b.png")
        (folder / "c.png").write_text("not a picture")
        ImageEnhance.Brightness(image).enhance(0.7).save(folder / "d.png")
    return folder


def keys(photos: Path, out: Path, *overrides: str) -> list[str]:
    return [
        f"img={photos}",
        f"out={out}",
        "fitting=smoke",
        "decoder=linear",
        "batch=2",
        "threads=1",
        "device=cpu",
        *overrides,
    ]


def start(photos: Path, out: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "fit" / "reconstruct.py"), *keys(photos, out, *overrides)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    """A shell starts background jobs, and so perhaps these tests, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and what was written on standard error."""
    try:
        _, errors = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def content(folder: Path) -> dict[str, bytes | list]:
    """{relative path: bytes}, of record files their rows without the seconds; temporary files left out."""
    found: dict = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock" and path.suffix != ".part":
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    for name in ("metrics.jsonl", "completed.jsonl", "failures.jsonl"):
        if name in found:
            rows = [json.loads(line) for line in found[name].decode().splitlines()]
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return found


def differing(a: dict, b: dict) -> list[str]:
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def check_whole(out: Path, undisturbed: dict) -> None:
    """No half-written file has its final name: each that is there is the one of the undisturbed run."""
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_file() and path.name not in PER_RUN and path.suffix != ".part":
            assert path.read_bytes() == undisturbed[name], name


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    stop = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < stop
        time.sleep(0.01)


def rows(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("undisturbed")
    status, errors = end(start(photos, out, QUICK))
    assert status == 1 and "c.png" in errors
    return content(out)


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(photos, undisturbed, run_script, tmp_path) -> None:
    out = tmp_path / "out"
    completed = out / "completed.jsonl"

    # Ctrl-C after the first batch; while it runs, a second run into the folder is refused
    first = start(photos, out, QUICK)
    wait_for(lambda: (out / ".lock").exists(), first)
    second = run_script("fit/reconstruct.py", *keys(photos, out, QUICK))
    assert second.returncode == 2
    assert f"is being written by another run (process {first.pid} on " in second.stderr
    wait_for(lambda: rows(completed) == 2, first)
    os.killpg(first.pid, signal.SIGINT)
    status, errors = end(first)
    assert status == 130, errors
    assert "2 of 4 photo(s) are finished" in errors and "run the same command again" in errors
    assert "Traceback" not in errors
    assert not (out / ".lock").exists()
    check_whole(out, undisturbed)

    # killed while the second batch is written
    killed = start(photos, out, QUICK)
    wait_for(lambda: (out / "d").exists(), killed)
    kill(killed)
    assert rows(completed) == 2 and (out / ".lock").exists()
    check_whole(out, undisturbed)
    (out / "d" / ".head.glb.abcdefgh.part").write_bytes(b"half")
    with open(out / "metrics.jsonl", "a") as file:  # a line that a crash cut short, and one of a face that is not done
        file.write('{"item": "d", "metrics": {}}\n{"item": "d", "met')

    status, errors = end(start(photos, out, QUICK))
    assert status == 1, errors
    assert differing(content(out), undisturbed) == []
    assert not list(out.rglob("*.part")) and not list(out.rglob(".lock"))


@pytest.mark.slow
def test_killed_at_twenty_random_moments(photos, tmp_path) -> None:
    """All exports; about six minutes on two cores."""
    seed = int(os.environ.get("FACERECON_RESTART_SEED", "0"))
    draw = random.Random(seed)
    began = time.monotonic()
    reference = tmp_path / "reference"
    assert end(start(photos, reference))[0] == 1
    length = time.monotonic() - began
    undisturbed = content(reference)
    out, kills, ends = tmp_path / "out", 0, 0
    print(f"seed {seed}; an undisturbed run takes {length:.1f} s")
    while kills < 20:
        process = start(photos, out)
        time.sleep(draw.uniform(0.2, 1.0) * length)
        if process.poll() is None:
            kill(process)
            kills += 1
            check_whole(out, undisturbed)
            leftovers = len(list(out.rglob("*.part")))
            print(f"kill {kills}: {rows(out / 'completed.jsonl')} photos done, {leftovers} temporary files")
            continue
        assert end(process)[0] in (0, 1)
        assert differing(content(out), undisturbed) == []
        ends += 1
        shutil.rmtree(out)
    status, errors = end(start(photos, out))
    assert status == 1, errors
    assert differing(content(out), undisturbed) == []
    assert not list(out.rglob("*.part")) and not list(out.rglob(".lock"))
    print(f"{kills} kills, {ends + 1} finished runs, each with the files of the undisturbed one")
