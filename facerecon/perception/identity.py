"""Identity: the differentiable networks that fits may optimize, and the 1024-d eval identity that they may not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import load_converted
from facerecon.errors import ConfigError, check_shape, nearest_name
from facerecon.imaging.warp import crop_affine
from facerecon.modes import kept
from facerecon.perception.arcface import AlignedNet, ArcFace, ImprovedResNet, SFace
from facerecon.perception.graph import GraphNet
from facerecon.perception.landmarks import square_crop
from facerecon.perception.networks import DescriptorNet, load_weights
from facerecon.perception.sface import SFaceNet

__all__ = [
    "EVAL_IDENTITIES",
    "IDENTITIES",
    "EvalIdentityNet",
    "IdentityNet",
    "identity_box",
    "landmark_box",
    "load_eval_identity",
    "load_identity",
]


def identity_box(landmarks: Tensor) -> Tensor:
    """The square that the 128-d network was trained on, from eye and mouth centers; (B, 68, 2) -> (B, 4) px."""
    right, left, mouth = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1), landmarks[:, 48:68].mean(1)
    side = ((mouth - right).norm(dim=1) + (mouth - left).norm(dim=1)) / 2 / 0.45
    center = (right + left + mouth) / 3
    corner = center - side[:, None] * center.new_tensor([0.5, 0.43])
    return torch.cat([corner, corner + side[:, None]], 1)


def landmark_box(landmarks: Tensor, padding: float = 0.2) -> Tensor:
    """Bounding box of the landmarks, grown by ``padding`` of its sides in all; (B, N, 2) -> (B, 4) px."""
    low, high = landmarks.amin(1), landmarks.amax(1)
    pad = (high - low) * (padding / 2)
    return torch.cat([low - pad, high + pad], 1)


class IdentityNet(AlignedNet):
    """128-d identity embedding; the same person is below about 0.6 apart (Euclidean)."""

    metric = "euclidean"

    def transform(self, landmarks: Tensor) -> Tensor:
        return square_crop(identity_box(landmarks), self.net.size)

    def embed_with_features(self, image: Tensor, landmarks: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.net.features(self.aligned(image, landmarks))


class EvalIdentityNet(nn.Module):
    """1024-d descriptor that judges results and is never optimized.

    Its protocol stays as it is, so that CSIM (the cosine of two embeddings) compares between versions:

    * crop: the bounding box of the 68 landmarks, grown by half of its sides in all, then the square of its longer
      side about its center (:func:`landmark_box`, ``square_crop``);
    * alignment: none; nothing is turned, mirrored or put upright, and pose is whatever the photo has;
    * resampling: to 224 x 224, antialiased; zeros beyond the photo;
    * range: RGB in [0, 1] times 255;
    * landmarks: those of the photo for both of a pair, in its fit crop; a render has none of its own. Only an inverted
      face, which need not lie where its photo has it, is cut out by its own.

    Args:
        net: graph with output (B, 1024).
    """

    metric = "cosine"
    size = 224

    def __init__(self, net: GraphNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] and (B, 68, 2) px -> (B, 1024) unit vectors."""
        check_shape("image", image, "B 3 H W")
        transform = square_crop(landmark_box(landmarks, 0.5), self.size)
        crops = crop_affine(image, transform, self.size, padding="zeros")
        # this network was trained on 0..255 input
        return F.normalize(self.net((crops * 255).permute(0, 2, 3, 1))[0].flatten(1), dim=1)


IDENTITIES = ("identity128", "sface", "arcface")
EVAL_IDENTITIES = ("faceres1024",)
"""What judges: never one of those above, which may be optimized."""


@kept(len(IDENTITIES))
def load_identity(name: str = "identity128") -> IdentityNet | ArcFace | SFace:
    """A differentiable identity network, frozen.

    Args:
        name: ``"identity128"`` (dlib's kind) and ``"sface"`` (ArcFace's kind), the open pack's; ``"arcface"``, the
            paper's, once converted from the release.

    Raises:
        ConfigError: another name.
        AssetError: it is not in the cache; the message holds the command.
    """
    if name not in IDENTITIES:
        raise ConfigError(nearest_name(name, IDENTITIES, "identity network"))
    if name == "sface":
        return SFace(load_converted(SFaceNet, assets.locate(name))).eval()
    if name == "arcface":
        return ArcFace(load_converted(ImprovedResNet, assets.locate(name))).eval()
    return IdentityNet(load_weights(DescriptorNet(), assets.locate(name)).fold()).eval()


@kept()
def load_eval_identity() -> EvalIdentityNet:
    """The open pack's evaluation identity, which nothing optimizes, frozen."""
    return EvalIdentityNet(GraphNet.from_file(assets.locate("faceres1024"))).eval().requires_grad_(False)
