"""Layers of StyleGAN2 (arXiv:1912.04958) and of its mapping network, in formulations chosen by measurement.

How they compute:

- **Modulation** scales the input's channels by the style, convolves with weights that all samples share, and scales
  the output's channels by the demodulation factor. It equals Eqs. 1 and 3 (per-sample weights), and needs no grouped
  convolution.
- **Up-sampling** (zero insertion, 3x3 convolution, [1 3 3 1] blur) is a transposed convolution, which does not multiply
  with the zeros, and a depthwise one.
- **Down-sampling** (blur, 3x3 or 1x1 convolution, every second pixel) is a depthwise convolution, and one of stride 2,
  which computes no pixel that is dropped.

Folding the blur into the kernels (one 3x3 convolution over the four phases of a pixel shuffle) takes four times the
products, and measured 2.5 to 3 times the time, forward and backward, on CPUs in bfloat16. The blur's taps are exact in
bfloat16.

Weights are stored as drawn from N(0, 1); what an equalized learning rate divides by is applied at run time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Color", "Convolution", "EqualizedLinear", "StyledConvolution", "blur", "upsample_image"]

SLOPE = 0.2
GAIN = math.sqrt(2.0)
CLAMP = 256.0
"""Half precision: activations are kept within this; bfloat16 has float32's range and needs no clamp."""

_FEW = 32
"""Channels below which a row of pixels is worked on as one, for an inner loop that is long enough."""

_BLUR = (0.125, 0.375, 0.375, 0.125)


def blur(x: Tensor, padding: int) -> Tensor:
    """[1 3 3 1] / 8 along both axes, zeros outside: (B, C, H, W) -> (B, C, H + 2 padding - 3, W + 2 padding - 3)."""
    taps = x.new_tensor(_BLUR)
    channels = x.shape[1]
    kernel = torch.outer(taps, taps).expand(channels, 1, 4, 4).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, kernel, padding=padding, groups=channels)


def upsample_image(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W) by the [1 3 3 1] filter, zeros outside: bilinear, except for the border."""
    larger = F.interpolate(F.pad(image, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return larger[:, :, 2:-2, 2:-2]


class EqualizedLinear(nn.Module):
    """Fully connected layer with equalized learning rate; optionally leaky ReLU times sqrt(2).

    Args:
        inputs, outputs: widths.
        bias: initial value.
        rate: learning-rate multiplier (0.01 in the mapping network).
        activate: leaky ReLU (0.2), times sqrt(2).
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0, activate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.gain, self.rate, self.activate = rate / math.sqrt(inputs), rate, activate

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        x = F.linear(x * self.gain, self.weight, self.bias * self.rate)
        return F.leaky_relu(x, SLOPE) * GAIN if self.activate else x


def _scaled(x: Tensor, factor: Tensor, offset: Tensor | None = None) -> Tensor:
    """``x * factor + offset``, channels last: x (B, C, H, W), factor (B, C), offset (1, C) or (b, H, W, C)."""
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1)
    if channels < _FEW:
        x, factor = x.reshape(batch, height, width * channels), factor.repeat(1, width)[:, None]
        if offset is not None:
            offset = offset.repeat(1, width) if offset.dim() == 2 else offset.reshape(-1, height, width * channels)
    else:
        factor = factor[:, None, None]
    y = x * factor if offset is None else torch.addcmul(offset, x, factor)
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2)


class StyledConvolution(nn.Module):
    """Modulated 3x3 convolution with demodulation, noise, bias and leaky ReLU (Sec. 2.2, Eqs. 1 to 3).

    Args:
        inputs, outputs: channels.
        w_dim: width of w.
        size: pixels a side of the output.
        up: doubles the resolution.

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
        self._kept: tuple | None = None

    def _kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The convolution's kernel in a precision, and its squares (I, O) summed over it, for demodulation; kept for a
        frozen network only, as a fused optimizer changes weights unseen (no new ``_version``)."""
        learns = self.weight.requires_grad
        state = (self.weight._version, self.weight.data_ptr(), dtype)
        if not learns and self._kept is not None:
            weight, known, kernel, energy = self._kept
            if weight is self.weight and known == state:
                return kernel, energy
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        energy = weight.square().sum((2, 3)).T
        if self.up:  # 4: of four samples of the transposed convolution's output, three come from inserted zeros
            weight = 4 * weight.transpose(0, 1)
        kernel = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        if not learns:
            self._kept = (self.weight, state, kernel, energy)
        return kernel, energy

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, I, H, W) of the precision to compute in, (B, w_dim), (b, 1, S, S) -> (B, O, S, S)."""
        style = self.style(w)
        if x.dtype == torch.float16:  # styles up to 1; demodulation takes the factor out again
            style = style / style.detach().abs().amax(1, keepdim=True).clamp(min=1e-8)
        kernel, energy = self._kernel(x.dtype)
        demodulation = (style.square() @ energy + 1e-8).rsqrt()
        x = _scaled(x, style.to(x.dtype))
        y = blur(F.conv_transpose2d(x, kernel, stride=2), 1) if self.up else F.conv2d(x, kernel, padding=1)
        # leaky ReLU is homogeneous: its gain goes into the factors before it
        offset = (GAIN * self.bias).to(x.dtype)[None]
        if noise is not None:
            strength = (GAIN * self.noise_strength).to(x.dtype).expand_as(offset)
            offset = torch.addmm(offset, noise.to(x.dtype).reshape(-1, 1), strength)
            offset = offset.view(len(noise), *noise.shape[2:], -1)
        y = _scaled(y, (GAIN * demodulation).to(x.dtype), offset)
        y = F.leaky_relu(y, SLOPE)
        return y.clamp(-CLAMP, CLAMP) if x.dtype == torch.float16 else y


class Color(nn.Module):
    """Modulated 1x1 convolution to the image's channels, without demodulation ("tRGB" of the skip architecture)."""

    def __init__(self, inputs: int, w_dim: int) -> None:
        super().__init__()
        self.style = EqualizedLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

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
        inputs, outputs: channels.
        kernel: 1 or 3.
        down: blur and every second pixel.
        bias, activate: a branch without both is linear.
        gain: factor on the result.
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
        """(B, I, H, W) -> (B, O, H, W), or half of H and W with ``down``."""
        edge = self.weight.shape[-1] // 2
        bias = None if self.bias is None else (self.bias * self.gain).to(x.dtype)
        kernel = (self.weight * (self.scale * self.gain)).to(x.dtype).contiguous(memory_format=torch.channels_last)
        if self.down:
            y = F.conv2d(blur(x, 1 + edge), kernel, bias, stride=2)
        else:
            y = F.conv2d(x, kernel, bias, padding=edge)
        if self.activate:
            y = F.leaky_relu(y, SLOPE)
        return y.clamp(-CLAMP * self.gain, CLAMP * self.gain) if x.dtype == torch.float16 else y
