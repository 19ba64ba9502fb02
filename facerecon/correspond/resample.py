"""Decoders of the makehuman atlas for other heads, and what else a head model lacks for a fit: points and regions.

The texture decoders that come with the library make maps of the makehuman atlas. Each texel of another head's atlas is
given its place in that atlas, once (:mod:`facerecon.correspond.texels`); then textures are resampled. Where the target
goes on (shoulders), they take the mean color of the neck; in the mouth, the one of the same part (teeth, tongue, the
rest).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.correspond.registration import SOURCE, carry_points, mean_shape, registered
from facerecon.correspond.texels import region_faces, texel_table
from facerecon.errors import ConfigError
from facerecon.modes import in_own_modes
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.render.uv import pad_islands, sampling_grid, uv_raster
from facerecon.stylegan.decoder import LinearDecoder, TextureDecoder
from facerecon.stylegan.load import load_decoder

__all__ = ["ResampledDecoder", "Retargeted", "albedo_decoder", "retarget", "decoder_for"]

SIZE = 384
"""Texels a side of a resampled basis: other atlases give the face a smaller share than makehuman's 256 px."""

TOO_FAR = 0.6
"""World units (0.1 m) from the source's skin beyond which a texel takes the neck's color alone."""

INNER = ("mouth", "sockets", "tongue", "teeth")
"""Regions that do not lie on the skin; of two that overlap, the later one fills."""

FILLS = ("neck", "teeth", "tongue", "sockets", "mouth", "eyes")
"""Regions of the source whose mean color fills texels without a partner."""


@dataclass(frozen=True)
class Retargeted:
    """A head model ready to be fitted, and where its texels lie in the makehuman atlas.

    Args:
        model: with a sliding jaw contour, face-mesh points and regions.
        uv: (S, S, 2) place of each texel in the source's atlas.
        share: (S, S) in [0, 1], how much of the color there is taken; the rest is the mean of region ``FILLS[fill]``.
        fill: (S, S) int64.
    """

    model: MorphableModel
    uv: Tensor
    share: Tensor
    fill: Tensor

    def to(self, device: torch.device) -> Retargeted:
        """The same table on another device; the model stays where it is."""
        return replace(self, uv=self.uv.to(device), share=self.share.to(device), fill=self.fill.to(device))

    def texture(self, source: Tensor, source_model: MorphableModel) -> Tensor:
        """Maps in the source's atlas (B, C, s, s) as maps of the target (B, C, S, S), padded over the islands."""
        grid = sampling_grid(self.uv)[None].to(source)
        taken = F.grid_sample(source.flatten(0, 1)[None], grid, padding_mode="border", align_corners=False)[0]
        taken = taken.unflatten(0, source.shape[:2])
        filled = _region_means(source, source_model)[:, :, self.fill.to(source.device)]
        mixed = filled + (taken - filled) * self.share.to(source)
        return pad_islands(mixed, self.model.topology.map(lambda t: t.to(source.device)), None)


def _region_means(texture: Tensor, model: MorphableModel) -> Tensor:
    """(B, C, len(FILLS)) mean color of regions; that of the mouth stands in for a region the model lacks.

    The first of the B maps is a texture (its brighter half makes the color of teeth), the others may be components.
    """
    topology = model.topology
    index = uv_raster(topology, texture.shape[-1]).face_index[0].to(texture.device)
    means = []
    for name in FILLS:
        rows = topology.regions[name] if name in topology.regions else topology.regions["mouth"]
        if name == "mouth":
            rows = rows & ~topology.regions.get("teeth", rows.logical_not())
        flags = torch.cat([rows, rows.new_zeros(1)]).to(texture.device)[index]
        if name == "teeth":  # the part of their maps that shows, not the shade behind
            brightness = texture[0].mean(0)
            flags = flags & (brightness > brightness[flags].median())
        means.append(texture[:, :, flags].mean(-1))
    return torch.stack(means, -1)


@in_own_modes
def retarget(model: MorphableModel, source: MorphableModel | None = None) -> Retargeted:
    """Make any head model ready for a fit with what the makehuman head carries; computed once, then cached.

    Args:
        model: loaded by :func:`~facerecon.morphable.load_face_model`.
        source: the makehuman head if left out.

    Raises:
        AssetError: the makehuman head is not in the cache, or the cache cannot be written.
    """
    source = load_face_model(SOURCE, num_identity=0) if source is None else source
    shape = registered(source, model)
    skin = ~region_faces(model, *INNER, "eyes")  # and what belongs to no region
    table = texel_table(source, model, shape, mean_shape(model), SIZE, TOO_FAR, skin)
    uv, share = torch.zeros(SIZE, SIZE, 2), torch.zeros(SIZE, SIZE)
    uv[table.inside], share[table.inside] = table.uv, table.share
    ready = carry_points(source, model, shape.astype(np.float32).astype(np.float64))
    return Retargeted(ready, uv, share, _fill(model))


def _fill(target: MorphableModel) -> Tensor:
    """(S, S) int64, index into :data:`FILLS` of what fills a texel without a partner."""
    face = uv_raster(target.topology, SIZE).face_index[0].cpu()
    fill = torch.full(face.shape, FILLS.index("neck"))
    for name in (*INNER, "eyes"):
        rows = torch.from_numpy(np.append(region_faces(target, name), False))
        fill[rows[face]] = FILLS.index(name)
    fill[face < 0] = 0
    return fill


# -- decoders ----------------------------------------------------------------------------------------------


@in_own_modes
def albedo_decoder(model: MorphableModel, components: int | None = 80) -> LinearDecoder:
    """A model's own linear albedo as a texture decoder: per-vertex colors baked into its UV map.

    Args:
        model: with an albedo basis.
        components: leading ones to keep; None keeps all.

    Raises:
        ConfigError: the model has no albedo of its own.
    """
    if not model.num_albedo:
        raise ConfigError(f"face model '{model.name}' has no albedo of its own; use decoder=linear.")
    topology = model.topology
    raster = uv_raster(topology, SIZE)
    inside = raster.face_index[0] >= 0
    corners = topology.faces[raster.face_index[0][inside]]
    weights = raster.barycentric[0][inside][..., None].to(model.mean)
    colors = torch.cat([model.albedo_mean[None], model.albedo_basis[:components]])
    maps = []
    for color in colors:
        image = color.new_zeros(SIZE, SIZE, 3)
        image[inside] = (color[corners] * weights).sum(1)
        maps.append(image.permute(2, 0, 1))
    maps = pad_islands(torch.stack(maps), topology, None)
    decoder = LinearDecoder(maps[0], maps[1:])
    decoder.name = "albedo"
    return decoder.eval().requires_grad_(False)


class ResampledDecoder(TextureDecoder):
    """A decoder of the makehuman atlas whose textures are resampled to another head's.

    Args:
        base: what decodes.
        retargeted: where the texels of the other head lie.
        source: the makehuman head.
    """

    def __init__(self, base: TextureDecoder, retargeted: Retargeted, source: MorphableModel) -> None:
        super().__init__()
        self.base = base
        self.name, self.space, self.rows, self.dim = base.name, base.space, base.rows, base.dim
        self.atlas = retargeted.model.topology.name
        self.retargeted, self.source = retargeted, source
        self.size = retargeted.uv.shape[0]
        with torch.no_grad():
            mean, effect = base.start_basis()
            maps = retargeted.texture(torch.cat([mean[None], effect]), source)
        self.register_buffer("start_maps", maps, persistent=False)
        self._of: dict[torch.device, Retargeted] = {}

    @in_own_modes
    def _on(self, device: torch.device) -> Retargeted:
        if device not in self._of:
            self._of[device] = self.retargeted.to(device)
        return self._of[device]

    def synthesis(self, codes: Tensor, size: int | None = None) -> Tensor:
        """(B, N, C) -> (B, 3, S, S) in the other head's atlas; ``size`` is that of what is resampled."""
        texture = self.base(codes, size)
        return self._on(texture.device).texture(texture, self.source)

    def start_basis(self) -> tuple[Tensor, Tensor]:
        """The base's, resampled."""
        return self.start_maps[0], self.start_maps[1:]

    def from_start(self, coefficients: Tensor) -> Tensor:
        """The base's."""
        return self.base.from_start(coefficients)

    def to_w(self, codes: Tensor) -> Tensor:
        """The base's."""
        return self.base.to_w(codes)

    def from_w(self, w: Tensor) -> Tensor:
        """The base's."""
        return self.base.from_w(w)

    def to_sphere(self, codes: Tensor) -> Tensor:
        """The base's."""
        return self.base.to_sphere(codes)


@in_own_modes
def decoder_for(
    model: MorphableModel,
    name: str = "linear",
    components: int | None = None,
    retargeted: Retargeted | None = None,
    space: str | None = None,
    precision: str = "auto",
) -> TextureDecoder:
    """A texture decoder in the atlas of a head model.

    Args:
        model: the head.
        name: as for :func:`~facerecon.stylegan.load.load_decoder`, a decoder of the makehuman atlas (carried over,
            where the head is another) or of the head's own; or "albedo", the model's own linear albedo.
        components, space, precision: as for :func:`~facerecon.stylegan.load.load_decoder` (of an albedo 80
            components).
        retargeted: of :func:`retarget`, where it is at hand.

    Raises:
        ConfigError: an unknown name, "albedo" for a model that has none, or a decoder of an atlas that is neither the
        head's nor makehuman's.
        AssetError: a file is missing.
    """
    if name == "albedo":
        if space not in (None, "linear"):
            raise ConfigError(f"decoder 'albedo' is linear and has no latent space '{space}'; leave it out.")
        return albedo_decoder(model, components or 80)
    base = load_decoder(name, components, space, precision)
    if base.atlas == model.topology.name:
        return base
    if base.atlas != SOURCE:
        raise ConfigError(f"decoder '{name}' makes textures of {base.atlas}, not of {model.name}; use decoder=linear.")
    source = load_face_model(SOURCE, num_identity=0)
    retargeted = retargeted or retarget(model, source)
    if not isinstance(base, LinearDecoder):
        return ResampledDecoder(base, retargeted, source).eval().requires_grad_(False)
    with torch.no_grad():
        maps = retargeted.texture(torch.cat([base.mean[None], base.basis]), source)
    decoder = LinearDecoder(maps[0], maps[1:])
    decoder.atlas = model.topology.name
    return decoder.eval().requires_grad_(False)
