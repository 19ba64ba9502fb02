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

from facerecon.errors import ConfigError, ShapeError
from facerecon.geometry.alignment import deep3d_crop_transform
from facerecon.geometry.camera import project
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.morphable import MorphableModel
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.render import Renderer
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.synthetic.population import Population
from facerecon.synthetic.scene import CROP, Draws, random_lights, surround
from facerecon.synthetic.settings import WITHIN_MODEL, SyntheticSettings
from facerecon.synthetic.shape_residual import ShapeResidual
from facerecon.types import Camera, FaceParams, TensorStruct

__all__ = ["SyntheticBatch", "SyntheticFaces", "SyntheticSettings", "WITHIN_MODEL"]


@dataclass(frozen=True)
class SyntheticBatch(TensorStruct):
    """Rendered faces and their truth.

    Args:
        image: (B, 3, S, S) in [0, 1].
        params: of ``Camera.deep3d``, without albedo; where heads have a shape residual, of the model's nearest ones.
        texture: (B, T) code.
        landmarks68: (B, 68, 2), pixels of the 224 px crop whatever S is; the jaw is where its outline is, of the head
            with its shape residual.
    """

    image: Tensor
    params: FaceParams
    texture: Tensor
    landmarks68: Tensor


_Person = tuple[Tensor, Tensor, Tensor, Tensor]
"""As drawn: identity (B, I), texture code (B, T), in [0, 1) which map (B,), whether its mirror image (B,)."""


class _Drawn(NamedTuple):
    """What is drawn of faces: parameters without identity and place, who they are, and as in :class:`_Truth`."""

    params: FaceParams
    person: _Person
    framing: tuple[Tensor, Tensor]
    further: Tensor | None
    draws: Draws


class _Truth(NamedTuple):
    """What faces are, and what goes on drawing."""

    params: FaceParams
    codes: Tensor  # (B, T)
    textures: Tensor  # (B, 3, s, s)
    moved: Tensor | None  # (B, V, 3), shape residual
    framing: tuple[Tensor, Tensor]  # how the crop errs, scale (B,) and shift (B, 2)
    further: Tensor | None  # (B,), how many times further away than the fits' the camera stands
    draws: Draws


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
        population: whose people a share of the faces are (``settings.scanned``).

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
        population: Population | None = None,
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
        self.maps, self.backgrounds, self.population = maps, backgrounds, population
        self.codes = None if maps is None else self._codes_of(maps)
        self.shape_residual = ShapeResidual(model) if self.settings.shape_residual else None
        self.side = 2 * size if size <= CROP // 2 else size
        self.renderer = Renderer(self.side, antialias=self.side == size)
        scalp = model.topology.regions.get("scalp", torch.zeros(len(model.topology.faces)))
        self._scalp = F.pad(scalp.float(), (0, 1))

    def _codes_of(self, maps: Tensor, side: int = 64) -> Tensor:
        """(N, T): least-squares codes of the maps."""
        basis = F.adaptive_avg_pool2d(self.basis, side).flatten(1)
        mean = F.adaptive_avg_pool2d(self.mean[None], side)
        small = torch.cat([F.adaptive_avg_pool2d(part.float() / 255, side) for part in maps.split(64)])
        gram = basis @ basis.T + 1e-6 * torch.eye(len(basis))
        return torch.linalg.solve(gram, basis @ (small - mean).flatten(1).T).T.contiguous()

    # -- truth -----------------------------------------------------------------------------------------------

    def expressions(self, draws: Draws) -> Tensor:
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
                values[:, other] = torch.where(draws.chance(0.8), values[:, i] * same[:, i], values[:, other])
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
        draws = Draws(self.seed, numbers)
        turn = draws.normal(3) * torch.tensor([s.pitch, s.yaw, s.roll])
        limits = torch.tensor([s.pitch_limit, s.yaw_limit, s.roll_limit])
        even = draws.uniform(low=-1.0, high=1.0) * s.yaw_limit
        turn[:, 1] = torch.where(draws.chance(s.wide), even, turn[:, 1])
        identity = draws.normal(model.num_identity) * s.identity
        if self.population is not None:
            people = Draws(self.seed, numbers, "scanned people")
            scanned = self.population(people.normal(len(self.population.factor)))
            identity = torch.where(people.chance(s.scanned)[:, None], scanned, identity)
        params = model.neutral(len(numbers)).replace(
            expression=self.expressions(draws),
            rotation=torch.deg2rad(turn.clamp(-limits, limits)),
            light=random_lights(s, draws, more := Draws(self.seed, numbers, "lamps and camera")),
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
            rows, codes = (chosen * len(self.maps)).long(), codes * 0.3
            texture = self.maps[rows].float() / 255
            if s.mirror:
                texture = torch.where(flipped[:, None, None, None], texture.flip(-1), texture)
            change = (codes @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])
            if change.shape[-1] != texture.shape[-1]:
                change = F.interpolate(change, texture.shape[-2:], mode="bilinear")
            texture, codes = texture + change, codes + self.codes[rows]
        shapes, moved = Draws(self.seed, numbers, "relief and slip"), None  # a name of old: draws follow from it
        if self.shape_residual is not None:
            strength = s.shape_residual * shapes.uniform(1, high=math.sqrt(3))  # whose root mean square is the setting
            nearest, moved = self.shape_residual(shapes.normal(len(self.shape_residual.nearest)) * strength)
            identity = identity + nearest
        if s.uv_jitter:
            texture = _jittered(texture, shapes.normal(2, 7, 7) * s.uv_jitter)
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
            image = surround(*layers.split([3, 1, 1], 1), landmarks, self.settings, truth.draws, self.backgrounds)
        return SyntheticBatch(image.clamp(0, 1), params, truth.codes, landmarks)


def _jittered(texture: Tensor, by: Tensor) -> Tensor:
    """(B, C, s, s) maps, each place of which shows what lies ``by`` (B, 2, n, n), in sides of the map, away."""
    size = texture.shape[-1]
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    grid = torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)], -1)
    away = F.interpolate(by, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1) * 2
    return F.grid_sample(texture, grid + away, padding_mode="border", align_corners=False)
