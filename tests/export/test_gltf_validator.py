"""The Khronos glTF validator (npm ``gltf-validator``), where node and the module are at hand.

Set FACERECON_GLTF_VALIDATOR to the module's folder, or run ``npm install gltf-validator`` at the
repository root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from facerecon.export.mesh import save_glb
from facerecon.types import FaceParams

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
const validator = require(process.argv[1]);
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[2]));
validator.validateBytes(bytes).then(
  report => console.log(JSON.stringify(report)),
  error => { console.error(String(error)); process.exit(3); });
"""


def validate(path: Path) -> dict:
    """The validator's report on a GLB file; skips where it cannot run."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    module = Path(os.environ.get("FACERECON_GLTF_VALIDATOR") or ROOT / "node_modules" / "gltf-validator")
    if not module.is_dir():
        pytest.skip("npm package gltf-validator not found; set FACERECON_GLTF_VALIDATOR to its folder")
    done = subprocess.run(
        [node, "-e", SCRIPT, str(module.resolve()), str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_clean(report: dict) -> None:
    """No errors, no warnings, nothing to note."""
    issues = report["issues"]
    counts = [issues[name] for name in ("numErrors", "numWarnings", "numInfos", "numHints")]
    assert counts == [0, 0, 0, 0], issues["messages"]


@pytest.mark.parametrize(
    "which",
    ["sphere_face", "hifi_face", "person", "scanned", "socketed", pytest.param("gnm_face", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("eyes", [True, False])
def test_no_errors_or_warnings(which, eyes, request, tmp_path):
    face = request.getfixturevalue(which)
    report = validate(save_glb(face, tmp_path / "head.glb", eyes=eyes, image_format="png" if eyes else "jpeg"))
    assert_clean(report)
    assert report["info"]["hasMorphTargets"] is bool(face.expression_names) and report["info"]["hasTextures"]
    drawn = eyes and "eyes" in face.topology.regions
    assert report["info"]["materialCount"] == 1 + drawn


@pytest.mark.parametrize(
    "which", ["sphere_face", "person", "scanned", "socketed", pytest.param("gnm_face", marks=pytest.mark.slow)]
)
def test_an_animated_file_is_clean(which, request, tmp_path):
    face = request.getfixturevalue(which)
    track = FaceParams.cat([face.params] * 3)
    track = track.replace(rotation=torch.tensor([[0.0, -0.2, 0.0], [0.1, 0.0, 0.0], [0.0, 0.3, 0.1]]))
    report = validate(save_glb(face, tmp_path / "head.glb", track=track, times=[0.0, 0.04, 0.08]))
    assert_clean(report)
    assert report["info"]["animationCount"] == 1


@pytest.mark.parametrize("which", ["sphere_face", "person"])
def test_floats_are_clean_too(which, request, tmp_path):
    face = request.getfixturevalue(which)
    report = validate(save_glb(face, tmp_path / "head.glb", quantize=False))
    assert_clean(report)
    assert "extensionsRequired" not in report["info"]


def test_the_validator_can_fail(sphere_face, tmp_path):
    path = save_glb(sphere_face, tmp_path / "head.glb")
    broken = path.read_bytes().replace(b'"VEC3"', b'"VEC2"', 1)
    path.write_bytes(broken)
    assert validate(path)["issues"]["numErrors"] > 0
