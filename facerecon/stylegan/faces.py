"""Generators of faces by name: the open one, and StyleGAN2-FFHQ, whose pictures FFHQ-UV normalizes (Sec. 3.1.1).

Both take w (B, 512) of the same space W, in which directions, encoders and classifiers of W were learnt; the rows of
their W+ differ (23 of MobileStyleGAN, 18 of StyleGAN2), so codes of W+ belong to one of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from facerecon.errors import ConfigError, ShapeError, nearest_name
from facerecon.modes import in_own_modes
from facerecon.stylegan.face_generator import MobileGenerator, load_generator, seeded_latents
from facerecon.stylegan.ffhq_generator import load_ffhq_generator
from facerecon.stylegan.generator import Generator

__all__ = ["FACE_GENERATORS", "FFHQFaces", "load_face_generator"]

FACE_GENERATORS = ("mobile_stylegan", "stylegan2_ffhq")
"""The open generator, and the paper's, which is converted from its released file."""


class FFHQFaces(nn.Module):
    """StyleGAN2-FFHQ as a source of faces, called as :class:`~facerecon.stylegan.face_generator.MobileGenerator` is.

    Args:
        generator: mapping and synthesis, 1024 px as released.

    Attributes:
        resolution: px of its pictures. num_styles: rows of its W+. style_dim: width of W.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.resolution, self.num_styles = generator.size, generator.rows
        self.style_dim = generator.config.w_dim

    @property
    def mean_w(self) -> Tensor:
        """(512,), the mean of W."""
        return self.generator.w_mean

    def forward(self, w: Tensor) -> Tensor:
        """(B, 512), or (B, 18, 512) -> (B, 3, S, S) RGB in [0, 1], float32, with the noise that was learnt.

        Raises:
            ShapeError: a code of another shape.
        """
        if w.dim() == 2:
            w = w[:, None].expand(-1, self.num_styles, -1)
        if w.dim() != 3 or w.shape[1:] != (self.num_styles, self.style_dim):
            raise ShapeError(
                f"w must be (B, {self.style_dim}) or (B, {self.num_styles}, {self.style_dim}); got {tuple(w.shape)}. "
                "Codes of W+ serve the generator alone that they were made for."
            )
        return (self.generator.synthesis(w) * 0.5 + 0.5).clamp(0, 1)

    def sample(self, seeds: int | Iterable[int], truncation: float = 0.7) -> Tensor:
        """w (B, 512) of the given seeds, as the open generator's."""
        with torch.no_grad():
            w = self.generator.map(seeded_latents(seeds, self.generator.config.z_dim).to(self.mean_w))
        return torch.lerp(self.mean_w, w, truncation)


@in_own_modes
def load_face_generator(
    name: str = "mobile_stylegan", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> MobileGenerator | FFHQFaces:
    """A frozen generator of faces.

    Args:
        name: one of :data:`FACE_GENERATORS`.
        device: where it runs.
        dtype: precision of the synthesis.

    Raises:
        ConfigError: another name.
        AssetError: it is not in the cache; says how to get it.
    """
    if name not in FACE_GENERATORS:
        raise ConfigError(nearest_name(name, FACE_GENERATORS, "generator"))
    if name == "mobile_stylegan":
        return load_generator(device, dtype)
    generator = load_ffhq_generator()
    if dtype != torch.float32:
        generator.precision = dtype
    return FFHQFaces(generator).to(device).eval().requires_grad_(False)
