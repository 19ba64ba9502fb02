"""Reading tfjs files and executing lowered graphs, against plain loops over pixels."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from facerecon.errors import AssetError
from facerecon.perception.graph import GraphNet, same_padding
from facerecon.perception.tfjs import lowered_graph, read_weights


def group(path: str, *weights: dict) -> list[dict]:
    return [{"paths": [path], "weights": list(weights)}]


def test_weights_of_every_kind_are_read_and_dequantized(tmp_path) -> None:
    full = np.array([[1.5, -2.0], [0.25, 8.0]], "<f4")
    coded = np.array([0, 128, 255], "<u1")
    half = np.array([0.5, -3.0], "<f2")
    whole = np.array([7, -1], "<i4")
    (tmp_path / "w.bin").write_bytes(b"".join(a.tobytes() for a in (full, coded, half, whole)))
    coding = {"dtype": "uint8", "scale": 0.1, "min": -2}
    manifest = group(
        "w.bin",
        {"name": "full", "shape": [2, 2], "dtype": "float32"},
        {
            "name": "coded",
            "shape": [3],
            "dtype": "float32",
            "quantization": coding,
        },
        {"name": "half", "shape": [2], "dtype": "float32", "quantization": {"dtype": "float16"}},
        {"name": "whole", "shape": [2], "dtype": "int32"},
    )
    found = read_weights(manifest, tmp_path)
    np.testing.assert_array_equal(found["full"], full)
    np.testing.assert_allclose(found["coded"], [-2.0, 10.8, 23.5], rtol=1e-6)
    np.testing.assert_array_equal(found["half"], [0.5, -3.0])
    assert found["half"].dtype == np.float32
    assert found["whole"].tolist() == [7, -1] and found["whole"].dtype == np.int64


@pytest.mark.parametrize(("length", "what"), [(15, "ends before"), (17, "too many")])
def test_binaries_of_the_wrong_length_are_refused(tmp_path, length: int, what: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(length))
    with pytest.raises(AssetError, match=what):
        read_weights(group("w.bin", {"name": "a", "shape": [4], "dtype": "float32"}), tmp_path)


def test_an_unknown_type_is_named(tmp_path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    with pytest.raises(AssetError, match="complex64"):
        read_weights(group("w.bin", {"name": "a", "shape": [1], "dtype": "complex64"}), tmp_path)


# -- graphs ---------------------------------------------------------------------------------------------


def string(text: str) -> dict:
    import base64

    return {"s": base64.b64encode(text.encode()).decode()}


def numbers(*values: int) -> dict:
    return {"list": {"i": [str(v) for v in values]}}


def node(name: str, op: str, *inputs: str, **attributes: dict) -> dict:
    return {"name": name, "op": op, "input": list(inputs), "attr": attributes}


def model(*nodes: dict) -> dict:
    return {"modelTopology": {"node": list(nodes)}}


def looped_convolution(x: np.ndarray, filters: np.ndarray, stride: int, depthwise: bool) -> np.ndarray:
    """TensorFlow's 'SAME' convolution of (H, W, C), one multiplication at a time."""
    height, width, channels = x.shape
    size = filters.shape[0]
    rows, columns = -(-height // stride), -(-width // stride)
    top = max((rows - 1) * stride + size - height, 0) // 2
    left = max((columns - 1) * stride + size - width, 0) // 2
    out = np.zeros((rows, columns, channels if depthwise else filters.shape[3]))
    for r, c, i, j in product(range(rows), range(columns), range(size), range(size)):
        y, z = r * stride + i - top, c * stride + j - left
        if 0 <= y < height and 0 <= z < width:
            for k in range(channels):
                if depthwise:
                    out[r, c, k] += x[y, z, k] * filters[i, j, k, 0]
                else:
                    out[r, c] += x[y, z, k] * filters[i, j, k]
    return out


@pytest.fixture
def small_graph() -> tuple[dict, dict[str, np.ndarray]]:
    """conv (stride 2) * a + b -> ReLU -> depthwise + bias (fused) -> PReLU; a node that nothing needs."""
    generator = np.random.default_rng(0)
    weights = {
        "w": generator.normal(size=(3, 3, 2, 4)),
        "a": generator.normal(size=(1, 1, 1, 4)),
        "b": generator.normal(size=4),
        "d": generator.normal(size=(3, 3, 4, 1)),
        "e": generator.normal(size=4),
        "slope": generator.normal(size=(1, 1, 4)),
    }
    weights = {name: values.astype(np.float32) for name, values in weights.items()}
    constants = [node(name, "Const") for name in weights]
    same = {"padding": string("SAME")}
    description = model(
        *constants,
        node("prelu", "Prelu", "depthwise", "slope"),
        node("x", "Placeholder"),
        node("conv", "Conv2D", "x", "w", strides=numbers(1, 2, 2, 1), **same),
        node("scaled", "Mul", "conv", "a"),
        node("shifted", "AddV2", "b", "scaled"),
        node("relu", "Relu", "shifted"),
        node(
            "depthwise", "FusedDepthwiseConv2dNative", "relu", "d", "e", strides=numbers(1, 1, 1, 1),
            fused_ops={"list": {"s": [string("BiasAdd")["s"]]}}, **same,
        ),
        node("unused", "Nonsense", "relu"),
    )  # fmt: skip
    return description, weights


def test_a_lowered_graph_computes_what_loops_compute(small_graph) -> None:
    description, w = small_graph
    graph = lowered_graph(description, w, ["prelu"])
    assert [step["op"] for step in graph.steps] == ["Placeholder", "Convolution", "Relu", "Convolution", "Prelu"]
    tensors = {name: torch.from_numpy(values) for name, values in graph.tensors.items()}
    net = GraphNet(graph.steps, tensors, graph.literals, graph.outputs)
    x = np.random.default_rng(1).normal(size=(2, 7, 6, 2)).astype(np.float32)
    found = net(torch.from_numpy(x))[0].numpy()
    for image, result in zip(x, found, strict=True):
        y = looped_convolution(image, w["w"], 2, False) * w["a"][0] + w["b"]
        y = looped_convolution(np.maximum(y, 0), w["d"], 1, True) + w["e"]
        np.testing.assert_allclose(result, np.where(y >= 0, y, y * w["slope"]), atol=2e-5)


def test_a_result_that_is_asked_for_is_not_folded_away(small_graph) -> None:
    description, w = small_graph
    graph = lowered_graph(description, w, ["conv", "shifted"])
    assert graph.outputs == ["conv", "shifted"]
    tensors = {name: torch.from_numpy(values) for name, values in graph.tensors.items()}
    x = torch.rand(1, 5, 5, 2)
    conv, shifted = GraphNet(graph.steps, tensors, graph.literals, graph.outputs)(x)
    torch.testing.assert_close(shifted, conv * torch.from_numpy(w["a"]) + torch.from_numpy(w["b"]))


def test_unknown_operations_are_refused_when_converting(small_graph) -> None:
    description, w = small_graph
    with pytest.raises(AssetError, match="Nonsense"):
        lowered_graph(description, w, ["unused"])


def test_slices_and_gathers_follow_numpy() -> None:
    weights = {
        "begin": np.array([0, 1, 0]), "end": np.array([0, 3, 0]), "stride": np.array([1, 1, 2]),
        "index": np.array([[3, 0], [1, 1]]), "axis": np.array(2),
        "first": np.array([0, 2]), "last": np.array([0, 3]), "ones": np.array([1, 1]),
    }  # fmt: skip
    description = model(
        node("x", "Placeholder"),
        *(node(name, "Const") for name in weights),
        node("slice", "StridedSlice", "x", "begin", "end", "stride", begin_mask={"i": "5"}, end_mask={"i": "5"}),
        node("gather", "GatherV2", "x", "index", "axis"),
        node("rest", "StridedSlice", "x", "first", "last", "ones", ellipsis_mask={"i": "1"}),
        node("row", "StridedSlice", "x", "first", "last", "ones", begin_mask={"i": "1"}, end_mask={"i": "1"},
             shrink_axis_mask={"i": "2"}),
    )  # fmt: skip
    graph = lowered_graph(description, weights, ["slice", "gather", "rest", "row"])
    x = torch.rand(2, 4, 5)
    found = GraphNet(graph.steps, {}, graph.literals, graph.outputs)(x)
    expected = (x[:, 1:3, ::2], x[:, :, [[3, 0], [1, 1]]], x[..., 2:3], x[:, 2])
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("length", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (5, 2, 2), (6, 2, 1), (6, 1, 2)])
def test_same_padding_gives_the_right_length_and_puts_the_odd_pixel_last(length, kernel, stride) -> None:
    x = torch.arange(1.0, length + 1)[None, None, None, :].expand(1, 1, length, -1)
    padded = same_padding(x, (kernel, kernel), (stride, stride))
    total = padded.shape[-1] - length
    assert (padded.shape[-1] - kernel) // stride + 1 == -(-length // stride)
    assert torch.equal(padded[0, 0, total // 2, total // 2 : total // 2 + length], x[0, 0, 0])


def test_a_file_without_a_graph_is_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(tmp_path / "a.safetensors"))
    with pytest.raises(AssetError, match="holds no graph"):
        GraphNet.from_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["faceres1024"])
def test_converted_graphs_hold_data_only(asset, name: str) -> None:
    from safetensors import safe_open

    with safe_open(str(asset(name)), framework="pt") as file:
        meta = file.metadata()
    steps = json.loads(meta["steps"])
    assert sum(step["op"] == "Placeholder" for step in steps) == 1
    assert all(set(step) == {"name", "op", "inputs", "attributes"} for step in steps)
