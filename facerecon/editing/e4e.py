"""e4e (Tov et al. 2021, arXiv:2102.02766): a photo -> its code in W+ of StyleGAN2-FFHQ (Sec. 3.1.1, step 1).

A residual network with squeeze-and-excitation (the one of ArcFace, arXiv:1801.07698, and arXiv:1709.01507), a feature
pyramid over three of its stages, and one small network a row: the first row is a code of its own, every other one adds
its difference to it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import float_tensors, load_converted, shapes_of
from facerecon.errors import check_shape
from facerecon.modes import kept
from facerecon.perception.regressor import shortcut
from facerecon.storage import safetensors_bytes, write_whole
from facerecon.stylegan.ffhq_generator import read_e4e_file

__all__ = ["E4E", "convert", "load_e4e"]

_STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))
_TAPS = (6, 20, 23)
"""Blocks whose features the pyramid takes: a quarter, an eighth and a sixteenth of the input."""
_COARSE, _MIDDLE = 3, 7
"""Rows below the first read the coarsest features, below the second the middle ones, the others the finest."""


class _Excitation(nn.Module):
    """Squeeze and excitation: features times a weight of each channel, computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer = shortcut(inputs, outputs, stride) if inputs != outputs else None
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            _Excitation(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride] if self.shortcut_layer is None else self.shortcut_layer(x)
        return self.res_layer(x) + shortcut


class _Linear(nn.Module):
    """Equalized: its weights are divided by the square root of their number of inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight.shape[1] ** -0.5, self.bias)


class _Row(nn.Module):
    """Features -> one row: convolutions of stride 2 down to one pixel, then a linear layer."""

    def __init__(self, width: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = _Linear(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x)[:, :, 0, 0])


class E4E(nn.Module):
    """Aligned portraits (B, 3, H, W) in [0, 1], as FFHQ's, -> codes (B, 18, 512) of W+.

    Names of parameters are the released ones; ``latent_avg`` is the mean w of each row.
    """

    size = 256
    rows = 18

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        blocks, inputs = [], 64
        for width, count in _STAGES:
            blocks += [_Block(inputs if i == 0 else width, width, 2 if i == 0 else 1) for i in range(count)]
            inputs = width
        self.body = nn.Sequential(*blocks)
        self.latlayer1 = nn.Conv2d(256, 512, 1)
        self.latlayer2 = nn.Conv2d(128, 512, 1)
        self.styles = nn.ModuleList(_Row(512, 4 if i < _COARSE else 5 if i < _MIDDLE else 6) for i in range(self.rows))
        self.register_buffer("latent_avg", torch.zeros(self.rows, 512))

    def forward(self, image: Tensor) -> Tensor:
        check_shape("image", image, "B 3 H W")
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        x, taps = self.input_layer(2 * image - 1), []
        for i, block in enumerate(self.body):
            x = block(x)
            if i in _TAPS:
                taps.append(x)
        fine, middle, coarse = taps
        middle = self._joined(coarse, self.latlayer1(middle))
        fine = self._joined(middle, self.latlayer2(fine))
        first = self.styles[0](coarse)
        rows = [first]
        for i, style in enumerate(self.styles[1:], 1):
            rows.append(first + style(coarse if i < _COARSE else middle if i < _MIDDLE else fine))
        return torch.stack(rows, 1) + self.latent_avg

    @staticmethod
    def _joined(coarser: Tensor, finer: Tensor) -> Tensor:
        return F.interpolate(coarser, finer.shape[-2:], mode="bilinear", align_corners=True) + finer


def convert(source: Path, target: Path) -> None:
    """The released ``e4e_ffhq_encode.pt`` to weights of :class:`E4E`.

    Raises:
        AssetError: missing, damaged, or another file; one line.
    """
    state, average = read_e4e_file(source)
    encoder = {n.removeprefix("encoder."): t for n, t in state.items() if n.startswith("encoder.")}
    shapes = shapes_of(E4E)
    encoder["latent_avg"] = average.expand(shapes["latent_avg"]) if average.dim() == 1 else average
    weights = float_tensors(encoder, shapes, source, "e4e's encoder")
    write_whole(target, safetensors_bytes(weights, {"source": "encoder4editing"}))


@kept()
def load_e4e() -> E4E:
    """The released encoder, frozen; until it is converted, an AssetError with the command."""
    return load_converted(E4E, assets.locate("e4e"))
