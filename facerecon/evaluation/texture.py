"""Metrics of UV maps: evenness of light, how different the people stay (Sec. 3.2), how sharp maps are beside their
views, and pairs of maps (Table 6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import losses
from facerecon.errors import ConfigError, InputError, check_shape
from facerecon.fitting import MapFeatures
from facerecon.imaging.color import luma, rgb_to_yuv
from facerecon.imaging.masks import default_sigma, gaussian_blur
from facerecon.morphable import MorphableModel
from facerecon.perception import load_eval_identity
from facerecon.render import Renderer
from facerecon.types import Camera, FaceParams, SHLight

__all__ = ["MapMetrics", "brightness_symmetry_error", "evenly_lit", "identity_std_ratio", "octave_sharpness"]

_KERNEL, _AT = 55, 1024  # texels of the blur, at the size of the released maps
_LEAST = 0.05  # weight of a neighborhood below which its mean means nothing
_FINEST = 0.865  # texels: a Gaussian less one twice as wide passes periods around 6.54 times this best, 4 to 8
_DARK = 0.01  # added to luma before its log


def brightness_symmetry_error(texture: Tensor, mask: Tensor | None = None, kernel_size: int | None = None) -> Tensor:
    """BS Error: how far the brightness of a map is from its own mirror image (Sec. 3.2).

    ``BS(T) = || B_a(T^Y) - F_h(B_a(T^Y)) ||_1`` as a mean per texel on 0..255 values; T^Y is the Y of YUV, B_a a
    Gaussian blur with kernel size a, F_h the horizontal flip. It means something in a mirror-symmetric atlas.

    a = 55 belongs to maps of 1024 texels. On other sizes the blur spans the same share of the map: its standard
    deviation is scaled, and the kernel is as wide as that of 55 texels is in deviations (27 texels at 512).

    Args:
        texture: (B, 3, S, S) in [0, 1].
        mask: (B or 1, 1, S, S) in [0, 1], the texels that count (those observed). The blur is then normalized, so that
            none of what lies outside leaks in, and a texel counts if its mirror image does too.
        kernel_size: a in texels, in place of the scaled 55; odd.

    Returns:
        (B,); with a mask, NaN where no texel and its mirror image are both in it.
    """
    size = check_shape("texture", texture, "B 3 S S")["S"]
    sigma = None
    if kernel_size is None:
        scaled = _KERNEL * size / _AT
        kernel_size = max(3, 2 * int(scaled // 2) + 1)
        sigma = default_sigma(_KERNEL) * size / _AT if size != _AT else None
    elif kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"kernel_size must be odd and positive; got {kernel_size}.")
    brightness = rgb_to_yuv(texture)[:, :1] * 255
    if mask is None:
        return _asymmetry(gaussian_blur(brightness, kernel_size, sigma)).mean((1, 2, 3))
    if mask.shape[0] not in (1, len(texture)) or tuple(mask.shape[1:]) != (1, size, size):
        raise InputError(f"mask must be ({len(texture)} or 1, 1, {size}, {size}); got {tuple(mask.shape)}.")
    mask = mask.to(texture).expand(len(texture), -1, -1, -1)
    total = gaussian_blur(mask, kernel_size, sigma)
    smooth = gaussian_blur(brightness * mask, kernel_size, sigma) / total.clamp(min=_LEAST)
    counted = torch.minimum(mask, mask.flip(-1)) * (torch.minimum(total, total.flip(-1)) > _LEAST)
    return (_asymmetry(smooth) * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3))


def _asymmetry(image: Tensor) -> Tensor:
    return (image - image.flip(-1)).abs()


@torch.no_grad()
def octave_sharpness(
    texture: Tensor, view: Tensor, weight: Tensor, count: Tensor, octaves: int = 5
) -> tuple[Tensor, Tensor]:
    """How much of the detail of unwrapped views textures show, octave by octave.

    Both are split into differences of Gaussians of the log of luma, each twice as wide as the one before: periods of
    about 2 to 4, 4 to 8, 8 to 16 ... texels. The first octave lies above half of the Nyquist frequency, where
    resampling alone takes much away.

    Args:
        texture: (B, 3, H, W) in [0, 1].
        view: (B, 3, H, W), views in the same texels.
        weight: (B, 1, H, W) in [0, 1], how far a texel of the view can be trusted. The Gaussians are normalized, so
            that nothing from outside leaks in.
        count: (B, 1, H, W), above 0.5 where texels count; they should have weight.
        octaves: n.

    Returns:
        Ratios (B, n) of the standard deviations, the texture's over the view's: 1 is as sharp, less is blurred. And
        coherences (B, n), the correlations of both: 1 is the same detail, 0 unrelated. NaN where fewer than two texels
        count, or where the view has no detail.
    """
    shape = check_shape("texture", texture, "B 3 H W")
    check_shape("view", view, f"{shape['B']} 3 {shape['H']} {shape['W']}")
    for name, mask in (("weight", weight), ("count", count)):
        check_shape(name, mask, f"{shape['B']} 1 {shape['H']} {shape['W']}")
    logs = torch.cat([luma(image.clamp(min=0)) + _DARK for image in (texture, view)], 1).log()
    layers = torch.cat([logs * weight, weight], 1)  # a blur of these, then the quotient, is normalized
    counted, ratios, coherences = count > 0.5, [], []
    sigma, previous, step = 0.0, logs, 1
    for octave in range(octaves):
        target = _FINEST * 2**octave
        wider = math.sqrt(target**2 - sigma**2) / step
        layers, sigma = gaussian_blur(layers, 2 * math.ceil(3 * wider) + 1, wider), target
        smooth = layers[:, :2] / layers[:, 2:].clamp(min=1e-3)
        ratio, coherence = _detail(previous - smooth, counted)
        ratios.append(ratio)
        coherences.append(coherence)
        previous = smooth
        if sigma / step > 1.5:  # what is left changes slowly: every other texel tells as much
            layers, previous, counted = (x[..., ::2, ::2] for x in (layers, previous, counted))
            step *= 2
    return torch.stack(ratios, 1), torch.stack(coherences, 1)


def _detail(bands: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of the standard deviations of two bands (B, 2, H, W) over some texels, and their correlation: (B,) each."""
    total = counted.sum((2, 3)).to(bands)
    centered = (bands - (bands * counted).sum((2, 3), keepdim=True) / total[:, :, None, None]) * counted
    (first, second), both = centered.square().sum((2, 3)).unbind(1), centered.prod(1).sum((1, 2))
    valid = (total[:, 0] > 1) & (second > 0)
    results = ((first / second).sqrt(), both / (first * second).sqrt())
    return tuple(torch.where(valid, result, torch.nan) for result in results)


def identity_std_ratio(rendered: Tensor, source: Tensor) -> Tensor:
    """Diversity of a set of faces that its maps keep (Sec. 3.2): a scalar, 1 keeps all.

    The standard deviation of the identity vectors over the people, per dimension, averaged; of renders with the maps,
    relative to that of the faces they come from. The paper reports 90.06 % for FFHQ-UV.

    Args:
        rendered: (N, D), identity vectors of renders.
        source: (M, D), of the source faces.
    """
    check_shape("rendered", rendered, "N D")
    check_shape("source", source, f"M {rendered.shape[1]}")
    if min(len(rendered), len(source)) < 2:
        raise InputError(f"a deviation needs at least 2 faces; got {len(rendered)} and {len(source)}.")
    return rendered.std(0).mean() / source.std(0).mean().clamp(min=1e-12)


@torch.no_grad()
def evenly_lit(model: MorphableModel, params: FaceParams, texture: Tensor, size: int = 224) -> tuple[Tensor, Tensor]:
    """Heads with a texture, under even light before plain gray: what identity networks are shown of a map (Table 2).

    Args:
        model: head model.
        params: of B heads; their light is left out.
        texture: (B, 3, S, S) in [0, 1].
        size: px.

    Returns:
        (B, 3, size, size) in [0, 1], and landmarks (B, 68, 2) px in it.
    """
    camera = Camera.deep3d(size, texture.shape[0], texture.device)
    light = SHLight.ambient(texture.shape[0], device=texture.device)
    drawn = Renderer(size)(model(params), texture, model.topology, camera, light)
    inside = (drawn.mask > 0.5).expand_as(drawn.shading)
    gains = [0.9 / max(float(shade[where].mean()), 1e-3) for shade, where in zip(drawn.shading, inside, strict=True)]
    gain = drawn.image.new_tensor(gains).view(-1, 1, 1, 1)
    return (drawn.image * gain + 0.5 * (1 - drawn.mask)).clamp(0, 1), drawn.landmarks


class MapMetrics:
    """Metrics of pairs of maps of one atlas: how near a decoder comes to maps that it has not seen (Table 6).

    Args:
        face: (1, 1, S, S) in [0, 1], the texels of the face (``facerecon.dataset.face_layout(model, size).face``).
        atlas: the head model that the maps are of.

    Raises:
        AssetError: a network was not fetched.
    """

    def __init__(self, face: Tensor, atlas: str = "makehuman") -> None:
        check_shape("face", face, "1 1 S S")
        self.mean_head = MapFeatures("face_features", atlas)
        self.face = face
        self.eval_identity = load_eval_identity()
        self.distances = [losses.load_perceptual(name, size=512) for name in ("lpips_vgg", "lpips_alex")]

    @torch.no_grad()
    def __call__(self, maps: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compare maps with their targets, both (B, 3, S, S) in [0, 1].

        Returns:
            {metric: (B,)}. l1: mean absolute difference of the whole map; l1_face: of the face's texels; lpips_vgg and
            lpips_alex: LPIPS of the whole map, at 512 texels at most; csim: cosine of the 1024-d network's embeddings
            of the maps on the mean head, which nothing optimizes.
        """
        size = check_shape("maps", maps, "B 3 S S")["S"]
        check_shape("targets", targets, f"{len(maps)} 3 {size} {size}")
        face = self.face if self.face.shape[-1] == size else F.interpolate(self.face, (size, size), mode="area")
        points = self.mean_head.landmarks.expand(len(maps), -1, -1)
        drawn, truth = self.mean_head.look(maps), self.mean_head.look(targets)
        return {
            "l1": (maps - targets).abs().mean((1, 2, 3)),
            "l1_face": losses.masked_mean_error(maps, targets, face.to(maps).expand(len(maps), -1, -1, -1)),
            **{distance.name: distance(maps, targets) for distance in self.distances},
            "csim": losses.identity_similarity(self.eval_identity(drawn, points), self.eval_identity(truth, points)),
        }
