"""Irises of rendered heads, whose truth is known: how far off the measured ones are."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.fitting.irises import draw_eyeballs
from facerecon.geometry.camera import project
from facerecon.morphable import MorphableModel
from facerecon.morphable.eyes import IRISES, SCLERA, find_eyes
from facerecon.perception.facemesh import LEFT_EYE, RIGHT_EYE
from facerecon.render import Renderer
from facerecon.synthetic.scene import Draws, random_lights
from facerecon.synthetic.settings import SyntheticSettings
from facerecon.types import Camera, Crop, FaceParams, Irises, Observation

__all__ = ["iris_errors", "render_irises"]

_CROP = 224
_GAZE = 8.0  # degrees, standard deviation
_ANGLES = (0.33, 0.43)  # radians, of the rim
_PLACE, _RADIUS = 0.8, 0.08  # errors of the irises that a photo is observed with: px of 224, relative
_PATHS = ((RIGHT_EYE, (36, 41, 40, 39, 38, 37)), (LEFT_EYE, (45, 46, 47, 42, 43, 44)))  # lower lid inwards, upper back


@torch.no_grad()
def render_irises(
    model: MorphableModel, texture: Tensor, numbers: Sequence[int], size: int = 896, tint: float = 0.15
) -> tuple[Observation, FaceParams, Irises]:
    """Heads with open eyes that look about, in random light: their observation, parameters and irises.

    The observation has what measuring irises takes: pictures, lids and noisy irises; the rest of it is empty.

    Args:
        model: a head model with eyeballs.
        texture: (1, 3, S, S) in [0, 1], of its skin.
        numbers: one a head; a head is a function of its number.
        size: px of the full crop, which shows the same as the fit crop.
        tint: relative deviation of the irises' colors from those of :data:`~facerecon.morphable.eyes.IRISES`.
    """
    draws, more = (Draws(21, numbers, what) for what in ("iris", "light"))
    count = len(numbers)
    params = model.neutral(count).replace(
        identity=0.7 * draws.normal(model.num_identity), rotation=draws.normal(3) * torch.tensor([0.1, 0.25, 0.05])
    )
    light = random_lights(replace(SyntheticSettings(), exposure=0.1), more, more)
    params = params.replace(light=light)
    vertices = model.shape(params)
    look = torch.deg2rad(_GAZE * draws.normal(2)).tan()[:, None].expand(count, 2, 2)
    palette = torch.tensor(list(IRISES.values()))[torch.tensor([n % len(IRISES) for n in numbers])]
    truth = Irises(
        gaze=F.normalize(torch.cat([look, torch.ones(count, 2, 1)], -1), dim=-1),
        angle=draws.uniform(low=_ANGLES[0], high=_ANGLES[1]),
        color=(palette * (1 + tint * draws.normal(3))).clamp(0.03, 0.8),
        sclera=torch.tensor(SCLERA).expand(count, 3).clone(),
        share=torch.ones(count, 2),
    )
    painted = draw_eyeballs(texture.expand(count, -1, -1, -1), vertices, truth, model.topology)
    posed, camera = model.pose(vertices, params), Camera.deep3d(_CROP, count)
    drawn = Renderer(size)(posed, painted, model.topology, Camera.deep3d(size, count), light)
    picture = drawn.image.clamp(0, 1) * drawn.mask + 0.5 * (1 - drawn.mask)
    seen = _seen(truth, vertices, params, model, camera)
    noise = torch.cat([_PLACE * draws.normal(2, 2), seen[..., 2:] * _RADIUS * draws.normal(2, 1)], -1)
    pixels = project(camera, model.landmarks3d(posed, camera))[..., :2]
    return _observation(picture, pixels, seen + noise), params, truth


def _seen(irises: Irises, vertices: Tensor, params: FaceParams, model: MorphableModel, camera: Camera) -> Tensor:
    """(B, 2, 3) center and radius of the irises, px of the camera, as a face mesh gives them."""
    rows = []
    for b in range(len(vertices)):
        eyes = find_eyes(vertices[b].double().numpy(), model.topology)
        radius = torch.tensor([eye.radius for eye in eyes])
        middles = torch.stack([torch.from_numpy(eye.center).float() for eye in eyes])
        toward = irises.gaze[b] * irises.angle[b].cos() * radius[:, None]  # the middle of the disk lies behind the pole
        places = torch.cat([middles + toward, middles + irises.gaze[b] * radius[:, None]])[None]
        x, y, depth = project(camera[b], model.pose(places, params[b]))[0].unbind(-1)
        size = radius * irises.angle[b].sin() * camera.focal[b] / depth[:2]
        rows.append(torch.stack([x[2:], y[2:], size], -1))
    return torch.stack(rows)


def _observation(picture: Tensor, landmarks: Tensor, irises: Tensor) -> Observation:
    """A photo whose crops are the picture itself; of its face mesh the lids are filled in."""
    count, size = len(picture), picture.shape[-1]
    mesh = landmarks.new_zeros(count, 468, 3)
    for ids, path in _PATHS:
        corners = landmarks[:, [*path, path[0]]]
        for side in (0, 1):  # three legs each, at eight places
            at = torch.arange(8.0) * 3 / 8
            leg = at.long() + 3 * side
            places = torch.lerp(corners[:, leg], corners[:, leg + 1], (at % 1)[None, :, None])
            mesh[:, list(ids[8 * side : 8 * side + 8]), :2] = places
    full, fit = (
        Crop(image, scale * torch.eye(2, 3).expand(count, 2, 3), *[torch.ones_like(image[:, :1])] * 6)
        for image, scale in ((picture, 1.0), (F.interpolate(picture, (_CROP, _CROP), mode="area"), size / _CROP))
    )
    none = picture.new_zeros(count)
    return Observation(
        fit=fit, full=full, landmarks68=landmarks, mesh468=mesh, box=none[:, None].expand(count, 4), score=none,
        identity=none[:, None], eval_identity=none[:, None], irises=irises, path=("",) * count,
        photo_size=((size, size),) * count, mask_given=(False,) * count,
    )  # fmt: skip


def iris_errors(
    found: Irises, truth: Irises, vertices: Tensor, params: FaceParams, model: MorphableModel
) -> dict[str, Tensor]:
    """Errors of measured irises; NaN where none were found.

    Args:
        found, truth: irises of B heads.
        vertices: (B, V, 3), unposed, on which both are.
        params: of them.
        model: the head model.

    Returns:
        {"center": (B, 2) px of the 224 px crop; "radius": (B,) relative; "hue": (B,) degrees, NaN for grays, whose
        saturation (range over maximum) is below 0.2 and which have none; "color": (B,) largest difference of a
        channel}.
    """
    camera = Camera.deep3d(_CROP, len(vertices))
    places = [_seen(irises, vertices, params, model, camera)[..., :2] for irises in (found, truth)]
    shows = found.share > 0
    center = (places[0] - places[1]).norm(dim=-1).where(shows, torch.tensor(math.nan))
    some = shows.any(1)
    hues, gray = [], []
    for color in (found.color, truth.color):
        each = [colorsys.rgb_to_hsv(*row) for row in color.tolist()]
        hues.append(torch.tensor([360 * h for h, _, _ in each]))
        gray.append(torch.tensor([s < 0.2 for _, s, _ in each]))
    hue = ((hues[0] - hues[1] + 180) % 360 - 180).abs()
    none = torch.tensor(math.nan)
    return {
        "center": center,
        "radius": (found.angle / truth.angle - 1).abs().where(some, none),
        "hue": hue.where(some & ~gray[1], none),
        "color": (found.color - truth.color).abs().amax(1).where(some, none),
    }
