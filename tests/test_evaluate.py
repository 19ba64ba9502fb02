"""fit/evaluate.py: what is kept, what fails, what is written; and, slowly, a sweep that is killed and goes on."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from facerecon.configs.compose import compose, run
from facerecon.errors import InputError, NoFaceError
from facerecon.fit import evaluation_parts as parts
from facerecon.fit.evaluate import Sweep, main
from facerecon.fit.evaluation_report import MARKS, _arguments, write_evaluation
from facerecon.run import RunDirectory

ROOT = Path(__file__).resolve().parents[1]


class Bar:
    """A progress bar that says nothing."""

    def update(self, count: int) -> None: ...
    def set_postfix_str(self, text: str) -> None: ...
    def write(self, text: str, file: Any = None) -> None: ...


def sweep(folder: Path, *overrides: str) -> Sweep:
    made = Sweep(
        compose("evaluate", [f"out={folder}", *overrides]), RunDirectory(folder, {"script": "evaluate"}, resume=True)
    )
    made.bar = Bar()
    return made


def errors(value: float) -> dict[str, float]:
    return {"nose": value - 0.1, "mouth": value + 0.2, "forehead": value - 0.4, "cheek": value + 0.3}


# -- items -----------------------------------------------------------------------------------------------------


def test_an_item_is_measured_once_and_again_when_its_settings_change(tmp_path) -> None:
    calls = []

    def work() -> dict:
        calls.append(1)
        return {"metrics": {"a": 1.5}}

    first = sweep(tmp_path).item("x/1", ["s"], work)
    again = sweep(tmp_path)
    assert again.item("x/1", ["s"], work) == first and len(calls) == 1
    assert again.done["x/1"]["metrics"] == {"a": 1.5}
    assert sweep(tmp_path).item("x/1", ["other"], work)["metrics"] == {"a": 1.5} and len(calls) == 2
    assert sweep(tmp_path, "resume=false").item("x/1", ["other"], work) and len(calls) == 3


def test_items_of_an_earlier_version_are_kept_under_today_s_names(tmp_path) -> None:
    first = sweep(tmp_path)
    digest = first.item("x/1", ["s"], lambda: {"metrics": {}})["settings"]
    first.folder.complete("x/1", settings=digest, figures={"judge": 0.9, "l1": 0.1}, numbers=7)
    again = sweep(tmp_path)
    assert again.item("x/1", ["s"], lambda: pytest.fail("it is measured already"))["metrics"] == {
        "csim": 0.9,
        "l1": 0.1,
    }
    assert again.done["x/1"]["numbers"] == 7 and "figures" not in again.done["x/1"]


def test_a_sheet_is_made_of_the_first_preset_and_our_decoder(tmp_path, monkeypatch) -> None:
    seen = []

    def measure(sweep, photo, preset, decoder):
        seen.append((photo, preset, decoder))
        return {"metrics": {}}, None

    monkeypatch.setattr(parts, "photos", lambda sweep: ((name, name, name) for name in "abcdefghij"))
    monkeypatch.setattr(parts, "measure_fit", measure)
    monkeypatch.setattr(parts, "panel", lambda *given: torch.rand(3, 20, 30))
    monkeypatch.setattr(Sweep, "observed", lambda self, source: source)
    monkeypatch.setattr(Sweep, "fitter", lambda self, *key: SimpleNamespace(renderer=None, model=None))
    one = sweep(tmp_path, "parts=[sheet]", "presets=[smoke,fast]", "decoders.ours=open:w")
    assert one.fit_config("smoke", "open:w")[0].decoder_space == "w"
    one.run()
    assert seen == [(name, "smoke", "open:w") for name in "abcdefghij"] and not one.failed
    assert one.sheets == ["sheet_1.jpg", "sheet_2.jpg"] and all((tmp_path / name).is_file() for name in one.sheets)
    (tmp_path / "panels" / "c.png").unlink()
    again = sweep(tmp_path, "parts=[sheet]", "presets=[smoke,fast]", "decoders.ours=open:w")
    again.run()
    assert [photo for photo, *_ in seen[10:]] == ["c"]


def test_a_failed_item_is_a_line_and_the_rest_goes_on(tmp_path) -> None:
    def fail(error: Exception) -> dict:
        raise error

    one = sweep(tmp_path)
    assert one.item("x/1", 0, lambda: fail(NoFaceError("no face\nhere"))) is None
    assert one.item("x/2", 0, lambda: fail(ZeroDivisionError("by zero"))) is None
    assert one.item("x/3", 0, lambda: {"metrics": {}}) is not None
    assert one.failed == {"x/1": "no face here", "x/2": "ZeroDivisionError: by zero"}
    assert set(one.folder.failures()) == {"x/1", "x/2"}
    again = sweep(tmp_path)  # what failed is tried again
    assert again.item("x/1", 0, lambda: {"metrics": {}}) is not None and again.failed == {}
    with pytest.raises(KeyboardInterrupt):
        again.item("x/4", 0, lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_a_run_that_is_stopped_in_an_item_goes_on_with_that_item(tmp_path) -> None:
    calls: list[str] = []

    def work(name: str, stop: bool = False) -> dict:
        calls.append(name)
        if stop:
            raise KeyboardInterrupt
        return {"metrics": {"a": len(calls)}}

    one = sweep(tmp_path)
    one.item("x/1", 0, lambda: work("1"))
    with pytest.raises(KeyboardInterrupt):
        one.item("x/2", 0, lambda: work("2", stop=True))
    again = sweep(tmp_path)
    assert [again.item(f"x/{i}", 0, lambda i=i: work(str(i)))["metrics"]["a"] for i in (1, 2, 3)] == [1, 3, 4]
    assert calls == ["1", "2", "2", "3"] and not again.failed


def test_a_run_of_so_many_minutes_keeps_what_is_there_and_says_so(tmp_path, monkeypatch) -> None:
    made = {"metrics": {"bs_error": 1.0}, "vectors": {"map": [1.0], "source": [1.0]}}
    sweep(tmp_path).item("maps/1/full", 0, lambda: made)
    one = sweep(tmp_path, "minutes=0", "parts=[maps]")

    def measure(sweep: Sweep) -> None:
        for i in (1, 2):
            sweep.item(f"maps/{i}/full", 0, lambda: pytest.fail("the time is over"))

    monkeypatch.setitem(parts.MEASURES, "maps", measure)
    one.run()
    assert list(one.done) == ["maps/1/full"] and not one.failed
    assert write_evaluation(one) == 0
    text = (tmp_path / "evaluate.md").read_text()
    assert "- minutes=0 were over; the same command goes on with what is left." in text


def test_full_is_twenty_of_each_and_more_where_asked(tmp_path) -> None:
    one = sweep(tmp_path, "full=true", "faces=30", "tones=5")
    assert (one.heads, one.faces, one.people, one.views, one.tones, one.pictures) == (20, 30, 20, 12, 24, 2)
    assert list(one.fitted) == ["ours"] and list(sweep(tmp_path, "decoder_fits=true").fitted) == ["ours", "linear"]
    few = sweep(tmp_path)
    assert min(few.heads, few.faces, few.people, few.views) >= 6


def test_a_part_that_cannot_begin_leaves_the_others(tmp_path, monkeypatch) -> None:
    one = sweep(tmp_path, "parts=[shape,maps]")
    monkeypatch.setitem(parts.MEASURES, "shape", lambda sweep: (_ for _ in ()).throw(InputError("no heads")))
    monkeypatch.setitem(parts.MEASURES, "maps", lambda sweep: sweep.item("maps/1/full", 0, lambda: {"metrics": {}}))
    one.run()
    assert one.failed == {"shape": "no heads"} and list(one.done) == ["maps/1/full"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["seeds=[-1]"], "seeds must be a whole number"),
        (["parts=[shap]"], "did you mean 'shape'"),
        (["heads=-1"], "heads must be a whole number"),
        (["heads=two"], "heads must be a number"),
        (["decoders.ours=null"], "decoders.ours is not set"),
        (["presets=[]"], "presets is empty"),
        (["set=a='b"], "is not a list of keys"),
        (["set=face_modle=ict"], "did you mean 'face_model'"),
        (["presets=[default,relese]"], "did you mean 'release'"),
        (["decoders.part=nowhere.safetensors"], "decoders.part=nowhere.safetensors does not exist"),
        (["decoders.linear=linaer"], "did you mean 'linear'"),
        (["readme=nowhere.md", "full=true"], "does not exist"),
        (["readme=README.md"], "readme= takes figures of full=true only"),
        (["ablations=[w/o edit]"], "did you mean 'w/o editing'"),
        (["minutes=-1"], "minutes must be a number"),
        (["tone_preset=fats"], "did you mean 'fast'"),
        (["parts=[]"], "nothing could be measured: nothing was asked for"),
        (["parts=[]", "realy_dir=nowhere"], "has no REALY_HIFI3D_keypoints"),
        (["parts=[]", "released_dir=nowhere"], "nowhere has no NAME_final_uv.png"),
        (["decoder.part=x"], "unknown config key 'decoder.part'"),
    ],
)
def test_what_a_user_can_mend_is_one_line(overrides, message, tmp_path, capsys) -> None:
    assert run(main, "evaluate", "doc", [f"out={tmp_path / 'o'}", *overrides]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0], lines


# -- report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path) -> Sweep:
    """A sweep with numbers of our own making."""
    one = sweep(
        tmp_path / "o",
        "heads=4",
        "decoders.part=small/part.safetensors",
        f"readme={tmp_path / 'README.md'}",
        "set=perceptual=lpips_alex",
        "decoder_fits=true",
        "full=true",
    )
    one.commit = "0123456789"
    (tmp_path / "README.md").write_text(f"# Title\n\n{MARKS[0]}\nof the last time\n{MARKS[1]}\n\n## Next\n")
    draw = np.random.default_rng(0)
    about = {"tone": 30.0, "age": 25.0, "male": 0.9}
    metrics = {"photometric": 0.03, "identity": 0.9, "nme": 0.015, "photometric_final": 0.01, "identity_final": 0.98,
               "nme_final": 0.012, "bs": 1.0, "bs_final": 2.0}  # fmt: skip
    for i in range(4):
        one.done[f"shape/ict/{i}/starts"] = {"errors": {"mean face": errors(2.0 + i), "landmarks": errors(1.5)}}
        one.done[f"shape/ict/{i}/ours"] = {"errors": errors(1.0 + i), "metrics": metrics, "about": about}
        one.done[f"shape/ict/{i}/linear"] = {"errors": errors(1.1 + i), "metrics": metrics, "about": about}
        vectors = {"photo": draw.normal(size=8).tolist()}
        vectors["render"] = [0.5 * v for v in vectors["photo"]]
        person = about | {"tone": -40.0 if i == 0 else 60.0}
        for preset, key, extra in (("default", "ours", 0.0), ("default", "linear", 0.004), ("paper", "ours", 0.01)):
            made = metrics | {"photometric": 0.03 + 0.001 * i + extra, "lpips_vgg": 0.2, "lpips_alex": 0.1}
            one.done[f"reconstruction/seed_{i}/{preset}/{key}"] = {"metrics": made, "about": person, "vectors": vectors}
        one.done[f"maps/{i}/full"] = {
            "metrics": {"bs_error": 3.0, "bs_error_map": 1.5, "observed": 0.8, "identity_map": 0.5},
            "octaves": {"sharpness_front": [0.5, 0.75 + 0.1 * i, 0.9, 1.0, 1.1], "coherence_front": [0.2] * 5},
            "vectors": {"map": vectors["render"], "source": vectors["photo"]},
        }
        one.done[f"maps/{i}/w/o editing"] = {"metrics": {"bs_error": 8.0, "bs_error_map": 2.3, "observed": 0.5}}
        maps = {"l1": 0.01, "csim": 0.9, "lpips_vgg": 0.3, "lpips_alex": 0.15}
        one.done[f"expressiveness/{i}/ours"] = {"metrics": maps, "numbers": 1792}
    one.done["released/01223/views"] = {"metrics": {"bs_error": 3.4, "observed": 0.7, "identity": 0.728}}
    one.done["maps/9/full"] = {"refused": "expression: a smile", "metrics": {}}
    one.failed["shape/ict/4/ours"] = "no face was found"
    for facts in one.done.values():
        facts["commit"] = "0123456789"
    return one


def test_the_report_says_what_was_measured(measured, capsys) -> None:
    assert write_evaluation(measured) == 1  # something failed
    folder = measured.folder.path
    text = (folder / "evaluate.md").read_text()
    for line in (
        "commit 0123456789; x86_64, " if platform.machine() == "x86_64" else "commit 0123456789; ",
        f"torch {torch.__version__}, ",
        "```bash\npython fit/evaluate.py",
        "| shape | ICT heads, mm (n = 4) |\n|---|---|",
        "| mean face | 3.50 ± 1.29 (2.50 to 4.50) |".replace(" ± 1.29", ""),
        "| full fit: PCA tex basis (decoder linear) | 2.60 (1.60 to 3.60) |",
        "ICT heads: The full fit is no worse than its start on 1 of 4.",
        "| default, ours (decoder open) | 31.5 (30.5 to 32.5) | 0.900 (0.900 to 0.900) | 1.50 (1.50 to 1.50) "
        "| 0.200 (0.200 to 0.200) | 10.0 (10.0 to 10.0) | 0.980 (0.980 to 0.980) | 4 |",
        "| paper, ours (decoder open) | 41.5 (",
        "| ours, from the released views | 3.40 | 70 | 0.728 | 1 |",
        "| decoder | LPIPS (VGG) | CSIM | n |",
        "| ours (decoder open), 1,792 numbers | 0.300 (0.300 to 0.300) | 0.900 (0.900 to 0.900) | 4 |",
        "![Shape error by region. ICT heads: nose, mean face 3.40, nose, full fit 2.40, ",
        "![Shape error, ICT heads: share of heads with at most so much. mean face: half within 3.00 mm, ",
        "dark (below -30), n = 1 30.0",
        "![UV maps: BS Error over observed texels. full, n = 4 3.00, w/o editing, n = 4 8.00](maps.png)",
        "front: sharpness, n = 4: 2 to 4 texels 0.50, 4 to 8 texels 0.90",
        "1 subject(s) were refused",
        "no statement on a person",
        "- failed: shape/ict/4/ours: no face was found",
    ):  # fmt: skip
        assert line in text, f"{line}\n\n{text}"
    assert "*published" not in text and "orientation only" not in text and "not run" not in text
    assert str(measured.folder.path) not in text and socket.gethostname() not in text
    assert sum(line.startswith("### ") for line in text.splitlines()) <= 7

    rows = list(csv.DictReader((folder / "results.csv").open()))
    cell = next(r for r in rows if (r["table"], r["row"], r["metric"]) == ("shape_ict", "start from landmarks", "mean"))
    assert (float(cell["value"]), cell["n"], cell["published"]) == (1.5, "4", "")
    marked = {(r["table"], r["metric"]) for r in rows if r["note"] == "optimized"}
    assert marked == {("reconstruction", "lpips_alex"), ("expressiveness", "lpips_alex"), ("expressiveness", "l1")}
    assert not any(r["published"] for r in rows), "nobody published numbers on these very data"
    part = next(r for r in rows if (r["table"], r["row"]) == ("maps", "w/o editing") and r["metric"] == "bs_error_map")
    assert (float(part["value"]), part["n"]) == (2.3, "4"), "what a page shows as a chart has its cells here"
    items = list(csv.DictReader((folder / "items.csv").open()))
    assert {"item": "shape/ict/1/starts", "group": "mm mean face", "metric": "nose", "value": "2.9"} in items
    for name in ("shape.png", "shape_cumulated.png", "groups_photometric.png", "groups_shape.png", "maps.png"):
        assert (folder / name).stat().st_size > 1000 and f"]({name})" in text


def test_published_numbers_stand_beside_ours_on_the_same_benchmark_alone(measured) -> None:
    measured.done |= {f"realy/{i}/starts": {"errors": {"mean face": errors(2.0)}} for i in range(3)}
    write_evaluation(measured)
    page = (measured.folder.path / "evaluate.md").read_text()
    assert "| *published: DECA* |  | *2.01* |" in page and "Published, on the same data: 3DDFA-v2, DECA (REALY" in page


def test_a_few_items_are_called_so_and_mixed_commits_are_named(measured) -> None:
    measured.config.full, measured.config.readme = False, None
    measured.done["maps/0/full"]["commit"] = "fedcba9876"
    write_evaluation(measured)
    text = (measured.folder.path / "evaluate.md").read_text()
    assert "orientation only" in text and "commit 0123456789, fedcba9876" in text


def test_the_command_names_no_folders_of_a_machine() -> None:
    given = ["ict=/data/ict.npz", "set=regressor=/data/r.safetensors seed=1", "heads=2", "out=/data/o", "parts=[shape]"]
    assert _arguments(given) == ["ict=ict.npz", "set=regressor=r.safetensors seed=1", "heads=2", "parts=[shape]"]


def test_the_readme_gets_what_stands_between_the_marks(measured) -> None:
    write_evaluation(measured)
    path = Path(measured.config.readme)
    text = path.read_text()
    assert text.startswith(f"# Title\n\n{MARKS[0]}\n") and text.endswith(f"{MARKS[1]}\n\n## Next\n")
    assert "of the last time" not in text and "### Shape\n" in text
    shown = re.findall(r"]\((evaluate_\w+\.png)\)", text)
    assert len(shown) == 6 and all(path.with_name(name).is_file() for name in shown)
    write_evaluation(measured)
    assert path.read_text() == text
    path.write_text("# Title\n")
    with pytest.raises(Exception, match="has no lines"):
        write_evaluation(measured)


# -- sweeps ------------------------------------------------------------------------------------------------------


def start(out: Path, *overrides: str) -> subprocess.Popen:
    command = [
        sys.executable,
        str(ROOT / "fit" / "evaluate.py"),
        f"out={out}",
        "presets=[smoke]",
        "threads=1",
        *overrides,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env, start_new_session=True
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    text, _ = process.communicate(timeout=1500)
    return process.returncode, text


@pytest.fixture
def models(asset, fit_models) -> None:
    asset("age_gender")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_alike(tmp_path, models) -> None:
    small = ("parts=[shape,reconstruction]", "heads=1", "faces=0", "views=1", "ict=nowhere",
             f"photos={ROOT / 'samples' / 'astronaut.jpg'}")  # fmt: skip
    status, text = ended(start(tmp_path / "a", *small))
    assert status == 0, text
    out = tmp_path / "b"
    for count in (1, 3):
        process = start(out, *small)
        stop = time.monotonic() + 600
        while process.poll() is None and time.monotonic() < stop:
            record = out / "completed.jsonl"
            if record.is_file() and record.read_text().count("\n") >= count:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        assert process.wait() == -signal.SIGKILL
    status, text = ended(start(out, *small))
    assert status == 0, text
    for name in ("results.csv", "items.csv"):
        assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    report = (out / "evaluate.md").read_text()
    assert "Shape on ict heads was not measured: " in report and "nowhere" in report


@pytest.mark.slow
def test_the_benchmark_s_layout_in_and_out(tmp_path, models) -> None:
    """A head of our own as REALY's subject 1: photo, 85 keypoints, regions of a scan in units of 9 mm."""
    from facerecon.correspond.obj import read_obj
    from facerecon.evaluation import head_regions, realy, scan_of_head
    from facerecon.imaging.files import write_png
    from facerecon.morphable import load_face_model
    from facerecon.stylegan.load import load_decoder
    from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces

    model = load_face_model("makehuman")
    plain = replace(WITHIN_MODEL, glasses=0, occluded=0, hair=0, wide=0, yaw=3)
    batch = SyntheticFaces(model, load_decoder("linear"), plain, seed=5, size=448)([0])
    shape, faces = model.shape(batch.params)[0].double().numpy(), model.topology.faces.numpy()
    rng = np.random.default_rng(0)
    rows = [
        [int(f), *map(float, w)] for f, w in zip(rng.integers(0, len(faces), 85), rng.dirichlet([1, 1, 1], 85)[:, :2])
    ]
    points = model.landmarks3d(torch.from_numpy(shape).float()[None])[0].double().numpy()
    for k in range(68):  # the first 68 places are the landmarks', on the vertex next to each
        vertex = int(np.abs(shape - points[k]).sum(1).argmin())
        face = int(np.flatnonzero((faces == vertex).any(1))[0])
        rows[k] = [face, *np.eye(3)[np.flatnonzero(faces[face] == vertex)[0]][:2].tolist()]
    (tmp_path / "HEAD.txt").write_text(json.dumps(rows))
    keys = realy.keypoints_of(shape, faces, realy.read_keypoint_places(tmp_path / "HEAD.txt"))
    unit = 100 / 9
    folder = tmp_path / "REALY"
    realy.write_mesh(folder / "REALY_HIFI3D_keypoints" / "1.obj", unit * keys, np.zeros((0, 3), int))
    for name, (v, f) in scan_of_head(shape, faces, points, head_regions(model)).regions.items():
        realy.write_mesh(folder / "REALY_scan_region" / "1" / f"{name}.obj", unit * v, f)
    (folder / "metrical_scale.txt").write_text("9.0\n")
    write_png(folder / "REALY_image" / "1.png", batch.image)
    out = tmp_path / "out"
    status, text = ended(start(out, "parts=[]", f"realy_dir={folder}", f"realy_keypoints={tmp_path / 'HEAD.txt'}"))
    assert status == 0, text
    facts = {json.loads(line)["item"]: json.loads(line) for line in (out / "completed.jsonl").read_text().splitlines()}
    assert set(facts) == {"realy/1/starts", "realy/1/ours"}
    name, _, *numbers = (out / "realy" / "ours" / "REALY_error.txt").read_text().rstrip("\n").split("\t")
    assert name == "1" and [float(n) for n in numbers] == pytest.approx(
        [facts["realy/1/ours"]["errors"][region] for region in realy.REGIONS], abs=1e-4
    )
    predicted = read_obj(out / "realy" / "ours" / "prediction" / "1.obj", textured=False)
    assert predicted.vertices.shape == shape.shape and np.array_equal(predicted.faces, faces)
    keys = realy.keypoints_of(predicted.vertices, faces, realy.read_keypoint_places(tmp_path / "HEAD.txt"))
    again = realy.realy_errors(predicted.vertices, faces, keys, realy.RealyFolder(folder).scan("1"))
    assert [float(n) for n in numbers] == pytest.approx([again.errors[region] for region in realy.REGIONS], abs=1e-2)
    assert max(again.errors.values()) < 4  # mm, of a head of the fit's own model
    aligned = out / "realy" / "ours" / "region_align_save" / "1"
    assert {p.name for p in aligned.iterdir()} == {"at_global.obj", *(f"at_{r}.obj" for r in realy.REGIONS)}
    for name, points in {"global": again.coarse, **again.aligned}.items():
        written = read_obj(aligned / f"at_{name}.obj", textured=False).vertices
        assert np.allclose(written, points, atol=1e-2), name
    assert "| shape | REALY, mm (n = 1) |" in (out / "evaluate.md").read_text()
