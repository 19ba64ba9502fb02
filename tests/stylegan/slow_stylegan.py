"""StyleGAN2 by its definition, one sample at a time, as an oracle: zero insertion, one blur, one 3 x 3 product.

Karras et al. 2020 (arXiv 1912.04958), Sec. 2.2 (modulation, demodulation), Fig. 7 (skip generator, residual
discriminator), Appendix B. Every signal is taken to be zero outside its frame, and nothing is cut before the end.
Functions take a network's ``state_dict``; nothing of the network's code runs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAPS = (1.0, 3.0, 3.0, 1.0)


def blur(x: Tensor) -> Tensor:
    """(C, H, W) -> (C, H + 3, W + 3): every product of the signal with the separable [1, 3, 3, 1] / 8, by shifts."""
    channels, height, width = x.shape
    out = x.new_zeros(channels, height + 3, width + 3)
    for i, down in enumerate(TAPS):
        for j, right in enumerate(TAPS):
            out[:, i : i + height, j : j + width] += x * (down * right / 64)
    return out


def product3(x: Tensor, weight: Tensor) -> Tensor:
    """(I, H, W), (O, I, k, k) -> (O, H + k - 1, W + k - 1): correlation by shifts, without cutting."""
    size = weight.shape[-1]
    _, height, width = x.shape
    out = x.new_zeros(weight.shape[0], height + size - 1, width + size - 1)
    for i in range(size):
        for j in range(size):
            value = torch.einsum("oi,ihw->ohw", weight[:, :, i, j], x)
            top, left = size - 1 - i, size - 1 - j
            out[:, top : top + height, left : left + width] += value
    return out


def with_zeros(x: Tensor) -> Tensor:
    """(C, H, W) -> (C, 2 H, 2 W): each sample followed by a zero, down and to the right."""
    channels, height, width = x.shape
    out = x.new_zeros(channels, 2 * height, 2 * width)
    out[:, ::2, ::2] = x
    return out


def upsampled(x: Tensor) -> Tensor:
    """(C, H, W) -> (C, 2 H, 2 W): zero insertion, blur, times 4 for the zeros that were inserted.

    Sample i lies between the new samples 2 i and 2 i + 1, so the four taps begin two samples before.
    """
    height, width = x.shape[1:]
    return 4 * blur(with_zeros(x))[:, 1 : 1 + 2 * height, 1 : 1 + 2 * width]


def up_product(x: Tensor, weight: Tensor) -> Tensor:
    """Zero insertion, 3 x 3 convolution (so the kernel is turned), blur (times 4): (I, H, W) -> (O, 2 H, 2 W)."""
    height, width = x.shape[1:]
    full = 4 * blur(product3(with_zeros(x), weight.flip(-1, -2)))
    return full[:, 2 : 2 + 2 * height, 2 : 2 + 2 * width]


def downsampled(x: Tensor) -> Tensor:
    """(C, H, W) -> (C, H / 2, W / 2): blur, every other sample, centered between two."""
    height, width = x.shape[1:]
    return blur(x)[:, 2 : 2 + height : 2, 2 : 2 + width : 2]


def down_product(x: Tensor, weight: Tensor) -> Tensor:
    """Blur, 3 x 3 product, every other sample: (I, H, W) -> (O, H / 2, W / 2)."""
    height, width = x.shape[1:]
    return product3(blur(x), weight)[:, 3 : 3 + height : 2, 3 : 3 + width : 2]


def same_product(x: Tensor, weight: Tensor) -> Tensor:
    """(I, H, W) -> (O, H, W)."""
    edge = weight.shape[-1] // 2
    height, width = x.shape[1:]
    return product3(x, weight)[:, edge : edge + height, edge : edge + width]


def activated(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 that keeps the variance: times sqrt 2."""
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def dense(x: Tensor, weight: Tensor, bias: Tensor, rate: float = 1.0) -> Tensor:
    """Equalized learning rate: stored weights are N(0, 1 / rate^2), used with rate / sqrt(inputs)."""
    return x @ weight.T * (rate / math.sqrt(weight.shape[1])) + bias * rate


def mapping(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """(B, z_dim) -> (B, w_dim): z at a mean square of 1, then layers of a hundredth of the learning rate."""
    rows = []
    for one in z:
        x = one / (one.square().mean() + 1e-8).sqrt()
        layer = 0
        while f"mapping.layers.{layer}.weight" in state:
            prefix = f"mapping.layers.{layer}"
            x = activated(dense(x, state[f"{prefix}.weight"], state[f"{prefix}.bias"], 0.01))
            layer += 1
        rows.append(x)
    return torch.stack(rows)


def modulated(weight: Tensor, style: Tensor, demodulate: bool) -> Tensor:
    """Eq. 1 and 3: (O, I, k, k) weights of one sample."""
    weight = weight * style[None, :, None, None]
    if demodulate:
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    return weight


def synthesis(state: dict[str, Tensor], ws: Tensor, size: int | None = None, noise: bool = True) -> Tensor:
    """(B, rows, w_dim) -> (B, 3, S, S), up to ``size``."""
    return torch.stack([_one(state, rows, size, noise) for rows in ws])


def _one(state: dict[str, Tensor], rows: Tensor, size: int | None, noise: bool) -> Tensor:
    def style(name: str, row: Tensor) -> Tensor:
        return dense(row, state[f"{name}.style.weight"], state[f"{name}.style.bias"])

    def layer(name: str, x: Tensor, row: Tensor, product) -> Tensor:
        x = product(x, modulated(state[f"{name}.weight"], style(name, row), True))
        if noise:
            x = x + state[f"{name}.noise"] * state[f"{name}.noise_strength"]
        return activated(x + state[f"{name}.bias"][:, None, None])

    x, image, row, block = state["synthesis.constant"].squeeze(), None, 0, 0
    while f"synthesis.blocks.{block}.conv.weight" in state:
        prefix = f"synthesis.blocks.{block}"
        if block:
            x = layer(f"{prefix}.up", x, rows[row], up_product)
            row += 1
        x = layer(f"{prefix}.conv", x, rows[row], same_product)
        row += 1
        color = f"{prefix}.color"
        weight = state[f"{color}.weight"]
        weight = weight.reshape(3, -1, 1, 1) / math.sqrt(weight.shape[1])
        part = (
            same_product(x, modulated(weight, style(color, rows[row]), False)) + state[f"{color}.bias"][:, None, None]
        )
        image = part if image is None else upsampled(image) + part
        if x.shape[-1] == size:
            break
        block += 1
    return image


def discriminator(state: dict[str, Tensor], images: Tensor, group: int) -> Tensor:
    """(B, 3, S, S) -> (B, 1)."""

    def convolved(name: str, x: Tensor, product, active: bool = True) -> Tensor:
        weight = state[f"{name}.weight"]
        x = product(x, weight / math.sqrt(weight[0].numel()))
        return activated(x + state[f"{name}.bias"][:, None, None]) if active else x

    samples = []
    for image in images:
        x = convolved("color", image, same_product)
        block = 0
        while f"blocks.{block}.conv.weight" in state:
            prefix = f"blocks.{block}"
            deep = convolved(f"{prefix}.down", convolved(f"{prefix}.conv", x, same_product), down_product)
            skip = convolved(f"{prefix}.skip", downsampled(x), same_product, active=False)
            x = (deep + skip) / math.sqrt(2)
            block += 1
        samples.append(x)
    features = torch.stack(samples)
    spread = minibatch_deviation(features, group)
    logits = []
    for x, plane in zip(features, spread):
        x = convolved("conv", torch.cat([x, plane]), same_product)
        x = activated(dense(x.reshape(1, -1), state["linear.weight"], state["linear.bias"]))
        logits.append(dense(x, state["logit.weight"], state["logit.bias"])[0])
    return torch.stack(logits)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): standard deviation over each ``group`` images in a row, averaged over all else."""
    out = x.new_zeros(len(x), 1, *x.shape[2:])
    for first in range(0, len(x), group):
        members = [x[k] for k in range(first, first + group)]
        mean = sum(members) / group
        variance = sum((member - mean) ** 2 for member in members) / group
        out[first : first + group] = torch.sqrt(variance + 1e-8).mean()
    return out
