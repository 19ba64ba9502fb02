"""Pictures of a reconstructed head: the panel, relit and turned views, animations, and a live preview.

Everything is drawn at twice the size and averaged down, so that outlines are smooth. Heads are drawn straight
from the rasterizer's fragments: one raster serves every light.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from facerecon.errors import ConfigError, InputError
from facerecon.export.mesh import one_subject, resized
from facerecon.geometry.alignment import invert_affine
from facerecon.geometry.camera import camera_in_photo, clip_coordinates, project
from facerecon.geometry.lighting import sh_basis, shade
from facerecon.geometry.mesh import vertex_normals
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import to_pil, write_bytes
from facerecon.imaging.masks import feather
from facerecon.render.interpolate import fragments, interpolate
from facerecon.render.renderer import Renderer
from facerecon.types import Camera, MeshTopology, Observation, ReconstructedFace, SHLight

__all__ = [
    "Shot",
    "captioned_sheet",
    "clay",
    "landmark_view",
    "live_panel",
    "overlay",
    "overlays",
    "panel",
    "person_panel",
    "portrait_camera",
    "posed_vertices",
    "relit_strip",
    "save_animation",
    "sh_directional_light",
    "shoot",
    "studio_light",
    "textured",
    "turning_thumbnail",
    "turntable",
    "turned_view",
]

_OVERSAMPLING = 2
_PAGE = (255, 255, 255)
_INK = (32, 36, 42)
_FAINT = (116, 124, 134)
_BACKDROP = (0.905, 0.915, 0.925)
_OBSERVED = (64, 224, 255)
_PREDICTED = (255, 92, 64)


# -- shots: a head seen by a camera, ready for any light -------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """One head in one view, not yet lit.

    Args:
        albedo: (1, 3, H, W) in [0, 1], the texture as seen; 0 on background.
        normals: (1, H, W, 3) unit vectors in world axes; 0 on background.
        mask: (1, 1, H, W) in {0, 1}.
        region: (1, 1, H, W) in {0, 1}, pixels of the face region (the mask where the mesh names none).
    """

    albedo: Tensor
    normals: Tensor
    mask: Tensor
    region: Tensor


def shoot(
    vertices: Tensor, texture: Tensor, topology: MeshTopology, camera: Camera, size: int, backend: str = "auto"
) -> Shot:
    """Rasterize one head and gather what shading needs.

    Args:
        vertices: (1, V, 3), world, posed.
        texture: (1, 3, S, S) in [0, 1].
        topology: of the head model.
        camera: of batch 1; its field of view is kept whatever ``size`` is.
        size: side of the square picture in pixels.
        backend: of the rasterizer.
    """
    found = fragments(clip_coordinates(camera, vertices), topology.faces, (size, size), backend)
    normals = interpolate(found, vertex_normals(vertices, topology.faces), topology.faces)
    uv = interpolate(found, topology.uvs[None], topology.uv_faces)
    grid = torch.stack([uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2], dim=-1)
    mask = (found.face_index >= 0)[:, None].to(texture.dtype)
    albedo = functional.grid_sample(texture, grid, padding_mode="border", align_corners=False) * mask
    region = mask
    if "face" in topology.regions:
        flags = torch.cat([topology.regions["face"], topology.regions["face"].new_zeros(1)])  # -1: background
        region = flags[found.face_index][:, None].to(texture.dtype)
    return Shot(albedo, functional.normalize(normals, dim=-1), mask, region)


def textured(shot: Shot, light: SHLight) -> Tensor:
    """The shot's texture in a light: (1, 3, H, W) in [0, 1], 0 on background."""
    shading = shade(shot.normals, light).permute(0, 3, 1, 2)
    return (shot.albedo * shading).clamp(0, 1) * shot.mask


def clay(shot: Shot) -> Tensor:
    """The shot's shape as gray clay in a studio (key, fill, sky and rim light): (1, 3, H, W) in [0, 1]."""
    normals = shot.normals

    def lamp(x: float, y: float, z: float) -> Tensor:
        direction = functional.normalize(normals.new_tensor([x, y, z]), dim=0)
        return (normals @ direction).clamp(min=0)

    sky = 0.5 + 0.5 * normals[..., 1]
    light = 0.03 + 0.11 * sky + 0.72 * lamp(-0.7, 0.62, 0.5) + 0.10 * lamp(0.9, 0.0, 0.3)
    gloss = 0.06 * lamp(-0.4, 0.4, 0.85) ** 32
    rim = 0.08 * (1 - normals[..., 2].clamp(0, 1)) ** 4
    linear = (0.62 * light + gloss + rim).clamp(0, 1)
    color = torch.stack([linear, linear * 0.985, linear * 0.965], dim=1)
    return color.clamp(min=0) ** (1 / 2.2) * shot.mask


# -- lights and cameras ----------------------------------------------------------------------------------


def sh_directional_light(
    direction: Sequence[float], color: Sequence[float] = (1.0, 1.0, 1.0), ambient: float = 0.0
) -> SHLight:
    """A far lamp as second-order spherical harmonics, of batch 1.

    The Lambertian term max(0, cos) is 1/4 + cos / 2 + 5/16 P2(cos) up to band 2; by the addition theorem the
    coefficients are the basis at the lamp's direction, scaled by band.

    Args:
        direction: towards the lamp, world axes, any length.
        color: RGB shading where the surface faces the lamp.
        ambient: shading added everywhere.
    """
    toward = functional.normalize(torch.tensor([direction], dtype=torch.float64), dim=-1)
    basis = sh_basis(toward)[0]
    bands = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
    power = torch.zeros(3, dtype=basis.dtype).index_add(0, bands, basis**2)
    cosine = torch.tensor([1 / 4, 1 / 2, 5 / 16], dtype=basis.dtype)
    coefficients = (cosine / power)[bands] * basis
    coefficients = coefficients[:, None] * torch.tensor([list(color)], dtype=basis.dtype)
    coefficients[0] += ambient / basis[0]
    return SHLight(coefficients[None].float())


def studio_light() -> SHLight:
    """Soft, nearly frontal light in which a texture looks as it is painted."""
    key = sh_directional_light((-0.35, 0.5, 1.0), (0.42, 0.42, 0.42), 0.62)
    fill = sh_directional_light((0.8, 0.1, 0.6), (0.1, 0.1, 0.1))
    return SHLight(key.coefficients + fill.coefficients)


def posed_vertices(face: ReconstructedFace) -> Tensor:
    """(B, V, 3) fitted vertices with the fitted pose: in front of ``face.camera``."""
    rotation = euler_to_matrix(face.params.rotation)
    return face.vertices @ rotation.mT + face.params.translation[:, None]


def portrait_camera(
    vertices: Tensor, margin: float = 1.08, topology: MeshTopology | None = None
) -> tuple[Camera, Tensor]:
    """A camera 1.2 m in front of an unposed head, that frames it however it is turned about the vertical.

    Args:
        vertices: (1, V, 3), unposed.
        margin: frame over head.
        topology: if it has a region "neck", the neck may leave the frame, which makes the face larger.

    Returns:
        The camera (of a 1 x 1 px image; its field of view holds at any size), and the (3,) pivot.
    """
    head = vertices[0]
    if topology is not None and "neck" in topology.regions:
        head = head[topology.faces[~topology.regions["neck"]].unique()]
    low, high = head.amin(0), head.amax(0)
    pivot = (low + high) / 2
    radius = (head - pivot)[:, [0, 2]].norm(dim=1).max()
    frame = margin * torch.maximum(high[1] - low[1], 2 * radius)
    distance = 12.0
    eye = vertices.new_tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])
    camera = Camera(
        focal=(distance / frame)[None],
        center=vertices.new_tensor([[0.5, 0.5]]),
        rotation=eye[None],
        translation=vertices.new_tensor([[0.0, 0.0, distance]]),
        warp=torch.eye(2, 3)[None].to(vertices),
        size=(1, 1),
        near=distance / 2,
        far=distance * 2,
    )
    return camera, pivot


def turned_view(face: ReconstructedFace, yaw: float, size: int, pitch: float = 0.0, backend: str = "auto") -> Shot:
    """The unposed head, turned (degrees): positive yaw to the viewer's right, positive pitch down."""
    camera, pivot = portrait_camera(face.vertices, topology=face.topology)
    turned = _turned(face.vertices - pivot, yaw, pitch)
    return shoot(turned, face.texture, face.topology, camera, size, backend)


def _turned(vertices: Tensor, yaw: float, pitch: float = 0.0) -> Tensor:
    return vertices @ euler_to_matrix(vertices.new_tensor([[math.radians(pitch), math.radians(yaw), 0.0]])).mT


def head_views(
    vertices: Tensor,
    texture: Tensor | None,
    topology: MeshTopology,
    yaws: Sequence[float] = (-35.0, 0.0, 35.0),
    size: int = 420,
    light: SHLight | None = None,
) -> Tensor:
    """An unposed head from several sides, in one row: (1, 3, size, N * size) in [0, 1].

    Args:
        vertices: (1, V, 3).
        texture: (1, 3, S, S); None draws gray clay.
        topology: of both.
        yaws: degrees, positive to the viewer's right.
        size: of a view in pixels.
        light: the studio's if left out; clay has its own.
    """
    light = studio_light() if light is None else light
    camera, pivot = portrait_camera(vertices, topology=topology)
    map_ = vertices.new_ones(1, 3, 1, 1) if texture is None else texture
    pictures = []
    for yaw in yaws:
        shot = shoot(_turned(vertices - pivot, yaw), map_, topology, camera, _OVERSAMPLING * size)
        lit = _on_backdrop(clay(shot) if texture is None else textured(shot, light), shot)
        pictures.append(functional.avg_pool2d(lit, _OVERSAMPLING).clamp(0, 1))
    return torch.cat(pictures, 3)


# -- over the photo --------------------------------------------------------------------------------------


def crop_camera(face: ReconstructedFace, observation: Observation) -> Camera:
    """``face.camera`` (photo pixels) in pixels of the observation's full crop."""
    to_photo = observation.full.to_photo
    from_photo = invert_affine(to_photo.double()).to(to_photo.dtype)
    return camera_in_photo(face.camera, from_photo, observation.full.image.shape[-2:])


def overlay(photo: Tensor, shot: Shot, light: SHLight, soft: float = 8) -> Tensor:
    """The face region, rendered, over the photo; its edge fades inwards over about ``soft`` pixels.

    Args:
        photo: (1, 3, S, S) in [0, 1].
        shot: of the same size and camera.
        light: the fitted one.
    """
    alpha = feather(shot.region, soft)
    return photo * (1 - alpha) + textured(shot, light) * alpha


def landmark_view(photo: Tensor, observed: Tensor, predicted: Tensor | None = None) -> Image.Image:
    """The photo, dimmed, with the observed landmarks (cyan rings) and the fitted ones (red dots).

    Args:
        photo: (1, 3, S, S) in [0, 1].
        observed, predicted: (N, 2), pixels of ``photo``.
    """
    picture = to_pil((photo[0] * 0.72).clamp(0, 1))
    draw = ImageDraw.Draw(picture)
    radius = max(2.0, photo.shape[-1] / 130)
    for x, y in (observed - 0.5).tolist():  # PIL counts from the middle of a pixel
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, outline=_OBSERVED, width=max(1, round(radius / 2)))
    for x, y in (predicted - 0.5).tolist() if predicted is not None else ():
        r = radius * 0.55
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_PREDICTED)
    return picture


def _landmarks_in_crop(observation: Observation) -> Tensor:
    """(68, 2) observed landmarks in pixels of the full crop."""
    to_photo, from_full = observation.fit.to_photo[0].double(), observation.full.to_photo[0].double()
    in_photo = observation.landmarks68[0].double() @ to_photo[:, :2].mT + to_photo[:, 2]
    return torch.linalg.solve(from_full[:, :2], (in_photo - from_full[:, 2]).mT).mT.float()


def _predicted_landmarks(face: ReconstructedFace, camera: Camera, model: Any) -> Tensor:
    """(68, 2) landmarks of the fitted head in the camera's pixels; the jaw slides if the model is given."""
    vertices, topology = posed_vertices(face), face.topology
    if model is not None:
        points = model.landmarks3d(vertices, camera)
    else:
        corners = vertices[:, topology.faces[topology.landmark_faces[:, 0]]]
        points = (corners * topology.landmark_barycentric[None, :, 0, :, None]).sum(2)
    return project(camera, points)[0, :, :2]


# -- sheets ----------------------------------------------------------------------------------------------


def captioned_sheet(
    tiles: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    title: str | None = None,
    note: str | None = None,
    tile: int | None = None,
) -> Image.Image:
    """Pictures in a grid on white, each with a small caption below it.

    Args:
        tiles: pictures; each is fitted into a square cell.
        captions: one a tile; empty ones are left out.
        columns: cells in a row.
        title, note: a line above the grid, and a fainter one beside or below it.
        tile: side of a cell in pixels; that of the largest tile by default.

    Raises:
        InputError: no tiles.
    """
    if not tiles:
        raise InputError("a contact sheet needs at least one picture; got none.")
    captions, columns = list(captions or [""] * len(tiles)), min(columns, len(tiles))
    side = tile or max(max(t.size) for t in tiles)
    unit = side / 320
    gap, text = max(4, round(10 * unit)), max(10, round(13.5 * unit))
    strip = round(text * 1.9) if any(captions) else 0
    font, bold = text, round(text * 1.35)
    head = round(text * 2.6) if title or note else 0
    rows = math.ceil(len(tiles) / columns)
    width = columns * (side + gap) + gap
    sheet = Image.new("RGB", (width, head + rows * (side + strip + gap) + gap), _PAGE)
    left = gap
    if title:
        _write(sheet, (gap, head / 2 + gap / 2), title, _INK, bold, "l")
        left += _text_width(title, bold) + 2 * gap
    if note:
        label = _clipped(note, font, width - gap - left)
        _write(sheet, (width - gap, head / 2 + gap / 2), label, _FAINT, font, "r")
    for i, (picture, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = gap + (i % columns) * (side + gap)
        y = gap + head + (i // columns) * (side + strip + gap)
        sheet.paste(_fitted(picture, side), (x, y))
        if caption:
            label = _clipped(caption, font, side)
            _write(sheet, (x + side / 2, y + side + strip * 0.5), label, _INK, font, "m")
    return sheet


@torch.no_grad()
def panel(
    face: ReconstructedFace,
    observation: Observation | None = None,
    renderer: Any = None,
    model: Any = None,
    *,
    index: int | None = None,
    tile: int = 320,
    title: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Image.Image:
    """All there is to see of one reconstruction in one picture (``panel.png``).

    Photo, overlay, shape and texture; landmarks and three lights; three turned views and the texels the photo
    showed. Without an observation the tiles that need the photo are left out.

    Args:
        face: the fit.
        observation: of the same photo.
        renderer: only its choice of rasterizer backend is used.
        model: the head model; with it the drawn jaw landmarks slide with the pose.
        index: which subject of a batch, in both ``face`` and ``observation``.
        tile: side of a tile in pixels.
        title: a headline, e.g. the photo's name.
        facts: a few figures for the headline, e.g. ``{"identity": 0.71}``.

    Raises:
        InputError: the batch holds several subjects and ``index`` is not given.
    """
    face, backend, big = _single(face, index), _backend(renderer), tile * _OVERSAMPLING
    turned = _turned_views(face, big, backend)
    cells: dict[str, Tensor] = {}
    if observation is not None:
        observation = _single(observation, index)
        photo, shot = _photo_and_shot(face, observation, big, backend)
        scale = big / observation.full.image.shape[-1]
        predicted = _predicted_landmarks(face, crop_camera(face, observation), _on_cpu(model)) * scale
        drawn = landmark_view(photo, _landmarks_in_crop(observation) * scale, predicted)
        cells["photo"] = photo
        cells["overlay: rendered face on the photo"] = overlay(photo, shot, face.params.light)
        cells["shape"] = _on_backdrop(clay(shot), shot)
    else:
        cells["shape"] = _on_backdrop(clay(turned[0.0]), turned[0.0])
    cells["texture (albedo in UV)"] = resized(face.texture, big)
    tiles = {name: _finished(image, tile) for name, image in cells.items()}
    if observation is not None:
        tiles["landmarks: photo (rings), head (dots)"] = drawn.resize((tile, tile), Image.Resampling.BOX)
    cells = _relit(turned[0.0]) | _studio_views(turned) | {"texels seen in the photo": _visible_texture(face, big)}
    tiles |= {name: _finished(image, tile) for name, image in cells.items()}
    figures = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in (facts or {}).items()}
    note = "   ".join(f"{key} {value}" for key, value in figures.items()) or None
    columns = 4 if observation is not None else 3
    return captioned_sheet(list(tiles.values()), list(tiles), columns, title, note, tile)


@torch.no_grad()
def person_panel(
    face: ReconstructedFace,
    observation: Observation,
    renderer: Any = None,
    *,
    captions: Sequence[str] | None = None,
    most: int = 8,
    tile: int = 320,
    title: str | None = None,
) -> Image.Image:
    """One person from several photos in one picture: the neutral head, its texture, and every photo with its overlay.

    Args:
        face: of batch B, whose rows share shape and texture (``Fitter.multiview``).
        observation: of the same B photos.
        renderer: only its choice of rasterizer backend is used.
        captions: B names of the photos.
        most: photos to show, evenly spread.
        tile, title: as of :func:`panel`.
    """
    backend, big, count = _backend(renderer), tile * _OVERSAMPLING, len(face.vertices)
    person = face[0].replace(vertices=face.neutral_vertices[:1])
    turned = _turned_views(person, big, backend)
    cells = {"shape, neutral": _on_backdrop(clay(turned[0.0]), turned[0.0])} | _studio_views(turned)
    cells["texture (albedo in UV)"] = resized(person.texture, big)
    cells["texels seen in a photo"] = _visible_texture(person, big)
    cells |= dict(list(_relit(turned[0.0]).items())[:2])
    tiles = [(name, _finished(image, tile)) for name, image in cells.items()]
    shown = sorted({round(i * (count - 1) / max(1, min(most, count) - 1)) for i in range(min(most, count))})
    for i in shown:
        photo, shot = _photo_and_shot(face[i], observation[i], big, backend)
        over = overlay(photo, shot, face[i].params.light)
        name = captions[i] if captions is not None else f"photo {i}"
        tiles += [(name, _finished(photo, tile)), ("overlay", _finished(over, tile))]
    return captioned_sheet([t[1] for t in tiles], [t[0] for t in tiles], 4, title, None, tile)


def _turned_views(face: ReconstructedFace, size: int, backend: str) -> dict[float, Shot]:
    """{degrees: the head from the left, the front and the right}."""
    return {yaw: turned_view(face, yaw, size, backend=backend) for yaw in (-40.0, 0.0, 40.0)}


def _studio_views(turned: Mapping[float, Shot]) -> dict[str, Tensor]:
    """{caption: (1, 3, S, S)} of turned heads in the studio's light."""
    return {
        f"turned {yaw:+.0f}°" if yaw else "front, studio light": _on_backdrop(textured(shot, studio_light()), shot)
        for yaw, shot in turned.items()
    }


def _relit(shot: Shot) -> dict[str, Tensor]:
    """{caption: (1, 3, S, S)} of one head in three lights."""
    lights = {
        "lit from the left, warm": sh_directional_light((-1.0, 0.3, 0.5), (1.05, 0.95, 0.82), 0.26),
        "lit from the right, cool": sh_directional_light((1.0, 0.3, 0.5), (0.82, 0.94, 1.08), 0.26),
        "lit from above": sh_directional_light((0.0, 1.0, 0.9), (1.0, 0.99, 0.97), 0.28),
    }
    return {name: _on_backdrop(textured(shot, light), shot) for name, light in lights.items()}


def _photo_and_shot(face: ReconstructedFace, observation: Observation, size: int, backend: str) -> tuple[Tensor, Shot]:
    """(1, 3, size, size), the full crop of one photo, on the backdrop, and the fitted head where it is in it, with all
    of the photo's light but that of its spherical harmonics."""
    camera, full = crop_camera(face, observation), observation.full
    shot = shoot(posed_vertices(face), face.texture_in_photo(), face.topology, camera, size, backend)
    return resized(full.image * full.valid + _backdrop(full.image) * (1 - full.valid), size), shot


@torch.no_grad()
def overlays(
    face: ReconstructedFace, observation: Observation, renderer: Any = None, size: int = 320
) -> list[Image.Image]:
    """Frames of a film of a fitted video: frame, overlay and shape side by side, the face always in the middle.

    Args:
        face: of batch T.
        observation: of the same T frames.
        renderer: only its choice of rasterizer backend is used.
        size: px, side of each of the three pictures.
    """
    pictures = []
    for i in range(len(face.vertices)):
        photo, shot = _photo_and_shot(face[i], observation[i], size * _OVERSAMPLING, _backend(renderer))
        parts = (photo, overlay(photo, shot, face[i].params.light), _on_backdrop(clay(shot), shot))
        sheet = Image.new("RGB", (3 * size, size), _PAGE)
        for k, part in enumerate(parts):
            sheet.paste(_finished(part, size), (k * size, 0))
        pictures.append(sheet)
    return pictures


@torch.no_grad()
def relit_strip(
    face: ReconstructedFace,
    count: int = 6,
    *,
    index: int | None = None,
    tile: int = 240,
    yaw: float = 0.0,
    renderer: Any = None,
) -> Image.Image:
    """One head under a lamp that moves from the viewer's left over the front to the right.

    Args:
        face: the fit.
        count: pictures in the strip.
        index: which subject of a batch.
        tile: side of a picture in pixels.
        yaw: degrees.
    """
    face = _single(face, index)
    shot = turned_view(face, yaw, tile * _OVERSAMPLING, backend=_backend(renderer))
    tiles, captions = [], []
    for k in range(count):
        azimuth = -80.0 + 160.0 * (k / (count - 1) if count > 1 else 0.5)
        angle = math.radians(azimuth)
        light = sh_directional_light((math.sin(angle), 0.35, math.cos(angle)), (1.0, 0.98, 0.95), 0.24)
        tiles.append(_finished(_on_backdrop(textured(shot, light), shot), tile))
        captions.append(f"lamp at {azimuth:+.0f}°")
    return captioned_sheet(tiles, captions, count, tile=tile)


@torch.no_grad()
def turntable(
    face: ReconstructedFace,
    count: int = 36,
    *,
    index: int | None = None,
    size: int = 320,
    swing: float | None = None,
    shape_only: bool = False,
    renderer: Any = None,
) -> list[Image.Image]:
    """Frames of a head turning once around, or swinging to both sides.

    Args:
        face: the fit.
        count: frames of one period; the last leads into the first.
        index: which subject of a batch.
        size: side of a frame in pixels.
        swing: largest yaw in degrees; None turns all the way round.
        shape_only: gray clay instead of the texture.
    """
    face = _single(face, index)
    light = studio_light()
    frames = []
    for k in range(count):
        turn = k / count
        yaw = 360.0 * turn if swing is None else swing * math.sin(2 * math.pi * turn)
        shot = turned_view(face, yaw, size * _OVERSAMPLING, backend=_backend(renderer))
        image = clay(shot) if shape_only else textured(shot, light)
        frames.append(_finished(_on_backdrop(image, shot), size))
    return frames


@torch.no_grad()
def turning_thumbnail(
    face: ReconstructedFace, count: int = 24, *, index: int | None = None, size: int = 160, swing: float = 35.0
) -> list[Image.Image]:
    """Small frames of a head that looks ahead and turns to both sides, quick to draw; the last leads into the first.

    Args:
        face: the fit.
        count: frames of one period, a multiple of 4.
        index: which subject of a batch.
        size: side of a frame in pixels.
        swing: largest yaw in degrees.
    """
    face = _single(face, index)
    camera, pivot = portrait_camera(face.vertices, topology=face.topology)
    quarter = count // 4  # the way back shows the same views
    yaws = [swing * math.sin(2 * math.pi * k / count) for k in range(-quarter, quarter + 1)]
    turned = torch.cat([_turned(face.vertices - pivot, yaw) for yaw in yaws])
    renderer = Renderer(size=size, texture_level="auto", antialias=True)
    drawn = renderer(turned, face.texture, face.topology, camera, studio_light())
    frames = [to_pil(image) for image in (drawn.image + _backdrop(drawn.image) * (1 - drawn.mask)).clamp(0, 1)]
    order = [*range(quarter, 2 * quarter), *range(2 * quarter, 0, -1), *range(quarter)]
    return [frames[k] for k in order]


def save_animation(
    path: str | os.PathLike, frames: Sequence[Image.Image], fps: float = 20.0, quality: int = 88
) -> Path:
    """Write frames as an endless animated GIF or WebP, by the file's ending.

    Args:
        path: the file to write.
        frames: one after the other.
        fps: of them a second.
        quality: of WebP, 1 to 100.

    Raises:
        ConfigError: another ending.
        InputError: no frames.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".gif", ".webp"):
        raise ConfigError(f"an animation must end in .gif or .webp; got {path.name}.")
    if not frames:
        raise InputError("an animation needs at least one frame; got none.")
    options: dict[str, Any] = {"save_all": True, "duration": round(1000 / fps), "loop": 0}
    pictures = list(frames)
    if kind == ".gif":
        palette = pictures[0].quantize(255, Image.Quantize.MEDIANCUT)
        pictures = [p.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for p in pictures]
        options |= {"optimize": False, "disposal": 1}
    else:
        options |= {"quality": quality, "method": 4}
    buffer = io.BytesIO()
    pictures[0].save(buffer, kind[1:].upper(), append_images=pictures[1:], **options)
    return write_bytes(path, buffer.getvalue())


# -- live preview ----------------------------------------------------------------------------------------


class live_panel:
    """A callback for the fitter that shows how the fit goes: the current composite and the loss curve.

    In a notebook the picture is shown in the cell and replaced in place; elsewhere it is written to a file.

    Args:
        path: where to write the preview; None writes no file.
        every: steps between previews; the last step of a stage is always drawn.
        tile: side of one picture in pixels.
        most: faces of a batch that are shown.
    """

    def __init__(
        self, path: str | os.PathLike | None = "live.png", every: int = 10, tile: int = 320, most: int = 4
    ) -> None:
        self.path = None if path is None else Path(path)
        self.every, self.tile, self.most = max(1, int(every)), tile, most
        self.curve: list[tuple[str, float]] = []
        self._display: Any = None

    def __call__(self, report: Any) -> None:
        """Take one step's report: ``stage``, ``step``, ``steps``, ``total`` (B,), ``image`` (B, 3, H, W)."""
        total = report.total.detach().float()
        self.curve.append((str(report.stage), float(total.mean())))
        if report.step % self.every and report.step + 1 != report.steps:
            return
        images = report.image.detach().float().cpu()[: self.most].clamp(0, 1)
        tiles = [_fitted(to_pil(image), self.tile) for image in images]
        captions = [f"loss {value:.4g}" for value in total[: self.most].tolist()]
        tiles.append(_curve_picture(self.curve, self.tile))
        captions.append("mean loss by step")
        title = f"{report.stage}, step {report.step + 1} of {report.steps}"
        self.show(captioned_sheet(tiles, captions, len(tiles), title, tile=self.tile))

    def show(self, picture: Image.Image) -> None:
        """Show the preview in the notebook, if there is one, and write the file, if there is a path."""
        if self.path is not None:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=1)
            write_bytes(self.path, buffer.getvalue())
        ipython = sys.modules.get("IPython")
        if ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None:
            if self._display is None:
                self._display = ipython.display.display(picture, display_id=True)
            else:
                self._display.update(picture)


def _curve_picture(curve: Sequence[tuple[str, float]], side: int) -> Image.Image:
    """Each stage's loss on its own logarithmic range, side by side in one square."""
    big = side * _OVERSAMPLING
    picture = Image.new("RGB", (big, big), (246, 247, 249))
    draw = ImageDraw.Draw(picture)
    stages = list(dict.fromkeys(stage for stage, _ in curve))
    pad, text = big // 16, big // 24
    slot = (big - pad) / len(stages)
    for k, stage in enumerate(stages):
        values = [math.log(max(value, 1e-12)) for name, value in curve if name == stage]
        low, high = min(values), max(values)
        left, right, top, bottom = pad + k * slot, (k + 1) * slot, pad * 2, big - pad
        span = max(len(values) - 1, 1)
        points = [
            (left + (right - left) * i / span, bottom - (bottom - top) * (v - low) / max(high - low, 1e-9))
            for i, v in enumerate(values)
        ]
        _write(picture, (left, pad), _clipped(stage, text, right - left), _FAINT, text, "l")
        if len(points) > 1:
            draw.line(points, (36, 99, 235), max(2, big // 200), joint="curve")
    return picture.resize((side, side), Image.Resampling.BOX)


# -- small things ----------------------------------------------------------------------------------------


def _single(record: Any, index: int | None) -> Any:
    """One subject of a batched record, on the CPU and out of the graph."""
    return one_subject(record, index, "a picture shows").to("cpu")


def _backend(renderer: Any) -> str:
    return str(getattr(renderer, "backend", None) or "auto")


def _on_cpu(model: Any) -> Any:
    """The model if it lives on the CPU, where pictures are drawn, else None."""
    mean = getattr(model, "mean", None)
    return model if mean is None or mean.device.type == "cpu" else None


def _backdrop(like: Tensor) -> Tensor:
    return like.new_tensor(_BACKDROP).view(1, 3, 1, 1).expand(like.shape[0], 3, *like.shape[-2:])


def _on_backdrop(image: Tensor, shot: Shot) -> Tensor:
    return image * shot.mask + _backdrop(image) * (1 - shot.mask)


def _finished(image: Tensor, size: int) -> Image.Image:
    """(1, 3, k size, k size) averaged down to a picture of ``size``."""
    return to_pil(functional.adaptive_avg_pool2d(image.clamp(0, 1), size)[0])


def _visible_texture(face: ReconstructedFace, size: int) -> Tensor:
    """The texture where the photo showed it; invented texels fade to the backdrop."""
    texture, seen = resized(face.texture, size), resized(face.visibility.float(), size).clamp(0, 1)
    faded = 0.12 * texture + 0.88 * _backdrop(texture)
    return texture * seen + faded * (1 - seen)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture scaled into a square cell, centered on white."""
    picture = picture.convert("RGB")
    if picture.size == (side, side):
        return picture
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    cell = Image.new("RGB", (side, side), _PAGE)
    offset = ((side - size[0]) // 2, (side - size[1]) // 2)
    cell.paste(picture.resize(size, Image.Resampling.LANCZOS), offset)
    return cell


def _font(size: int) -> Any:
    return ImageFont.load_default(max(8, size))


def _text_width(text: str, size: int) -> float:
    return _font(size * 4).getlength(text) / 4


def _write(sheet: Image.Image, at: tuple[float, float], text: str, color: Any, size: int, anchor: str) -> None:
    """Text drawn at four times its size and averaged down, which spaces small letters evenly; ``at``: the middle of
    its height, and of its width the ``anchor``, "l", "m" or "r"."""
    width, height = math.ceil(_text_width(text, size)) + 4, size * 2
    ink = Image.new("L", (width * 4, height * 4), 0)
    ImageDraw.Draw(ink).text((8, height * 2), text, 255, _font(size * 4), anchor="lm")
    ink = ink.resize((width, height), Image.Resampling.BOX)
    left = at[0] - {"l": 2, "m": width / 2, "r": width - 2}[anchor]
    sheet.paste(Image.new("RGB", ink.size, color), (round(left), round(at[1] - height / 2)), ink)


def _clipped(text: str, size: int, width: float) -> str:
    """The text, shortened with an ellipsis until it fits."""
    if _text_width(text, size) <= width:
        return text
    while text and _text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
