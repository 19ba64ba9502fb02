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

from facerecon.export.mesh import save_glb

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


@pytest.mark.parametrize("which", ["sphere_face", "hifi_face", "person", "socketed"])
@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_no_errors_or_warnings(which, image_format, request, tmp_path):
    face = request.getfixturevalue(which)
    report = validate(save_glb(face, tmp_path / "head.glb", image_format=image_format))
    issues = report["issues"]
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
    assert report["info"]["hasMorphTargets"] is bool(face.expression_names) and report["info"]["hasTextures"]


def test_the_validator_can_fail(sphere_face, tmp_path):
    path = save_glb(sphere_face, tmp_path / "head.glb")
    broken = path.read_bytes().replace(b'"VEC3"', b'"VEC2"', 1)
    path.write_bytes(broken)
    assert validate(path)["issues"]["numErrors"] > 0
