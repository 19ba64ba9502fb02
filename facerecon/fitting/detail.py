"""The last, optional step ``detail`` (ours, not the paper's): what the photo shows beyond the decoder.

The photo is unwrapped onto the fitted head, divided by the fitted shading, and carried into the texels that it
shows, joined to the decoder's texture by a Laplacian pyramid: the head is that person, not a smooth cousin.
Unseen texels may borrow from their mirror image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.fitting.stage import DetailSettings
from facerecon.geometry.camera import camera_in_photo
from facerecon.geometry.lighting import shade
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging.masks import erode, gaussian_blur
from facerecon.imaging.pyramid import laplacian_blend
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import bake, mirrored, pad_islands, region_texels, uv_raster
from facerecon.types import Camera, MeshTopology, Observation, SHLight

_LUMA = (0.299, 0.587, 0.114)
_BLACK = 0.01  # added to intensities before logarithms
_TRUST = 0.8  # nats by which the broad color of the photo may leave the decoder's in usual light

__all__ = ["add_detail", "fit_to_full", "full_crop_camera"]


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
    the other side (a beard). Fine structure passes.

    Args:
        rgb: (B, 3, S, S), the photo in UV. base: the decoder's texture. shading: > 0. weight: (B, 1, S, S), seen skin.
    """
    side = max(32, size // 4)

    def broad(x: Tensor) -> Tensor:
        x = F.interpolate(torch.cat([x * weight, weight], 1), size=(side, side), mode="area")
        x = gaussian_blur(x, 7)
        return x[:, :-1] / x[:, -1:].clamp(min=1e-4)

    def luma(x: Tensor) -> Tensor:
        return (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)

    seen = F.interpolate(weight, size=(side, side), mode="area") > 0.5
    photo, render = broad(rgb), broad(base * shading)
    ratio = ((photo + _BLACK) / (render + _BLACK)).log() * seen
    bright, level = luma(ratio), luma(broad(shading)).clamp(min=1e-3).log()
    usual = torch.stack([v[s].median() if s.any() else v.new_zeros(()) for v, s in zip(level, seen, strict=True)])
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
    """The mouth's unseen texels moved towards the shade of the seen ones: no gap opens beside the teeth."""
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
    """The final texture and what of it was seen.

    Args:
        photo: B observed faces. vertices: (B, V, 3), posed. decoded: (B, 3, s, s), the decoder's texture.
        light: fitted light. camera: of the fit crop. topology: mesh. settings: of the step.

    Returns:
        texture (B, 3, S, S) in [0, 1]; and seen (B, 1, S, S) in [0, 1], the share of the photo's own pixel in each
        texel at strength 1: 1 observed, 0 invented by the decoder, or copied from the other side of the face.
    """
    size = settings.size
    base = F.interpolate(decoded, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    crop = photo.full
    channels = torch.cat([crop.image, crop.face_mask, crop.eye_mask, crop.mouth_mask, crop.valid], 1)
    baked, seen = bake(channels, vertices, topology, full_crop_camera(camera, photo), size)
    rgb, face, eye, mouth, valid = baked.split([3, 1, 1, 1, 1], 1)
    # skin shows skin, eyeballs show eyes, teeth show the mouth: nothing is painted on its neighbor
    eyes, inside = (
        region_texels(topology, ("eyes",), size),
        region_texels(topology, ("mouth", "teeth", "tongue"), size),
    )
    skin = 1 - torch.maximum(eyes, inside)
    # the lids and lips leave a slit: what is inside counts as soon as it shows at all
    inner = (eyes * eye + inside * mouth) * (seen > 0.05)
    seen = (seen * skin * face * (1 - eye) * (1 - mouth) + inner) * valid
    if not settings.enabled:
        return pad_islands(base, topology), seen

    shading = shading_map(vertices, light, topology, size).clamp(min=0.1)
    albedo = _trusted(rgb, base, shading, seen * skin, size)
    k = max(1, round(size / 256))
    outer = seen * skin
    weight = erode((outer > 0.5).to(seen), k) * outer
    weight = torch.minimum(gaussian_blur(weight, 8 * k + 1), outer)
    seen = weight + inner * valid
    weight = weight * settings.strength
    base = base * (_gain(albedo, base, weight) * skin + 1 - skin)
    other, _ = mirrored(torch.cat([albedo, weight], 1), topology)  # of the other side of the face
    borrowed = other[:, 3:] * (1 - weight) * settings.mirror * skin
    source = (albedo * weight + other[:, :3] * borrowed) / (weight + borrowed).clamp(min=1e-6)
    weight = weight + borrowed
    source = torch.where(weight > 1e-3, source, base)
    texture = laplacian_blend(source, base, weight, settings.levels)
    # islands are blended each on its own: what lies beyond their borders must not bleed in
    inner = inner * valid * settings.strength
    base = _tinted_inside(base, albedo, inner, inside)
    texture = texture * skin + (albedo * inner + base * (1 - inner)) * (1 - skin)
    return pad_islands(texture.clamp(0, 1), topology), seen
