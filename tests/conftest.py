"""Fixtures that every room's tests may use."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from facerecon import assets
from facerecon.errors import AssetError
from facerecon.run.seeds import seed_everything

torch.set_num_threads(2)


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
def hifi3dpp_mat(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.mat` file laid out as HiFi3D++'s, of full size (250 MB), with the mesh of the shared head."""
    path = Path(__file__).with_name("hifi3dpp_file.py")
    spec = importlib.util.spec_from_file_location("hifi3dpp_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_hifi3dpp(reference, tmp_path_factory.mktemp("hifi3dpp") / "hifi3dpp_model_info.mat")


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
