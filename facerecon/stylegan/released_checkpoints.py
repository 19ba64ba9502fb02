"""The authors' released texture decoders: ``texgan_ffhq_uv.pth`` and its face-crop variant, read by key mapping.

Both are plain state dictionaries (``torch.save``) of the original StyleGAN2 layout, read with ``weights_only=True``, so
that nothing in them can run; so is a snapshot that holds one under ``G_ema`` or ``g_ema``. Their maps are HiFi3D++'s.

The face-crop variant makes the 630 x 630 px of the face at 1024 px: they are put into a canvas of 1664 px and joined
with the released template there. What it needs of ``topo_assets`` (``template_base_uv.png``,
``minor_valid_whole_mask.png``, ``hair_mask.png``) is looked for beside the checkpoint, and in the folders above it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import assets
from facerecon.assets.foreign import read_state
from facerecon.errors import AssetError, ConfigError, ShapeError
from facerecon.imaging.color import match_color
from facerecon.imaging.files import read_image
from facerecon.modes import in_own_modes, without_numbers
from facerecon.storage import all_finite, file_sha256, read_safetensors
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.texture_decoder import StyleGANDecoder, WStatistics, kept_statistics, synthesis_precision

__all__ = [
    "TOPOLOGY_PICTURES",
    "CroppedDecoder",
    "from_official",
    "kept_pictures",
    "read_official",
    "read_official_decoder",
]

_ADVICE = "get the released file again"
_CONTAINERS = ("g_ema", "G_ema")
_BLUR = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
CANVAS, TOP, LEFT = 1664, 187, 317
"""Face-crop variant: side of the canvas at a crop of 1024 px, and where the crop's first row and column go."""


# -- weights ---------------------------------------------------------------------------------------------


def _config(shapes: Mapping[str, tuple[int, ...]], path: str | Path) -> GeneratorConfig:
    """Sizes of the network, from the shapes of its parameters."""
    try:
        sizes = sorted(int(m[1]) for name in shapes if (m := re.fullmatch(r"synthesis\.b(\d+)\.torgb\.weight", name)))
        layers = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in shapes)
        channels = {size: shapes[f"synthesis.b{size}.torgb.weight"][1] for size in sizes}
        size, widest = sizes[-1], max(channels.values())
        narrow = [s * c for s, c in channels.items() if c < widest]
        base = max(narrow) if narrow else size * widest
        w_dim = shapes["mapping.w_avg"][0]
        return GeneratorConfig(size, shapes["mapping.fc0.weight"][1], w_dim, layers, base, widest)
    except (KeyError, IndexError, ConfigError, ValueError) as error:
        raise AssetError(
            f"{path} is not a StyleGAN2 generator as FFHQ-UV releases it (cannot read its sizes: {error}); {_ADVICE}."
        ) from None


def _official_names(config: GeneratorConfig) -> dict[str, str]:
    """{our name: theirs} of every parameter and buffer that both have."""
    names = {"w_mean": "mapping.w_avg", "synthesis.constant": "synthesis.b4.const"}
    for i in range(config.mapping_layers):
        names |= {f"mapping.layers.{i}.{kind}": f"mapping.fc{i}.{kind}" for kind in ("weight", "bias")}
    for i in range(int(math.log2(config.size)) - 1):
        ours, theirs = f"synthesis.blocks.{i}", f"synthesis.b{4 << i}"
        for mine, other in (("up", "conv0"), ("conv", "conv1"), ("color", "torgb")):
            if i == 0 and mine == "up":
                continue
            a, b = f"{ours}.{mine}", f"{theirs}.{other}"
            names |= {f"{a}.weight": f"{b}.weight", f"{a}.bias": f"{b}.bias"}
            names |= {f"{a}.style.{kind}": f"{b}.affine.{kind}" for kind in ("weight", "bias")}
            if mine != "color":
                names |= {f"{a}.noise": f"{b}.noise_const", f"{a}.noise_strength": f"{b}.noise_strength"}
    return names


def _filters(config: GeneratorConfig) -> list[str]:
    """Names of the resampling filters they store, which are constants of ours."""
    names = []
    for i in range(int(math.log2(config.size)) - 1):
        block = f"synthesis.b{4 << i}"
        names += [f"{block}.resample_filter", f"{block}.conv1.resample_filter"]
        names += [f"{block}.conv0.resample_filter"] if i else []
    return names


def from_official(state: Mapping[str, Tensor], path: str | Path = "the state dictionary") -> Generator:
    """A generator from a state dictionary of the original layout; every key is used, or checked, exactly once.

    Their 3x3 kernels are used as they are, ours are divided by the square root of the number of inputs in the network;
    so they are multiplied by it here.

    Args:
        state: {name: tensor}.
        path: for messages.

    Raises:
        AssetError: a key is missing, left over, of another shape or type, or holds NaN; one line names it.
    """
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    config = _config(shapes, path)
    with without_numbers():
        generator = Generator(config)
    names, filters = _official_names(config), _filters(config)
    missing = sorted({*names.values(), *filters} - set(shapes))
    extra = sorted(set(shapes) - {*names.values(), *filters})
    for kind, keys in (("lacks", missing), ("holds unknown", extra)):
        if keys:
            rest = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise AssetError(f"{path} {kind} '{keys[0]}'{rest}; expected a {config.size} px StyleGAN2. {_ADVICE}.")
    blur = torch.outer(_BLUR, _BLUR)
    for name in filters:
        if shapes[name] != (4, 4) or (state[name].float() - blur).abs().max() > 1e-4:
            raise AssetError(f"{path}: '{name}' is not the [1 3 3 1] filter; only that one is supported.")
    weights = {}
    for ours, expected in generator.state_dict().items():
        theirs = names[ours]
        value = state[theirs]
        if tuple(value.shape) != tuple(expected.shape):
            sizes = f"{tuple(value.shape)}, expected {tuple(expected.shape)}"
            raise AssetError(f"{path}: '{theirs}' is {sizes}; {_ADVICE}.")
        if not value.is_floating_point() or not all_finite(value):
            raise AssetError(f"{path}: '{theirs}' holds NaN, infinite or whole numbers; {_ADVICE}.")
        value = value.float()
        if value.dim() == 4 and value.shape[-1] == 3:
            value = value * math.sqrt(value[0].numel())
        weights[ours] = value.clone()
    generator.load_state_dict(weights, assign=True)
    return generator.requires_grad_(False).eval()


def read_official(path: str | Path) -> Generator:
    """Read a released ``.pth``: a state dictionary, or one under ``g_ema`` or ``G_ema``.

    Raises:
        AssetError: missing, not such a file, or one that holds more than tensors (it is not opened then).
    """
    return from_official(read_state(path, *_CONTAINERS), Path(path))


@in_own_modes
def read_official_decoder(path: str | Path, space: str | None = None, precision: str = "auto") -> StyleGANDecoder:
    """A released decoder, ready to fit. The statistics of its W are measured once, then kept in the cache.

    Args:
        path: a ``.pth``; one whose name holds ``cropface`` is the face-crop variant.
        space, precision: see :class:`~facerecon.stylegan.texture_decoder.StyleGANDecoder`; space ``"w+"`` if left out.

    Raises:
        AssetError: as :func:`read_official`, or the face-crop variant's pictures are missing.
    """
    path = Path(path)
    generator = read_official(path)
    generator.precision = synthesis_precision("auto", "cpu")
    key = file_sha256(path)[:16]
    statistics = kept_statistics(generator, key)
    space = "w+" if space is None else space
    if "cropface" not in path.name:
        decoder = StyleGANDecoder(generator, statistics, space, precision)
    else:
        parts = [read_image(_beside(path, name)) for name in TOPOLOGY_PICTURES]
        decoder = CroppedDecoder(generator, statistics, *parts, space=space, precision=precision)
    decoder.atlas = "hifi3dpp"
    return decoder


# -- the face-crop variant -------------------------------------------------------------------------------

TOPOLOGY_PICTURES = ("template_base_uv.png", "minor_valid_whole_mask.png", "hair_mask.png")
"""What the face-crop variant needs of ``topo_assets``."""


def _beside(path: Path, name: str) -> Path:
    """A file of ``topo_assets``, beside a checkpoint or above it."""
    for folder in (path.parent, *list(path.resolve().parents)[:3]):
        for found in (folder / name, folder / "topo_assets" / name):
            if found.is_file():
                return found
    raise AssetError(f"{path} makes a crop of the face, which needs the release's topo_assets/{name} beside it.")


def kept_pictures(names: Sequence[str] = TOPOLOGY_PICTURES) -> list[Tensor]:
    """Pictures of ``topo_assets`` (C, H, W) in [0, 1] by the names of their files, from the cache.

    Raises:
        AssetError: they were not converted, or one of them is not among them; the message holds the command.
    """
    names = [Path(name).stem for name in names]
    path = assets.locate("ffhq_uv_topology")
    tensors, _ = read_safetensors(path, "the pictures of topo_assets", "convert them again", names)
    return [tensors[name].float() / 255 for name in names]


class CroppedDecoder(StyleGANDecoder):
    """A generator of the face alone, whose textures are put into a template.

    Unlike FFHQ-UV: gradients reach the code through the blended crop; the template's colors follow without, as there.

    Args:
        generator, statistics, space, precision: see :class:`~facerecon.stylegan.texture_decoder.StyleGANDecoder`.
        template: (3, h, w) in [0, 1], the released one.
        face: (1 or 3, h, w), where the crop is shown.
        hair: the same, where the template covers it.
        size: S, of the result.
    """

    name = "stylegan crop"

    def __init__(
        self,
        generator: Generator,
        statistics: WStatistics,
        template: Tensor,
        face: Tensor,
        hair: Tensor,
        space: str = "w+",
        precision: str = "auto",
        size: int = 1024,
    ) -> None:
        super().__init__(generator, statistics, space, precision)
        self.crop, self.size = generator.size, size
        scale = self.crop / 1024
        self.canvas = round(CANVAS * scale)
        top, left = round(TOP * scale), round(LEFT * scale)
        self.window = slice(top, top + self.crop), slice(left, left + self.crop)
        for name, picture in (("template", template), ("face", face[:1]), ("hair", hair[:1])):
            if picture.dim() != 3:
                raise ShapeError(f"{name} must be (C, H, W); got {tuple(picture.shape)}.")
            large = F.interpolate(picture[None].float(), (self.canvas, self.canvas), mode="bilinear")
            self.register_buffer(name, large, persistent=False)
        box = round(23 * scale) | 1
        inside = (_box(self.hair, box) >= 1 - 1e-4).float()
        self.register_buffer("hair_share", _box(inside, box), persistent=False)
        self.register_buffer("face_share", _box(self.face, round(49 * scale) | 1), persistent=False)

    def place(self, crop: Tensor) -> Tensor:
        """Crops (B, 3, s, s) in [0, 1] joined with the template: (B, 3, S, S)."""
        if crop.shape[-1] != self.crop:
            crop = F.interpolate(crop, (self.crop, self.crop), mode="bilinear")
        canvas = self.template.expand(len(crop), -1, -1, -1).clone()
        canvas[:, :, self.window[0], self.window[1]] = crop
        mask = (self.face > 0.5).float().expand(len(crop), -1, -1, -1)
        template = self.template.expand_as(canvas)
        matched = match_color(template, canvas.detach(), mask, mask).clamp(0, 1)
        blended = torch.lerp(matched, canvas, self.face_share)
        covered = torch.lerp(blended, template, self.hair_share)
        return F.interpolate(covered, (self.size, self.size), mode="bilinear")

    def synthesis(self, codes: Tensor, size: int | None = None) -> Tensor:
        """(B, N, C) -> (B, 3, S, S); ``size`` is that of the crop before it is enlarged and placed."""
        return self.place(super().synthesis(codes, size))

    def start_basis(self) -> tuple[Tensor, Tensor]:
        """The generator's small basis at its place in the template, at a quarter of the size."""
        if self._start is None or self._start[0].device != self.template.device:
            mean, effect = super().start_basis()
            with torch.no_grad():
                small = max(64, self.size // 4)
                placed = F.interpolate(self.place(mean[None]), (small, small), mode="area")
                share = self.face_share * (1 - self.hair_share)
                changes = []
                for change in effect:  # linear in the crop, but for the template's colors
                    canvas = torch.zeros_like(self.template)
                    large = F.interpolate(change[None], (self.crop, self.crop), mode="bilinear")
                    canvas[:, :, self.window[0], self.window[1]] = large
                    changes.append(F.interpolate(canvas * share, (small, small), mode="area")[0])
            self._start = placed[0], torch.stack(changes)
        return self._start

    _start: tuple[Tensor, Tensor] | None = None


def _box(mask: Tensor, side: int) -> Tensor:
    """Mean over squares of an odd side, mirrored at the edges."""
    radius = side // 2
    return F.avg_pool2d(F.pad(mask, [radius] * 4, mode="reflect"), side, stride=1)
