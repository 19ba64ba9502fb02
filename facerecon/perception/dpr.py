"""DPR (Zhou et al. 2019, "Deep Single-Image Portrait Relighting"): the light of a portrait, nine SH coefficients.

The paper's hourglass network splits the features in its narrowest place into a face and a light; the light is the mean
of 27 of them, regressed by two layers. FFHQ-UV takes that light alone (Sec. 3.1.1), so only the way down to it is here:
the way up, which draws a relit photo, is left out of the released ``trained_model_03.t7``.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import load_converted, read_released
from facerecon.errors import check_shape
from facerecon.modes import kept

__all__ = ["PortraitLight", "lightness", "load_portrait_light", "read_official_dpr"]

_CHANNELS = (16, 16, 32, 64, 155)
"""From the full size down, each half as large as the one before."""
_LIGHT = 27
_UP = ("light.", "conv_", "bn_", "output.")


def lightness(image: Tensor) -> Tensor:
    """CIE L* over 100 of sRGB: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    y = (linear * image.new_tensor([0.212671, 0.715160, 0.072169])[:, None, None]).sum(1, keepdim=True)
    return torch.where(y > 0.008856, 1.16 * y.clamp(min=1e-6) ** (1 / 3) - 0.16, 9.033 * y)


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcuts = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.shortcuts is None else self.shortcuts(x)))


class PortraitLight(nn.Module):
    """Portraits (B, 3, H, W) RGB in [0, 1] -> SH coefficients (B, 9) in DPR's own basis and scale.

    They are of brightness, not of color. As in FFHQ-UV, even light is (1, 0, ..., 0); DPR's basis is not the renderer's
    (:mod:`facerecon.geometry.lighting`).
    """

    size = 512

    def __init__(self) -> None:
        super().__init__()
        self.pre_conv = nn.Conv2d(1, _CHANNELS[0], 5, 1, 2)
        self.pre_bn = nn.BatchNorm2d(_CHANNELS[0])
        self.down = nn.ModuleList(_Block(a, b) for a, b in itertools.pairwise(_CHANNELS))
        self.predict_FC1 = nn.Conv2d(_LIGHT, 128, 1, bias=False)
        self.predict_relu1 = nn.PReLU()
        self.predict_FC2 = nn.Conv2d(128, 9, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        check_shape("image", image, "B 3 H W")
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        x = F.relu(self.pre_bn(self.pre_conv(lightness(image))))
        for block in self.down:
            x = block(F.max_pool2d(x, 2))
        light = x[:, :_LIGHT].mean((2, 3), keepdim=True)
        return self.predict_FC2(self.predict_relu1(self.predict_FC1(light))).flatten(1)


def _official(name: str) -> str:
    """Their name of a parameter of ours: the hourglasses are nested, HG3 the outermost."""
    if name.startswith("down."):
        _, level, rest = name.split(".", 2)
        return f"HG{3 - int(level)}.low1.{rest}"
    return f"HG0.middle.{name}" if name.startswith("predict_") else name


def read_official_dpr(path: str | Path) -> dict[str, Tensor]:
    """Weights of :class:`PortraitLight` from the released file.

    The file names each hourglass once for every hourglass around it; the outermost name is taken.

    Raises:
        AssetError: missing, damaged, or another network; one line.
    """
    unused = [*_UP, "HG3.low1.shortcuts"]
    for k in range(4):
        inner = "HG0.middle.post_" if k == 0 else f"HG{k}.middle."
        unused += [f"HG{k}.upper.", f"HG{k}.low2.", inner]
    what = "DPR's 512 px network"
    return read_released(PortraitLight, path, what, "state_dict", unused=tuple(unused), official=_official)


@kept()
def load_portrait_light() -> PortraitLight:
    """DPR's light, frozen; until it is converted, an AssetError with the command."""
    return load_converted(PortraitLight, assets.locate("dpr"))
