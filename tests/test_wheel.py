"""The wheel holds everything, and works from any folder: scripts as commands, configurations, models of our own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [path for room in ("fit", "train") for path in sorted((ROOT / room).glob("*.py"))
           if (ROOT / "configs" / f"{path.stem}.yaml").is_file()]  # fmt: skip
MAPPED = ("configs", "fit", "train")
FOLDER = {room: f"facerecon/{room}" for room in MAPPED}
"""Where a folder of the repository is in the wheel."""


def place(path: Path) -> str:
    """Where a file of the repository is in the wheel."""
    first, *rest = path.relative_to(ROOT).parts
    return "/".join([FOLDER.get(first, first), *rest])


def packaged(*patterns: str) -> set[str]:
    """Places in the wheel of the files that match, in the package's folders."""
    return {place(path) for room in ("facerecon", *MAPPED) for pattern in patterns
            for path in (ROOT / room).rglob(pattern) if "__pycache__" not in path.parts}  # fmt: skip


@pytest.fixture(scope="module")
def distribution():
    """What setup.py describes, without building it."""
    pytest.importorskip("setuptools", reason="setuptools is not installed (pip install -e '.[dev]')")
    from distutils.core import run_setup

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_setup("setup.py", stop_after="init")


@pytest.fixture(scope="module")
def listed(distribution) -> set[str]:
    """The files that a wheel would hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build = distribution.get_command_obj("build_py")
        build.ensure_finalized()
        names = build.get_outputs(include_bytecode=False)
        return {Path(name).relative_to(build.build_lib).as_posix() for name in names}


def test_the_wheel_lists_every_module_configuration_and_weight(listed) -> None:
    wanted = packaged("*.py", "*.yaml", "py.typed") | {place(path) for path in (ROOT / "facerecon" / "data").iterdir()}
    wanted |= {place(path) for path in ROOT.glob("facerecon/export/templates/*")}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert "facerecon/configs/fitting/paper.yaml" in wanted and "facerecon/fit/reconstruct.py" in wanted
    assert sorted(wanted ^ listed) == []


def test_each_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for room in ("facerecon", *MAPPED) for path in (ROOT / room).rglob("*.py")}
    folders |= {path.parent for path in (ROOT / "configs").rglob("*.yaml")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_each_script_is_a_command(distribution) -> None:
    entries = dict(entry.split(" = ") for entry in distribution.entry_points["console_scripts"])
    assert len(SCRIPTS) == len(list((ROOT / "configs").glob("*.yaml")))
    assert entries == {
        f"facerecon-{path.stem.replace('_', '-')}": f"facerecon.{path.parent.name}.{path.stem}:command"
        for path in SCRIPTS
    }
    for target in entries.values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_no_file_changes_the_search_path() -> None:
    changing = "sys.path"
    rooms = ("facerecon", *MAPPED, "benchmarks", "tools", "tests", "notebooks")
    files = [path for room in rooms for suffix in ("*.py", "*.ipynb") for path in (ROOT / room).rglob(suffix)]
    assert len(files) > 200
    found = [str(path.relative_to(ROOT)) for path in files if changing in path.read_text(encoding="utf-8")]
    assert set(found) == {
        "facerecon/assets/sdist.py",  # run alone by a pip of anybody's: takes its own folder out, adds nothing
        "tests/assets/test_doctor.py",  # of a Python that has nothing installed
        "tools/install.py",  # runs before anything is installed
        "tests/export/blender_scene.py",  # runs in Blender, whose Python lacks numpy
        str(Path(__file__).relative_to(ROOT)),
    }


# -- a wheel, installed ---------------------------------------------------------------------------------


def run(*command: object, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    """A command in an environment that knows nothing of this checkout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env | more, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout."""
    if not any(map(importlib.util.find_spec, ("setuptools.command.bdist_wheel", "wheel"))):
        pytest.skip("setuptools 70.1 or newer, which builds wheels, is not installed (pip install -e '.[dev]')")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ("facerecon", *MAPPED):
        shutil.copytree(ROOT / room, copy / room, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, copy / name)
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation",
               "--wheel-dir", folder, copy, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return next(folder.glob("facerecon-*.whl"))


def installed(wheel: Path, python: str, folder: Path) -> Path:
    """The wheel in a fresh environment of an interpreter; returns the folder of its commands."""
    done = run(python, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    done = run(sys.executable, "-m", "pip", "--python", commands / "python", "install", "--no-deps", "--no-index",
               wheel, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return commands


def other_pythons() -> list[str]:
    """Interpreters of other versions from 3.10 on that are at hand, the newest first."""
    found = {}
    for minor in range(10, 16):
        if minor == sys.version_info.minor:
            continue
        name = f"python3.{minor}"
        for path in filter(None, [shutil.which(name), *map(str, Path.home().glob(f".pyenv/versions/*/bin/{name}"))]):
            if subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0:
                found[minor] = path
    return [found[minor] for minor in sorted(found, reverse=True)]


@pytest.mark.slow
def test_the_wheel_holds_what_is_listed(wheel, listed) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == listed


@pytest.mark.slow
def test_an_installed_wheel_reconstructs_from_an_empty_folder(wheel, fit_models, tmp_path) -> None:
    commands = installed(wheel, sys.executable, tmp_path / "venv")
    site = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    outer = [path for path in sys.path if path.endswith("site-packages")]
    (Path(site.stdout.strip()) / "outer.pth").write_text("\n".join(outer))
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(commands / "python", "-c", "import facerecon.fit.models as m; print(m.__file__)", cwd=empty)
    assert str(tmp_path / "venv") in where.stdout, where.stderr
    for script in SCRIPTS:
        told = run(commands / f"facerecon-{script.stem.replace('_', '-')}", "--help", cwd=empty)
        assert told.returncode == 0 and "Keys and defaults" in told.stdout, told.stderr
    shutil.copyfile(ROOT / "samples" / "astronaut.jpg", empty / "face.jpg")
    done = run(commands / "facerecon-reconstruct", "img=face.jpg", "fitting=smoke", "decoder=linear", "threads=1",
               cwd=empty)  # fmt: skip
    assert done.returncode == 0, done.stderr
    face = empty / "outputs" / "reconstruct" / "face"
    assert {"panel.png", "texture.png", "head.glb", "head.obj", "report.html", "params.safetensors"} <= {
        path.name for path in face.iterdir()
    }
    done = run(commands / "facerecon-render", f"params={face / 'params.safetensors'}", "yaw=20", "out=view.png",
               cwd=empty)  # fmt: skip
    assert done.returncode == 0 and (empty / "view.png").is_file(), done.stderr


@pytest.mark.slow
def test_the_wheel_installs_on_another_python(wheel, listed, tmp_path) -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python from 3.10 on is at hand")
    commands = installed(wheel, pythons[0], tmp_path / "venv")
    code = ("import facerecon, importlib.metadata as m; print(facerecon.__version__); "
            "print(*(p for p in m.files('facerecon') if '.dist-info' not in str(p)), sep='\\n')")  # fmt: skip
    done = run(commands / "python", "-c", code, cwd=tmp_path, PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    version, *files = done.stdout.split()
    assert f"facerecon-{version}-" in wheel.name
    assert {Path(name).as_posix() for name in files if "__pycache__" not in name} >= listed
    done = run(commands / "python", "-m", "facerecon.assets", "list", cwd=tmp_path)
    assert done.returncode == 0 and "makehuman" in done.stdout, done.stderr
