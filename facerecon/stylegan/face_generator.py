"""MobileStyleGAN: the open face generator, a StyleGAN2-FFHQ student small enough for a CPU.

Its W space is StyleGAN2-FFHQ's own. Unlike StyleGAN2 it upsamples by the inverse Haar transform, its
convolutions are depthwise-separable, and demodulation and noise are constants, so that every layer is
``conv(style * x)``. Inside, feature maps are (B, H, W, C): over twice as fast on a CPU as (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import AssetError, InputError, ShapeError
from facerecon.modes import in_own_modes
from facerecon.storage import read_safetensors

__all__ = [
    "FACE_WINDOW",
    "MobileGenerator",
    "MobileMapping",
    "MobileSynthesis",
    "Window",
    "fit_preview",
    "framed",
    "inverse_haar",
    "load_generator",
    "seeded_latents",
]

STYLE_DIM = 512
NUM_STYLES = 23
"""Rows of the native W+: conv1, then (up, conv1, conv2) of 7 layers from 8 to 512 px, then the output."""

_WIDTHS = (512, 512, 512, 512, 256, 128, 64)  # channels after each layer, 8 to 512 px
_SLOPE = 0.2


class Window(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of a square map."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def corner(self) -> tuple[int, int]:
        """First row and column."""
        return self.top, self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def grown(self, by: int, size: int) -> Window:
        """``by`` more on each side, as far as a map of ``size`` has it."""
        low, high = (max(0, v - by) for v in self.corner), (min(size, v + by) for v in (self.bottom, self.right))
        (top, left), (bottom, right) = low, high
        return Window(top, bottom, left, right)

    def halved(self) -> Window:
        """What the map of half the size must have for this one."""
        return Window(self.top // 2, -(-self.bottom // 2), self.left // 2, -(-self.right // 2))

    def doubled(self) -> Window:
        """This part of the map of twice the size."""
        return Window(*(2 * v for v in self))

    def bands(self, rows: int) -> Iterator[Window]:
        """Cut into bands of at most so many rows."""
        for top in range(self.top, self.bottom, rows):
            yield Window(top, min(top + rows, self.bottom), self.left, self.right)

    def of(self, x: Tensor, have: Window) -> Tensor:
        """This part of a map (B, H, W, C) of which ``have`` is stored."""
        if self == have:
            return x
        (top, left), (row, column) = self.corner, have.corner
        return x[:, top - row : self.bottom - row, left - column : self.right - column]


FACE_WINDOW = Window(232, 992, 140, 884)
"""The face of an aligned picture, px, 54 % of the area: what losses on a face need. The networks that find landmarks
see more around it; what they measure of a window differs by up to 2 degrees, of a whole preview by less than 1."""


def framed(part: Tensor, window: Sequence[int] = FACE_WINDOW) -> Tensor:
    """A window (B, 3, h, w) of a picture or preview at its place in the whole, the rest filled with its nearest pixels.

    Args:
        part: made with the window.
        window: (top, bottom, left, right) px of the picture.
    """
    window, side = Window(*window), MobileGenerator.resolution
    scale = part.shape[-1] / window.width
    around = (window.left, side - window.right, window.top, side - window.bottom)
    return F.pad(part, [round(scale * v) for v in around], mode="replicate")


def inverse_haar(x: Tensor) -> Tensor:
    """One step of the inverse 2D Haar wavelet transform, orthonormal: (B, H, W, 4 C) -> (B, 2 H, 2 W, C).

    There are C averages, then as many vertical, horizontal and diagonal details.
    """
    b, h, w, channels = x.shape
    average, vertical, horizontal, diagonal = x.chunk(4, -1)
    top, bottom = average + vertical, average - vertical
    left, right = horizontal + diagonal, horizontal - diagonal
    quads = torch.stack((top + left, top - left, bottom + right, bottom - right), 3)  # (B, H, W, 4, C)
    quads = quads.mul_(0.5).unflatten(3, (2, 2)).transpose(2, 3)
    return quads.reshape(b, 2 * h, 2 * w, channels // 4)


class _Styled(nn.Module):
    """style * x, 3 x 3 depthwise, 1 x 1, constant noise, bias, leaky ReLU; on (B, H, W, C)."""

    def __init__(self, channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(STYLE_DIM, channels)
        self.depthwise = nn.Parameter(torch.zeros(channels, 1, 3, 3))
        self.pointwise = nn.Parameter(torch.zeros(out_channels, channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise = nn.Parameter(torch.zeros(size, size, 1))

    def forward(self, x: Tensor, w: Tensor, have: Window, want: Window) -> Tensor:
        """x is the part ``have`` of the map: ``want``, one pixel wider where the map goes on."""
        x = F.conv2d(x.permute(0, 3, 1, 2), self.depthwise, padding=1, groups=x.shape[-1]).permute(0, 2, 3, 1)
        x = want.of(x, have)
        # The depthwise step keeps channels apart, so the style can wait for the 1 x 1 weights.
        x = _pointwise(x, self.pointwise * self.modulation(w)[:, None], self.bias)
        noise = self.noise[want.top : want.bottom, want.left : want.right]
        return F.leaky_relu_(x.add_(noise), _SLOPE)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1 x 1 convolution of (B, H, W, C) with a weight (B, C', C) for each image."""
    if len(x) == 1:
        return F.linear(x, weight[0], bias)
    b, h, w, c = x.shape
    return torch.baddbmm(bias, x.reshape(b, h * w, c), weight.transpose(1, 2)).unflatten(1, (h, w))


class _Input(nn.Module):
    """The learned 4 x 4 start and its one full convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(1, channels, 4, 4))
        self.modulation = nn.Linear(STYLE_DIM, channels)
        self.weight = nn.Parameter(torch.zeros(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise = nn.Parameter(torch.zeros(4, 4, 1))

    def product(self, w: Tensor) -> Tensor:
        """(B, 4, 4, C) before noise, bias and activation."""
        x = self.modulation(w)[:, :, None, None] * self.constant
        return F.conv2d(x, self.weight, padding=1).permute(0, 2, 3, 1)

    def forward(self, w: Tensor) -> Tensor:
        return F.leaky_relu(self.product(w) + self.bias + self.noise, _SLOPE)


class _Layer(nn.Module):
    """Wavelet upsampling, then two styled convolutions."""

    def __init__(self, channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.up = nn.Linear(STYLE_DIM, channels)
        self.conv1 = _Styled(channels // 4, out_channels, size)
        self.conv2 = _Styled(out_channels, out_channels, size)

    def forward(self, x: Tensor, have: Window, want: Window, w_up: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        """x (B, h, w, C) is the part ``have`` of its map -> the part ``want`` of a map of twice the size."""
        size = len(self.conv1.noise)
        x = inverse_haar(x * self.up(w_up)[:, None, None])
        first = want.grown(1, size)
        wide = first.grown(1, size)
        x = self.conv1(wide.of(x, have.doubled()), w1, wide, first)
        return self.conv2(x, w2, first, want)


class _Output(nn.Module):
    """1 x 1 convolution to the wavelet coefficients of the RGB image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(STYLE_DIM, channels)
        self.weight = nn.Parameter(torch.zeros(12, channels))
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return inverse_haar(_pointwise(x, self.weight * self.modulation(w)[:, None], self.bias))


class MobileMapping(nn.Module):
    """z -> w: normalize, then eight linear layers with leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(STYLE_DIM, STYLE_DIM) for _ in range(8))

    def forward(self, z: Tensor) -> Tensor:
        """z (B, 512), any length (it is normalized) -> w (B, 512)."""
        if z.dim() != 2 or z.shape[1] != STYLE_DIM:
            raise ShapeError(f"z must be (B, {STYLE_DIM}); got {tuple(z.shape)}.")
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE) * 2**0.5
        return x


class MobileSynthesis(nn.Module):
    """w or native W+ -> image at 1024 px.

    Attributes:
        fused: without gradients on a CPU, work by the numba kernels: the same picture in less than half the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = True
        self.start = _Input(512)
        widths = (512, *_WIDTHS)
        self.layers = nn.ModuleList(_Layer(widths[k], widths[k + 1], 8 << k) for k in range(len(_WIDTHS)))
        self.output = _Output(_WIDTHS[-1])
        self.register_buffer("preview_weight", torch.zeros(3, _WIDTHS[-2]), persistent=False)
        self.register_buffer("preview_bias", torch.zeros(3), persistent=False)

    def forward(
        self, w: Tensor, clamp: bool = True, window: Sequence[int] | None = None, preview: bool = False
    ) -> Tensor:
        """Make the images: (B, 3, 1024, 1024) RGB in [0, 1], float32, or (B, 3, 256, 256); or the window of it.

        Args:
            w: (B, 512), or one style a layer (B, 23, 512). StyleGAN2's own W+ (18 x 512) does not fit.
            clamp: False leaves values a little beyond [0, 1], so that gradients reach saturated pixels.
            window: (top, bottom, left, right) px, even: only this part of the images, in about the share of the
                time that it has of the area. It is what a cut of the whole would give.
            preview: stop before the last layer and read the colors off its input, at 256 px: about 27 dB of the
                picture's averages in little more than half the time. The window, if any, in multiples of 4.
        """
        if w.dim() == 2 and w.shape[1] == STYLE_DIM:
            w = w[:, None].expand(-1, NUM_STYLES, -1)
        if w.dim() != 3 or w.shape[1:] != (NUM_STYLES, STYLE_DIM):
            hint = " StyleGAN2's W+ does not transfer; its W does." if w.shape[-2:] == (18, STYLE_DIM) else ""
            raise ShapeError(f"w must be (B, 512) or (B, {NUM_STYLES}, 512); got {tuple(w.shape)}.{hint}")
        windows = self._windows(window, 4 if preview else 2)
        windows = windows[:-1] if preview else windows
        rows = w.to(self.start.constant.dtype).unbind(1)
        if self._runs_fused(w):
            from facerecon.stylegan.face_generator_kernels import synthesize

            with torch.no_grad():
                return synthesize(self, rows, windows, clamp)
        x, have = self.start(rows[0]), Window(0, 4, 0, 4)
        for k, (layer, want) in enumerate(zip(self.layers, windows, strict=False)):
            x, have = layer(x, have, want, *rows[1 + 3 * k : 4 + 3 * k]), want
        if preview:
            image = F.linear(x.float(), self.preview_weight.float(), self.preview_bias.float()).permute(0, 3, 1, 2)
        else:
            image = self.output(x, rows[-1]).permute(0, 3, 1, 2).float().contiguous() * 0.5 + 0.5
        return image.clamp(0, 1) if clamp else image

    def _windows(self, window: Sequence[int] | None, unit: int) -> list[Window]:
        """What each layer must make, from 8 to 512 px; in previews (unit 4) the one before last no more."""
        side = 8 << len(self.layers)
        whole = Window(0, side, 0, side)
        wanted = whole if window is None else Window(*window)
        inside = 0 <= wanted.top < wanted.bottom <= side and 0 <= wanted.left < wanted.right <= side
        if not inside or any(v % unit for v in wanted):
            raise InputError(
                f"window must be (top, bottom, left, right) within {side} px, in steps of {unit}; got {tuple(wanted)}."
            )
        result = [wanted.halved()]
        for k in range(len(self.layers) - 1, 0, -1):
            exact = unit == 4 and len(result) == 1
            result.append((result[-1] if exact else result[-1].grown(2, 8 << k)).halved())
        return result[::-1]

    def _runs_fused(self, w: Tensor) -> bool:
        weight = self.start.constant
        differentiated = torch.is_grad_enabled() and (w.requires_grad or weight.requires_grad)
        runs = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32) and not differentiated
        return runs and self.fused and find_spec("numba") is not None


class MobileGenerator(nn.Module):
    """Mapping and synthesis, with the mean of W.

    Attributes:
        mapping: z (B, 512) -> w (B, 512).
        synthesis: w (B, 512) or w+ (B, 23, 512) -> (B, 3, 1024, 1024) in [0, 1].
        mean_w: (512,), the mean of w over the samples taken at conversion.
        std_w: (512,), their standard deviation.
    """

    num_styles = NUM_STYLES
    style_dim = STYLE_DIM
    resolution = 1024

    def __init__(self) -> None:
        super().__init__()
        self.mapping = MobileMapping()
        self.synthesis = MobileSynthesis()
        self.register_buffer("mean_w", torch.zeros(STYLE_DIM))
        self.register_buffer("std_w", torch.ones(STYLE_DIM))

    def forward(
        self, w: Tensor, clamp: bool = True, window: Sequence[int] | None = None, preview: bool = False
    ) -> Tensor:
        """:class:`MobileSynthesis`."""
        return self.synthesis(w, clamp, window, preview)

    def sample(self, seeds: int | Iterable[int], truncation: float = 0.7) -> Tensor:
        """w of the given seeds, each drawn by its own generator: a seed is the same face in any batch; (B, 512).

        Args:
            seeds: one number, or several.
            truncation: 0 is the mean face, 1 the full variety; at 0.7 artifacts are rare.
        """
        with torch.no_grad():
            w = self.mapping(seeded_latents(seeds).to(self.mean_w))
        return torch.lerp(self.mean_w, w, truncation)


def seeded_latents(seeds: int | Iterable[int], dim: int = STYLE_DIM) -> Tensor:
    """z of the given seeds, each drawn by its own generator: (B, dim).

    Raises:
        InputError: no seeds.
    """
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise InputError("sample needs at least one seed; got none.")
    return torch.stack([torch.randn(dim, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


@in_own_modes
def load_generator(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> MobileGenerator:
    """The frozen open face generator.

    Args:
        device: where it runs.
        dtype: precision of the synthesis; the mapping stays float32. bfloat16 takes about half the time on a CPU with
            bfloat16 instructions, at 49 to 54 dB of the float32 image.

    Raises:
        AssetError: it was not fetched, or the file is not what the converter writes.
    """
    path = assets.locate("mobile_stylegan")
    model = MobileGenerator()
    tensors, _ = read_safetensors(path, "a face generator", "run: python -m facerecon.assets fetch open --force")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise AssetError(
            f"{path} does not fit this generator ({reason}); run: python -m facerecon.assets fetch open"
        ) from None
    model.synthesis.to(dtype)
    shipped = assets.shipped("generator_preview.safetensors")
    preview, _ = read_safetensors(shipped, "a read-out of previews", "install facerecon again")
    model.synthesis.preview_weight, model.synthesis.preview_bias = preview["weight"], preview["bias"]
    return model.to(device).eval().requires_grad_(False)


def fit_preview(generator: MobileGenerator, seeds: Iterable[int], truncation: float = 0.8) -> tuple[Tensor, Tensor]:
    """The linear read-out of :class:`MobileSynthesis`'s previews: least squares against pictures averaged down.

    Args:
        generator: float32.
        seeds: pictures to fit to; 40 are enough.
        truncation: of :meth:`MobileGenerator.sample`.

    Returns:
        weight (3, C) and bias (3,), float32.
    """
    synthesis = generator.synthesis
    size, channels = 2 << len(synthesis.layers), _WIDTHS[-2]
    squares, products = torch.zeros(channels + 1, channels + 1).double(), torch.zeros(channels + 1, 3).double()
    for seed in seeds:
        w = generator.sample(seed, truncation)
        with torch.no_grad():
            picture = F.interpolate(synthesis(w), (size, size), mode="area")[0].flatten(1).T.double()
            seen: list[Tensor] = []
            handle = synthesis.layers[-1].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            fused, synthesis.fused = synthesis.fused, False
            try:
                synthesis(w)
            finally:
                synthesis.fused = fused
                handle.remove()
        x = F.pad(seen[0][0].flatten(0, 1).double(), (0, 1), value=1.0)
        squares += x.T @ x
        products += x.T @ picture
    ridge = 1e-6 * squares.diagonal().mean() * torch.eye(channels + 1, dtype=torch.float64)
    solution = torch.linalg.solve(squares + ridge, products).float()
    return solution[:-1].T.contiguous(), solution[-1].clone()
