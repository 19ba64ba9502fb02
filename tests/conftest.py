"""Fixtures that every room's tests may use."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# several workers share the machine: one thread each, in the processes that tests start, too
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

from facerecon import assets
from facerecon.errors import AssetError
from facerecon.morphable import load_face_model
from facerecon.run import signals
from facerecon.run.seeds import seed_everything

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# `make test` is itself a make: one that a test starts takes neither its level nor its words (make test ARGS=...)
for _name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "IMG", "OUT", "HEAD", "ARGS"):
    os.environ.pop(_name, None)
ROOT = Path(__file__).resolve().parents[1]
_found = importlib.util.find_spec("facerecon.configs")
if _found is None or Path(_found.origin).resolve().parent != ROOT / "configs":
    raise pytest.UsageError(
        f"the tests need this checkout, installed: facerecon.configs is {_found and _found.origin}; "
        f"run `make setup`, or `pip install -e .` in {ROOT}"
    )


def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On one thread sums are taken in one order: results can be compared to the last bit."""
    yield from _threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch may use two threads, whatever the tests' workers have."""
    yield from _threads(2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same global random state at the start of every test."""
    seed_everything(0)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with real reference data, beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the reference data (folder shared/reference beside the repository) is not here")
    return folder


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """``asset("makehuman")``: path of a converted asset; skips the test where it is not in the cache."""

    def find(name: str) -> Path:
        try:
            return assets.locate(name)
        except AssetError as error:
            pytest.skip(str(error))

    return find


@pytest.fixture(scope="session")
def observe_models(asset: Callable[[str], Path]) -> None:
    """Skips the test where something that ``observe`` needs is not in the cache."""
    for name in (
        "face_detector",
        "landmarks68",
        "facemesh478",
        "expression52",
        "identity128",
        "sface",
        "faceres1024",
        "bisenet",
    ):
        asset(name)


@pytest.fixture(scope="session")
def fit_models(asset: Callable[[str], Path], observe_models: None) -> None:
    """Skips the test where something that a fit of a photo needs, its figures included, is not in the cache."""
    for name in ("makehuman", "sface", "lpips_alexnet", "lpips_vgg16"):
        asset(name)


def _module(name: str) -> types.ModuleType:
    """A module of this folder, which is no package."""
    path = Path(__file__).parent / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hifi3dpp_mat(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.mat` file laid out as HiFi3D++'s, of full size (250 MB), with the mesh of the shared head."""
    folder = tmp_path_factory.mktemp("hifi3dpp")
    return _module("hifi3dpp_file.py").write_hifi3dpp(reference, folder / "hifi3dpp_model_info.mat")


@pytest.fixture(scope="session")
def gnm_files(asset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Folder with files laid out as GNM Head v3's, of full size, and the makehuman vertex of each of its vertices."""
    asset("makehuman")
    folder = tmp_path_factory.mktemp("gnm")
    return folder, _module("gnm_file.py").write_gnm(load_face_model("makehuman_artist", num_identity=170), folder)


@pytest.fixture(scope="session")
def release(reference: Path, hifi3dpp_mat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of the FFHQ-UV release that is converted, of random tensors (2 GB; for slow tests)."""
    small = _module("stylegan/test_released_checkpoints.py")
    folder = tmp_path_factory.mktemp("release") / "FFHQ-UV"
    state = small.random_state(small.SMALL)
    return _module("released_files.py").write_release(folder, reference, hifi3dpp_mat, state)


@pytest.fixture(scope="session")
def release_home(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which that release is converted beside the open pack."""
    from facerecon.assets.__main__ import main

    home = tmp_path_factory.mktemp("home")
    if (assets.home() / "assets").is_dir():
        ignore = shutil.ignore_patterns(".*")
        shutil.copytree(assets.home() / "assets", home / "assets", ignore=ignore, copy_function=os.symlink)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACERECON_HOME", str(home))
        assert main(["convert", "ffhq_uv", str(release)]) == 0
    return home


@pytest.fixture
def run_script(monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess]:
    """``run_script("fit/render.py", "size=256", FACERECON_HOME=folder)``: a script as the shell runs it, but in this
    process, which has torch and the models loaded. Returns exit status, standard output and standard error.

    What a process of its own is for (signals, kills, promises of bytes) starts one itself.
    """
    monkeypatch.setattr(signals, "_listen", lambda: None)  # a script leaves the handlers of the tests as they are
    before = torch.get_num_threads()

    def run(name: str, *overrides: str, **environment: str) -> subprocess.CompletedProcess:
        from facerecon.configs.compose import run as compose_and_run

        module = importlib.import_module(f"facerecon.{name.removesuffix('.py').replace('/', '.')}")
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            status = compose_and_run(module.main, Path(name).stem, module.__doc__, list(overrides))
        torch.set_num_threads(before)
        return subprocess.CompletedProcess([name, *overrides], status, *capfd.readouterr())

    return run


@pytest.fixture
def same():
    """Function that fails where two nested results differ in a bit, with the path of the part."""

    def same(a, b, path: str = "") -> None:
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), path
        elif isinstance(a, dict):
            assert set(a) == set(b), path
            for key in a:
                same(a[key], b[key], f"{path}.{key}")
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b), path
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                same(x, y, f"{path}.{i}")
        else:
            assert a == b, path

    return same


@pytest.fixture(scope="session")
def _tables_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("derived")


@pytest.fixture(scope="module")
def own_tables(_tables_home: Path) -> Iterator[Path]:
    """Derived tables (correspondences and their like) come from a folder of this run, not from the user's cache."""
    original = assets.derived

    def derived(name, key, build):
        if name == "makehuman":  # half a minute's work, and the same file anywhere
            return original(name, key, build)
        with pytest.MonkeyPatch.context() as inner:
            inner.setenv("FACERECON_HOME", str(_tables_home))
            return original(name, key, build)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "derived", derived)
        yield _tables_home
