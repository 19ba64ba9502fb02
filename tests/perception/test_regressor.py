"""N_enc: against torchvision's ResNet, against the released layout, and its files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import facerecon as fr
from facerecon import assets
from facerecon.errors import AssetError, ConfigError, OutputError, ShapeError
from facerecon.imaging.files import read_image
from facerecon.perception.regressor import (
    Regressor,
    RegressorConfig,
    clamp_inward,
    from_official,
    load_regressor,
    mean_regressor,
    read_official_regressor,
    read_regressor,
    save_regressor,
    trained_regressor,
)
from facerecon.settings import build_settings
from facerecon.stylegan.linear_basis import read_linear_basis

SMALL = RegressorConfig(backbone="resnet10", width=0.125, identity=5, expression=4, texture=3, size=64)


def filled(config: RegressorConfig, seed: int = 0) -> Regressor:
    """Random weights everywhere, normalization and heads included."""
    network, generator = Regressor(config), torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            scale = 1 / math.sqrt(value[0].numel()) if value.dim() == 4 else 0.1
            draw = torch.randn(value.shape, generator=generator) * scale
            state[name] = 1 + draw if name.endswith(("running_var", "bn1.weight", "bn2.weight")) else draw
    network.load_state_dict(state)
    return network.eval()


# -- the released layout ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(reference: Path) -> dict[str, torch.Tensor]:
    """Random tensors by the released list of keys, of a size that keeps the signal alive through fifty layers."""
    shapes = json.loads((reference / "official_keys" / "deep3d_net_recon.json").read_text())
    generator, state = torch.Generator().manual_seed(1), {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
            value = 1 + 0.1 * value
        elif len(shape) == 4:
            value = value * math.sqrt(2 / (shape[1] * shape[2] * shape[3]))
        else:
            value = 0.1 * value
        state[name] = value.abs() if name.endswith("running_var") else value
    return state


def plain_forward(state: dict[str, torch.Tensor], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Deep3D's forward pass, from torchvision's ResNet-50 and matrix products."""
    net = torchvision.models.resnet50(weights=None)
    net.fc = nn.Identity()
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    with torch.no_grad():
        x = net.eval()(images)

    def head(name: str) -> torch.Tensor:
        return x @ state[f"final_layers.{name}.weight"][:, :, 0, 0].T + state[f"final_layers.{name}.bias"]

    return {
        "identity": head("0"),
        "expression": head("1.0").relu(),
        "texture": head("2"),
        "angles": head("3"),
        "light": head("4"),
        "translation": torch.cat([head("5"), head("6")], 1),
    }


def test_released_file_computes_what_a_plain_resnet_does(released, tmp_path):
    path = tmp_path / "epoch_latest.pth"
    torch.save({"net_recon": released, "opt_00": {"state": {}, "param_groups": [{"lr": 1e-4}]}}, path)
    network = read_official_regressor(path)
    assert network.config.backbone == "resnet50" and network.config.face_model == "hifi3dpp"
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        found = network(images)
    expected = plain_forward(released, images)
    for name, value in expected.items():
        error = (getattr(found, name) - value).abs().max() / value.abs().max()
        assert value.std() > 0.01 and error < 1e-4, name
    assert (found.expression >= 0).all() and (found.expression == 0).any() and (found.expression > 0).any()


def test_released_keys_are_used_once_and_named_when_wrong(released):
    network = from_official(released)
    assert sum(p.numel() for p in network.parameters()) == sum(
        v.numel() for k, v in released.items() if "running" not in k and "tracked" not in k
    )
    with pytest.raises(AssetError, match=r"layer3\.2\.bn1\.weight"):
        from_official({k: v for k, v in released.items() if k != "backbone.layer3.2.bn1.weight"})
    with pytest.raises(AssetError, match=r"backbone\.extra"):
        from_official({**released, "backbone.extra": torch.zeros(1)})
    with pytest.raises(AssetError, match=r"final_layers\.6"):
        from_official({k: v for k, v in released.items() if "final_layers.6" not in k})
    with pytest.raises(AssetError, match=r"final_layers\.0\.bias.*NaN"):
        from_official({**released, "final_layers.0.bias": torch.full((532,), torch.nan)})
    with pytest.raises(AssetError, match="depth"):
        from_official({k: v for k, v in released.items() if "layer2.3" not in k})


class _Payload:
    def __reduce__(self):
        return Path.touch, (Path("touched_by_a_pickle"),)


def test_released_file_that_could_run_code_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"net_recon": _Payload()}, tmp_path / "bad.pth")
    with pytest.raises(AssetError, match="could run code"):
        read_official_regressor(tmp_path / "bad.pth")
    assert not (tmp_path / "touched_by_a_pickle").exists()
    (tmp_path / "short.pth").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(AssetError, match="no readable checkpoint"):
        read_official_regressor(tmp_path / "short.pth")
    torch.save({"step": 3}, tmp_path / "other.pth")
    with pytest.raises(AssetError, match="net_recon"):
        read_official_regressor(tmp_path / "other.pth")
    with pytest.raises(AssetError, match="does not exist"):
        read_official_regressor(tmp_path / "none.pth")


# -- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_backbones_are_torchvisions(name):
    network = filled(RegressorConfig(backbone=name))
    twin = getattr(torchvision.models, name)(weights=None)
    twin.fc = nn.Identity()
    twin.load_state_dict(network.backbone.state_dict())
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = twin.eval()(images)
        assert torch.allclose(network.pooled(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_untrained_network_says_the_mean_face_and_every_head_learns():
    network = Regressor(SMALL)
    out = network(torch.rand(2, 3, 64, 64))
    shapes = {"identity": 5, "expression": 4, "texture": 3, "angles": 3, "light": 27, "translation": 3}
    for name, size in shapes.items():
        assert getattr(out, name).shape == (2, size) and not getattr(out, name).any()
    sum((getattr(out, name) - 1).square().sum() for name in shapes).backward()
    for head in network.heads.values():
        assert head.bias.grad.abs().min() > 0  # the expression's too, which a plain ReLU would hold at 0


def test_width_scales_every_layer():
    full, half = (sum(p.numel() for p in Regressor(RegressorConfig(width=w)).parameters()) for w in (1.0, 0.5))
    assert 3.5 < full / half < 4.2
    assert RegressorConfig(width=0.01).channels == (8, 8, 8, 8)


def test_clamp_lets_gradients_lead_inside_only():
    x = torch.tensor([-1.0, -1.0, 0.0, 0.5, 1.0, 2.0, 2.0], requires_grad=True)
    out = clamp_inward(x, 0.0, 1.0)
    assert out.tolist() == [0, 0, 0, 0.5, 1, 1, 1]
    (out * torch.tensor([1.0, -1.0, -1.0, 3.0, -1.0, 1.0, -1.0])).sum().backward()
    assert x.grad.tolist() == [0, -1, -1, 3, 0, 1, 0]


def test_expression_stays_in_its_bounds():
    images = torch.rand(3, 3, 64, 64)
    free = filled(RegressorConfig(**{**SMALL.plain(), "expression_low": None}))
    raw = free(images).expression
    assert raw.min() < -0.01
    for bounds in ((0.0, None), (0.0, 0.1), (-0.01, 0.05)):
        config = RegressorConfig(**{**SMALL.plain(), "expression_low": bounds[0], "expression_high": bounds[1]})
        assert torch.equal(filled(config)(images).expression, raw.clamp(*bounds))


def test_crops_of_another_size_are_resized():
    network = Regressor(SMALL)
    ramp = (torch.arange(128) + 0.5) / 128
    crops = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), torch.rand(128, 128)])[None]
    found = network.sized(crops)
    assert found.shape == (1, 3, 64, 64)
    half = (torch.arange(64) + 0.5) / 64  # the same ramps, pixel centers at +0.5
    assert torch.allclose(found[0, 0, :, 2:-2], half[2:-2].expand(64, 60), atol=1e-6)
    assert torch.allclose(found[0, 1, 2:-2], half[2:-2, None].expand(60, 64), atol=1e-6)
    assert found[0, 2].std() < 0.7 * crops[0, 2].std()  # averaged, not picked
    assert torch.equal(network.sized(crops[..., :64, :64]), crops[..., :64, :64])


def test_wrong_sizes_and_values_are_named():
    with pytest.raises(ShapeError, match=r"\(B, 3, 64, 64\)"):
        Regressor(SMALL)(torch.rand(1, 3, 224, 224))
    with pytest.raises(ConfigError, match="resnet18"):
        RegressorConfig(backbone="resnet19")
    for bad in ({"width": 0}, {"identity": -1}, {"size": 10}, {"expression_low": 0.5}, {"texture": 2.5}):
        with pytest.raises(ConfigError):
            RegressorConfig(**bad)
    with pytest.raises(ConfigError, match="width"):
        build_settings(RegressorConfig, {"widht": 1.0}, "regressor")
    assert build_settings(RegressorConfig, json.loads(json.dumps(SMALL.plain())), "regressor") == SMALL


# -- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0), (torch.float16, 2e-3), ("int8", 3e-2)])
def test_files_hold_the_network(tmp_path, dtype, limit):
    network = filled(SMALL)
    path = save_regressor(tmp_path / "r.safetensors", network, {"steps": 7}, dtype)
    again = read_regressor(path)
    assert again.config == SMALL and again.about == {"steps": 7} and not again.training
    assert not any(p.requires_grad for p in again.parameters())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        a, b = network(images), again(images)
    for name in ("identity", "texture", "angles", "light", "translation"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x - y).abs().max() <= limit * x.abs().max() + (1e-6 if limit == 0 else 0)
    assert (
        save_regressor(tmp_path / "again.safetensors", network, {"steps": 7}, dtype).read_bytes() == path.read_bytes()
    )


def test_mean_of_weights() -> None:
    """Of one network it is that network; of two, half way; of two kinds, none."""
    one, two = filled(SMALL, 0), filled(SMALL, 1)
    one.about = {"residual": {}}
    mean = mean_regressor([one, two])
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, (one.state_dict()[name] + two.state_dict()[name]) / 2)
    assert mean.about == {} and one.about  # nothing of the first has changed
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(mean_regressor([two])(images).identity, two(images).identity, atol=1e-5)
    with pytest.raises(ConfigError, match="different kinds"):
        mean_regressor([one, filled(dataclasses.replace(SMALL, texture=4))])
    with pytest.raises(ConfigError, match="at least"):
        mean_regressor([])


def test_residuals_travel_with_the_weights(tmp_path):
    network = filled(SMALL)
    assert network.residual("identity") is None
    good = {"residual": {"identity": [0.5] * 5, "expression": [0.1, 0.2, 0.3, 0.4]}}
    again = read_regressor(save_regressor(tmp_path / "r.safetensors", network, good))
    assert again.residual("identity").tolist() == [0.5] * 5
    assert torch.allclose(again.residual("expression"), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    for bad in ([0.5] * 4, [0.5] * 4 + [0.0], [0.5] * 4 + [float("nan")], 3, ["a"] * 5):
        path = save_regressor(tmp_path / "bad.safetensors", network, {"residual": {"identity": bad}})
        with pytest.raises(AssetError, match="not a face regressor"):
            read_regressor(path)
    with pytest.raises(AssetError):
        read_regressor(save_regressor(tmp_path / "bad.safetensors", network, {"residual": {"nose": [1.0]}}))


def test_eight_bits_fit_what_may_be_shipped(tmp_path):
    path = save_regressor(tmp_path / "r.safetensors", Regressor(RegressorConfig()), dtype="int8")
    assert path.stat().st_size < 12e6


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = save_regressor(tmp_path / "r.safetensors", filled(SMALL), dtype="int8")
    with pytest.raises(AssetError, match="does not exist"):
        read_regressor(tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(AssetError, match="not a face regressor"):
        read_regressor(tmp_path / "half.safetensors")
    with pytest.raises(AssetError, match="pickle"):
        torch.save({}, tmp_path / "r.bin")
        read_regressor(tmp_path / "r.bin")
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    save_file(tensors, tmp_path / "headless.safetensors")
    with pytest.raises(AssetError, match="not a face regressor"):
        read_regressor(tmp_path / "headless.safetensors")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        meta = file.metadata()
    for name, changed, message in (
        ("less", {k: v for k, v in tensors.items() if k != "heads.light.bias"}, "heads.light.bias"),
        ("scale", {k: v for k, v in tensors.items() if k != "backbone.conv1.weight.scale"}, "scale"),
        ("nan", {**tensors, "heads.light.bias": torch.full((27,), torch.nan)}, "NaN"),
        ("more", {**tensors, "heads.other.bias": torch.zeros(2)}, "heads.other.bias"),
    ):
        save_file(changed, tmp_path / f"{name}.safetensors", meta)
        with pytest.raises(AssetError, match=message):
            read_regressor(tmp_path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match="int8"):
        save_regressor(tmp_path / "x.safetensors", filled(SMALL), dtype="int4")
    with pytest.raises(ConfigError, match="plain data"):
        save_regressor(tmp_path / "x.safetensors", filled(SMALL), {"a": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_regressor(tmp_path / "file" / "x.safetensors", filled(SMALL))


def test_loading_by_head_model(tmp_path, monkeypatch):
    from facerecon.perception import regressor as module

    monkeypatch.setattr(module, "trained_regressor", lambda name: None)
    with pytest.raises(AssetError, match=r"train/regressor\.py face_model=ict") as error:
        fr.load_regressor("ict")
    assert "stage1=landmarks" in str(error.value)
    with pytest.raises(AssetError, match=r"epoch_latest\.pth"):
        load_regressor("hifi3dpp")
    path = save_regressor(tmp_path / "r.safetensors", filled(SMALL))
    assert load_regressor("makehuman", path).config == SMALL
    with pytest.raises(AssetError, match="face_model=makehuman"):
        load_regressor("ict", path)

    class Head:
        name, num_expression = "makehuman", 52

    with pytest.raises(AssetError, match="4 expression coefficients"):
        load_regressor(Head(), path)
    monkeypatch.setattr(module, "trained_regressor", lambda name: path)
    assert load_regressor().config == SMALL


def test_shipped_weights_are_found_by_name():
    assert trained_regressor("no_such_model") is None


@pytest.mark.parametrize(
    ("name", "gray"),
    [
        ("makehuman", [[171, 169], [172, 163], [173, 166], [123, 152]]),
        ("makehuman_artist", [[163, 160], [163, 154], [164, 157], [119, 146]]),
        ("ict", [[176, 174], [177, 167], [178, 169], [126, 155]]),
    ],
)
def test_shipped_networks_say_textures_in_the_shipped_basis(name, gray):
    """Coarse gray levels, on the left half, of what each network said in the basis that it was trained with."""
    image = read_image(Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg")
    network = load_regressor(name)
    with torch.no_grad():
        code = network(network.sized(image[None, :, 28:176, 153:301])).texture
    mean, basis = read_linear_basis(assets.shipped("texture_linear.safetensors"), code.shape[1])
    texture = mean + torch.einsum("k,kcij->cij", code[0], basis)
    found = torch.nn.functional.interpolate(texture[None], (4, 4), mode="area")[0].mean(0)[:, :2] * 255
    assert (found - torch.tensor(gray)).abs().mean() < 4  # 10 and more where network and basis do not belong together
