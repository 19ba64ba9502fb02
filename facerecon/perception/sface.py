"""SFace (arXiv:2205.12010): an identity network of the ArcFace family, with ArcFace's alignment at 112 px.

The packaged file (``face_recognition_sface_2021dec``, OpenCV Zoo) holds MobileNet's layers (arXiv:1704.04861, Table 1)
with a first stride of 1 and PReLUs, its weights as int8 in blocks, its activations as float32.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.assets.foreign import check_fit
from facerecon.errors import AssetError, check_shape
from facerecon.modes import without_numbers
from facerecon.perception.onnx import Node, OnnxGraph, read_onnx

__all__ = ["SFaceNet", "read_official_sface"]

_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip
"""Channels after, and stride of, each pair of a depthwise and a pointwise convolution."""


class _PReLU(torch.autograd.Function):
    """PReLU with a frozen slope and a gradient of whole-array operations: torch's own goes number by number on a CPU
    and would take as long as all convolutions.
    """

    @staticmethod
    def forward(ctx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        slope = slope.view(1, -1, 1, 1)
        positive = torch.ops.aten.threshold_backward(gradient, x, 0)
        return (gradient * slope).addcmul_(positive, 1 - slope), None


class _Layer(nn.Module):
    """A convolution with bias and a PReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)
        self.slope = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return _PReLU.apply(self._convolved(x), self.slope)

    def _convolved(self, x: Tensor) -> Tensor:
        if self.conv.kernel_size != (1, 1):
            return self.conv(x)
        # a matrix product in channels-last layout, which torch takes three times as long for where it is a convolution
        product = F.linear(x.permute(0, 2, 3, 1), self.conv.weight.flatten(1), self.conv.bias)
        return product.permute(0, 3, 1, 2)


class SFaceNet(nn.Module):
    """(B, 3, 112, 112) in [0, 1] -> (B, 128), not normalized; batch normalization is in the weights."""

    size = 112

    def __init__(self) -> None:
        super().__init__()
        layers, inputs = [_Layer(3, 32, 3)], 32
        for outputs, stride in _BLOCKS:
            layers += [_Layer(inputs, inputs, 3, stride, inputs), _Layer(inputs, outputs, 1)]
            inputs = outputs
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(inputs * 7 * 7, 128)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Feature maps before the second, third and fourth halving, (B, 128, 56, 56) to (B, 512, 14, 14), and the
        embedding."""
        check_shape("image", image, f"B 3 {self.size} {self.size}")
        x, maps = (image * 255 - 127.5) / 128, []
        for layer in self.layers:
            if layer.conv.stride == (2, 2):
                maps.append(x)
            x = layer(x)
        return maps[1:], self.fc(x.flatten(1))


def _folded(graph: OnnxGraph, norm: Node) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of a batch normalization."""
    weight, bias, mean, variance = (graph.weight(name).astype(np.float64) for name in norm.inputs[1:])
    scale = weight / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
    return scale, bias - mean * scale


def read_official_sface(path: str | Path) -> dict[str, Tensor]:
    """Weights of :class:`SFaceNet` from the packaged ONNX file: unquantized, batch normalization folded into them.

    Raises:
        AssetError: missing, damaged, or another network; one line.
    """
    graph = read_onnx(path)
    nodes = graph.layers()
    with without_numbers():
        net = SFaceNet()
    ops = ["Sub", "Mul", *["Conv", "BatchNormalization", "PRelu"] * len(net.layers), "BatchNormalization", "Dropout"]
    chained = all(a.outputs[:1] == b.inputs[:1] for a, b in itertools.pairwise(nodes))
    if [node.op for node in nodes] != [*ops, "Flatten", "Gemm", "BatchNormalization"] or not chained:
        raise AssetError(f"{path} is not SFace: its layers differ; fetch the package again.")
    try:
        found = _weights(graph, nodes, net)
    except (LookupError, ValueError, TypeError) as error:
        raise AssetError(f"{path} is not SFace ({error}); fetch the package again.") from None
    check_fit(net, found, path, "fetch the package again")
    return found


def _weights(graph: OnnxGraph, nodes: list[Node], net: SFaceNet) -> dict[str, Tensor]:
    if [graph.weight(node.inputs[1]).tolist() for node in nodes[:2]] != [[127.5], [1 / 128]]:
        raise ValueError("its input has another range")
    found = {}
    for i, layer in enumerate(net.layers):
        conv, norm, prelu = nodes[2 + 3 * i : 5 + 3 * i]
        ours, theirs = layer.conv, conv.attributes
        layout = [*ours.stride, *ours.padding * 2, ours.groups]
        if [*theirs["strides"], *theirs["pads"], theirs["group"]] != layout or len(conv.inputs) != 2:
            raise ValueError(f"convolution {i + 1} has another layout")
        scale, shift = _folded(graph, norm)
        found[f"layers.{i}.conv.weight"] = graph.weight(conv.inputs[1]) * scale[:, None, None, None]
        found[f"layers.{i}.conv.bias"] = shift
        found[f"layers.{i}.slope"] = graph.weight(prelu.inputs[1]).reshape(-1)
    before, *_, gemm, after = nodes[-5:]
    if not gemm.attributes.get("transB") or any(gemm.attributes.get(k, 1) != 1 for k in ("alpha", "beta")):
        raise ValueError("its last layer has another layout")
    (inner, offset), (outer, shift) = _folded(graph, before), _folded(graph, after)
    weight, bias = (graph.weight(name).astype(np.float64) for name in gemm.inputs[1:])
    weight = weight.reshape(len(outer), len(inner), -1)
    found["fc.bias"] = (bias + np.einsum("ock,c->o", weight, offset)) * outer + shift
    found["fc.weight"] = (weight * inner[:, None] * outer[:, None, None]).reshape(len(outer), -1)
    return {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in found.items()}
