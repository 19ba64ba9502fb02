"""The shipped texture basis's file format."""

from __future__ import annotations

import pytest
import torch

from facerecon import assets
from facerecon.errors import AssetError, ShapeError
from facerecon.stylegan.linear_basis import (
    change_of_basis,
    principal_components,
    read_linear_basis,
    write_linear_basis,
)


def smooth(count: int, size: int) -> torch.Tensor:
    """(K, 3, S, S) smooth and symmetric."""
    coarse = torch.randn(count, 3, 5, 5)
    maps = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (maps + maps.flip(-1)) * 0.03


def test_round_trip_within_the_quantization(tmp_path):
    mean, basis = torch.rand(3, 128, 128), smooth(5, 128)
    basis[1] *= 1e-3  # a weak component keeps its own precision
    write_linear_basis(tmp_path / "b.safetensors", mean, basis, {"faces": 3})
    read_mean, read_basis = read_linear_basis(tmp_path / "b.safetensors")
    assert torch.allclose(read_mean, mean, atol=6e-4)
    for got, want in zip(read_basis, basis, strict=True):
        error = (got - want).abs() / want.abs().max()
        assert error.mean() < 0.004 and error.max() < 0.05
    assert torch.allclose(read_basis, read_basis.flip(-1), atol=1e-6)
    assert torch.allclose(read_linear_basis(tmp_path / "b.safetensors", 2)[1], read_basis[:2], atol=1e-6)


def test_principal_components_are_the_singular_vectors():
    """Oracle: the singular value decomposition of the centered maps."""
    maps = torch.rand(9, 3, 8, 8)
    mean, basis, variance = principal_components(maps, 4)
    centered = (maps - maps.mean(0)).flatten(1)
    _, values, vectors = torch.linalg.svd(centered.double(), full_matrices=False)
    assert torch.allclose(mean, maps.mean(0), atol=1e-6)
    assert torch.allclose(variance, (values[:8] ** 2 / 8).float(), rtol=1e-4)
    assert torch.allclose(basis.flatten(1).norm(dim=1), (values[:4] / 8**0.5).float(), rtol=1e-4)
    cosine = (basis.flatten(1).double() * vectors[:4]).sum(1) / basis.flatten(1).norm(dim=1)
    assert torch.allclose(cosine.abs(), torch.ones(4, dtype=torch.float64), atol=1e-4)
    assert (basis.flatten(1).sum(1) >= 0).all()
    with pytest.raises(ShapeError, match="at least 10 maps; got 9"):
        principal_components(maps, 9)


def test_wrong_input_says_so(tmp_path):
    with pytest.raises(ShapeError, match="symmetric"):
        write_linear_basis(tmp_path / "b", torch.rand(3, 8, 8), torch.rand(2, 3, 8, 8))
    with pytest.raises(ShapeError, match="mean"):
        write_linear_basis(tmp_path / "b", torch.rand(3, 8, 4), smooth(2, 8))
    (tmp_path / "b").write_bytes(b"not a tensor file")
    with pytest.raises(AssetError, match="build_texture_basis"):
        read_linear_basis(tmp_path / "b")


def test_a_change_of_basis_says_the_same_texture():
    """Oracle: codes that another basis of the same space, or a least-squares solver, gives."""
    draw = torch.Generator().manual_seed(0)
    mean, basis, code = torch.rand(3, 8, 8, generator=draw), torch.randn(4, 3, 8, 8, generator=draw), torch.arange(4.0)
    turned = torch.einsum("lk,kcij->lcij", torch.randn(4, 4, generator=draw), basis)
    matrix, offset = change_of_basis(mean, basis, mean + basis[1], turned)
    texture = mean + torch.einsum("k,kcij->cij", code, basis)
    again = mean + basis[1] + torch.einsum("k,kcij->cij", matrix @ code + offset, turned)
    assert torch.allclose(again, texture, atol=1e-4)
    other = torch.randn(6, 3, 8, 8, generator=draw)
    matrix, offset = change_of_basis(mean, basis, mean / 2, other)
    best = torch.linalg.lstsq(other.flatten(1).T, (texture - mean / 2).flatten()[:, None]).solution[:, 0]
    assert torch.allclose(matrix @ code + offset, best, atol=1e-4)


def test_the_shipped_basis():
    """At most 4 MB, mirror symmetric, components in falling order, and two deviations stay near colors."""
    path = assets.shipped("texture_linear.safetensors")
    mean, basis = read_linear_basis(path)
    assert path.stat().st_size < 4e6
    assert basis.shape == (64, 3, 256, 256) and mean.shape == (3, 256, 256)
    assert mean.min() >= 0 and mean.max() <= 1
    assert torch.allclose(mean, mean.flip(-1), atol=2e-3)
    power = basis.square().sum((1, 2, 3))
    assert (power[1:] < power[:-1] * 1.05).all()
    assert basis[0].mean() > 0.02  # the first is brightness, and brightens
    far = torch.cat([mean + 2 * basis, mean - 2 * basis])
    assert ((far < -0.05) | (far > 1.15)).float().mean() < 0.001
