"""The last, optional step ``detail`` (ours, not the paper's): what the photo shows beyond the decoder.

The photo is unwrapped onto the fitted head, divided by the fitted shading, and carried into the texels that it
shows, joined to the decoder's texture by a Laplacian pyramid: the head is that person, not a smooth cousin.
Hidden texels may borrow from their mirror image. Of several photos of one person each texel takes the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.fitting.stage import DetailSettings
from facerecon.geometry.camera import camera_in_photo
from facerecon.geometry.lighting import shade
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging.color import luma
from facerecon.imaging.masks import erode, gaussian_blur
from facerecon.imaging.pyramid import laplacian_blend, multiband_blend
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import bake, mirrored, pad_islands, region_texels, uv_raster
from facerecon.types import Camera, MeshTopology, Observation, SHLight

_BLACK = 0.01  # added to intensities before logarithms
_TRUST = 0.8  # nats by which the broad color of the photo may leave the decoder's in usual light
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


def _trusted(rgb: Tensor, base: Tensor, shading: Tensor, weight: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) albedo of the photo, whose broad color may leave the decoder's only as far as the light is known.

    Dividing by a shading that is small and colored, or that misses a shadow, would paint patches. So what the photo and
    the decoder's render differ by, over half a hundredth of the map, is limited in logarithms: loosely where the light
    is as on most of the face, tightly where it is far from that; darker than the decoder may also be what is as dark on
    the other side (a beard). Fine structure passes. ``rgb`` is the photo in UV, ``weight`` (B, 1, S, S) visible skin.
    """
    side = max(32, size // 4)

    def broad(x: Tensor) -> Tensor:
        x = F.interpolate(torch.cat([x * weight, weight], 1), size=(side, side), mode="area")
        x = gaussian_blur(x, 7)
        return x[:, :-1] / x[:, -1:].clamp(min=1e-4)

    visible = F.interpolate(weight, size=(side, side), mode="area") > 0.5
    photo, render = broad(rgb), broad(base * shading)
    ratio = ((photo + _BLACK) / (render + _BLACK)).log() * visible
    bright, level = luma(ratio), luma(broad(shading)).clamp(min=1e-3).log()
    usual = torch.stack([v[s].median() if s.any() else v.new_zeros(()) for v, s in zip(level, visible, strict=True)])
    unlike = ((level - usual[:, None, None, None]).abs() - 0.25).clamp(min=0)
    limit = _TRUST * (-2 * unlike).exp()
    darker = torch.maximum(limit, -bright.flip(-1))
    kept = torch.where(bright < 0, -darker * (bright / darker).abs().tanh(), limit * (bright / limit).tanh())
    tint = 0.5 * limit * ((ratio - bright) / (0.5 * limit)).tanh()
    change = F.interpolate(kept + tint - ratio, size=(size, size), mode="bicubic", align_corners=False)
    return (rgb / shading * change.exp()).clamp(0, 1)


def _gain(albedo: Tensor, base: Tensor, weight: Tensor) -> Tensor:
    """(B, 3, 1, 1) factor that brings the decoder's skin to the tone of the photo's, so that no border shows."""
    photo, decoder = ((image * weight).sum((2, 3)) for image in (albedo, base))
    return ((photo + 1) / (decoder + 1)).clamp(0.7, 1.4)[..., None, None]


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
) -> tuple[Tensor, Tensor]:
    """The final texture and its visibility in the photo.

    Args:
        photo: B observed faces.
        vertices: (B, V, 3), posed.
        decoded: (B, 3, s, s), the decoder's texture.
        light: fitted light.
        camera: of the fit crop.
        topology: mesh.
        settings: of the step.

    Returns:
        texture (B, 3, S, S) in [0, 1]; and visibility (B, 1, S, S) in [0, 1], the share of the photo's own pixel in
        each texel at strength 1: 1 observed, 0 invented by the decoder, or copied from the other side of the face.
    """
    base = _sized(decoded, settings.size)
    shown = _shown(photo, vertices, base, light, camera, topology, settings)
    if not settings.enabled:
        return pad_islands(base, topology), shown.visibility
    return _joined_to(base, shown, topology, settings), shown.visibility


@dataclass(frozen=True)
class _Shown:
    """What photos show of their heads, in UV."""

    albedo: Tensor  # (B, 3, S, S)
    weight: Tensor  # (B, 1, S, S), the weight of its skin in the final texture
    inner: Tensor  # (B, 1, S, S), the same of eyeballs and the inside of the mouth
    visibility: Tensor  # (B, 1, S, S)
    sharpness: Tensor | None = None  # (B, 1, S, S), photo pixels per texel along a side; None: not asked for


def _sized(decoded: Tensor, size: int) -> Tensor:
    return F.interpolate(decoded, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def _parts(topology: MeshTopology, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(1, 1, S, S) texels of eyeballs, of the inside of the mouth, and of the rest."""
    eyes = region_texels(topology, ("eyes",), size)
    inside = region_texels(topology, ("mouth", "teeth", "tongue"), size)
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
    shading = shading_map(vertices, light, topology, size).clamp(min=0.1)
    albedo = _trusted(rgb, base, shading, visibility * skin, size)
    k = max(1, round(size / 256))
    outer = visibility * skin
    weight = erode((outer > 0.5).to(visibility), k) * outer
    weight = torch.minimum(gaussian_blur(weight, 8 * k + 1), outer)
    inner = inner * valid
    return _Shown(albedo, weight, inner, weight + inner, _sharpness(places, photo) if sharpness else None)


def _joined_to(base: Tensor, shown: _Shown, topology: MeshTopology, settings: DetailSettings) -> Tensor:
    """(B, 3, S, S): the decoder's texture joined to the visible one, with less weight to the mirrored one."""
    _, inside, skin = _parts(topology, settings.size)
    albedo, weight = shown.albedo, shown.weight * settings.strength
    base = base * (_gain(albedo, base, weight) * skin + 1 - skin)
    other, _ = mirrored(torch.cat([albedo, weight], 1), topology)  # of the other side of the face
    borrowed = other[:, 3:] * (1 - weight) * settings.mirror * skin
    source = (albedo * weight + other[:, :3] * borrowed) / (weight + borrowed).clamp(min=1e-6)
    weight = weight + borrowed
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
) -> tuple[Tensor, Tensor]:
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
        texture (1, 3, S, S) in [0, 1]; and visibility (1, 1, S, S) in [0, 1], as of :func:`add_detail`.
    """
    base = _sized(decoded, settings.size)
    each = [
        _shown(photo[b], vertices[b : b + 1], base, light[b], camera[b], topology, settings, settings.enabled)
        for b in range(photo.batch)
    ]
    visibility = torch.stack([shown.visibility for shown in each]).amax(0)
    if not settings.enabled:
        return pad_islands(base, topology), visibility
    shown = _best_of(each, _frontal(vertices, topology, camera), base, topology, settings)
    return _joined_to(base, shown, topology, settings), shown.visibility


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
    base = base * (_gain(mean, base, weight) * skin + 1 - skin)
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
