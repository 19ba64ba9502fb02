"""The open generator's steps between its matrix products, fused: numba kernels for a CPU without gradients.

A layer of the generator is memory traffic more than arithmetic. Each kernel here makes one pass over its input:
noise, bias and leaky ReLU of the product before, style and inverse Haar transform where the layer has them, and the
3 x 3 depthwise step before the next product. Maps are bfloat16 (as uint16) or float32, the arithmetic is float32.

Every map is a window of a larger one: an array (h, w, C) and the row and column at which it begins. Beyond the whole
map there are zeros, as the convolution pads; what lies between the window and the border is never asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from facerecon.run.thread_pool import compiled, run_bands

if TYPE_CHECKING:
    from facerecon.stylegan.face_generator import MobileSynthesis, Window

__all__ = ["output_image", "read_out", "styled_depthwise", "synthesize", "wavelet_depthwise"]

_FAST = {"contract", "nsz"}

SLOPE = np.float32(0.2)
ZERO, ONE = np.float32(0), np.float32(1)


@intrinsic
def _load(typing_context, value):
    """An element of a map as float32: bfloat16 bits in a uint16, or a float32 as it is."""

    def widen(context, builder, signature, arguments):
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    def keep(context, builder, signature, arguments):
        return arguments[0]

    return types.float32(value), widen if value == types.uint16 else keep


@intrinsic
def _store(typing_context, value, like):
    """A float32 as an element of a map of the type of ``like``; bfloat16 rounds to nearest, ties to even."""

    def narrow(context, builder, signature, arguments):
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        bits = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        return builder.trunc(builder.lshr(bits, ir.Constant(word, 16)), ir.IntType(16))

    def keep(context, builder, signature, arguments):
        return arguments[0]

    return like(types.float32, like), narrow if like == types.uint16 else keep


@compiled(inline="always", fastmath=_FAST)
def _activated(value, shift):
    value = value + shift
    return max(value, SLOPE * value)


@compiled(fastmath=_FAST)
def _convolve_row(above, here, below, kernel, out):
    """One row of a 3 x 3 depthwise convolution. above, here, below (w + 2, C), kernel (9, C) -> out (w, C)."""
    width, channels = out.shape
    for column in range(width):
        for c in range(channels):
            total = above[column, c] * kernel[0, c]
            total += above[column + 1, c] * kernel[1, c]
            total += above[column + 2, c] * kernel[2, c]
            total += here[column, c] * kernel[3, c]
            total += here[column + 1, c] * kernel[4, c]
            total += here[column + 2, c] * kernel[5, c]
            total += below[column, c] * kernel[6, c]
            total += below[column + 1, c] * kernel[7, c]
            total += below[column + 2, c] * kernel[8, c]
            out[column, c] = _store(total, out[column, c])


@compiled(fastmath=_FAST)
def styled_depthwise(x, corner, noise, bias, kernel, size, out, out_corner):
    """Noise, bias, leaky ReLU, then the depthwise step of the next convolution.

    Args:
        x: (h, w, C) of a (size, size, C) map, from row ``corner[0]`` and column ``corner[1]``.
        noise: (size, size).
        bias: (C,).
        kernel: (9, C).
        out: (h', w', C), written; it begins at ``out_corner``.
    """
    height, width, channels = out.shape
    first_row, first_column = out_corner
    ring = np.zeros((3, width + 2, channels), np.float32)
    for row in range(first_row - 1, first_row + height + 1):
        line = ring[row % 3]
        if row < 0 or row >= size:
            line[:] = ZERO
        else:
            for k in range(width + 2):
                column = first_column - 1 + k
                if column < 0 or column >= size:
                    continue
                grain = noise[row, column]
                for c in range(channels):
                    line[k, c] = _activated(_load(x[row - corner[0], column - corner[1], c]), bias[c] + grain)
        if row > first_row:
            _convolve_row(ring[(row - 2) % 3], ring[(row - 1) % 3], line, kernel, out[row - 1 - first_row])


@compiled(fastmath=_FAST)
def wavelet_depthwise(x, corner, noise, bias, style, kernel, size, out, out_corner):
    """Noise, bias, leaky ReLU, style, inverse Haar transform, then the depthwise step of the next convolution.

    Args:
        x: (h, w, 4 C) of a (size / 2, size / 2, 4 C) map, from ``corner``.
        noise: (size / 2, size / 2).
        bias: (4 C,).
        style: (4 C,), halved.
        kernel: (9, C).
        out: (h', w', C) of a (size, size, C) map, written; it begins at ``out_corner``.
    """
    height, width, channels = out.shape
    first_row, first_column = out_corner
    half = size // 2
    source_row, source_column = (first_row - 1) // 2, (first_column - 1) // 2
    pairs = (first_column + width) // 2 - source_column + 1
    ring = np.zeros((4, 2 * pairs, channels), np.float32)
    skip = first_column - 1 - 2 * source_column
    for source in range(source_row, (first_row + height) // 2 + 1):
        top, bottom = ring[(2 * source) % 4], ring[(2 * source + 1) % 4]
        if source < 0 or source >= half:
            top[:] = ZERO
            bottom[:] = ZERO
        else:
            for k in range(pairs):
                column = source_column + k
                if column < 0 or column >= half:
                    continue
                grain = noise[source, column]
                quad = x[source - corner[0], column - corner[1]]
                for c in range(channels):
                    a = _activated(_load(quad[c]), bias[c] + grain) * style[c]
                    v = _activated(_load(quad[channels + c]), bias[channels + c] + grain) * style[channels + c]
                    h = (
                        _activated(_load(quad[2 * channels + c]), bias[2 * channels + c] + grain)
                        * style[2 * channels + c]
                    )
                    d = (
                        _activated(_load(quad[3 * channels + c]), bias[3 * channels + c] + grain)
                        * style[3 * channels + c]
                    )
                    top[2 * k, c] = (a + v) + (h + d)
                    top[2 * k + 1, c] = (a + v) - (h + d)
                    bottom[2 * k, c] = (a - v) + (h - d)
                    bottom[2 * k + 1, c] = (a - v) - (h - d)
        for row in range(2 * source - 1, 2 * source + 1):  # rows whose lower neighbor now stands in the ring
            if first_row <= row < first_row + height:
                _convolve_row(
                    ring[(row - 1) % 4, skip:],
                    ring[row % 4, skip:],
                    ring[(row + 1) % 4, skip:],
                    kernel,
                    out[row - first_row],
                )


@compiled(fastmath={"contract", "nsz", "reassoc"})
def output_image(x, corner, noise, bias, weight, shift, clamp, image):
    """Noise, bias, leaky ReLU, the 1 x 1 step to the picture's wavelets and the inverse Haar transform.

    Args:
        x: (h, w, C), from ``corner`` of its map.
        noise: (size, size) of the whole map.
        bias: (C,).
        weight: (12, C) and shift: (12,), such that the transform's sums are the picture's values.
        clamp: limit the picture to [0, 1].
        image: (3, 2 h, 2 w) float32, written.
    """
    height, width, channels = x.shape
    band = np.empty(12, np.float32)
    value = np.empty(channels, np.float32)
    for row in range(height):
        for column in range(width):
            grain = noise[row + corner[0], column + corner[1]]
            for c in range(channels):
                value[c] = _activated(_load(x[row, column, c]), bias[c] + grain)
            for k in range(12):
                total = ZERO
                for c in range(channels):
                    total += value[c] * weight[k, c]
                band[k] = total + shift[k]
            for c in range(3):
                a, v, h, d = band[c], band[3 + c], band[6 + c], band[9 + c]
                image[c, 2 * row, 2 * column] = (a + v) + (h + d)
                image[c, 2 * row, 2 * column + 1] = (a + v) - (h + d)
                image[c, 2 * row + 1, 2 * column] = (a - v) + (h - d)
                image[c, 2 * row + 1, 2 * column + 1] = (a - v) - (h - d)
    if clamp:
        for c in range(3):
            for row in range(2 * height):
                line = image[c, row]
                for column in range(2 * width):
                    line[column] = min(max(line[column], ZERO), ONE)


@compiled(fastmath={"contract", "nsz", "reassoc"})
def read_out(x, corner, noise, bias, weight, shift, clamp, image):
    """Noise, bias, leaky ReLU, then a linear read-out of each pixel's color.

    Args:
        x: (h, w, C), from ``corner`` of its map.
        noise: (size, size) of the whole map.
        bias: (C,).
        weight: (3, C).
        shift: (3,).
        clamp: limit to [0, 1].
        image: (3, h, w) float32, written.
    """
    height, width, channels = x.shape
    value = np.empty(channels, np.float32)
    for row in range(height):
        for column in range(width):
            grain = noise[row + corner[0], column + corner[1]]
            for c in range(channels):
                value[c] = _activated(_load(x[row, column, c]), bias[c] + grain)
            for k in range(3):
                total = ZERO
                for c in range(channels):
                    total += value[c] * weight[k, c]
                total += shift[k]
                image[k, row, column] = min(max(total, ZERO), ONE) if clamp else total


BAND_BYTES = 1 << 21
"""Size of the maps between two steps of a layer that is worked on in bands: they should stay in the cache."""


def synthesize(model: MobileSynthesis, rows: Sequence[Tensor], windows: Sequence[Window], clamp: bool) -> Tensor:
    """:meth:`~facerecon.stylegan.face_generator.MobileSynthesis.forward` without gradients on a CPU.

    Args:
        model: its weights, float32 or bfloat16; the products run in that type.
        rows: 23 x (B, 512).
        windows: of each layer's map that the picture needs, from 8 to 512 px; to 256 px for a preview.
        clamp: limit the picture to [0, 1].

    Returns:
        (B, 3, h, w) float32.
    """
    return torch.stack([_one_image(model, [row[b] for row in rows], windows, clamp) for b in range(len(rows[0]))])


def _array(x: Tensor) -> np.ndarray:
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _single(x: Tensor) -> np.ndarray:
    return x.detach().float().contiguous().numpy()


def _style(linear: torch.nn.Linear, row: Tensor) -> Tensor:
    """(C,) float32: as one thin product that is faster than in bfloat16, and exact."""
    return torch.addmv(linear.bias.float(), linear.weight.float(), row.float())


def _in_bands(kernel: Callable[..., None], before: tuple, out: np.ndarray, corner: tuple[int, int]) -> None:
    """Call ``kernel(*before, out, corner)``, in as many bands of rows as torch has threads."""
    bands = min(torch.get_num_threads(), len(out))
    cuts = [k * len(out) // bands for k in range(bands + 1)]
    run_bands(kernel, [(*before, out[a:b], (corner[0] + a, corner[1])) for a, b in itertools.pairwise(cuts)])


def _one_image(model: MobileSynthesis, rows: Sequence[Tensor], windows: Sequence[Window], clamp: bool) -> Tensor:
    dtype = model.start.constant.dtype
    x = model.start.product(rows[0][None])[0].contiguous()  # (4, 4, C), before noise, bias and activation
    before, corner = model.start, (0, 0)
    for k, (layer, window) in enumerate(zip(model.layers, windows, strict=False)):
        size = 8 << k
        last = k == len(model.layers) - 1
        grain, bias = _single(before.noise)[:, :, 0], _single(before.bias)
        style = _single(_style(layer.up, rows[1 + 3 * k]) * 0.5)
        noise1, bias1 = _single(layer.conv1.noise)[:, :, 0], _single(layer.conv1.bias)
        kernel1, kernel2 = (_single(conv.depthwise.flatten(1).T) for conv in (layer.conv1, layer.conv2))
        weight1 = (layer.conv1.pointwise.float() * _style(layer.conv1.modulation, rows[2 + 3 * k])).to(dtype).T
        weight2 = (layer.conv2.pointwise.float() * _style(layer.conv2.modulation, rows[3 + 3 * k])).to(dtype).T
        channels, wide = weight1.shape
        if last:
            image = torch.empty(3, 2 * window.height, 2 * window.width)
            noise2, bias2 = _single(layer.conv2.noise)[:, :, 0], _single(layer.conv2.bias)
            # half of the transform and half of [-1, 1] -> [0, 1]; the sums of a picture's pixel see one shift only
            weight = _single(model.output.weight.float() * _style(model.output.modulation, rows[-1]) * 0.25)
            shift = _single(model.output.bias.float() * 0.25)
            shift[:3] += 0.5
            made = None
        else:
            made = x.new_empty(window.height, window.width, wide)
        for band in window.bands(max(1, BAND_BYTES // (window.width * wide * x.element_size()))):
            inner = band.grown(1, size)
            spread = x.new_empty(inner.height, inner.width, channels)
            known = (_array(x), corner, grain, bias, style, kernel1, size)
            _in_bands(wavelet_depthwise, known, _array(spread), inner.corner)
            middle = torch.mm(spread.flatten(0, 1), weight1).unflatten(0, spread.shape[:2])
            spread = x.new_empty(band.height, band.width, wide)
            known = (_array(middle), inner.corner, noise1, bias1, kernel2, size)
            _in_bands(styled_depthwise, known, _array(spread), band.corner)
            if made is not None:
                part = made[band.top - window.top : band.bottom - window.top]
                torch.mm(spread.flatten(0, 1), weight2, out=part.flatten(0, 1))
            else:
                part = torch.mm(spread.flatten(0, 1), weight2).unflatten(0, spread.shape[:2])
                lines = image[:, 2 * (band.top - window.top) : 2 * (band.bottom - window.top)].numpy()
                output_image(_array(part), band.corner, noise2, bias2, weight, shift, clamp, lines)
        x, before, corner = made, layer.conv2, window.corner
    if made is not None:  # a preview
        image = torch.empty(3, window.height, window.width)
        noise, bias = _single(before.noise)[:, :, 0], _single(before.bias)
        weight, shift = _single(model.preview_weight), _single(model.preview_bias)
        read_out(_array(x), corner, noise, bias, weight, shift, clamp, image.numpy())
    return image
