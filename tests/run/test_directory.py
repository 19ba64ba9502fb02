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
    with pytest.raises(ConfigError, match=r"differs: fitting\.steps, seed"):
        RunDirectory(tmp_path, {**CONFIG, "seed": 1, "fitting": {"steps": 5, "weights": [1.0, 2.0]}}, resume=True)


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
