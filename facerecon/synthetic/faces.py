"""Synthetic faces with exact truth: random heads, poses, textures, lights and surroundings, by our own renderer.

What N_enc (Sec. 4.2, stage 1) learns from where photos have no truth. A face is a function of the seed and its number:
coefficients, landmarks and vertices are those that were rendered. Where it lies in the crop is where the released
alignment (:func:`~facerecon.geometry.alignment.deep3d_crop_transform`) would put it, up to the errors that landmarks of
photos have. Hair, background and what hides the face are drawn in the image, behind and before the rendering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, ShapeError, check_shape
from facerecon.geometry.alignment import deep3d_crop_transform
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import sh_basis
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.morphable import MorphableModel
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.render import Renderer
from facerecon.run import item_generator
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.synthetic.shape_residual import ShapeResidual
from facerecon.types import Camera, FaceParams, SHLight, TensorStruct

__all__ = ["SyntheticBatch", "SyntheticFaces", "SyntheticSettings", "directional_light"]

CROP = 224
"""px of the crop in whose pixels landmarks are given."""

_LIGHT_MEAN = (0.95, -0.05, 0.055, 0.0, 0.0, -0.035, 0.05, 0.0, 0.0)
_LIGHT_SPREAD = (0.17, 0.06, 0.06, 0.09, 0.035, 0.05, 0.06, 0.08, 0.05)
_LIGHT_COLOR = (0.045, 0.013, 0.019, 0.010, 0.007, 0.010, 0.013, 0.011, 0.010)
"""Of 35 fitted photos and generated faces, white light and its color, wider than found where fits shrink it."""

_FACE_NORMALS = F.normalize(
    torch.tensor([[0, 0, 1], [1, 0, 1], [-1, 0, 1], [0, 1, 1], [0, -1, 1], [1, 1, 1], [-1, 1, 1.0]]), dim=1
)

_HAIR = (
    (0.05, 0.04, 0.04),
    (0.12, 0.08, 0.06),
    (0.25, 0.17, 0.11),
    (0.42, 0.28, 0.18),
    (0.70, 0.56, 0.38),
    (0.55, 0.25, 0.13),
    (0.60, 0.60, 0.60),
)

_SHARES = ("smile", "activity", "wide", "directional", "around", "stark", "hair", "shoulders", "glasses", "occluded")

_BRIGHTEST = (1.3, 2.6)
"""Shading of the brightest side of the face at most: under soft lamps, and under stark ones, as overexposed photos."""


@dataclass(frozen=True)
class SyntheticSettings:
    """How varied the faces are. Angles in degrees, lengths in px of a 224 px crop, shares in [0, 1].

    Args:
        identity: standard deviation of the identity coefficients.
        smile: share of smiling faces, where the model has such expressions.
        activity: share of the other expression coefficients that are not 0.
        yaw, pitch, roll: standard deviations.
        wide: share of faces whose yaw is drawn evenly instead.
        yaw_limit, pitch_limit, roll_limit: largest turns.
        scale: standard deviation of the log of the crop's scale.
        shift: of its place.
        texture: standard deviation of the texture code (of what is added to it, where there are texture maps).
        mirror: flip half of the texture maps; only right for a mirror-symmetric atlas (makehuman's is).
        directional: share of faces under lamps, the others are lit like fitted photos.
        around: share of the lamps that stand anywhere before the head, below it too; the others are mostly above.
        stark: share of the faces under lamps whose lamps are anything from none to all of the light, and may outshine
            the picture's white.
        exposure: standard deviation of the log of the brightness.
        hair, shoulders, glasses, occluded: shares of faces that have them, or something before them.
        relief: mm, root mean square over the face and the people of shapes that the model lacks
            (:class:`~facerecon.synthetic.shape_residual.ShapeResidual`); the truth is the nearest head of the model.
        perspective: standard deviation of the log of the camera's distance over the one that fits take, 10 units; the
            truth is the head's place before the fits' camera that the same crop would be cut out for.
        uv_jitter: standard deviation by which the texture lies off its place, smoothly over the atlas, in its sides.
        stain: standard deviation, over texels and people, of the log of smooth fields, gray and some color, by which
            textures are multiplied: shade that textures of photos keep, make-up, stubble.
        pictures: of each person; as many numbers one after the other show one person.
    """

    identity: float = 1.0
    smile: float = 0.4
    activity: float = 0.25
    yaw: float = 18.0
    pitch: float = 8.0
    roll: float = 6.0
    wide: float = 0.3
    yaw_limit: float = 60.0
    pitch_limit: float = 30.0
    roll_limit: float = 25.0
    scale: float = 0.04
    shift: float = 4.0
    texture: float = 1.0
    mirror: bool = False
    directional: float = 0.5
    around: float = 0.0
    stark: float = 0.0
    exposure: float = 0.15
    hair: float = 0.75
    shoulders: float = 0.7
    glasses: float = 0.15
    occluded: float = 0.3
    relief: float = 0.0
    uv_jitter: float = 0.0
    stain: float = 0.0
    perspective: float = 0.0
    pictures: int = 1

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            share = name in _SHARES
            number = isinstance(value, int | float) and math.isfinite(value) and value >= 0
            if name == "pictures" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"synthetic.pictures must be a whole number, 1 or more; got {value!r}.")
            if not number or (share and value > 1):
                raise ConfigError(f"synthetic.{name} must be {'0 to 1' if share else '0 or more'}; got {value!r}.")
        if self.yaw_limit > 85 or self.pitch_limit > 60:
            raise ConfigError("synthetic.yaw_limit is at most 85 and synthetic.pitch_limit 60 degrees.")


@dataclass(frozen=True)
class SyntheticBatch(TensorStruct):
    """Rendered faces and their truth.

    Args:
        image: (B, 3, S, S) in [0, 1].
        params: of ``Camera.deep3d``, without albedo; where heads have a relief, of the model's nearest ones.
        texture: (B, T) code.
        landmarks68: (B, 68, 2), pixels of the 224 px crop whatever S is; the jaw is where its outline is, of the head
            with its relief.
    """

    image: Tensor
    params: FaceParams
    texture: Tensor
    landmarks68: Tensor


def directional_light(direction: Tensor, color: Tensor) -> Tensor:
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


class _Draws:
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


_Person = tuple[Tensor, Tensor, Tensor, Tensor]
"""As drawn: identity (B, I), texture code (B, T), in [0, 1) which map (B,), whether its mirror image (B,)."""


class _Drawn(NamedTuple):
    """What is drawn of faces: parameters but identity and place, who they are, and as in :class:`_Truth`."""

    params: FaceParams
    person: _Person
    framing: tuple[Tensor, Tensor]
    further: Tensor | None
    draws: _Draws


class _Truth(NamedTuple):
    """What faces are: parameters, texture codes (B, T) and textures (B, 3, s, s); where there is a relief, by how much
    the vertices lie elsewhere, (B, V, 3); how the crop errs, scale (B,) and shift (B, 2); how many times further than
    the fits' the camera stands, (B,), or None for there; and what goes on drawing."""

    params: FaceParams
    codes: Tensor
    textures: Tensor
    moved: Tensor | None
    framing: tuple[Tensor, Tensor]
    further: Tensor | None
    draws: _Draws


class SyntheticFaces:
    """Draws and renders faces of a head model.

    Args:
        model: any head model.
        decoder: a linear texture of its atlas, whose code is the truth.
        settings: how varied.
        seed: of the set.
        size: px of the images; at most half of 224 is rendered at twice that and averaged.
        components: T, of the texture code; all of the decoder's if left out.
        maps: (N, 3, s, s) uint8, texture maps of the head's atlas; without them textures come of the linear basis.
        backgrounds: (M, 3, s, s) uint8, pictures to put behind the heads.

    Raises:
        ConfigError: a decoder that is not linear, or more components than it has.
        ShapeError: maps that are none.
    """

    def __init__(
        self,
        model: MorphableModel,
        decoder: TextureDecoder,
        settings: SyntheticSettings | None = None,
        seed: int = 0,
        size: int = CROP,
        components: int | None = None,
        maps: Tensor | None = None,
        backgrounds: Tensor | None = None,
    ) -> None:
        if decoder.space != "linear":
            raise ConfigError(f"the texture must be linear to have a code; decoder '{decoder.name}' is not.")
        mean, basis = decoder.start_basis()
        if components is not None and not 0 <= components <= len(basis):
            raise ConfigError(f"texture must be 0..{len(basis)} components of '{decoder.name}'; got {components}.")
        for name, pictures in (("maps", maps), ("backgrounds", backgrounds)):
            if pictures is not None and (pictures.dtype != torch.uint8 or pictures.dim() != 4 or not len(pictures)):
                raise ShapeError(f"{name} must be (N, 3, S, S) uint8, N >= 1; got {tuple(pictures.shape)}.")
        self.model, self.settings, self.seed, self.size = model, settings or SyntheticSettings(), seed, size
        self.mean, self.basis = mean, basis[:components]
        self.maps, self.backgrounds = maps, backgrounds
        self.codes = None if maps is None else self._codes_of(maps)
        self.relief = ShapeResidual(model) if self.settings.relief else None
        self.side = 2 * size if size <= CROP // 2 else size
        self.renderer = Renderer(self.side, antialias=self.side == size)
        topology = model.topology
        scalp = topology.regions.get("scalp")
        faces = topology.faces.shape[0]
        self._scalp = torch.zeros(faces + 1) if scalp is None else F.pad(scalp.float(), (0, 1))

    def _codes_of(self, maps: Tensor, side: int = 64) -> Tensor:
        """(N, T): least-squares codes of the maps."""
        basis = F.adaptive_avg_pool2d(self.basis, side).flatten(1)
        mean = F.adaptive_avg_pool2d(self.mean[None], side)
        small = torch.cat([F.adaptive_avg_pool2d(part.float() / 255, side) for part in maps.split(64)])
        gram = basis @ basis.T + 1e-6 * torch.eye(len(basis))
        return torch.linalg.solve(gram, basis @ (small - mean).flatten(1).T).T.contiguous()

    # -- truth -----------------------------------------------------------------------------------------------

    def expressions(self, draws: _Draws) -> Tensor:
        """(B, E): a few units at a time, smiles among them, both sides mostly alike."""
        s, model = self.settings, self.model
        names, count = model.expression_names, model.num_expression
        low, high = (-math.inf, math.inf) if model.expression_bounds is None else model.expression_bounds
        place = {name: i for i, name in enumerate(names)}
        active = (draws.uniform(count) < s.activity).float() * draws.uniform(1)  # some faces are calmer than others
        amount = draws.uniform(count) ** 1.5
        if math.isinf(high):  # standard deviations
            amount = draws.normal(count)
            amount = amount.abs() if low == 0 else amount
        values = active * amount
        same = draws.uniform(count) * 0.2 + 0.9
        for name, i in place.items():
            other = place.get(name.removesuffix("Left") + "Right") if name.endswith("Left") else None
            if other is not None:
                both = draws.chance(0.8)
                values[:, other] = torch.where(both, values[:, i] * same[:, i], values[:, other])
        smile = draws.chance(s.smile).float() * draws.uniform(low=0.2, high=1.0)
        blink = draws.chance(0.08).float() * draws.uniform(low=0.5, high=1.0)
        shares = {"mouthSmile": 0.8, "cheekSquint": 0.3, "eyeSquint": 0.25, "mouthUpperUp": 0.5, "mouthLowerDown": 0.25,
                  "mouthDimple": 0.3, "mouthStretch": 0.15}  # fmt: skip
        varied = draws.uniform(len(shares), low=0.4, high=1.0)
        for side in ("Left", "Right"):
            for k, (name, share) in enumerate(shares.items()):
                at = place.get(name + side)
                if at is not None:
                    values[:, at] = torch.maximum(values[:, at], smile * varied[:, k] * share)
            at = place.get("eyeBlink" + side)
            if at is not None:
                values[:, at] = torch.maximum(values[:, at], blink)
        if "tongueOut" in place:
            values[:, place["tongueOut"]] *= (draws.uniform() < 0.1).float()
        return values.clamp(low, high)

    def lights(self, draws: _Draws, more: _Draws) -> SHLight:
        """Light like that of fitted photos, or an ambient one and up to two lamps."""
        s, count = self.settings, len(draws.generators)
        mean, spread, color = (torch.tensor(t) for t in (_LIGHT_MEAN, _LIGHT_SPREAD, _LIGHT_COLOR))
        white = mean + spread * draws.normal(9)
        like_photos = white[:, :, None] + 1.5 * color[:, None] * draws.normal(9, 3)
        azimuth = draws.normal(2) * math.radians(55)
        height = draws.normal(2) * math.radians(25) + math.radians(20)
        direction = torch.stack([azimuth.sin() * height.cos(), height.sin(), azimuth.cos() * height.cos()], -1)
        anywhere = F.normalize(more.normal(2, 3), dim=-1)
        anywhere = torch.cat([anywhere[..., :2], anywhere[..., 2:].abs()], -1)
        direction = torch.where((more.uniform(2) < s.around)[..., None], anywhere, direction)
        power = draws.uniform(2) * torch.stack([torch.ones(count), draws.chance(0.4).float()], 1)
        tint = 1 + 0.12 * draws.normal(2, 1) * torch.tensor([1.0, 0.1, -1.0]) + 0.04 * draws.normal(2, 3)
        ambient = draws.uniform(1, low=0.25, high=1.0)
        brightest = torch.full_like(ambient, _BRIGHTEST[0])
        if s.stark:
            stark, share = more.chance(s.stark)[:, None], more.uniform(1)
            power = torch.where(stark, share * power / power.sum(1, keepdim=True).clamp(min=1e-6), power)
            ambient = torch.where(stark, 1 - share, ambient)
            brightest = torch.where(stark, more.uniform(1, low=_BRIGHTEST[0], high=_BRIGHTEST[1]), brightest)
        ambient = ambient[:, None] * (1 + 0.06 * draws.normal(1, 3))
        lamps = directional_light(direction, power[..., None] * tint.clamp(min=0.3))
        lamps[:, 0] += ambient[:, 0] / float(sh_basis(torch.zeros(3))[0])
        shading = (sh_basis(_FACE_NORMALS) @ lamps).mean(2)  # (B, 7)
        lamps = lamps * torch.minimum(0.85 / shading.mean(1), brightest[:, 0] / shading.amax(1))[:, None, None]
        chosen = draws.chance(s.directional)[:, None, None]
        exposure = (draws.normal(1, 1) * s.exposure).exp()
        light = torch.where(chosen, lamps, like_photos) * exposure
        bright = (sh_basis(_FACE_NORMALS) @ light).mean((1, 2))
        return SHLight(light * (1.15 / bright.clamp(min=1.15))[:, None, None])

    def truth(self, numbers: Sequence[int], persons: Sequence[int] | None = None) -> _Truth:
        """What faces are by number; ``persons`` as in a call."""
        numbers = [int(number) for number in numbers]
        if persons is None:
            persons = [number - number % self.settings.pictures for number in numbers]
        persons = [int(number) for number in persons]
        drawn = self._drawn(numbers)
        once = sorted(set(persons))  # each person is made once, however many pictures show it
        who = drawn.person if once == numbers else self._drawn(once).person
        row = torch.tensor([once.index(number) for number in persons])
        identity, codes, texture, moved = (None if part is None else part[row] for part in self._made(once, who))
        params = drawn.params.replace(identity=identity)
        truth = _Truth(params, codes, texture, moved, drawn.framing, drawn.further, drawn.draws)
        return truth._replace(params=params.replace(translation=self.place(params, truth)))

    def _drawn(self, numbers: Sequence[int]) -> _Drawn:
        """What is drawn of each number by itself."""
        s, model = self.settings, self.model
        draws = _Draws(self.seed, numbers)
        turn = draws.normal(3) * torch.tensor([s.pitch, s.yaw, s.roll])
        limits = torch.tensor([s.pitch_limit, s.yaw_limit, s.roll_limit])
        even = draws.uniform(low=-1.0, high=1.0) * s.yaw_limit
        turn[:, 1] = torch.where(draws.chance(s.wide), even, turn[:, 1])
        identity = draws.normal(model.num_identity) * s.identity
        params = model.neutral(len(numbers)).replace(
            expression=self.expressions(draws),
            rotation=torch.deg2rad(turn.clamp(-limits, limits)),
            light=self.lights(draws, more := _Draws(self.seed, numbers, "lamps and camera")),
        )
        further = (more.normal() * s.perspective).clamp(-0.9, 0.9).exp() if s.perspective else None
        framing = (draws.normal() * s.scale).exp(), draws.normal(2) * s.shift
        codes = draws.normal(len(self.basis)) * s.texture
        person = identity, codes, draws.uniform(), draws.chance(0.5)
        return _Drawn(params, person, framing, further, draws)

    def _made(self, numbers: Sequence[int], person: _Person) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Identities, texture codes, textures and by how much vertices lie elsewhere, of persons by number."""
        s = self.settings
        identity, codes, chosen, flipped = person
        if self.maps is None:
            texture = (self.mean.flatten() + codes @ self.basis.flatten(1)).view(-1, *self.mean.shape)
        else:
            rows = (chosen * len(self.maps)).long()
            codes = codes * 0.3
            texture = self.maps[rows].float() / 255
            if s.mirror:
                texture = torch.where(flipped[:, None, None, None], texture.flip(-1), texture)
            change = (codes @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])
            if change.shape[-1] != texture.shape[-1]:
                change = F.interpolate(change, texture.shape[-2:], mode="bilinear")
            texture, codes = texture + change, codes + self.codes[rows]
        shapes, moved = _Draws(self.seed, numbers, "relief and uv_jitter"), None
        if self.relief is not None:
            strength = s.relief * shapes.uniform(1, high=math.sqrt(3))  # a root mean square of relief
            nearest, moved = self.relief(shapes.normal(len(self.relief.nearest)) * strength)
            identity = identity + nearest
        if s.uv_jitter:
            texture = _slipped(texture, shapes.normal(2, 7, 7) * s.uv_jitter)
        if s.stain:  # most people have little of it
            strength = shapes.uniform(1, 1, 1, high=math.sqrt(3)).square() * (s.stain * math.sqrt(5) / 3)
            texture = texture * (_clouds(shapes, texture.shape[-1]) * strength).exp()
        return identity, codes, texture.clamp(0, 1), moved

    def camera(self, further: Tensor) -> Camera:
        """Cameras (B,) times as far away as the fits', with as much longer lenses: faces are as large in them."""
        camera = Camera.deep3d(CROP, len(further), further.device)
        return replace(camera, focal=camera.focal * further, near=1.0, far=40.0)

    def place(self, params: FaceParams, truth: _Truth, camera: Camera | None = None, rounds: int = 6) -> Tensor:
        """Translations with which the released alignment finds its crop as much larger and as far away as it errs.

        Args:
            params: poses without translation.
            truth: how the crop errs, by how much vertices lie elsewhere.
            camera: that sees the heads; the fits' if left out.

        Returns:
            (B, 3): ``deep3d_crop_transform`` of the landmarks is ``scale`` larger and maps the crop's center to itself
            plus ``shift`` (of ``truth.framing``).
        """
        model, (scale, shift), moved = self.model, truth.framing, truth.moved
        translation = torch.zeros_like(params.translation)
        camera = Camera.deep3d(CROP, len(scale)) if camera is None else camera
        shape = model.shape(params) if moved is None else model.shape(params) + moved
        points = model.landmarks3d(shape)  # only those that do not slide are used
        turned = points @ euler_to_matrix(params.rotation).mT
        focal, middle = camera.focal[:, None], CROP / 2
        for _ in range(rounds):
            seen = project(camera, turned + translation[:, None])[..., :2]
            found = deep3d_crop_transform(seen, MEAN_FIVE_POINTS, CROP)
            now = found[:, 0, 0]
            away = found[:, :, :2].sum(2) * middle + found[:, :, 2] - middle - shift
            depth = 10 - translation[:, 2]
            further = depth * now / scale
            step = away * depth[:, None] / focal * torch.tensor([-1.0, 1.0])
            across = (translation[:, :2] + step) * (further / depth)[:, None]
            translation = torch.cat([across, (10 - further)[:, None]], 1)
        return translation

    # -- pictures --------------------------------------------------------------------------------------------

    def __call__(self, numbers: Sequence[int], persons: Sequence[int] | None = None) -> SyntheticBatch:
        """Faces by number; each is the same in any batch.

        Args:
            numbers: from 0 on.
            persons: as many numbers; picture i shows identity and texture of that face, in the pose, expression, light
                and surroundings of face ``numbers[i]``. None: as ``settings.pictures`` has it.

        Raises:
            ShapeError: not one person a picture.
        """
        if persons is not None and len(persons) != len(numbers):
            raise ShapeError(f"persons must be one a picture, {len(numbers)}; got {len(persons)}.")
        with torch.no_grad():
            truth = self.truth(numbers, persons)
            params, texture = truth.params, truth.textures
            camera, seen = Camera.deep3d(CROP, len(texture)), params
            if truth.further is not None:
                camera = self.camera(truth.further)
                seen = params.replace(translation=self.place(params, truth, camera))
            shape = self.model.shape(params)
            vertices = self.model.pose(shape if truth.moved is None else shape + truth.moved, seen)
            landmarks3d = self.model.landmarks3d(vertices, camera)
            drawn = self.renderer(vertices, texture, self.model.topology, camera, params.light, landmarks3d=landmarks3d)
            landmarks = drawn.landmarks * (CROP / self.side)
            layers = torch.cat(
                [drawn.image.clamp(0, 1), drawn.mask, self._scalp[drawn.fragments.face_index][:, None]], 1
            )
            if self.side != self.size:
                layers = F.avg_pool2d(layers, self.side // self.size)
            image = self._picture(*layers.split([3, 1, 1], 1), landmarks, truth.draws)
        return SyntheticBatch(image.clamp(0, 1), params, truth.codes, landmarks)

    def _picture(self, image: Tensor, mask: Tensor, scalp: Tensor, landmarks: Tensor, draws: _Draws) -> Tensor:
        """The head (premultiplied by its mask) before a background, with hair and what hides it."""
        s, size = self.settings, self.size
        axis = (torch.arange(size) + 0.5) * (CROP / size)
        y, x = axis[:, None].expand(size, size), axis.expand(size, size)
        grid = torch.stack([x, y])[None]  # (1, 2, S, S), px of the crop
        behind = self._background(draws)
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
        wider = max(3, round(17 * size / CROP) | 1)
        soft = scalp
        for _ in range(2):
            soft = F.avg_pool2d(soft, wider, 1, wider // 2)
        limit = draws.uniform(1, 1, 1, low=0.08, high=0.5) + 0.5 * rough
        grown = (soft > limit.clamp(min=0.03)).float()
        allowed = torch.where(fringed[:, None, None, None], torch.ones_like(scalp), torch.maximum(scalp, 1 - mask))
        image = _over(image, hair, grown * allowed, hairy)

        # glasses, and things before the face
        image = self._glasses(image, grid, landmarks, draws)
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

    def _background(self, draws: _Draws) -> Tensor:
        """(B, 3, S, S): smooth color, texture, a few edges; or a picture."""
        size = self.size
        color = draws.field(3, (3, 3), size)
        gray = color.mean(1, keepdim=True)
        color = gray + (color - gray) * draws.uniform(1, 1, 1, high=1.2)
        color = color * draws.uniform(1, 1, 1, low=0.3, high=1.0) + draws.uniform(1, 1, 1, low=-0.1, high=0.4)
        fine = draws.field(1, (36, 36), size) - 0.5
        color = color + fine * draws.uniform(1, 1, 1, high=0.4)
        blocks = F.interpolate(draws.uniform(3, 4, 5), (size, size), mode="nearest")
        color = torch.where(draws.chance(0.3)[:, None, None, None], 0.5 * color + 0.5 * blocks, color)
        chosen, flipped = draws.uniform(), draws.chance(0.5)
        if self.backgrounds is not None:
            pictures = self.backgrounds[(chosen * len(self.backgrounds)).long()].float() / 255
            pictures = torch.where(flipped[:, None, None, None], pictures.flip(-1), pictures)
            pictures = F.interpolate(pictures, (size, size), mode="bilinear")
            color = torch.where(draws.chance(0.7)[:, None, None, None], pictures, color)
        return color.clamp(0, 1)

    def _glasses(self, image: Tensor, grid: Tensor, landmarks: Tensor, draws: _Draws) -> Tensor:
        """Two rims, a bridge and tinted lenses around the eyes."""
        left, right = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
        along = right - left
        apart = along.norm(dim=1)
        turn = torch.atan2(along[:, 1], along[:, 0])
        radii = apart[:, None] * torch.stack([draws.uniform(low=0.34, high=0.46), draws.uniform(low=0.24, high=0.4)], 1)
        thick = draws.uniform(1, 1, 1, low=0.06, high=0.25)
        dark = draws.uniform(3, 1, 1) * draws.uniform(1, 1, 1, high=0.5)
        tint = torch.where(draws.chance(0.2), draws.uniform(low=0.7, high=0.97), draws.uniform(high=0.25))
        wears = draws.chance(self.settings.glasses)
        rims, lenses = torch.zeros_like(grid[:, :1]), torch.zeros_like(grid[:, :1])
        for eye in (left, right):
            r = _distance(grid, eye, radii, turn)
            lenses = torch.maximum(lenses, (r < 1).float())
            rims = torch.maximum(rims, ((r - 1).abs() < thick).float())
        bridge = _ellipse(grid, (left + right) / 2, torch.stack([apart * 0.2, 0.03 * apart], 1), turn=turn)
        image = _over(image, dark, lenses * tint[:, None, None, None], wears)
        return _over(image, dark, torch.maximum(rims, bridge), wears)


def _slipped(texture: Tensor, by: Tensor) -> Tensor:
    """(B, C, s, s) maps, each place of which shows what lies ``by`` (B, 2, n, n), in sides of the map, away."""
    size = texture.shape[-1]
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    grid = torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)], -1)
    away = F.interpolate(by, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1) * 2
    return F.grid_sample(texture, grid + away, padding_mode="border", align_corners=False)


def _clouds(draws: _Draws, size: int) -> Tensor:
    """(B, 3, size, size) smooth noise of standard deviation 1: gray and some color, the finer the fainter."""
    total = torch.zeros(1)
    for cells in (6, 12, 24, 48):
        noise = draws.normal(1, cells, cells) + 0.2 * draws.normal(3, cells, cells)
        total = total + F.interpolate(noise, (96, 96), mode="bicubic", align_corners=True) / cells
    total = total / total.std((1, 2, 3), keepdim=True)
    return F.interpolate(total, (size, size), mode="bilinear", align_corners=True)


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
