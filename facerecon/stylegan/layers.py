"""Layers of StyleGAN2 (arXiv:1912.04958) and of its mapping network, in formulations chosen by measurement.

Three of them differ from the textbook, not in what they compute but in how:

- **Modulation** scales the input's channels by the style, convolves with weights that all samples share, and scales
  the output's channels by the demodulation factor. It equals Eqs. 1 and 3 (per-sample weights), and needs no grouped
  convolution.
- **Up-sampling** (zero insertion, 3x3 convolution, [1 3 3 1] blur) is linear and shift-invariant by output phase: its
  four phases are four 3x3 kernels at the low resolution, and a pixel shuffle puts them together.
- **Down-sampling** (blur, then every second 3x3 convolution) is one 3x3 convolution over the four input phases.

Weights are stored as drawn from N(0, 1); what an equalized learning rate divides by is applied at run time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Color",
    "Convolution",
    "EqualizedLinear",
    "StyledConvolution",
    "fold_down",
    "fold_down_pointwise",
    "fold_up",
    "upsample_image",
]

SLOPE = 0.2
GAIN = math.sqrt(2.0)
CLAMP = 256.0
"""Half precision: activations are kept within this; bfloat16 has float32's range and needs no clamp."""

_BLUR = (0.125, 0.375, 0.375, 0.125)


def _up_taps() -> Tensor:
    """(2, 3, 3): [phase a, tap at low-resolution offset -1..1, tap k of the 3-tap kernel] of one axis.

    ``y[m] = sum_j f[j] t[m + j - 1]``, ``t[2 i + k] += w[k] x[i]``, f = 2 [1 3 3 1] / 8; with m = 2 n + a and i = n + d
    the blur's tap is j = 2 d + k - a + 1.
    """
    taps = torch.zeros(2, 3, 3)
    for a in range(2):
        for d in (-1, 0, 1):
            for k in range(3):
                j = 2 * d + k - a + 1
                if 0 <= j < 4:
                    taps[a, d + 1, k] = 2 * _BLUR[j]
    return taps


def _down_taps() -> Tensor:
    """(2, 3, 3): [phase a of the input, tap at low-resolution offset -1..1, tap k of the 3-tap kernel] of one axis.

    ``y[m] = sum_k w[k] b[2 m + k]``, ``b[p] = sum_j f[j] x[p + j - 2]``; x at 2 (m + d) + a has j + k = 2 d + a + 2.
    """
    taps = torch.zeros(2, 3, 3)
    for a in range(2):
        for d in (-1, 0, 1):
            for k in range(3):
                j = 2 * d + a + 2 - k
                if 0 <= j < 4:
                    taps[a, d + 1, k] = _BLUR[j]
    return taps


def _down_pointwise_taps() -> Tensor:
    """(2, 3): [phase a, tap at offset -1..1] of ``y[m] = sum_j f[j] x[2 m + j - 1]``."""
    taps = torch.zeros(2, 3)
    for a in range(2):
        for d in (-1, 0, 1):
            j = 2 * d + a + 1
            if 0 <= j < 4:
                taps[a, d + 1] = _BLUR[j]
    return taps


def fold_up(weight: Tensor) -> Tensor:
    """Zero insertion, true convolution with ``weight``, blur: as one kernel before ``pixel_shuffle(2)``.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        (4 O, I, 3, 3).
    """
    taps = _up_taps().to(weight)
    folded = torch.einsum("ayp,bxq,oipq->oabiyx", taps, taps, weight)
    return folded.reshape(weight.shape[0] * 4, weight.shape[1], 3, 3)


def fold_down(weight: Tensor) -> Tensor:
    """Blur, then ``weight`` at every second pixel: as one kernel after ``pixel_unshuffle(2)``.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        (O, 4 I, 3, 3).
    """
    taps = _down_taps().to(weight)
    folded = torch.einsum("ayp,bxq,oipq->oiabyx", taps, taps, weight)
    return folded.reshape(weight.shape[0], weight.shape[1] * 4, 3, 3)


def fold_down_pointwise(weight: Tensor) -> Tensor:
    """Blur, every second pixel, then a 1x1 ``weight`` (O, I, 1, 1): (O, 4 I, 3, 3) after ``pixel_unshuffle(2)``."""
    taps = _down_pointwise_taps().to(weight)
    folded = torch.einsum("ay,bx,oi->oiabyx", taps, taps, weight[:, :, 0, 0])
    return folded.reshape(weight.shape[0], weight.shape[1] * 4, 3, 3)


def upsample_image(image: Tensor) -> Tensor:
    """Twice the size by the [1 3 3 1] filter, zeros outside: bilinear, but for the outermost pixels.

    Args:
        image: (B, C, H, W).

    Returns:
        (B, C, 2 H, 2 W).
    """
    larger = F.interpolate(F.pad(image, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return larger[:, :, 2:-2, 2:-2]


class EqualizedLinear(nn.Module):
    """Fully connected layer with equalized learning rate; optionally leaky ReLU times sqrt(2).

    Args:
        inputs, outputs: widths. bias: initial value. rate: learning-rate multiplier (0.01 in the mapping network).
        activate: leaky ReLU (0.2), times sqrt(2).
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0, activate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.gain, self.rate, self.activate = rate / math.sqrt(inputs), rate, activate

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        x = F.linear(x, self.weight * self.gain, self.bias * self.rate)
        return F.leaky_relu(x, SLOPE) * GAIN if self.activate else x


def _modulation(style: Tensor, half: bool) -> Tensor:
    """Styles, divided by their largest one in half precision, where demodulation takes the factor out again."""
    if half:
        style = style / style.detach().abs().amax(1, keepdim=True).clamp(min=1e-8)
    return style


class StyledConvolution(nn.Module):
    """Modulated 3x3 convolution with demodulation, noise, bias and leaky ReLU (Sec. 2.2, Eqs. 1 to 3).

    Args:
        inputs, outputs: channels. w_dim: width of w. size: pixels a side of the output. up: doubles the resolution.

    The kernels of an ``up`` layer are those of a true convolution (a transposed one scatters them as they are), all
    others those of a correlation, as in the official checkpoints.
    """

    def __init__(self, inputs: int, outputs: int, w_dim: int, size: int, up: bool = False) -> None:
        super().__init__()
        self.style = EqualizedLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise", torch.randn(size, size))
        self.size, self.up = size, up

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, I, H, W) of the precision to compute in, (B, w_dim), (b, 1, S, S) -> (B, O, S, S)."""
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        style = _modulation(self.style(w), x.dtype == torch.float16)
        energy = weight.square().sum((2, 3))
        demodulation = (style.square() @ energy.T + 1e-8).rsqrt()
        kernel = (fold_up(weight) if self.up else weight).to(x.dtype)
        y = F.conv2d(
            x * style.to(x.dtype)[:, :, None, None], kernel.contiguous(memory_format=torch.channels_last), padding=1
        )
        if self.up:
            y = F.pixel_shuffle(y, 2)
        # leaky ReLU is homogeneous: its gain goes into the factors before it
        offset = (GAIN * self.bias).to(x.dtype)[None, :, None, None]
        if noise is not None:
            offset = offset + (GAIN * self.noise_strength * noise).to(x.dtype)
        y = torch.addcmul(offset, y, (GAIN * demodulation).to(x.dtype)[:, :, None, None])
        y = F.leaky_relu(y, SLOPE)
        return y.clamp(-CLAMP, CLAMP) if x.dtype == torch.float16 else y


class Color(nn.Module):
    """Modulated 1x1 convolution to the image's channels, without demodulation ("tRGB" of the skip architecture)."""

    def __init__(self, inputs: int, w_dim: int, channels: int = 3) -> None:
        super().__init__()
        self.style = EqualizedLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, I, S, S), (B, w_dim) -> (B, 3, S, S) float32 (float64 for float64)."""
        style = self.style(w) * (1 / math.sqrt(self.weight.shape[1]))
        weight = style[:, None, :] * self.weight[None, :, :, 0, 0]  # (B, 3, I): per-sample, but tiny
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        y = torch.bmm(rows, weight.transpose(1, 2).to(x.dtype)).to(self.bias.dtype)
        y = y.view(batch, height, width, -1).permute(0, 3, 1, 2) + self.bias[None, :, None, None]
        return y.clamp(-CLAMP, CLAMP) if x.dtype == torch.float16 else y


class Convolution(nn.Module):
    """Convolution of the discriminator: equalized, optionally halving the resolution, leaky ReLU.

    Args:
        inputs, outputs: channels. kernel: 1 or 3. down: blur and every second pixel.
        bias, activate: a branch without both is linear. gain: factor on the result.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        down: bool = False,
        bias: bool = True,
        activate: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.down, self.activate = 1 / math.sqrt(inputs * kernel * kernel), down, activate
        self.gain = gain * (GAIN if activate else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W), or half of H and W. With ``down``, x is ``pixel_unshuffle(input, 2)``."""
        weight = self.weight * (self.scale * self.gain)
        if self.down:
            weight = fold_down(weight) if weight.shape[-1] == 3 else fold_down_pointwise(weight)
        bias = None if self.bias is None else (self.bias * self.gain).to(x.dtype)
        kernel = weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, kernel, bias, padding=weight.shape[-1] // 2)
        if self.activate:
            y = F.leaky_relu(y, SLOPE)
        return y.clamp(-CLAMP * self.gain, CLAMP * self.gain) if x.dtype == torch.float16 else y
