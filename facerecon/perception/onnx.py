"""ONNX files read as data, without an ONNX runtime: the nodes of a graph, and its weights, unquantized.

An ONNX file is one protobuf message (https://protobuf.dev/programming-guides/encoding): fields, each a number and a
value, which may be a message again. The numbers below are those of ``onnx.proto3``. What has no use here (subgraphs,
weights in other files, text) is not read.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facerecon.errors import AssetError
from facerecon.storage import read_bounded

__all__ = ["Node", "OnnxGraph", "read_onnx"]

_LARGEST = 1 << 28  # bytes of a file
_MOST = 1 << 18  # fields of a file; SFace has 6,000
_TYPES = {1: "<f4", 2: "|u1", 3: "|i1", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}  # TensorProto.DataType


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Args:
        op: its type, of ONNX's list of operators.
        inputs: names of values; "" is one left out.
        outputs: names of values.
        attributes: ints, floats, bytes and lists of ints by name; others are left out.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class OnnxGraph:
    """A graph as it is stored.

    Args:
        path: of the file, for messages.
        nodes: in order of execution.
        tensors: weights by name, quantized ones as codes.
    """

    path: Path
    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]

    def layers(self) -> list[Node]:
        """The nodes that compute with the input, which are all but those that unpack weights."""
        return [node for node in self.nodes if node.op not in ("Constant", "DequantizeLinear", "Reshape")]

    def weight(self, name: str) -> np.ndarray:
        """A weight as float32, unquantized and in its shape.

        Raises:
            AssetError: there is none of that name, or its parts do not fit together.
        """
        makers = {output: node for node in self.nodes for output in node.outputs}
        try:
            found = self._constant(name, makers)
        except (LookupError, ValueError, TypeError, RecursionError) as error:
            raise _damaged(self.path, f"no whole weight '{name[:80]}' ({error})") from None
        if not np.isfinite(found).all():
            raise _damaged(self.path, f"NaN or infinity in weight '{name[:80]}'")
        return found.astype(np.float32)

    def _constant(self, name: str, makers: dict[str, Node]) -> np.ndarray:
        if name in self.tensors:
            return self.tensors[name]
        node = makers.pop(name)  # which could name itself
        if node.op == "Reshape":
            values, shape = self._constant(node.inputs[0], makers), self.tensors[node.inputs[1]]
            if shape.ndim != 1 or math.prod(shape.tolist()) != values.size:
                raise ValueError("its shape does not fit its numbers")
            return values.reshape(shape.tolist())
        if node.op == "DequantizeLinear":
            return _dequantized(node.attributes, *(self.tensors[key] for key in node.inputs))
        raise ValueError(f"it is made by {node.op[:40]}")


def _dequantized(attributes: dict[str, Any], codes: np.ndarray, scale: np.ndarray, *zero: np.ndarray) -> np.ndarray:
    """``(codes - zero) * scale`` of DequantizeLinear: one scale for all, one a channel, or one a block of an axis."""
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    if any(z.shape != scale.shape for z in zero):
        raise ValueError("its zero points do not fit its scales")

    def spread(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        if block:
            rest, others = [list(a.shape) for a in (codes, values)]
            if rest.pop(axis) > block * others.pop(axis) or rest != others:
                raise ValueError("its scales do not fit its codes")
            return values.take(np.arange(codes.shape[axis]) // block, axis)
        if values.size == 1:
            return values.reshape(())
        if values.shape != (codes.shape[axis],):
            raise ValueError("its scales do not fit its codes")
        return values.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])

    shift = spread(zero[0]) if zero else np.float32(0)
    return (codes.astype(np.float32) - shift) * spread(scale)


def _damaged(path: Path, what: str) -> AssetError:
    return AssetError(f"{path} holds {what}; fetch the package again.")


def read_onnx(path: str | Path) -> OnnxGraph:
    """The graph of an ONNX file.

    Args:
        path: of 256 MB at most.

    Raises:
        AssetError: missing, truncated, or no ONNX model.
    """
    path = Path(path)
    try:
        data = memoryview(read_bounded(path, _LARGEST))
        reader = _Reader()
        (graph,) = reader.message(data)[7]
        fields = reader.message(graph)
        nodes = tuple(reader.node(part) for part in fields[1])
        tensors = dict(reader.tensor(part) for part in fields[5])
    except OSError as error:
        raise AssetError(f"{path} cannot be read ({error.strerror}); fetch the package again.") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise _damaged(path, f"no whole ONNX model ({error})") from None
    if not nodes:
        raise _damaged(path, "an ONNX model without nodes")
    return OnnxGraph(path, nodes, tensors)


# -- messages --------------------------------------------------------------------------------------------


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, and where it ends."""
    value = 0
    for i in range(10):
        byte = data[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value & ((1 << 64) - 1), at + i + 1
    raise ValueError("a number without end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(values: list) -> str:
    return bytes(values[-1]).decode() if values else ""


class _Reader:
    """Reads the messages of one file, no more parts of it than a network can have."""

    def __init__(self) -> None:
        self.left = _MOST

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError("more parts than any network has")

    def message(self, data: Any) -> defaultdict[int, list]:
        """The values of a message by the numbers of its fields: integers, or bytes."""
        if not isinstance(data, memoryview):
            raise ValueError("a number in place of a message")
        found, at = defaultdict(list), 0
        while at < len(data):
            self._count()
            key, at = _varint(data, at)
            kind = key & 7
            if kind == 0:
                value, at = _varint(data, at)
            elif kind in (1, 2, 5):
                length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
                if length > len(data) - at:
                    raise ValueError("it ends early")
                value, at = data[at : at + length], at + length
            else:
                raise ValueError(f"a field of type {kind}")
            found[key >> 3].append(value)
        return found

    def integers(self, values: list) -> list[int]:
        """Repeated integers, one a field or packed."""
        found: list[int] = []
        for value in values:
            if isinstance(value, int):
                found.append(_signed(value))
                continue
            at = 0
            while at < len(value):
                self._count()
                number, at = _varint(value, at)
                found.append(_signed(number))
        return found

    def node(self, data: Any) -> Node:
        fields = self.message(data)
        attributes = dict(self.attribute(part) for part in fields[5])
        inputs, outputs = (tuple(_text([name]) for name in fields[number]) for number in (1, 2))
        return Node(_text(fields[4]), inputs, outputs, attributes)

    def attribute(self, data: Any) -> tuple[str, Any]:
        fields = self.message(data)
        if fields[2]:
            value = struct.unpack("<f", fields[2][-1])[0]
        elif fields[3]:
            value = _signed(fields[3][-1])
        else:
            value = bytes(fields[4][-1]) if fields[4] else self.integers(fields[8])
        return _text(fields[1]), value

    def tensor(self, data: Any) -> tuple[str, np.ndarray]:
        """Name and values, which are bytes, or, of small tensors, fields of numbers."""
        fields = self.message(data)
        name, shape, kind = _text(fields[8]), self.integers(fields[1]), fields[2][-1]
        if kind not in _TYPES:
            raise ValueError(f"'{name[:80]}' has type {kind}")
        raw = b"".join(fields[9] or (fields[4] if kind == 1 else []))
        values = np.frombuffer(raw, _TYPES[kind]) if raw else self._numbers(fields[5] + fields[7], _TYPES[kind])
        if min(shape, default=0) < 0 or math.prod(shape) != values.size:
            raise ValueError(f"'{name[:80]}' has {values.size} numbers for shape {shape[:8]}")
        return name, values.reshape(shape)

    def _numbers(self, values: list, dtype: str) -> np.ndarray:
        return np.array(self.integers(values), np.int64).astype(dtype)
