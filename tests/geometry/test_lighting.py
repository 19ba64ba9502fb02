import math

import torch
import torch.nn.functional as F

from facerecon.geometry.lighting import gamma_to_light, light_to_gamma, rotate, sh_basis, shade
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.types import SHLight


def fibonacci(count: int) -> torch.Tensor:
    k = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * k / count
    angle = math.pi * (1 + math.sqrt(5)) * k
    return torch.stack([(1 - z * z).sqrt() * angle.cos(), (1 - z * z).sqrt() * angle.sin(), z], dim=-1)


def orthonormal_harmonics(n: torch.Tensor) -> torch.Tensor:
    """Real spherical harmonics by their textbook constants, in the order of the release and without its signs."""
    x, y, z = n.unbind(-1)
    return torch.stack(
        [
            0.28209479177 * torch.ones_like(x), 0.48860251190 * y, 0.48860251190 * z, 0.48860251190 * x,
            1.09254843059 * x * y, 1.09254843059 * y * z, 0.31539156525 * (3 * z * z - 1),
            1.09254843059 * x * z, 0.54627421530 * (x * x - y * y),
        ],
        dim=-1,
    )  # fmt: skip


def test_shading_is_the_irradiance_of_a_light_up_to_the_release_band_factors():
    torch.manual_seed(0)
    radiance = torch.randn(9, 3, dtype=torch.float64)
    signs = torch.tensor([1, -1, 1, -1, 1, -1, 1, -1, 1], dtype=torch.float64)
    factors = torch.tensor([1.0] + [math.sqrt(3)] * 3 + [math.sqrt(8)] * 5, dtype=torch.float64)
    light = SHLight((radiance * (signs / factors)[:, None])[None])
    directions = fibonacci(200_000)
    incoming = orthonormal_harmonics(directions) @ radiance  # radiance from each direction
    normals = fibonacci(13)
    cosine = (normals @ directions.T).clamp(min=0)
    irradiance = (cosine @ incoming) * (4 * math.pi / len(directions))
    torch.testing.assert_close(shade(normals[None], light)[0], irradiance, atol=2e-4, rtol=1e-3)


def test_basis_literals_on_the_axes():
    values = sh_basis(torch.eye(3, dtype=torch.float64))
    a, b, c = math.sqrt(math.pi) / 2, math.sqrt(math.pi), math.sqrt(30 * math.pi) / 4
    z2 = c / (2 * math.sqrt(3))
    expected = [
        [a, 0, 0, -b, 0, 0, -z2, 0, c / 2],
        [a, -b, 0, 0, 0, 0, -z2, 0, -c / 2],
        [a, 0, b, 0, 0, 0, 2 * z2, 0, 0],
    ]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_ambient_light_shades_all_normals_alike():
    value = 0.8 * math.sqrt(math.pi) / 2
    shading = shade(fibonacci(50)[None].float(), SHLight.ambient())
    torch.testing.assert_close(shading, torch.full_like(shading, value))


def test_rotated_light_on_rotated_normals_changes_nothing():
    torch.manual_seed(2)
    light = SHLight(torch.randn(3, 9, 3))
    matrix = euler_to_matrix(torch.randn(3, 3))
    normals = F.normalize(torch.randn(3, 40, 3), dim=-1)
    turned = shade(normals @ matrix.mT, rotate(light, matrix))
    torch.testing.assert_close(turned, shade(normals, light), atol=2e-5, rtol=0)


def test_gamma_round_trip_and_layout():
    gamma = torch.arange(54, dtype=torch.float32).view(2, 27)
    light = gamma_to_light(gamma)
    assert light.coefficients[1, 0, 2] == 27 + 18 + 0.8  # band 0 of blue, third block of nine
    assert light.coefficients[0, 5, 1] == 9 + 5
    torch.testing.assert_close(light_to_gamma(light), gamma)
    assert torch.equal(gamma_to_light(torch.zeros(1, 27)).coefficients, SHLight.ambient().coefficients)


def test_gradients():
    normals = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda n, c: shade(n, SHLight(c)), (normals, coefficients))
