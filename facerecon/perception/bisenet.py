"""BiSeNet (arXiv:1808.00897): face parsing into the 19 classes of CelebAMask-HQ, as FFHQ-UV uses it.

The released ``79999_iter.pth`` has a ResNet-18 as its context path, whose features at an eighth of the size also stand
for the paper's spatial path. Its two auxiliary heads (Sec. 3.3), which serve training alone, are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import check_shape
from facerecon.perception.regressor import ResNet

__all__ = ["CLASSES", "BiSeNet"]

CLASSES = (
    "background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "glasses", "left_ear", "right_ear",
    "earring", "nose", "mouth", "upper_lip", "lower_lip", "neck", "necklace", "cloth", "hair", "hat",
)  # fmt: skip
"""The classes, by their numbers; left and right are CelebAMask-HQ's, and the network confuses them."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _ConvBN(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Refinement(nn.Module):
    """Attention refinement module (Fig. 2b): features times a weight of each channel, computed from their mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _ConvBN(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))).sigmoid()


class _Context(nn.Module):
    """Context path: backbone, refinement, global mean, from coarse to fine (Sec. 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet("resnet18")
        self.arm16, self.arm32 = _Refinement(256, 128), _Refinement(512, 128)
        self.conv_head32, self.conv_head16 = _ConvBN(128, 128), _ConvBN(128, 128)
        self.conv_avg = _ConvBN(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, last = self.resnet(x)
        x = self.arm32(last) + self.conv_avg(last.mean((2, 3), keepdim=True))
        x = self.conv_head32(F.interpolate(x, sixteenth.shape[-2:], mode="nearest"))
        x = self.arm16(sixteenth) + x
        return eighth, self.conv_head16(F.interpolate(x, eighth.shape[-2:], mode="nearest"))


class _Fusion(nn.Module):
    """Feature fusion module (Fig. 2c)."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = _ConvBN(256, 256, 1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([spatial, context], 1))
        weight = self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x + x * weight


class _Output(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = _ConvBN(256, 256)
        self.conv_out = nn.Conv2d(256, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """(B, 3, H, W) RGB in [0, 1] -> logits (B, 19, H, W). Names of parameters are the released ones."""

    def __init__(self) -> None:
        super().__init__()
        self.cp = _Context()
        self.ffm = _Fusion()
        self.conv_out = _Output(len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        check_shape("image", image, "B 3 H W")
        mean, std = image.new_tensor(_MEAN), image.new_tensor(_STD)
        spatial, context = self.cp((image - mean[:, None, None]) / std[:, None, None])
        logits = self.conv_out(self.ffm(spatial, context))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)
