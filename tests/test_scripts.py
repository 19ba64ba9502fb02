"""The scripts as a user runs them: errors in one line, a folder that survives its bad files, a resumed run."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerecon import assets

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "astronaut.jpg"


@pytest.fixture
def script(run_script, monkeypatch):
    """Run a script, in this process."""
    monkeypatch.chdir(ROOT)
    return run_script


def one_line(run: subprocess.CompletedProcess) -> str:
    """The single line that a failed run leaves on standard error."""
    lines = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert run.returncode == 2, run.stdout + run.stderr
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    return lines[0]


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_lists_keys_and_groups(script) -> None:
    for name in ("fit/reconstruct.py", "fit/render.py"):
        run = script(name, "--help")
        assert run.returncode == 0
        assert "Keys and defaults:" in run.stdout
        assert "threads" in run.stdout


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["img=nowhere/face.jpg"], "nowhere/face.jpg"),
        (["imgs=face.jpg"], "did you mean 'img'"),
        ([], "img is not set"),
        (["img=x.jpg", "fitting.stages.joint.weights.lpip=1"], "weights.lpips"),
        (["img=x.jpg", "+fitting.stages.joint.weights.landmark=1", "device=cpu"], "loss term"),
    ],
)
def test_what_a_user_can_mend_is_one_line(script, overrides, expected, tmp_path, fit_models) -> None:
    if expected == "loss term":
        overrides = [f"img={SAMPLE}", *overrides[1:]]
    assert expected in one_line(script("fit/reconstruct.py", *overrides, f"out={tmp_path / 'o'}"))


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["stage1=regresor"], "did you mean 'regressor'"),
        (["stage1=landmarks", "regressor=weights.safetensors"], "leave one of them out"),
        (["regressor=nowhere/weights.safetensors"], "nowhere/weights.safetensors does not exist"),
        (["fitting.regressor.max_yaws=3"], "did you mean 'fitting.regressor.max_yaw'"),
    ],
)
def test_wrong_words_about_stage_1_are_one_line(script, overrides, expected, tmp_path, fit_models) -> None:
    line = one_line(script("fit/reconstruct.py", f"img={SAMPLE}", *overrides, f"out={tmp_path / 'o'}"))
    assert expected in line


def test_stage_1_by_ones_own_weights_is_said_in_log_and_report(script, tmp_path, fit_models) -> None:
    import torch

    from facerecon.perception import Regressor, RegressorConfig, save_regressor

    network = Regressor(RegressorConfig(backbone="resnet10", width=0.125))
    weights, out = tmp_path / "mine.safetensors", tmp_path / "out"
    common = (f"img={SAMPLE}", f"out={out}", "fitting=smoke", "export=[report]", "fitting.regressor.max_error=45")
    stages = []
    for shift in (0.0, 0.5):
        with torch.no_grad():
            network.heads["shift"].bias.fill_(shift)
        save_regressor(weights, network)
        run = script("fit/reconstruct.py", *common, f"regressor={weights}")
        assert run.returncode == 0, run.stderr
        assert "1 face(s) written" in run.stdout  # other weights of the same name are another setting
        stages.append((run.stdout, run.stderr, (out / "astronaut" / "report.html").read_text()))
        stages[-1] += (json.loads((out / "astronaut" / "metrics.json").read_text()).get("stage1"),)
    assert "stage 1 is the regressor (mine.safetensors, resnet10)" in stages[0][0] and stages[0][3] == "regressor"
    assert "misses its landmarks" in stages[1][1] and stages[1][3].startswith("landmarks: ")
    assert "not by the regressor" in stages[1][2] and "not by the regressor" not in stages[0][2]
    assert "instead of the regressor N_enc" not in stages[0][2]


def test_bad_photos_are_one_line_each(script, tmp_path, fit_models) -> None:
    blank, tiny, text, cut = (tmp_path / name for name in ("blank.jpg", "tiny.png", "text.jpg", "cut.jpg"))
    Image.fromarray(np.full((300, 300, 3), 128, np.uint8)).save(blank)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tiny)
    text.write_text("not a picture")
    cut.write_bytes(SAMPLE.read_bytes()[:20000])
    # one process for all: a folder of nothing but bad photos
    run = script("fit/reconstruct.py", f"img={tmp_path}", f"out={tmp_path / 'o'}", "fitting=smoke")
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    for name in ("blank.jpg", "tiny.png", "text.jpg", "cut.jpg"):
        line = next(line for line in run.stderr.splitlines() if line.startswith("failed:") and name in line)
        assert len(line) > len(name) + 20
    assert one_line(run).startswith("error: none of the 4 photos")


def test_one_bad_photo_alone_fails(script, tmp_path, fit_models) -> None:
    blank = tmp_path / "blank.jpg"
    Image.fromarray(np.full((300, 300, 3), 128, np.uint8)).save(blank)
    run = script("fit/reconstruct.py", f"img={blank}", f"out={tmp_path / 'o'}", "fitting=smoke")
    assert "face" in one_line(run)


def test_an_altered_asset_is_named(script, tmp_path, asset, fit_models) -> None:

    home = tmp_path / "home"
    shutil.copytree(assets.home(), home, copy_function=os.link)
    (victim,) = (home / "assets").glob("makehuman-*.safetensors")
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.unlink()
    victim.write_bytes(data)
    run = script("fit/reconstruct.py", f"img={SAMPLE}", f"out={tmp_path / 'o'}", FACERECON_HOME=str(home))
    line = one_line(run)
    assert "makehuman" in line
    assert "fetch" in line


def test_the_pack_of_the_release_says_all_that_is_missing(script, tmp_path) -> None:
    run = script("fit/reconstruct.py", "pack=ffhq_uv", f"img={SAMPLE}", f"out={tmp_path}", FACERECON_HOME=str(tmp_path))
    line = one_line(run)
    for name in ("hifi3dpp_model_info.mat", "texgan_ffhq_uv.pth", "arcface_r50_fp16_backbone.pth"):
        assert name in line
    assert "without it: identity=sface" in line and "facerecon.assets convert ffhq_uv DIR" in line
    parts = ("identity=identity128", "face_model=makehuman", "decoder=ffhq_uv_cropface")
    line = one_line(script("fit/reconstruct.py", "pack=ffhq_uv", f"img={SAMPLE}", f"out={tmp_path}", *parts,
                           FACERECON_HOME=str(tmp_path)))  # fmt: skip
    assert "arcface" not in line and "cropface630" in line and "template_base_uv.png" in line


def test_a_folder_finishes_around_its_bad_file_and_resumes(script, tmp_path, fit_models) -> None:
    photos, out = tmp_path / "My [2023] photos", tmp_path / "out"
    photos.mkdir()
    odd, name = os.fsdecode(b"caf\xe9 [1], ${x}='#'.jpg"), "caf_ [1], ${x}='#'"
    (photos / odd).write_bytes(SAMPLE.read_bytes())
    (photos / "broken.jpg").write_text("not a picture")
    first = script("fit/reconstruct.py", f"img={photos}", f"out={out}", "fitting=smoke")
    assert first.returncode == 1, first.stderr
    assert "1 face(s) written" in first.stdout
    assert "failed:" in first.stderr
    assert "broken.jpg" in first.stderr
    assert "Traceback" not in first.stderr
    made = {path.name for path in (out / name).iterdir()}
    assert {
        "panel.png", "texture.png", "visibility.png", "head.obj", "head.mtl", "head.glb", "params.safetensors",
        "report.html", "turning.webp", "still.webp",
    } <= made  # fmt: skip
    index = (out / "index.html").read_text()
    if assets.status("viewer").state == "ready":
        page = (out / name / "viewer.html").read_text(errors="replace")
        assert "3D head from one photo" in page and 'href="viewer.html"' in (out / name / "report.html").read_text()
        assert "/viewer.html" in index
    else:
        assert "note: heads come without viewer.html:" in first.stdout
    assert "/turning.webp" in index and "/still.webp" in index and "/report.html" in index
    assert (out / name / "turning.webp").stat().st_size <= 60_000
    assert "stage 1 " in first.stdout
    parts = json.loads((out / name / "metrics.json").read_text())["parts"]
    assert set(parts) == {
        "face_model", "decoder", "stage1", "landmarks", "parsing", "perceptual", "identity", "eval_identity",
        "eval_lpips", "tone", "light",
    }  # fmt: skip
    report = (out / name / "report.html").read_text()
    for part, version in parts.items():
        assert f"{part}: {version}" in first.stdout, part
        assert part == "light" or re.search(r"[0-9a-f]{12}\)", version), part
        assert html.escape(version) in report
    settings = json.loads((out / "config.json").read_text())
    assert settings["script"] == "reconstruct" and settings["fitting"]["preset"] == "smoke"
    (out / "config.json").write_text('{"script": "reconstruct"}')  # all that earlier versions recorded
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"start", "texture", "joint", "detail"} <= set(rows[0]["metrics"])
    measured = [stage for stage, values in rows[0]["metrics"].items() if "lpips_vgg" in values]
    assert measured == ["joint", "detail"]  # as the smoke preset's perceptual loss is another
    assert (out / "index.html").is_file()

    # the same command again does the failed one only
    before = (out / name / "panel.png").stat().st_mtime_ns
    (photos / "broken.jpg").unlink()
    second = script("fit/reconstruct.py", f"img={photos}", f"out={out}", "fitting=smoke")
    assert second.returncode == 0
    assert "nothing to do" in second.stdout
    assert (out / name / "panel.png").stat().st_mtime_ns == before

    # and the saved head renders again
    picture = tmp_path / "view.png"
    render = script(
        "fit/render.py", f"params={out / name / 'params.safetensors'}", f"out={picture}", "yaw=25", "light=left",
        "expression=jawOpen:0.5,mouthSmileLeft:1", "size=256",
    )  # fmt: skip
    assert render.returncode == 0, render.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB"), float)
    assert pixels.shape == (256, 256, 3)
    assert pixels.std() > 20
    wrong = script("fit/render.py", f"params={out / name / 'params.safetensors'}", "expression=jawOpe:1")
    assert "did you mean 'jawOpen'" in one_line(wrong)


def test_a_reconstruction_imports_neither_torchs_compiler_nor_torchvision(tmp_path, fit_models) -> None:
    """They take as long as all else that a start needs; in a process of its own, as tests import them."""
    code = (
        "import json, sys\nfrom facerecon.configs.compose import run\nfrom facerecon.fit.reconstruct import main\n"
        "status = run(main, 'reconstruct', '', sys.argv[1:])\nprint(json.dumps([status, *sys.modules]))"
    )
    words = (f"img={SAMPLE}", f"out={tmp_path / 'o'}", "fitting=smoke", "export=[report]")
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    status, *loaded = json.loads(done.stdout.splitlines()[-1])
    assert status == 0 and "torch.optim.adam" in loaded, done.stdout
    assert not {"torch._dynamo", "torchvision", "lpips", "sympy", "kornia"} & set(loaded)


def test_corrections_are_matched_by_name_and_hashed_by_content(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from facerecon.errors import ConfigError, InputError
    from facerecon.fit.photos import find_corrections

    points, masks = tmp_path / "points", tmp_path / "masks"
    points.mkdir(), masks.mkdir()
    (points / "a.csv").write_text("1,2")
    (points / "notes.md").write_text("")
    (masks / "b.png").write_bytes(b"x")
    paths = ["photos/a.jpg", "photos/b.png"]

    def config(**keys) -> dict:
        return {"landmarks": None, "mask": None, "face": "largest"} | keys

    given = find_corrections(config(landmarks=str(points), mask=str(masks)), paths)
    assert (given[paths[0]].landmarks, given[paths[0]].mask) == (points / "a.csv", None)
    assert (given[paths[1]].landmarks, given[paths[1]].mask) == (None, masks / "b.png")
    before = [given[path].digest("settings") for path in paths]
    assert len({*before, "settings"}) == 3
    (points / "a.csv").write_text("1,3")
    assert [given[path].digest("settings") == old for path, old in zip(paths, before, strict=True)] == [False, True]
    assert find_corrections(config(), paths)[paths[0]].digest("settings") == "settings"

    file = str(points / "a.csv")
    assert find_corrections(config(landmarks=file), paths[:1])[paths[0]].landmarks == points / "a.csv"
    for keys, error, message in [
        ({"landmarks": file}, ConfigError, "one file for 2 photos"),
        ({"mask": str(points)}, ConfigError, "expected e.g. a.jpg"),
        ({"mask": str(masks), "face": "all"}, ConfigError, "one face"),
        ({"landmarks": str(tmp_path / "none")}, InputError, "does not exist"),
    ]:
        with pytest.raises(error, match=message):
            find_corrections(config(**keys), paths)
    with pytest.raises(ConfigError, match="any of 2 photos named 'a'"):
        find_corrections(config(landmarks=str(points)), ["x/a.jpg", "y/a.jpg"])
    (points / "a.txt").write_text("1,2")
    with pytest.raises(ConfigError, match="2 files named 'a'"):
        find_corrections(config(landmarks=str(points)), paths)


@pytest.fixture
def heads(monkeypatch):
    """fit/reconstruct.py without its models: a head is a file with its photo's path. faces: {photo: how many}."""
    import types

    from facerecon.configs.compose import compose
    from facerecon.fit import reconstruct as module

    faces: dict[str, int] = {}

    class Photo:
        def __init__(self, batch: int = 1) -> None:
            self.batch = batch

        def __getitem__(self, i: int) -> "Photo":
            return Photo()

    def groups(job):
        for path in job.pending:
            yield [(path, Photo(faces.get(path.name, 1) if job.config.face == "all" else 1), 0.0)]

    def work(job, photos, items):
        for item in items:
            folder = job.folder.path / item.name
            folder.mkdir(exist_ok=True)
            (folder / "panel.png").write_text(str(item.path), errors="surrogateescape")
        return [{"item": item.name, "path": str(item.path)} for item in items], {}

    def run(job):
        job.bar = types.SimpleNamespace(update=lambda count: None)
        for group in job.groups():
            job.do(group)
        module._finish(job.folder, job.paths, job.names)
        return 0

    monkeypatch.setattr(module, "reconstruct", work)
    monkeypatch.setattr(module._Job, "groups", groups)
    monkeypatch.setattr(module._Job, "run", run)

    def reconstruct(out: Path, *overrides: str) -> dict[str, str]:
        """{folder: photo} of all heads there."""
        assert module.main(compose("reconstruct", [f"out={out}", *overrides])) == 0
        return {
            path.parent.name: Path(path.read_text(errors="surrogateescape")).parent.name
            for path in out.glob("*/panel.png")
        }

    reconstruct.faces = faces
    return reconstruct


def test_a_photo_is_done_by_its_content(tmp_path, heads, capsys) -> None:
    out, (a, b) = tmp_path / "o", (tmp_path / name / "IMG_1.jpg" for name in "ab")
    for path in (a, b):
        path.parent.mkdir()
        path.write_bytes(path.parent.name.encode())
    assert heads(out, f"img={a}") == {"IMG_1": "a"}
    assert heads(out, f"img={b}") == {"IMG_1": "a", "IMG_1.jpg": "b"}
    assert f"{b} shares its name; its folder is {out / 'IMG_1.jpg'}" in capsys.readouterr().out
    assert heads(out, f"img={tmp_path}/*/IMG_1.jpg") == {"IMG_1": "a", "IMG_1.jpg": "b"}
    assert "nothing to do: 2 photo(s)" in capsys.readouterr().out
    a.write_bytes(b"another picture")
    heads(out, f"img={a}")
    assert f"{a} has changed; its head is made again in {out / 'IMG_1'}" in capsys.readouterr().out
    heads(out, f"img={a}")
    assert "nothing to do" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "completed.jsonl").read_text().splitlines()]
    for row in rows:  # as runs of before wrote them
        del row["content"]
    (out / "completed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heads(out, f"img={a}")
    assert "nothing to do" in capsys.readouterr().out

    both = heads(tmp_path / "both", f"img={tmp_path}/*/IMG_1.jpg")
    b.rename(tmp_path / "a" / "later.jpg"), a.rename(b)
    (tmp_path / "a" / "later.jpg").rename(a)
    swapped = heads(tmp_path / "swapped", f"img={tmp_path}/*/IMG_1.jpg")
    assert len(both) == 2 and swapped == {name: "ab"["ba".index(where)] for name, where in both.items()}
    (tmp_path / "a" / "copy").mkdir()
    shutil.copy(a, tmp_path / "a" / "copy")
    assert heads(tmp_path / "copies", f"img={tmp_path}/a/**/IMG_1.jpg") == {"IMG_1": "copy"}  # sorts first
    assert "1 photo(s) are copies" in capsys.readouterr().out


def test_every_face_of_every_photo_has_its_folder(tmp_path, heads) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("group.jpg", "group_0.jpg", "..jpg", os.fsdecode(b"caf\xe9.jpg"), "checkpoints.png"):
        (photos / name).write_bytes(os.fsencode(name))
    heads.faces["group.jpg"] = 2
    out = tmp_path / "o"
    assert set(heads(out, f"img={photos}", "face=all")) == {
        "group_0",
        "group_1",
        "group_0.jpg",
        "caf_",
        "checkpoints.png",
    }
    assert set(heads(tmp_path / "dots" / "o", f"img={photos / '..jpg'}")) <= {"item", "jpg"}
    assert {path.name for path in (tmp_path / "dots").iterdir()} == {"o"}


def test_a_photo_without_a_face_is_fitted_to_given_landmarks(script, tmp_path, fit_models) -> None:
    from facerecon.perception import observe
    from facerecon.perception.landmarks import map_points

    seen = observe(SAMPLE)
    points = map_points(seen.fit.to_photo, seen.landmarks68)[0].numpy()
    nobody = tmp_path / "nobody.png"
    Image.fromarray(np.full((512, 512, 3), 128, np.uint8)).save(nobody)
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((256, 256), 255, np.uint8)).save(mask)
    file = tmp_path / "points.csv"
    np.savetxt(file, points, delimiter=",")
    command = (f"img={nobody}", f"landmarks={file}", f"mask={mask}", f"out={tmp_path / 'o'}", "fitting=smoke")
    run = script("fit/reconstruct.py", *command, "export=[report]")
    assert run.returncode == 1, run.stderr  # a head of nothing
    folder = tmp_path / "o" / "nobody"
    assert (folder / "params.safetensors").is_file()
    why = json.loads((folder / "metrics.json").read_text())["suspect"]
    assert f"suspect: nobody is suspect: {why}" in run.stderr and f"nobody.png: suspect, {why}" in run.stderr
    assert why in (folder / "report.html").read_text() and why in (tmp_path / "o" / "failures.jsonl").read_text()
    assert "nothing to do" in script("fit/reconstruct.py", *command, "export=[report]").stdout
    np.savetxt(file, points[:67], delimiter=",")  # the file has changed: done again, and refused
    assert "got 67 points" in one_line(script("fit/reconstruct.py", *command, "export=[report]"))


def fit_and_render(script, model: str, path: Path, out: Path, *overrides: str) -> str:
    """Reconstruct the sample with a head model from its own file, render the saved head; what was printed."""
    run = script(
        "fit/reconstruct.py", f"img={SAMPLE}", f"out={out}", "fitting=smoke", f"face_model={model}",
        f"face_model_path={path}", *overrides,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    made = {file.name for file in (out / "astronaut").iterdir()}
    assert {"panel.png", "texture.png", "visibility.png", "head.obj", "head.glb", "params.safetensors"} <= made
    assert "report.html" in made
    (out / "astronaut" / "texture.png").unlink()  # so that the saved latent is decoded
    picture = out / "view.png"
    render = script(
        "fit/render.py", f"params={out / 'astronaut' / 'params.safetensors'}", f"out={picture}", "yaw=25", "size=256"
    )
    assert render.returncode == 0, render.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB"), float)
    skin = pixels[90:170, 90:170].reshape(-1, 3).mean(0)
    assert skin[0] > skin[1] > skin[2] > 40  # a face, not the background or a hole
    return run.stdout


@pytest.mark.slow
def test_the_ict_head_from_its_own_file(script, tmp_path, reference, fit_models) -> None:
    out = fit_and_render(script, "ict", reference / "ict" / "ict_facekit_light.npz", tmp_path / "out")
    assert "note: ict takes" in out
    assert "texture: the decoder of makehuman" in out


@pytest.mark.slow
def test_the_gnm_head_once_converted(script, tmp_path, gnm_files, fit_models) -> None:
    from facerecon.correspond.gnm import convert

    convert(gnm_files[0], tmp_path / "gnm.safetensors")
    out = fit_and_render(script, "gnm", tmp_path / "gnm.safetensors", tmp_path / "out")
    assert "texture: the decoder of makehuman" in out


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["linear", "albedo"])
def test_the_hifi3dpp_head_from_its_own_file(script, tmp_path, hifi3dpp_mat, fit_models, decoder) -> None:
    out = fit_and_render(script, "hifi3dpp", hifi3dpp_mat, tmp_path / "out", f"decoder={decoder}")
    assert "note: hifi3dpp takes" in out
    assert ("its own linear albedo" in out) == (decoder == "albedo")


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (
            ["face_model=ict"],
            "Run: python -m facerecon.assets fetch ict (420 MB). Without a connection: Get it: git clone",
        ),
        (["face_model=itc"], "did you mean 'ict'"),
        (["face_model=hifi3dpp", "face_model_path=nowhere.mat"], "nowhere.mat does not exist"),
    ],
)
def test_a_head_model_that_is_not_there(script, overrides, expected, tmp_path) -> None:
    run = script("fit/reconstruct.py", f"img={SAMPLE}", f"out={tmp_path}", *overrides, FACERECON_HOME=str(tmp_path))
    assert expected in one_line(run)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_make_reconstruct_fetches_the_head_it_is_asked_for() -> None:
    def recipe(*words: str) -> list[str]:
        done = subprocess.run(
            ["make", "-n", "reconstruct", "PY=python", *words], cwd=ROOT, capture_output=True, text=True
        )
        return [line.strip() for line in done.stdout.splitlines() if re.match("python (fit|-m facerecon)", line)]

    plain, ict = recipe("IMG=a.jpg", "OUT=out"), recipe("IMG=a.jpg", "OUT=out", "HEAD=ict", "ARGS=seed=3")
    assert plain == ["python -m facerecon.assets fetch open", 'python fit/reconstruct.py img="a.jpg" out="out"']
    assert ict == [
        plain[0],
        'python -m facerecon.assets fetch "ict"',
        'python fit/reconstruct.py img="a.jpg" out="out" face_model="ict" seed=3',
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_make_says_what_there_is_and_doctor_needs_no_set_up(tmp_path) -> None:
    def make(*words: str) -> str:
        done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = make()
    assert shown.index("make reconstruct IMG=face.jpg") < shown.index("make setup")
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 10 and all(f"make {target} " in shown for target in targets)
    assert all(f"{name}=" in shown for name in ("IMG", "OUT", "HEAD", "ARGS", "PYTHON", "FACERECON_HOME"))
    assert make("-n", "doctor", f"VENV={tmp_path}", "PYTHON=python9").strip() == "python9 -m facerecon.assets doctor"


PIP = """#!/bin/sh
echo "Collecting torch"
echo "  Downloading torch-2.12.0-cp311-cp311-manylinux_2_28_x86_64.whl (532.0 MB)"
echo "  Downloading tqdm-4.1-py3-none-any.whl (78 kB)"
if [ -n "$BROKEN" ]; then
  echo "WARNING: Retrying after connection broken by 'NewConnectionError('refused')': /simple/numba/"
  echo "ERROR: No matching distribution found for numba>=0.59"
  exit 1
fi
echo "Installing collected packages: torch, tqdm"
"""


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for pip is a shell script")
def test_set_up_shows_sizes_and_explains_a_failing_pip_in_one_line(tmp_path, monkeypatch, capsys) -> None:
    install = _module(ROOT / "tools" / "install.py")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PIP)
    python.chmod(0o755)
    assert install.main([str(tmp_path), "dev"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:3] == ["  torch-2.12.0, 532 MB", "  unpacking 2 packages"]
    assert shown[0].startswith("set-up, 1 of 2: ") and shown[3].endswith("; next: the models")
    monkeypatch.setenv("BROKEN", "1")
    assert install.main([str(tmp_path), "dev"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: pip could not install numba>=0.59 (no connection: NewConnectionError refused")
    assert error.count("\n") == 1 and "PIP_INDEX_URL" in error and "PIP_FIND_LINKS" in error and "pip.log" in error
    assert "torch-2.12.0" in (tmp_path / "pip.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "pip.log"]


def test_a_run_ends_with_the_page_to_open(tmp_path) -> None:
    from facerecon.fit.write import page_to_open

    def page(*items: str) -> str:
        return page_to_open(tmp_path, items).removeprefix("open: ").removeprefix(str(tmp_path.resolve()))

    assert page("a") == ""  # nothing there yet
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert page("a") == "/a"  # export= without a report
    (tmp_path / "a" / "report.html").touch()
    assert page("a") == page("a", "failed") == "/a/report.html"
    (tmp_path / "a" / "viewer.html").touch()
    assert page("a") == "/a/viewer.html"
    assert page("a", "b") == "/a"  # faces of one photo have no common page
    (tmp_path / "index.html").touch()
    assert page("a", "b") == "/index.html"


@pytest.mark.slow
def test_directions_are_built_again_from_what_is_measured(script, tmp_path, fit_models, asset) -> None:
    asset("mobile_stylegan")
    keys = ["n=40", "folds=2", "block=20", "mistakes=4", "threads=1", f"out={tmp_path}"]
    first = script("train/edit_directions.py", *keys)
    assert first.returncode == 0, first.stderr
    names = ("latent_directions.safetensors", "worn.safetensors", "report.json", "mistakes_glasses.jpg")
    before = [(tmp_path / name).read_bytes() for name in names]
    (tmp_path / "samples" / "0000020.safetensors").write_bytes(b"damaged")
    second = script("train/edit_directions.py", *keys)
    assert second.returncode == 0, second.stderr
    assert before == [(tmp_path / name).read_bytes() for name in names]
    assert "n must be" in one_line(script("train/edit_directions.py", *keys[1:], "n=0"))
    few = one_line(script("train/edit_directions.py", "n=5", "folds=2", f"out={tmp_path / 'few'}"))
    assert "each side needs" in few or "samples" in few


def test_one_person_from_a_folder(script, tmp_path, fit_models) -> None:
    from facerecon.types import SavedFace

    folder = tmp_path / "ada"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / "1.jpg")
    Image.open(SAMPLE).convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "2.png")
    Image.fromarray(np.full((300, 300, 3), 128, np.uint8)).save(folder / "blank.jpg")
    out = tmp_path / "out"
    command = (f"img={folder}", "person=true", "fitting=smoke", "decoder=linear", f"out={out}")
    run = script("fit/reconstruct.py", *command, "export=[texture,obj,glb,viewer,panel,report]")
    assert run.returncode == 1, run.stderr  # one photo of three shows nobody
    lines = [line for line in run.stderr.splitlines() if line.startswith("left out: blank.jpg")]
    assert len(lines) == 1
    assert "no face found" in lines[0]
    assert "one head from 2 photos" in run.stdout
    head = out / "ada"
    made = {str(path.relative_to(head)) for path in head.rglob("*") if path.is_file()}
    assert made == {
        "head.glb", "head.mtl", "head.obj", "head.png", "head_eyes.png", "metrics.json", "panel.png",
        "params.safetensors",
        "photos/1/panel.png", "photos/1/params.safetensors", "photos/2/panel.png", "photos/2/params.safetensors",
        "report.html", "visibility.png", "texture.png", "turning.webp", "still.webp",
    } | ({"viewer.html"} if assets.status("viewer").state == "ready" else set())  # fmt: skip
    one, two, person = (SavedFace.load(head / f"{at}params.safetensors") for at in ("photos/1/", "photos/2/", ""))
    for face in (two, person):
        assert (face.params.identity == one.params.identity).all()
        assert (face.latent.codes == one.latent.codes).all()
    assert (one.params.rotation != two.params.rotation).any()
    assert not person.params.expression.any()
    assert list(json.loads((head / "metrics.json").read_text())["photos"]) == ["1", "2"]
    report = (head / "report.html").read_text()
    assert "Left out: blank.jpg" in report
    again = script("fit/reconstruct.py", *command, "export=[texture,obj,glb,viewer,panel,report]")
    assert "nothing to do" in again.stdout


def test_a_person_is_known_by_the_content_of_the_photos(tmp_path, monkeypatch, capsys) -> None:
    from facerecon.configs.compose import compose
    from facerecon.fit import person as module

    def done(job, sources) -> int:
        sources = list(sources)
        job.folder.complete(job.name, settings=job.settings, content=job.content, path=str(job.config.img))
        print(job.name, [source.folder for source in sources], [Path(source.name).parent.name for source in sources])
        return 0

    monkeypatch.setattr(module._Person, "run", done)
    for where in "ab":
        (tmp_path / where / "ada").mkdir(parents=True)
        (tmp_path / where / "ada" / "1.jpg").write_text(where)

    def start(source, *overrides: str) -> str:
        config = compose(
            "reconstruct", [f"img={tmp_path / source}", f"out={tmp_path / 'o'}", "person=true", *overrides]
        )
        module.reconstruct_person(config, "digest")
        return capsys.readouterr().out

    assert start("a/ada") == "ada ['1'] ['']\n"
    assert "ada is finished" in start("a/ada")
    other = start("b/ada")
    assert "ada is of other photos" in other and re.search(r"^ada-[0-9a-f]{12} \['1'\]", other, re.M)
    assert start("*/ada/1.jpg").splitlines()[-1].startswith("person ['1-") and "['ada', 'ada']" in start(
        "*/ada/*.jpg", "resume=false"
    )
    (tmp_path / "a" / "ada" / "1.jpg").write_text("changed")
    assert "has changed; its head is made again" in start("a/ada")
    assert "ada is finished" in start("a/ada")
    (tmp_path / "..jpg").write_text("x")
    assert start("..jpg").split()[0] in ("item", "jpg")  # not the parent of out


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["person=true", "face=all"], "face=all"),
        (["video=true", "frames=2"], "frames=3 or more"),
        (["video=true", "mask=face_mask.png"], "leave them out for a video"),
        (["img=nowhere.mp4"], "nowhere.mp4 does not exist"),
    ],
)
def test_wrong_words_about_a_person_are_refused(overrides, expected, tmp_path) -> None:
    from facerecon.configs.compose import compose
    from facerecon.errors import FaceReconError
    from facerecon.fit.person import reconstruct_person

    config = compose("reconstruct", [f"img={SAMPLE}", f"out={tmp_path / 'o'}", *overrides])
    with pytest.raises(FaceReconError, match=expected):
        reconstruct_person(config, "")


@pytest.mark.slow
def test_a_video_of_frames(script, tmp_path, fit_models) -> None:
    import torch

    from facerecon.types import SavedTrack

    clip, out = tmp_path / "nod.gif", tmp_path / "out"
    with Image.open(SAMPLE) as picture:
        photo = picture.convert("RGB").resize((256, 256))
    frames = [photo.rotate(3 * i, fillcolor=(90, 90, 90)) for i in (-1, 0, 1, 0, -1)]
    frames[0].save(clip, save_all=True, append_images=frames[1:], duration=[100, 100, 200, 100, 100])
    run = script(
        "fit/reconstruct.py", f"img={clip}", "video=true", "frames=4", "fitting=smoke", "decoder=linear", f"out={out}"
    )
    assert run.returncode == 0, run.stderr
    assert "one head from 4 frames" in run.stdout
    track = SavedTrack.load(out / "nod" / "track.safetensors")
    assert track.frames.tolist() == [0, 1, 3, 4]
    assert torch.allclose(track.times, torch.tensor([0.0, 0.1, 0.4, 0.5], dtype=torch.float64))
    params = track.face.params
    assert params.rotation.shape == (4, 3)
    assert torch.equal(params.identity, params.identity[:1].expand(4, -1))
    roll = torch.rad2deg(params.rotation[:, 2])
    assert torch.allclose((roll - roll[1])[[0, 3]].abs(), torch.tensor([3.0, 3.0]), atol=1.5)
    data = (out / "nod" / "head.glb").read_bytes()
    length = int.from_bytes(data[12:16], "little")
    (animation,) = json.loads(data[20 : 20 + length])["animations"]
    assert {channel["target"]["path"] for channel in animation["channels"]} == {"rotation", "weights"}
    film = [path for path in (out / "nod").iterdir() if path.stem == "overlay"]
    assert len(film) == 1
    if film[0].suffix == ".gif":  # without PyAV, which is said
        assert "PyAV is not installed" in run.stdout
        with Image.open(film[0]) as picture:
            assert picture.n_frames == 4
