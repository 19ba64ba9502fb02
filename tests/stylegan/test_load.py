"""StyleGAN2-FFHQ as a source of faces."""

from __future__ import annotations

import pytest
import torch

from facerecon.errors import AssetError, ConfigError, InputError, ShapeError
from facerecon.stylegan.ffhq_generator import FFHQFaces
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.load import load_face_generator


@pytest.fixture(scope="module")
def faces() -> FFHQFaces:
    generator = Generator(GeneratorConfig(size=32, z_dim=8, w_dim=8, channel_base=256, channel_max=16))
    generator.w_mean.copy_(torch.randn(8))
    return FFHQFaces(generator).eval()


def test_pictures_are_the_networks_in_the_unit_range(faces) -> None:
    w = torch.randn(2, 8)
    rows = w[:, None].expand(-1, faces.num_styles, -1)
    expected = (faces.generator.synthesis(rows) + 1) / 2
    assert expected.min() < 0 < 1 < expected.max()
    torch.testing.assert_close(faces(w), expected.clamp(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(faces(w), faces(rows), atol=1e-4, rtol=0)
    assert (faces.resolution, faces.num_styles, faces.style_dim) == (32, 8, 8)


def test_a_seed_is_a_face_in_any_batch(faces) -> None:
    both = faces.sample([3, 11], 0.7)
    torch.testing.assert_close(both[1:], faces.sample(11, 0.7), atol=1e-4, rtol=0)
    z = torch.randn(8, generator=torch.Generator().manual_seed(11))
    w = faces.generator.mapping(z[None])
    torch.testing.assert_close(both[1:], faces.mean_w + 0.7 * (w - faces.mean_w), atol=1e-4, rtol=0)
    torch.testing.assert_close(faces.sample(11, 0.0)[0], faces.mean_w)


def test_what_is_wrong_is_one_line(faces, monkeypatch, tmp_path) -> None:
    with pytest.raises(ShapeError, match=r"w must be \(B, 8\) or \(B, 8, 8\); got \(1, 23, 8\)"):
        faces(torch.zeros(1, 23, 8))
    with pytest.raises(InputError, match="at least one seed"):
        faces.sample([])
    with pytest.raises(ConfigError, match="did you mean 'stylegan2_ffhq'"):
        load_face_generator("stylegan2")
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    with pytest.raises(AssetError, match="convert stylegan2_ffhq PATH"):
        load_face_generator("stylegan2_ffhq")
