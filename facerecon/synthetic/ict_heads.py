"""Heads of another model whose shape is known, and their photos: what a shape error is measured on (Sec. 4.3).

Truth: random heads of ICT-FaceKit (identity modes from light-stage scans), with a mild expression and pose, textured
by a generated face, in random spherical-harmonic light, seen by another camera than the fit's (another focal
length and distance, off-center, slightly rolled), before a coarse picture; then blurred, with noise, JPEG-compressed.
Nothing of how they were made is told to a fit.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from facerecon.fitting import LandmarkStart, fit_landmarks, fit_light
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import sh_basis
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging.files import to_pil
from facerecon.imaging.masks import gaussian_blur
from facerecon.morphable import MorphableModel
from facerecon.perception import observe
from facerecon.render import Renderer
from facerecon.render.uv import uv_texels
from facerecon.stylegan.face_generator import load_generator
from facerecon.types import Camera, Observation, SHLight

__all__ = ["EXPRESSIONS", "SKINS", "SyntheticHead", "SyntheticHeads", "degrade", "make_head", "random_camera",
           "random_light", "sample_textures", "skin"]  # fmt: skip

TEXTURE_SIZE = 1024

SKINS = (
    *(20003, 20004, 20011, 20015, 20031, 20032, 20034, 20038, 20044, 20046, 20054),
    *(20055, 20056, 20063, 20065, 20070, 20074, 20080, 20081, 20083, 20095),
)
"""Seeds of the generator, chosen by eye: no glasses, forehead free, little smile. The texture basis saw other seeds."""

EXPRESSIONS = (
    # units that move together, largest weight
    (("mouthSmileLeft", "mouthSmileRight"), 0.35),
    (("browInnerUp",), 0.3),
    (("browDownLeft", "browDownRight"), 0.4),
    (("browOuterUpLeft", "browOuterUpRight"), 0.3),
    (("mouthPucker",), 0.2),
    (("mouthFrownLeft", "mouthFrownRight"), 0.25),
    (("eyeSquintLeft", "eyeSquintRight"), 0.4),
    (("mouthStretchLeft", "mouthStretchRight"), 0.25),
    (("jawOpen",), 0.06),
)


@dataclass
class SyntheticHead:
    """One head whose shape is known, and its photo.

    Attributes:
        photo: (3, H, W), what the fit sees.
        vertices: (V, 3), unposed, with expression, world units.
        landmarks: (68, 3) on them.
        pixels: (68, 2), where they are in the photo.
        rotation: (1, 3) Euler angles of the head.
        camera: that took the photo.
    """

    photo: Tensor
    vertices: Tensor
    landmarks: Tensor
    pixels: Tensor
    rotation: Tensor
    camera: Camera


# -- skins: generated faces, unwrapped onto the ICT head ---------------------------------------------------


def _extrapolate(color: Tensor, weight: Tensor) -> Tensor:
    """Continue (1, C, S, S) colors where (1, 1, S, S) weights are small, smoothly: push and pull over a pyramid."""
    if color.shape[-1] == 1:
        return color / weight.clamp(min=1e-6)
    coarse = _extrapolate(F.avg_pool2d(color, 2), F.avg_pool2d(weight, 2))
    rest = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return color + (1 - weight) * rest


def onto_landmarks(points: Tensor, found: Tensor, wanted: Tensor, reach: float = 14.0) -> Tensor:
    """Move (N, 2) pixels so that ``found`` (L, 2) come to lie on ``wanted``; fades within ``reach`` px from them."""
    square = (points[:, None] - found).square().sum(-1)
    weight = (-0.5 * square / reach**2).exp() / (square.sqrt() + 1.0)
    return points + (weight @ (wanted - found)) / (weight.sum(1, keepdim=True) + 1e-3)


def skin(photo: Observation, ict: MorphableModel, size: int = TEXTURE_SIZE) -> Tensor:
    """The face of a photo as a texture of the ICT head: (1, 3, S, S), its light divided out, holes filled.

    The head is fitted to the landmarks; what is left of them is taken up in the image plane. Brows are left out: the
    68-point net marks their middle, ICT-FaceKit's points lie above them.
    """
    top, camera, brows = ict.topology, Camera.deep3d(), slice(17, 27)
    wanted = photo.landmarks68.clone()
    for _ in range(3):
        params = fit_landmarks(ict, wanted, settings=LandmarkStart(sigma_mesh=0))
        vertices = ict(params)
        found = project(camera, ict.landmarks3d(vertices, camera))[..., :2]
        wanted[:, brows] = found[:, brows]
    pixels = project(camera, vertices)[0, :, :2]
    pixels = onto_landmarks(pixels, found[0, 27:], wanted[0, 27:])
    # pixels of the wider, finer crop
    to_full = torch.linalg.inv(_square(photo.full.to_photo)) @ _square(photo.fit.to_photo)
    pixels = pixels @ to_full[0, :2, :2].mT + to_full[0, :2, 2]

    normals = vertex_normals(vertices, top.faces)
    flags = torch.zeros(1, ict.num_vertices, 2)
    for k, name in enumerate(("face", "eyes")):
        flags[0, top.faces[top.regions[name]].unique(), k] = 1.0
    texels = uv_texels(top, size)
    packed = texels.interpolate(torch.cat([pixels[None], normals, flags], -1), top.faces)
    grid = packed[:, :2] / photo.full.image.shape[-1] * 2 - 1
    layers = torch.cat([photo.full.image, photo.full.face_mask, photo.full.eye_mask], 1)
    sampled = F.grid_sample(layers, grid[None, None], align_corners=False)[0, :, 0].T  # (P, 5)
    color, normal = sampled[:, :3], F.normalize(packed[:, 2:5], dim=-1)
    on_eye = packed[:, 6]
    weight = ((normal[:, 2] - 0.2) / 0.35).clamp(0, 1) * (packed[:, 5] > 0.99)
    weight = weight * torch.where(on_eye > 0.5, (sampled[:, 4] > 0.05).float(), (sampled[:, 3] > 0.9).float())

    # take most of the photo's own light out
    chosen = (weight > 0.8) & (on_eye < 0.5)
    mean_color = color[chosen].median(0).values
    few = chosen.nonzero()[:: max(1, int(chosen.sum()) // 4000), 0]
    light = fit_light(color[few], mean_color.expand(len(few), 3), normal[few])
    shading = sh_basis(normal) @ light
    shading = shading / (sh_basis(torch.tensor([[0.0, 0.0, 1.0]])) @ light)
    color = torch.where(on_eye[:, None] > 0.5, color, color / shading.clamp(0.55, 1.5)).clamp(0, 1)

    def image(values: Tensor) -> Tensor:
        return texels.scatter(values).permute(0, 3, 1, 2)

    soft = gaussian_blur(image(weight[:, None]), 15) * image(weight[:, None])
    texture = _extrapolate(image(color) * soft, soft)
    for name, value in (("eyes", (0.62, 0.57, 0.54)), ("mouth", (0.30, 0.13, 0.12)), ("teeth", (0.80, 0.77, 0.70))):
        flag = image(top.regions[name][texels.face].float()[:, None])
        part = flag * (soft if name == "eyes" else 0)
        paint = torch.tensor(value).view(1, 3, 1, 1)
        texture = torch.where(flag > 0.5, texture * part + (1 - part) * paint, texture)
    return texture.clamp(0, 1)


def _square(affine: Tensor) -> Tensor:
    """(B, 2, 3) -> (B, 3, 3)."""
    last = affine.new_tensor([0.0, 0.0, 1.0]).expand(affine.shape[0], 1, 3)
    return torch.cat([affine, last], 1)


def sample_textures(ict: MorphableModel, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """(texture (1, 3, S, S), the picture it came from (1, 3, 1024, 1024)) of the generator's seeds in ``order``."""
    generator = load_generator()
    for number in order:
        picture = generator(generator.sample(int(number), truncation=0.75)).clamp(0, 1)
        yield skin(observe(picture[0]), ict), picture


# -- heads and their photos ----------------------------------------------------------------------------------


def random_light(rng: np.random.Generator) -> SHLight:
    """Mostly frontal, from a little above or beside, slightly colored; 0.85 to 1.1 on what faces the camera."""
    light = np.zeros((9, 3))
    light[0] = rng.uniform(0.55, 0.8)
    light[1] = rng.uniform(-0.22, 0.02)  # basis -y: light from above
    light[2] = rng.uniform(0.08, 0.3)
    light[3] = rng.uniform(-0.22, 0.22)
    light[4:] = rng.normal(0, 0.02, (5, 1))
    light *= rng.uniform(0.97, 1.03, (1, 3))
    front = (sh_basis(torch.tensor([[0.0, 0.0, 1.0]]))[0].numpy() @ light).mean()
    light *= rng.uniform(0.85, 1.1) / front
    return SHLight(torch.from_numpy(light.astype(np.float32))[None])


def random_camera(rng: np.random.Generator, size: int) -> Camera:
    """7 to 14 units away (the fit assumes 10), off-center, rolled by up to 6 degrees; the face about half the image."""
    distance = rng.uniform(7, 14)
    fill = rng.uniform(0.20, 0.26)  # of the image's side, per world unit
    roll = np.deg2rad(rng.uniform(-6, 6))
    cos, sin = np.cos(roll), np.sin(roll)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) @ np.diag([1.0, -1.0, -1.0])
    center = size * (0.5 + rng.uniform(-0.06, 0.06, 2))
    return Camera(
        focal=torch.tensor([fill * size * distance], dtype=torch.float32),
        center=torch.tensor(center, dtype=torch.float32)[None],
        rotation=torch.tensor(rotation, dtype=torch.float32)[None],
        translation=torch.tensor([[0.0, 0.0, distance]], dtype=torch.float32),
        warp=torch.eye(2, 3)[None],
        size=(size, size),
        near=2.0,
        far=25.0,
    )


def degrade(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise and JPEG of a (1, 3, H, W) image; (3, H, W) in [0, 1]."""
    image = gaussian_blur(image, 9, float(rng.uniform(0.6, 1.6)))
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0.008, 0.025), tuple(image.shape)).astype(np.float32))
    data = io.BytesIO()
    to_pil((image + noise).clamp(0, 1)[0]).save(data, "JPEG", quality=int(rng.integers(55, 90)))
    with Image.open(data) as picture:
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def make_head(
    ict: MorphableModel,
    texture: Tensor,
    background: Tensor,
    rng: np.random.Generator,
    size: int = 640,
    *,
    expression: dict[str, float] | None = None,
    yaw: float | None = None,
    light: SHLight | None = None,
    identity: Tensor | None = None,
) -> SyntheticHead:
    """A random head with a given skin, photographed before a given picture (1, 3, H, W).

    Expression (weights by name), yaw (degrees), light and identity (1, I) are random too where they are not given; what
    else is drawn does not depend on whether they are.
    """
    params = ict.neutral(1)
    drawn = torch.from_numpy(rng.normal(size=(1, ict.num_identity)).astype(np.float32))
    identity = drawn if identity is None else identity
    weights: dict[str, float] = {}
    for names, most in EXPRESSIONS:
        if rng.random() < 0.35:
            weights |= dict.fromkeys(names, float(rng.uniform(0, most)))
    weights = weights if expression is None else expression
    activation = torch.zeros(1, ict.num_expression)
    for name, weight in weights.items():
        activation[0, ict.expression_names.index(name)] = weight
    turn = np.deg2rad([rng.uniform(-10, 10), rng.uniform(-20, 20), 0.0])
    if yaw is not None:
        turn[1] = np.deg2rad(yaw)
    params = params.replace(identity=identity, expression=activation, rotation=torch.tensor(turn[None]).float())
    shape, posed = ict.shape(params), ict(params)
    camera = random_camera(rng, size)
    drawn_light = random_light(rng)
    light = drawn_light if light is None else light
    rendering = Renderer(size=2 * size, texture_level="auto")(posed, texture, ict.topology, camera, light)
    image, mask = F.avg_pool2d(rendering.image.clamp(0, 1), 2), F.avg_pool2d(rendering.mask, 2)
    backdrop = F.interpolate(F.avg_pool2d(background, 32), size=(size, size), mode="bicubic", antialias=True)
    photo = degrade((image + (1 - mask) * backdrop).clamp(0, 1), rng)
    pixels = project(camera, ict.landmarks3d(posed))[0, :, :2]
    return SyntheticHead(photo, shape[0], ict.landmarks3d(shape)[0], pixels, params.rotation, camera)


class SyntheticHeads:
    """Heads with photos by number, each drawn from the seed and that number alone; the last texture is kept.

    Args:
        ict: head model of ICT-FaceKit.
        seed: of the set.
    """

    def __init__(self, ict: MorphableModel, seed: int = 0) -> None:
        self.ict, self.seed = ict, seed
        self._generator = load_generator(dtype=torch.bfloat16)
        self._kept: tuple[int, Tensor, Tensor] | None = None

    def sample_texture(self, number: int) -> tuple[Tensor, Tensor]:
        """(texture of the ICT head (1, 3, S, S), picture (1, 3, H, W)) of a generated face of :data:`SKINS`."""
        if self._kept is None or self._kept[0] != number:
            with torch.no_grad():
                code = self._generator.sample(SKINS[number % len(SKINS)], 0.75)
                picture = self._generator(code).float().clamp(0, 1)
                self._kept = number, skin(observe(picture[0]), self.ict), picture
        return self._kept[1:]

    def sample(self, number: int, **given: object) -> SyntheticHead:
        """A head by number; ``given`` (expression, yaw, light of :func:`make_head`) is not drawn."""
        texture, picture = self.sample_texture(number)
        rng = np.random.default_rng([self.seed, number])
        with torch.no_grad():
            return make_head(self.ict, texture, picture.flip(-1).roll(512, -1), rng, **given)
