"""Stages as data: rates, checks, and the presets of the specification."""

import math

import pytest
import torch

from facerecon.errors import ConfigError
from facerecon.fitting import Stage, Variables, default_stages, stages_from_config
from facerecon.stylegan.decoder import LinearDecoder, retract_to_sphere
from facerecon.types import FaceParams, Latent, SHLight


def stage(**changes) -> Stage:
    values = {"name": "s", "steps": 100, "learning_rate": 0.1, "optimize": ("latent",), "weights": {"pix": 1}}
    return Stage(**{**values, **changes})


def test_the_rate_falls_along_a_cosine_over_the_last_quarter() -> None:
    s = stage(rampdown=0.25)
    assert [s.rate(i) for i in (0, 50, 75)] == [0.1, 0.1, 0.1]
    assert s.rate(87) == pytest.approx(0.1 * (0.5 - 0.5 * math.cos(math.pi * 13 / 25)))
    assert 0 < s.rate(99) < 0.001
    assert stage().rate(99) == 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": {"lpip": 1}}, "did you mean 'lpips'"),
        ({"weights": {"pix": -1}}, "must be a number >= 0"),
        ({"weights": {"pix": float("nan")}}, "must be a number >= 0"),
        ({"optimize": ("identify",)}, "did you mean 'identity'"),
        ({"rate_scale": {"lights": 1}}, "did you mean 'light'"),
        ({"steps": -1}, "steps must be an integer >= 0"),
        ({"rampdown": 2}, "rampdown must lie in"),
        ({"every": {"pix": 2}}, "term of s.every"),
        ({"weights": {"id": 1}, "every": {"id": 2}}, "each step needs one"),
        ({"every": {"id": 0}}, "must be a whole number of steps"),
        ({"every": {"texture": 2}, "optimize": ("latent",)}, "needs a variable beside the latent"),
    ],
)
def test_wrong_values_are_named(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(**changes)


def test_terms_of_every_second_step_take_turns() -> None:
    s = stage(weights={"lpips": 1, "id": 1, "pix": 1}, every={"lpips": 2, "id": 2})
    assert [s.gradient_scale("lpips", i) for i in range(5)] == [1, 0, 2, 0, 2]
    assert [s.gradient_scale("id", i) for i in range(5)] == [1, 2, 0, 2, 0]
    assert [s.gradient_scale("pix", i) for i in range(3)] == [1, 1, 1]


def test_a_texture_of_every_third_step_takes_the_networks_with_it() -> None:
    s = stage(weights={"id": 1, "pix": 1}, optimize=("latent", "pose"), every={"texture": 3, "id": 2})
    assert [s.decodes(i) for i in range(5)] == [True, False, False, True, False]
    assert [s.gradient_scale("id", i) for i in range(10)] == [1, 0, 0, 2, 0, 0, 0, 0, 0, 2]
    assert [s.gradient_scale("lpips", i) for i in range(4)] == [1, 0, 0, 1]


def test_stages_from_config_replaces_only_what_is_given() -> None:
    stages = stages_from_config({"texture": {"steps": 7}, "joint": None})
    assert list(stages) == ["texture"]
    assert stages["texture"].steps == 7
    assert stages["texture"].weights == default_stages()["texture"].weights
    with pytest.raises(ConfigError, match="did you mean 'texture'"):
        stages_from_config({"textur": {}})
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        stages_from_config({"texture": {"step": 7}})


def test_a_weight_of_null_drops_the_term() -> None:
    assert stage(weights={"pix": 1, "id": None}).weights == {"pix": 1.0}


def test_retraction_keeps_the_radius_and_the_direction() -> None:
    torch.manual_seed(0)
    codes = torch.randn(2, 3, 512)
    moved = retract_to_sphere(codes)
    assert torch.allclose(moved.norm(dim=-1), torch.full((2, 3), math.sqrt(512.0)))
    assert torch.nn.functional.cosine_similarity(codes, moved, dim=-1).min() > 1 - 1e-6


def test_variables_start_on_the_sphere_and_stay_within_bounds() -> None:
    still = [torch.zeros(2, n) for n in (4, 3, 0, 3, 3)]
    params = FaceParams(*still, SHLight.ambient(2))
    variables = Variables(params, Latent(torch.randn(2, 1, 16), "linear"), (0.0, 1.0))
    s = stage(optimize=("latent", "expression"), sphere=True)
    variables.to_sphere()
    groups = variables.groups(s)
    assert [len(g["params"]) for g in groups] == [1, 1]
    assert not variables.tensors["identity"].requires_grad
    assert torch.allclose(variables.tensors["latent"].norm(dim=-1), torch.tensor(4.0))
    with torch.no_grad():
        variables.tensors["expression"].copy_(torch.tensor([[-1.0, 0.5, 2.0]]).expand(2, 3))
    variables.clip_expression(s)
    assert variables.tensors["expression"].tolist() == [[0.0, 0.5, 1.0]] * 2


def test_linear_decoder_is_affine_and_projects_in_closed_form() -> None:
    torch.manual_seed(0)
    mean, basis = torch.full((3, 16, 16), 0.5), 0.01 * torch.randn(6, 3, 16, 16)
    decoder = LinearDecoder(mean, basis)
    z = torch.randn(2, 1, 6)
    expected = mean + torch.einsum("bk,kchw->bchw", z[:, 0], basis)
    assert torch.allclose(decoder(Latent(z, "linear")), expected, atol=1e-6)
    assert torch.allclose(decoder(z[:, 0]), expected, atol=1e-6)
    found = decoder.project(expected, prior=1e-9)
    assert torch.allclose(found.codes, z, atol=1e-3)


def test_a_latent_of_another_decoder_is_refused() -> None:
    decoder = LinearDecoder(torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ConfigError, match="decodes space 'linear'"):
        decoder(Latent(torch.zeros(1, 1, 2), "w"))
    with pytest.raises(ValueError, match=r"codes must be \(B, 1, 2\)"):
        decoder(torch.zeros(1, 5))
