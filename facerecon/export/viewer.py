"""One head as a page to play with: ``viewer.html`` turns it, lights it, moves its face and lays it over its photo.

The page is one file that loads nothing: three.js (asset ``viewer``), our own module (``templates/viewer.mjs``), the
gzipped GLB, the photo and two small maps are in it, and a content security policy names the scripts by their sha256.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from facerecon import assets
from facerecon.export.bundle import read_bundle
from facerecon.export.mesh import METERS_PER_UNIT, one_subject, resized
from facerecon.export.report import library_version, page_template
from facerecon.export.views import crop_camera, posed_vertices
from facerecon.geometry.camera import camera_in_photo, project
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import to_pil, write_bytes
from facerecon.imaging.masks import dilate, erode, feather
from facerecon.morphable.eyes import SCLERA
from facerecon.render.uv import region_texels
from facerecon.types import Camera, Observation, ReconstructedFace

__all__ = ["write_viewer"]

PHOTO_SIDE = 1024
"""Largest side of the photo in the page, pixels."""

_COVERAGE_SIDE = 256
_INNER = ("eyes", "mouth", "teeth", "tongue", "sockets")
_GL_AXES = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # camera's x right, y down, z forward -> y up, z backward
_DARKEST_SCLERA = 0.4


@torch.no_grad()
def write_viewer(
    path: str | os.PathLike,
    glb: bytes | str | os.PathLike,
    face: ReconstructedFace,
    observation: Observation | None = None,
    *,
    index: int | None = None,
    name: str | None = None,
    lead: str = "",
) -> Path:
    """Write one self-contained ``viewer.html``.

    Args:
        path: the file to write.
        glb: of the head, bytes or a file as :func:`~facerecon.export.save_glb` writes it.
        face: the fit as the photo shows it: its light, pose, expression and camera. Of a person or a video one row will
            do, while ``glb`` is the person's.
        observation: of the photo; without it the page has none.
        index: which subject of a batch, in both ``face`` and ``observation``.
        name: headline; the photo's file name by default.
        lead: a line below it.

    Raises:
        AssetError: three.js is not in the cache.
        InputError: the batch holds several subjects and ``index`` is not given.
    """
    script, license = read_bundle(assets.locate("viewer"))
    face = one_subject(face, index, "a viewer shows").to("cpu")
    if observation is not None:
        observation = one_subject(observation, index, "a viewer shows").to("cpu")
    content = glb if isinstance(glb, bytes) else Path(glb).read_bytes()
    if name is None:
        name = os.path.basename(str(face.path[0])) if face.path else "face"
    camera = None if observation is None else crop_camera(face, observation)
    crop = None if observation is None else _photo_square(observation, project(camera, posed_vertices(face))[0])
    data = _data(face)
    if camera is not None:
        data["photo"] = _photo_camera(face, _cropped(camera, crop))
    photo = None if crop is None else _photo(observation, crop)
    program, style = (_text(file) for file in ("viewer.mjs", "viewer.css"))
    policy = (
        f"default-src 'none'; script-src {_hash(script)} {_hash(program)}; style-src {_hash(style)}; "
        "img-src data: blob:; connect-src blob:; base-uri 'none'; form-action 'none'"
    )
    page = page_template("viewer.html").render(
        name=name, lead=lead, photo=photo, policy=Markup(policy), style=Markup(style), program=Markup(program),
        library=Markup(script), license=license, data=Markup(json.dumps(data).replace("<", "\\u003c")),
        glb=Markup(base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()), size=f"{len(content) / 1e6:.1f}",
        made_with=f"facerecon {library_version()}",
    )  # fmt: skip
    return write_bytes(path, page.encode("utf-8", "backslashreplace"))


def _text(name: str) -> str:
    """A file of ``templates/``, as a browser reads it."""
    return files("facerecon.export").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source of a content security policy: the sha256 of an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(face: ReconstructedFace) -> dict[str, Any]:
    """What the page's module reads."""
    shade, scale = _shade_map(face)
    rotation = euler_to_matrix(face.params.rotation)[0]
    camera_axes = face.camera.rotation[0]
    return {
        "file": "head.glb",
        "fitted": dict(zip(face.expression_names, _rounded(face.params.expression[0], 5), strict=True)),
        "light": {"coefficients": _rounded(face.params.light.coefficients[0], 6), "space": face.params.light.space},
        "pose": _matrix4(rotation),
        "axes": _matrix4((_GL_AXES @ camera_axes).mT),
        "frame": _frame(face),
        "shade": shade,
        "shadeRange": scale,
        "coverage": _coverage(face),
        "eyeShade": _eye_shade(face),
        "photo": None,
    }


def _rounded(values: Tensor, digits: int) -> Any:
    def plain(value: Any) -> Any:
        return [plain(v) for v in value] if isinstance(value, list) else round(value, digits)

    return plain(values.double().tolist())


def _matrix4(matrix: Tensor, shift: Tensor | None = None) -> list[float]:
    """A (3, 3) matrix and a shift as the 16 numbers of WebGL, column by column."""
    whole = torch.eye(4, dtype=torch.float64)
    whole[:3, :3] = matrix.double()
    if shift is not None:
        whole[:3, 3] = shift.double()
    return whole.mT.flatten().tolist()


def _frame(face: ReconstructedFace) -> dict[str, Any]:
    """What of the head a camera should hold, in meters: the head without its neck."""
    head = face.neutral_vertices[0]
    topology = face.topology
    kept = topology.faces if "neck" not in topology.regions else topology.faces[~topology.regions["neck"]]
    head = head[kept.unique()]
    low, high = head.amin(0), head.amax(0)
    center = (low + high) / 2
    radius = (head - center)[:, [0, 2]].norm(dim=1).max()
    scaled = [float(v) * METERS_PER_UNIT for v in (high[1] - low[1], radius)]
    return {
        "center": _rounded(center * METERS_PER_UNIT, 5), "height": round(scaled[0], 5), "radius": round(scaled[1], 5),
    }  # fmt: skip


def _photo_camera(face: ReconstructedFace, camera: Camera) -> dict[str, list[float]]:
    """View and projection (16 numbers each) from the head's meters into the square of the crop, as WebGL takes them."""
    turn = euler_to_matrix(face.params.rotation)[0].double()
    axes, rotation = _GL_AXES.double(), camera.rotation[0].double()
    view = axes @ rotation @ turn
    shift = axes @ (rotation @ face.params.translation[0].double() + camera.translation[0].double())
    depth = (posed_vertices(face)[0].double() @ rotation.mT + camera.translation[0].double())[:, 2] * METERS_PER_UNIT
    near, far = 0.5 * float(depth.amin()), 2.0 * float(depth.amax())
    focal = camera.focal[0].double().expand(2)
    pixels = torch.eye(3, dtype=torch.float64)
    pixels[:2] = camera.warp[0].double() @ torch.tensor(
        [[focal[0], 0, camera.center[0, 0]], [0, focal[1], camera.center[0, 1]], [0, 0, 1]], dtype=torch.float64
    )
    height, width = camera.size
    clip = torch.zeros(4, 4, dtype=torch.float64)
    clip[0, :3] = pixels[0] * 2 / width - pixels[2]
    clip[1, :3] = pixels[2] - pixels[1] * 2 / height
    clip[2] = torch.tensor([0, 0, (far + near) / (far - near), -2 * far * near / (far - near)])
    clip[3, :3] = pixels[2]
    clip[:, :3] = clip[:, :3] @ axes
    return {"view": _matrix4(view, shift * METERS_PER_UNIT), "projection": clip.mT.flatten().tolist()}


def _photo_square(observation: Observation, points: Tensor) -> tuple[int, int, int]:
    """Left, top and side of the largest square of the full crop that the photo fills and the head (V, 3) is in the
    middle of, as far as it can be."""
    valid = observation.full.valid[0, 0] > 0.5
    rows, columns = valid.any(1).nonzero()[:, 0], valid.any(0).nonzero()[:, 0]
    if not len(rows):
        return 0, 0, valid.shape[0]
    low = [int(columns[0]), int(rows[0])]
    size = [int(columns[-1]) + 1 - low[0], int(rows[-1]) + 1 - low[1]]
    side = min(size)
    middle = (points[:, :2].amin(0) + points[:, :2].amax(0)) / 2
    left, top = (low[k] + min(max(round(float(middle[k]) - side / 2) - low[k], 0), size[k] - side) for k in (0, 1))
    return left, top, side


def _cropped(camera: Camera, crop: tuple[int, int, int]) -> Camera:
    left, top, side = crop
    shift = torch.tensor([[1.0, 0.0, -left], [0.0, 1.0, -top]]).to(camera.warp)
    return camera_in_photo(camera, shift[None], (side, side))


def _photo(observation: Observation, crop: tuple[int, int, int]) -> str:
    full, (left, top, side) = observation.full, crop
    gray = full.image.new_tensor([0.8, 0.81, 0.82]).view(1, 3, 1, 1)
    image = full.image * full.valid + gray * (1 - full.valid)
    image = image[..., top : top + side, left : left + side]
    return _encoded(to_pil(resized(image, min(PHOTO_SIDE, side))[0]), "JPEG", quality=88)


def _shade_map(face: ReconstructedFace) -> tuple[str, list[float]]:
    """Residual shading as a picture of its binary logarithm, and [offset, scale] from the picture back to that."""
    if face.residual_shading is None:
        return _encoded(Image.new("RGB", (1, 1)), "PNG"), [0.0, 0.0]
    powers = face.residual_shading[0].clamp(min=2**-8).log2()
    low, high = (round(float(end), 6) for end in (powers.amin(), powers.amax()))
    span = max(high - low, 1e-6)
    return _encoded(to_pil(((powers - low) / span).clamp(0, 1)), "PNG", optimize=True), [low, span]


def _coverage(face: ReconstructedFace) -> str:
    """Where the photo shows texels (red), and which belong to the face (green, its border soft), in UV."""
    seen = resized(face.visibility.float(), _COVERAGE_SIDE).clamp(0, 1)
    topology = face.topology
    if "face" in topology.regions:
        mask = feather(erode(dilate(region_texels(topology, ("face", *_INNER), _COVERAGE_SIDE), 3), 3), 5)
        mask = torch.maximum(mask, region_texels(topology, _INNER, _COVERAGE_SIDE))
    else:
        mask = torch.ones_like(seen)
    return _encoded(to_pil(torch.cat([seen, mask, torch.zeros_like(seen)], 1)[0].clamp(0, 1)), "PNG", optimize=True)


def _eye_shade(face: ReconstructedFace) -> float:
    """From the eyes of the GLB, which are brightened for a viewer's light, back to what the photo's light shows."""
    if face.irises is None:
        return 1.0
    white = max(float(face.irises.sclera[0].mean()), _DARKEST_SCLERA)
    return round(math.sqrt(white / float(np.mean(SCLERA))), 4)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
