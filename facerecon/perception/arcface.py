"""ArcFace (arXiv:1801.07698): the identity network of FFHQ-UV's L_id, with its alignment at 112 px.

The released ``ms1mv3_arcface_r50_fp16_backbone.pth`` is the improved ResNet of that paper (Sec. 3.2.2: blocks of
BN, Conv, BN, PReLU, Conv, BN; then BN, Dropout, FC, BN) with 3, 4, 14 and 3 blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import check_shape
from facerecon.geometry.alignment import five_points, invert_affine, similarity_transform
from facerecon.imaging.warp import crop_affine
from facerecon.perception.regressor import shortcut

__all__ = ["TEMPLATE_112", "AlignedNet", "ArcFace", "ImprovedResNet", "SFace", "arcface_transform"]

TEMPLATE_112 = torch.tensor(
    [
        [56.0252, 71.7366],
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Nose tip, eyes, mouth corners in the 112 px crop, as published, counted from pixel centers (+0.5 in our frame)."""

BLOCKS, CHANNELS = (3, 4, 14, 3), (64, 128, 256, 512)


class _Block(nn.Module):
    """BN, 3 x 3, BN, PReLU, 3 x 3 with the stride, BN, beside a shortcut (Fig. 4 there)."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(inputs, channels, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


class ImprovedResNet(nn.Module):
    """(B, 3, 112, 112) in [0, 1] -> (B, 512), not normalized. Names of parameters are the released ones."""

    size = 112

    def __init__(self) -> None:
        super().__init__()
        inputs = CHANNELS[0]
        self.conv1 = nn.Conv2d(3, inputs, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.prelu = nn.PReLU(inputs)
        for k, (count, width) in enumerate(zip(BLOCKS, CHANNELS, strict=True), 1):
            stage = [_Block(inputs if i == 0 else width, width, 2 if i == 0 else 1) for i in range(count)]
            setattr(self, f"layer{k}", nn.Sequential(*stage))
            inputs = width
        side = self.size >> len(BLOCKS)
        self.bn2 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs * side * side, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Feature maps of the first three stages, and the embedding."""
        check_shape("image", image, f"B 3 {self.size} {self.size}")
        x = self.prelu(self.bn1(self.conv1(2 * image - 1)))
        first = self.layer1(x)
        second = self.layer2(first)
        third = self.layer3(second)
        x = self.bn2(self.layer4(third))
        return [first, second, third], self.features(self.fc(x.flatten(1)))


def arcface_transform(landmarks: Tensor) -> Tensor:
    """The similarity (B, 2, 3) from pixels of the 112 px crop to pixels of the photo, by least squares on five points.

    Args:
        landmarks: (B, 68, 2) px, pixel centers at +0.5.
    """
    points = five_points(landmarks).double()
    template = (TEMPLATE_112.to(points) + 0.5).expand(len(points), -1, -1)
    forward = similarity_transform(points, template)  # least squares in the crop, as the release has it
    return invert_affine(forward).to(landmarks.dtype)


class AlignedNet(nn.Module):
    """An embedding of faces by a network and its own alignment; differentiable in the image, not in the landmarks."""

    metric = "cosine"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def transform(self, landmarks: Tensor) -> Tensor:
        """(B, 68, 2) px of the photo -> (B, 2, 3), from the network's crop to the photo."""
        raise NotImplementedError

    def aligned(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """(B, 3, S, S) crops at the network's size."""
        check_shape("image", image, "B 3 H W")
        check_shape("landmarks", landmarks, f"{image.shape[0]} 68 2")
        exact = image if image.dtype == torch.float64 else image.float()  # positions need more than bfloat16 has
        transform = self.transform(landmarks.detach())
        return crop_affine(exact, transform, self.net.size, padding="zeros").to(image.dtype)

    def embed_with_features(self, image: Tensor, landmarks: Tensor) -> tuple[list[Tensor], Tensor]:
        """Both of the below in one pass."""
        raise NotImplementedError

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """Embed faces: (B, 3, H, W) in [0, 1] and (B, 68, 2) px -> (B, D)."""
        return self.embed_with_features(image, landmarks)[1]

    def features(self, image: Tensor, landmarks: Tensor) -> list[Tensor]:
        """Feature maps for the perceptual loss ``face_features``: 3 x (B, C, h, w)."""
        return self.embed_with_features(image, landmarks)[0]


class ArcFace(AlignedNet):
    """512-d identity embedding of the paper's L_id, unit vectors."""

    transform = staticmethod(arcface_transform)

    def embed_with_features(self, image: Tensor, landmarks: Tensor) -> tuple[list[Tensor], Tensor]:
        maps, embedding = self.net(self.aligned(image, landmarks))
        return maps, F.normalize(embedding, dim=1)


class SFace(ArcFace):
    """128-d identity embedding of :class:`facerecon.perception.sface.SFaceNet`, unit vectors."""
