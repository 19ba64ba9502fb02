"""The public names resolve, are listed, and cost nothing until they are used."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import facerecon

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "numba", "kornia", "lpips", "hydra", "wandb", "pygltflib", "scipy", "PIL", "numpy"}
NEVER = {"hydra", "wandb", "omegaconf", "lpips", "kornia", "matplotlib"}


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter at the repository root."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running ``code``."""
    names = run_python(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    return {name.split(".")[0] for name in json.loads(names.splitlines()[-1])}


@pytest.mark.parametrize("name", facerecon.__all__)
def test_public_names_resolve_to_their_home(name):
    value = getattr(facerecon, name)
    if name in facerecon._HOMES:
        home = importlib.import_module(f"facerecon.{facerecon._HOMES[name]}")
        assert value is getattr(home, name)
        assert value.__doc__, f"{name} has no docstring"
    else:
        assert value is sys.modules[f"facerecon.{name}"]


def test_dir_lists_them_and_little_else():
    listed = set(dir(facerecon))
    assert set(facerecon.__all__) <= listed
    assert set(facerecon._HOMES) <= set(facerecon.__all__)
    assert len(facerecon._HOMES) <= 20


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="load_nothing"):
        facerecon.load_nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from facerecon import load_nothing")


def test_importing_the_library_loads_nothing_heavy():
    """A fortiori `import facerecon` costs at most 1.3 times `import torch`."""
    assert HEAVY.isdisjoint(modules_after("import facerecon"))
    assert HEAVY.isdisjoint(modules_after("import facerecon.export, facerecon.errors"))


def test_no_public_name_loads_what_only_scripts_use():
    loaded = modules_after("import facerecon\nfor name in facerecon.__all__: getattr(facerecon, name)")
    assert NEVER.isdisjoint(loaded)
    assert "torch" in loaded


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "facerecon" / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(facerecon.__all__)


def test_export_room_is_lazy_too():
    listed = json.loads(run_python("import facerecon.export, json; print(json.dumps(dir(facerecon.export)))"))
    from facerecon import export

    assert set(export.__all__) <= set(listed)
    for name in export.__all__:
        assert getattr(export, name).__doc__
    with pytest.raises(AttributeError, match="save_fbx"):
        export.save_fbx  # noqa: B018
