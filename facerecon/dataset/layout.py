"""What a head model's UV atlas fixes for every face, at one size: computed once from topology and mean head, cached.

The release ships hand-drawn masks for HiFi3D++ (center face, nostrils, mouth, hair, and 'major' and 'minor' masks of
the front, left and right views). Here they are derived from regions, normals and visibility, for any head and size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from facerecon import assets
from facerecon.errors import ConfigError, check_shape
from facerecon.fitting.tone import plain_texels
from facerecon.geometry.mesh import cached, vertex_normals
from facerecon.imaging import files, masks
from facerecon.imaging.poisson import PoissonSolver
from facerecon.modes import in_own_modes
from facerecon.morphable import MorphableModel
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import bake, region_texels, uv_raster
from facerecon.types import Camera, MeshTopology

__all__ = [
    "RELEASED_MASKS",
    "SHIPPED",
    "FaceLayout",
    "Template",
    "face_layout",
    "landmark_texels",
    "load_template",
    "with_masks",
]

SHIPPED = {"makehuman": "template_makehuman.png"}
"""Template textures that come with the library, by head model."""

RELEASED_MASKS = ("major_valid_front_mask.png", "minor_valid_whole_mask.png", "nosal_base_mask.png", "nostril_mask.png")
"""Of the release's hand-drawn masks those that take the place of derived ones, in the order of :func:`with_masks`."""

_FRONT_MINOR, _FRONT_MAJOR = 0.45, 0.75  # cosines on the mean head between which the front view takes over
EYE_RIM, MOUTH_RIM = 0.6, 1.5  # hundredths of the map: width of the rims of eyes and mouth that are corrected
_GRID = 256
_GAZE = (0.0, -0.13, 1.0)  # where the eyeballs of the mean head look


@dataclass(frozen=True)
class FaceLayout:
    """Masks of a UV atlas, (1, 1, S, S) in [0, 1].

    Args:
        skin: the island of the skin.
        face: what a face's own pixels may color (no ears, neck or scalp).
        plain: skin of one color: the face without brows, lids and lips.
        brows, lids, lips, ears, eyes: regions.
        soft_lips: blurred.
        front: how far the front view is preferred, by the normals of the mean head ('major' 1, 'minor' below).
        upper: 1 above the tip of the nose.
        forehead: above the brows.
        around_eyes: brows, lids and what lashes shade.
        nose_base: where nostrils may show.
        corrected: lid rims, inner lips and nostrils: where the template's gradients are kept (Poisson editing).
        solver: factorized for ``corrected``.
        eye_holes, mouth_hole: what no face covers between lids and between lips, rising from 0 at their rims to 1.
        gaze: (S, S), degrees between an eyeball's texel and where the eye looks; 180 elsewhere.
        unit: texels per hundredth of the map: radii are given in these.
        grid: side on which soft masks are made (smooth as they are, they need no more).
        box: of the face with a margin: first and last row, first and last column.
    """

    skin: Tensor
    face: Tensor
    plain: Tensor
    brows: Tensor
    lids: Tensor
    lips: Tensor
    soft_lips: Tensor
    ears: Tensor
    eyes: Tensor
    front: Tensor
    upper: Tensor
    forehead: Tensor
    around_eyes: Tensor
    nose_base: Tensor
    corrected: Tensor
    solver: PoissonSolver
    eye_holes: Tensor
    mouth_hole: Tensor
    gaze: Tensor
    unit: float
    grid: int
    box: tuple[int, int, int, int]

    @property
    def grid_unit(self) -> float:
        """Cells of the grid of soft masks per hundredth of the map."""
        return self.grid / 100

    @property
    def cell(self) -> int:
        """Texels a side of what :meth:`crop` is aligned to."""
        return max(1, self.skin.shape[-1] // 128)

    def crop(self, image: Tensor) -> Tensor:
        """The part of a map around the face: beyond it there is nothing that a view shows."""
        top, bottom, left, right = self.box
        return image[..., top:bottom, left:right]

    def coarse(self, image: Tensor) -> Tensor:
        """An image of the map on that grid."""
        return image if image.shape[-1] == self.grid else F.interpolate(image, (self.grid, self.grid), mode="area")

    def fine(self, image: Tensor) -> Tensor:
        """And back."""
        size = self.skin.shape[-1]
        if image.shape[-1] == size:
            return image
        return F.interpolate(image, (size, size), mode="bilinear", align_corners=False)


def face_layout(model: MorphableModel, size: int) -> FaceLayout:
    """The layout of a model's atlas at ``size`` texels a side; the first call takes a second, later ones nothing.

    Raises:
        ConfigError: the model lacks a region that is needed.
    """
    topology = model.topology
    missing = [name for name in ("face", "skin", "lips", "lids", "nose") if name not in topology.regions]
    if missing:
        raise ConfigError(
            f"face model '{model.name}' has no region '{missing[0]}'; use makehuman, or carry the regions over "
            "with facerecon.fitting.retarget."
        )
    return cached(f"face layout {size}", lambda: _layout(model, size), topology.uv_faces, topology.uvs, model.mean)


def _layout(model: MorphableModel, size: int) -> FaceLayout:
    topology, unit = model.topology, size / 100

    def region(*names: str) -> Tensor:
        return region_texels(topology, names, size)

    brows, lids, lips, ears, eyes = (region(n) for n in ("brows", "lids", "lips", "ears", "eyes"))
    skin = region("skin") * (1 - region("eyes", "mouth", "teeth", "tongue", "sockets"))
    face = skin * region("face") * (1 - masks.dilate(ears, 0.6 * unit))
    points = landmark_texels(model, size)
    rows = torch.arange(size) + 0.5
    upper, forehead = (
        (rows < limit).float()[:, None].expand(1, 1, size, size) for limit in (points[30, 1], points[17:27, 1].min())
    )
    holes = torch.from_numpy(ndimage.binary_fill_holes(skin[0, 0].numpy() > 0)).float()[None, None] - skin
    above = (rows < points[33, 1]).float()[:, None]  # eyes, and below them the mouth
    depth = ndimage.distance_transform_edt(holes[0, 0].numpy()) / (0.4 * unit)
    inside = 1 - torch.from_numpy(depth).float()[None, None].square().neg().exp()
    corrected = _corrected(model, skin, holes, above, points, size)
    return FaceLayout(
        skin=skin,
        face=face,
        plain=plain_texels(topology, size),
        brows=brows,
        lids=lids,
        lips=lips,
        soft_lips=masks.gaussian_blur(lips, 2 * round(0.4 * unit) + 1),
        ears=ears,
        eyes=eyes,
        front=_front_preference(model, size),
        upper=upper,
        forehead=forehead,
        around_eyes=masks.dilate(torch.maximum(brows, masks.dilate(lids, 1.5 * unit)), unit),
        nose_base=region("nose") * _around(points[31:36], 4.5 * unit, size),
        corrected=corrected,
        solver=PoissonSolver(corrected),
        eye_holes=inside * above,
        mouth_hole=inside * (1 - above),
        gaze=_gaze_angle(model, eyes, size),
        unit=unit,
        grid=min(size, _GRID),
        box=_box(face, size),
    )


def with_masks(layout: FaceLayout, front: Tensor, valid: Tensor, nose_base: Tensor, nostrils: Tensor) -> FaceLayout:
    """The layout by hand-drawn masks instead, (1, h, w) in [0, 1] each, as the release has them for HiFi3D++.

    Args:
        layout: as derived.
        front: where the front view takes over ('major').
        valid: what any view may color ('minor' of all).
        nose_base: where nostrils may show.
        nostrils: where the template's gradients are kept, too.
    """
    size = layout.skin.shape[-1]

    def sized(mask: Tensor) -> Tensor:
        return F.interpolate(mask[None, :1].float(), (size, size), mode="area" if mask.shape[-1] > size else "bilinear")

    front, valid, nose_base, nostrils = (sized(mask) for mask in (front, valid, nose_base, nostrils))
    face, plain = layout.face * valid, layout.plain * valid
    if not bool((plain > 0.5).any()):
        raise ConfigError("the masks of topo_assets leave nothing of the face; convert the released folder again.")
    corrected = (torch.maximum(layout.corrected, nostrils) * layout.skin > 0.5).float()
    return replace(
        layout,
        face=face,
        plain=plain,
        front=masks.gaussian_blur(front, 2 * round(0.03 * size / 2) + 1),
        nose_base=nose_base * layout.skin,
        corrected=corrected,
        solver=PoissonSolver(corrected),
        box=_box(face, size),
    )


def _box(face: Tensor, size: int) -> tuple[int, int, int, int]:
    """A frame around a mask, wider by 3 hundredths and aligned to 128ths of the map, mirror symmetric."""
    cell = max(1, size // 128)
    limits = []
    for axis in (3, 2):  # rows, then columns
        used = face.amax(axis)[0, 0].nonzero()[:, 0]
        first, last = used[0].item() - 0.03 * size, used[-1].item() + 1 + 0.03 * size
        limits.append((max(0, int(first // cell) * cell), min(size, -int(-last // cell) * cell)))
    (top, bottom), (left, right) = limits
    left = min(left, size - right)
    return top, bottom, left, size - left


def landmark_texels(model: MorphableModel, size: int) -> Tensor:
    """(68, 2): x and y of the landmarks on the map, in texels from its top left."""
    topology = model.topology
    corners = topology.uvs[topology.uv_faces[topology.landmark_faces[:, 0]]]
    uv = (corners * topology.landmark_barycentric[:, 0, :, None].to(corners)).sum(1)
    return torch.stack([uv[:, 0], 1 - uv[:, 1]], 1) * size


def _front_preference(model: MorphableModel, size: int) -> Tensor:
    normals = vertex_normals(model.mean[None], model.topology.faces)
    cosine = F.normalize(interpolate(uv_raster(model.topology, size), normals, model.topology.faces), dim=-1)[..., 2]
    cosine = masks.gaussian_blur(cosine[:, None], 2 * round(0.03 * size) + 1)
    t = ((cosine - _FRONT_MINOR) / (_FRONT_MAJOR - _FRONT_MINOR)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _corrected(model: MorphableModel, skin: Tensor, holes: Tensor, above: Tensor, points: Tensor, size: int) -> Tensor:
    """Rims of the eye and mouth openings, and what of the nose no view from ahead sees."""
    unit = size / 100
    opening = torch.maximum(
        masks.dilate(holes * above, EYE_RIM * unit), masks.dilate(holes * (1 - above), MOUTH_RIM * unit)
    )
    nose = region_texels(model.topology, "nose", size)
    hidden = 1 - _seen_from_ahead(model, size)
    nostrils = masks.dilate(nose * hidden * _around(points[31:36], 3.5 * unit, size), 0.8 * unit)
    return (torch.maximum(opening, nostrils) * skin > 0.5).float()


def _seen_from_ahead(model: MorphableModel, size: int) -> Tensor:
    """(1, 1, S, S): texels of the mean head that a level view within 35 degrees sees."""
    result = torch.zeros(1, 1, size, size)
    camera = Camera.deep3d(512)
    blank = torch.ones(1, 1, 512, 512)
    for degrees in (-35, 0, 35):
        angle = math.radians(degrees)
        params = model.neutral(1).replace(rotation=torch.tensor([[0.0, angle, 0.0]]))
        result = torch.maximum(result, bake(blank, model(params), model.topology, camera, size)[1])
    return (result > 0.3).float()


def _around(points: Tensor, radius: float, size: int) -> Tensor:
    """(1, 1, S, S): 1 within a radius of any of the points (N, 2)."""
    center = torch.arange(size) + 0.5
    grid = torch.stack(torch.meshgrid(center, center, indexing="xy"), -1)
    distance = (grid[:, :, None] - points).norm(dim=-1).amin(-1)
    return (distance < radius).float()[None, None]


def _gaze_angle(model: MorphableModel, eyes: Tensor, size: int) -> Tensor:
    topology = model.topology
    result = torch.full((size, size), 180.0)
    if "eyes" not in topology.regions:
        return result
    corners = topology.faces[topology.regions["eyes"]].unique()
    positions = interpolate(uv_raster(topology, size), model.mean[None], topology.faces)[0]
    gaze = F.normalize(torch.tensor(_GAZE), dim=0)
    for side in (-1, 1):
        ball = model.mean[corners[model.mean[corners, 0] * side > 0]]
        middle = (ball.amin(0) + ball.amax(0)) / 2
        cosine = (F.normalize(positions - middle, dim=-1) * gaze).sum(-1)
        here = (eyes[0, 0] > 0) & (positions[..., 0] * side > 0)
        result[here] = torch.rad2deg(cosine.clamp(-1, 1).arccos())[here]
    return result


@dataclass(frozen=True)
class Template:
    """T_bar of a head model: what a map falls back to.

    Args:
        texture: (1, 3, S, S) in [0, 1].
        layout: masks of that atlas at that size.
        topology: the mesh.
    """

    texture: Tensor
    layout: FaceLayout
    topology: MeshTopology


@in_own_modes
def load_template(
    model: MorphableModel, size: int = 512, texture: Tensor | None = None, layout: FaceLayout | None = None
) -> Template:
    """The template of a head model (Sec. 3.1.3).

    Args:
        model: head model with regions.
        size: S.
        texture: (1, 3, s, s) in [0, 1], your own; None: the shipped one.
        layout: of its atlas at that size; None: the derived one.

    Raises:
        ConfigError: none is shipped for that head, or the head lacks a region that is needed.
    """
    if texture is None:
        if model.topology.name not in SHIPPED:
            raise ConfigError(
                f"no template texture is shipped for face model '{model.name}'; pass your own map as texture=."
            )
        texture = files.read_image(assets.shipped(SHIPPED[model.topology.name]))[None]
    check_shape("texture", texture, "1 3 S S")
    if texture.shape[-1] != size:
        larger = size > texture.shape[-1]
        mode = {"mode": "bicubic", "align_corners": False} if larger else {"mode": "area"}
        texture = F.interpolate(texture, (size, size), **mode).clamp(0, 1)
    return Template(texture, face_layout(model, size) if layout is None else layout, model.topology)
