"""Textures carried over to other atlases: against the atlas they came from, across seams, and on eyes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon import assets
from facerecon.correspond import registration as registration_module
from facerecon.correspond import resample as carry
from facerecon.correspond import transfer
from facerecon.correspond.resample import albedo_decoder, decoder_for, retarget
from facerecon.errors import ConfigError
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.render.uv import sample_texture, uv_raster
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.stylegan.load import load_decoder


@pytest.fixture(scope="module")
def source(asset) -> MorphableModel:
    asset("makehuman")
    return load_face_model("makehuman", num_identity=0)


@pytest.fixture(scope="module", autouse=True)
def _tables(own_tables) -> None:
    """Correspondences are made anew in a folder of the tests."""


@pytest.fixture(scope="module")
def ict(reference: Path, source: MorphableModel) -> MorphableModel:
    return load_face_model("ict", num_identity=2, path=reference / "ict" / "ict_facekit_light.npz")


@pytest.fixture(scope="module")
def retargeted(ict: MorphableModel, source: MorphableModel):
    return retarget(ict, source)


@pytest.fixture(scope="module")
def decoder(retargeted, source: MorphableModel) -> LinearDecoder:
    return decoder_for(retargeted.model, retargeted=retargeted)


def _at(decoder: LinearDecoder, model: MorphableModel, faces: torch.Tensor) -> torch.Tensor:
    """(F, 3) color of the mean texture at the centers of faces."""
    uv = model.topology.uvs[model.topology.uv_faces[faces]].mean(1)
    return sample_texture(decoder.mean[None], uv[None])[0]


def test_on_its_own_head_the_texture_is_itself(source: MorphableModel, monkeypatch) -> None:
    """The makehuman head under another name: the retargeted map shows what the map it came from shows."""
    monkeypatch.setattr(carry, "SIZE", 192)
    other = source.with_topology(source.topology.replace(name="twin"))
    other.name = "twin"
    twin, basis = decoder_for(other), load_decoder("linear")
    assert twin.dim == basis.dim and twin.size == carry.SIZE
    faces = (source.topology.regions["face"] & source.topology.regions["skin"]).nonzero()[:, 0]
    error = (_at(twin, other, faces) - _at(basis, source, faces)).abs()
    assert error.mean() < 0.01 and error.flatten().quantile(0.99) < 0.08
    one = torch.zeros(1, twin.dim)
    one[0, 0] = 1.5
    change, expected = (d(one) - d(0 * one) for d in (twin, basis))
    uv = source.topology.uvs[source.topology.uv_faces[faces]].mean(1)[None]
    a, b = sample_texture(change, uv)[0].flatten(), sample_texture(expected, uv)[0].flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.97


def test_no_seam_shows(decoder: LinearDecoder, ict: MorphableModel) -> None:
    """Both sides of an edge that the atlas cuts have one color: the wedges of a vertex of the skin agree."""
    topology = ict.topology
    skin = topology.regions["skin"] & ~topology.regions["lips"]
    pairs = torch.stack([topology.faces[skin].flatten(), topology.uv_faces[skin].flatten()], 1).unique(dim=0)
    cut = (pairs[1:, 0] == pairs[:-1, 0]).nonzero()[:, 0]
    first, second = topology.uvs[pairs[cut, 1]], topology.uvs[pairs[cut + 1, 1]]
    apart = (first - second).norm(dim=1) > 0.01
    first, second = first[apart], second[apart]
    assert len(first) > 100
    texture = decoder(torch.randn(1, decoder.dim, generator=torch.Generator().manual_seed(2)))
    difference = sample_texture(texture, first[None]) - sample_texture(texture, second[None])
    assert difference.abs().amax(-1).median() < 0.01 and difference.abs().quantile(0.98) < 0.05


def test_eyes_look_ahead_and_lips_are_red(decoder: LinearDecoder, ict: MorphableModel) -> None:
    topology, mean = ict.topology, ict.mean
    center = mean[topology.faces].mean(1)
    for side in (-1, 1):
        eye = (topology.regions["eyes"] & (center[:, 0] * side > 0)).nonzero()[:, 0]
        front = eye[center[eye, 2].argsort(descending=True)]
        brightness = _at(decoder, ict, front).mean(1)
        assert brightness[:20].mean() < 0.6 * brightness[200:600].mean()  # pupil against white
    colors = {name: _at(decoder, ict, topology.regions[name].nonzero()[:, 0]).mean(0) for name in ("lips", "scalp")}
    assert colors["lips"][0] - colors["lips"][1] > colors["scalp"][0] - colors["scalp"][1] + 0.05
    inside = _at(decoder, ict, (topology.regions["mouth"] & ~topology.regions["teeth"]).nonzero()[:, 0]).mean()
    assert inside < 0.6 * colors["scalp"].mean()  # the mouth is dark, not skin
    assert decoder.mean.min() > 0.02  # nothing is left black


def test_the_table_is_kept_and_made_again_when_damaged(ict, source, retargeted, monkeypatch) -> None:
    """A decoder that is resampled and a texture that moves there share the registration, and each its texels."""
    key = registration_module.pair_digest(source, ict, f"registered {registration_module._VERSION}")
    registration = assets.derived("registered", key, lambda target: pytest.fail("is not there"))
    calls, original = [], registration_module.nonrigid_icp
    monkeypatch.setattr(registration_module, "nonrigid_icp", lambda *heads: calls.append(1) or original(*heads))
    again = retarget(ict, source)
    assert not calls and torch.equal(again.uv, retargeted.uv)
    assert torch.equal(again.model.topology.mesh_point_faces, retargeted.model.topology.mesh_point_faces)
    transfer.link(source, ict)
    assert not calls
    data = registration.read_bytes()
    registration.unlink()  # mapped files must not shrink
    registration.write_bytes(data[:5000])
    with pytest.warns(UserWarning, match="was altered or damaged"):
        assert torch.equal(retarget(ict, source).uv, retargeted.uv) and calls == [1]
    assert registration.read_bytes() == data


def test_a_models_own_albedo_is_a_decoder(hifi3dpp_mat: Path) -> None:
    model = load_face_model("hifi3dpp", num_identity=2, path=hifi3dpp_mat)
    decoder = albedo_decoder(model, components=3)
    codes = torch.tensor([[0.5, -1.0, 2.0]])
    params = model.neutral(1)
    params = params.replace(albedo=torch.nn.functional.pad(codes, (0, model.num_albedo - 3)))
    raster = uv_raster(model.topology, decoder.size)
    inside = raster.face_index[0] >= 0
    corners = model.albedo(params)[0][model.topology.faces[raster.face_index[0][inside]]]
    expected = (corners * raster.barycentric[0][inside][..., None]).sum(1).clamp(0, 1)
    assert torch.allclose(decoder(codes)[0].permute(1, 2, 0)[inside], expected, atol=1e-5)


def test_decoders_that_do_not_exist_are_named(ict: MorphableModel, retargeted) -> None:
    with pytest.raises(ConfigError, match="'ict' has no albedo of its own"):
        decoder_for(ict, "albedo")
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        decoder_for(ict, "linaer", retargeted=retargeted)


def test_a_random_face_of_the_model_is_found_again(ict, retargeted, decoder) -> None:
    """Landmarks of a turned head of the model itself: its pose comes back."""
    from facerecon.fitting import fit_landmarks
    from facerecon.geometry.camera import project
    from facerecon.types import Camera

    model, camera = retargeted.model, Camera.deep3d()
    rotation = torch.tensor([[0.05, 0.4, -0.03]])
    params = model.sample(torch.Generator().manual_seed(4)).replace(rotation=rotation)
    vertices = model(params)
    points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    mesh = torch.zeros(1, 468, 2)
    mesh[:, model.topology.mesh_points] = project(camera, model.mesh_points3d(vertices))[..., :2]
    fitted = fit_landmarks(model, points, camera, mesh)
    assert (fitted.rotation - rotation).abs().max() < 0.03
    assert np.abs(project(camera, model(fitted))[..., :2] - project(camera, vertices)[..., :2]).mean() < 1.5


def test_the_contour_of_ict_slides_outward(retargeted) -> None:
    """Turned aside, contour points lie farther out in the picture than the vertices that ICT lists for them."""
    from facerecon.geometry.camera import project
    from facerecon.types import Camera

    model, camera = retargeted.model, Camera.deep3d()
    params = model.neutral().replace(rotation=torch.tensor([[0.0, 0.5, 0.0]]))
    slid, listed = (project(camera, model.landmarks3d(model(params), view))[0, :17, 0] for view in (camera, None))
    right, left = (slid - listed)[:7], (slid - listed)[10:]
    assert right.max() < 1.0 and left.min() > -1.0  # px of 224
    assert right[3:6].mean() < -5 and left[4:].mean() > 5
    assert len(model.topology.mesh_points) > 200


def test_a_stylegan_decoder_is_resampled_texture_by_texture(retargeted, source: MorphableModel, tmp_path) -> None:
    from facerecon.stylegan.generator import Generator, GeneratorConfig
    from facerecon.stylegan.texture_decoder import save_decoder

    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    config = GeneratorConfig(size=32, z_dim=16, w_dim=16, mapping_layers=1, channel_base=256, channel_max=8)
    save_decoder(path, Generator(config), samples=1000, textures=100)
    decoder = decoder_for(retargeted.model, str(path), retargeted=retargeted, space="w/8", precision="float32")
    base = load_decoder(str(path), space="w/8", precision="float32")
    assert (decoder.rows, decoder.dim, decoder.space, decoder.atlas) == (1, 8, "w/8", "ict")
    codes = base.sample(1, torch.Generator().manual_seed(0)).codes.requires_grad_(True)
    texture = decoder(codes)
    torch.testing.assert_close(texture, retargeted.texture(base(codes), source))
    (gradient,) = torch.autograd.grad(texture.square().sum(), codes)
    assert gradient.abs().sum() > 0
    mean, effect = decoder.start_basis()
    assert mean.shape == texture.shape[1:] and effect.shape == (8, *mean.shape)
    torch.testing.assert_close(decoder.from_start(torch.ones(1, 8)), base.from_start(torch.ones(1, 8)))
