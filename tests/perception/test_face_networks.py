"""The face-api networks as torch modules: layers against loops, batches against single images."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from facerecon.errors import AssetError
from facerecon.imaging.warp import crop_affine
from facerecon.perception import (
    load_age_gender,
    load_detector,
    load_eval_identity,
    load_expression,
    load_facemesh,
    load_identity,
    load_landmarks68,
)
from facerecon.perception.networks import (
    AgeGenderNet,
    DenseFaceNet,
    DescriptorNet,
    TinyDetectorNet,
    _apply_separable,
    _separable,
    load_weights,
)


@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_is_what_loops_compute(stride: int) -> None:
    w = _separable(3, 5)
    for parameter in w.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 3, 6, 7)
    with torch.no_grad():
        found = _apply_separable(x, w, stride)[0]
    rows, columns = -(-6 // stride), -(-7 // stride)
    top, left = max((rows - 1) * stride + 3 - 6, 0) // 2, max((columns - 1) * stride + 3 - 7, 0) // 2
    expected = torch.zeros(5, rows, columns)
    for r in range(rows):
        for c in range(columns):
            between = torch.zeros(3)
            for i in range(3):
                for j in range(3):
                    y, z = r * stride + i - top, c * stride + j - left
                    if 0 <= y < 6 and 0 <= z < 7:
                        between += x[0, :, y, z] * w.depthwise_filter[:, 0, i, j]
            expected[:, r, c] = (w.pointwise_filter[:, :, 0, 0] * between).sum(1) + w.bias
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)


def test_files_of_another_network_are_refused(tmp_path) -> None:
    save_file({"fc.weights": torch.zeros(3)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(AssetError, match="does not fit DenseFaceNet"):
        load_weights(DenseFaceNet(7), tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "build", "count"),
    [
        ("landmarks68", lambda: DenseFaceNet(136), 357_000),
        ("expression7", lambda: DenseFaceNet(7), 324_000),
        ("identity128", DescriptorNet, 5_616_000),
        ("age_gender", AgeGenderNet, 422_000),
        ("face_detector", TinyDetectorNet, 193_000),
    ],
)
def test_networks_load_frozen_and_do_not_mix_a_batch(asset, name: str, build, count: int) -> None:
    net = load_weights(build(), asset(name))
    parameters = list(net.parameters())
    assert not net.training and not any(p.requires_grad for p in parameters)
    assert sum(p.numel() for p in parameters) == pytest.approx(count, rel=0.01)
    images = torch.rand(2, 3, getattr(net, "size", 160), getattr(net, "size", 160))
    both, one = net(images), net(images[1:])
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (both, one)), strict=True):
        torch.testing.assert_close(a[1:], b, atol=1e-4, rtol=1e-3)


def test_attributes_of_the_sample(seen) -> None:
    assert seen.expression.shape == (1, 7)
    torch.testing.assert_close(seen.expression.sum(1), torch.ones(1))
    assert seen.expression[0].argmax() == 1 and seen.expression[0, 1] > 0.9  # she smiles
    assert seen.male.item() < 0.2
    assert 20 < seen.age.item() < 50


def test_attributes_are_measured_only_when_asked_for(seen, photo, monkeypatch, tmp_path) -> None:
    from facerecon.perception import observe
    from facerecon.types import Observation

    for name in ("load_expression", "load_age_gender"):
        monkeypatch.setattr(sys.modules[observe.__module__], name, lambda: pytest.fail("a network ran"))
    other = observe(photo)
    assert (other.expression, other.age, other.male) == (None, None, None)
    plain = Observation.load(other.save(tmp_path / "o.safetensors"))
    assert plain.age is None and torch.equal(plain.eval_identity, seen.eval_identity)
    assert torch.equal(Observation.cat([plain, plain])[1].landmarks68, seen.landmarks68)


def test_attribute_networks_agree_with_the_observation(seen) -> None:
    again = load_expression()(seen.fit.image, seen.landmarks68)
    torch.testing.assert_close(again, seen.expression, atol=1e-4, rtol=0)
    age, male = load_age_gender()(seen.fit.image, seen.landmarks68)
    torch.testing.assert_close(age, seen.age, atol=1e-2, rtol=0)
    torch.testing.assert_close(male, seen.male, atol=1e-4, rtol=0)


def test_the_judge_gives_unit_vectors_and_does_not_mix_a_batch(seen) -> None:
    image = torch.cat([seen.fit.image, seen.fit.image.flip(-1)])
    landmarks = seen.landmarks68.expand(2, -1, -1)
    found = load_eval_identity()(image, landmarks)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(found[:1], seen.eval_identity, atol=1e-4, rtol=0)
    assert np.isfinite(found.numpy()).all()


RECORDED = {
    "landmarks68": (0.1255, 0.3012, 0.1305, 0.4001, 0.1419, 0.4932),
    "identity128": (-0.0403, 0.0340, 0.0125, -0.0490, -0.1751, -0.0226),
    "expression7": (-6.8135, 12.5383, -7.7819, -9.4379, -13.3926, -11.6780),
    "age_gender": (26.7620, 0.2839),
    "face_detector": (-11.0345, -15.3392, -27.2409, -28.3717, -18.5621, -14.5883),
    "faceres1024": (0.0000, 0.0140, 0.0491, 0.6174, 0.0000, 0.2368),
    "facemesh478": (125.9855, 158.8364, -18.7959, 127.8087, 140.7801, -45.6236),
}  # fmt: skip
"""First six outputs of each network on the square (160, 60) to (290, 190) of the sample photo."""


def outputs_on_the_sample(photo: torch.Tensor, name: str) -> torch.Tensor:
    size = {"identity128": 150, "faceres1024": 224, "facemesh478": 256, "face_detector": 160}.get(name, 112)
    to_photo = torch.tensor([[[130 / size, 0.0, 160.0], [0.0, 130 / size, 60.0]]])
    crop = crop_affine(photo[None], to_photo, size)
    nets = {
        "landmarks68": lambda: load_landmarks68().net(crop),
        "identity128": lambda: load_identity().net(crop),
        "expression7": lambda: load_expression().net(crop),
        "age_gender": lambda: torch.cat(load_age_gender().net(crop)),
        "face_detector": lambda: load_detector().net(crop)[0, :, 4, 2, :2],
        "faceres1024": lambda: load_eval_identity().net((crop * 255).permute(0, 2, 3, 1))[0],
        "facemesh478": lambda: load_facemesh().net(crop.permute(0, 2, 3, 1))[0],
    }
    return nets[name]().detach().flatten()[:6]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_outputs_on_the_sample(networks, photo, name: str) -> None:
    found = outputs_on_the_sample(photo, name)
    torch.testing.assert_close(found, torch.tensor(RECORDED[name])[: len(found)], atol=2e-3, rtol=2e-3)
