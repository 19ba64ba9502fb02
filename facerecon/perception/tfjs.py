"""Reading TensorFlow.js weights and graphs without running anything, and rewriting graphs for torch.

A tfjs model is a JSON manifest (names, shapes, types, quantization) beside raw binary files, and for graph models a
list of nodes. :func:`lowered_graph` turns such a list into the steps that :class:`facerecon.perception.graph.GraphNet`
executes: unused nodes dropped, weights in torch's layout, constant factors and offsets folded into convolutions.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facerecon.errors import AssetError
from facerecon.perception.graph import OPERATIONS

__all__ = ["LoweredGraph", "lowered_graph", "read_weights", "torch_layout"]

_TYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1", "uint8": "|u1", "uint16": "<u2", "float16": "<f2"}
_CONVOLUTIONS = ("Conv2D", "_FusedConv2D", "DepthwiseConv2dNative", "FusedDepthwiseConv2dNative")
_ATTRIBUTES = (
    "strides", "padding", "explicit_paddings", "fused_ops", "ksize", "keep_dims", "align_corners",
    "transpose_a", "transpose_b", "adj_x", "adj_y", "axis", "DstT", "begin_mask", "end_mask", "ellipsis_mask",
    "shrink_axis_mask",
)  # fmt: skip


def read_weights(groups: list[dict], folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a weights manifest, dequantized (``q * scale + min``): {name: float32, int64 or bool array}.

    Args:
        groups: the manifest's groups, each with ``paths`` and ``weights``.
        folder: where the binaries lie.

    Raises:
        AssetError: the binaries are shorter or longer than in the manifest, or hold an unknown type.
    """
    tensors: dict[str, np.ndarray] = {}
    for group in groups:
        raw = b"".join((folder / path).read_bytes() for path in group["paths"])
        at = 0
        for weight in group["weights"]:
            count = int(np.prod(weight["shape"], dtype=np.int64))
            quantization = weight.get("quantization")
            stored = quantization["dtype"] if quantization else weight["dtype"]
            if stored not in _TYPES:
                raise AssetError(f"weight {weight['name']} has type {stored}, expected one of {', '.join(_TYPES)}.")
            dtype = np.dtype(_TYPES[stored])
            if at + count * dtype.itemsize > len(raw):
                raise AssetError(f"{group['paths']} ends before weight {weight['name']}; fetch the package again.")
            values = np.frombuffer(raw, dtype, count, at)
            at += count * dtype.itemsize
            if quantization and "scale" in quantization:
                values = values.astype(np.float32) * quantization["scale"] + quantization["min"]
            kind = {"float32": np.float32, "int32": np.int64}.get(weight["dtype"], values.dtype)
            tensors[weight["name"]] = np.ascontiguousarray(values.astype(kind)).reshape(weight["shape"])
        if at != len(raw):
            raise AssetError(f"{group['paths']} holds {len(raw) - at} bytes too many; fetch the package again.")
    return tensors


def torch_layout(filters: np.ndarray, depthwise: bool) -> np.ndarray:
    """Convolution filters (h, w, in, out) -> (out, in, h, w); depthwise (h, w, in, m) -> (in m, 1, h, w)."""
    if depthwise:
        height, width = filters.shape[:2]
        return np.ascontiguousarray(filters.transpose(2, 3, 0, 1)).reshape(-1, 1, height, width)
    return np.ascontiguousarray(filters.transpose(3, 2, 0, 1))


@dataclass
class LoweredGraph:
    """A graph as :class:`facerecon.perception.graph.GraphNet` takes it.

    Args:
        steps: in order of execution, each with ``name``, ``op``, ``inputs`` (names) and ``attributes``.
        tensors: weights by name.
        literals: small integer constants by name, as (nested) lists.
        outputs: names of the results.
    """

    steps: list[dict[str, Any]]
    outputs: list[str]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    literals: dict[str, Any] = field(default_factory=dict)


def lowered_graph(model: dict, weights: dict[str, np.ndarray], outputs: list[str]) -> LoweredGraph:
    """The part of a tfjs graph that ``outputs`` need, ready to be executed.

    Args:
        model: the parsed model JSON.
        weights: of :func:`read_weights`.
        outputs: node names.

    Raises:
        AssetError: the graph holds an operation or an attribute that is not known here.
    """
    nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
    steps = []
    for name in _execution_order(nodes, outputs):
        node = nodes[name]
        if node["op"] == "Const":
            continue
        attributes = {key: _attribute(value) for key, value in node.get("attr", {}).items()}
        if any(d != 1 for d in attributes.get("dilations") or [1]) or attributes.get("new_axis_mask"):
            raise AssetError(f"graph node {name} uses dilation or a new axis, which is not implemented.")
        kept = {key: attributes[key] for key in _ATTRIBUTES if attributes.get(key) not in (None, [], 0, False)}
        steps.append({"name": name, "op": node["op"], "inputs": _inputs(node), "attributes": kept})
    graph = LoweredGraph(steps, list(outputs))
    constants = {name: weights[name] for step in steps for name in step["inputs"] if name in weights}
    _fold_into_convolutions(graph, constants)
    unknown = sorted({step["op"] for step in graph.steps} - set(OPERATIONS))
    if unknown:
        raise AssetError(f"the graph uses operations that are not implemented: {', '.join(unknown)}.")
    used = dict.fromkeys(name for step in graph.steps for name in step["inputs"] if name in constants)
    for name, values in ((name, constants[name]) for name in used):
        if values.dtype == np.int64 and values.size <= 16:
            graph.literals[name] = values.tolist()
        else:
            graph.tensors[name] = values
    return graph


def _inputs(node: dict) -> list[str]:
    return [item.split(":")[0] for item in node.get("input", []) if not item.startswith("^")]


def _attribute(value: dict[str, Any]) -> Any:
    if "list" in value:
        entries = value["list"]
        if "s" in entries:
            return [base64.b64decode(item).decode() for item in entries["s"]]
        return [int(item) for item in entries.get("i", [])]
    for kind, read in (("i", int), ("f", float), ("b", bool), ("s", lambda s: base64.b64decode(s).decode())):
        if kind in value:
            return read(value[kind])
    return value.get("type")


def _execution_order(nodes: dict[str, dict], outputs: list[str]) -> list[str]:
    """The names that ``outputs`` need, each after its inputs (depth first, without recursion)."""
    order: list[str] = []
    seen: set[str] = set()
    stack = [(name, False) for name in reversed(outputs)]
    while stack:
        name, ready = stack.pop()
        if ready:
            order.append(name)
        elif name not in seen:
            seen.add(name)
            stack.append((name, True))
            stack += [(item, False) for item in _inputs(nodes[name]) if item not in seen]
    return order


def _fold_into_convolutions(graph: LoweredGraph, constants: dict[str, np.ndarray]) -> None:
    """Give every convolution torch's weights and a bias, with the constants that follow it multiplied and added in.

    Rewrites the steps and adds ``<step>.weight`` and ``<step>.bias`` to the constants. A convolution becomes the step
    ``Convolution`` with inputs (image, weight, bias[, PReLU slope]).
    """
    readers = Counter(name for step in graph.steps for name in step["inputs"]) + Counter(graph.outputs)
    follower = {name: step for step in graph.steps for name in step["inputs"] if readers[name] == 1}
    dropped: dict[str, str] = {}
    for step in graph.steps:
        if step["op"] not in _CONVOLUTIONS or step["name"] in dropped:
            continue
        attributes = step["attributes"]
        depthwise = "epthwise" in step["op"]
        filters = constants[step["inputs"][1]].astype(np.float64)
        channels = math.prod(filters.shape[2:]) if depthwise else filters.shape[3]
        weight = torch_layout(filters, depthwise)
        fused = attributes.pop("fused_ops", [])
        rest = step["inputs"][2:]
        bias = constants[rest.pop(0)].astype(np.float64).ravel() if "BiasAdd" in fused else np.zeros(channels)
        activation = [name for name in fused if name != "BiasAdd"]
        last = step["name"]
        while not activation and last not in graph.outputs and last in follower:
            after = follower[last]
            other = [name for name in after["inputs"] if name != last]
            value = constants.get(other[0]) if len(other) == 1 else None
            if value is None or value.dtype != np.float32 or value.size not in (1, channels):
                break
            if value.size > 1 and value.shape[-1] != channels:
                break
            value = np.broadcast_to(value.astype(np.float64).ravel(), (channels,))
            if after["op"] == "Mul":
                weight, bias = weight * value[:, None, None, None], bias * value
            elif after["op"] in ("Add", "AddV2", "BiasAdd"):
                bias = bias + value
            else:
                break
            last = after["name"]
            dropped[last] = step["name"]
        attributes["groups"] = filters.shape[2] if depthwise else 1
        if activation:
            attributes["activation"] = activation[0]
        step["op"] = "Convolution"
        step["inputs"] = [step["inputs"][0], f"{step['name']}.weight", f"{step['name']}.bias", *rest]
        constants[f"{step['name']}.weight"] = weight.astype(np.float32)
        constants[f"{step['name']}.bias"] = bias.astype(np.float32)
    graph.steps = [step for step in graph.steps if step["name"] not in dropped]
    for step in graph.steps:
        step["inputs"] = [dropped.get(name, name) for name in step["inputs"]]
    graph.outputs = [dropped.get(name, name) for name in graph.outputs]
