"""Learn the linear UV texture basis ('PCA tex basis', Table 5): facerecon/data/texture_linear.safetensors.

    python tools/build_texture_basis.py collect CACHE                     (resumable; a second or two a seed)
    python tools/build_texture_basis.py build CACHE --look PICTURES       (a second or two a face)

``collect`` samples faces of the open generator and keeps roughly frontal ones as pictures. ``build`` fits pose, shape
and expression to their landmarks, unwraps them, divides by the light, drops glasses and fringes, averages each face
with its mirror image, completes what was not seen, and takes the principal components.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from facerecon import assets
from facerecon.errors import NoFaceError
from facerecon.fitting.detail import full_crop_camera
from facerecon.fitting.initialize import fit_landmarks, fit_light
from facerecon.geometry.lighting import sh_basis
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging import files, masks, pyramid
from facerecon.imaging.poisson import PoissonSolver
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.perception import observe
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import bake, pad_islands, uv_raster
from facerecon.stylegan.linear_basis import read_linear_basis, write_linear_basis
from facerecon.stylegan.mobile import MobileGenerator, load_generator
from facerecon.types import Camera, MeshTopology

OUTPUT = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "texture_linear.safetensors"
BAKE_SIZE = 512
SIZE = 256
MAX_YAW, MAX_PITCH = math.radians(12), math.radians(14)
LIGHT_PRIOR = 0.01
SHADING_RANGE = (0.45, 1.7)
MAX_GLASSES = 0.029
MIN_SUPPORT, LID_SUPPORT = 0.5, 0.15
MIN_FOREHEAD = 0.65
ODD_SHARE = 0.08
TEMPLATE_CONTRAST = 0.6
INNER_LIPS = 0.85  # brightness of the lips' inside, of their outside's
TINT_KEPT = 0.6  # of the differences in hue between faces of one brightness; the rest is the light's
GAZE = torch.tensor([0.0, -0.13, 1.0])
IRIS, PUPIL = 19.0, 7.0  # degrees around the gaze
SCLERA, SCLERA_BACK = torch.tensor([0.70, 0.65, 0.62]), torch.tensor([0.66, 0.48, 0.45])


# -- collect ---------------------------------------------------------------------------------------------


def collect(cache: Path, last_seed: int, first_seed: int, truncation: float) -> None:
    """Fill the cache with roughly frontal faces: one picture a seed, or a note why it was refused."""
    cache.mkdir(parents=True, exist_ok=True)
    generator = load_generator(dtype=torch.bfloat16)
    for seed in tqdm(range(first_seed, last_seed), desc="faces"):
        accepted, refused = cache / f"{seed:05d}.jpg", cache / f"{seed:05d}.json"
        if not accepted.is_file() and not refused.is_file():
            reason = _collect_one(accepted, generator, seed, truncation)
            if reason:
                files.write_bytes(refused, json.dumps({"refused": reason}).encode())


@torch.no_grad()
def _collect_one(target: Path, generator: MobileGenerator, seed: int, truncation: float) -> str:
    """Sample one face; returns why it was refused, or nothing."""
    image = generator.synthesis(generator.sample(seed, truncation))[0]
    try:
        photo = observe(image)
    except NoFaceError:
        return "no face"
    x = photo.landmarks68[0, :, 0]
    sides = (x[30] - x[1]) / (x[15] - x[1])
    if abs(sides - 0.5) > 0.16:
        return f"turned: nose at {sides:.2f} of the width"
    files.write_jpg(target, photo.full.image[0], quality=95)
    return ""


# -- unwrap ----------------------------------------------------------------------------------------------


@dataclass
class Unwrapped:
    """One face in UV, as the photo shows it.

    Args:
        texture: (3, S, S) in [0, 1]. weight: (1, S, S), how far a texel can be trusted.
        normals: (S, S, 3), of the posed head. seed: of the face.
    """

    texture: Tensor
    weight: Tensor
    normals: Tensor
    seed: int


def unwrap_all(cache: Path, model: MorphableModel) -> list[Unwrapped]:
    """Every frontal face of the cache."""
    faces = []
    for path in tqdm(sorted(cache.glob("*.jpg")), desc="unwrap"):
        face = _unwrap(path, model)
        if face is not None:
            faces.append(face)
    return faces


def _unwrap(path: Path, model: MorphableModel) -> Unwrapped | None:
    """Measure a face, fit the head to its landmarks and bake the photo; None if the face is not frontal."""
    try:
        photo = observe(path)
    except NoFaceError:
        return None
    params = fit_landmarks(model, photo.landmarks68, mesh_points=photo.mesh468)
    pitch, yaw, _ = params.rotation[0].tolist()
    if abs(yaw) > MAX_YAW or abs(pitch) > MAX_PITCH:
        return None
    full = photo.full
    image, side = full.image, full.image.shape[-1]
    camera = full_crop_camera(Camera.deep3d(), photo)
    vertices, topology = model(params), model.topology
    face = masks.erode(full.face_mask, side / 120)  # away from hair
    # Lids and lips: what lies beside an eyeball or the mouth's opening may be either.
    eye, mouth = masks.dilate(full.eye_mask, side / 180), masks.dilate(full.mouth_mask, side / 300)
    layers = torch.cat([image, face * (1 - eye) * (1 - mouth), full.eye_mask], 1)
    layers, seen = bake(layers, vertices, topology, camera, BAKE_SIZE, mask=full.valid)
    eyeballs = region_texels(topology, "eyes", BAKE_SIZE)
    usable = seen * torch.where(eyeballs > 0, layers[:, 4:], layers[:, 3:4])
    scale = BAKE_SIZE // SIZE
    weight = F.avg_pool2d(usable, scale)
    texture = F.avg_pool2d(layers[:, :3] * usable, scale) / weight.clamp(min=1e-4)
    texture = torch.where(weight > 1e-3, texture, F.avg_pool2d(layers[:, :3], scale))
    normals = interpolate(uv_raster(topology, SIZE), vertex_normals(vertices, topology.faces), topology.faces)
    return Unwrapped(texture[0], weight[0], F.normalize(normals[0], dim=-1), int(path.stem))


def region_texels(topology: MeshTopology, region: str, size: int) -> Tensor:
    """(1, 1, S, S) in {0, 1}: the texels of a region's faces."""
    index = uv_raster(topology, size).face_index[:, None]
    return (topology.regions[region][index.clamp(min=0)] & (index >= 0)).float()


# -- light -----------------------------------------------------------------------------------------------


def delight(faces: list[Unwrapped], topology: MeshTopology, rounds: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide every face by its light; colors are relative to the face's own mean skin color.

    Light and albedo cannot be told apart in one photo. Here they are told apart over many: light is a smooth
    function of the normal of each face, albedo is what the faces have in common, and these alternate.

    Returns:
        relative: (N, 3, S, S), albedo / skin color, symmetric. weight: (N, 1, S, S). color: (N, 3) skin colors.
        common: (3, S, S), the median face.
    """
    texture = torch.stack([face.texture for face in faces])
    weight = torch.stack([face.weight for face in faces])
    plain = region_texels(topology, "face", SIZE)
    for region in ("lips", "brows", "lids", "eyes", "mouth"):
        plain = plain * (1 - masks.dilate(region_texels(topology, region, SIZE), 2))
    common = torch.ones(3, SIZE, SIZE)
    for _ in range(rounds):
        relative, color = torch.empty_like(texture), torch.empty(len(faces), 3)
        for i, face in enumerate(tqdm(faces, desc="light")):
            relative[i], color[i] = _relative_albedo(face, plain[0, 0], common)
        both = weight + weight.flip(-1)
        symmetric = (relative * weight + (relative * weight).flip(-1)) / both.clamp(min=1e-4)
        common = _weighted_median(symmetric, both.clamp(max=1))
    return symmetric, both.clamp(max=1), color, common


def _relative_albedo(face: Unwrapped, plain: Tensor, common: Tensor) -> tuple[Tensor, Tensor]:
    """One face divided by its light and by its mean skin color."""
    use = (face.weight[0] > 0.7) & (plain > 0.5)
    pixels, normals, albedo = face.texture[:, use].T, face.normals[use], common[:, use].T
    color = (pixels / albedo).median(0).values
    level = sh_basis(normals)[:, 0].mean() * 0.8  # of the ambient light that the prior of the fit expects
    gamma = fit_light(pixels, albedo * (color / level), normals, prior=LIGHT_PRIOR)
    mean = (sh_basis(normals) @ gamma).mean(0)
    shading = (sh_basis(face.normals) @ gamma / mean).clamp(*SHADING_RANGE).permute(2, 0, 1)
    lit = face.texture / shading
    color = (lit[:, use] / albedo.T).median(1).values
    return lit / color[:, None, None], color


def _weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    """(N, C, H, W) and (N, 1, H, W) -> (C, H, W); texels that no face shows get 1."""
    order = values.argsort(0)
    sorted_weight = weight.expand_as(values).gather(0, order).cumsum(0)
    half = sorted_weight[-1:] / 2
    place = (sorted_weight < half).sum(0, keepdim=True).clamp(max=len(values) - 1)
    median = values.gather(0, order.gather(0, place))[0]
    return torch.where(sorted_weight[-1] > 0.02 * len(values), median, torch.ones_like(median))


# -- selection -------------------------------------------------------------------------------------------


def glasses_score(relative: Tensor, weight: Tensor, common: Tensor, topology: MeshTopology) -> Tensor:
    """(N,) how much fine structure there is where frames run: on the bridge of the nose and below the eyes."""
    points = landmark_texels(topology, SIZE)
    eye = (points[39] - points[36]).norm()
    bridge = _box(points[27] - eye * torch.tensor([0.3, 0.35]), points[28] + eye * torch.tensor([0.3, 0.1]))
    low = points[40:42].mean(0)
    below = _box(low + eye * torch.tensor([-0.7, 0.25]), low + eye * torch.tensor([0.6, 0.95]))
    zone = torch.maximum(bridge, torch.maximum(below, below.flip(-1)))
    brightness = (relative - common).mean(1, keepdim=True)
    fine = (brightness - masks.gaussian_blur(brightness, 15)).abs() * weight * zone
    return fine.sum((1, 2, 3)) / (weight * zone).sum((1, 2, 3)).clamp(min=1)


def landmark_texels(topology: MeshTopology, size: int) -> Tensor:
    """(68, 2) x and y of the landmarks on the map, in texels."""
    faces = topology.landmark_faces[:, 0]
    uv = (topology.uvs[topology.uv_faces[faces]] * topology.landmark_barycentric[:, 0, :, None]).sum(1)
    return torch.stack([uv[:, 0], 1 - uv[:, 1]], 1) * size


def _chroma(color: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Brightness (N, 1), log chroma (N, 2) that such brightness has on average, and what differs from it."""
    logs = color.log()
    brightness = logs.mean(1, keepdim=True)
    chroma = logs[:, [0, 2]] - logs[:, [1]]
    design = torch.cat([torch.ones_like(brightness), brightness], 1)
    expected = design @ torch.linalg.lstsq(design, chroma).solution
    return brightness, expected, chroma - expected


def typical(relative: Tensor, weight: Tensor, common: Tensor) -> Tensor:
    """(N,) bool: without the few faces least like any other (hands, paint, mistaken fits)."""
    difference = ((relative - common) * weight).clamp(-0.6, 0.6)
    rows = F.avg_pool2d(difference, 4)[..., : SIZE // 8].flatten(1)
    error = (rows - _low_rank(rows, max(1, len(rows) // 8))).square().mean(1)
    return error < error.quantile(1 - ODD_SHARE)


def natural_color(color: Tensor) -> Tensor:
    """(N,) bool: skin colors (N, 3) that are not those of a stage light or a filter."""
    rest = _chroma(color)[2]
    return (rest.abs() < 2.2 * rest.square().mean(0).sqrt()).all(1)


def neutral_color(color: Tensor) -> Tensor:
    """(N, 3) skin colors with part of their tint taken for the light's."""
    brightness, expected, rest = _chroma(color)
    chroma = expected + TINT_KEPT * rest
    green = brightness - chroma.sum(1, keepdim=True) / 3
    return torch.cat([green + chroma[:, :1], green, green + chroma[:, 1:]], 1).exp()


def _box(low: Tensor, high: Tensor) -> Tensor:
    """(1, 1, S, S): 1 in a rectangle given by two corners in texels."""
    center = torch.arange(SIZE) + 0.5
    inside = [((center >= a) & (center <= b)).float() for a, b in zip(low, high, strict=True)]
    return (inside[1][:, None] * inside[0])[None, None]


def without_outliers(relative: Tensor, weight: Tensor, common: Tensor, topology: MeshTopology) -> Tensor:
    """Weights without what is no skin above the nose: strands of hair, shadows of a fringe, rims."""
    brightness = relative.mean(1, keepdim=True)
    deviation = brightness - common.mean(0)
    spread = _weighted_median(deviation.abs(), weight).clamp(0.03, 0.08) * 1.5
    strange = ((deviation.abs() - 2.5 * spread) / spread).clamp(0, 1)
    upper = (torch.arange(SIZE) + 0.5 < landmark_texels(topology, SIZE)[30, 1]).float()[:, None]
    brows = masks.dilate(region_texels(topology, "brows", SIZE), 2)
    strange = masks.dilate(strange * upper * (1 - brows), 2)
    return weight * (1 - strange)


# -- completion ------------------------------------------------------------------------------------------


def complete_common(common: Tensor, weight: Tensor, topology: MeshTopology) -> tuple[Tensor, Tensor]:
    """The median face continued over the whole map, and the part of it that was seen well enough to learn from.

    Nostrils, rims of lids and lips take a membrane from what surrounds them; scalp, ears and neck run out into
    plain skin color.

    Returns:
        (3, S, S) relative albedo, (1, S, S) core in {0, 1}.
    """
    skin = region_texels(topology, "skin", SIZE)
    support = weight.mean(0, keepdim=True)
    outline = masks.erode(torch.from_numpy(ndimage.binary_fill_holes(support[0, 0] > 0.5)).float()[None, None], 5)
    lids = masks.dilate(region_texels(topology, "lids", SIZE), 3)
    core = (support > torch.where(lids > 0, LID_SUPPORT, MIN_SUPPORT)).float() * outline * skin
    around = 1 - masks.dilate(core, 24)
    far = torch.maximum(around, 1 - masks.dilate(skin, 4)) * (1 - _enclosed(core))
    base = torch.where(far > 0.5, torch.ones_like(common)[None], common[None])
    lips = region_texels(topology, "lips", SIZE)
    seen_lips = core * lips
    lip_color = (common * seen_lips).sum((2, 3), keepdim=True) / seen_lips.sum()
    inner_lips = masks.erode(_enclosed(core), 2) * lips
    base = torch.where(inner_lips > 0.5, INNER_LIPS * lip_color, base)
    filled = PoissonSolver((1 - core) * (1 - far) * (1 - inner_lips))(base, torch.zeros_like(base))
    filled = torch.where(core > 0.5, common[None], masks.gaussian_blur(filled, 5))
    return filled[0], core[0]


def _enclosed(core: Tensor) -> Tensor:
    """Holes of a mask."""
    holes = ndimage.binary_fill_holes(core[0, 0].numpy() > 0.5)
    return torch.from_numpy(holes).float()[None, None] * (1 - core)


def complete_faces(relative: Tensor, weight: Tensor, common: Tensor, core: Tensor, rounds: int = 8) -> Tensor:
    """Fill each face's unseen texels with the most likely values given the others (PCA with missing data).

    Returns:
        (N, 3, S, S) relative albedo, complete within the core and smoothly continued beyond.
    """
    where = (core[0, :, : SIZE // 2] > 0.5).flatten()
    half = relative[..., : SIZE // 2].flatten(2)[..., where] - common[..., : SIZE // 2].flatten(1)[:, where]
    trust = weight[..., : SIZE // 2].flatten(2)[..., where].expand_as(half).flatten(1)
    known = half.clamp(-0.8, 0.8).flatten(1)
    guess = torch.zeros_like(known)
    for number in range(rounds):
        filled = torch.lerp(guess, known, trust)
        components = min(6 + 6 * number, len(filled) // 4)
        guess = _low_rank(filled, components)
    result = torch.zeros(len(relative), 3, SIZE * SIZE // 2)
    result[..., where] = torch.lerp(guess, known, trust).view(len(relative), 3, -1)
    result = result.view(len(relative), 3, SIZE, SIZE // 2)
    result = torch.cat([result, result.flip(-1)], -1)
    return common + torch.where(core > 0.5, result, _spread(result, core[None]))


def join_template(relative: Tensor, core: Tensor, topology: MeshTopology) -> Tensor:
    """Complete the head beyond the face with the template's ears, neck and scalp (Sec. 3.1.3).

    Works on colors relative to the skin's, so the means match as in Eq. 1; the contrast is kept low instead of
    matched, since the face's has brows and lips in it. The template's hair is left out: these are maps of skin.

    Args:
        relative: (N, 3, S, S), continued beyond the core. core: (1, S, S).
    """
    template = _template()
    skin = region_texels(topology, "skin", SIZE)
    plain = skin * core[None] * (template.mean(1, keepdim=True) > 0.5)
    color = (template * plain).sum((2, 3), keepdim=True) / plain.sum()
    beyond = 1 + TEMPLATE_CONTRAST * (template / color - 1)
    hair = ((0.9 - template.mean(1, keepdim=True) / color.mean()) / 0.1).clamp(0, 1)
    hair = masks.dilate(hair * (1 - masks.dilate(region_texels(topology, "ears", SIZE), 1)), 4)
    beyond = torch.lerp(beyond, torch.ones_like(beyond), masks.gaussian_blur(hair, 13))
    face = masks.feather(torch.maximum(core[None], _enclosed(core[None])), 10)
    many = (len(relative), -1, -1, -1)
    return pyramid.laplacian_blend(relative, beyond.expand(many), face.expand(many), levels=5)


def _template() -> Tensor:
    """(1, 3, S, S), symmetric."""
    template = files.read_image(assets.shipped("template_makehuman.png"))[None]
    template = F.interpolate(template, (SIZE, SIZE), mode="area")
    return (template + template.flip(-1)) / 2


def _low_rank(rows: Tensor, components: int) -> Tensor:
    """Projection of (N, D) on its mean and first principal components, through the N x N Gram matrix."""
    mean = rows.mean(0)
    centered = rows - mean
    values, vectors = torch.linalg.eigh((centered @ centered.T).double())
    leading = vectors[:, -components:].float()
    noise = values[:-components].mean().clamp(min=0)
    shrink = (1 - noise / values[-components:]).clamp(0, 1).float()  # as probabilistic PCA does
    return mean + leading @ (shrink[:, None] * (leading.T @ centered))


def _spread(image: Tensor, mask: Tensor) -> Tensor:
    """Continue an image beyond a mask by ever wider blurs."""
    result, filled = image * mask, mask
    for size in (9, 25, 61):
        total = masks.gaussian_blur(filled, size)
        wide = masks.gaussian_blur(result * filled, size) / total.clamp(min=1e-4)
        result = torch.where(filled > 0.5, result, wide)
        filled = torch.maximum(filled, (total > 1e-2).float())
    return result


# -- islands ---------------------------------------------------------------------------------------------


def eye_angle(model: MorphableModel, size: int) -> Tensor:
    """(S, S) angle in degrees between each eyeball texel and where the eye looks; 180 elsewhere."""
    topology = model.topology
    eyes = topology.faces[topology.regions["eyes"]].unique()
    positions = interpolate(uv_raster(topology, size), model.mean[None], topology.faces)[0]
    result = torch.full((size, size), 180.0)
    on_eye = region_texels(topology, "eyes", size)[0, 0] > 0
    for side in (-1, 1):
        ball = model.mean[eyes[model.mean[eyes, 0] * side > 0]]
        center = (ball.amin(0) + ball.amax(0)) / 2
        cosine = (F.normalize(positions - center, dim=-1) * F.normalize(GAZE, dim=0)).sum(-1)
        here = on_eye & (positions[..., 0] * side > 0)
        result[here] = torch.rad2deg(cosine.clamp(-1, 1).arccos())[here]
    return result


def paint_eyes(textures: Tensor, observed: Tensor, weight: Tensor, model: MorphableModel) -> Tensor:
    """Clean eyeballs, each with its iris color: what a photo shows of an eye is mostly lid, lash and glint.

    Args:
        textures: (N, 3, S, S) to paint on. observed, weight: what the photos show, lit evenly.
    """
    ring = eye_angle(model, SIZE)
    ring = ((ring > 5) & (ring < IRIS - 3)).float() * (weight[:, 0] > 0.3)
    seen = ring.sum((1, 2))[:, None]
    iris = (observed * ring[:, None]).sum((2, 3)) / seen.clamp(min=1)
    known = seen[:, 0] > 4
    iris = torch.where(known[:, None], iris, iris[known].median(0).values).clamp(0.03, 0.6) * 1.2
    fine = 4  # texels a side to average, for smooth rims
    angle = eye_angle(model, SIZE * fine)

    def disk(radius: float, soft: float) -> Tensor:
        return F.avg_pool2d(((radius - angle) / soft + 0.5).clamp(0, 1)[None, None], fine)

    sclera = torch.lerp(SCLERA_BACK, SCLERA, disk(70, 40)[0].permute(1, 2, 0)).permute(2, 0, 1)
    eye = torch.lerp(sclera[None], iris[:, :, None, None] * 0.55, disk(IRIS, 3))
    eye = torch.lerp(eye, iris[:, :, None, None].expand_as(eye), disk(IRIS - 4, 3))
    eye = torch.lerp(eye, torch.full_like(eye, 0.03), disk(PUPIL, 2))
    return torch.where(region_texels(model.topology, "eyes", SIZE) > 0, eye, textures)


# -- basis -----------------------------------------------------------------------------------------------


def principal_components(textures: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (3, S, S), components (K, 3, S, S) of one standard deviation each, and all variances (N - 1,)."""
    rows = textures[..., : SIZE // 2].flatten(1)
    mean = rows.mean(0)
    rows = rows - mean
    values, vectors = torch.linalg.eigh((rows @ rows.T).double() / (len(rows) - 1))
    values, vectors = values.flip(0)[:-1].clamp(min=0), vectors.flip(1)[:, :-1]
    # rows.T @ v has length sqrt(value (N - 1)); one standard deviation is sqrt(value)
    basis = (vectors[:, :count].float().T @ rows) / math.sqrt(len(rows) - 1)
    basis = basis * (basis.sum(1, keepdim=True).sign())  # a positive coefficient brightens
    half = torch.cat([mean[None], basis]).view(-1, 3, SIZE, SIZE // 2)
    both = torch.cat([half, half.flip(-1)], -1)
    return both[0], both[1:], values.float()


@torch.no_grad()
def build(cache: Path, output: Path, count: int, look: Path | None) -> None:
    """From the cache to the file."""
    model = load_face_model("makehuman")
    topology = model.topology
    faces = unwrap_all(cache, model)
    relative, weight, color, common = delight(faces, topology)
    score = glasses_score(relative, weight, common, topology)
    usable = without_outliers(relative, weight, common, topology)
    forehead = region_texels(topology, "forehead", SIZE)
    forehead = (usable * forehead).sum((1, 2, 3)) / (usable.amax(0) * forehead).sum()
    keep = (score < MAX_GLASSES) & (forehead > MIN_FOREHEAD) & natural_color(color)
    keep = keep & typical(relative, usable, common)
    if look:
        order = score.argsort()
        shown = (relative * color[:, :, None, None] * weight).clamp(0, 1)
        labels = [f"{faces[i].seed} {score[i]:.3f} {forehead[i]:.2f}" for i in order]
        files.write_jpg(look / "glasses.jpg", files.contact_sheet(shown[order], 16, labels, size=120))
    relative, weight, color = relative[keep], weight[keep], color[keep]
    faces = [face for face, kept in zip(faces, keep.tolist(), strict=True) if kept]
    weight = without_outliers(relative, weight, common, topology)
    common = _weighted_median(relative, weight)
    completed_common, core = complete_common(common, weight, topology)
    complete = complete_faces(relative, weight, completed_common, core)
    tint = neutral_color(color)[:, :, None, None]
    textures = join_template(complete, core, topology) * tint
    textures = torch.where(region_texels(topology, "skin", SIZE) > 0, textures, _template())
    textures = paint_eyes(textures, relative * tint, weight, model).clamp(0, 1)
    textures = pad_islands(textures, topology, None)
    textures = (textures + textures.flip(-1)) / 2
    mean, basis, variance = principal_components(textures, count)
    share = (variance.cumsum(0) / variance.sum())[:count]
    facts = {
        "faces": len(faces),
        "seeds": [face.seed for face in faces],
        "generator": "mobile_stylegan, random-face 2021.7.21.1",
        "face_model": topology.name,
        "explained_variance": [round(v, 5) for v in share.tolist()],
    }
    write_linear_basis(output, mean, basis, facts)
    size = output.stat().st_size / 1e6
    print(f"{len(faces)} faces, {count} components hold {share[-1]:.1%} of their variance; {size:.2f} MB")
    if look:
        _look(look, output, textures)


def _look(folder: Path, path: Path, textures: Tensor) -> None:
    """Pictures to judge the basis by."""
    mean, basis = read_linear_basis(path)
    error = []
    for texture in textures[:: max(1, len(textures) // 50)]:
        flat = basis.flatten(1)
        code = torch.linalg.lstsq(flat.T, (texture - mean).flatten()).solution
        error.append((mean + torch.einsum("k,kcij->cij", code, basis) - texture).square().mean())
    print(f"stored basis explains its own faces to {-10 * torch.stack(error).mean().log10():.1f} dB")
    files.write_png(folder / "mean.png", files.contact_sheet([mean.clamp(0, 1)], size=1024))
    files.write_jpg(folder / "faces.jpg", files.contact_sheet(textures[:32], 8, size=256))
    pairs = [(mean + sign * 2 * component).clamp(0, 1) for component in basis[:8] for sign in (-1, 1)]
    labels = [f"{sign}2 sigma of {k}" for k in range(8) for sign in "-+"]
    files.write_jpg(folder / "components.jpg", files.contact_sheet(pairs, 4, labels, size=320))
    codes = torch.randn(16, len(basis), generator=torch.Generator().manual_seed(0))
    samples = (mean + torch.einsum("nk,kcij->ncij", codes, basis)).clamp(0, 1)
    files.write_jpg(folder / "samples.jpg", files.contact_sheet(samples, 4, size=320))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("collect", help="sample and measure faces")
    command.add_argument("cache", type=Path)
    command.add_argument("--first-seed", type=int, default=10_000)
    command.add_argument("--last-seed", type=int, default=11_200)
    command.add_argument("--truncation", type=float, default=0.75)
    command = commands.add_parser("build", help="from the cache to the basis")
    command.add_argument("cache", type=Path)
    command.add_argument("--output", type=Path, default=OUTPUT)
    command.add_argument("--components", type=int, default=64)
    command.add_argument("--look", type=Path, help="folder for pictures to judge the result by")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.command == "collect":
        collect(options.cache, options.last_seed, options.first_seed, options.truncation)
    else:
        build(options.cache, options.output, options.components, options.look)


if __name__ == "__main__":
    main()
