"""Texture decoders: latent code -> UV texture (Sec. 4.1), behind one interface.

``LinearDecoder`` is the paper's ablation 'PCA tex basis' (Table 5) in UV space. The StyleGAN2 decoder
(:mod:`facerecon.stylegan.texture_decoder`) implements the same interface, so that the three stages
drive either.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import ConfigError, ShapeError, check_floats
from facerecon.modes import own_modes
from facerecon.stylegan.linear_basis import read_linear_basis
from facerecon.types import Latent

__all__ = ["LinearDecoder", "TextureDecoder", "retract_to_sphere"]


def retract_to_sphere(codes: Tensor) -> Tensor:
    """Bring every row of (B, N, C) codes back to the hypersphere of stage 2, of radius sqrt(C) (as PULSE does).

    At radius 1 a decoder would never leave its mean texture; what matters is a constant radius, and a Gaussian
    latent of d dimensions lives near sqrt(d).
    """
    return codes * (math.sqrt(codes.shape[-1]) / codes.norm(dim=-1, keepdim=True).clamp(min=1e-8))


class TextureDecoder(nn.Module):
    """Interface of G_tex: (B, N, C) latent codes -> (B, 3, S, S) textures in [0, 1].

    Attributes:
        name: what logs and reports call it.
        space: latent space of ``codes``: "linear", "z", "w", "w+", or "w/K" and "w+/K" in K directions of W.
        rows, dim: N and C.
        size: S, texels a side.
        atlas: the head model whose UV map the textures are for.
    """

    name: str = "decoder"
    space: str = "z"
    rows: int = 1
    dim: int = 512
    size: int = 1024
    atlas: str = "makehuman"

    def synthesis(self, codes: Tensor, size: int | None = None) -> Tensor:
        """(B, N, C) -> (B, 3, S, S) in [0, 1]; ``size``: of a coarser texture, a power of two below S."""
        raise NotImplementedError

    def start_basis(self) -> tuple[Tensor, Tensor]:
        """A linear stand-in, for the closed-form start of a fit: mean (3, s, s) and P components (P, 3, s, s), one
        standard deviation each."""
        raise NotImplementedError

    def from_start(self, coefficients: Tensor) -> Tensor:
        """Codes (B, N, C) of coefficients (B, P) of :meth:`start_basis`."""
        raise NotImplementedError

    def project(self, texture: Tensor, mask: Tensor | None = None, prior: float = 1e-3) -> Latent:
        """Closed-form code of a texture: least squares of the :meth:`start_basis` over a mask, with a Gaussian prior.

        For a linear decoder this is the best code there is; for others it is a start.

        Args:
            texture: (B, 3, S, S).
            mask: (B, 1, S, S).
            prior: weight of |z|^2 against the mean squared error.

        Returns:
            Latent of this decoder's space.
        """
        mean, basis = self.start_basis()
        if texture.shape[-1] != mean.shape[-1]:
            size = mean.shape[-2:]
            texture = F.interpolate(texture, size=size, mode="bilinear", antialias=True)
            mask = None if mask is None else F.interpolate(mask, size=size, mode="area")
        found = []
        for b in range(texture.shape[0]):
            weight = torch.ones_like(texture[b, :1]) if mask is None else mask[b]
            weight = (weight / weight.sum().clamp(min=1e-6)).expand_as(mean).flatten()
            weighted = basis.flatten(1) * weight
            normal = weighted @ basis.flatten(1).T
            right = weighted @ (texture[b] - mean).flatten()
            eye = torch.eye(len(basis), device=normal.device)
            found.append(torch.linalg.solve(normal + prior * eye, right))
        return Latent(self.from_start(torch.stack(found)), self.space)

    def to_w(self, codes: Tensor) -> Tensor:
        """Codes of W or W+ as w itself, which the release regularizes and optimizes; other codes as they are."""
        return codes

    def from_w(self, w: Tensor) -> Tensor:
        """The inverse of :meth:`to_w`."""
        return w

    def to_sphere(self, codes: Tensor) -> Tensor:
        """Bring codes (B, N, C) to the hypersphere of stage 2."""
        return retract_to_sphere(codes)

    def forward(self, latent: Latent | Tensor, size: int | None = None) -> Tensor:
        """Decode a :class:`Latent`, (B, N, C) codes, or (B, C) codes of one row.

        Args:
            latent: what to decode.
            size: of a coarser, cheaper texture, a power of two; the full one if left out.

        Raises:
            ShapeError: the codes do not fit this decoder, by shape or type.
            ConfigError: the latent is of another space.
        """
        if isinstance(latent, Latent):
            if latent.space != self.space:
                raise ConfigError(
                    f"{self.name} decodes space '{self.space}', got a latent of space '{latent.space}'; "
                    f"use the decoder that made it."
                )
            latent = latent.codes
        codes = latent[:, None].expand(-1, self.rows, -1) if latent.dim() == 2 else latent
        if codes.dim() != 3 or codes.shape[1:] != (self.rows, self.dim):
            expected = f"(B, {self.rows}, {self.dim}) or (B, {self.dim})"
            raise ShapeError(f"codes must be {expected}; got {tuple(latent.shape)}.")
        own = next((t for t in chain(self.buffers(), self.parameters()) if t.is_floating_point()), None)
        check_floats("codes", codes, own, "the decoder")
        return self.synthesis(codes) if size is None or size >= self.size else self.synthesis(codes, size)

    def sample(self, batch: int = 1, generator: torch.Generator | None = None) -> Latent:
        """Random codes on the sphere; pass a CPU ``generator`` for repeatable ones."""
        device = next(iter(self.buffers())).device
        codes = torch.randn(batch, self.rows, self.dim, generator=generator).to(device)
        return Latent(retract_to_sphere(codes), self.space)


class LinearDecoder(TextureDecoder):
    """Linear UV texture basis: ``T = mean + sum_k z_k basis_k``, z ~ N(0, I) (Table 5, 'PCA tex basis').

    Args:
        mean: (3, S, S) in [0, 1].
        basis: (K, 3, S, S), one standard deviation each.
    """

    name = "linear"
    space = "linear"
    rows = 1

    def __init__(self, mean: Tensor, basis: Tensor) -> None:
        super().__init__()
        if basis.dim() != 4 or basis.shape[1:] != mean.shape:
            raise ShapeError(f"basis must be (K, {', '.join(map(str, mean.shape))}); got {tuple(basis.shape)}.")
        self.dim = basis.shape[0]
        self.size = mean.shape[-1]
        self._coarse: dict[int, tuple[Tensor, Tensor]] = {}
        # rows of the flattened basis must lie one after another, or every decoding copies all of it
        self.register_buffer("mean", mean.float().contiguous())
        self.register_buffer("basis", basis.float().contiguous())

    def synthesis(self, codes: Tensor, size: int | None = None) -> Tensor:
        """(B, 1, K) -> (B, 3, S, S). Out-of-range values are clamped; their gradient still points back inside."""
        mean, basis = (self.mean, self.basis) if size is None else self._averaged(size)
        flat = codes[:, 0] @ basis.flatten(1)
        texture = (mean.flatten() + flat).view(-1, *mean.shape)
        return texture + (texture.clamp(0, 1) - texture).detach()

    def _averaged(self, size: int) -> tuple[Tensor, Tensor]:
        """Mean and basis of a smaller texture: decoding is linear, so they are those of the large one, averaged."""
        found = self._coarse.get(size)
        if found is None or found[0].device != self.mean.device:
            with own_modes():
                mean, basis = (F.interpolate(t, (size, size), mode="area") for t in (self.mean[None], self.basis))
            found = self._coarse[size] = mean[0], basis
        return found

    def start_basis(self) -> tuple[Tensor, Tensor]:
        """Mean and basis themselves."""
        return self.mean, self.basis

    def from_start(self, coefficients: Tensor) -> Tensor:
        """(B, K) -> (B, 1, K)."""
        return coefficients[:, None]

    @classmethod
    def from_file(cls, path: str | Path, components: int | None = None) -> LinearDecoder:
        """Read ``texture_linear.safetensors``, or a basis of one's own (tools/build_texture_basis.py)."""
        return cls(*read_linear_basis(path, components))
