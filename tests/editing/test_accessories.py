"""Upper-face features against invariances, the classifier against the pictures that were labeled."""

import pytest
import torch

from facerecon.editing.accessories import (
    ACCESSORIES,
    AccessoryClassifier,
    fit_accessories,
    load_accessories,
    upper_face,
    upper_face_features,
)
from facerecon.errors import AssetError, InputError


def face_mesh(turn: float = 0.0, side: int = 256) -> torch.Tensor:
    """A flat 'mesh' of a 256 px picture with its eyes level, then turned about the picture's center."""
    mesh = torch.full((1, 468, 3), 128.0)
    for point, place in {
        33: (88, 120), 133: (112, 120), 362: (144, 120), 263: (168, 120), 10: (128, 50), 152: (128, 210),
        234: (58, 130), 454: (198, 130),
    }.items():  # fmt: skip
        mesh[0, point, :2] = torch.tensor(place, dtype=torch.float32)
    angle = torch.tensor(turn)
    rotation = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    mesh[..., :2] = (mesh[..., :2] - 128) @ rotation.T + 128
    return mesh * (side / 256)


def picture(side: int = 256) -> torch.Tensor:
    grid = (torch.arange(side) + 0.5) / side * 256
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    waves = torch.stack([torch.sin(x / 9), torch.sin((x + y) / 13), torch.cos(y / 11)])
    return (0.5 + 0.3 * waves)[None]


def test_the_crop_follows_the_face() -> None:
    upright = upper_face(picture(), face_mesh())
    quarter = upper_face(torch.rot90(picture(), -1, (2, 3)), face_mesh(torch.pi / 2))
    assert upright.shape == (1, 3, 96, 96)
    assert (upright - quarter).abs().max() < 1e-3
    larger = upper_face(picture(1024), face_mesh(side=1024))
    assert (upright - larger).abs().mean() < 0.01


def test_features_ignore_brightness_and_see_orientation() -> None:
    crop = upper_face(picture(), face_mesh())
    feature = upper_face_features(crop)
    assert feature.shape == (1, 1584)
    dim = upper_face_features(crop * 0.6)
    assert (feature - dim).abs().mean() < 0.03
    stripes = 0.5 + 0.4 * torch.sin(torch.arange(96.0) / 3).expand(1, 3, 96, 96)  # vary along x: gradient angle 0
    cells = upper_face_features(stripes).view(11, 12, 12)[:8, 3:9, 3:9].mean((1, 2))
    assert cells.argmax() == 0
    assert upper_face_features(stripes.mT).view(11, 12, 12)[:8, 3:9, 3:9].mean((1, 2)).argmax() == 4


def test_fit_finds_what_is_there_and_says_how_well() -> None:
    chance = torch.Generator().manual_seed(4)
    features = torch.randn(120, 1584, generator=chance)
    labels = {}
    for k, name in enumerate(ACCESSORIES):
        there = torch.arange(120) % 3 == k
        features[there, k * 40 : k * 40 + 40] += 1.5
        labels[name] = (torch.arange(120), there.long())
    classifier, margins = fit_accessories(features, labels)
    for k, name in enumerate(ACCESSORIES):
        assert classifier.metrics[name]["accuracy"] > 0.95
        inside = features @ classifier.weight[k] + classifier.bias[k]
        assert ((inside > 0) == (labels[name][1] > 0)).all()
        assert margins[name].abs().mean() < inside.abs().mean()  # out of fold is less sure
    with pytest.raises(InputError, match="'glasses' has 2 of 120"):
        fit_accessories(features, labels | {"glasses": (torch.arange(120), (torch.arange(120) < 2).long())})


def test_files(tmp_path) -> None:
    shipped = load_accessories()
    assert shipped.metrics["glasses"]["accuracy"] > 0.96
    shipped.save(tmp_path / "a.safetensors")
    again = AccessoryClassifier.load(tmp_path / "a.safetensors")
    assert torch.equal(again.weight, shipped.weight)
    AccessoryClassifier(torch.zeros(3, 5), torch.zeros(3)).save(tmp_path / "b.safetensors")
    with pytest.raises(AssetError, match="other shapes"):
        AccessoryClassifier.load(tmp_path / "b.safetensors")
