"""Adaptive discriminator augmentation (ADA, arXiv:2006.06676), for sets of hundreds of maps.

Every image that the discriminator sees, real or fake, is moved and recolored with a probability p, which grows while
the discriminator is too sure of the real ones. As long as p stays below about 0.8 the generator does not learn the
transforms. Of the paper's transforms those are left out that a UV map never shows: turns by 90 degrees, anisotropic
scaling, inverted brightness, cut-out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facerecon.errors import check_number
from facerecon.run import item_generator

__all__ = ["Augment", "ADASettings", "draws_of"]


@dataclass(frozen=True)
class ADASettings:
    """How strong each transform is, and how its probability follows the discriminator.

    Args:
        target: mean sign of D(real) that p is steered to (Sec. 3: 0.6), in [-1, 1].
        speed_kimg: thousands of images in which p may rise from 0 to 1.
        limit: of p.
        every: steps between two changes of p.
        shift: largest integer translation, share of the side.
        scale: standard deviation of log2 of the zoom.
        turn: largest rotation, degrees.
        brightness: standard deviation of what is added in [-1, 1].
        contrast, saturation: standard deviations of log2 of the factors.
        hue: largest turn around the gray axis, degrees.
    """

    target: float = 0.6
    speed_kimg: float = 100.0
    limit: float = 0.8
    every: int = 4
    shift: float = 0.06
    scale: float = 0.1
    turn: float = 8.0
    brightness: float = 0.15
    contrast: float = 0.25
    saturation: float = 0.3
    hue: float = 20.0

    def __post_init__(self) -> None:
        check_number("augment.every", self.every, 1, whole=True)
        check_number("augment.target", self.target, -1, 1)
        check_number("augment.limit", self.limit, 0, 1)


def draws_of(seed: int, kind: str, numbers: Sequence[int], *shape: int, normal: bool = True) -> Tensor:
    """Random numbers that depend on the run's seed, on what they are for, and on the sample alone.

    Args:
        seed: of the run.
        kind: what is drawn.
        numbers: of the samples.
        shape: for each sample.
        normal: N(0, 1), else uniform in [0, 1).

    Returns:
        (len(numbers), *shape) float32.
    """
    draw = torch.randn if normal else torch.rand
    return torch.stack([draw(shape, generator=item_generator(seed, kind, number)) for number in numbers])


_UNIFORM, _NORMAL = 12, 5


class Augment:
    """Transforms of images (B, 3, S, S) in [-1, 1]; differentiable in them.

    Args:
        settings: strengths.
        mirror: flip each image with probability 1/2 at any p; only right for an atlas that is mirror-symmetric, for
            which a flipped map is a map.

    Attributes:
        p: probability of each transform; 0 leaves images as they are (but for ``mirror``).
    """

    def __init__(self, settings: ADASettings | None = None, mirror: bool = False) -> None:
        self.settings = settings or ADASettings()
        self.mirror = mirror
        self.p = 0.0

    def adapt(self, sign: float, images: int) -> float:
        """Move p towards where the mean sign of D(real) is the target.

        Args:
            sign: mean sign of the discriminator's logits of real images since the last change.
            images: seen since.

        Returns:
            The new p.
        """
        step = images / (self.settings.speed_kimg * 1000)
        direction = (sign > self.settings.target) - (sign < self.settings.target)
        self.p = min(max(self.p + direction * step, 0.0), self.settings.limit)
        return self.p

    def __call__(self, images: Tensor, seed: int, kind: str, numbers: Sequence[int]) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, 3, S, S) in [-1, 1].
            seed, kind, numbers: what the draws depend on, see :func:`draws_of`.

        Returns:
            (B, 3, S, S); a little beyond [-1, 1] where colors are changed.
        """
        if self.p <= 0 and not self.mirror:
            return images
        uniform = draws_of(seed, f"{kind} uniform", numbers, _UNIFORM, normal=False).to(images.device)
        normal = draws_of(seed, f"{kind} normal", numbers, _NORMAL).to(images.device)
        if self.mirror:
            images = torch.where((uniform[:, 0] < 0.5)[:, None, None, None], images.flip(3), images)
        if self.p <= 0:
            return images
        chosen = (uniform[:, 1:8] < self.p).float()
        return self._recolor(self._move(images, chosen, uniform, normal), chosen, uniform, normal)

    def _move(self, images: Tensor, chosen: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Integer translation, zoom and rotation in one resampling, of the images that have any."""
        from kornia.geometry.transform import warp_affine

        some = chosen[:, :3].any(1).nonzero()[:, 0]
        if len(some) == 0:
            return images
        size, s = images.shape[-1], self.settings
        part, u, n = chosen[some], uniform[some], normal[some]
        shift = ((2 * u[:, 8:10] - 1) * s.shift * size).round() * part[:, 0:1]
        zoom = torch.exp2(n[:, 0] * s.scale * part[:, 1])
        angle = (2 * u[:, 10] - 1) * math.radians(s.turn) * part[:, 2]
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        center = (size - 1) / 2  # of pixel indices
        dx = center - cosine * center + sine * center + shift[:, 0]
        dy = center - sine * center - cosine * center + shift[:, 1]
        matrix = torch.stack([torch.stack([cosine, -sine, dx], 1), torch.stack([sine, cosine, dy], 1)], 1)
        way = {"mode": "bicubic", "padding_mode": "reflection", "align_corners": True}
        return images.index_copy(0, some, warp_affine(images[some], matrix.to(images.dtype), (size, size), **way))

    def _recolor(self, images: Tensor, chosen: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Brightness, contrast, hue and saturation as one affine map of RGB."""
        s = self.settings
        batch, eye = len(images), torch.eye(3, device=images.device)
        gray = torch.full((3, 3), 1 / 3, device=images.device)  # projection onto the gray axis
        bright = normal[:, 1] * s.brightness * chosen[:, 3]
        contrast = torch.exp2(normal[:, 2] * s.contrast * chosen[:, 4])
        saturation = torch.exp2(normal[:, 3] * s.saturation * chosen[:, 5])
        angle = (2 * uniform[:, 11] - 1) * math.radians(s.hue) * chosen[:, 6]
        a = 1 / math.sqrt(3)
        cross = torch.tensor([[0.0, -a, a], [a, 0.0, -a], [-a, a, 0.0]], device=images.device)
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        turn = cosine * eye + sine * cross + (1 - cosine) * gray  # Rodrigues around (1, 1, 1)
        spread = gray + saturation[:, None, None] * (eye - gray)
        matrix = contrast[:, None, None] * (spread @ turn)
        some = chosen[:, 3:7].any(1)
        matrix = torch.where(some[:, None, None], matrix, eye).to(images.dtype)
        colored = matrix @ images.flatten(2) + (bright * contrast)[:, None, None].to(images.dtype)
        return torch.where(some[:, None, None, None], colored.view(batch, *images.shape[1:]), images)
