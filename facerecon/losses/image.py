"""Image losses: photometric, perceptual, and the symmetry of a texture.

All return (B,), unreduced, so that a batch of faces is fitted with independent losses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from facerecon.errors import ConfigError, check_shape
from facerecon.losses.lpips_network import BACKBONES, load_lpips
from facerecon.modes import in_own_modes
from facerecon.settings import check_keys

__all__ = [
    "PERCEPTUAL",
    "FaceFeatureDistance",
    "LPIPSDistance",
    "composite",
    "eval_lpips",
    "load_perceptual",
    "masked_mean_error",
    "pixel_loss",
    "silhouette_loss",
]

PERCEPTUAL = ("face_features", "lpips_alex", "lpips_vgg")
"""Names of the perceptual losses."""


def composite(render: Tensor, mask: Tensor, photo: Tensor) -> Tensor:
    """The image that every image loss compares with the photo: ``render * mask + (1 - mask) * photo``.

    The mask is detached: the losses move what is inside the outline, not the outline (SPEC Sec. 3, release).

    Args:
        render: (B, 3, H, W).
        mask: (B, 1, H, W) in [0, 1].
        photo: (B, 3, H, W) in [0, 1].
    """
    mask = mask.detach()
    return render * mask + (1 - mask) * photo


def pixel_loss(image: Tensor, target: Tensor, mask: Tensor | None = None, norm: str = "l2") -> Tensor:
    """L_pix, the photometric error over a mask (Sec. 4.2): (B,), 0 where the mask is empty.

    Args:
        image, target: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) weights in [0, 1]; everywhere if left out.
        norm: ``"l2"``, the paper's: mean over the mask of the Euclidean RGB distance; ``"l1"``, the release's:
            absolute differences summed over the three channels, over the sum of the mask.

    Raises:
        ShapeError: shapes differ.
        ConfigError: unknown norm.
    """
    check_shape("image", image, "B 3 H W")
    check_shape("target", target, " ".join(map(str, image.shape)))
    if mask is None:
        mask = torch.ones_like(image[:, :1])
    difference = image - target
    check_keys([norm], ("l1", "l2"), "photometric norm")
    if norm == "l2":
        error = (difference.square().sum(1, keepdim=True) + 1e-8).sqrt() - 1e-4
    else:
        error = difference.abs().sum(1, keepdim=True)
    return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)


def silhouette_loss(mask: Tensor, face: Tensor, weight: Tensor) -> Tensor:
    """How far a rendered outline is from the photo's: the area that only one of the two calls face,
    as a share of the photo's face; (B,).

    Args:
        mask: (B, 1, H, W) antialiased coverage of the rendered face.
        face: (B, 1, H, W), the photo's face.
        weight: (B, 1, H, W) in [0, 1], where the two are compared.
    """
    check_shape("mask", mask, "B 1 H W")
    check_shape("face", face, " ".join(map(str, mask.shape)))
    apart = (face - mask).abs() * weight
    return apart.flatten(1).sum(1) / face.flatten(1).sum(1).clamp(min=1.0)


class FaceFeatureDistance(nn.Module):
    """``face_features``: multi-layer distance on the identity network's features. It is NOT LPIPS.

    A cheaper stand-in for LPIPS, of the network that the identity loss runs anyway. The form is LPIPS'
    (unit-normalized channels, squared distance, mean over pixels, sum over layers) without learned channel weights.

    Args:
        features: ``(image (B, 3, H, W), landmarks68 (B, 68, 2)) -> list of (B, C, h, w)``; an
            identity network's ``features`` method.
    """

    name = "face_features"

    def __init__(self, features: Callable[[Tensor, Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.features = features

    def prepare(self, target: Tensor, landmarks: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of the fixed side and the alignment that both sides use."""
        with torch.no_grad():
            return self.features(target, landmarks), landmarks

    def forward(self, image: Tensor, prepared: tuple[list[Tensor], Tensor]) -> Tensor:
        """(B,) distances of ``image`` to the prepared target."""
        return self.distance(self.features(image, prepared[1]), prepared)

    def distance(self, features: list[Tensor], prepared: tuple[list[Tensor], Tensor]) -> Tensor:
        """The same, of features that are already there."""
        total = features[0].new_zeros(len(features[0]))
        for pair in zip(features, prepared[0]):
            x, y = (layer / (layer.square().sum(1, keepdim=True) + 1e-10).sqrt() for layer in pair)
            total = total + (x - y).square().sum(1).flatten(1).mean(1)
        return total


class LPIPSDistance(nn.Module):
    """LPIPS, the paper's perceptual loss (arXiv:1801.03924), version 0.1: the ``lpips`` package's numbers, with
    the networks of the open pack. Nothing is downloaded.

    Always in float32: with the forward pass in bfloat16, the gradient's cosine with float32's falls to 0.98-0.99.

    Args:
        net: ``"vgg"`` (VGG-16, the paper's) or ``"alex"`` (AlexNet).
        size: longer side in px at which images are compared, after an area average; larger ones only. None compares
            them as they are.

    Raises:
        ConfigError: unknown net, or a size below 32 px.
        AssetError: the backbone (asset ``lpips_vgg16`` or ``lpips_alexnet``) is not in the cache.
    """

    def __init__(self, net: str = "vgg", size: int | None = None) -> None:
        super().__init__()
        check_keys([net], BACKBONES, "LPIPS backbone")
        if size is not None and size < 32:
            raise ConfigError(f"LPIPS at {size} px: its backbones need at least 32 px.")
        self.name, self.size = f"lpips_{net}", size
        self.model = load_lpips(net)

    def features(self, image: Tensor) -> list[Tensor]:
        """Channel-normalized features of the five layers, 5 x (B, C, h, w), of (B, 3, H, W) in [0, 1]."""
        check_shape("image", image, "B 3 H W")
        longer = max(image.shape[2:])
        if self.size is not None and longer > self.size:
            sides = [max(round(side * self.size / longer), 32) for side in image.shape[2:]]
            image = nn.functional.interpolate(image, size=sides, mode="area")
        layers = self.model(image)
        # the package adds 1e-10 to the root, whose gradient is NaN where a pixel's features are all zero
        return [layer / (layer.square().sum(1, keepdim=True) + 1e-20).sqrt() for layer in layers]

    def prepare(self, target: Tensor, landmarks: Tensor | None = None) -> list[Tensor]:
        """Features of the fixed side, computed once; landmarks are not used."""
        with torch.no_grad():
            return self.features(target)

    def forward(self, image: Tensor, prepared: list[Tensor] | Tensor) -> Tensor:
        """(B,) LPIPS distances.

        Args:
            image: (B, 3, H, W) in [0, 1].
            prepared: what :meth:`prepare` gave for the target, or the target itself, (B, 3, H, W) in [0, 1].
        """
        target = self.prepare(prepared) if isinstance(prepared, Tensor) else prepared
        pairs = zip(self.features(image), target, self.model.heads)
        return sum(head((x - y).square()).flatten(1).mean(1) for x, y, head in pairs)


def eval_lpips(optimized: str) -> str:
    """Name of the LPIPS that measures what was fitted with another perceptual loss: never the one that was optimized.

    Args:
        optimized: name of the perceptual loss of the fit.
    """
    return "lpips_alex" if optimized == "lpips_vgg" else "lpips_vgg"


@in_own_modes
def load_perceptual(name: str, features: Callable | None = None, size: int | None = None) -> nn.Module:
    """The perceptual loss by its config name.

    Args:
        name: ``face_features``, ``lpips_alex`` or ``lpips_vgg``.
        features: needed for ``face_features``.
        size: of :class:`LPIPSDistance`.

    Raises:
        ConfigError: unknown name.
        AssetError: a backbone is not in the cache.
    """
    if name == "lpips_squeeze":
        raise ConfigError("perceptual=lpips_squeeze is gone: its backbone is in no package; set lpips_alex.")
    check_keys([name], PERCEPTUAL, "perceptual loss")
    if name == "face_features":
        if features is None:
            raise ConfigError("perceptual=face_features needs an identity network; pass features=identity.features.")
        return FaceFeatureDistance(features)
    return LPIPSDistance(name.removeprefix("lpips_"), size)


def masked_mean_error(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute RGB error over a mask, the figure that reports quote; (B,)."""
    difference = (image - target).abs().mean(1, keepdim=True)
    return (difference * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)
