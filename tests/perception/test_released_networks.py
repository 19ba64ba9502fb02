"""Networks of the FFHQ-UV release: random tensors under the official names, converted, loaded, and held against plain
forward passes written here, in those names."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facerecon import assets
from facerecon.errors import AssetError, ConfigError
from facerecon.imaging.files import read_image
from facerecon.perception import load_identity, load_parser, observe
from facerecon.perception.arcface import TEMPLATE_112, arcface_transform
from facerecon.perception.bisenet import CLASSES
from facerecon.perception.parsing import FaceParser


def _released_files():
    path = Path(__file__).resolve().parents[1] / "released_files.py"
    spec = importlib.util.spec_from_file_location("released_files", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


released = _released_files()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "home"))
    load_identity.cache_clear()
    load_parser.cache_clear()
    yield tmp_path / "home"
    load_identity.cache_clear()
    load_parser.cache_clear()


def bn(state, name, x, eps=1e-5):
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean, variance, weight, bias = (
        state[f"{name}.{kind}"].view(shape) for kind in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def prelu(state, name, x):
    weight = state[f"{name}.weight"].view(1, -1, 1, 1)
    return x.clamp(min=0) + weight * x.clamp(max=0)


def conv(state, name, x, stride=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def plain_iresnet(state, x):
    x = prelu(state, "prelu", bn(state, "bn1", conv(state, "conv1", x)))
    for stage in range(1, 5):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in state:
            at = f"layer{stage}.{i}"
            stride = 2 if i == 0 else 1
            y = conv(state, f"{at}.conv1", bn(state, f"{at}.bn1", x))
            y = prelu(state, f"{at}.prelu", bn(state, f"{at}.bn2", y))
            y = bn(state, f"{at}.bn3", conv(state, f"{at}.conv2", y, stride))
            if f"{at}.downsample.0.weight" in state:
                x = bn(state, f"{at}.downsample.1", conv(state, f"{at}.downsample.0", x, stride))
            x, i = x + y, i + 1
    x = bn(state, "bn2", x).flatten(1)
    return bn(state, "features", x @ state["fc.weight"].T + state["fc.bias"])


def test_arcface_equals_a_plain_forward_pass(reference, home, tmp_path) -> None:
    state = released.random_state(released.official_shapes(reference, "arcface_iresnet50"))
    path = released.save(state, tmp_path / "ms1mv3_arcface_r50_fp16_backbone.pth")
    assets.convert("arcface", path)
    net = load_identity("arcface")
    assert net.metric == "cosine" and load_identity("arcface") is net
    crops = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        expected = plain_iresnet(state, (crops - 0.5) / 0.5)
        maps, found = net.net(crops)
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.std().item(), rtol=1e-3)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14)]
    assert F.cosine_similarity(expected[:1], expected[1:]).item() < 0.9999  # it tells pictures apart
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    points = torch.rand(1, 68, 2) * 40 + 12
    embedding = net(image, points)
    embedding[0, 0].backward()
    assert embedding.norm().item() == pytest.approx(1, abs=1e-5) and image.grad.abs().sum() > 0


def test_the_alignment_is_the_releases(reference) -> None:
    data = np.load(reference / "ffhq_uv" / "fitting_000007.npz")
    key = next(k for k in data.files if "arcface" in k.lower())
    landmarks = next(data[k] for k in data.files if "landmark" in k.lower() or "lm" in k.lower())
    points = torch.from_numpy(np.asarray(landmarks, np.float32)).reshape(1, 68, 2)
    points = torch.stack([points[..., 0], 223 - points[..., 1]], -1)
    ours = arcface_transform(points + 0.5)[0].double()
    theirs = torch.from_numpy(np.asarray(data[key], np.float64)).reshape(2, 3)
    corners = torch.tensor([[0.0, 0], [111, 0], [0, 111], [56, 56]], dtype=torch.float64)
    in_photo = (corners + 0.5) @ ours[:, :2].T + ours[:, 2] - 0.5
    back = in_photo @ theirs[:, :2].T + theirs[:, 2]
    assert (back - corners).abs().max() < 0.1  # px


def test_a_face_in_the_template_is_not_moved() -> None:
    points = torch.zeros(1, 68, 2)
    nose, right, left, one, other = TEMPLATE_112 + 0.5
    points[0, 30], points[0, 48], points[0, 54] = nose, one, other
    points[0, [36, 39]], points[0, [42, 45]] = right, left
    torch.testing.assert_close(arcface_transform(points)[0], torch.eye(3)[:2], atol=1e-4, rtol=0)


def plain_bisenet(state, x):
    def cbr(name, x):
        return F.relu(bn(state, f"{name}.bn", conv(state, f"{name}.conv", x)))

    def refined(name, x):
        x = cbr(f"{name}.conv", x)
        weight = bn(state, f"{name}.bn_atten", conv(state, f"{name}.conv_atten", x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(weight)

    def twice(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    root = "cp.resnet"
    y = F.relu(bn(state, f"{root}.bn1", F.conv2d(x, state[f"{root}.conv1.weight"], None, 2, 3)))
    y = F.max_pool2d(y, 3, 2, 1)
    stages = []
    for stage in range(1, 5):
        for i in range(2):
            at, stride = f"{root}.layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            z = F.relu(bn(state, f"{at}.bn1", conv(state, f"{at}.conv1", y, stride)))
            z = bn(state, f"{at}.bn2", conv(state, f"{at}.conv2", z))
            if f"{at}.downsample.0.weight" in state:
                y = bn(state, f"{at}.downsample.1", conv(state, f"{at}.downsample.0", y, stride))
            y = F.relu(y + z)
        stages.append(y)
    coarse = refined("cp.arm32", stages[3]) + cbr("cp.conv_avg", stages[3].mean((2, 3), keepdim=True))
    middle = refined("cp.arm16", stages[2]) + cbr("cp.conv_head32", twice(coarse))
    fused = cbr("ffm.convblk", torch.cat([stages[1], cbr("cp.conv_head16", twice(middle))], 1))
    weight = conv(state, "ffm.conv2", F.relu(conv(state, "ffm.conv1", fused.mean((2, 3), keepdim=True))))
    logits = conv(state, "conv_out.conv_out", cbr("conv_out.conv", fused * (1 + torch.sigmoid(weight))))
    # bilinear with the corners in place, written out
    size, small = x.shape[-1], logits.shape[-1]
    at = torch.arange(size) * (small - 1) / (size - 1)
    low = at.long().clamp(max=small - 2)
    along = torch.zeros(size, small)
    along[range(size), low], along[range(size), low + 1] = 1 - (at - low), at - low
    return along @ logits @ along.T


def test_bisenet_equals_a_plain_forward_pass(reference, home, tmp_path) -> None:
    state = released.random_state(released.official_shapes(reference, "bisenet_parsing19"))
    assets.convert("bisenet", released.save(state, tmp_path / "79999_iter.pth", _use_new_zipfile_serialization=False))
    parser = load_parser()
    image = torch.rand(1, 3, 128, 128)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = plain_bisenet(state, (image - mean[:, None, None]) / std[:, None, None])
        found = parser.net(image)
    assert found.shape == (1, 19, 128, 128) and expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-4 * expected.abs().max().item(), rtol=1e-3)


class _Painted(torch.nn.Module):
    """Stands for BiSeNet where the answer must be known: the class of a pixel is its red value times 18."""

    def forward(self, image):
        classes = (image[:, 0] * 18).round().long()
        return 30.0 * F.one_hot(classes, 19).permute(0, 3, 1, 2).float()


def test_masks_are_sums_of_classes_near_the_face() -> None:
    from facerecon.perception.facemesh import FACE_OVAL

    picture = torch.zeros(1, 3, 512, 512)
    bands = ("skin", "left_eye", "glasses", "mouth", "upper_lip", "nose", "right_brow", "hair")
    for k, name in enumerate(bands):
        picture[:, 0, :, 64 * k : 64 * k + 64] = CLASSES.index(name) / 18
    mesh = torch.full((1, 468, 2), 256.0)
    angle = torch.arange(len(FACE_OVAL)) / len(FACE_OVAL) * 2 * torch.pi
    mesh[0, list(FACE_OVAL)] = 256 + 150 * torch.stack([angle.sin(), -angle.cos()], 1)
    masks = FaceParser(_Painted())(picture, mesh)
    row = {name: 64 * k + 32 for k, name in enumerate(bands)}
    for kind, names in {
        "face": ("skin", "left_eye", "mouth", "upper_lip", "nose", "right_brow"),
        "skin": ("skin", "nose"), "eye": ("left_eye",), "mouth": ("mouth",), "lip": ("upper_lip",),
    }.items():  # fmt: skip
        mask = getattr(masks, kind)[0, 0]
        for name in bands:
            assert mask[256, row[name]].item() == pytest.approx(float(name in names), abs=1e-3), (kind, name)
    assert masks.face[0, 0, :8].max() == 0  # far above the outline is another face, if it is one


def test_a_photo_is_masked_by_the_parser(asset, monkeypatch) -> None:
    asset("facemesh478")

    class Left(FaceParser):
        def probabilities(self, image):
            found = image.new_zeros(1, 19, 512, 512)
            found[:, CLASSES.index("skin"), :, :256] = 1
            return found

    photo = read_image(Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg")
    monkeypatch.setitem(observe.__wrapped__.__globals__, "load_parser", lambda: Left(_Painted()))
    face = observe(photo.permute(1, 2, 0).numpy()).fit.face_mask[0, 0]
    middle = face.shape[-1] // 2
    assert face[:, : middle - 4].mean() > 0.3 and face[:, middle + 4 :].max() == 0


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("fc.bias"), "lacks 'fc.bias'"),
        (lambda s: s.update(extra=torch.ones(2)), "holds unknown 'extra'"),
        (lambda s: s.update({"conv1.weight": torch.ones(64, 3, 5, 5)}), r"'conv1.weight' is \(64, 3, 5, 5\), expected"),
        (lambda s: s["bn2.bias"].fill_(float("nan")), "'bn2.bias' holds NaN"),
    ],
)
def test_another_network_is_one_line(reference, home, tmp_path, change, words) -> None:
    shapes = released.official_shapes(reference, "arcface_iresnet50")
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    change(state)
    with pytest.raises(AssetError, match=words):
        assets.convert("arcface", released.save(state, tmp_path / "a.pth"))
    assert not list((home / "assets").glob("arcface*"))


def test_names_and_what_is_missing(home) -> None:
    with pytest.raises(ConfigError, match="did you mean 'arcface'"):
        load_identity("arcfase")
    with pytest.raises(AssetError, match=r"Get it: download .*convert arcface PATH"):
        load_identity("arcface")
    with pytest.raises(AssetError, match=r"bisenet is not in the cache .*assets fetch open"):
        load_parser()


def plain_dpr_light(state, lightness):
    """The way down of the hourglasses, by their nested official names."""
    x = F.relu(bn(state, "pre_bn", F.conv2d(lightness, state["pre_conv.weight"], state["pre_conv.bias"], padding=2)))
    at = "HG3"
    while True:
        x = F.max_pool2d(x, 2)
        low = f"{at}.low1"
        y = F.relu(bn(state, f"{low}.bn1", conv(state, f"{low}.conv1", x)))
        y = bn(state, f"{low}.bn2", conv(state, f"{low}.conv2", y))
        x = F.relu(y + (x if x.shape[1] == y.shape[1] else conv(state, f"{low}.shortcuts", x)))
        at += ".middle"
        if f"{at}.predict_FC1.weight" in state:
            break
    x = x[:, :27].mean((2, 3), keepdim=True)
    x = F.prelu(conv(state, f"{at}.predict_FC1", x), state[f"{at}.predict_relu1.weight"])
    return conv(state, f"{at}.predict_FC2", x)[:, :, 0, 0]


def test_dprs_light_equals_a_plain_forward_pass(reference, home, tmp_path) -> None:
    from skimage.color import rgb2lab

    from facerecon.perception.dpr import load_portrait_light, read_official_dpr

    load_portrait_light.cache_clear()
    state = released.nested(released.random_state(released.official_shapes(reference, "dpr_512")))
    assets.convert("dpr", released.save(state, tmp_path / "trained_model_03.t7", _use_new_zipfile_serialization=False))
    image = torch.rand(1, 3, 512, 512)
    light = torch.from_numpy(rgb2lab(image[0].permute(1, 2, 0).numpy())[..., 0] / 100).float()[None, None]
    with torch.no_grad():
        expected, found = plain_dpr_light(state, light), load_portrait_light()(image)
    assert found.shape == (1, 9) and expected.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.abs().max().item(), rtol=1e-3)
    large = released.random_state({n: (1,) for n in released.official_shapes(reference, "dpr_1024")})
    with pytest.raises(AssetError, match="not DPR's 512 px network"):
        read_official_dpr(released.save(large, tmp_path / "b.t7"))
    load_portrait_light.cache_clear()


def test_the_expression_network_equals_a_plain_forward_pass(reference, home, tmp_path) -> None:
    from facerecon.perception.vgg_expression import FER_EXPRESSIONS, load_vgg_expression

    load_vgg_expression.cache_clear()
    state = released.random_state(released.official_shapes(reference, "expression_vgg19"))
    content = {"net": state, "best_PublicTest_acc": 71.5, "best_PrivateTest_acc_epoch": 3}
    assets.convert("expression_vgg19", released.save(content, tmp_path / "FacialExpRecognition_model.t7"))
    net = load_vgg_expression()
    image = torch.rand(2, 3, 48, 48)
    gray = (0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2])[:, None].repeat(1, 3, 1, 1)
    answers = []
    for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
        for flip in (False, True):
            x, i = gray[:, :, top : top + 44, left : left + 44], 0
            x = x.flip(-1) if flip else x
            for count in (2, 2, 4, 4, 4):
                for _ in range(count):
                    x, i = F.relu(bn(state, f"features.{i + 1}", conv(state, f"features.{i}", x))), i + 3
                x, i = F.max_pool2d(x, 2), i + 1
            answers.append(x.flatten(1) @ state["classifier.weight"].T + state["classifier.bias"])
    with torch.no_grad():
        found = net(image)
    expected = (sum(answers) / 10).softmax(1)
    assert len(FER_EXPRESSIONS) == 7 and FER_EXPRESSIONS[3] == "happy"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    load_vgg_expression.cache_clear()


def test_vgg16_is_read_from_its_script_as_tensors(home, tmp_path) -> None:
    from safetensors.torch import load_file

    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    layers = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    for count, error in ((13, None), (12, "thirteen convolutions")):
        net = torch.nn.Sequential(*layers[:count]).eval()
        path = tmp_path / "vgg16.pt"
        torch.jit.trace(net, torch.rand(1, 3, 4, 4)).save(str(path))
        if error:
            with pytest.raises(AssetError, match=error):
                assets.convert("vgg16", path)
            continue
        found = load_file(assets.convert("vgg16", path))
        assert set(found) == set(net.state_dict())
        assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())
