"""What is drawn around a head: lights, background, hair, shoulders, glasses, and things before the face."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.geometry.lighting import sh_basis
from facerecon.run import item_generator
from facerecon.synthetic.settings import SyntheticSettings
from facerecon.types import SHLight

__all__ = ["CROP", "FACE_NORMALS", "Draws", "lamp_coefficients", "random_lights", "surround"]

CROP = 224
"""px of the crop in whose pixels landmarks are given."""

_LIGHT_MEAN = (0.95, -0.05, 0.055, 0.0, 0.0, -0.035, 0.05, 0.0, 0.0)
_LIGHT_SPREAD = (0.17, 0.06, 0.06, 0.09, 0.035, 0.05, 0.06, 0.08, 0.05)
_LIGHT_COLOR = (0.045, 0.013, 0.019, 0.010, 0.007, 0.010, 0.013, 0.011, 0.010)
"""Of 35 fitted photos and generated faces, white light and its color, wider than found where fits shrink it."""

FACE_NORMALS = F.normalize(
    torch.tensor([[0, 0, 1], [1, 0, 1], [-1, 0, 1], [0, 1, 1], [0, -1, 1], [1, 1, 1], [-1, 1, 1.0]]), dim=1
)
"""(7, 3): where the skin of a face before the camera looks."""

_HAIR = (
    (0.05, 0.04, 0.04),
    (0.12, 0.08, 0.06),
    (0.25, 0.17, 0.11),
    (0.42, 0.28, 0.18),
    (0.70, 0.56, 0.38),
    (0.55, 0.25, 0.13),
    (0.60, 0.60, 0.60),
)

_BRIGHTEST = 1.3
"""Shading of the brightest side of the face at most."""


class Draws:
    """Random numbers of several faces: each takes its own, in the order of the calls."""

    def __init__(self, seed: int, numbers: Sequence[int], what: str = "synthetic face") -> None:
        self.generators = [item_generator(seed, what, int(number)) for number in numbers]

    def normal(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]) * (high - low) + low

    def chance(self, share: float) -> Tensor:
        """(B,) bool."""
        return self.uniform() < share

    def field(self, channels: int, cells: tuple[int, int], size: int) -> Tensor:
        """(B, C, size, size) smooth noise in [0, 1] of so many cells."""
        return F.interpolate(self.uniform(channels, *cells), (size, size), mode="bilinear")


def lamp_coefficients(direction: Tensor, color: Tensor) -> Tensor:
    """SH coefficients, in the library's basis, of distant lamps: ``color * max(0, n . d)`` to the second order.

    ``max(0, c) = 1/4 + c/2 + 5/16 (3 c^2 - 1)/2 + ...`` (Ramamoorthi and Hanrahan 2001).

    Args:
        direction: (B, L, 3) unit vectors towards L lamps.
        color: (B, L, 3) RGB irradiance of each.

    Returns:
        (B, 9, 3).
    """
    check_shape("direction", direction, "B L 3")
    check_shape("color", color, " ".join(map(str, direction.shape)))
    normals = F.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    cosine = normals @ direction.double().mT  # (B, 64, L)
    irradiance = 0.25 + cosine / 2 + (5 / 32) * (3 * cosine**2 - 1)
    fit = torch.linalg.pinv(sh_basis(normals))
    return (fit @ irradiance @ color.double()).to(direction.dtype)


def random_lights(settings: SyntheticSettings, draws: Draws, more: Draws) -> SHLight:
    """Light like that of fitted photos, or an ambient one and up to two lamps.

    Args:
        settings: how often there are lamps, and where.
        draws: random numbers of each face.
        more: further ones, for what was added later.

    Returns:
        Light of as many faces.
    """
    s, count = settings, len(draws.generators)
    mean, spread, color = (torch.tensor(t) for t in (_LIGHT_MEAN, _LIGHT_SPREAD, _LIGHT_COLOR))
    white = mean + spread * draws.normal(9)
    like_photos = white[:, :, None] + 1.5 * color[:, None] * draws.normal(9, 3)
    azimuth = draws.normal(2) * math.radians(55)
    height = draws.normal(2) * math.radians(25) + math.radians(20)
    direction = torch.stack([azimuth.sin() * height.cos(), height.sin(), azimuth.cos() * height.cos()], -1)
    anywhere = F.normalize(more.normal(2, 3), dim=-1)
    anywhere = torch.cat([anywhere[..., :2], anywhere[..., 2:].abs()], -1)
    direction = torch.where((more.uniform(2) < s.p_full_sphere_lights)[..., None], anywhere, direction)
    power = draws.uniform(2) * torch.stack([torch.ones(count), draws.chance(0.4).float()], 1)
    tint = 1 + 0.12 * draws.normal(2, 1) * torch.tensor([1.0, 0.1, -1.0]) + 0.04 * draws.normal(2, 3)
    ambient = draws.uniform(1, low=0.25, high=1.0)[:, None] * (1 + 0.06 * draws.normal(1, 3))
    lamps = lamp_coefficients(direction, power[..., None] * tint.clamp(min=0.3))
    lamps[:, 0] += ambient[:, 0] / float(sh_basis(torch.zeros(3))[0])
    shading = (sh_basis(FACE_NORMALS) @ lamps).mean(2)  # (B, 7)
    lamps = lamps * torch.minimum(0.85 / shading.mean(1), torch.tensor(_BRIGHTEST) / shading.amax(1))[:, None, None]
    chosen = draws.chance(s.p_directional)[:, None, None]
    exposure = (draws.normal(1, 1) * s.exposure).exp()
    light = torch.where(chosen, lamps, like_photos) * exposure
    bright = (sh_basis(FACE_NORMALS) @ light).mean((1, 2))
    return SHLight(light * (1.15 / bright.clamp(min=1.15))[:, None, None])


def surround(
    image: Tensor,
    mask: Tensor,
    scalp: Tensor,
    landmarks: Tensor,
    settings: SyntheticSettings,
    draws: Draws,
    backgrounds: Tensor | None = None,
    behind: Tensor | None = None,
    frame: float = 1.0,
) -> Tensor:
    """A head before a background, with hair and what hides it.

    Args:
        image: (B, 3, S, S), the rendered head, premultiplied by its mask.
        mask: (B, 1, S, S), the head.
        scalp: (B, 1, S, S), where hair grows.
        landmarks: (B, 68, 2), pixels of a 224 px crop.
        settings: shares of faces with hair, shoulders, glasses, and something before them.
        draws: random numbers of each face.
        backgrounds: (M, 3, s, s) uint8, pictures to put behind the heads.
        behind: (B, 3, S, S), what is behind each head in their place.
        frame: side of the picture in sides of the crop, which is its middle.

    Returns:
        (B, 3, S, S).
    """
    s, size = settings, image.shape[-1]
    axis = (torch.arange(size) + 0.5) * (CROP * frame / size) - CROP * (frame - 1) / 2
    y, x = axis[:, None].expand(size, size), axis.expand(size, size)
    grid = torch.stack([x, y])[None]  # (1, 2, S, S), px of the crop
    behind = _background(draws, size, backgrounds) if behind is None else behind
    center = landmarks.mean(1)

    # shoulders, then long hair, both behind the head
    body = torch.cat([center[:, :1], 250 + draws.uniform(1, low=-15, high=30)], 1)
    radii = torch.stack([draws.uniform(low=85, high=150), draws.uniform(low=45, high=85)], 1)
    cloth = draws.uniform(3, 1, 1) * (0.8 + 0.4 * draws.field(1, (40, 40), size))
    wears = draws.chance(s.shoulders)
    behind = _over(behind, cloth, _ellipse(grid, body, radii), wears)
    hairy, fringed = draws.chance(s.hair), draws.chance(0.5)
    palette = torch.tensor(_HAIR)[(draws.uniform() * len(_HAIR)).long()]
    strands = 0.55 + 0.9 * draws.field(1, (5, 50), size)
    hair = (palette * draws.uniform(1, low=0.7, high=1.3))[:, :, None, None] * strands
    long = torch.cat([center[:, :1], center[:, 1:] - draws.uniform(1, low=5, high=30)], 1)
    wide = torch.stack([draws.uniform(low=72, high=100), draws.uniform(low=85, high=140)], 1)
    rough = draws.field(1, (10, 10), size) - 0.5
    behind = _over(behind, hair, _ellipse(grid, long, wide, 0.5 * rough), hairy & draws.chance(0.45))
    skin = image.sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)
    image = image + behind * (1 - mask)

    # short hair grows from the scalp, over the forehead where there is a fringe
    wider = max(3, round(17 * size / (CROP * frame)) | 1)
    soft = scalp
    for _ in range(2):
        soft = F.avg_pool2d(soft, wider, 1, wider // 2)
    limit = draws.uniform(1, 1, 1, low=0.08, high=0.5) + 0.5 * rough
    grown = (soft > limit.clamp(min=0.03)).float()
    allowed = torch.where(fringed[:, None, None, None], torch.ones_like(scalp), torch.maximum(scalp, 1 - mask))
    image = _over(image, hair, grown * allowed, hairy)

    # glasses, and things before the face
    image = _put_on_glasses(image, grid, landmarks, draws, s.glasses)
    for _ in range(2):
        there = draws.chance(s.occluded * 0.7)
        at = center + draws.normal(2) * 60
        radii = torch.stack([draws.uniform(low=6, high=45), draws.uniform(low=15, high=70)], 1)
        strip = draws.chance(0.25)
        radii[:, 1] = torch.where(strip, torch.full_like(radii[:, 1], 400.0), radii[:, 1])
        turn = draws.uniform(high=math.pi)
        rough = (draws.field(1, (7, 7), size) - 0.5) * draws.uniform(1, 1, 1, high=1.6)
        plain = draws.uniform(3)
        color = torch.where(draws.chance(0.35)[:, None], skin * (0.7 + 0.5 * draws.uniform(1)), plain)
        color = color[:, :, None, None] * (0.75 + 0.5 * draws.field(1, (24, 24), size))
        image = _over(image, color.clamp(0, 1), _ellipse(grid, at, radii, rough, turn), there)
    return image


def _background(draws: Draws, size: int, backgrounds: Tensor | None) -> Tensor:
    """(B, 3, S, S): smooth color, texture, a few edges; or a picture."""
    color = draws.field(3, (3, 3), size)
    gray = color.mean(1, keepdim=True)
    color = gray + (color - gray) * draws.uniform(1, 1, 1, high=1.2)
    color = color * draws.uniform(1, 1, 1, low=0.3, high=1.0) + draws.uniform(1, 1, 1, low=-0.1, high=0.4)
    fine = draws.field(1, (36, 36), size) - 0.5
    color = color + fine * draws.uniform(1, 1, 1, high=0.4)
    blocks = F.interpolate(draws.uniform(3, 4, 5), (size, size), mode="nearest")
    color = torch.where(draws.chance(0.3)[:, None, None, None], 0.5 * color + 0.5 * blocks, color)
    chosen, flipped = draws.uniform(), draws.chance(0.5)
    if backgrounds is not None:
        pictures = backgrounds[(chosen * len(backgrounds)).long()].float() / 255
        pictures = torch.where(flipped[:, None, None, None], pictures.flip(-1), pictures)
        pictures = F.interpolate(pictures, (size, size), mode="bilinear")
        color = torch.where(draws.chance(0.7)[:, None, None, None], pictures, color)
    return color.clamp(0, 1)


def _put_on_glasses(image: Tensor, grid: Tensor, landmarks: Tensor, draws: Draws, share: float) -> Tensor:
    """Two rims, a bridge and tinted lenses around the eyes."""
    left, right = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
    along = right - left
    apart = along.norm(dim=1)
    turn = torch.atan2(along[:, 1], along[:, 0])
    radii = apart[:, None] * torch.stack([draws.uniform(low=0.34, high=0.46), draws.uniform(low=0.24, high=0.4)], 1)
    thick = draws.uniform(1, 1, 1, low=0.06, high=0.25)
    dark = draws.uniform(3, 1, 1) * draws.uniform(1, 1, 1, high=0.5)
    tint = torch.where(draws.chance(0.2), draws.uniform(low=0.7, high=0.97), draws.uniform(high=0.25))
    wears = draws.chance(share)
    rims, lenses = torch.zeros_like(grid[:, :1]), torch.zeros_like(grid[:, :1])
    for eye in (left, right):
        r = _distance(grid, eye, radii, turn)
        lenses = torch.maximum(lenses, (r < 1).float())
        rims = torch.maximum(rims, ((r - 1).abs() < thick).float())
    bridge = _ellipse(grid, (left + right) / 2, torch.stack([apart * 0.2, 0.03 * apart], 1), turn=turn)
    image = _over(image, dark, lenses * tint[:, None, None, None], wears)
    return _over(image, dark, torch.maximum(rims, bridge), wears)


def _distance(grid: Tensor, center: Tensor, radii: Tensor, turn: Tensor | None = None) -> Tensor:
    """(B, 1, S, S): 1 on the ellipse, less inside; center, radii (B, 2) px, turn (B,) radians."""
    x, y = (grid - center[:, :, None, None]).unbind(1)
    if turn is not None:
        cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
        x, y = cos * x + sin * y, cos * y - sin * x
    return ((x / radii[:, :1, None]).square() + (y / radii[:, 1:, None]).square()).sqrt()[:, None]


def _ellipse(
    grid: Tensor, center: Tensor, radii: Tensor, rough: Tensor | float = 0.0, turn: Tensor | None = None
) -> Tensor:
    """(B, 1, S, S) in {0, 1}."""
    return (_distance(grid, center, radii, turn) + rough < 1).float()


def _over(image: Tensor, color: Tensor, mask: Tensor, where: Tensor) -> Tensor:
    """``color`` painted on the image where the mask is, in those pictures that ``where`` (B,) says."""
    return torch.lerp(image, color.expand_as(image), (mask * where[:, None, None, None]).expand_as(image))
