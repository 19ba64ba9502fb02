"""The last, optional step ``detail`` (ours, not the paper's): what the photo shows beyond the decoder.

The photo is unwrapped onto the fitted head, divided by the fitted shading and by the light that one lacks
(:mod:`~facerecon.fitting.residual_light`), and carried into the texels that it shows, joined to the decoder's texture
by a Laplacian pyramid: the head is that person, not a smooth cousin. The decoder keeps its say about the tone. Hidden
texels may borrow from their mirror image. Of several photos of one person each texel takes the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.fitting.residual_light import cells_of, enlarged, even_light, light_apart, plain_skin, pooled
from facerecon.fitting.stage import DetailSettings
from facerecon.geometry.camera import camera_in_photo
from facerecon.geometry.lighting import shade
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging.masks import erode, gaussian_blur
from facerecon.imaging.pyramid import laplacian_blend, multiband_blend, push_pull
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import bake, mirrored, pad_islands, region_texels, sample_texture, uv_raster
from facerecon.types import Camera, MeshTopology, Observation, SHLight

_BLACK = 0.004  # added to values before logarithms
_DARK = 0.1  # least shading that a photo is divided by
_INNER = ("eyes", "mouth", "teeth", "tongue")
_NEAR = 0.1  # world units (1 cm) within which skin tells the light of eyes and teeth
_RIM = 0.006  # of the full crop's side: hair and background bleed over the border of a face, and the head misses it
_CHOICE = 8  # power of a photo's share in a texel: half as many pixels leave 0.4 %
_MOST = 16.0  # px of a photo in a texel; over a seam of the atlas neighbors lie far apart
_GAZE = 24  # power of looking into the camera, for eyes: 25 degrees off leave a tenth

__all__ = ["add_detail", "add_shared_detail", "fit_to_full", "full_crop_camera"]


def fit_to_full(photo: Observation) -> Tensor:
    """(B, 2, 3) affine maps from pixels of the fit crop to pixels of the full crop."""
    linear = torch.linalg.inv(photo.full.to_photo[:, :, :2])
    offset = photo.fit.to_photo[:, :, 2:] - photo.full.to_photo[:, :, 2:]
    return torch.cat([linear @ photo.fit.to_photo[:, :, :2], linear @ offset], -1)


def full_crop_camera(camera: Camera, photo: Observation) -> Camera:
    """The camera of the fit crop, in pixels of the full crop."""
    return camera_in_photo(camera, fit_to_full(photo), tuple(photo.full.image.shape[-2:]))


def shading_map(vertices: Tensor, light: SHLight, topology: MeshTopology, size: int) -> Tensor:
    """(B, 3, S, S) shading of every texel of the posed head."""
    fragments = uv_raster(topology, size)
    fragments = fragments.map(lambda t: t.expand(vertices.shape[0], *t.shape[1:]))
    normals = interpolate(fragments, vertex_normals(vertices, topology.faces), topology.faces)
    return shade(F.normalize(normals, dim=-1), light).permute(0, 3, 1, 2)


def _log_ratio(first: Tensor, second: Tensor) -> Tensor:
    return ((first + _BLACK) / (second + _BLACK)).log()


def _beside(residual: Tensor, vertices: Tensor, topology: MeshTopology) -> Tensor:
    """A map of light (B, 3, R, R), where eyes and the inside of the mouth take the light of the skin around them."""
    size = residual.shape[-1]
    inner = region_texels(topology, _INNER, size)
    rows = torch.zeros(len(topology.faces), dtype=torch.bool, device=vertices.device)
    for name in _INNER:
        rows |= topology.regions.get(name, torch.zeros_like(rows))
    around = torch.zeros_like(rows)
    for name in ("lids", "lips"):
        around |= topology.regions.get(name, torch.zeros_like(rows))
    if not (bool(rows.any()) and bool(around.any())):
        return residual
    own, (skin, corner) = topology.faces[rows].unique(), _with_uvs(topology, around)
    light = sample_texture(residual, topology.uvs[corner].expand(len(residual), -1, -1))
    share = (-(torch.cdist(vertices[:, own], vertices[:, skin]) / _NEAR).square()).softmax(-1)
    of_vertex = vertices.new_zeros(len(vertices), vertices.shape[1], 3).index_copy(1, own, share @ light)
    fragments = uv_raster(topology, size).map(lambda t: t.expand(len(vertices), *t.shape[1:]))
    inside = interpolate(fragments, of_vertex, topology.faces).permute(0, 3, 1, 2)
    return torch.where(inner > 0.5, inside, residual)


def _with_uvs(topology: MeshTopology, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices of some faces, and for each one of its UVs."""
    vertex, uv = topology.faces[rows].flatten(), topology.uv_faces[rows].flatten()
    chosen = torch.full((int(vertex.max()) + 1,), -1, device=vertex.device).index_copy(0, vertex, uv)
    found = (chosen >= 0).nonzero()[:, 0]
    return found, chosen[found]


def _tinted_inside(base: Tensor, albedo: Tensor, weight: Tensor, inside: Tensor) -> Tensor:
    """The mouth's hidden texels moved towards the shade of the visible ones: no gap opens beside the teeth."""
    weight = weight * inside
    amount = weight.sum((2, 3), keepdim=True)
    shade_seen = (albedo * weight).sum((2, 3), keepdim=True) / amount.clamp(min=1e-6)
    mixed = 0.4 * base + 0.6 * 0.75 * shade_seen
    return torch.where((inside > 0.5) & (amount > 20), mixed, base)


def add_detail(
    photo: Observation,
    vertices: Tensor,
    decoded: Tensor,
    light: SHLight,
    camera: Camera,
    topology: MeshTopology,
    settings: DetailSettings,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The final texture, its visibility in the photo, and the light that the fitted one lacks.

    Args:
        photo: B observed faces.
        vertices: (B, V, 3), posed.
        decoded: (B, 3, s, s), the decoder's texture.
        light: fitted light.
        camera: of the fit crop.
        topology: mesh.
        settings: of the step.

    Returns:
        texture (B, 3, S, S) in [0, 1]; visibility (B, 1, S, S) in [0, 1], the share of the photo's own pixel in each
        texel at strength 1: 1 observed, 0 invented by the decoder, or copied from the other side of the face; and
        residual shading (B, 3, R, R) > 0, None where the step is off. Where the photo shows a texel, texture times
        fitted shading times residual shading is the photo. The median of plain skin over the decoder's is 1.
    """
    base = _base(decoded, topology, settings)
    shown = _shown(photo, vertices, base, light, camera, topology, settings)
    if shown.residual is None:
        return pad_islands(base, topology), shown.visibility, None
    return _joined_to(base, shown, topology, settings), shown.visibility, shown.residual


@dataclass(frozen=True)
class _Shown:
    """What photos show of their heads, in UV."""

    albedo: Tensor  # (B, 3, S, S)
    weight: Tensor  # (B, 1, S, S), the weight of its skin in the final texture
    inner: Tensor  # (B, 1, S, S), the same of eyeballs and the inside of the mouth
    visibility: Tensor  # (B, 1, S, S)
    residual: Tensor | None = None  # (B, 3, R, R), what multiplies the fitted shading; None: the step is off
    sharpness: Tensor | None = None  # (B, 1, S, S), photo pixels per texel along a side; None: not asked for


def _base(decoded: Tensor, topology: MeshTopology, settings: DetailSettings) -> Tensor:
    """The decoder's texture at full size; what is joined to a photo's has no light of one side."""
    size = (settings.size, settings.size)
    base = F.interpolate(decoded, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    return even_light(base, topology) if settings.enabled else base


def _parts(topology: MeshTopology, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(1, 1, S, S) texels of eyeballs, of the inside of the mouth, and of the rest."""
    eyes = region_texels(topology, ("eyes",), size)
    inside = region_texels(topology, _INNER[1:], size)
    return eyes, inside, 1 - torch.maximum(eyes, inside)


def _shown(
    photo: Observation,
    vertices: Tensor,
    base: Tensor,
    light: SHLight,
    camera: Camera,
    topology: MeshTopology,
    settings: DetailSettings,
    sharpness: bool = False,
) -> _Shown:
    """Unwrap the photos and divide them by the fitted shading; where detail is off, only the visibility counts."""
    size, crop = settings.size, photo.full
    face = erode(crop.face_mask, _RIM * crop.image.shape[-1])
    channels = [crop.image, face, crop.eye_mask, crop.mouth_mask, crop.valid]
    if sharpness:
        side = crop.image.shape[-1]
        at = (torch.arange(side, device=base.device) + 0.5).expand(side, side)
        channels.append(torch.stack([at, at.T]).expand(photo.batch, -1, -1, -1))
    baked, visibility = bake(torch.cat(channels, 1), vertices, topology, full_crop_camera(camera, photo), size)
    rgb, face, eye, mouth, valid, places = baked.split([3, 1, 1, 1, 1, 2 if sharpness else 0], 1)
    # skin shows skin, eyeballs show eyes, teeth show the mouth: nothing is painted on its neighbor
    eyes, inside, skin = _parts(topology, size)
    # the lids and lips leave a slit: what is inside counts as soon as it shows at all
    inner = (eyes * eye + inside * mouth) * (visibility > 0.05)
    bare = skin * (1 - region_texels(topology, "neck", size))  # a beard stands out before the neck
    visibility = (visibility * bare * face * (1 - eye) * (1 - mouth) + inner) * valid
    if not settings.enabled:
        return _Shown(rgb, visibility, inner, visibility)
    fitted = shading_map(vertices, light, topology, size)
    shading = fitted.clamp(min=_DARK)
    outer = visibility * skin
    residual = _beside(light_apart(rgb, base, shading, outer, topology), vertices, topology)
    albedo = (rgb / shading * torch.exp(-enlarged(residual, size))).clamp(0, 1)
    # the photo was divided by more than the fitted shading where that is dark
    used, given = (F.interpolate(x, residual.shape[-2:], mode="area") for x in (shading, fitted.clamp(min=0)))
    residual = residual + _log_ratio(used, given)
    inner = inner * valid
    sharp = _sharpness(places, photo) if sharpness else None
    k = max(1, round(size / 256))
    weight = erode((outer > 0.5).to(visibility), k) * outer
    weight = torch.minimum(gaussian_blur(weight, 8 * k + 1), outer)
    return _Shown(albedo, weight, inner, weight + inner, residual.exp(), sharp)


def _gain(wanted: Tensor, albedo: Tensor, weight: Tensor) -> Tensor:
    """(B, 3, 1, 1) factor that brings skin to the mean color of other skin."""
    to, own = ((image * weight).sum((2, 3)) for image in (wanted, albedo))
    return ((to + 1) / (own + 1)).clamp(0.7, 1.4)[..., None, None]


def _continued(base: Tensor, source: Tensor, weight: Tensor, topology: MeshTopology) -> Tensor:
    """The decoder's texture with what ``source`` differs from it by where there is weight, continued beyond."""
    size = base.shape[-1]
    both, known = pooled(torch.cat([source, base], 1), weight * plain_skin(topology, size), cells_of(size))
    change = push_pull(_log_ratio(both[:, :3], both[:, 3:]), known, cells_of(size) // 4)
    return base * enlarged(change, size).exp()


def _joined_to(base: Tensor, shown: _Shown, topology: MeshTopology, settings: DetailSettings) -> Tensor:
    """(B, 3, S, S): the decoder's texture joined to the visible one, with less weight to the mirrored one."""
    _, inside, skin = _parts(topology, settings.size)
    albedo, weight = shown.albedo, shown.weight * settings.strength
    other, _ = mirrored(torch.cat([albedo, weight], 1), topology)  # of the other side of the face
    borrowed = other[:, 3:] * (1 - weight) * settings.mirror * skin
    source = (albedo * weight + other[:, :3] * borrowed) / (weight + borrowed).clamp(min=1e-6)
    weight = weight + borrowed
    base = torch.lerp(base, _continued(base, source, weight, topology), skin * settings.strength)
    source = torch.where(weight > 1e-3, source, base)
    texture = laplacian_blend(source, base, weight, settings.levels)
    # islands are blended each on its own: what lies beyond their borders must not bleed in
    inner = shown.inner * settings.strength
    base = _tinted_inside(base, albedo, inner, inside)
    texture = texture * skin + (albedo * inner + base * (1 - inner)) * (1 - skin)
    return pad_islands(texture.clamp(0, 1), topology)


# -- several photos of one person --------------------------------------------------------------------------


def add_shared_detail(
    photo: Observation,
    vertices: Tensor,
    decoded: Tensor,
    light: SHLight,
    camera: Camera,
    topology: MeshTopology,
    settings: DetailSettings,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The final texture of one person, each texel from the photos that show it best.

    Photos are brought to one tone where they overlap. Skin is taken from the photo with the most pixels on a texel,
    which counts distance, resolution and slant alike, over seams as wide as each band of frequencies
    (:func:`~facerecon.imaging.pyramid.multiband_blend`); both eyeballs from one photo, best one from in front (who
    looks into a camera beside looks sideways on the head); the inside of the mouth from one photo: eyes that look two
    ways, or half a smile, are of nobody. The order of the photos does not matter.

    Args:
        photo: B observed faces of one person.
        decoded: (1, 3, s, s), the decoder's texture.
        vertices, light, camera, topology, settings: as of :func:`add_detail`.

    Returns:
        texture (1, 3, S, S) in [0, 1]; visibility (1, 1, S, S) in [0, 1]; and residual shading (B, 3, R, R) > 0 of each
        photo, as of :func:`add_detail`.
    """
    base = _base(decoded, topology, settings)
    each = [
        _shown(photo[b], vertices[b : b + 1], base, light[b], camera[b], topology, settings, settings.enabled)
        for b in range(photo.batch)
    ]
    visibility = torch.stack([shown.visibility for shown in each]).amax(0)
    if not settings.enabled:
        return pad_islands(base, topology), visibility, None
    shown = _best_of(each, _frontal(vertices, topology, camera), base, topology, settings)
    texture = _joined_to(base, shown, topology, settings)
    residual = torch.cat([one.residual * _broad_ratio(one, texture) for one in each])
    return texture, shown.visibility, residual


def _broad_ratio(shown: _Shown, texture: Tensor) -> Tensor:
    """(1, 3, R, R), broadly what a photo's own albedo is over the texture that several photos gave."""
    cells = cells_of(texture.shape[-1])
    both, known = pooled(torch.cat([shown.albedo, texture], 1), shown.weight + shown.inner, cells)
    return push_pull(gaussian_blur(_log_ratio(both[:, :3], both[:, 3:]) * (known > 0), 5), known, cells).exp()


def _frontal(vertices: Tensor, topology: MeshTopology, camera: Camera) -> list[float]:
    """How much each head looks into its camera: 1 into it, 0 past it at a right angle or more; 1 without eyes."""
    eyes = topology.regions.get("eyes")
    if eyes is None or not eyes.any():
        return [1.0] * len(vertices)
    normals = vertex_normals(vertices, topology.faces)[:, topology.faces[eyes].unique()]
    towards = -camera.rotation[:, 2]  # the camera looks along its z
    ahead = F.normalize(normals.mean(1), dim=1)
    return (ahead * towards.to(ahead)).sum(1).clamp(min=0).tolist()


def _best_of(
    each: list[_Shown], frontal: list[float], base: Tensor, topology: MeshTopology, settings: DetailSettings
) -> _Shown:
    """One of several photos of a person."""
    eyes, inside, skin = _parts(topology, settings.size)
    quality = [shown.weight * shown.sharpness for shown in each]
    best, total = torch.stack(quality).amax(0), sum(quality)
    mean = sum(shown.albedo * q for shown, q in zip(each, quality, strict=True)) / total.clamp(min=1e-6)
    # nearly all from the best: a second one counts where it is as good
    shares = [(q / best.clamp(min=1e-6)) ** _CHOICE for q in quality]
    whole = sum(shares).clamp(min=1e-6)
    weight = torch.stack([shown.weight for shown in each]).amax(0)
    base = torch.lerp(base, _continued(base, mean, weight, topology), skin)
    layers = []
    for shown in each:
        even = shown.albedo * _gain(mean, shown.albedo, shown.weight)  # of the tone that the photos have together
        layers.append(torch.where(shown.weight > 1e-3, even, base))
    albedo = multiband_blend(layers, [share / whole for share in shares], settings.levels)
    albedo = torch.where(best > 0, albedo, base)
    inner = torch.zeros_like(weight)
    for part, power in ((eyes, _GAZE), (inside, 0)):
        values = [_worth(shown, part) * ahead**power for shown, ahead in zip(each, frontal, strict=True)]
        chosen = each[values.index(max(values))]
        albedo = torch.where(part > 0.5, chosen.albedo, albedo)
        inner = inner + chosen.inner * part
    return _Shown(albedo, weight, inner, weight + inner)


def _worth(shown: _Shown, part: Tensor) -> float:
    """How well a photo shows eyes or mouth: how much of them, and less important, how sharp."""
    amount = shown.inner * part
    sharp = (amount * shown.sharpness).sum() / amount.sum().clamp(min=1e-6)
    return float(amount.sum().square() * sharp.sqrt())


def _sharpness(places: Tensor, photo: Observation) -> Tensor:
    """(B, 1, S, S): how many pixels of the photo lie along the side of a texel, 0 where it is edge-on; ``places``,
    (B, 2, S, S): where in the full crop each texel is, px. A crop has no more pixels than what it was cut from."""
    along, down = places.diff(dim=3)[:, :, :-1], places.diff(dim=2)[..., :-1]
    area = (along[:, :1] * down[:, 1:] - along[:, 1:] * down[:, :1]).abs()
    area = F.pad(area, (0, 1, 0, 1), mode="replicate")
    stretch = torch.linalg.det(photo.full.to_photo[:, :, :2]).abs().clamp(max=1)
    side = (area * stretch[:, None, None, None]).clamp(max=_MOST).sqrt()
    return gaussian_blur(side, 2 * (area.shape[-1] // 64) + 1)
