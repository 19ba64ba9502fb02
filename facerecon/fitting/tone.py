"""The person's skin tone in a fit (ours): light takes the exposure, the belief over the tone decides the albedo.

A photo shows the product of albedo and light. A brighter albedo in a dimmer light is the same picture, so that no
photometric term can tell a person's tone from the exposure (Feng et al., TRUST, ECCV 2022). Here the tie is broken:
each texture that a fit makes is brought to the mean log color that :mod:`facerecon.perception.tone` believes in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.errors import ConfigError, check_shape
from facerecon.fitting.residual_light import plain_skin
from facerecon.geometry.mesh import cached
from facerecon.imaging.masks import dilate
from facerecon.perception.skin_tone import mean_log_color
from facerecon.render.uv import region_texels
from facerecon.types import MeshTopology, ToneBelief

__all__ = ["has_skin", "plain_texels", "shared_tone", "skin_texels", "tone_derivative", "tone_of", "toned"]

_BLACK = 0.01  # least value of a logarithm's argument
_NEEDED = ("face", "skin")


def has_skin(topology: MeshTopology) -> bool:
    """Whether a head model says which of its texels are skin."""
    return all(name in topology.regions for name in _NEEDED)


def skin_texels(topology: MeshTopology, size: int) -> Tensor:
    """(1, 1, S, S): 1 on skin of the face, scalp, ears and neck, brows and lips too; 0 on eyeballs and in the mouth."""
    inner = region_texels(topology, ("eyes", "mouth", "teeth", "tongue", "sockets"), size)
    return region_texels(topology, ("skin",), size) * (1 - inner)


def plain_texels(topology: MeshTopology, size: int) -> Tensor:
    """(1, 1, S, S): 1 on the face's skin of one color, away from brows, lids, lips and ears."""

    def build() -> Tensor:
        ears = dilate(region_texels(topology, ("ears",), size), 0.006 * size)
        face = skin_texels(topology, size) * region_texels(topology, ("face",), size) * (1 - ears)
        return face * plain_skin(topology, size)

    return cached(f"plain texels {size}", build, topology.uv_faces, topology.uvs, *topology.regions.values())


def tone_of(texture: Tensor, topology: MeshTopology) -> Tensor:
    """Mean log color (B, 3) of the plain skin of textures (B, 3, S, S) in [0, 1]."""
    return mean_log_color(texture, plain_texels(topology, texture.shape[-1]))


def toned(texture: Tensor, tone: Tensor | None, topology: MeshTopology) -> Tensor:
    """Textures whose skin is brought to a tone by one factor a channel; eyeballs, teeth and the mouth stay.

    Args:
        texture: (B, 3, S, S) in [0, 1].
        tone: (B, 3) or (1, 3), mean log color of the plain skin; None leaves the texture as it is.
        topology: with the regions "face" and "skin".

    Returns:
        (B, 3, S, S), not clamped.

    Raises:
        ConfigError: the head model does not say where its skin is.
    """
    if tone is None:
        return texture
    if not has_skin(topology):
        raise ConfigError("this head model has no regions 'face' and 'skin', so its skin has no tone; use tone=off.")
    check_shape("tone", tone, "B 3")
    gain = (tone - tone_of(texture, topology)).exp()[:, :, None, None]
    skin = skin_texels(topology, texture.shape[-1]).to(texture)
    return texture * (1 + (gain - 1) * skin)


def tone_derivative(mean: Tensor, components: Tensor, topology: MeshTopology) -> tuple[Tensor, Tensor]:
    """How the tone of a linear texture model, ``mean + code @ components``, follows its code.

    Args:
        mean: (3, S, S).
        components: (K, 3, S, S).
        topology: as of :func:`toned`.

    Returns:
        The tone (3,) of the mean, and its derivative (K, 3) by the code there.
    """
    plain = plain_texels(topology, mean.shape[-1])[0].to(mean)
    share = plain / mean.clamp(min=_BLACK) / plain.sum()
    return tone_of(mean[None], topology)[0], torch.einsum("kchw,chw->kc", components, share)


def shared_tone(belief: ToneBelief) -> ToneBelief:
    """What photos of one person say together: beliefs (B) -> their mean by precision, in B equal rows.

    What the photos have in common, the face, errs alike in all: the covariance is the mean of theirs, not smaller.
    """
    precision = torch.linalg.inv(belief.covariance)
    total = precision.sum(0)
    mean = torch.linalg.solve(total, (precision @ belief.mean[..., None]).sum(0))[:, 0]
    covariance = torch.linalg.inv(total) * belief.batch
    return ToneBelief(mean.expand_as(belief.mean), covariance.expand_as(belief.covariance))
