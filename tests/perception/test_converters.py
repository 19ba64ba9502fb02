"""Conversion of packages: a pretend one goes through unharmed, the same file twice; damaged files are refused."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from facerecon.errors import AssetError
from facerecon.perception import convert
from facerecon.perception.graph import GraphNet, read_converted
from facerecon.perception.networks import DenseFaceNet, TinyDetectorNet, load_weights


def text(value: str) -> dict:
    return {"s": base64.b64encode(value.encode()).decode()}


@pytest.fixture
def package(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """Folder of a package with the detector's weights, quantized, and a graph of one convolution and a sum."""
    random, net = np.random.default_rng(0), TinyDetectorNet()
    (tmp_path / "model").mkdir()
    (tmp_path / "models").mkdir()
    specs, values, raw = [], {}, b""
    for name, parameter in net.named_parameters():
        shape = list(parameter.shape)
        if len(shape) == 4:  # torch's (out, in, h, w) is (h, w, in, out) there; depthwise (h, w, channels, 1)
            order = (2, 3, 0, 1) if name.endswith("depthwise_filter") else (2, 3, 1, 0)
            shape = [shape[i] for i in order]
        codes = random.integers(0, 256, shape, dtype=np.uint8)
        specs.append({"name": name.replace(".", "/"), "shape": shape, "dtype": "float32",
                      "quantization": {"dtype": "uint8", "scale": 0.01, "min": -1.2}})  # fmt: skip
        values[name] = codes * 0.01 - 1.2
        raw += codes.tobytes()
    manifest = [{"paths": ["other-name-shard1"], "weights": specs}]
    (tmp_path / "model" / "tiny_face_detector_model-weights_manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "model" / "tiny_face_detector_model.bin").write_bytes(raw)

    kernel, shift = random.normal(size=(1, 1, 3, 2)).astype("<f4"), random.normal(size=2).astype("<f4")
    values |= {"kernel": kernel, "shift": shift}
    nodes = [
        {"name": "kernel", "op": "Const"},
        {"name": "shift", "op": "Const"},
        {"name": "x", "op": "Placeholder"},
        {"name": "conv", "op": "Conv2D", "input": ["x", "kernel"],
         "attr": {"strides": {"list": {"i": ["1", "1", "1", "1"]}}, "padding": text("SAME")}},
        {"name": "sum", "op": "AddV2", "input": ["conv", "shift"]},
        {"name": "global_pooling/Mean", "op": "Sigmoid", "input": ["sum"]},
    ]  # fmt: skip
    weights = [{"name": n, "shape": list(values[n].shape), "dtype": "float32"} for n in ("kernel", "shift")]
    description = {
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["faceres.bin"], "weights": weights}],
    }
    (tmp_path / "models" / "faceres.json").write_text(json.dumps(description))
    (tmp_path / "models" / "faceres.bin").write_bytes(kernel.tobytes() + shift.tobytes())
    return tmp_path, values


@pytest.mark.parametrize("converter", ["face_detector", "faceres1024"])
def test_converting_twice_gives_the_same_tensors_and_header(package, tmp_path, converter: str) -> None:
    found = []
    for name in ("a", "b"):
        getattr(convert, converter)(package[0], tmp_path / name)
        found.append(read_converted(tmp_path / name))
    (one, meta), (other, again) = found
    assert meta == again and list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_quantized_weights_arrive_in_torchs_layout(package, tmp_path) -> None:
    source, values = package
    convert.face_detector(source, tmp_path / "detector")
    net = load_weights(TinyDetectorNet(), tmp_path / "detector")
    first, depthwise = net.conv0.filters, net.conv1.depthwise_filter
    np.testing.assert_allclose(first[3, 2, 0, 1], values["conv0.filters"][0, 1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(depthwise[5, 0, 2, 1], values["conv1.depthwise_filter"][2, 1, 5, 0], atol=1e-6)
    np.testing.assert_allclose(net.conv8.bias, values["conv8.bias"], atol=1e-6)


def test_a_converted_graph_runs(package, tmp_path) -> None:
    source, values = package
    convert.faceres1024(source, tmp_path / "graph")
    x = torch.rand(2, 4, 5, 3)
    found = GraphNet.from_file(tmp_path / "graph")(x)[0]
    linear = np.einsum("bhwi,io->bhwo", x.numpy(), values["kernel"][0, 0]) + values["shift"]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-linear)), atol=1e-5)


def test_a_truncated_file_is_refused_in_one_line(package, tmp_path) -> None:
    convert.face_detector(package[0], tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-100])
    (tmp_path / "text").write_text("not weights")
    for name in ("cut", "text", "missing"):
        with pytest.raises(AssetError, match="assets fetch open") as error:
            load_weights(TinyDetectorNet(), tmp_path / name)
        assert "\n" not in str(error.value)
        with pytest.raises(AssetError):
            GraphNet.from_file(tmp_path / name)


def test_weights_of_another_network_are_refused(package, tmp_path) -> None:
    convert.face_detector(package[0], tmp_path / "detector")
    with pytest.raises(AssetError, match="does not fit DenseFaceNet"):
        load_weights(DenseFaceNet(7), tmp_path / "detector")


def test_headers_say_where_the_weights_come_from(package, tmp_path) -> None:
    convert.face_detector(package[0], tmp_path / "detector")
    with safe_open(tmp_path / "detector", framework="pt") as file:
        assert file.metadata()["source"] == "@vladmandic/face-api"
