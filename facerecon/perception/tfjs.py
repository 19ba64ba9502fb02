"""Reading TensorFlow.js weights and graphs without running anything, and running such a graph in torch.

A tfjs model is a JSON manifest (names, shapes, types, quantization) beside raw binary files, and for graph models a
list of nodes. Conversion keeps the constants as tensors and the nodes as JSON; :class:`GraphNet` executes them.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import AssetError

__all__ = ["GraphNet", "graph_description", "read_weights", "same_padding"]

_TYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1", "uint8": "|u1", "uint16": "<u2", "float16": "<f2"}


def read_weights(groups: list[dict], folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a weights manifest, dequantized: ``q * scale + min``.

    Args:
        groups: the manifest's groups, each with ``paths`` and ``weights``. folder: where the binaries lie.

    Raises:
        AssetError: the binaries are shorter or longer than the manifest says.
    """
    tensors: dict[str, np.ndarray] = {}
    for group in groups:
        raw = b"".join((folder / path).read_bytes() for path in group["paths"])
        at = 0
        for weight in group["weights"]:
            count = int(np.prod(weight["shape"], dtype=np.int64))
            quantization = weight.get("quantization")
            dtype = np.dtype(_TYPES[quantization["dtype"] if quantization else weight["dtype"]])
            if at + count * dtype.itemsize > len(raw):
                raise AssetError(f"{group['paths']} ends before weight {weight['name']}; fetch the package again.")
            values = np.frombuffer(raw, dtype, count, at)
            at += count * dtype.itemsize
            if quantization and "scale" in quantization:
                values = values.astype(np.float32) * quantization["scale"] + quantization["min"]
            kind = {"float32": np.float32, "int32": np.int64}.get(weight["dtype"])
            tensors[weight["name"]] = np.ascontiguousarray(values.astype(kind or values.dtype)).reshape(weight["shape"])
        if at != len(raw):
            raise AssetError(f"{group['paths']} holds {len(raw) - at} bytes too many; fetch the package again.")
    return tensors


def _attribute(value: dict[str, Any]) -> Any:
    if "list" in value:
        entries = value["list"]
        if "s" in entries:
            return [base64.b64decode(item).decode() for item in entries["s"]]
        return [int(item) for item in entries.get("i", [])]
    for kind, read in (("i", int), ("f", float), ("b", bool), ("s", lambda s: base64.b64decode(s).decode())):
        if kind in value:
            return read(value[kind])
    return None


def graph_description(model: dict, outputs: list[str]) -> list[dict[str, Any]]:
    """The nodes that ``outputs`` need, in order of execution, as plain JSON: name, op, inputs, attributes."""
    nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
    order: list[str] = []
    seen: set[str] = set()
    stack = [(name, False) for name in reversed(outputs)]
    while stack:
        name, ready = stack.pop()
        if ready:
            order.append(name)
            continue
        if name in seen:
            continue
        seen.add(name)
        stack.append((name, True))
        inputs = [item.split(":")[0] for item in nodes[name].get("input", []) if not item.startswith("^")]
        stack += [(item, False) for item in inputs if item not in seen]
    wanted = {
        "strides", "dilations", "padding", "explicit_paddings", "fused_ops", "ksize", "keep_dims", "squeeze_dims",
        "align_corners", "half_pixel_centers", "transpose_a", "transpose_b",
    }  # fmt: skip
    return [
        {
            "name": name,
            "op": nodes[name]["op"],
            "inputs": [item.split(":")[0] for item in nodes[name].get("input", []) if not item.startswith("^")],
            "attributes": {k: _attribute(v) for k, v in nodes[name].get("attr", {}).items() if k in wanted},
        }
        for name in order
    ]


def same_padding(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], value: float = 0.0) -> Tensor:
    """TensorFlow's 'SAME' padding of (B, C, H, W): the odd pixel goes to the bottom and the right."""
    pads = []
    for axis in (1, 0):
        length = x.shape[2 + axis]
        total = max((-(-length // stride[axis]) - 1) * stride[axis] + kernel[axis] - length, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


class GraphNet(nn.Module):
    """A tfjs graph as a torch module; activations are (B, H, W, C) as in the graph, stored channels-last.

    Args:
        nodes: of :func:`graph_description`. constants: {node name: tensor}. outputs: names of the results.
    """

    def __init__(self, nodes: list[dict[str, Any]], constants: dict[str, Tensor], outputs: list[str]) -> None:
        super().__init__()
        self.nodes = nodes
        self.outputs = outputs
        self.slots: dict[str, str] = {}
        for i, (name, tensor) in enumerate(constants.items()):
            self.slots[name] = f"constant_{i}"
            self.register_buffer(f"constant_{i}", tensor)
        last: dict[str, int] = {}
        for i, node in enumerate(nodes):
            for name in node["inputs"]:
                last[name] = i
        self.free_after: list[list[str]] = [[] for _ in nodes]
        for name, i in last.items():
            if name not in outputs:
                self.free_after[i].append(name)

    @classmethod
    def from_file(cls, path: str | Path) -> GraphNet:
        """Read a converted graph (safetensors with the nodes in its header)."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata()
            constants = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cls(json.loads(meta["nodes"]), constants, json.loads(meta["outputs"]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run the graph on (B, H, W, C) input; returns the outputs in order."""
        values: dict[str, Tensor] = {}
        for i, node in enumerate(self.nodes):
            op, name = node["op"], node["name"]
            if op == "Placeholder":
                values[name] = x
            elif op == "Const":
                values[name] = getattr(self, self.slots[name])
            else:
                values[name] = self._run(node, [values[item] for item in node["inputs"]])
            for done in self.free_after[i]:
                values.pop(done, None)
        return [values[name] for name in self.outputs]

    def _run(self, node: dict[str, Any], x: list[Tensor]) -> Tensor:
        op, attributes = node["op"], node["attributes"]
        if op in _ELEMENTWISE:
            return _ELEMENTWISE[op](*x)
        if op in ("Conv2D", "_FusedConv2D", "DepthwiseConv2dNative", "FusedDepthwiseConv2dNative"):
            return self._convolution(op, attributes, x)
        if op in ("MatMul", "_FusedMatMul"):
            a = x[0].T if attributes.get("transpose_a") else x[0]
            b = x[1].T if attributes.get("transpose_b") else x[1]
            return self._fused(a @ b, attributes, x)
        if op in ("MaxPool", "AvgPool"):
            kernel, stride = tuple(attributes["ksize"][1:3]), tuple(attributes["strides"][1:3])
            image = x[0].permute(0, 3, 1, 2)
            if attributes.get("padding") == "SAME":
                image = same_padding(image, kernel, stride, -1e30 if op == "MaxPool" else 0.0)
            pool = F.max_pool2d if op == "MaxPool" else F.avg_pool2d
            return pool(image, kernel, stride).permute(0, 2, 3, 1)
        if op == "Mean":
            return x[0].mean(tuple(x[1].flatten().tolist()), keepdim=bool(attributes.get("keep_dims")))
        if op == "Pad":
            return F.pad(x[0], [int(v) for pair in reversed(x[1].tolist()) for v in pair])
        if op == "Reshape":
            shape = [int(v) for v in x[1].tolist()]
            return x[0].reshape([x[0].shape[0], *shape[1:]] if x[0].dim() == 4 else shape)
        if op == "ResizeBilinear":
            image = x[0].permute(0, 3, 1, 2)
            size = [int(v) for v in x[1].tolist()]
            corners = bool(attributes.get("align_corners", False))
            return F.interpolate(image, size, mode="bilinear", align_corners=corners).permute(0, 2, 3, 1)
        if op == "Conv2DBackpropInput":
            stride = attributes["strides"][1:3]
            full = F.conv_transpose2d(x[2].permute(0, 3, 1, 2), x[1].permute(3, 2, 0, 1), None, stride)
            height, width = (int(v) for v in x[0].tolist()[1:3])
            top, left = max(full.shape[2] - height, 0) // 2, max(full.shape[3] - width, 0) // 2
            return full[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
        raise AssetError(f"the graph uses operation {op}, which is not implemented; report the model's name.")

    def _convolution(self, op: str, attributes: dict[str, Any], x: list[Tensor]) -> Tensor:
        weight = x[1]
        stride = tuple(attributes.get("strides", [1, 1, 1, 1])[1:3])
        if "epthwise" in op:
            height, width, channels, multiplier = weight.shape
            weight = weight.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
            groups = channels
        else:
            weight, groups = weight.permute(3, 2, 0, 1), 1
        image = x[0].permute(0, 3, 1, 2)
        if attributes.get("padding") == "SAME":
            image = same_padding(image, weight.shape[2:], stride)
        elif attributes.get("padding") == "EXPLICIT":
            pads = attributes["explicit_paddings"]
            image = F.pad(image, (pads[4], pads[5], pads[2], pads[3]))
        fused = attributes.get("fused_ops") or []
        bias = x[2] if "BiasAdd" in fused else None
        out = F.conv2d(image, weight, bias, stride, groups=groups).permute(0, 2, 3, 1)
        return self._fused(out, {"fused_ops": [f for f in fused if f != "BiasAdd"]}, x)

    @staticmethod
    def _fused(y: Tensor, attributes: dict[str, Any], x: list[Tensor]) -> Tensor:
        for name in attributes.get("fused_ops") or []:
            if name == "BiasAdd":
                y = y + x[2]
            elif name == "Prelu":
                y = torch.where(y >= 0, y, y * x[-1])
            else:
                y = _ELEMENTWISE[name](y)
        return y


_ELEMENTWISE = {
    "Identity": lambda x: x,
    "Add": torch.add,
    "AddV2": torch.add,
    "BiasAdd": torch.add,
    "AddN": lambda *x: sum(x[1:], x[0]),
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Maximum": lambda a, b: torch.maximum(a, b.to(a.dtype)),
    "Minimum": lambda a, b: torch.minimum(a, b.to(a.dtype)),
    "Relu": torch.relu,
    "Relu6": lambda x: x.clamp(0, 6),
    "Sigmoid": torch.sigmoid,
    "Softmax": lambda x: x.softmax(-1),
    "Prelu": lambda x, slope: torch.where(x >= 0, x, x * slope),
}
