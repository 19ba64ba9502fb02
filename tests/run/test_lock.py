"""One run at a time in a folder; no lock outlives its process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from facerecon.errors import ConfigError, OutputError
from facerecon.run import MetricsWriter, RunDirectory
from facerecon.run.lock import FolderLock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from facerecon.run.lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_holder_is_named_and_its_death_frees_the_folder(tmp_path, holder):
    with pytest.raises(
        ConfigError, match=rf"is being written by another run \(process {holder.pid} on .*, since "
    ) as e:
        FolderLock(tmp_path).__enter__()
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match=rf"process {holder.pid} on "):  # the one before has not wiped the name
        FolderLock(tmp_path).__enter__()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=rf"process {holder.pid} on "):  # to begin anew removes nothing under it
        RunDirectory(tmp_path, overwrite=True)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("left", ["", "{", '{"pid": 1}', '{"pid": 1, "host": "h", "started": "s"}'])
def test_a_file_that_was_left_blocks_nothing(tmp_path, left):
    (tmp_path / ".lock").write_text(left)
    with FolderLock(tmp_path), pytest.raises(ConfigError, match="another run"):
        FolderLock(tmp_path).__enter__()  # of the same process, through another handle
    with FolderLock(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_refused_and_its_target_untouched(tmp_path):
    (tmp_path / "precious").write_text("of the user")
    (tmp_path / "run").mkdir()
    for target in (tmp_path / "precious", tmp_path / "not there yet"):
        (tmp_path / "run" / ".lock").symlink_to(target)
        with pytest.raises(OutputError, match=r"run/\.lock cannot be written .*symbolic link.*remove it") as e:
            FolderLock(tmp_path / "run").__enter__()
        assert "\n" not in str(e.value)
        (tmp_path / "run" / ".lock").unlink()
    assert (tmp_path / "precious").read_text() == "of the user" and not (tmp_path / "not there yet").exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "completed.jsonl", "failures.jsonl", "checkpoints"])
@pytest.mark.parametrize("mode", ["resume", "overwrite"])
def test_records_that_are_links_are_refused_and_their_targets_untouched(tmp_path, name, mode):
    RunDirectory(tmp_path / "run", {})
    place, target = tmp_path / "run" / name, tmp_path / "target"
    if name == "checkpoints":
        target.mkdir()
        (target / "step-000000001.safetensors").write_text("of the user")
    elif place.exists():
        place.rename(target)
    else:
        target.write_text('{"item": "of the user"}\n')
    before = sorted((p.name, p.read_text()) for p in target.rglob("*")) or target.read_text()
    place.symlink_to(target)
    with pytest.raises(OutputError, match=rf"{name} cannot be written .*symbolic link.*remove it") as e:
        RunDirectory(tmp_path / "run", {}, **{mode: True})
    assert "\n" not in str(e.value)
    assert before == (sorted((p.name, p.read_text()) for p in target.rglob("*")) or target.read_text())
    if name.endswith(".jsonl"):  # one that comes while the run is at it
        with pytest.raises(OutputError, match="symbolic link"):
            MetricsWriter(place).write(step=1)
        assert target.read_text() == before


def test_what_a_link_leads_to_is_not_cleared_away(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".head.glb.abcdefgh.part").write_text("of another run")
    RunDirectory(tmp_path / "run", {})
    (tmp_path / "run" / "linked").symlink_to(tmp_path / "elsewhere")
    with RunDirectory(tmp_path / "run", {}, resume=True).alone():
        assert (tmp_path / "elsewhere" / ".head.glb.abcdefgh.part").exists()


def test_a_place_that_cannot_be_locked_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot be written"):
            FolderLock(path).__enter__()


def test_a_disk_without_locks_warns(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):  # what the first left does not block the second
        with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"):
            FolderLock(tmp_path).__enter__()
    assert (tmp_path / ".lock").exists()


def test_what_a_killed_run_left_is_mended(tmp_path):
    run = RunDirectory(tmp_path, {})
    run.metrics.write_rows([{"item": "a", "loss": 1}, {"item": "b_0"}, {"item": "b_1"}, {"item": "c"}])
    run.complete_all({"a": {"settings": 1}, "b": {"settings": 1, "parts": ["b_0", "b_1"]}})
    for record in ("metrics", "completed", "failures"):
        with open(tmp_path / f"{record}.jsonl", "a") as file:
            file.write('{"item": "d", "mess')
    (tmp_path / "c").mkdir()
    for path in (tmp_path / ".config.json.abcd_1x9.part", tmp_path / "c" / ".head.glb.abcdefgh.part"):
        path.write_text("half")
    (tmp_path / "c" / "notes.part").write_text("of the user")
    (tmp_path / "c" / ".hidden").write_text("of the user")
    with RunDirectory(tmp_path, {}, resume=True).alone() as again:
        assert [row["item"] for row in again.metrics.read()] == ["a", "b_0", "b_1"]
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [".hidden", "notes.part"]
        assert (tmp_path / "completed.jsonl").read_text().count("\n") == 2
        assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


def test_records_end_as_if_nothing_had_happened(tmp_path):
    run = RunDirectory(tmp_path, {})
    for error in ("first", "second"):
        run.fail("z", OutputError(error))
        run.fail("b", OutputError(error))
        run.fail("c", OutputError(error))
    run.metrics.write_rows([{"item": "a", "loss": 1}, {"item": "a", "loss": 2}, {"note": "stays?"}])
    run.complete_all({"a": {"settings": 1}, "c": {}})
    run.complete_all({"a": {"settings": 2}})
    run.tidy(["a", "b", "c", "z"])
    assert run.metrics.read() == [{"item": "a", "loss": 2}, {"note": "stays?"}]
    assert run.completed() == {"c": {}, "a": {"settings": 2}}
    assert run.failures() == {"b": "second", "z": "second"}
    assert list(run.failures()) == ["b", "z"] and run.failure_kinds() == {"b": "OutputError", "z": "OutputError"}
    run.forget_failures(["z"])
    assert run.failures() == {"b": "second"}


LIMITED = """
import os, resource, sys
from facerecon.errors import OutputError
from facerecon.run import MetricsWriter
from facerecon.storage import write_whole
out = sys.argv[1]
write_whole(out + "/whole", b"old")
metrics = MetricsWriter(out + "/metrics.jsonl")
metrics.write(step=1, text="x" * 900)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda: write_whole(out + "/whole", bytes(2000)), lambda: metrics.write(step=2, text="x" * 900)):
    try:
        write()
    except OutputError as error:
        print(error)
print(sorted(os.listdir(out)), open(out + "/whole").read(), metrics.read()[0]["step"], len(metrics.read()))
print(open(out + "/metrics.jsonl").read().count("\\n"), open(out + "/metrics.jsonl").read()[-2:] == "}\\n")
"""


def test_a_full_disk_leaves_whole_files_and_whole_lines(tmp_path):
    """A limit on the size of files stands in for the disk: it too takes a part of a write before it refuses."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    whole, line, files, text = run.stdout.splitlines()
    assert "whole cannot be written (File too large)" in whole and "metrics.jsonl cannot be written" in line
    assert files == "['metrics.jsonl', 'whole'] old 1 1"
    assert text == "1 True"
