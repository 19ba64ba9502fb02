"""Irises: measured on the photo through the fitted head, and given to it.

A photo shows an eye through lashes, glints and the shade of the lids, and where it looks is a matter of the expression.
So what is taken from it is where the iris is, how large it is, and the colors of iris and sclera; the eyeballs are
drawn clean with those, and the units eyeLook... turn them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from torch import Tensor

from facerecon.fitting.detail import fit_to_full, full_crop_camera
from facerecon.fitting.lids import lid_gaps, open_lids
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import shade
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.color import LUMA, luma
from facerecon.imaging.masks import gaussian_blur
from facerecon.morphable import MorphableModel
from facerecon.morphable.eyes import IRISES, PUPIL, SCLERA, Eye, eye_color, find_eyes
from facerecon.perception.facemesh import LEFT_EYE, RIGHT_EYE
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import uv_raster
from facerecon.types import Camera, FaceParams, Irises, MeshTopology, Observation, SHLight

__all__ = ["draw_eyeballs", "fit_eyes", "measure_irises", "turn_eyes"]

_ROUND = 48  # points around a circle
_EDGE = 0.12  # the rim of an iris is as soft, in its radii
_OUTSIDE = 1.045  # the steepest step over the rim's radius, as measured on rendered heads
_LEAST_SHARE = 0.35  # of a disk that must show
_LEAST_CONTRAST = 0.04  # luma across the rim
_RADIUS_SIGMA = 0.1  # of the face mesh's radius, relative
_PLACE_SIGMA = 0.25  # of the face mesh's center, in radii
_FINE = 4  # samples along the side of a texel
_POLE, _LIDS, _STILL, _SMALL = 10.0, 3.0, 0.3, 0.006  # weights of gaze, distance of the lids, stillness, no unit used
_ROUNDS = 2
_BROAD = 0.08  # of an eyeball's islands, half the width over which shades are taken
_UNITS = ("eyeLookUp", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeBlink", "eyeSquint", "eyeWide")


@dataclass(frozen=True)
class _View:
    """One eyeball in one photo, in the axes of the unposed head."""

    center: Tensor  # (3,)
    radius: float
    rotation: Tensor  # (3, 3) of the head
    translation: Tensor  # (3,)
    camera: Camera  # of ``image``
    image: Tensor  # (1, 3, H, W)
    lids: Tensor  # (16, 2), around the opening, px of ``image``

    def pixels(self, directions: Tensor) -> Tensor:
        """(..., 2) px of points of the eyeball in ``directions`` (..., 3)."""
        points = (self.center + self.radius * directions.reshape(1, -1, 3)) @ self.rotation.mT + self.translation
        return project(self.camera, points)[0, :, :2].view(*directions.shape[:-1], 2)

    def directions(self, pixels: Tensor) -> Tensor:
        """(N, 3) unit vectors from the center to where the rays of pixels (N, 2) meet the eyeball, or pass nearest."""
        camera = self.camera
        plane = torch.linalg.solve(camera.warp[0, :, :2], (pixels - camera.warp[0, :, 2]).mT).mT - camera.center
        ray = F.normalize(torch.cat([plane / camera.focal.view(-1, 1), torch.ones_like(plane[:, :1])], 1), dim=1)
        turn = camera.rotation[0] @ self.rotation  # head -> camera
        origin = (camera.rotation[0] @ self.translation + camera.translation[0]) @ turn  # the head's, from the camera
        ray, start = ray @ turn, -origin - self.center
        along = (ray * start).sum(1, keepdim=True)
        inside = (along.square() - start.square().sum() + self.radius**2).clamp(min=0).sqrt()
        return F.normalize(start - (along + inside) * ray, dim=1)

    def sample(self, pixels: Tensor) -> Tensor:
        """(..., 3) colors at pixels (..., 2)."""
        height, width = self.image.shape[-2:]
        grid = pixels.reshape(1, 1, -1, 2) / pixels.new_tensor([width, height]) * 2 - 1
        found = F.grid_sample(self.image, grid, padding_mode="border", align_corners=False)
        return found[0, :, 0].mT.reshape(*pixels.shape[:-1], 3)

    def opened(self, pixels: Tensor) -> Tensor:
        """(...) bool: which of pixels (..., 2) lie between the lids."""
        here, ends = self.lids, self.lids.roll(-1, 0)
        x, y = pixels[..., :1], pixels[..., 1:]
        crosses = (here[:, 1] > y) != (ends[:, 1] > y)
        at = here[:, 0] + (y - here[:, 1]) / (ends[:, 1] - here[:, 1] + 1e-9) * (ends[:, 0] - here[:, 0])
        return (crosses & (x < at)).sum(-1) % 2 == 1


def _bright(colors: Tensor) -> Tensor:
    """(...) luma of colors (..., 3)."""
    return colors @ colors.new_tensor(LUMA)


def _circle(axis: Tensor, angle: Tensor, around: Tensor) -> Tensor:
    """Directions (..., 3) at ``angle`` from an ``axis`` (..., 3); ``around`` counts from the head's x towards its y."""
    level = F.normalize(torch.stack([axis[..., 2], torch.zeros_like(axis[..., 0]), -axis[..., 0]], -1), dim=-1)
    upright = torch.linalg.cross(axis, level, dim=-1)
    across = around.cos()[..., None] * level + around.sin()[..., None] * upright
    return angle.cos()[..., None] * axis + angle.sin()[..., None] * across


def _rim_contrast(view: _View, axes: Tensor, angles: Tensor) -> Tensor:
    """(N, M) mean step of luma from inside to outside the rims of N irises of M sizes (Daugman's operator)."""
    around = torch.arange(_ROUND) * (2 * math.pi / _ROUND)
    total, count = torch.zeros(len(axes), len(angles)), torch.zeros(len(axes), len(angles))
    for width in (_EDGE, 2 * _EDGE):
        rings = []
        for r in (1 - width, 1 + width):
            directions = _circle(axes[:, None, None], r * angles[None, :, None], around[None, None])
            pixels = view.pixels(directions)
            rings.append((_bright(view.sample(pixels)), view.opened(pixels)))
        (inner, inner_shows), (outer, outer_shows) = rings
        shows = (inner_shows & outer_shows).float()
        total += ((outer - inner).clamp(-0.35, 0.35) * shows).sum(-1)
        count += shows.sum(-1)
    return total / count.clamp(min=0.3 * _ROUND)


def _find(views: list[_View], starts: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Axes (2, 3), the angle of both irises, and contrasts (2,) along their rims.

    Args:
        views: of both eyes.
        starts: (2, 2) px where the face mesh has their centers.
        radii: (2,) px.
    """
    angle = torch.stack([torch.asin((r * _unit_per_pixel(v) / v.radius).clamp(0.05, 0.8))
                         for v, r in zip(views, radii, strict=True)]).mean()  # fmt: skip
    best, centers, first = torch.zeros(2), starts.clone(), angle
    for step, sizes in ((0.12, 0.06), (0.04, 0.02), (0.015, 0.01)):
        grid = torch.cartesian_prod(*[torch.arange(-3.0, 4.0)] * 2) * step
        scales = 1 + torch.arange(-3.0, 4.0) * sizes
        tables, places = [], []
        for view, center, start, radius in zip(views, centers, starts, radii, strict=True):
            pixels = center + grid * radius
            table = _rim_contrast(view, view.directions(pixels), angle * scales)
            away = ((pixels - start) / radius).square().sum(1) / _PLACE_SIGMA**2
            tables.append(table - 0.01 * away[:, None])
            places.append(pixels)
        size = 0.02 * ((angle * scales / first).log() / _RADIUS_SIGMA).square()
        both = sum(table.amax(0) for table in tables) - size
        k = int(both.argmax())
        chosen = [int(table[:, k].argmax()) for table in tables]
        centers = torch.stack([pixels[i] for pixels, i in zip(places, chosen, strict=True)])
        best = torch.stack([table[i, k] for table, i in zip(tables, chosen, strict=True)])
        angle = angle * scales[k]
    axes = torch.cat([view.directions(c[None]) for view, c in zip(views, centers, strict=True)])
    return axes, angle / _OUTSIDE, best


def _unit_per_pixel(view: _View) -> Tensor:
    """World units along a pixel at the depth of an eyeball."""
    camera = view.camera
    depth = project(camera, (view.center @ view.rotation.mT + view.translation).view(1, 1, 3))[0, 0, 2] - view.radius
    return depth / (camera.focal.flatten()[0] * torch.linalg.det(camera.warp[0, :, :2]).abs().sqrt())


def _disk(view: _View, axis: Tensor, angle: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the ring between ``low`` and ``high`` radii: (16, 48) angles around, (16, 48, 2) px, and (16, 48, 3)
    directions."""
    r = torch.linspace(low, high, 16)
    around = (torch.arange(_ROUND) * (2 * math.pi / _ROUND)).expand(16, _ROUND)
    directions = _circle(axis.expand(16, _ROUND, 3), (r * angle)[:, None].expand(16, _ROUND), around)
    return around, view.pixels(directions), directions


def _albedo(view: _View, light: SHLight, pixels: Tensor, directions: Tensor) -> Tensor:
    """(N, 3) colors at pixels (N, 2), without the light on the eyeball there."""
    return view.sample(pixels) / shade((directions @ view.rotation.mT)[None], light)[0].clamp(min=0.1)


def _without_glints(colors: Tensor) -> Tensor:
    """The (N, 3) colors that are no reflections."""
    bright = _bright(colors)
    middle = bright.median()
    return colors[bright <= middle + 3 * (bright - middle).abs().median().clamp(min=0.02)]


@torch.no_grad()
def measure_irises(
    photo: Observation, vertices: Tensor, params: FaceParams, camera: Camera, topology: MeshTopology
) -> Irises | None:
    """The irises of photos, on the eyeballs of fitted heads; None where the head has no eyeballs or the photos no
    irises.

    Center and radius start from the face mesh and settle where the luma along the rim steps most, between the lids;
    both eyes have one radius. The color is the median between pupil and rim, of the lower part and without reflections,
    divided by the fitted shading; that of the sclera the upper quartile's.

    Args:
        photo: B observed faces.
        vertices: (B, V, 3), unposed, with expression.
        params: of them; pose and light count.
        camera: in pixels of ``photo.full``.
        topology: of the head model.
    """
    if photo.irises is None:
        return None
    device = vertices.device
    photo, vertices, params, camera = photo.to("cpu"), vertices.cpu(), params.to("cpu"), camera.to("cpu")
    to_full = fit_to_full(photo)
    found = []
    for b in range(photo.batch):
        eyes = find_eyes(vertices[b].double().cpu().numpy(), topology)
        if len(eyes) != 2 or not all(eye.bulges for eye in eyes):
            return None
        linear, offset = to_full[b, :, :2], to_full[b, :, 2]
        views = [_view(photo, b, eye, params, camera, linear, offset) for eye in eyes]
        irises = photo.irises[b]
        starts = irises[:, :2] @ linear.mT + offset
        radii = irises[:, 2] * torch.linalg.det(linear).abs().sqrt()
        usual = sum(eye.iris_angle for eye in eyes) / 2
        found.append(_measured(views, starts, radii, params[b].light, usual))
    return Irises.cat(found).to(device)


def _view(
    photo: Observation, b: int, eye: Eye, params: FaceParams, camera: Camera, linear: Tensor, offset: Tensor
) -> _View:
    """An eyeball in a photo; ``linear`` (2, 2) and ``offset`` (2,) lead from the fit crop to the full one."""
    lids = photo.mesh468[b, list(LEFT_EYE if eye.left else RIGHT_EYE), :2]
    # facemesh lists the lower lid outwards in, then the upper one in to out: a closed polygon
    center = torch.from_numpy(eye.center).to(lids)
    rotation = euler_to_matrix(params.rotation[b : b + 1])[0]
    return _View(center, eye.radius, rotation, params.translation[b], camera[b], photo.full.image[b : b + 1],
                 lids @ linear.mT + offset)  # fmt: skip


def _measured(views: list[_View], starts: Tensor, radii: Tensor, light: SHLight, usual: float) -> Irises:
    """The irises of one photo; ``usual``: the angle of the rim where none shows."""
    axes, angle, contrast = _find(views, starts, radii)
    shares, colors, whites = axes.new_zeros(2), [], []
    for k, (view, axis, radius) in enumerate(zip(views, axes, radii, strict=True)):
        _, pixels, _ = _disk(view, axis, angle, 0.1, 0.95)
        weight = torch.linspace(0.1, 0.95, 16)[:, None].expand(16, _ROUND)  # a ring's area
        share = (view.opened(pixels) * weight).sum() / weight.sum()
        if contrast[k] < _LEAST_CONTRAST or share < _LEAST_SHARE:
            continue
        shares[k] = share
        shift = pixels.new_tensor([0.0, -0.2]) * radius  # away from the upper lid and its lashes
        around, pixels, directions = _disk(view, axis, angle, PUPIL + 0.14, 0.85)
        clear = view.opened(pixels) & view.opened(pixels + shift) & (around.sin() < 0.3)
        colors.append(_albedo(view, light, pixels[clear], directions[clear]))
        _, pixels, directions = _disk(view, axis, angle, 1.2, 2.4)
        clear = view.opened(pixels) & view.opened(pixels + shift) & view.opened(pixels - shift)
        whites.append(_albedo(view, light, pixels[clear], directions[clear]))
    color, white = (torch.cat([axes.new_zeros(0, 3), *x]) for x in (colors, whites))
    color = _without_glints(color).median(0).values if len(color) else axes.new_tensor(IRISES["brown"])
    if len(white):
        bright = _bright(white)
        white = white[(bright >= bright.quantile(0.6)) & (bright <= bright.quantile(0.95))].median(0).values
        white = _natural(white)
    else:
        white = axes.new_tensor(SCLERA)
    if not shares.any():
        axes, angle = axes.new_tensor([[0.0, 0.0, 1.0]]).expand(2, 3), angle.new_tensor(usual)
    elif not shares.all():
        axes = axes[int(shares.argmax())].expand(2, 3)
    return Irises(axes[None].clone(), angle.view(1), color.clamp(0, 1)[None], white[None], shares[None])


def _natural(measured: Tensor) -> Tensor:
    """(3,) a sclera of natural color in the brightness of a measured one (3,)."""
    usual = measured.new_tensor(SCLERA)
    level = (measured.mean() / usual.mean()).clamp(0.3, 1.15)
    tint = (measured / measured.mean().clamp(min=1e-3) / (usual / usual.mean())).clamp(0.95, 1.05)
    return (usual * level * tint).clamp(0, 1)


# -- drawn -------------------------------------------------------------------------------------------------


def _drawn(directions: NDArray, axis: NDArray, angle: float, color: list[float], sclera: list[float]) -> NDArray:
    """(N, 3) colors of points of an eyeball in ``directions`` (N, 3) from its center, which looks along ``axis``."""
    level = np.array([axis[2], 0.0, -axis[0]])
    level /= np.linalg.norm(level)
    frame = np.stack([level, np.cross(axis, level), axis], 1)
    x, y, z = (directions @ frame).T
    across = np.hypot(x, y)
    share = np.arctan2(across, z) / np.maximum(across, 1e-12)
    return eye_color(np.stack([x * share, y * share], 1), angle, tuple(color), tuple(sclera))


@torch.no_grad()
def draw_eyeballs(
    texture: Tensor,
    vertices: Tensor,
    irises: Irises,
    topology: MeshTopology,
    ahead: bool = False,
    visibility: Tensor | None = None,
) -> Tensor:
    """Textures whose eyeballs are drawn clean: (B, 3, S, S).

    Args:
        texture: (B, 3, S, S) in [0, 1].
        vertices: (B, V, 3), unposed: the heads on which the irises were measured.
        irises: of them.
        topology: of the head model; a head without eyeballs keeps its texture.
        ahead: irises look along z, where ``vertices`` are neutral or one texture serves several photos.
        visibility: (B, 1, S, S) in [0, 1], where the texture shows the photo: the broad shade there is kept.
    """
    size, result = texture.shape[-1], texture.clone()
    raster = uv_raster(topology, size)
    for b in range(len(texture)):
        for k, eye in enumerate(find_eyes(vertices[b].double().cpu().numpy(), topology)):
            if not eye.bulges:
                continue
            rows = torch.zeros(len(topology.faces) + 1, dtype=torch.bool)
            rows[torch.from_numpy(eye.rows)] = True
            inside = rows.to(texture.device)[raster.face_index[0]]
            where = inside.nonzero()
            if not len(where):  # a map too coarse to show it
                continue
            (top, left), (bottom, right) = (where.amin(0)).tolist(), (where.amax(0) + 1).tolist()
            box = slice(top, bottom), slice(left, right)
            places = interpolate(raster, vertices[b : b + 1], topology.faces)[0][box]
            offset = (places - torch.from_numpy(eye.center).to(places)) * inside[box][..., None]
            axis = irises.gaze.new_tensor([0.0, 0.0, 1.0]) if ahead else irises.gaze[b, k]
            drawn = _texels(offset, axis, irises[b])
            drawn, before = drawn.to(texture), texture[b, :, *box]
            if visibility is not None:
                drawn = drawn * _shade_kept(before, drawn, visibility[b, :, *box] * inside[box])
            result[b, :, *box] = torch.where(inside[box], drawn, before)
    return result


def _shade_kept(photo: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
    """(1, H, W) what the ``photo`` (3, H, W) is darker or lighter by than what was ``drawn``, as broad as half an iris,
    where there is ``weight`` (1, H, W): the shade of lids and lashes."""
    width = 2 * round(_BROAD * weight.shape[-1]) + 1
    light = [gaussian_blur((weight * luma(x[None])[0])[None], width)[0] for x in (photo, drawn)]
    return ((light[0] + 0.02) / (light[1] + 0.02)).clamp(0.5, 1.25)


def _texels(offset: Tensor, axis: Tensor, irises: Irises) -> Tensor:
    """(3, H, W) colors of texels at ``offset`` (H, W, 3) from an eyeball's center, each the mean of its samples."""
    height, width = offset.shape[:2]
    fine = F.interpolate(offset.permute(2, 0, 1)[None], scale_factor=_FINE, mode="bilinear", align_corners=False)
    directions = F.normalize(fine[0].permute(1, 2, 0).reshape(-1, 3), dim=1)
    colors = [irises.color[0].tolist(), irises.sclera[0].tolist()]
    drawn = _drawn(*(x.double().cpu().numpy() for x in (directions, axis)), float(irises.angle), *colors)
    picture = torch.from_numpy(drawn).view(height * _FINE, width * _FINE, 3).permute(2, 0, 1)
    return F.avg_pool2d(picture[None], _FINE)[0]


# -- gaze --------------------------------------------------------------------------------------------------


@torch.no_grad()
def turn_eyes(
    params: FaceParams, irises: Irises, photo: Observation, camera: Camera, model: MorphableModel
) -> FaceParams:
    """Parameters whose eyeballs look where the irises were found, and whose lids are as far apart as the landmarks.

    Eyeballs are smooth and lids small: stages 2 and 3 hardly see where those look, and close these by up to half.
    Only units of the eyes change, within the bounds of the expression, and as little as it takes.

    Args:
        params: of B faces.
        irises: measured on their heads; an eye that does not show looks as the other, or stays as it is.
        photo: B observed faces.
        camera: of ``photo.fit``.
        model: the head model; one without those units or eyeballs gives back ``params``.
    """
    needed = {f"{unit}{side}" for unit in _UNITS for side in ("Left", "Right")}
    if not needed <= set(model.expression_names) or not {"eyes", "lids"} <= set(model.topology.regions):
        return params
    expression, vertices = params.expression.clone(), model(params)
    fitted = model.landmarks3d(vertices, camera)
    pixels = project(camera, fitted)[..., :2]
    unposed = model.shape(params)
    for b in range(params.batch):
        for k, eye in enumerate(find_eyes(unposed[b].double().cpu().numpy(), model.topology)):
            if not eye.bulges:
                return params
            apart = lid_gaps(photo.landmarks68[b], eye.left) - lid_gaps(pixels[b], eye.left)
            apart = apart * lid_gaps(fitted[b], eye.left) / lid_gaps(pixels[b], eye.left)
            gaze = irises.gaze[b, k] if bool(irises.share[b].any()) else None
            units = [model.expression_names.index(f"{name}{'Left' if eye.left else 'Right'}") for name in _UNITS]
            expression[b, units] = _turned(expression[b, units], units, unposed[b], eye, gaze, apart, model)
    return params.replace(expression=expression)


def _middle(model: MorphableModel, left: bool) -> Tensor:
    """(3,) the middle of an eyeball of the mean head."""
    eyes = find_eyes(model.mean.double().cpu().numpy(), model.topology)
    return torch.from_numpy(eyes[int(left)].center).to(model.mean)


def _turned(
    now: Tensor, units: list[int], vertices: Tensor, eye: Eye, gaze: Tensor | None, apart: Tensor, model: MorphableModel
) -> Tensor:
    """(E,) weights of the ``units`` of one eye, from ``now``: the eyeball looks along ``gaze`` (3,), if any, and the
    lids come ``apart`` by (2,); ``vertices`` (V, 3), unposed, with those weights."""
    topology, basis = model.topology, model.expression_basis[units].double()
    lids = topology.faces[topology.regions["lids"]].unique()
    lids = lids[((vertices[lids, 0] > 0) == eye.left)][::5]
    first = 42 if eye.left else 36
    points = basis[:, topology.faces[topology.landmark_faces[first : first + 6, 0]]]
    points = (points * topology.landmark_barycentric[first : first + 6, 0, :, None].to(basis)).sum(2)[..., 1]  # (E, 6)
    opens = torch.stack([points[:, 1] - points[:, 5], points[:, 2] - points[:, 4]], 1)
    still = basis[:, lids].flatten(1).T / math.sqrt(len(lids))
    systems = [_LIDS * opens.T, _STILL * still, _SMALL * torch.eye(len(now)).to(basis)]
    goals = [_LIDS * apart, apart.new_zeros(3 * len(lids)), -_SMALL * now]
    if gaze is not None:
        ball = topology.faces[torch.from_numpy(eye.rows).to(lids)].unique()
        center = torch.from_numpy(eye.center).to(vertices)
        pole = ball[model.mean[ball, 2].argmax()]
        # the vertex that is turned lies beside the axis
        beside = F.normalize(model.mean[pole] - _middle(model, eye.left), dim=0) - gaze.new_tensor([0.0, 0.0, 1.0])
        toward = center + (vertices[pole] - center).norm() * F.normalize(gaze + beside, dim=0)
        systems.append(_POLE * basis[:, pole, :2].T)
        goals.append(_POLE * (toward - vertices[pole])[:2])
    system, goal = (torch.cat([x.double() for x in part]).cpu().numpy() for part in (systems, goals))
    low, high = model.expression_bounds or (-1.0, 1.0)
    start = now.double().cpu().numpy()
    step = lsq_linear(system, goal, (low - start - 1e-9, high - start + 1e-9)).x
    return torch.from_numpy((start + step).clip(low, high)).to(now)


def fit_eyes(
    photo: Observation, params: FaceParams, model: MorphableModel, one_person: bool, turn: bool = True
) -> tuple[FaceParams, Irises | None]:
    """Parameters with the eyes of the photos, open at rest, and the irises found on those heads; None without any.

    Args:
        photo: B observed faces.
        params: of them.
        model: the head model.
        one_person: one radius and one pair of colors for all photos, of those that show them best.
        turn: False measures only, and leaves the expression as it is.
    """
    if "eyes" not in model.topology.regions:
        return params, None
    camera, params = full_crop_camera(photo.camera, photo), open_lids(params, model)

    def measured() -> Irises | None:
        return measure_irises(photo, model.shape(params), params, camera, model.topology)

    irises = measured()
    for _ in range(_ROUNDS if turn and irises is not None else 0):  # units of the lids shift the eyeball a little
        params = turn_eyes(params, irises, photo, photo.camera, model)
        irises = measured()
    if irises is not None and one_person and photo.batch > 1:
        irises = _of_one(irises)
    return params, irises


def _of_one(irises: Irises) -> Irises:
    """Irises whose radius and colors are of one person: the means, as far as each photo shows them."""

    def mean(values: Tensor) -> Tensor:
        weight = irises.share.sum(1).clamp(min=1e-6).view(-1, *[1] * (values.dim() - 1))
        return ((values * weight).sum(0) / weight.sum(0)).expand_as(values)

    return irises.replace(angle=mean(irises.angle), color=mean(irises.color), sclera=mean(irises.sclera))
