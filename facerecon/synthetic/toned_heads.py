"""Portraits of people of known albedo, in linear light: what the skin tones of fits are measured on.

Lamps light the head; hair, clothes and a room are of their own colors; then exposure and white balance multiply every
intensity, of face, eyes and background alike, and the camera encodes by the power 2.2 and clips. A fit is told nothing
of it. A portrait is a function of the seed, its number and its person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ShapeError, check_shape
from facerecon.geometry.lighting import GAMMA, encoded_shading, sh_basis
from facerecon.morphable import MorphableModel
from facerecon.perception.skin_tone import mean_log_color, skin_color, skin_tone
from facerecon.render import Renderer
from facerecon.synthetic.exposure import exposed, random_exposure
from facerecon.synthetic.scene import CROP, FACE_NORMALS, Draws, lamp_coefficients, surround
from facerecon.synthetic.settings import SyntheticSettings
from facerecon.types import Camera, FaceParams, SHLight, TensorStruct

__all__ = ["TonedHeads", "TonedPortraits"]

FRAME = 1.4
"""Side of a portrait in sides of the fits' crop, about as FFHQ frames a head."""
_BRIGHTNESS = 1.0
"""Mean shading of the face's front at exposure 1: skin is then as bright in a picture as it is in its map, which is how
bright it is in the portraits that maps are made of."""
_SCENE = SyntheticSettings(hair=0.9, shoulders=1.0, glasses=0.0, occluded=0.0)


@dataclass(frozen=True)
class TonedPortraits(TensorStruct):
    """Rendered portraits and their truth.

    Args:
        image: (B, 3, S, S) in [0, 1], encoded.
        params: before :meth:`TonedHeads.camera`; its light is linear and holds exposure and white balance.
        person: (B,) int64, rows of the maps.
        texture: (B, 3, s, s) in [0, 1], albedo.
        ita: (B,) degrees, of the median color of the albedo's plain skin.
        log_color: (B, 3), mean natural log of the albedo's encoded RGB over plain skin.
        exposure: (B,), factor of all intensities.
        white_balance: (B, 3), factors of the channels' intensities, 1 for green.
    """

    image: Tensor
    params: FaceParams
    person: Tensor
    texture: Tensor
    ita: Tensor
    log_color: Tensor
    exposure: Tensor
    white_balance: Tensor

    @property
    def undone(self) -> Tensor:
        """(B, 3, S, S): the images at exposure 1 in neutral light, but for what was clipped."""
        return exposed(self.image, 1 / self.exposure, 1 / self.white_balance)


class TonedHeads:
    """Draws and renders portraits.

    Args:
        model: any head model.
        maps: (N, 3, s, s) uint8, albedo of N people in its atlas (:func:`~facerecon.dataset.load_tone_subjects`).
        plain: (1, 1, s, s), plain skin of the atlas (``facerecon.dataset.face_layout(model, s).plain``).
        identity: (N, I), shapes of their heads; None: drawn for each.
        seed: of the portraits.
        size: S, px; 512 at least for what looks at the whole photo.
        backgrounds: (M, 3, h, w) uint8, pictures, which are put behind half of the heads; the others stand in rooms.

    Raises:
        ShapeError: maps, skin or shapes that are none.
    """

    def __init__(
        self,
        model: MorphableModel,
        maps: Tensor,
        plain: Tensor,
        identity: Tensor | None = None,
        seed: int = 0,
        size: int = 512,
        backgrounds: Tensor | None = None,
    ) -> None:
        check_shape("maps", maps, "N 3 s s")
        check_shape("plain", plain, f"1 1 {maps.shape[-1]} {maps.shape[-1]}")
        if maps.dtype != torch.uint8 or not len(maps):
            raise ShapeError(f"maps must be uint8, one at least; got {len(maps)} of {maps.dtype}.")
        if identity is not None:
            check_shape("identity", identity, f"{len(maps)} {model.num_identity}")
        self.model, self.maps, self.identity, self.seed, self.size = model, maps, identity, seed, size
        self.backgrounds = backgrounds
        textures = maps.float() / 255
        self.ita, self.log_color = skin_tone(skin_color(textures, plain)), mean_log_color(textures, plain)
        self.renderer = Renderer(size, antialias=True)
        self._scalp = F.pad(model.topology.regions["scalp"].float(), (0, 1))

    def camera(self, count: int) -> Camera:
        """Cameras (B,): the fits', with a wider view of ``size`` px."""
        camera = Camera.deep3d(self.size, count)
        return camera.replace(focal=camera.focal / FRAME)

    @torch.no_grad()
    def __call__(
        self, numbers: Sequence[int], persons: Sequence[int] | None = None, as_exposed: bool = True
    ) -> TonedPortraits:
        """Portraits by number; each is the same in any batch.

        Args:
            numbers: from 0 on.
            persons: as many rows of the maps; None: the numbers modulo N, so that N portraits show everybody once.
            as_exposed: False takes the same scenes at exposure 1 in neutral light.

        Raises:
            ShapeError: not one person a portrait, or one that is not there.
        """
        numbers = [int(number) for number in numbers]
        persons = [n % len(self.maps) for n in numbers] if persons is None else [int(person) for person in persons]
        if len(persons) != len(numbers) or not all(0 <= person < len(self.maps) for person in persons):
            raise ShapeError(f"persons must be {len(numbers)} numbers in 0..{len(self.maps) - 1}; got {persons}.")
        draws, count = Draws(self.seed, numbers, "toned head"), len(numbers)
        texture = self.maps[persons].float() / 255
        params = self._posed(persons, draws)
        exposure, balance = random_exposure(draws)
        if not as_exposed:
            exposure, balance = torch.ones_like(exposure), torch.ones_like(balance)
        camera = self.camera(count)
        vertices = self.model(params)
        points = self.model.landmarks3d(vertices, camera)
        drawn = self.renderer(vertices, texture, self.model.topology, camera, params.light, landmarks3d=points)
        landmarks = drawn.landmarks * (CROP * FRAME / self.size) - CROP * (FRAME - 1) / 2
        scalp = self._scalp[drawn.fragments.face_index][:, None]
        room, hung = _room(draws, self.size), draws.chance(0.5)
        if self.backgrounds is not None:
            room[hung] = self._pictures(draws)[hung]
        scene = surround(drawn.image, drawn.mask, scalp, landmarks, _SCENE, draws, behind=room, frame=FRAME)
        gain = (exposure[:, None] * balance)[:, None]
        light = params.light.replace(coefficients=params.light.coefficients * gain)
        return TonedPortraits(
            image=exposed(scene, exposure, balance),
            params=params.replace(light=light),
            person=torch.tensor(persons),
            texture=texture,
            ita=self.ita[persons],
            log_color=self.log_color[persons],
            exposure=exposure,
            white_balance=balance,
        )

    def _posed(self, persons: Sequence[int], draws: Draws) -> FaceParams:
        """Heads with a mild pose and expression, lit at exposure 1."""
        model, count = self.model, len(persons)
        turn = torch.stack([draws.normal() * 5, draws.uniform(low=-25, high=25), draws.normal() * 3], 1)
        expression = torch.zeros(count, model.num_expression)
        smile, raised = draws.uniform(low=0, high=0.5), draws.uniform(low=0, high=0.4)
        for amount, names in ((smile, ("mouthSmileLeft", "mouthSmileRight")), (raised, ("browInnerUp",))):
            for name in names:
                if name in model.expression_names:
                    expression[:, model.expression_names.index(name)] = amount
        identity = self.identity
        if identity is None:  # of persons, not of portraits
            identity = Draws(self.seed, range(len(self.maps)), "head of a person").normal(model.num_identity) * 0.7
        away = draws.normal(3) * torch.tensor([0.12, 0.12, 0.3])
        return model.neutral(count).replace(
            identity=identity[list(persons)], expression=expression, rotation=torch.deg2rad(turn.clamp(-25, 25)),
            translation=away, light=_lamps(draws),
        )  # fmt: skip

    def _pictures(self, draws: Draws) -> Tensor:
        """(B, 3, S, S) of the backgrounds."""
        rows = (draws.uniform() * len(self.backgrounds)).long()
        return F.interpolate(self.backgrounds[rows].float() / 255, (self.size, self.size), mode="bilinear")


def _lamps(draws: Draws) -> SHLight:
    """Ambient light, a lamp before the head, beside it or above, and at times a second one; linear."""
    ambient = draws.uniform(1, low=0.2, high=0.7)
    azimuth, height = (torch.deg2rad(draws.uniform(2, low=low, high=high)) for low, high in ((-80, 80), (-5, 65)))
    direction = torch.stack([azimuth.sin() * height.cos(), height.sin(), azimuth.cos() * height.cos()], -1)
    power = torch.stack([torch.ones(len(ambient)), draws.uniform() * draws.chance(0.5)], 1)
    light = lamp_coefficients(direction, power[..., None] * (1 + 0.03 * draws.normal(2, 3)))
    basis = sh_basis(FACE_NORMALS)
    light = light * ((1 - ambient) / (basis @ light).mean((1, 2), keepdim=True)[..., 0])[..., None]
    light[:, 0] += ambient * (1 / float(sh_basis(torch.zeros(3))[0]))
    mean = encoded_shading(basis @ light, SHLight(light, space="linear")).mean((1, 2))
    return SHLight(light * ((_BRIGHTNESS / mean) ** GAMMA)[:, None, None], space="linear")


def _room(draws: Draws, size: int) -> Tensor:
    """(B, 3, S, S), encoded, at exposure 1: a wall in uneven light, things of many colors, now and then a white one."""
    tint = 1 + 0.05 * draws.normal(3, 1, 1)
    room = draws.uniform(1, 1, 1, low=0.35, high=0.85) * tint * (0.75 + 0.4 * draws.field(1, (2, 3), size))
    axis = (torch.arange(size) + 0.5) / size
    grid = torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)])  # (2, S, S)
    white = draws.uniform(1, 1, 1, low=0.85, high=1.05) * draws.chance(0.6).float()[:, None, None, None]
    for number in range(6):
        middle, half = draws.uniform(2, 1, 1), draws.uniform(2, 1, 1, low=0.04, high=0.2)
        inside = ((grid - middle).abs() < half).all(1, keepdim=True)
        gray = draws.uniform(1, 1, 1, low=0.05, high=0.9)
        color = torch.lerp(gray, draws.uniform(3, 1, 1), draws.uniform(1, 1, 1))
        color = torch.where(draws.chance(0.4)[:, None, None, None], gray.expand_as(color), color)
        if number == 5:
            inside, color = inside & (white > 0), white.expand_as(color)
        room = torch.where(inside, color * (0.9 + 0.2 * draws.field(1, (3, 3), size)), room)
    return (room * (1 + 0.08 * (draws.field(1, (60, 60), size) - 0.5))).clamp(min=0)
