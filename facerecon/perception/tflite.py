"""Reading TensorFlow Lite models without their runtime, and rewriting them for torch.

A tflite file is a flatbuffer: tables whose fields are found through a table of offsets, nothing in it is code.
:func:`lowered_tflite` turns its one subgraph into the steps that :class:`facerecon.perception.graph.GraphNet` executes:
weights in torch's layout and in full precision, activations that an operator has built in as steps of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from facerecon.errors import AssetError
from facerecon.perception.graph import OPERATIONS
from facerecon.perception.tfjs import LoweredGraph

__all__ = ["lowered_tflite"]

_MOST = 4096  # operators, tensors, entries of a vector of numbers: the largest file read here has some 800
_TYPES = {0: "<f4", 1: "<f2", 2: "<i4", 4: "<i8"}  # of tensors, by the schema's numbers
_ACTIVATIONS = {1: "Relu", 3: "Relu6"}
_SIMPLE = {  # operators that are a step as they are, by the schema's numbers
    0: "Add", 14: "Sigmoid", 18: "Mul", 34: "Pad", 39: "Transpose", 41: "Sub", 42: "Div", 54: "Prelu", 59: "Neg",
    75: "Sqrt", 76: "Rsqrt", 99: "SquaredDifference",
}  # fmt: skip


class _Damaged(Exception):
    """Not what a tflite file holds."""


@dataclass(frozen=True)
class _Table:
    """One table of a flatbuffer; every read is checked against the file's end."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        if data[4:8] != b"TFL3":
            raise _Damaged("no TFL3 mark")
        return cls(data, _number(data, "<I", 0))

    def _place(self, field: int) -> int | None:
        """Where a field's value lies; None where it has its default."""
        offsets = self.at - _number(self.data, "<i", self.at)
        if 4 + 2 * field >= _number(self.data, "<H", offsets):
            return None
        offset = _number(self.data, "<H", offsets + 4 + 2 * field)
        return self.at + offset if offset else None

    def number(self, field: int, kind: str = "<i", default: int = 0) -> int:
        place = self._place(field)
        return default if place is None else _number(self.data, kind, place)

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        return None if place is None else _Table(self.data, place + _number(self.data, "<I", place))

    def _vector(self, field: int, size: int, most: int) -> tuple[int, int]:
        """Where a vector's first entry lies, and how many it has."""
        place = self._place(field)
        if place is None:
            return 0, 0
        place += _number(self.data, "<I", place)
        count = _number(self.data, "<I", place)
        if count > most or place + 4 + count * size > len(self.data):
            raise _Damaged(f"a vector of {count} entries")
        return place + 4, count

    def raw(self, field: int) -> bytes:
        place, count = self._vector(field, 1, len(self.data))
        return self.data[place : place + count]

    def numbers(self, field: int) -> list[int]:
        place, count = self._vector(field, 4, _MOST)
        return list(struct.unpack_from(f"<{count}i", self.data, place))

    def tables(self, field: int) -> list[_Table]:
        place, count = self._vector(field, 4, _MOST)
        places = (place + 4 * i for i in range(count))
        return [_Table(self.data, p + _number(self.data, "<I", p)) for p in places]


def _number(data: bytes, kind: str, place: int) -> int:
    if place < 0 or place + struct.calcsize(kind) > len(data):
        raise _Damaged("an offset beyond its end")
    return struct.unpack_from(kind, data, place)[0]


def lowered_tflite(data: bytes, name: str) -> LoweredGraph:
    """The graph of a tflite model with one input, ready to be executed.

    Args:
        data: the file's bytes.
        name: of the file, for messages.

    Raises:
        AssetError: no whole tflite file, or an operator, a type or an option that is not known here.
    """
    try:
        return _Reader(_Table.root(data)).graph()
    except (_Damaged, struct.error, IndexError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:100]
        raise AssetError(f"{name} is no tflite model that can be read ({reason}); fetch the package again.") from None


class _Reader:
    """The subgraph of a model, operator by operator."""

    def __init__(self, model: _Table) -> None:
        self.buffers = model.tables(4)
        # the older field of an operator's number is a byte, the newer one has what did not fit
        self.codes = [max(code.number(0, "<b"), code.number(3)) for code in model.tables(1)]
        graphs = model.tables(2)
        if len(graphs) != 1:
            raise _Damaged(f"{len(graphs)} subgraphs")
        self.tensors, self.inputs, self.outputs = graphs[0].tables(0), graphs[0].numbers(1), graphs[0].numbers(2)
        self.operators = graphs[0].tables(3)
        self.constants = {i: v for i, t in enumerate(self.tensors) if (v := self._constant(t)) is not None}
        self.lowered = LoweredGraph([], [f"t{i}" for i in self.outputs])

    def _constant(self, tensor: _Table) -> np.ndarray | None:
        raw = self.buffers[tensor.number(2, "<I")].raw(0)
        if not raw:
            return None
        shape, kind = tensor.numbers(0), tensor.number(1, "<b")
        if kind not in _TYPES:
            raise _Damaged(f"a weight of type {kind}, known are {', '.join(map(str, _TYPES))}")
        values = np.frombuffer(raw, _TYPES[kind]).reshape(shape)  # another count is a ValueError
        values = values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
        if not np.isfinite(values).all():
            raise _Damaged("a weight that is not finite")
        return values

    def graph(self) -> LoweredGraph:
        if len(self.inputs) != 1:
            raise _Damaged(f"{len(self.inputs)} inputs")
        self.lowered.steps.append({"name": f"t{self.inputs[0]}", "op": "Placeholder", "inputs": [], "attributes": {}})
        known = set(self.inputs)
        for operator in self.operators:
            code, inputs, outputs = self.codes[operator.number(0, "<I")], operator.numbers(1), operator.numbers(2)
            options = operator.table(4) or _Table(b"\4\0" + bytes(2) + b"\4\0\0\0", 4)
            if len(outputs) != 1 or outputs[0] in known or outputs[0] in self.constants:
                raise _Damaged(f"operator {code} writes {outputs}")
            missing = [i for i in inputs if i >= 0 and i not in known and i not in self.constants]
            if missing or not inputs or inputs[0] < 0:
                raise _Damaged(f"operator {code} reads {missing or inputs}, which nothing has made")
            known.add(outputs[0])
            if code == 6:  # DEQUANTIZE: weights were widened when they were read
                self.constants[outputs[0]] = self.constants[inputs[0]]
            elif code in _SIMPLE:
                self._step(_SIMPLE[code], inputs, outputs[0], options.number(0, "<b") if code in (0, 18, 41, 42) else 0)
            elif code in _OPERATORS:
                _OPERATORS[code](self, inputs, outputs[0], options)
            else:
                raise _Damaged(f"operator {code}, which is not implemented")
        if not known.issuperset(self.outputs):
            raise _Damaged("an output that nothing has made")
        unknown = sorted({step["op"] for step in self.lowered.steps} - set(OPERATIONS))
        if unknown:
            raise _Damaged(f"operations that are not implemented: {', '.join(unknown)}")
        return self.lowered

    def _step(self, op: str, inputs: list[int | str], output: int, activation: int = 0, **attributes: Any) -> None:
        """Append a step; inputs are numbers of tensors, or names of what was added by name."""
        names = [self._named(i) if isinstance(i, int) else i for i in inputs]
        if activation and activation not in _ACTIVATIONS:
            raise _Damaged(f"activation {activation}, which is not implemented")
        name = f"t{output}"
        kept = {key: value for key, value in attributes.items() if value is not None}
        first = f"{name}.raw" if activation else name
        self.lowered.steps.append({"name": first, "op": op, "inputs": names, "attributes": kept})
        if activation:
            last = {"name": name, "op": _ACTIVATIONS[activation], "inputs": [first], "attributes": {}}
            self.lowered.steps.append(last)

    def _named(self, index: int) -> str:
        if index in self.constants:
            self._keep(f"t{index}", self.constants[index])
        return f"t{index}"

    def _keep(self, name: str, values: np.ndarray) -> str:
        if values.dtype == np.int64:
            self.lowered.literals[name] = values.tolist()
        else:
            self.lowered.tensors[name] = values
        return name

    def convolution(self, inputs: list[int], output: int, options: _Table, depthwise: bool) -> None:
        """CONV_2D, filters (out, h, w, in / groups); DEPTHWISE_CONV_2D, filters (1, h, w, channels)."""
        shift = int(depthwise)  # its options have the depth multiplier before the activation
        if options.number(4 + shift, default=1) != 1 or options.number(5 + shift, default=1) != 1:
            raise _Damaged("dilation, which is not implemented")
        filters = self.constants[inputs[1]]
        weight = filters.transpose(3, 0, 1, 2) if depthwise else filters.transpose(0, 3, 1, 2)
        given = len(inputs) > 2 and inputs[2] >= 0
        bias = self.constants[inputs[2]] if given else np.zeros(len(weight), np.float32)
        if bias.shape != (len(weight),):
            raise _Damaged("a bias of another length")
        if not depthwise and self.tensors[inputs[0]].numbers(0)[-1] != weight.shape[1]:
            raise _Damaged("a convolution in groups, which is not implemented")
        self._keep(f"t{output}.weight", np.ascontiguousarray(weight))
        self._keep(f"t{output}.bias", bias)
        self._step(
            "Convolution", [inputs[0], f"t{output}.weight", f"t{output}.bias"], output,
            options.number(3 + shift, "<b"), strides=self._strides(options), padding=_padding(options),
            groups=len(weight) if depthwise else 1,
        )  # fmt: skip

    def _strides(self, options: _Table) -> list[int]:
        strides = [1, options.number(2), options.number(1), 1]
        if min(strides) < 1:
            raise _Damaged(f"strides {strides}")
        return strides

    def pool(self, inputs: list[int], output: int, options: _Table) -> None:
        """MAX_POOL_2D."""
        kernel = [1, options.number(4), options.number(3), 1]
        if min(kernel) < 1:
            raise _Damaged(f"a pool of {kernel}")
        self._step(
            "MaxPool", inputs, output, options.number(5, "<b"), ksize=kernel, strides=self._strides(options),
            padding=_padding(options),
        )  # fmt: skip

    def reshape(self, inputs: list[int], output: int, options: _Table) -> None:
        """RESHAPE; the first axis (the batch, 1 in the file) becomes whatever comes."""
        del options
        shape = self.tensors[output].numbers(0)
        self._keep(f"t{output}.shape", np.array([-1, *shape[1:]], np.int64))
        self._step("Reshape", [inputs[0], f"t{output}.shape"], output)

    def reduced(self, inputs: list[int], output: int, options: _Table, op: str) -> None:
        """MEAN and SUM over axes."""
        self._step(op, inputs, output, keep_dims=bool(options.number(0, "<b")))

    def concatenation(self, inputs: list[int], output: int, options: _Table) -> None:
        """CONCATENATION."""
        self._keep(f"t{output}.axis", np.array(options.number(0), np.int64))
        self._step("ConcatV2", [*inputs, f"t{output}.axis"], output, options.number(1, "<b"))

    def sliced(self, inputs: list[int], output: int, options: _Table) -> None:
        """STRIDED_SLICE."""
        names = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
        masks = {name: options.number(i) for i, name in enumerate(names)}
        if masks.pop("new_axis_mask"):
            raise _Damaged("a new axis, which is not implemented")
        self._step("StridedSlice", inputs, output, **masks)


def _padding(options: _Table) -> str:
    return "VALID" if options.number(0, "<b") else "SAME"


_OPERATORS: dict[int, Callable[[_Reader, list[int], int, _Table], None]] = {
    2: _Reader.concatenation,
    3: lambda reader, *rest: reader.convolution(*rest, depthwise=False),
    4: lambda reader, *rest: reader.convolution(*rest, depthwise=True),
    17: _Reader.pool,
    22: _Reader.reshape,
    40: lambda reader, *rest: reader.reduced(*rest, "Mean"),
    45: _Reader.sliced,
    74: lambda reader, *rest: reader.reduced(*rest, "Sum"),
}
