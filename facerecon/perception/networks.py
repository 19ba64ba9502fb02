"""The convolutional networks of the open pack's perception (face-api), as torch modules.

Every network is frozen, takes RGB in [0, 1] (B, 3, S, S) at its own input size, and owns its normalization.
Layer shapes and names follow the published weights manifests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.assets.foreign import check_fit
from facerecon.modes import in_own_modes
from facerecon.perception.graph import read_converted, same_padding

__all__ = ["AgeGenderNet", "DescriptorNet", "DenseFaceNet", "TinyDetectorNet", "load_weights"]

_MEAN_RGB = (122.782, 117.001, 104.298)


@in_own_modes
def load_weights(net: nn.Module, path: str) -> nn.Module:
    """Fill a network from its converted file and freeze it, in torch's channels-last layout.

    Raises:
        AssetError: the file cannot be read or does not hold this network's tensors.
    """
    tensors, _ = read_converted(path)
    check_fit(net, tensors, path, "fetch the asset again")
    net.load_state_dict(tensors)
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)


class Weights(nn.Module):
    """A bag of named tensors: ``Weights(filters=(32, 3, 3, 3), bias=(32,))``."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))


def _conv(inputs: int, outputs: int, size: int = 3) -> Weights:
    return Weights(filters=(outputs, inputs, size, size), bias=(outputs,))


def _separable(inputs: int, outputs: int) -> Weights:
    return Weights(depthwise_filter=(inputs, 1, 3, 3), pointwise_filter=(outputs, inputs, 1, 1), bias=(outputs,))


def _apply_conv(x: Tensor, w: Weights, stride: int = 1, same: bool = True) -> Tensor:
    size = w.filters.shape[2]
    if same and stride == 1 and size % 2:
        return F.conv2d(x, w.filters, w.bias, padding=size // 2)
    if same:
        x = same_padding(x, w.filters.shape[2:], (stride, stride))
    return F.conv2d(x, w.filters, w.bias, stride)


def _apply_separable(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    x = same_padding(x, (3, 3), (stride, stride))
    x = F.conv2d(x, w.depthwise_filter, None, stride, groups=x.shape[1])
    return F.conv2d(x, w.pointwise_filter, w.bias)


def _normalized(image: Tensor, mean: tuple[float, float, float] = _MEAN_RGB) -> Tensor:
    return image - image.new_tensor(mean).view(1, 3, 1, 1) / 255


class DenseFaceNet(nn.Module):
    """Four densely connected blocks and a linear head: 68 landmarks (136 outputs) or 7 expressions.

    Args:
        outputs: 136 or 7.
    """

    size = 112

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        inputs = 3
        for i, width in enumerate(widths):
            block = nn.Module()
            block.conv0 = _conv(3, width) if i == 0 else _separable(inputs, width)
            for k in (1, 2, 3):
                setattr(block, f"conv{k}", _separable(width, width))
            self.add_module(f"dense{i}", block)
            inputs = width
        self.fc = Weights(weights=(256, outputs), bias=(outputs,))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 112, 112) in [0, 1] -> (B, outputs)."""
        x = _normalized(image)
        for i in range(4):
            block = getattr(self, f"dense{i}")
            first = _apply_conv(x, block.conv0, 2) if i == 0 else _apply_separable(x, block.conv0, 2)
            a = first.relu()
            b = _apply_separable(a, block.conv1)
            c = _apply_separable((a + b).relu(), block.conv2)
            d = _apply_separable((a + b + c).relu(), block.conv3)
            x = (a + b + c + d).relu()
        x = F.avg_pool2d(x, 7, 2).flatten(1)
        return x @ self.fc.weights + self.fc.bias


_DESCRIPTOR_BLOCKS = (
    ("conv32_1", 32, 32), ("conv32_2", 32, 32), ("conv32_3", 32, 32),
    ("conv64_down", 32, 64), ("conv64_1", 64, 64), ("conv64_2", 64, 64), ("conv64_3", 64, 64),
    ("conv128_down", 64, 128), ("conv128_1", 128, 128), ("conv128_2", 128, 128),
    ("conv256_down", 128, 256), ("conv256_1", 256, 256), ("conv256_2", 256, 256), ("conv256_down_out", 256, 256),
)  # fmt: skip


class DescriptorNet(nn.Module):
    """Residual network of 29 convolutions: a face at 150 px -> a 128-d descriptor (Euclidean metric)."""

    size = 150
    layers = ("conv32_3", "conv64_3", "conv128_2")

    def __init__(self) -> None:
        super().__init__()
        self.folded = False
        self.conv32_down = self._layer(3, 32, 7)
        for name, inputs, outputs in _DESCRIPTOR_BLOCKS:
            block = nn.Module()
            block.conv1, block.conv2 = self._layer(inputs, outputs, 3), self._layer(outputs, outputs, 3)
            self.add_module(name, block)
        self.fc = nn.Parameter(torch.empty(256, 128))

    @staticmethod
    def _layer(inputs: int, outputs: int, size: int) -> nn.Module:
        layer = nn.Module()
        layer.conv = _conv(inputs, outputs, size)
        layer.scale = Weights(weights=(outputs,), biases=(outputs,))
        return layer

    @torch.no_grad()
    def fold(self) -> DescriptorNet:
        """Multiply the scale layers into the convolutions before them, for good: the same function, a tenth faster."""
        for layer in self.modules():
            if "scale" in layer._modules:
                scale = layer.scale
                layer.conv.filters.mul_(scale.weights.view(-1, 1, 1, 1))
                layer.conv.bias.mul_(scale.weights).add_(scale.biases)
                scale.weights.fill_(1)
                scale.biases.zero_()
        self.folded = True
        return self

    def _convolve(self, layer: nn.Module, x: Tensor, stride: int, same: bool, relu: bool = True) -> Tensor:
        y = _apply_conv(x, layer.conv, stride, same)
        if not self.folded:
            y = y * layer.scale.weights.view(1, -1, 1, 1) + layer.scale.biases.view(1, -1, 1, 1)
        return y.relu() if relu else y

    def features(self, image: Tensor, layers: tuple[str, ...] = layers) -> tuple[list[Tensor], Tensor]:
        """(B, 3, 150, 150) in [0, 1] -> activations after the named blocks, and the (B, 128) descriptor."""
        x = self._convolve(self.conv32_down, _normalized(image), 2, False)
        x = F.max_pool2d(x, 3, 2)
        found = []
        for name, _, outputs in _DESCRIPTOR_BLOCKS:
            block = getattr(self, name)
            down = "down" in name
            y = self._convolve(block.conv1, x, 2 if down else 1, not down)
            y = self._convolve(block.conv2, y, 1, True, False)
            if down:
                short = F.avg_pool2d(x, 2, 2)
                if short.shape[2:] != y.shape[2:]:
                    y = F.pad(y, (0, short.shape[3] - y.shape[3], 0, short.shape[2] - y.shape[2]))
                if short.shape[1] != outputs:
                    short = torch.cat([short, torch.zeros_like(short)], 1)
                x = (short + y).relu()
            else:
                x = (x + y).relu()
            if name in layers:
                found.append(x)
        return found, x.mean((2, 3)) @ self.fc

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 150, 150) in [0, 1] -> (B, 128)."""
        return self.features(image, ())[1]


class AgeGenderNet(nn.Module):
    """Small Xception with two heads: age in years, gender probabilities (male, female)."""

    size = 112

    def __init__(self) -> None:
        super().__init__()
        self.entry_flow = nn.Module()
        self.entry_flow.conv_in = _conv(3, 32)
        self.entry_flow.reduction_block_0 = self._reduction(32, 64)
        self.entry_flow.reduction_block_1 = self._reduction(64, 128)
        self.middle_flow = nn.Module()
        for i in range(2):
            block = nn.Module()
            for k in range(3):
                setattr(block, f"separable_conv{k}", _separable(128, 128))
            self.middle_flow.add_module(f"main_block_{i}", block)
        self.exit_flow = nn.Module()
        self.exit_flow.reduction_block = self._reduction(128, 256)
        self.exit_flow.separable_conv = _separable(256, 512)
        self.fc = nn.Module()
        self.fc.age = Weights(weights=(512, 1), bias=(1,))
        self.fc.gender = Weights(weights=(512, 2), bias=(2,))

    @staticmethod
    def _reduction(inputs: int, outputs: int) -> nn.Module:
        block = nn.Module()
        block.separable_conv0 = _separable(inputs, outputs)
        block.separable_conv1 = _separable(outputs, outputs)
        block.expansion_conv = _conv(inputs, outputs, 1)
        return block

    @staticmethod
    def _reduce(x: Tensor, block: nn.Module, activate: bool = True) -> Tensor:
        y = _apply_separable(x.relu() if activate else x, block.separable_conv0)
        y = _apply_separable(y.relu(), block.separable_conv1)
        y = F.max_pool2d(same_padding(y, (3, 3), (2, 2), -1e30), 3, 2)
        return y + _apply_conv(x, block.expansion_conv, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 112, 112) in [0, 1] -> age (B,) in years, probability of male (B,)."""
        x = _apply_conv(_normalized(image), self.entry_flow.conv_in, 2).relu()
        x = self._reduce(x, self.entry_flow.reduction_block_0, False)
        x = self._reduce(x, self.entry_flow.reduction_block_1)
        for i in range(2):
            y, block = x, getattr(self.middle_flow, f"main_block_{i}")
            for k in range(3):
                y = _apply_separable(y.relu(), getattr(block, f"separable_conv{k}"))
            x = x + y
        x = self._reduce(x, self.exit_flow.reduction_block)
        x = _apply_separable(x, self.exit_flow.separable_conv).relu()
        x = F.avg_pool2d(x, 7, 2).flatten(1)
        age = (x @ self.fc.age.weights + self.fc.age.bias)[:, 0]
        gender = (x @ self.fc.gender.weights + self.fc.gender.bias).softmax(1)
        return age, gender[:, 0]


class TinyDetectorNet(nn.Module):
    """YOLO-like detector with separable convolutions and five anchors, on squares of a multiple of 32 px."""

    anchors = (
        (1.603231, 2.094468), (6.041143, 7.080126), (2.882459, 3.518061), (4.266906, 5.178857), (9.041765, 10.66308),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 128, 256, 512)
        self.conv0 = _conv(3, 16)
        for i in range(1, 6):
            self.add_module(f"conv{i}", _separable(widths[i - 1], widths[i]))
        self.conv8 = _conv(512, 25, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, 5, 5, S / 32, S / 32): per anchor x, y, w, h, score, as raw outputs."""
        x = _normalized(image, (117.001, 114.697, 97.404))
        x = F.leaky_relu(_apply_conv(x, self.conv0, same=False), 0.1)  # the first convolution is 'valid'
        for i in range(1, 6):
            x = F.max_pool2d(same_padding(x, (2, 2), (2, 2), -1e30), 2, 2)  # the pools are 'same'
            w = getattr(self, f"conv{i}")
            x = F.conv2d(F.pad(x, (1, 1, 1, 1)), w.depthwise_filter, None, groups=x.shape[1])
            x = F.leaky_relu(F.conv2d(x, w.pointwise_filter, w.bias), 0.1)
        x = F.max_pool2d(same_padding(x, (2, 2), (1, 1), -1e30), 2, 1)
        x = _apply_conv(x, self.conv8, same=False)
        return x.view(x.shape[0], 5, 5, x.shape[2], x.shape[3])
