"""StyleGAN2's residual discriminator (arXiv:1912.04958, Sec. 4.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facerecon.errors import ConfigError, ShapeError
from facerecon.stylegan.generator import GeneratorConfig
from facerecon.stylegan.layers import Convolution, EqualizedLinear

__all__ = ["Discriminator", "minibatch_deviation"]


def minibatch_deviation(x: Tensor, group: int = 4) -> Tensor:
    """Append a channel with the mean standard deviation of features over groups of images (arXiv:1710.10196, Sec. 3).

    Groups are consecutive images, so that a batch split between processes at a multiple of ``group`` has the groups
    of the whole batch.

    Args:
        x: (B, C, H, W).
        group: images a group; the greatest divisor of B up to it is used.

    Returns:
        (B, C + 1, H, W).
    """
    batch, _, height, width = x.shape
    group = max(k for k in range(1, min(group, batch) + 1) if batch % k == 0)
    parts = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (-1, group))
    deviation = ((parts - parts.mean(1, keepdim=True)).square().mean(1) + 1e-8).sqrt().mean((1, 2, 3))
    plane = deviation.repeat_interleave(group)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([x, plane.to(x.dtype)], 1)


class _Block(nn.Module):
    """Residual block: (3x3, 3x3 at half the resolution) beside (1x1 at half the resolution)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Convolution(inputs, inputs)
        self.down = Convolution(inputs, outputs, down=True, gain=math.sqrt(0.5))
        self.skip = Convolution(inputs, outputs, kernel=1, down=True, bias=False, activate=False, gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.conv(x)) + self.skip(x)


class Discriminator(nn.Module):
    """D: image in [-1, 1] -> logit; 29,012,513 parameters by default.

    Args:
        size: pixels a side.
        channel_base, channel_max: as the generator's.
        group: of the minibatch deviation.

    Attributes:
        precision: dtype in which the convolutions compute; None: that of the parameters.
        recompute_from: px from which on blocks are computed again in the backward pass (gradient checkpointing).

    Raises:
        ConfigError: a size that is no power of two, or a number below 1.
    """

    def __init__(self, size: int = 1024, channel_base: int = 32768, channel_max: int = 512, group: int = 4) -> None:
        super().__init__()
        if group < 1:
            raise ConfigError(f"discriminator: group must be >= 1; got {group}.")
        config = GeneratorConfig(size=size, channel_base=channel_base, channel_max=channel_max)
        self.size, self.group = size, group
        self.precision: torch.dtype | None = None
        self.recompute_from: int | None = None
        sizes = [2**k for k in range(int(math.log2(size)), 2, -1)]
        last = config.channels(4)
        self.color = Convolution(3, config.channels(size), kernel=1)
        self.blocks = nn.ModuleList(_Block(config.channels(s), config.channels(s // 2)) for s in sizes)
        self.conv = Convolution(last + 1, last)
        self.linear = EqualizedLinear(last * 16, last, activate=True)
        self.logit = EqualizedLinear(last, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, 1).

        Raises:
            ShapeError: images of another size.
        """
        if images.dim() != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ShapeError(f"images must be (B, 3, {self.size}, {self.size}); got {tuple(images.shape)}.")
        x = images.to(self.precision or images.dtype).contiguous(memory_format=torch.channels_last)
        x = self.color(x)
        for index, block in enumerate(self.blocks):
            again = self.recompute_from is not None and self.size // 2**index >= self.recompute_from
            x = checkpoint(block, x, use_reentrant=False) if again and torch.is_grad_enabled() else block(x)
        x = self.conv(minibatch_deviation(x, self.group)).to(self.logit.weight.dtype)
        return self.logit(self.linear(x.flatten(1)))
