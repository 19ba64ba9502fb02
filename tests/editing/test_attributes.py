"""The meter against renders whose pose and light are known, and against the mirror."""

import math

import pytest
import torch

from facerecon.editing.attributes import AttributeMeter, Attributes
from facerecon.types import Camera, FaceParams, SHLight


@pytest.fixture(scope="module")
def meter():
    from facerecon import assets

    for name in ("makehuman", "landmarks68", "facemesh478", "identity128"):
        try:
            assets.locate(name)
        except Exception as error:
            pytest.skip(f"{name} is not here: {error}")
    return AttributeMeter()


def heads(meter, yaws, light=None) -> torch.Tensor:
    """(B, 3, 512, 512): one person's head at several yaws, pitch 5 degrees down, on gray."""
    from facerecon.render import Renderer
    from facerecon.stylegan.load import load_decoder

    model, count = meter.model, len(yaws)
    identity = 0.8 * torch.randn(1, model.num_identity, generator=torch.Generator().manual_seed(1))
    rotation = torch.tensor([[math.radians(5), math.radians(yaw), 0] for yaw in yaws])
    params = FaceParams(
        identity=identity.expand(count, -1), expression=torch.zeros(count, model.num_expression),
        albedo=torch.zeros(count, model.num_albedo), rotation=rotation, translation=torch.zeros(count, 3),
        light=light or SHLight.ambient(count),
    )  # fmt: skip
    texture = load_decoder("linear").mean[None].expand(count, -1, -1, -1)
    made = Renderer(size=512)(model(params), texture, model.topology, Camera.deep3d(512, batch=count), params.light)
    return made.image + 0.6 * (1 - made.mask)


def test_pose_of_renders(meter) -> None:
    yaws = (-30.0, 0.0, 10.0, 20.0, 38.0)  # a fit that trusts the jaw says -19, 0, 7, 14, 23
    found = meter(heads(meter, yaws))
    assert found.yaw.tolist() == pytest.approx(yaws, abs=4.5)
    assert found.pitch.tolist() == pytest.approx([-5.0] * 5, abs=5.0)


def test_the_mirror_turns_the_face_and_the_light(meter) -> None:
    light = SHLight.ambient(1).coefficients.clone()
    light[:, 3] = 0.25  # from one side
    image = heads(meter, (15.0,), SHLight(light))
    both = meter(torch.cat([image, image.flip(3)]))
    assert float(both.yaw[0] + both.yaw[1]) == pytest.approx(0, abs=1.0)
    side = both.light.mean(2)[:, 3]
    assert float(side[0]) > 0.1 and float(side[1]) < -0.1
    assert float(both.evenness[0] - both.evenness[1]) == pytest.approx(0, abs=0.05)
    assert torch.allclose(both.accessories[0], both.accessories[1], atol=0.6)


def test_an_even_light_is_even(meter) -> None:
    even = meter(heads(meter, (0.0,)))
    light = SHLight.ambient(1).coefficients.clone()
    light[:, 1] = -0.3
    uneven = meter(heads(meter, (0.0,), SHLight(light)))
    assert even.evenness.max() < 0.15
    assert uneven.evenness.min() > 0.22


def test_a_face_is_the_same_in_any_batch_and_on_the_disk(meter, tmp_path) -> None:
    images = heads(meter, (0.0, 20.0))
    both, alone = meter(images), meter(images[1:])
    for key in ("yaw", "light", "identity", "accessories", "skin", "hair"):
        assert torch.allclose(getattr(both, key)[1:], getattr(alone, key), atol=2e-3), key
    both.save(tmp_path / "a.safetensors")
    again = Attributes.load(tmp_path / "a.safetensors")
    assert torch.equal(again.mesh468, both.mesh468) and torch.equal(again.accessories, both.accessories)
