"""three.js as one script for the pages of :mod:`facerecon.export.viewer`: what they use of it and no more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import torch
from safetensors.numpy import load_file

from facerecon import assets
from facerecon.errors import AssetError
from facerecon.storage import safetensors_bytes, write_whole

__all__ = ["bundle", "read_bundle", "why_no_viewer"]

_EXPORTS = """
export {
  AnimationMixer, Color, DataTexture, DirectionalLight, DoubleSide, LinearFilter, LinearMipmapLinearFilter,
  Matrix3, Matrix4, Mesh, MeshBasicMaterial, NeutralToneMapping, NoBlending, NoColorSpace, PMREMGenerator,
  PCFShadowMap, PerspectiveCamera, PlaneGeometry, Quaternion, SRGBColorSpace, Scene, ShaderMaterial,
  SphereGeometry, Texture, VSMShadowMap, Vector2, Vector3, WebGLRenderer,
} from "three";
export { GLTFLoader } from "./examples/jsm/loaders/GLTFLoader.js";
export { OrbitControls } from "./examples/jsm/controls/OrbitControls.js";
"""
_OPTIONS = (
    "--bundle", "--minify", "--format=iife", "--global-name=THREE", "--target=es2020", "--legal-comments=none",
    "--alias:three=./build/three.module.js", "--log-level=error",
)  # fmt: skip


def bundle(source: Path, target: Path) -> None:
    """Bundle three.js with the program esbuild.

    Args:
        source: the unpacked npm package, with esbuild's program in it; else the PATH's is taken.
        target: safetensors file of the bytes "script", which defines ``THREE``, and "license".

    Raises:
        AssetError: there is no esbuild, or it fails.
    """
    own = [source / name for name in ("esbuild", "esbuild.exe") if (source / name).is_file()]
    program = str(own[0]) if own else shutil.which("esbuild")
    if program is None:
        raise AssetError("esbuild is needed to bundle three.js and is not on the PATH; fetch viewer brings its own.")
    done = subprocess.run([program, *_OPTIONS], input=_EXPORTS.encode(), capture_output=True, cwd=source, check=False)
    if done.returncode:
        first = (done.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[0]
        raise AssetError(f"esbuild could not bundle three.js: {first}")
    texts = {"script": done.stdout, "license": (source / "LICENSE").read_bytes()}
    tensors = {name: torch.frombuffer(bytearray(text), dtype=torch.uint8) for name, text in texts.items()}
    write_whole(target, safetensors_bytes(tensors))


def read_bundle(path: Path) -> tuple[str, str]:
    """Script and license text of a file that :func:`bundle` wrote."""
    texts = load_file(path)
    return texts["script"].tobytes().decode(), texts["license"].tobytes().decode()


def why_no_viewer() -> str:
    """ "" where pages can be written; else one line that says how to get what they need."""
    found = assets.status("viewer")
    return "" if found.state == "ready" else found.message
