"""A synthesis network whose weights no longer change, as fast as it gets: for fits, which differentiate in codes only.

What depends on weights alone is computed once. Style and demodulation go into the kernel of each sample instead of into
its feature maps, which saves four passes over every map, forward and backward; their gradients are sums over products
of maps that are there anyway:

* out = lrelu(conv(x, K) + b), K = d_o W s_i. With g the gradient of the pre-activation and h = conv^T(g, K) that of x,
  dL/ds_i = sum x_i h_i / s_i, and dL/dd_o = sum conv(x, K)_o g_o / d_o.
* lrelu is homogeneous, so ``sum (conv + b) g = sum out dL/dout``: the convolution's result need not be kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.stylegan.generator import SynthesisNetwork
from facerecon.stylegan.layers import CLAMP, GAIN, SLOPE, Color, StyledConvolution, blur, upsample_image

__all__ = ["FrozenSynthesis"]

SMALL = 1e-7
"""Least absolute value of a style."""


class _Layer(torch.autograd.Function):
    """x (1, I, H, W), style (I,), demodulation (O,) -> (1, O, S, S); see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, style: Tensor, demodulation: Tensor, layer: _FrozenLayer) -> Tensor:
        kernel = (layer.kernel * (style if not layer.up else style[:, None, None, None])).mul_(
            demodulation[:, None, None, None] if not layer.up else demodulation
        )
        # kept as (O, 3, 3, I), or (I, 3, 3, O) of a transposed convolution: channels last
        kernel = kernel.to(x.dtype).permute(0, 3, 1, 2)
        if layer.up:
            out = blur(F.conv_transpose2d(x, kernel, stride=2), 1).add_(layer.bias)
        else:
            out = F.conv2d(x, kernel, layer.flat_bias, padding=1)
        if layer.noise is not None:
            out.add_(layer.noise)
        out = F.leaky_relu_(out, SLOPE)
        if x.dtype == torch.float16:
            out.clamp_(-CLAMP, CLAMP)
        ctx.save_for_backward(x, style, demodulation, kernel, out)
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, style, demodulation, kernel, out = ctx.saved_tensors
        layer: _FrozenLayer = ctx.layer
        inner = torch.ops.aten.leaky_relu_backward(gradient, out, SLOPE, True)
        # sum conv(x, K) g = sum out dL/dout - sum b g
        along = _dots(out, gradient) - layer.flat_bias.float() * _sums(inner)
        if layer.noise is not None:
            flat = inner.permute(0, 2, 3, 1).reshape(-1, inner.shape[1])
            along = along - (layer.noise.reshape(1, -1) @ flat)[0].float()
        if layer.up:
            inner = blur(inner, 2)  # the transpose of blur(x, 1), whose filter is symmetric
            back = F.conv2d(inner, kernel, stride=2)
        else:
            back = torch.ops.aten.convolution_backward(
                inner, x, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        return back, _dots(x, back) / style, along / demodulation, None


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """(C,) float32: sums over pixels of the products of two maps (1, C, H, W)."""
    return _sums(a * b)


def _sums(a: Tensor) -> Tensor:
    """(C,) float32: sums over pixels of a map (1, C, H, W), channels last. In one step it took 20 times as long."""
    return a.permute(0, 2, 3, 1)[0].sum(1).sum(0, dtype=torch.float32)


class _FrozenLayer:
    """A :class:`~facerecon.stylegan.layers.StyledConvolution` with its constants in the precision to compute in."""

    def __init__(self, layer: StyledConvolution, dtype: torch.dtype) -> None:
        weight = layer.weight.detach().float() * (1 / math.sqrt(layer.weight[0].numel()))
        self.up, self.dtype = layer.up, dtype
        self.energy = weight.square().sum((2, 3)).T.contiguous()  # (I, O)
        kernel = (4 * weight.transpose(0, 1) if layer.up else weight) * GAIN
        self.kernel = kernel.permute(0, 2, 3, 1).contiguous()
        self.style_weight = layer.style.weight.detach() * layer.style.gain
        self.style_bias = layer.style.bias.detach() * layer.style.rate
        self.flat_bias = (GAIN * layer.bias.detach()).to(dtype)
        self.bias = self.flat_bias[None, :, None, None]
        strength = layer.noise_strength.detach()
        self.noise = (GAIN * strength * layer.noise).to(dtype)[None, None] if strength.item() else None

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        style = F.linear(w, self.style_weight, self.style_bias)  # (1, I)
        apart = torch.where(style.abs() < SMALL, torch.copysign(torch.full_like(style, SMALL), style), style)
        style = style + (apart - style).detach()  # the gradient is divided by it
        demodulation = (style.square() @ self.energy + 1e-8).rsqrt()
        return _Layer.apply(x, style[0], demodulation[0], self)


class _FrozenColor:
    """A :class:`~facerecon.stylegan.layers.Color` with its constants."""

    def __init__(self, layer: Color) -> None:
        gain = 1 / math.sqrt(layer.weight.shape[1])
        self.weight = layer.weight.detach()[:, :, 0, 0] * gain  # (3, I)
        self.style_weight = layer.style.weight.detach() * layer.style.gain
        self.style_bias = layer.style.bias.detach() * layer.style.rate
        self.bias = layer.bias.detach()

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        weight = F.linear(w, self.style_weight, self.style_bias) * self.weight
        _, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(height * width, channels)
        y = F.linear(rows, weight.to(x.dtype)).float() + self.bias
        return y.view(1, height, width, -1).permute(0, 3, 1, 2)


def _channels_last(constant: Tensor, dtype: torch.dtype) -> Tensor:
    return constant.detach().to(dtype)[None].contiguous(memory_format=torch.channels_last)


class FrozenSynthesis:
    """:class:`~facerecon.stylegan.generator.SynthesisNetwork` with constant noise; gradients reach the codes only.

    Args:
        network: whose weights, as they are now, are used.
        dtype: to compute in.
    """

    def __init__(self, network: SynthesisNetwork, dtype: torch.dtype) -> None:
        self.rows, self.size, self.dtype = network.rows, network.size, dtype
        self.constant = _channels_last(network.constant, dtype)
        self.blocks = [
            (
                None if block.up is None else _FrozenLayer(block.up, dtype),
                None if block.constant is None else _channels_last(block.constant, dtype),
                _FrozenLayer(block.conv, dtype),
                _FrozenColor(block.color),
            )
            for block in network.blocks
        ]
        self.underlay = network.underlay

    def __call__(self, ws: Tensor, size: int | None = None) -> Tensor:
        """(B, rows, w_dim) -> (B, 3, size, size) in about [-1, 1], float32; each sample by itself."""
        if len(ws) != 1:
            return torch.cat([self(w[None], size) for w in ws])
        size = size or self.size
        x, image, row = self.constant, None, 0
        for up, constant, conv, color in self.blocks[: int(math.log2(size)) - 1]:
            if up is not None:
                x = up(x, ws[:, row])
                row += 1
            if constant is not None:
                x = x + constant
            x = conv(x, ws[:, row])
            tint = color(x, ws[:, row + 1])
            image = tint if image is None else upsample_image(image) + tint
            row += 1
        below = self.underlay(ws, size)
        return image if below is None else image + below
