"""The notebooks: kept without outputs, use names that exist, and run from top to bottom."""

from __future__ import annotations

import ast
import base64
import importlib
import io
import json
import shutil
from pathlib import Path

import pytest

import facerecon

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"components": 8, "edit_latents": 4, "quickstart": 5, "three_stages": 3, "unwrap_a_photo": 4}
"""Least number of pictures that a run shows."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path: Path) -> list[dict]:
    """The code cells of a notebook."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_these_are_the_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 300_000


@each_notebook
def test_a_notebook_is_kept_clean(path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert notebook["cells"][0]["cell_type"] == "markdown"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in code_of(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        assert all(len(line.rstrip("\n")) <= 140 for line in cell["source"])


@each_notebook
def test_a_notebook_uses_names_that_exist(path) -> None:
    chains = set()
    for cell in code_of(path):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("facerecon"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
            names: list[str] = []
            while isinstance(node, ast.Attribute):
                names.insert(0, node.attr)
                node = node.value
            if names and isinstance(node, ast.Name) and node.id == "fr":
                chains.add(tuple(names))
    assert chains
    for first, *rest in chains:
        assert first in dir(facerecon), first
        value = getattr(facerecon, first)
        for name in rest:
            assert hasattr(value, name), f"fr.{first}: {name}"
            value = getattr(value, name)


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch, asset) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (pip install -e '.[dev]')")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (pip install -e '.[dev]')")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (pip install -e '.[dev]')")
    from PIL import Image

    for name in facerecon.assets.PACKS["open"]:
        asset(name)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for key in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(key, str(tmp_path / key))  # nobody's own settings
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    told = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert "Warning" not in told and "Traceback" not in told, told
    data = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(data) >= PICTURES[path.stem]
    for picture in data:
        low_high = Image.open(io.BytesIO(base64.b64decode(picture))).convert("L").getextrema()
        assert low_high[1] - low_high[0] > 100
    if path.stem == "quickstart":
        made = {file.name for file in (tmp_path / "outputs" / "quickstart").iterdir()}
        assert {"head.glb", "head.obj", "report.html", "turntable.webp"} <= made
