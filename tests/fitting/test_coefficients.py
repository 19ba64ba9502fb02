"""N_enc's numbers <-> parameters of a head model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from facerecon.errors import ShapeError
from facerecon.fitting import coefficients_to_latent, coefficients_to_params, params_to_coefficients
from facerecon.morphable import hifi3dpp, load_face_model
from facerecon.perception import Coefficients, RegressorConfig, load_regressor
from facerecon.stylegan.decoder import LinearDecoder, TextureDecoder
from facerecon.types import FaceParams, Latent, SHLight


class Head(nn.Module):
    """What the conversion asks of a head model."""

    name, num_identity, num_expression, num_albedo = "head", 6, 4, 0

    def bound_expression(self, expression):
        return expression.clamp(0, 1)


def truth(head: Head, batch: int = 3) -> FaceParams:
    return FaceParams(
        identity=torch.randn(batch, head.num_identity),
        expression=torch.rand(batch, head.num_expression),
        albedo=torch.randn(batch, head.num_albedo),
        rotation=torch.randn(batch, 3),
        translation=torch.randn(batch, 3),
        light=SHLight(torch.randn(batch, 9, 3)),
    )


def test_truth_to_coefficients_and_back(same):
    head, decoder = Head(), LinearDecoder(torch.rand(3, 8, 8), torch.rand(5, 3, 8, 8))
    params, codes = truth(head), torch.randn(3, 1, 5)
    config = RegressorConfig(identity=6, expression=4, texture=5)
    coefficients = params_to_coefficients(params, config, Latent(codes, "linear"))
    again = coefficients_to_params(coefficients, head)
    for name in ("identity", "expression", "albedo", "rotation", "translation"):
        assert torch.equal(getattr(again, name), getattr(params, name))
    assert torch.allclose(again.light.coefficients, params.light.coefficients, atol=1e-6)
    assert torch.equal(coefficients_to_latent(coefficients, decoder).codes, codes)
    back = params_to_coefficients(again, config, codes[:, 0])
    assert torch.allclose(back.light, coefficients.light, atol=1e-6)


def test_zero_is_the_mean_face_in_ambient_light():
    zero = Coefficients(*(torch.zeros(2, n) for n in (6, 4, 5, 3, 27, 3)))
    params = coefficients_to_params(zero, Head())
    assert torch.equal(params.light.coefficients, SHLight.ambient(2).coefficients)
    assert not any(x.any() for x in (params.identity, params.expression, params.rotation, params.translation))


def test_coefficients_that_one_side_lacks_are_the_mean():
    coefficients = Coefficients(*(torch.ones(1, n) for n in (8, 4, 3, 3, 27, 3)))
    assert coefficients_to_params(coefficients, Head()).identity.tolist() == [[1] * 6]
    few = coefficients_to_params(coefficients.replace(identity=torch.ones(1, 2)), Head())
    assert few.identity.tolist() == [[1, 1, 0, 0, 0, 0]]
    decoder = LinearDecoder(torch.rand(3, 8, 8), torch.rand(5, 3, 8, 8))
    assert coefficients_to_latent(coefficients, decoder).codes.tolist() == [[[1, 1, 1, 0, 0]]]
    over = coefficients_to_params(coefficients.replace(expression=torch.full((1, 4), 1.5)), Head())
    assert over.expression.tolist() == [[1] * 4]
    other = TextureDecoder()
    other.space = "w"
    assert coefficients_to_latent(coefficients, other) is None
    with pytest.raises(ShapeError, match=r"\(B, 4\)"):
        coefficients_to_params(coefficients.replace(expression=torch.ones(1, 5)), Head())
    with pytest.raises(ShapeError, match=r"\(B, 9\)"):
        params_to_coefficients(truth(Head()), RegressorConfig(expression=9))


def test_released_vector_means_the_same():
    """The 1049 numbers of the release, through either converter."""
    vector = torch.rand(2, 1049)
    parts = hifi3dpp.split_coefficients(vector)
    names = ("id", "exp", "tex", "angle", "gamma", "trans")
    head = Head()
    head.num_identity, head.num_expression, head.num_albedo = 532, 45, 439
    found = coefficients_to_params(Coefficients(*(parts[name] for name in names)), head)
    expected = hifi3dpp.vector_to_params(vector)
    for name in ("identity", "expression", "albedo", "rotation", "translation"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.allclose(found.light.coefficients, expected.light.coefficients, atol=1e-6)


def test_the_open_head_takes_them(asset):
    assert isinstance(asset("makehuman"), Path)
    model = load_face_model("makehuman", num_identity=12)
    config = RegressorConfig(identity=12, expression=model.num_expression, texture=0)
    params = model.sample(batch=2).replace(rotation=torch.rand(2, 3) * 0.3)
    again = coefficients_to_params(params_to_coefficients(params, config), model)
    assert torch.allclose(model(again), model(params), atol=1e-5)


@pytest.mark.slow
def test_the_released_layout_poses_the_papers_head(reference, hifi3dpp_mat, tmp_path):
    """From a file of the released kind to vertices: as the release's own vector, cut and posed by its own converter."""
    shapes = json.loads((reference / "official_keys" / "deep3d_net_recon.json").read_text())
    state = {}
    for name, shape in shapes.items():
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) == 4 else 0.02
        offset = 1.0 if name.endswith("running_var") or (".bn" in name and name.endswith("weight")) else 0.0
        state[name] = offset + scale * torch.randn(shape) if shape else torch.tensor(1)
        if name.startswith("final_layers"):
            state[name] *= 0.05
    torch.save({"net_recon": state}, tmp_path / "epoch_latest.pth")
    model = load_face_model("hifi3dpp", num_identity=100, path=hifi3dpp_mat)
    network = load_regressor(model, tmp_path / "epoch_latest.pth")
    with torch.no_grad():
        said = network(torch.rand(2, 3, 224, 224))
        vector = torch.cat([said.identity, said.expression, said.texture, said.angles, said.light, said.translation], 1)
        params = coefficients_to_params(said, model)
        expected = hifi3dpp.vector_to_params(vector, num_identity=100)
        assert vector.shape == (2, 1049) and said.angles.abs().min() > 0
        assert torch.allclose(model(params), model(expected), atol=1e-5) and model(params).isfinite().all()
        assert torch.allclose(model.albedo(params), model.albedo(expected), atol=1e-5)
