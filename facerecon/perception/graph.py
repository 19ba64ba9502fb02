"""A small executor of converted TensorFlow graphs: a list of steps, a table of operations.

Activations are (B, H, W, C) as the graphs were written, which is torch's channels-last layout seen through a
permutation: nothing is copied around a convolution. Steps and small integers come from the header of a safetensors
file, weights from its body; no code is stored or loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import AssetError
from facerecon.storage import parse_json, read_safetensors

__all__ = ["OPERATIONS", "GraphNet", "read_converted", "same_padding"]


def same_padding(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """TensorFlow's 'SAME' padding of (B, C, H, W): the odd pixel goes to the bottom and the right."""
    pads = []
    for axis in (1, 0):
        length = x.shape[2 + axis]
        total = max((-(-length // stride[axis]) - 1) * stride[axis] + kernel[axis] - length, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


def read_converted(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a converted file.

    Raises:
        AssetError: it is missing, no safetensors file, or holds numbers that are not finite.
    """
    return read_safetensors(path, "a converted network", "run: python -m facerecon.assets fetch open --force")


class GraphNet(nn.Module):
    """A converted graph as a torch module.

    Args:
        steps: in order of execution, each with ``name``, ``op``, ``inputs`` (names) and ``attributes``.
        tensors: {name: weight}.
        literals: {name: small integers as (nested) lists}.
        outputs: names of the results.
    """

    def __init__(
        self, steps: list[dict[str, Any]], tensors: dict[str, Tensor], literals: dict[str, Any], outputs: list[str]
    ) -> None:
        super().__init__()
        self.steps, self.outputs = steps, outputs
        self.literals = {name: torch.tensor(value) for name, value in literals.items()}
        self.buffer_names = {name: f"tensor_{i}" for i, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
            self.register_buffer(self.buffer_names[name], tensor.contiguous(memory_format=layout))
        last = {name: i for i, step in enumerate(steps) for name in step["inputs"]}
        self.done_after: list[list[str]] = [[] for _ in steps]
        for name, i in last.items():
            if name not in outputs:
                self.done_after[i].append(name)

    @classmethod
    def from_file(cls, path: str | Path) -> GraphNet:
        """Read a converted graph; a file without one is an AssetError."""
        tensors, meta = read_converted(path)
        if "steps" not in meta:
            raise AssetError(f"{path} holds no graph; run: python -m facerecon.assets fetch open")
        try:
            steps, literals, outputs = (parse_json(meta[key]) for key in ("steps", "literals", "outputs"))
            return cls(steps, tensors, literals, outputs)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
            raise AssetError(
                f"{path} holds no whole graph ({error}); run: python -m facerecon.assets fetch open --force"
            ) from None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run the graph on (B, H, W, C) input; returns the outputs in order."""
        values: dict[str, Tensor] = {name: getattr(self, slot) for name, slot in self.buffer_names.items()}
        values.update(self.literals)
        for step, done in zip(self.steps, self.done_after, strict=True):
            if step["op"] == "Placeholder":
                values[step["name"]] = x
            else:
                inputs = [values[name] for name in step["inputs"]]
                values[step["name"]] = OPERATIONS[step["op"]](step["attributes"], *inputs)
            for name in done:
                del values[name]
        return [values[name] for name in self.outputs]


# -- operations: (attributes, *inputs) -> result --------------------------------------------------------


def _image(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _from_image(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _ints(x: Tensor) -> list[int]:
    return [int(v) for v in x.flatten().tolist()]


def _convolution(attributes: dict, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None = None) -> Tensor:
    stride = attributes.get("strides", [1, 1, 1, 1])[1:3]
    image = _image(x)
    if attributes["padding"] == "SAME":
        image = same_padding(image, weight.shape[2:], stride)
    elif attributes["padding"] == "EXPLICIT":
        pads = attributes["explicit_paddings"]
        image = F.pad(image, (pads[4], pads[5], pads[2], pads[3]))
    y = F.conv2d(image, weight, bias, stride, groups=attributes["groups"])
    return _activated(attributes.get("activation"), _from_image(y), slope)


def _matmul(attributes: dict, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    a = a.mT if attributes.get("transpose_a") or attributes.get("adj_x") else a
    b = b.mT if attributes.get("transpose_b") or attributes.get("adj_y") else b
    y = a @ b
    for name in attributes.get("fused_ops", []):
        y = y + bias if name == "BiasAdd" else _activated(name, y, None)
    return y


def _activated(name: str | None, y: Tensor, slope: Tensor | None) -> Tensor:
    if name is None:
        return y
    return _prelu({}, y, slope) if name == "Prelu" else OPERATIONS[name]({}, y)


def _prelu(_: dict, x: Tensor, slope: Tensor) -> Tensor:
    if slope.numel() in (1, x.shape[-1]) and x.dim() == 4:
        return _from_image(F.prelu(_image(x), slope.flatten()))
    return torch.where(x >= 0, x, x * slope)


def _pool(attributes: dict, x: Tensor, pool: Callable, fill: float) -> Tensor:
    kernel, stride = attributes["ksize"][1:3], attributes["strides"][1:3]
    image = _image(x)
    if attributes["padding"] == "SAME":
        image = same_padding(image, kernel, stride, fill)
    return _from_image(pool(image, kernel, stride))


def _resize(attributes: dict, x: Tensor, size: Tensor) -> Tensor:
    corners = bool(attributes.get("align_corners"))
    return _from_image(F.interpolate(_image(x), _ints(size), mode="bilinear", align_corners=corners))


def _transposed_convolution(attributes: dict, size: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    full = F.conv_transpose2d(_image(x), weight.permute(3, 2, 0, 1), None, attributes["strides"][1:3])
    height, width = _ints(size)[1:3]
    top, left = max(full.shape[2] - height, 0) // 2, max(full.shape[3] - width, 0) // 2
    return _from_image(full[:, :, top : top + height, left : left + width])


def _strided_slice(attributes: dict, x: Tensor, begin: Tensor, end: Tensor, stride: Tensor) -> Tensor:
    flags = {key: attributes.get(f"{key}_mask", 0) for key in ("begin", "end", "ellipsis", "shrink_axis")}
    index: list[Any] = []
    for i, (first, last, step) in enumerate(zip(_ints(begin), _ints(end), _ints(stride), strict=True)):
        if flags["ellipsis"] >> i & 1:
            index.append(...)
        elif flags["shrink_axis"] >> i & 1:
            index.append(first)
        else:
            start, stop = (None if flags["begin"] >> i & 1 else first), (None if flags["end"] >> i & 1 else last)
            index.append(slice(start, stop, step))
    return x[tuple(index)]


def _gather(_: dict, x: Tensor, index: Tensor, axis: Tensor) -> Tensor:
    at = int(axis)
    found = x.index_select(at, index.flatten().long())
    return found.reshape(x.shape[:at] + index.shape + x.shape[at + 1 :])


def _pad(_: dict, x: Tensor, pads: Tensor) -> Tensor:
    return F.pad(x, [int(v) for pair in reversed(pads.tolist()) for v in pair])


def _cast(attributes: dict, x: Tensor) -> Tensor:
    return x.to({"DT_FLOAT": torch.float32, "DT_INT32": torch.int64, "DT_BOOL": torch.bool}[attributes["DstT"]])


def _reduced(reduce: Callable) -> Callable:
    return lambda a, x, axes: reduce(x, dim=tuple(_ints(axes)), keepdim=bool(a.get("keep_dims")))


def _plain(function: Callable) -> Callable:
    return lambda _, *x: function(*x)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Placeholder": _plain(lambda x: x),
    "Identity": _plain(lambda x: x),
    "Convolution": _convolution,
    "Conv2DBackpropInput": _transposed_convolution,
    "MatMul": _matmul,
    "_FusedMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "MaxPool": lambda a, x: _pool(a, x, F.max_pool2d, -1e30),
    "AvgPool": lambda a, x: _pool(a, x, F.avg_pool2d, 0.0),
    "ResizeBilinear": _resize,
    # elementwise
    "Add": _plain(torch.add),
    "AddV2": _plain(torch.add),
    "BiasAdd": _plain(torch.add),
    "AddN": _plain(lambda *x: sum(x[1:], x[0])),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(torch.div),
    "SquaredDifference": _plain(lambda a, b: (a - b).square()),
    "Maximum": _plain(lambda a, b: torch.maximum(a, b.to(a.dtype))),
    "Minimum": _plain(lambda a, b: torch.minimum(a, b.to(a.dtype))),
    "Neg": _plain(torch.neg),
    "Floor": _plain(torch.floor),
    "Sqrt": _plain(torch.sqrt),
    "Rsqrt": _plain(torch.rsqrt),
    "Cos": _plain(torch.cos),
    "Sin": _plain(torch.sin),
    "Atan2": _plain(torch.atan2),
    "Relu": _plain(torch.relu),
    "Relu6": _plain(lambda x: x.clamp(0, 6)),
    "Prelu": _prelu,
    "Sigmoid": _plain(torch.sigmoid),
    "LessEqual": _plain(torch.le),
    "GreaterEqual": _plain(torch.ge),
    "LogicalAnd": _plain(torch.logical_and),
    "Cast": _cast,
    # reductions
    "Mean": _reduced(torch.mean),
    "Sum": _reduced(torch.sum),
    "Max": _reduced(torch.amax),
    "Min": _reduced(torch.amin),
    # shapes and indices
    "Shape": _plain(lambda x: torch.tensor(x.shape)),
    "Reshape": _plain(lambda x, shape: x.reshape(_ints(shape))),
    "ExpandDims": _plain(lambda x, axis: x.unsqueeze(int(axis))),
    "Transpose": _plain(lambda x, axes: x.permute(_ints(axes))),
    "StridedSlice": _strided_slice,
    "GatherV2": _gather,
    "Pack": lambda a, *x: torch.stack(x, a.get("axis", 0)),
    "ConcatV2": _plain(lambda *x: torch.cat(x[:-1], int(x[-1]))),
    "Tile": _plain(lambda x, repeats: x.repeat(_ints(repeats))),
    "Pad": _pad,
    "Range": _plain(lambda start, stop, step: torch.arange(int(start), int(stop), int(step))),
    "Fill": _plain(lambda shape, value: value.expand(_ints(shape))),
    "ZerosLike": _plain(torch.zeros_like),
}
