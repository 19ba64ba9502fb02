"""The run's folder: config, resume, items, failures."""

from __future__ import annotations

import json

import pytest
import torch

from facerecon.errors import ConfigError, InputError, OutputError
from facerecon.run import RunDirectory

CONFIG = {"seed": 0, "fitting": {"steps": 100, "weights": (1.0, 2.0)}, "device": "cpu"}


def test_a_new_run_writes_its_config(tmp_path):
    run = RunDirectory(tmp_path / "a" / "b", CONFIG)
    assert not run.resumed
    written = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert written == {"seed": 0, "fitting": {"steps": 100, "weights": [1.0, 2.0]}, "device": "cpu"}
    assert [p.name for p in run.path.iterdir()] == ["config.json"]


def test_a_folder_with_a_run_is_not_overwritten_by_accident(tmp_path):
    RunDirectory(tmp_path, CONFIG).complete("a.jpg")
    with pytest.raises(ConfigError, match="already holds a run; continue it with resume=true"):
        RunDirectory(tmp_path, CONFIG)
    assert RunDirectory(tmp_path, CONFIG, resume=True).completed() == {"a.jpg": {}}


def test_resume_needs_the_same_configuration(tmp_path):
    RunDirectory(tmp_path, CONFIG)
    RunDirectory(tmp_path, {**CONFIG, "device": "cuda", "resume": True}, resume=True)
    for resume in (True, "force"):
        with pytest.raises(ConfigError, match=r"cannot go on .*\(fitting\.steps 100 -> 5, seed 0 -> 1, x null -> 2\)"):
            other = {**CONFIG, "seed": 1, "x": 2, "fitting": {"steps": 5, "weights": [1.0, 2.0]}}
            RunDirectory(tmp_path, other, resume=resume)


def test_a_change_is_named_and_forced_or_refused(tmp_path):
    """Rates change by force, sizes never; the last configuration is what the next start is held against."""
    first = {"size": 8, "rate": {"of": [1e-3, 0.9]}, "kimg": 1, "warm": {"kimg": 1.0, "batch": 4}, "data": "a"}
    written = RunDirectory(tmp_path, first).path / "config.json"
    again = {"resume": True, "fixed": ("size", "maps")}
    later = first | {"kimg": 2, "warm": {"kimg": 3.0, "batch": 4}, "data": "b", "out": "elsewhere"}
    RunDirectory(tmp_path, later, **again)
    other = later | {"rate": {"of": [2e-3, 0.9]}}
    with pytest.raises(ConfigError, match=r"\(rate\.of \[0\.001, 0\.9\] -> \[0\.002, 0\.9\]\).*resume=force"):
        RunDirectory(tmp_path, other, **again)
    assert json.loads(written.read_text()) == first
    with pytest.warns(UserWarning, match=r"goes on with what changed \(rate\.of "):
        forced = RunDirectory(tmp_path, other, **again | {"resume": "force"})
    assert json.loads(written.read_text()) == first  # nothing is written before the folder is held
    with forced.alone():
        assert json.loads(written.read_text()) == other
    RunDirectory(tmp_path, other, **again)
    for resume in (True, "force"):
        with pytest.raises(ConfigError, match=r"cannot go on with what changed \(size 8 -> 16\)"):
            RunDirectory(tmp_path, other | {"size": 16}, fixed=("size",), resume=resume)


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """It recorded fewer keys: one line says so, once; what it did record is compared."""
    RunDirectory(tmp_path, {"size": 8})
    config = {"size": 8, "rate": 1.0, "maps": {"files": 2, "content": "ab"}, "logger": "none"}
    with pytest.raises(ConfigError, match="size 8 -> 9"):
        RunDirectory(tmp_path, config | {"size": 9}, resume=True, fixed=("size", "maps"))
    with (
        pytest.warns(UserWarning, match="earlier version, which did not record rate, maps; whether they changed"),
        RunDirectory(tmp_path, config, resume=True, fixed=("size", "maps")).alone(),
    ):
        pass
    RunDirectory(tmp_path, config, resume=True, fixed=("size", "maps"))
    with pytest.raises(ConfigError, match=r"\(maps\.content \"ab\" -> \"cd\", maps\.files 2 -> 3\)"):
        other = config | {"maps": {"files": 3, "content": "cd"}}
        RunDirectory(tmp_path, other, resume="force", fixed=("size", "maps"))


def test_resume_without_a_run_begins_one(tmp_path):
    assert not RunDirectory(tmp_path, CONFIG, resume=True).resumed
    assert RunDirectory(tmp_path, CONFIG, resume=True).resumed


def test_overwrite_begins_anew_and_keeps_results_until_replaced(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    run.complete("a.jpg")
    run.metrics.write(step=1)
    run.checkpoints.save(1, {"x": torch.ones(1)})
    (run.folder("a.jpg") / "panel.png").write_text("old")
    again = RunDirectory(tmp_path, {"seed": 9}, overwrite=True)
    assert again.completed() == {} and again.metrics.read() == [] and again.checkpoints.latest() is None
    assert (tmp_path / "a" / "panel.png").exists()
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 9}


def test_items_are_done_once_and_failures_are_tried_again(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    items = ["a.jpg", "b.jpg", "c.jpg"]
    run.complete("a.jpg", seconds=torch.tensor(1.5))
    run.fail("b.jpg", InputError("no face was found"))
    run.fail("c.jpg", "text\nwith two lines")
    resumed = RunDirectory(tmp_path, CONFIG, resume=True)
    assert resumed.completed() == {"a.jpg": {"seconds": 1.5}}
    assert resumed.failures() == {"b.jpg": "no face was found", "c.jpg": "text"}
    assert resumed.pending(items) == ["b.jpg", "c.jpg"]
    resumed.complete("b.jpg")
    assert resumed.failures() == {"c.jpg": "text"}
    assert resumed.summary().splitlines() == [f"2 done, 1 failed: {tmp_path}", "  c.jpg: text"]


def test_a_crash_while_marking_does_not_lose_the_others(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    run.complete("a.jpg")
    with open(tmp_path / "completed.jsonl", "a") as file:
        file.write('{"item": "b.j')
    resumed = RunDirectory(tmp_path, CONFIG, resume=True)
    assert resumed.pending(["a.jpg", "b.jpg"]) == ["b.jpg"]
    resumed.complete("b.jpg")
    assert set(resumed.completed()) == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize(
    "item, name",
    [
        ("photos/a b.jpg", "a_b"),
        ("../../etc/passwd", "passwd"),
        ("..", "item"),
        ("März.png", "März"),
        ("x.y.jpg", "x.y"),
    ],
)
def test_item_folders_stay_inside(tmp_path, item, name):
    run = RunDirectory(tmp_path / "out")
    folder = run.folder(item)
    assert folder == tmp_path / "out" / name and folder.is_dir()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written .*choose another folder"):
        RunDirectory(tmp_path / "file" / "run")
