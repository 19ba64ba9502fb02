"""The generator of a texture decoder as its training begins: at random, on a base, or from another decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError
from facerecon.stylegan.face_generator import MobileMapping
from facerecon.stylegan.generator import Generator, GeneratorConfig, MappingNetwork
from facerecon.stylegan.latent_space import linear_maps, predictive_directions
from facerecon.training.texture_data import TextureData

__all__ = ["build_generator", "initialize_from", "open_mapping", "start_gently", "start_without_color"]

_DIRECTIONS = 20_000  # samples of W whose distribution decides on the directions that are kept of it


def build_generator(
    config: GeneratorConfig,
    data: TextureData,
    source: torch.nn.Module | None = None,
    initial: Generator | None = None,
    base: str = "none",
    linear_size: int = 64,
    code_noise: float = 0.0,
    gray: bool = False,
    seed: int = 0,
) -> tuple[Generator, str]:
    """A generator as it starts.

    Args:
        config: its sizes.
        data: maps and codes.
        source: the open face generator, whose mapping network it takes; None: a mapping of its own.
        initial: another decoder to start from.
        base: what the network adds to: "none", "mean" (map) or "linear" (the mean and a prediction from the code).
        linear_size: px of that prediction.
        code_noise: on the codes in training, in standard deviations: a ridge penalty of the prediction.
        gray: let colors start at zero also without a base.
        seed: of random weights.

    Returns:
        The generator, and how it starts, in words.

    Raises:
        ConfigError: directions of W or a linear base without pairs; ``initial`` of other sizes.
    """
    torch.manual_seed(seed)
    generator = Generator(config)
    if source is not None:
        open_mapping(generator.mapping, source.mapping)
        if not config.mapped_dim:
            generator.w_mean.copy_(source.mean_w)
        elif initial is None:
            _find_directions(generator, data)
    if gray or base != "none":
        start_without_color(generator)
    if base == "linear":
        start_gently(generator)
    if base != "none":
        generator.synthesis.base = data.memory.mean(data.chosen)
    if base == "linear" and data.map_codes is not None:
        _set_components(generator, data)
    elif base == "linear":
        side = min(linear_size, config.size)
        if data.pairs is None:
            raise ConfigError("base=linear is learned from pairs; set pretrain.kimg.")
        if initial is None:
            _fit_linear(generator, data, side, code_noise)
        else:  # the prediction is that of the decoder that it starts from
            generator.synthesis.linear = torch.zeros(config.w_dim, 3, side, side)
    if initial is not None:
        return generator, initialize_from(generator, initial)
    return generator, "at random" + (", mapping of the open face generator" if source is not None else "")


def _parts(rows: list[int], size: int = 64) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _set_components(generator: Generator, data: TextureData) -> None:
    """The linear base of codes that are coordinates in the maps' principal components."""
    codes, s = data.map_codes, generator.synthesis
    s.linear = codes.components.clone()
    pooled = F.adaptive_avg_pool2d(s.base, codes.mean.shape[-1])
    shift = (codes.mean - pooled)[None]  # of maps and their mirror images
    s.base += F.interpolate(shift, size=(s.size, s.size), mode="bilinear")[0]
    _set_gain(generator, data, codes.table)


def _fit_linear(generator: Generator, data: TextureData, side: int, code_noise: float) -> None:
    """The linear base of pairs: ridge regression from codes to coarse maps."""
    rows, s = data.coded, generator.synthesis
    codes, native = data.codes_of(rows, generator.projection), data.known[rows]
    noise = native.std(0) * code_noise
    factors = noise.diag() if generator.projection is None else generator.projection.directions * noise
    small = torch.cat([F.adaptive_avg_pool2d(data.memory.images(part)[0], side) for part in _parts(rows)])
    _, s.linear = linear_maps(codes, small, factors @ factors.T)
    shift = (codes.mean(0) @ s.linear.flatten(1)).view(1, 3, side, side)
    s.base -= F.interpolate(shift, size=(s.size, s.size), mode="bilinear")[0]
    table = torch.zeros(len(data.memory), codes.shape[1])
    table[rows] = codes
    _set_gain(generator, data, table)


def _set_gain(generator: Generator, data: TextureData, table: Tensor) -> None:
    """Least-squares factor of the linear base in each texel, which is coarser than the maps."""
    s = generator.synthesis
    s.gain = None
    above, below = torch.zeros(1, s.size, s.size), torch.full((1, s.size, s.size), 1e-6)
    for part in _parts(data.coded):
        codes, maps = table[torch.as_tensor(part)], data.memory.images(part)[0]
        linear = s.underlay(generator.rows_of(codes), s.size) - s.base
        above += (linear * (maps - s.base)).sum((0, 1))
        below += linear.square().sum((0, 1))
    s.gain = (above / below).clamp(0, 2)


def _find_directions(generator: Generator, data: TextureData) -> None:
    """Restrict W to the directions that the maps to train on depend on."""
    count = generator.config.w_dim
    if data.pairs is None:
        raise ConfigError(f"w_dim={count} with mapping=open is learned from pairs; set pretrain.kimg.")
    z = torch.randn(_DIRECTIONS, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = generator.mapping(z)
    side = min(64, data.memory.size)
    small = torch.cat([F.adaptive_avg_pool2d(data.memory.images(part)[0], side) for part in _parts(data.coded)])
    center, directions = predictive_directions(data.known[data.coded], small, samples, count)
    generator.projection.center.copy_(center)
    generator.projection.directions.copy_(directions)


@torch.no_grad()
def open_mapping(mapping: MappingNetwork, source: MobileMapping) -> None:
    """Copy the open face generator's mapping network into a decoder's: the same function of z.

    Raises:
        ConfigError: the decoder's has other sizes.
    """
    found = [tuple(layer.weight.shape) for layer in mapping.layers]
    wanted = [tuple(layer.weight.shape) for layer in source.layers]
    if found != wanted:
        raise ConfigError(
            f"the open mapping network has {len(wanted)} layers of {wanted[0]}; the decoder's has {len(found)} of "
            f"{found[0]}. Leave z_dim, w_dim and mapping_layers at their defaults, or set mapping=own."
        )
    for layer, other in zip(mapping.layers, source.layers, strict=True):
        layer.weight.copy_(other.weight / layer.gain)
        layer.bias.copy_(other.bias / layer.rate)


@torch.no_grad()
def initialize_from(generator: Generator, source: Generator) -> str:
    """Start a generator from another one, of the same or of another size.

    Blocks of resolutions that both have are copied; those beyond the source's start with a color of zero, so that the
    image is the source's, enlarged by the skip architecture. At another size the base stays the generator's own.

    Args:
        source: same channels at shared resolutions, same widths of latents. Its mapping may be None.

    Returns:
        What was done, one line.

    Raises:
        ConfigError: channels or latents differ.
    """
    mine, other = generator.config, source.config
    shared = min(mine.size, other.size)
    for name in ("w_dim",) if source.mapping is None else ("z_dim", "w_dim", "mapping_layers", "mapped_dim"):
        if getattr(mine, name) != getattr(other, name):
            raise ConfigError(f"init has {name} {getattr(other, name)}, this run {getattr(mine, name)}; use the same.")
    for resolution in (2**k for k in range(2, shared.bit_length())):
        if mine.channels(resolution) != other.channels(resolution):
            raise ConfigError(
                f"init has {other.channels(resolution)} channels at {resolution} px, this run "
                f"{mine.channels(resolution)}; set channel_base={other.channel_base} channel_max={other.channel_max}."
            )
    if base_of(generator) != base_of(source):
        raise ConfigError(f"init has base={base_of(source)}, this run {base_of(generator)}; use the same.")
    if source.synthesis.base is not None and mine.size == other.size:
        generator.synthesis.base.copy_(source.synthesis.base)
    if source.synthesis.linear is not None:
        generator.synthesis.linear = source.synthesis.linear.clone()
    if source.synthesis.gain is not None:
        gain = source.synthesis.gain[None]
        if mine.size != other.size:
            gain = F.interpolate(gain, size=(mine.size, mine.size), mode="bilinear")
        generator.synthesis.gain = gain[0].clone()
    if source.mapping is not None:
        generator.mapping.load_state_dict(source.mapping.state_dict())
    if generator.projection is not None:
        generator.projection.load_state_dict(source.projection.state_dict())
    generator.w_mean.copy_(source.w_mean)
    generator.synthesis.constant.copy_(source.synthesis.constant)
    for block, known in zip(generator.synthesis.blocks, source.synthesis.blocks, strict=False):
        block.load_state_dict(known.state_dict())
    new = generator.synthesis.blocks[len(source.synthesis.blocks) :]
    start_without_color(generator, len(source.synthesis.blocks))
    if mine.size == other.size:
        return f"all blocks, {mine.size} px"
    if mine.size > other.size:
        return f"grown from {other.size} to {mine.size} px: {len(new)} new block(s), whose color starts at zero"
    return f"cut from {other.size} to {mine.size} px: the finest {int(math.log2(other.size // mine.size))} left out"


def base_of(generator: Generator) -> str:
    """What a generator's synthesis is added to: "none", "mean" or "linear", as the configuration calls it."""
    s = generator.synthesis
    return "none" if s.base is None else "mean" if s.linear is None else "linear"


@torch.no_grad()
def start_without_color(generator: Generator, first: int = 0) -> None:
    """Let colors of blocks from the ``first`` on start at zero: no random ones are unlearned, the image is that of the
    blocks before, the base, or gray."""
    for block in generator.synthesis.blocks[first:]:
        block.color.weight.zero_()
        block.color.bias.zero_()


@torch.no_grad()
def start_gently(generator: Generator, share: float = 0.2) -> None:
    """Let styles depend less on w at first, and so the network on w almost linearly: it then learns by heart later."""
    for block in generator.synthesis.blocks:
        for layer in (block.up, block.conv, block.color):
            if layer is not None:
                layer.style.weight.mul_(share)
