"""Texture decoders and generators of faces by name, or decoders of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from facerecon import assets
from facerecon.assets.registry import function_at
from facerecon.errors import AssetError, ConfigError, check_number, nearest_name
from facerecon.modes import in_own_modes
from facerecon.storage import file_sha256, open_safetensors
from facerecon.stylegan.decoder import LinearDecoder, TextureDecoder

if TYPE_CHECKING:
    from facerecon.stylegan.face_generator import MobileGenerator
    from facerecon.stylegan.ffhq_generator import FFHQFaces
    from facerecon.stylegan.texture_decoder import StyleGANDecoder

__all__ = [
    "DECODERS",
    "DECODER_VERSIONS",
    "FACE_GENERATORS",
    "DecoderSpec",
    "decoder_kind",
    "is_decoder_file",
    "load_decoder",
    "load_face_generator",
    "read_decoder",
]


@dataclass(frozen=True)
class DecoderSpec:
    """Where the decoder of a name comes from.

    Args:
        kind: "linear" or "stylegan".
        shipped: its file in facerecon/data; or
        asset: its name in the cache, once it was converted from the FFHQ-UV release.
    """

    kind: str
    shipped: str = ""
    asset: str = ""


DECODERS: Mapping[str, DecoderSpec] = MappingProxyType(
    {
        "linear": DecoderSpec("linear", shipped="texture_linear.safetensors"),
        "open": DecoderSpec("stylegan", shipped="texture_open.safetensors"),
        "ffhq_uv": DecoderSpec("stylegan", asset="ffhq_uv_decoder"),
        "ffhq_uv_cropface": DecoderSpec("stylegan", asset="ffhq_uv_decoder_cropface"),
    }
)
"""Decoders by name."""

DECODER_VERSIONS: Mapping[str, str] = MappingProxyType({"linear": "2", "open": "2"})
"""Editions of decoders that have had others under their name: codes of one mean nothing to another."""

FACE_GENERATORS: Mapping[str, str] = MappingProxyType(
    {
        "mobile_stylegan": "facerecon.stylegan.face_generator:load_generator",
        "stylegan2_ffhq": "facerecon.stylegan.ffhq_generator:load_ffhq_faces",
    }
)
"""The open generator, and StyleGAN2-FFHQ, whose pictures FFHQ-UV normalizes (Sec. 3.1.1) and which is converted from
its released file: "module:function" (device, dtype) -> module, each imported when it is asked for.

Both take w (B, 512) of the same space W, in which directions, encoders and classifiers of W were learned; the rows of
their W+ differ (23 of MobileStyleGAN, 18 of StyleGAN2), so codes of W+ belong to one of them."""


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
        AssetError: it is not in the cache; the message holds the command.
    """
    if name not in FACE_GENERATORS:
        raise ConfigError(nearest_name(name, FACE_GENERATORS, "generator"))
    return function_at(FACE_GENERATORS[name])(device, dtype)


# -- texture decoders --------------------------------------------------------------------------------------


@in_own_modes
def load_decoder(
    name: str = "open", components: int | None = None, space: str | None = None, precision: str = "auto"
) -> TextureDecoder:
    """A frozen texture decoder by name.

    Args:
        name: ``"open"``, the open pack's StyleGAN2 decoder of normalized maps; ``"linear"``, a linear basis of such
            maps; ``"ffhq_uv"`` and ``"ffhq_uv_cropface"``, the release's, of HiFi3D++'s maps, once converted (``python
            -m facerecon.assets convert ffhq_uv``); or the path of a file: a linear basis (tools/build_texture_basis.py)
            or a StyleGAN2 decoder (train/texture_gan.py), .safetensors; or the authors' released
            ``texgan_ffhq_uv.pth`` or its face-crop variant, which make HiFi3D++'s maps.
        components: how many components of a linear basis to use, or directions of W of a StyleGAN2 decoder (as in
            ``space="w/64"``); all if left out.
        space: of a StyleGAN2 decoder: ``"z"``, ``"w"``, ``"w+"`` (if left out), ``"w/K"`` or ``"w+/K"``.
        precision: of a StyleGAN2 decoder: ``"auto"``, ``"float32"``, ``"bfloat16"`` (CPU, CUDA), ``"float16"`` (CUDA).

    Raises:
        ConfigError: unknown name or space, or a space for a linear basis.
        AssetError: the file is missing or altered, a pickle (never opened), or holds numbers that are not finite.
    """
    if components is not None:
        check_number("components", components, 1, whole=True)
    if is_decoder_file(name):
        path = Path(name).expanduser()
    elif name in DECODERS:
        spec = DECODERS[name]
        path = assets.shipped(spec.shipped) if spec.shipped else assets.locate(spec.asset)
    else:
        raise ConfigError(
            nearest_name(name, DECODERS, "decoder") + " A file of your own must end in .safetensors (or .pth)."
        )
    if decoder_kind(name) == "linear":
        if space not in (None, "linear"):
            raise ConfigError(f"decoder '{name}' is a linear basis and has no latent space '{space}'; leave it out.")
        decoder: TextureDecoder = LinearDecoder.from_file(path, components)
    else:
        if components is not None:
            base = (space or "w").partition("/")[0]
            space = f"{base}/{components}"
        decoder = read_decoder(path, space, precision)
    return decoder.eval().requires_grad_(False)


def decoder_kind(name: str) -> str:
    """``"stylegan"`` or ``"linear"``: what the decoder of that name, or the file at that path, is.

    A file that is neither counts as linear; the reader of linear bases then raises. Only its header is read.
    """
    if not is_decoder_file(name):
        return DECODERS[name].kind if name in DECODERS else "linear"
    path = Path(name).expanduser()
    if path.suffix == ".pth":
        return "stylegan"
    try:
        with open_safetensors(path) as file:
            return "stylegan" if "synthesis.constant" in set(file.keys()) else "linear"
    except (SafetensorError, OSError, ValueError):
        return "linear"


def is_decoder_file(name: str) -> bool:
    """Whether :func:`load_decoder` takes this for a path, not for a name."""
    return bool(Path(name).suffix) or "/" in name or os.sep in name


@in_own_modes
def read_decoder(path: str | Path, space: str | None = None, precision: str = "auto") -> StyleGANDecoder:
    """Read what :func:`~facerecon.stylegan.texture_decoder.save_decoder` wrote, or a released ``.pth``.

    Args:
        path: the file.
        space: see :class:`~facerecon.stylegan.texture_decoder.StyleGANDecoder`; ``"w+"`` if left out.
        precision: see there.

    Raises:
        AssetError: not such a file; or space z, and neither the file nor the cache holds the mapping network.
        ConfigError: an unknown space or precision.
    """
    from facerecon.stylegan.released_checkpoints import CroppedDecoder, kept_pictures, read_official_decoder
    from facerecon.stylegan.texture_decoder import StyleGANDecoder, WStatistics, kept_statistics, parse_space
    from facerecon.stylegan.weights import read_generator

    if Path(path).suffix == ".pth":
        return read_official_decoder(path, space, precision)
    space = "w+" if space is None else space
    kind, _ = parse_space(space)
    generator, facts = read_generator(path)
    if facts["statistics"]:
        statistics = WStatistics.from_tensors(facts["statistics"], path)
    elif facts["mapping"]:
        statistics = kept_statistics(generator, file_sha256(path)[:16])
    else:
        raise AssetError(f"{path} holds neither a mapping network nor statistics of W; write it with save_decoder.")
    mapping = None
    if kind == "z" and not facts["mapping"]:
        if facts["about"].get("mapping_network") != "open":
            raise AssetError(f"{path} holds no mapping network, so there is no space z; use w or w+.")
        mapping = _open_mapping(path)
        if generator.projection is not None:
            mapping = nn.Sequential(mapping, generator.projection)
    if facts["about"].get("crop") == "face":
        decoder: StyleGANDecoder = CroppedDecoder(
            generator, statistics, *kept_pictures(), space=space, precision=precision
        )
    else:
        decoder = StyleGANDecoder(generator, statistics, space, precision, mapping)
    decoder.atlas = str(facts["about"].get("atlas", "makehuman"))
    return decoder


def _open_mapping(path: str | Path) -> nn.Module:
    """The mapping network of the open face generator."""
    try:
        return load_face_generator().mapping
    except AssetError as error:
        raise AssetError(
            f"{path} leaves its mapping network to the open face generator, which is not here ({error}); "
            "fetch it, or use latent space w or w+."
        ) from None
