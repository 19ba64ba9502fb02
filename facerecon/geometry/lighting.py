"""Second-order spherical-harmonic lighting with the release's basis, constants and signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.types import SHLight

__all__ = [
    "GAMMA",
    "SH_CONSTANTS",
    "encoded_shading",
    "gamma_to_light",
    "light_to_gamma",
    "linear_intensity",
    "rotate",
    "sh_basis",
    "shade",
]

# a_l * c_l of the release, a = (pi, 2 pi / sqrt 3, 2 pi / sqrt 8), c = (1, sqrt 3, sqrt 15) / sqrt(4 pi).
SH_CONSTANTS = (
    math.pi / math.sqrt(4 * math.pi),
    (2 * math.pi / math.sqrt(3)) * math.sqrt(3) / math.sqrt(4 * math.pi),
    (2 * math.pi / math.sqrt(8)) * 3 * math.sqrt(5) / math.sqrt(12 * math.pi),
)


GAMMA = 2.2
"""Exponent between encoded sRGB values and linear intensities; a power makes light a factor in both."""

_DARKEST = 1e-3  # irradiance below which gradients end


def encoded_shading(irradiance: Tensor, light: SHLight) -> Tensor:
    """What multiplies encoded albedo where a light gives ``irradiance``, its ``Y(n) . coefficients``; any shape.

    Here alone is decided where light multiplies albedo. In the release it multiplies encoded sRGB values, so that the
    irradiance itself is the factor. Linear light multiplies intensities, as lamps, exposures, white balances and glTF
    viewers do; with intensity = value ** 2.2 its factor on encoded values is irradiance ** (1 / 2.2).
    """
    return irradiance if light.space == "encoded" else irradiance.clamp(min=_DARKEST) ** (1 / GAMMA)


def linear_intensity(encoded: Tensor) -> Tensor:
    """Encoded values -> intensities, by the power :data:`GAMMA` that linear light is defined with; any shape."""
    return encoded.clamp(min=0) ** GAMMA


def sh_basis(normals: Tensor) -> Tensor:
    """The nine basis functions Y (..., 9) of the release's SH lighting, at unit normals (..., 3) in world axes.

    Y = [a0 c0, -a1 c1 y, a1 c1 z, -a1 c1 x, a2 c2 xy, -a2 c2 yz, a2 c2 (3 z^2 - 1) / (2 sqrt 3), -a2 c2 xz,
    a2 c2 (x^2 - y^2) / 2]. Against the irradiance of a light with radiance sum L_lm Y_lm, bands 1 and 2 carry
    an extra factor sqrt 3 and sqrt 8.
    """
    x, y, z = normals.unbind(-1)
    band0, band1, band2 = SH_CONSTANTS
    return torch.stack(
        [
            torch.full_like(x, band0),
            -band1 * y,
            band1 * z,
            -band1 * x,
            band2 * x * y,
            -band2 * y * z,
            (band2 / (2 * math.sqrt(3))) * (3 * z * z - 1),
            -band2 * x * z,
            (band2 / 2) * (x * x - y * y),
        ],
        dim=-1,
    )


def shade(normals: Tensor, light: SHLight) -> Tensor:
    """Shading (B, ..., 3), which multiplies the encoded albedo (:func:`encoded_shading` of ``Y(n) . coefficients``).

    Encoded light may make it negative.

    Args:
        normals: (B, ..., 3) unit vectors in world axes.
        light: coefficients of batch B (or 1).
    """
    basis = sh_basis(normals)
    flat = basis.reshape(basis.shape[0], -1, 9) @ light.coefficients
    return encoded_shading(flat.view(flat.shape[0], *basis.shape[1:-1], 3), light)


def _fit_directions() -> Tensor:
    """(32, 3) fixed, evenly spread unit vectors (Fibonacci sphere) in float64."""
    k = torch.arange(32, dtype=torch.float64) + 0.5
    z = 1 - 2 * k / 32
    angle = math.pi * (1 + math.sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)


def rotate(light: SHLight, matrix: Tensor) -> SHLight:
    """Turn the light around the head: ``shade(n, rotate(light, R)) == shade(R^T n, light)`` for every n.

    A band of spherical harmonics is closed under rotation, so the new coefficients are an exact least-squares
    fit on fixed directions.

    Args:
        light: coefficients of batch B (or 1).
        matrix: (B, 3, 3) proper rotations.
    """
    check_shape("matrix", matrix, "B 3 3")
    directions = _fit_directions().to(light.coefficients.device)
    fit = torch.linalg.pinv(sh_basis(directions))  # (9, 32)
    turned = sh_basis(directions @ matrix.to(directions.dtype))  # R^T n of each direction, as rows
    coefficients = fit @ turned @ light.coefficients.to(directions.dtype)
    return light.replace(coefficients=coefficients.to(light.coefficients.dtype))


def gamma_to_light(gamma: Tensor) -> SHLight:
    """The release's light vector (B, 27), nine bands a channel, as an :class:`SHLight`, with 0.8 added to band 0."""
    check_shape("gamma", gamma, "B 27")
    coefficients = gamma.view(-1, 3, 9).transpose(1, 2).clone()
    coefficients[:, 0] += SHLight.AMBIENT
    return SHLight(coefficients)


def light_to_gamma(light: SHLight) -> Tensor:
    """Inverse of :func:`gamma_to_light`: (B, 27), with the ambient 0.8 taken off band 0."""
    coefficients = light.coefficients.clone()
    coefficients[:, 0] -= SHLight.AMBIENT
    return coefficients.transpose(1, 2).reshape(-1, 27)
