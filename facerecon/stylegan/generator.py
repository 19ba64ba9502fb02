"""StyleGAN2's generator (arXiv:1912.04958): mapping network and skip synthesis network (Sec. 4.1 of FFHQ-UV)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facerecon.errors import ConfigError, ShapeError, nearest_name
from facerecon.settings import build_settings
from facerecon.stylegan.layers import Color, EqualizedLinear, StyledConvolution, upsample_image

__all__ = ["NOISE", "Generator", "GeneratorConfig", "MappingNetwork", "Projection", "SynthesisNetwork"]

NOISE = ("const", "random", "none")
"""Per-pixel noise: the layer's stored one, a new one, or none."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator; the defaults are config F, 30,370,060 parameters.

    Args:
        size: pixels a side, a power of two from 8 on.
        z_dim, w_dim: widths of the latents.
        mapping_layers: of the mapping network; with 0 of them w is z, brought to the sphere of radius sqrt(z_dim).
        channel_base, channel_max: a resolution r has ``min(channel_base // r, channel_max)`` channels.
        mapped_dim: width of the mapping network's output where it is projected to ``w_dim`` numbers; 0: no projection.
        constant_size: learned constants enter at all resolutions up to this one, not at 4 px alone. Maps lie texel on
            texel, so that what is always in one place need not be told from blurred 4 px. 4 is plain StyleGAN2.

    Raises:
        ConfigError: a size that is no power of two, or a number below 1 or above any that works.
    """

    size: int = 1024
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    mapped_dim: int = 0
    constant_size: int = 4

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("mapped_dim", "mapping_layers") else 1
            most = 64 if field.name == "mapping_layers" else 1 << 20  # a file may hold anything
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"generator: {field.name} must be an integer, {least} to {most}; got {value!r}.")
        if not self.mapping_layers and self.z_dim != (self.mapped_dim or self.w_dim):
            raise ConfigError(f"generator: without mapping layers z_dim must be w_dim; got {self.z_dim}.")
        if self.constant_size not in [4 * 2**k for k in range(9)] or self.constant_size > self.size:
            raise ConfigError(f"generator: constant_size must be a power of two, 4 to size; got {self.constant_size}.")
        if self.size < 8 or self.size & (self.size - 1):
            raise ConfigError(f"generator: size must be a power of two from 8 on; got {self.size}.")

    @property
    def rows(self) -> int:
        """Style inputs that a W+ code has a row for: 18 at 1024 px."""
        return 2 * int(math.log2(self.size)) - 2

    def channels(self, resolution: int) -> int:
        """Channels at a resolution."""
        return max(1, min(self.channel_base // resolution, self.channel_max))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> GeneratorConfig:
        """From plain data, as a file's metadata holds it.

        Raises:
            ConfigError: an unknown key (the nearest is named), or a value out of range.
        """
        return build_settings(cls, values, "generator")


class MappingNetwork(nn.Module):
    """z -> w: z at unit second moment, then fully connected layers with leaky ReLU.

    Args:
        z_dim, w_dim: widths.
        layers: how many.
    """

    def __init__(self, z_dim: int = 512, w_dim: int = 512, layers: int = 8) -> None:
        super().__init__()
        widths = [z_dim] + [w_dim] * layers
        self.layers = nn.ModuleList(
            EqualizedLinear(a, b, rate=0.01, activate=True) for a, b in itertools.pairwise(widths)
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_dim) -> (B, w_dim)."""
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = layer(x)
        return x


class Projection(nn.Module):
    """Part of a W space: ``w = directions (mapped - center)``, linear and fixed.

    A decoder that is trained on few maps needs the directions that the maps depend on, not all 512: it would learn
    the maps by heart in the others (see :func:`facerecon.stylegan.latent_space.predictive_directions`).

    Args:
        mapped_dim, w_dim: widths before and after.
    """

    def __init__(self, mapped_dim: int, w_dim: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(mapped_dim))
        self.register_buffer("directions", torch.zeros(w_dim, mapped_dim))

    def forward(self, mapped: Tensor) -> Tensor:
        """(B, mapped_dim) -> (B, w_dim)."""
        return (mapped - self.center) @ self.directions.T


class _Block(nn.Module):
    """One resolution: up-sampling convolution (but at 4 px), convolution, color."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, size: int, constant: bool) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(outputs, size, size)) if constant and size > 4 else None
        self.up = StyledConvolution(inputs, outputs, w_dim, size, up=True) if size > 4 else None
        self.conv = StyledConvolution(outputs, outputs, w_dim, size)
        self.color = Color(outputs, w_dim)


class SynthesisNetwork(nn.Module):
    """W+ code -> image, by the skip architecture: every resolution adds its color to the enlarged image so far.

    Args:
        config: sizes.

    Attributes:
        precision: dtype in which the blocks compute; parameters and the image stay float32.
        recompute_from: px from which on blocks are computed again in the backward pass instead of kept (gradient
            checkpointing), or None: 1.6 GB instead of 2.1 for a step of 8 at 512 px, for half as much time again.
        base: (3, size, size) that the synthesized image is added to, or None for plain StyleGAN2. Maps lie texel on
            texel: started from their mean, a small network need not learn it.
        linear: (w_dim, 3, s, s), what a code adds linearly to the base, or None. What a regression finds in few maps
            (the skin's color, above all) a network would learn by heart. Each resolution adds its own band of it, with
            the row of its color, so that the rows of a W+ code are free in it, too.
        gain: (1, size, size), factor of the linear part in each texel, or None: nothing where maps are all alike.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.size, self.rows, self.w_dim = config.size, config.rows, config.w_dim
        self.precision: torch.dtype | None = None
        self.recompute_from: int | None = None
        self.register_buffer("base", None)
        self.register_buffer("linear", None)
        self.register_buffer("gain", None)
        self._pyramid: tuple[Tensor, int, list[Tensor]] | None = None
        self.constant = nn.Parameter(torch.randn(config.channels(4), 4, 4))
        sizes = [2**k for k in range(2, int(math.log2(config.size)) + 1)]
        self.blocks = nn.ModuleList(
            _Block(config.channels(max(s // 2, 4)), config.channels(s), config.w_dim, s, s <= config.constant_size)
            for s in sizes
        )

    def forward(self, ws: Tensor, noise: str | Sequence[Tensor] = "const", size: int | None = None) -> Tensor:
        """Synthesize images: (B, 3, size, size) in about [-1, 1], float32 (float64 for a network of float64).

        Args:
            ws: (B, rows, w_dim). Rows of resolutions above ``size`` are not looked at and may be left out.
            noise: one of :data:`NOISE`; ``"random"`` draws from torch's generator of the device. Or the noise itself,
                (B, 1, s, s) for each layer in their order.
            size: a power of two up to the network's; stops there, at the coarser image the skip architecture has.

        Raises:
            ShapeError: ``ws`` of another shape.
            ConfigError: ``noise`` or ``size`` that do not exist.
        """
        size = self.size if size is None else size
        if size not in [4 * 2**i for i in range(len(self.blocks))]:
            raise ConfigError(f"size must be a power of two from 4 to {self.size}; got {size}.")
        if isinstance(noise, str) and noise not in NOISE:
            raise ConfigError(nearest_name(noise, NOISE, "kind of noise"))
        count = int(math.log2(size)) - 1
        if ws.dim() != 3 or not 2 * count <= ws.shape[1] <= self.rows or ws.shape[2] != self.w_dim:
            raise ShapeError(f"ws must be (B, {self.rows}, {self.w_dim}); got {tuple(ws.shape)}.")
        batch, dtype = ws.shape[0], self.precision or self.constant.dtype
        x = self.constant.to(dtype).expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image = None
        for index, block in enumerate(self.blocks[:count]):
            if torch.is_grad_enabled() and self.recompute_from is not None and 4 * 2**index >= self.recompute_from:
                x, color = checkpoint(self._step, x, block, index, ws, noise, use_reentrant=False)
            else:
                x, color = self._step(x, block, index, ws, noise)
            image = color if image is None else upsample_image(image) + color
        below = self.underlay(ws, size)
        return image if below is None else image + below

    def _step(
        self, x: Tensor, block: _Block, index: int, ws: Tensor, noise: str | Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """One resolution: features, and what they add to the image. Its last row is the next one's first."""
        batch, row = ws.shape[0], max(0, 2 * index - 1)
        if block.up is not None:
            x = block.up(x, ws[:, row], self._noise(block.up, noise, batch, row))
            row += 1
        if block.constant is not None:
            x = x + block.constant.to(x.dtype)[None].contiguous(memory_format=torch.channels_last)
        x = block.conv(x, ws[:, row], self._noise(block.conv, noise, batch, row))
        return x, block.color(x, ws[:, row + 1])

    def underlay(self, ws: Tensor, size: int) -> Tensor | None:
        """What the synthesized image is added to, (B or 1, 3, size, size): base and linear part, or None."""
        if self.base is None:
            return None
        below = _resized(self.base[None], size)
        if self.linear is None:
            return below
        linear = None
        for block, band in enumerate(self._bands()):
            side = band.shape[-1]
            if side > size:
                break
            added = (ws[:, 2 * block + 1] @ band.flatten(1)).view(-1, 3, side, side)
            linear = added if linear is None else _resized(linear, side) + added
        linear = _resized(linear, size)
        return below + (linear if self.gain is None else linear * _resized(self.gain[None], size))

    def _bands(self) -> list[Tensor]:
        """The linear part as a Laplacian pyramid, (w_dim, 3, r, r) for r = 4, 8, ..., s; kept until it changes."""
        linear, version = self.linear, self.linear._version
        if linear.shape[-1] not in [4 * 2**i for i in range(len(self.blocks))]:
            raise ShapeError(f"the linear part must be 4, 8, ... or {self.size} px a side; got {linear.shape[-1]}.")
        if self._pyramid is None or self._pyramid[0] is not linear or self._pyramid[1] != version:
            levels = [linear]
            while levels[-1].shape[-1] > 4:
                levels.append(F.avg_pool2d(levels[-1], 2))
            levels.reverse()
            bands = [levels[0]]
            bands += [fine - _resized(coarse, fine.shape[-1]) for coarse, fine in itertools.pairwise(levels)]
            self._pyramid = linear, version, bands
        return self._pyramid[2]

    @staticmethod
    def _noise(layer: StyledConvolution, kind: str | Sequence[Tensor], batch: int, index: int) -> Tensor | None:
        if not isinstance(kind, str):
            return kind[index]
        if kind == "none":
            return None
        if kind == "random":
            return torch.randn(batch, 1, layer.size, layer.size, device=layer.noise.device, dtype=layer.noise.dtype)
        return layer.noise[None, None]


def _resized(images: Tensor, size: int) -> Tensor:
    """(B, C, s, s) -> (B, C, size, size), averaged or bilinear."""
    if images.shape[-1] > size:
        return F.interpolate(images, size=(size, size), mode="area")
    if images.shape[-1] < size:
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return images


class Generator(nn.Module):
    """G: z -> image in about [-1, 1].

    Args:
        config: sizes; :class:`GeneratorConfig`'s defaults if left out.

    Attributes:
        w_mean: (w_dim,) mean of the mapped latents, for truncation; :meth:`track` follows it in training.
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config or GeneratorConfig()
        c = self.config
        self.mapping = MappingNetwork(c.z_dim, c.mapped_dim or c.w_dim, c.mapping_layers)
        self.projection = Projection(c.mapped_dim, c.w_dim) if c.mapped_dim else None
        self.synthesis = SynthesisNetwork(c)
        self.register_buffer("w_mean", torch.zeros(c.w_dim))

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.config.size

    @property
    def rows(self) -> int:
        """Rows of a W+ code."""
        return self.config.rows

    @property
    def precision(self) -> torch.dtype | None:
        """dtype in which the synthesis network computes; None: that of its parameters."""
        return self.synthesis.precision

    @precision.setter
    def precision(self, dtype: torch.dtype | None) -> None:
        self.synthesis.precision = dtype

    def track(self, w: Tensor, momentum: float = 0.995) -> None:
        """Let ``w_mean`` follow a batch (B, w_dim) of mapped latents."""
        with torch.no_grad():
            self.w_mean.lerp_(w.mean(0).to(self.w_mean.dtype), 1 - momentum)

    def map(self, z: Tensor) -> Tensor:
        """(B, z_dim) -> (B, w_dim): the mapping network, and the projection where there is one."""
        mapped = self.mapping(z)
        return mapped if self.projection is None else self.projection(mapped)

    def rows_of(self, w: Tensor, truncation: float = 1.0) -> Tensor:
        """One w for all rows, moved to the mean: (B, w_dim) -> (B, rows, w_dim)."""
        if truncation != 1.0:
            w = self.w_mean + truncation * (w - self.w_mean)
        return w[:, None].expand(-1, self.rows, -1)

    def mix(self, first: Tensor, second: Tensor, crossover: Tensor, truncation: float = 1.0) -> Tensor:
        """Style mixing: rows of ``first`` (B, w_dim) before each ``crossover`` (B,), of ``second`` from it on."""
        before = torch.arange(self.rows, device=first.device)[None] < crossover[:, None]
        return torch.where(before[..., None], self.rows_of(first, truncation), self.rows_of(second, truncation))

    def forward(
        self,
        z: Tensor,
        truncation: float = 1.0,
        noise: str = "const",
        size: int | None = None,
        mixing: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Generate images: (B, 3, size, size) in about [-1, 1].

        Args:
            z: (B, z_dim), N(0, I).
            truncation: psi; 1 is none.
            noise, size: see :class:`SynthesisNetwork`.
            mixing: a second z (B, z_dim), and the row (B,) from which on it takes over.

        Raises:
            ShapeError: ``z`` of another shape.
        """
        if z.dim() != 2 or z.shape[1] != self.config.z_dim:
            raise ShapeError(f"z must be (B, {self.config.z_dim}); got {tuple(z.shape)}.")
        w = self.map(z)
        if mixing is None:
            ws = self.rows_of(w, truncation)
        else:
            ws = self.mix(w, self.map(mixing[0]), mixing[1], truncation)
        return self.synthesis(ws, noise=noise, size=size)
