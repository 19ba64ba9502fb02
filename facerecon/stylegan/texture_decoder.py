"""The StyleGAN2 texture decoder for fitting: T = G_tex(code) in Z, W or W+ (Sec. 4.1, 4.2).

Codes of W and W+ are standardized, ``w = mean + code * std`` with the statistics of many mapped samples, as the
release does. ``"w/K"`` and ``"w+/K"`` restrict them to K directions of W instead, in units of standard deviations
along each, so that decoders can be compared with linear bases at an equal number of free parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import AssetError, ConfigError, check_shape, nearest_name
from facerecon.modes import in_own_modes, own_modes
from facerecon.run.device import choose_precision, supports_bfloat16
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole
from facerecon.stylegan.decoder import TextureDecoder, retract_to_sphere
from facerecon.stylegan.frozen_synthesis import FrozenSynthesis
from facerecon.stylegan.generator import Generator
from facerecon.stylegan.weights import save_generator
from facerecon.types import Latent

__all__ = [
    "MAPPINGS",
    "SPACES",
    "StyleGANDecoder",
    "WStatistics",
    "kept_statistics",
    "measure_statistics",
    "parse_space",
    "save_decoder",
    "synthesis_precision",
]

SPACES = ("z", "w", "w+")

_SAMPLES, _SEED = 100_000, 123  # of mapped codes, as in the release
_AXES = 256  # directions of W that are kept
MAPPINGS = ("own", "open", "none")
"""Where space z finds its mapping network: in the file, in the open face generator, or nowhere."""


def parse_space(space: str) -> tuple[str, int | None]:
    """``"w+/64"`` -> ``("w+", 64)``: a latent space, and how many directions of W it is restricted to.

    Raises:
        ConfigError: an unknown space, or a number that is none.
    """
    name, slash, count = str(space).partition("/")
    if name not in SPACES or (slash and (name == "z" or not count.isdigit() or int(count) < 1)):
        raise ConfigError(nearest_name(str(space), (*SPACES, "w/K", "w+/K"), "latent space") + " K is a number.")
    return name, int(count) if slash else None


# -- statistics of W -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WStatistics:
    """What many mapped samples of a decoder look like.

    Args:
        mean, std: (C,) of w, in each coordinate.
        axes: (K, C), directions of W, those first that change the texture most; one standard deviation each, and
            uncorrelated: ``w = mean + sum_k c_k axes_k`` with c of unit covariance.
        texture: (3, s, s) in [0, 1], the mean of small textures.
        effect: (P, 3, s, s), how they change with the first P of the c_k, by regression.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor
    texture: Tensor
    effect: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """As a file holds them: half precision but for mean and deviations."""
        half = {"axes": self.axes, "texture": self.texture, "effect": self.effect}
        return {"mean": self.mean.float(), "std": self.std.float()} | {name: t.half() for name, t in half.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], path: str | Path) -> WStatistics:
        """From what :meth:`tensors` gave.

        Raises:
            AssetError: a tensor is missing or has another shape.
        """
        try:
            found = cls(**{name: tensors[name].float() for name in cls.__dataclass_fields__})
        except KeyError as key:
            raise AssetError(f"{path} lacks the statistics of W ({key}); write it with save_decoder.") from None
        width, size = found.mean.shape[-1], found.texture.shape[-1]
        fits = (
            found.mean.shape == found.std.shape == (width,)
            and found.axes.dim() == 2
            and found.axes.shape[1] == width
            and found.texture.shape == (3, size, size)
            and found.effect.shape == (len(found.effect), 3, size, size)
            and 0 < len(found.effect) <= len(found.axes)
            and bool((found.std > 0).all())
        )
        if not fits:
            shapes = ", ".join(f"{name} {tuple(getattr(found, name).shape)}" for name in cls.__dataclass_fields__)
            raise AssetError(f"{path} holds statistics of W that do not fit one another ({shapes}); write it again.")
        return found


@torch.no_grad()
def measure_statistics(
    mapping: Callable[[Tensor], Tensor],
    synthesis: Callable[..., Tensor],
    rows: int,
    z_dim: int,
    samples: int = _SAMPLES,
    textures: int = 3000,
    size: int = 64,
    components: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> WStatistics:
    """Statistics of W from mapped samples, and what its directions do to the texture.

    The directions are the principal ones of W, turned so that they are sorted by how much of the texture's variance a
    linear regression of small textures on them explains. z is drawn as the release draws it.

    Args:
        mapping: z (B, z_dim) -> w (B, C).
        synthesis: (B, rows, C), ``size=`` -> (B, 3, s, s) in [-1, 1].
        samples: of z.
        textures: how many of them are decoded, at ``size`` px.
        components: how many directions get a texture (:attr:`WStatistics.effect`).
        progress: called as (textures done, of how many).
    """
    draw = np.random.RandomState(_SEED)
    codes = []
    for start in range(0, samples, 10_000):
        z = torch.from_numpy(draw.randn(min(10_000, samples - start), z_dim).astype(np.float32))
        codes.append(mapping(z).cpu())
    w = torch.cat(codes)
    double = w.double()
    mean = double.mean(0)
    centered = double - mean
    covariance = centered.T @ centered / len(w)
    variance, vectors = torch.linalg.eigh(covariance)
    order = variance.argsort(descending=True)
    order = order[variance[order] > 1e-6 * variance.max()][: min(_AXES, samples // 4)]
    scale, vectors = variance[order].sqrt(), vectors[:, order]  # (R,), (C, R)

    few = w[:: max(1, samples // textures)][:textures]
    pictures = []
    for start in range(0, len(few), 8):
        part = few[start : start + 8]
        pictures.append(synthesis(part[:, None].expand(-1, rows, -1), size=size).float().cpu() * 0.5 + 0.5)
        if progress is not None:
            progress(min(start + 8, len(few)), len(few))
    pictures = torch.cat(pictures)
    texture = pictures.mean(0)
    white = (few.double() - mean) @ (vectors / scale)
    white = (white - white.mean(0)).float()
    flat = (pictures - texture).flatten(1)
    normal = (white.T @ white).double() + 0.2 * len(scale) * torch.eye(len(scale), dtype=torch.float64)
    response = torch.linalg.solve(normal, (white.T @ flat).double())  # (R, D)
    _, turn = torch.linalg.eigh(response @ response.T)  # (R, R) turns of the directions, weakest first
    turn = turn.flip(1)
    turn = turn * torch.where(turn.gather(0, turn.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    axes = turn.T @ (vectors * scale).T
    effect = (turn.T @ response)[:components].view(-1, *texture.shape)
    deviation = covariance.diagonal().sqrt().clamp(min=1e-8)
    return WStatistics(mean.float(), deviation.float(), axes.float(), texture.float(), effect.float())


# -- the decoder -----------------------------------------------------------------------------------------


class StyleGANDecoder(TextureDecoder):
    """A frozen StyleGAN2 generator of UV textures, driven by codes of Z, W or W+.

    Args:
        generator: of textures; frozen, and owned from now on.
        statistics: of its W.
        space: ``"z"`` (one row through the mapping network), ``"w"`` (one row for all layers), ``"w+"`` (a row a
            layer); ``"w/K"`` and ``"w+/K"`` in K directions of W.
        precision: of the synthesis network's convolutions: ``"auto"`` (bfloat16 on a CPU that has it, float16 on
            CUDA), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        mapping: z -> w, where the generator's file comes without.

    Raises:
        ConfigError: an unknown space, or more directions than there are.
        AssetError: space z without a mapping network.
    """

    name = "stylegan"

    def __init__(
        self,
        generator: Generator,
        statistics: WStatistics,
        space: str = "w+",
        precision: str = "auto",
        mapping: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.generator = generator.eval().requires_grad_(False)
        self.mapping = mapping if mapping is not None or generator.mapping is None else generator.map
        self.kind, self.components = parse_space(space)
        self.space = space
        self.size = generator.size
        width = statistics.mean.shape[0]
        if self.components is not None and self.components > len(statistics.axes):
            there = f"this decoder has {len(statistics.axes)}"
            raise ConfigError(f"latent space '{space}' asks for {self.components} directions of W; {there}.")
        if self.kind == "z" and self.mapping is None:
            raise AssetError("this decoder's file holds no mapping network, so there is no space z; use w or w+.")
        self.rows = generator.rows if self.kind == "w+" else 1
        self.dim = self.components or (generator.config.z_dim if self.kind == "z" else width)
        self.precision_name = precision
        self.start_size = min(len(statistics.effect), self.components or len(statistics.effect))
        for name, tensor in (
            ("w_mean", statistics.mean),
            ("w_std", statistics.std),
            ("axes", statistics.axes),
            ("inverse", torch.linalg.pinv(statistics.axes.double()).float()),  # (C, K): (w - mean) @ inverse = c
            ("start_texture", statistics.texture),
            ("start_effect", statistics.effect),
        ):
            self.register_buffer(name, tensor.float().contiguous(), persistent=False)
        self._frozen: FrozenSynthesis | None = None
        self._set_precision()

    def _apply(self, fn: Callable, recurse: bool = True) -> StyleGANDecoder:
        result = super()._apply(fn, recurse)
        self._set_precision()
        return result

    def _set_precision(self) -> None:
        self._frozen = None
        self.generator.precision = synthesis_precision(self.precision_name, self.w_mean.device)

    # -- codes -------------------------------------------------------------------------------------

    def to_w(self, codes: Tensor) -> Tensor:
        """Codes (B, N, C) of W or W+ -> w (B, N, W). Codes of Z are mapped: (B, 1, Z) -> (B, 1, W)."""
        if self.kind == "z":
            return self.mapping(codes[:, 0])[:, None]
        if self.components is not None:
            return self.w_mean + codes @ self.axes[: self.components]
        return self.w_mean + codes * self.w_std

    def from_w(self, w: Tensor) -> Tensor:
        """The codes of w, (B, N, W); the nearest ones in a restricted space.

        Raises:
            ConfigError: the space is z, whose mapping has no inverse.
        """
        if self.kind == "z":
            raise ConfigError("codes of space z cannot be computed from w; use latent space w or w+.")
        if self.components is not None:
            return (w - self.w_mean) @ self.inverse[:, : self.components]
        return (w - self.w_mean) / self.w_std

    def synthesis(self, codes: Tensor, size: int | None = None) -> Tensor:
        """(B, N, C) -> (B, 3, S, S), coarser for a smaller power of two. Out-of-range values are clamped; their
        gradient still points back inside."""
        w = self.to_w(codes).expand(-1, self.generator.rows, -1)
        if self._frozen is None:
            with own_modes():
                self._frozen = FrozenSynthesis(self.generator.synthesis, self.generator.precision or torch.float32)
        texture = self._frozen(w, size) * 0.5 + 0.5
        return texture + (texture.clamp(0, 1) - texture).detach()

    def sample(self, batch: int = 1, generator: torch.Generator | None = None) -> Latent:
        """Random codes of plausible textures: Gaussian along the directions of W, on the sphere."""
        if self.kind == "z":
            return super().sample(batch, generator)
        c = torch.randn(batch, len(self.axes), generator=generator).to(self.axes.device)
        codes = self.from_w((self.w_mean + c @ self.axes)[:, None]).expand(-1, self.rows, -1)
        return Latent(retract_to_sphere(codes), self.space)

    # -- start of a fit ----------------------------------------------------------------------------

    def start_basis(self) -> tuple[Tensor, Tensor]:
        """A linear stand-in for the closed-form start: mean (3, s, s) and P components (P, 3, s, s)."""
        return self.start_texture, self.start_effect[: self.start_size]

    def from_start(self, coefficients: Tensor) -> Tensor:
        """Codes (B, N, C) of coefficients (B, P) of :meth:`start_basis`."""
        check_shape("coefficients", coefficients, f"B {self.start_size}")
        if self.kind == "z":
            return self._nearest_z(coefficients)
        w = self.w_mean + coefficients @ self.axes[: self.start_size]
        return self.from_w(w[:, None]).expand(-1, self.rows, -1).contiguous()

    def to_sphere(self, codes: Tensor) -> Tensor:
        """Bring codes to the sphere of radius sqrt(C).

        What a short code lacks is made up, first, by one fixed draw along directions of W that hardly change the
        texture: to stretch the code instead would exaggerate the face.
        """
        if self.kind == "z":
            return retract_to_sphere(codes)
        filling = self._filling
        a = filling.square().sum()
        b = (codes * filling).sum(-1, keepdim=True)
        c = codes.square().sum(-1, keepdim=True) - codes.shape[-1]
        if float(a) == 0:
            return retract_to_sphere(codes)
        share = ((b.square() - a * c).clamp(min=0).sqrt() - b) / a
        return retract_to_sphere(codes + share.clamp(0, 1) * filling)

    @cached_property
    @in_own_modes
    def _filling(self) -> Tensor:
        """(C,) code of one draw along the directions that have no part in the start."""
        count = self.components or len(self.axes)
        draw = torch.randn(len(self.axes), generator=torch.Generator().manual_seed(_SEED)).to(self.axes)
        draw[: self.start_size], draw[count:] = 0, 0
        return self.from_w((self.w_mean + draw @ self.axes)[None, None])[0, 0]

    @cached_property
    @in_own_modes
    def _candidates(self) -> tuple[Tensor, Tensor]:
        """z (N, Z) on the sphere, and their coefficients along the first directions of W."""
        draw = torch.randn(2048, self.dim, generator=torch.Generator().manual_seed(_SEED))
        z = retract_to_sphere(draw.to(self.axes)[:, None])
        with torch.no_grad():
            return z[:, 0], self._leading(z)

    def _leading(self, z: Tensor) -> Tensor:
        return ((self.to_w(z)[:, 0] - self.w_mean) @ self.inverse)[:, : self.start_size]

    @in_own_modes
    def _nearest_z(self, coefficients: Tensor, steps: int = 100) -> Tensor:
        """(B, 1, Z) whose w has the given coefficients: the nearest of many draws, then Adam on the sphere."""
        weight = self.start_effect[: self.start_size].square().flatten(1).sum(1)
        weight = weight / weight.sum().clamp(min=1e-12)
        z, found = self._candidates
        apart = ((coefficients[:, None] - found).square() * weight).sum(-1)
        best = z[apart.argmin(1)][:, None].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([best], lr=0.1)
        with torch.enable_grad():
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
                loss = ((self._leading(best) - coefficients.detach()).square() * weight).sum()
                (best.grad,) = torch.autograd.grad(loss, [best])
                optimizer.step()
                with torch.no_grad():
                    best.copy_(retract_to_sphere(best))
        return best.detach()


def synthesis_precision(name: str, device: str | torch.device) -> torch.dtype:
    """dtype of the synthesis network's convolutions: ``"auto"`` is the fastest that the device has, see
    :class:`StyleGANDecoder`.

    Raises:
        ConfigError: an unknown name, or a type that the device does not have.
    """
    device = torch.device(device)
    if name != "auto":
        return choose_precision(name, device)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and supports_bfloat16(device) else torch.float32


# -- files -----------------------------------------------------------------------------------------------


def save_decoder(
    path: str | Path,
    generator: Generator,
    metadata: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    mapping: str = "own",
    samples: int = _SAMPLES,
    textures: int = 3000,
    progress: Callable[[int, int], None] | None = None,
    compact: bool = False,
) -> WStatistics:
    """Write a generator with what a fit needs beside its weights: the statistics of W.

    Args:
        path: safetensors file to write.
        generator: with its mapping network.
        dtype: of the stored weights.
        metadata: plain data about it; ``size``, ``decoder`` and the like are for the model card.
        mapping: ``"own"`` stores the mapping network. ``"open"`` leaves out one that is the open face generator's, of
            which a copy is in the cache wherever the open pack was fetched; ``"none"`` leaves it out for good.
        samples, textures, progress: see :func:`measure_statistics`.
        compact: see :func:`save_generator`.

    Returns:
        The statistics.

    Raises:
        ConfigError: an unknown ``mapping``.
        OutputError: the file cannot be written.
    """
    if mapping not in MAPPINGS:
        raise ConfigError(nearest_name(mapping, MAPPINGS, "place of the mapping network"))
    config = generator.config
    size = min(32, config.size)
    statistics = measure_statistics(
        generator.map, generator.synthesis, config.rows, config.z_dim, samples, textures, size, progress=progress
    )
    extra = {f"statistics.{name}": tensor for name, tensor in statistics.tensors().items()}
    about = {**(metadata or {}), "mapping_network": mapping}
    save_generator(path, generator, about, dtype, mapping=mapping == "own", extra=extra, compact=compact)
    return statistics


def kept_statistics(generator: Generator, key: str) -> WStatistics:
    """Statistics of a generator whose file has none: measured once (a minute for a large one), then kept in the cache.

    Args:
        generator: with its mapping network.
        key: digest of its file.
    """

    def measure(target: Path) -> None:
        config = generator.config
        size = min(32, config.size)
        found = measure_statistics(
            generator.map, generator.synthesis, config.rows, config.z_dim, textures=600, size=size, components=32
        )
        write_whole(target, safetensors_bytes(found.tensors()))

    kept = assets.derived("statistics", key, measure)
    tensors, _ = read_safetensors(kept, "statistics of a decoder", "delete it, it is made again")
    return WStatistics.from_tensors(tensors, kept)
