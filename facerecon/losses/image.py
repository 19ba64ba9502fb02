"""Image losses: photometric, perceptual, and the symmetry of a texture.

All return (B,), unreduced, so that a batch of faces is fitted with independent losses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from facerecon.errors import AssetError, ConfigError, check_shape
from facerecon.modes import in_own_modes
from facerecon.settings import check_keys

__all__ = [
    "PERCEPTUAL",
    "FaceFeatureDistance",
    "LPIPSDistance",
    "composite",
    "load_perceptual",
    "masked_mean_error",
    "pixel_loss",
    "silhouette_loss",
]

PERCEPTUAL = ("face_features", "lpips_alex", "lpips_squeeze", "lpips_vgg")
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

    The open pack's stand-in where the paper uses LPIPS, whose VGG backbone must be downloaded from the torch hub. The
    form is LPIPS' (unit-normalized channels, squared distance, mean over pixels, sum over layers) without learned
    channel weights.

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
    """LPIPS (the ``lpips`` package), the paper's perceptual loss.

    The package carries its linear heads only; the backbone comes from the torch hub once.

    Args:
        net: ``"vgg"`` (the paper's), ``"alex"`` or ``"squeeze"``.

    Raises:
        AssetError: the backbone is not in the torch hub cache and cannot be downloaded.
    """

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        import lpips

        self.name = f"lpips_{net}"
        try:
            with warnings.catch_warnings():  # it calls torchvision in a way that is deprecated
                warnings.simplefilter("ignore")
                self.model = lpips.LPIPS(net=net, verbose=False).eval().requires_grad_(False)
        except Exception as error:
            raise AssetError(
                f"LPIPS needs the torchvision {net} backbone, which could not be downloaded "
                f"({type(error).__name__}); connect once, or set perceptual=face_features."
            ) from None

    def prepare(self, target: Tensor, landmarks: Tensor) -> Tensor:
        """The target itself; landmarks are not used."""
        return target

    def forward(self, image: Tensor, prepared: Tensor) -> Tensor:
        """(B,) LPIPS distances of two images in [0, 1]."""
        return self.model(image, prepared, normalize=True).flatten(1).mean(1)


@in_own_modes
def load_perceptual(name: str, features: Callable | None = None) -> nn.Module:
    """The perceptual loss by its config name.

    Args:
        name: ``face_features``, ``lpips_vgg``, ``lpips_alex`` or ``lpips_squeeze``.
        features: needed for ``face_features``.

    Raises:
        ConfigError: unknown name.
        AssetError: a backbone cannot be had.
    """
    check_keys([name], PERCEPTUAL, "perceptual loss")
    if name == "face_features":
        if features is None:
            raise ConfigError("perceptual=face_features needs an identity network; pass features=identity.features.")
        return FaceFeatureDistance(features)
    return LPIPSDistance(name.removeprefix("lpips_"))


def masked_mean_error(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute RGB error over a mask, the figure that reports quote; (B,)."""
    difference = (image - target).abs().mean(1, keepdim=True)
    return (difference * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)
