"""Heads with known shape: what is drawn depends on the number alone, and the photo shows the head that is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facerecon.geometry.lighting import sh_basis
from facerecon.synthetic.ict_heads import (
    SyntheticHeads,
    _extrapolate,
    degrade,
    onto_landmarks,
    random_camera,
    random_light,
)


def test_lights_are_as_bright_as_said() -> None:
    facing = sh_basis(torch.tensor([[0.0, 0.0, 1.0]]))
    for seed in range(20):
        light = random_light(np.random.default_rng(seed)).coefficients
        assert 0.84 < (facing @ light[0]).mean().item() < 1.11


def test_cameras_show_the_face_at_half_the_picture() -> None:
    for seed in range(20):
        camera = random_camera(np.random.default_rng(seed), 640)
        distance = camera.translation[0, 2].item()
        assert 7 <= distance <= 14 and 0.2 <= camera.focal.item() / distance / 640 <= 0.26
        assert torch.allclose(camera.rotation[0] @ camera.rotation[0].T, torch.eye(3), atol=1e-6)


def test_holes_are_filled_from_around_them() -> None:
    known = torch.zeros(1, 1, 16, 16)
    known[..., :, :4] = 1
    filled = _extrapolate(torch.full((1, 3, 16, 16), 0.7) * known, known)
    assert torch.allclose(filled[..., :4], torch.tensor(0.7), atol=1e-4)
    assert torch.allclose(filled, torch.tensor(0.7), atol=0.02)


def test_points_follow_landmarks_near_them_only() -> None:
    found, wanted = torch.tensor([[50.0, 50.0]]), torch.tensor([[53.0, 50.0]])
    moved = onto_landmarks(torch.tensor([[50.0, 50.0], [500.0, 50.0]]), found, wanted)
    assert torch.allclose(moved, torch.tensor([[53.0, 50.0], [500.0, 50.0]]), atol=0.05)


def test_a_degraded_picture_is_the_same_every_time() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, again = (degrade(image, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, degrade(image, np.random.default_rng(4)))
    assert (first - image[0]).abs().mean() < 0.3


@pytest.mark.slow
def test_a_head_by_number(reference, asset) -> None:
    from facerecon.morphable import load_face_model
    from facerecon.perception import observe

    for name in ("mobile_stylegan", "makehuman", "face_detector", "landmarks68", "facemesh478"):
        asset(name)
    ict = load_face_model("ict", num_identity=30, path=reference / "ict" / "ict_facekit_light.npz")
    heads = SyntheticHeads(ict, seed=2)
    first, turned = heads.sample(1), heads.sample(1, yaw=25.0)
    again = SyntheticHeads(ict, seed=2).sample(1)
    assert torch.equal(first.photo, again.photo) and torch.equal(first.vertices, again.vertices)
    assert turned.rotation[0, 1].item() == pytest.approx(np.deg2rad(25)) and torch.equal(
        turned.vertices, first.vertices
    )
    seen = observe(first.photo)
    found = seen.landmarks68[0] @ seen.fit.to_photo[0, :, :2].mT + seen.fit.to_photo[0, :, 2]
    between = (first.pixels[45] - first.pixels[36]).norm()
    assert (found[27:] - first.pixels[27:]).norm(dim=1).mean() < 0.06 * between
