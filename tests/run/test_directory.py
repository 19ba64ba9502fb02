"""The run's folder: config, resume, items, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facerecon.errors import ConfigError, InputError, OutputError
from facerecon.run import RunDirectory
from facerecon.run.directory import file_digest, folder_name, folder_names

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
    first = {"size": 8, "rate": {"of": [1e-3, 0.9]}, "kimg": 1, "pretrain": {"kimg": 1.0, "batch": 4}, "data": "a"}
    written = RunDirectory(tmp_path, first).path / "config.json"
    again = {"resume": True, "fixed": ("size", "maps")}
    later = first | {"kimg": 2, "pretrain": {"kimg": 3.0, "batch": 4}, "data": "b", "out": "elsewhere"}
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


def test_a_run_of_items_records_its_last_configuration(tmp_path):
    """Also one of an earlier version, which recorded the script alone; a folder of another script is refused."""
    RunDirectory(tmp_path, {"script": "fit"})
    again = {"resume": "items", "fixed": ("script",)}
    for config in ({"script": "fit", "steps": 1}, {"script": "fit", "steps": 2}):
        with RunDirectory(tmp_path, config, **again).alone():
            assert json.loads((tmp_path / "config.json").read_text()) == config
    for other in ({"script": "train"}, {"kimg": 1}):
        RunDirectory(tmp_path / str(len(other)), other, overwrite=True)
        with pytest.raises(ConfigError, match=r"cannot go on with what changed \(script .* -> \"fit\"\)"):
            RunDirectory(tmp_path / str(len(other)), config, **again)


def test_resume_without_a_run_begins_one(tmp_path):
    assert not RunDirectory(tmp_path, CONFIG, resume=True).resumed
    assert RunDirectory(tmp_path, CONFIG, resume=True).resumed


def test_overwrite_begins_anew_and_keeps_results_until_replaced(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    run.complete("a.jpg")
    run.metrics.write(step=1)
    run.checkpoints.save(1, {"x": torch.ones(1)})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "panel.png").write_text("old")
    again = RunDirectory(tmp_path, {"seed": 9}, overwrite=True)
    assert again.completed() == {} and again.metrics.read() == [] and again.checkpoints.latest() is None
    assert (tmp_path / "a" / "panel.png").exists()
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 9}


def test_items_are_done_once_and_failures_are_tried_again(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    run.complete("a.jpg", seconds=torch.tensor(1.5))
    run.fail("b.jpg", InputError("no face was found"))
    run.fail("c.jpg", "text\nwith two lines")
    resumed = RunDirectory(tmp_path, CONFIG, resume=True)
    assert resumed.completed() == {"a.jpg": {"seconds": 1.5}}
    assert resumed.failures() == {"b.jpg": "no face was found", "c.jpg": "text"}
    resumed.complete("b.jpg")
    assert resumed.failures() == {"c.jpg": "text"}


def test_a_crash_while_marking_does_not_lose_the_others(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    run.complete("a.jpg")
    with open(tmp_path / "completed.jsonl", "a") as file:
        file.write('{"item": "b.j')
    resumed = RunDirectory(tmp_path, CONFIG, resume=True)
    assert set(resumed.completed()) == {"a.jpg"}
    resumed.complete("b.jpg")
    assert set(resumed.completed()) == {"a.jpg", "b.jpg"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written .*choose another folder"):
        RunDirectory(tmp_path / "file" / "run")


def named(*paths, done=None, numbered=False):
    """{path: folder} of photos that differ: the content is the path."""
    return {str(p): n for p, n in folder_names({Path(p): digest(p) for p in paths}, done, numbered).items()}


def digest(text):
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def test_names_are_stems_where_they_can_be():
    assert named("p/ada.jpg", "p/x.jpg", "p/x.png") == {"p/ada.jpg": "ada", "p/x.jpg": "x.jpg", "p/x.png": "x.png"}
    two = named("a/I_1.jpg", "b/I_1.jpg", "c/other.jpg")
    assert two == {p: f"I_1-{digest(p)[:12]}" for p in ("a/I_1.jpg", "b/I_1.jpg")} | {"c/other.jpg": "other"}
    assert len({name.casefold() for name in named("IMG.jpg", "img.jpg").values()}) == 2
    assert named("...jpg")["...jpg"] in ("item", "jpg")  # as Python's stem has it
    assert named("config.json.png", "a\nb.jpg", "caf\udce9.jpg") == {
        "config.json.png": "config.json.png", "a\nb.jpg": "a_b", "caf\udce9.jpg": "caf_",
    }  # fmt: skip
    copies = folder_names({Path("a/x.jpg"): "1", Path("b/x.jpg"): "1"})
    assert set(copies.values()) == {"x"}


STEMS = st.sampled_from(
    ["a", "A", "a_0", "a_1", "a_0_1", "..", ".", "", " ", "checkpoints", "é", "e\u0301", "caf\udce9", "x" * 240]
)

PHOTOS = st.tuples(st.sampled_from("pq"), STEMS, st.sampled_from([".jpg", ".png"]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    photos=st.lists(PHOTOS, max_size=7, unique=True),
    numbered=st.booleans(), data=st.data(),
)  # fmt: skip
def test_folders_never_meet_and_do_not_depend_on_the_order(photos, numbered, data):
    """Whatever is called what, in one run and in a later one with other photos, faces and settings."""
    paths = [f"{where}/{stem}{ending}" for where, stem, ending in photos]
    names = named(*paths, numbered=numbered)
    assert named(*data.draw(st.permutations(paths)), numbered=numbered) == names
    faces = {path: data.draw(st.integers(1, 3)) if numbered else 1 for path in paths}

    def folders(names):
        return {p: [n] if faces[p] == 1 else [f"{n}_{i}" for i in range(faces[p])] for p, n in names.items()}

    def check(names):
        every = [name.casefold() for of in folders(names).values() for name in of]
        assert len(set(every)) == len(every)
        for name in every:
            assert name.isprintable() and len(name.encode()) < 256 and "/" not in name
            assert not name.startswith(".") and name not in ("", "checkpoints", "config.json")

    check(names)
    first = paths[: data.draw(st.integers(0, len(paths)))]
    early = named(*first, numbered=numbered)
    done = {
        name: {"content": digest(path), "path": path} | ({"parts": folders(early)[path]} if faces[path] > 1 else {})
        for path, name in early.items()
    }
    later = named(*paths, done=done, numbered=numbered)
    assert {path: later[path] for path in first} == early  # what is finished stays where it is
    check(later)


def test_a_photo_is_known_by_its_content():
    done = {"I_1": {"content": digest("a/I_1.jpg"), "path": "a/I_1.jpg"}}
    assert named("a/I_1.jpg", done=done) == {"a/I_1.jpg": "I_1"}
    assert named("b/I_1.jpg", done=done) == {"b/I_1.jpg": "I_1.jpg"}  # another photo of that name
    moved = {Path("b/I_1.jpg"): digest("a/I_1.jpg"), Path("a/I_1.jpg"): "new"}
    assert list(folder_names(moved, done).values()) == ["I_1", "I_1-new"]
    assert folder_names({Path("a/I_1.jpg"): "new"}, done) == {Path("a/I_1.jpg"): "I_1"}  # replaced under its path
    old = {"I_1": {"path": "a/I_1.jpg"}}  # of a run that kept no content
    assert named("a/I_1.jpg", "b/I_1.jpg", done=old)["a/I_1.jpg"] == "I_1"
    assert named("b/I_1.jpg", done=old) == {"b/I_1.jpg": "I_1.jpg"}


def test_faces_of_one_photo_leave_other_photos_their_folders():
    assert named("group.jpg", "group_0.jpg", numbered=True) == {"group.jpg": "group", "group_0.jpg": "group_0.jpg"}
    group = {"content": digest("group.jpg"), "path": "group.jpg"}
    single = {"group_0": {"content": digest("group_0.jpg"), "path": "group_0.jpg"}}
    assert named("group_0.jpg", done={"group": group | {"parts": ["group_0", "group_1"]}}) == {
        "group_0.jpg": "group_0.jpg"
    }
    assert named("group.jpg", done=single, numbered=True) == {"group.jpg": "group.jpg"}
    assert named("group.jpg", done=single | {"group": group}, numbered=True) == {"group.jpg": "group.jpg"}


def test_what_cannot_be_read_has_a_digest_of_its_own(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    digests = [file_digest(tmp_path / name) for name in ("a", "none", "other")]
    assert len(set(digests)) == 3 and digests[0] == digest("x")
    assert folder_name("é" * 200) == "é" * 100


def test_a_run_of_before_keys_were_renamed_goes_on(tmp_path) -> None:
    aliases = {"warm.rate": "pretrain.lr", "warm.": "pretrain.", "stark": None}
    RunDirectory(tmp_path, {"warm": {"rate": 0.1, "batch": 8}, "stark": 0.0})
    new = {"pretrain": {"lr": 0.1, "batch": 8}}
    assert RunDirectory(tmp_path, new, resume=True, aliases=aliases).resumed
    with pytest.raises(ConfigError, match=r"pretrain\.lr 0\.1 -> 0\.2"):
        RunDirectory(tmp_path, {"pretrain": {"lr": 0.2, "batch": 8}}, resume=True, aliases=aliases)
    with pytest.raises(ConfigError, match="cannot go on"):
        RunDirectory(tmp_path, new, resume=True)
