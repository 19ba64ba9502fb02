"""Generators as files: safetensors with the sizes in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facerecon.errors import AssetError, ConfigError
from facerecon.modes import without_numbers
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.linear_basis import quantized

__all__ = ["FORMAT", "read_generator", "save_generator"]

FORMAT = "facerecon.generator/1"
_EXACT = ("w_mean", "projection.center", "projection.directions")
_LINEAR, _SCALE, _MIX = "synthesis.linear", "synthesis.linear_scale", "synthesis.linear_mix"
_CHANNELS = ".scale"
"""What the names of the scales of 8-bit weights end in."""
_PARITY = 0.99  # how even (1) or odd (-1) images must be to be stored by half
_ADVICE = "give a decoder.safetensors as train/texture_gan.py writes it"


def save_generator(
    path: str | Path,
    generator: Generator,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    mapping: bool = True,
    extra: Mapping[str, Tensor] | None = None,
    compact: bool = False,
) -> Path:
    """Write a generator.

    Args:
        path: safetensors file to write.
        generator: on any device.
        metadata: plain data about it (steps, figures, license ...), kept as JSON.
        dtype: of the stored parameters; statistics stay float32.
        mapping: store the mapping network too. Without it the file serves W and W+.
        extra: further tensors, under names of one's own that start with ``"statistics."``.
        compact: store weights and learned constants in 8 bits, with a scale for each output channel, and the linear
            part likewise, with a scale for each of its directions; where a flip maps the space of these onto itself,
            as it does those of maps and their mirror images, by half.

    Raises:
        OutputError: the file cannot be written; one that was there is untouched.
    """
    tensors = {
        name: value.detach().to("cpu", torch.float32 if name in _EXACT else dtype).contiguous()
        for name, value in generator.state_dict().items()
        if mapping or not name.startswith("mapping.")
    }
    if compact:
        for name, value in generator.synthesis.named_parameters(prefix="synthesis"):
            if value.dim() > 1:
                tensors[name], tensors[name + _CHANNELS] = quantized(value.detach().cpu().float())
        if generator.synthesis.linear is not None:
            tensors |= _packed(generator.synthesis.linear.detach().cpu().float())
    for name, value in (extra or {}).items():
        if not name.startswith("statistics."):
            raise ConfigError(f"an extra tensor of a generator file must be called statistics.NAME; got {name!r}.")
        tensors[name] = value.detach().cpu().contiguous()
    config = {name: getattr(generator.config, name) for name in GeneratorConfig.__dataclass_fields__}
    header = {"format": FORMAT, "config": config, "mapping": mapping, "about": dict(metadata or {})}
    return write_whole(path, safetensors_bytes(tensors, {"facerecon": json.dumps(header, sort_keys=True)}))


def read_generator(path: str | Path) -> tuple[Generator, dict[str, Any]]:
    """Read a file of :func:`save_generator`: a generator, frozen and in float32.

    Returns:
        The generator, and {"about": metadata, "mapping": whether a mapping network was stored, "statistics": {name:
        tensor}}. A mapping network that was not stored is None in the generator.

    Raises:
        AssetError: no such file, a pickle (never opened), not a generator, or numbers that are not finite.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path, "a texture generator", _ADVICE)
    try:
        header = parse_json(metadata.get("facerecon", ""))
        if header["format"] != FORMAT:
            raise ValueError(header["format"])
        config = GeneratorConfig.from_mapping(header["config"])
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        what = f"is not a texture generator of this library ({error or 'no header'})"
        raise AssetError(f"{path} {what}; {_ADVICE}.") from None
    with without_numbers():
        generator = Generator(config)
    statistics = {name.removeprefix("statistics."): t for name, t in tensors.items() if name.startswith("statistics.")}
    weights = {name: t.float() for name, t in tensors.items() if not name.startswith("statistics.")}
    if _SCALE in weights:
        _unpack(weights, path)
    for name in [name for name in weights if name.endswith(_CHANNELS)]:
        scale, values = weights.pop(name), weights.get(name.removesuffix(_CHANNELS))
        if values is None or values.dim() < 2 or scale.shape != values.shape[:1]:
            raise AssetError(f"{path} is damaged: {name} does not fit its weights; get it again.")
        values *= scale.view(-1, *[1] * (values.dim() - 1))
    if "synthesis.base" in weights:
        generator.synthesis.base = torch.empty(3, config.size, config.size, device="meta")
    if "synthesis.linear" in weights:
        side = weights["synthesis.linear"].shape[-1]
        generator.synthesis.linear = torch.empty(config.w_dim, 3, side, side, device="meta")
    if "synthesis.gain" in weights:
        generator.synthesis.gain = torch.empty(1, config.size, config.size, device="meta")
    stored = not config.mapping_layers or any(name.startswith("mapping.") for name in weights)
    if not stored:
        generator.mapping = None
    expected = {name: tuple(t.shape) for name, t in generator.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise AssetError(
            f"{path} is damaged: {odd} should be {expected.get(odd, 'absent')}, is {found.get(odd, 'absent')}; "
            f"get it again."
        )
    generator.load_state_dict(weights, assign=True)
    about = {"about": header.get("about", {}), "mapping": stored, "statistics": statistics}
    return generator.requires_grad_(False).eval(), about


def _packed(linear: Tensor) -> dict[str, Tensor]:
    """A linear part (K, 3, s, s) in 8 bits, each image with a scale; where a basis of even and odd images spans
    the same space, the left halves of those, with the matrix that mixes them. Odd ones have a negative scale."""
    tensors, sign = {}, torch.ones(len(linear))
    found = _even_and_odd(linear)
    if found is not None:
        mix, linear, sign = found
        linear = linear[..., : linear.shape[-1] // 2]
        tensors[_MIX] = mix
    packed, scale = quantized(linear)
    return tensors | {_LINEAR: packed.contiguous(), _SCALE: scale * sign}


def _even_and_odd(linear: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """mix (K, K), orthonormal images (K, 3, s, s), their signs (K,) under a flip: ``linear = mix images``; or None."""
    rows, flipped = linear.flatten(1).double(), linear.flip(-1).flatten(1).double()
    root, failed = torch.linalg.cholesky_ex(rows @ rows.T)
    if failed or linear.shape[-1] % 2:
        return None
    flip = torch.linalg.solve_triangular(root, rows @ flipped.T, upper=False)
    flip = torch.linalg.solve_triangular(root, flip.T, upper=False)
    values, vectors = torch.linalg.eigh((flip + flip.T) / 2)
    if bool((values.abs() < _PARITY).any()):
        return None
    sign = values.sign()
    images = (vectors.T @ torch.linalg.solve_triangular(root, rows, upper=False)).view(linear.shape)
    images = (images + sign.view(-1, 1, 1, 1) * images.flip(-1)) / 2
    return (root @ vectors).float(), images.float(), sign.float()


def _unpack(weights: dict[str, Tensor], path: Path) -> None:
    """Undo :func:`_packed` in place."""
    scale, mix, linear = weights.pop(_SCALE), weights.pop(_MIX, None), weights.get(_LINEAR)
    fits = linear is not None and linear.dim() == 4 and scale.shape == linear.shape[:1]
    if not fits or (mix is not None and mix.shape != (len(scale), len(scale))):
        raise AssetError(f"{path} is damaged: its linear part and the scale of it do not fit; get it again.")
    linear = linear * scale.abs().view(-1, 1, 1, 1)
    if mix is not None:
        linear = torch.cat([linear, scale.sign().view(-1, 1, 1, 1) * linear.flip(-1)], -1)
        linear = (mix @ linear.flatten(1)).view(linear.shape)
    weights[_LINEAR] = linear
