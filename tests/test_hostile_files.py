"""Broken, lying and hostile input: one of our errors in one line, or a result; never another exception."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat

from facerecon import assets
from facerecon.assets.foreign import read_pickle, read_state
from facerecon.assets.release import _damage
from facerecon.configs.compose import compose
from facerecon.correspond.obj import read_landmarks3d, read_obj
from facerecon.dataset.manifest import Manifest
from facerecon.dataset.pipeline import Search
from facerecon.editing.accessories import AccessoryClassifier
from facerecon.editing.directions import Directions, read_labels
from facerecon.errors import AssetError, ConfigError, FaceReconError, InputError
from facerecon.evaluation.realy import read_keypoint_places
from facerecon.imaging.files import load_image
from facerecon.imaging.video import read_frames
from facerecon.morphable.hifi3dpp import _read_mat
from facerecon.morphable.ict import load_ict
from facerecon.morphable.model import read_face_model
from facerecon.perception.corrections import read_landmarks
from facerecon.perception.graph import GraphNet, read_converted
from facerecon.perception.regressor import Regressor, RegressorConfig, read_regressor, save_regressor
from facerecon.run import RunDirectory, load_checkpoint, read_metrics, save_checkpoint
from facerecon.storage import read_safetensors, safetensors_bytes
from facerecon.stylegan.convert import _Graph
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.linear_basis import read_linear_basis, write_linear_basis
from facerecon.stylegan.load import load_decoder
from facerecon.stylegan.weights import FORMAT, read_generator
from facerecon.training.crops import CropShards
from facerecon.training.uv_maps import UVMaps
from facerecon.types import Camera, FaceParams, Latent, SavedFace, SHLight

QUICK = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def one_line(error: Exception) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 700, text


# -- pictures ------------------------------------------------------------------------------------------


def _pictures() -> list[bytes]:
    y, x = np.mgrid[0:24, 0:32]
    picture = Image.fromarray(np.stack([x * 8, y * 10, 255 - x * 4], -1).astype(np.uint8))
    made = []
    for kind, mode, options in (
        ("PNG", "RGB", {}),
        ("PNG", "P", {"transparency": 0}),
        ("PNG", "RGBA", {}),
        ("JPEG", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("WEBP", "RGBA", {}),
        ("GIF", "P", {"save_all": True, "append_images": [picture.convert("P")] * 2}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "F", {}),
        ("BMP", "RGB", {}),
        ("PPM", "RGB", {}),
        ("JPEG2000", "RGB", {}),
    ):
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, kind, **options)
        made.append(buffer.getvalue())
    return made


PICTURES = _pictures()


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A file with bytes changed, a part cut out, doubled or cut off, or its head alone followed by noise."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("set", "cut", "insert", "truncate", "number")))
        at = draw(st.integers(0, max(0, min(len(data), 400) - 1)) | st.integers(0, max(0, len(data) - 1)))
        if kind == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "truncate":
            del data[at:]
        else:  # sizes and counts that lie
            value = draw(st.sampled_from((0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)))
            data[at : at + 4] = struct.pack(draw(st.sampled_from(("<I", ">I"))), value)
    return bytes(data)


@settings(QUICK, max_examples=600)
@given(st.one_of(mutated(PICTURES), st.binary(max_size=200)))
def test_a_picture_or_one_line(data: bytes) -> None:
    try:
        found = load_image(data, max_pixels=4_000_000)
    except InputError as error:
        return one_line(error)
    assert found.image.dtype == torch.float32 and found.image.shape[0] == 3
    assert found.image.isfinite().all() and found.image.min() >= 0 and found.image.max() <= 1
    assert max(found.image.shape) <= 4096


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG"])
def test_a_bomb_is_refused_before_it_is_decoded(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("L", (40_000, 8) if kind != "GIF" else (8, 8)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    tall = {"PNG": (20, ">I"), "BMP": (22, "<I")}.get(kind)
    if tall is None:
        width = {"JPEG": data.find(b"\xff\xc0") + 5, "GIF": 6}.get(kind)
        if kind == "TIFF":
            data = bytearray(data.replace(struct.pack("<HHII", 257, 4, 1, 8), struct.pack("<HHII", 257, 4, 1, 40_000)))
        else:
            data[width : width + 4] = b"\xff" * 4
    else:
        data[tall[0] : tall[0] + 4] = struct.pack(tall[1], 40_000)
    with pytest.raises(InputError) as error:
        load_image(bytes(data))
    one_line(error.value)


# -- tensor files --------------------------------------------------------------------------------------


def saved_face() -> SavedFace:
    params = FaceParams(
        torch.randn(1, 3), torch.rand(1, 2), torch.zeros(1, 0), torch.zeros(1, 3), torch.zeros(1, 3), SHLight.ambient()
    )
    return SavedFace(params, Latent(torch.randn(1, 1, 4), "linear"), Camera.deep3d(), path=("a.jpg",))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("files")
    saved_face().save(folder / "face")
    save_checkpoint(folder / "checkpoint", {"step": 3, "model": {"w": torch.ones(2, 2)}, "list": [1, (2.0, None)]})
    basis = torch.randn(2, 3, 8, 8)
    write_linear_basis(folder / "basis", torch.rand(3, 8, 8), basis + basis.flip(-1))
    steps = [{"name": "a", "op": "Relu", "inputs": ["x"], "attributes": {}}]
    meta = {"steps": json.dumps(steps), "literals": json.dumps({"n": [1, 2]}), "outputs": json.dumps(["a"])}
    (folder / "graph").write_bytes(safetensors_bytes({"w": torch.ones(3)}, meta))
    meta = {"name": "tiny", "expression_names": json.dumps(["smile"])}
    shape = {"mean": torch.zeros(4, 3), "identity_basis": torch.zeros(2, 4, 3)}
    (folder / "model").write_bytes(safetensors_bytes(shape, meta))
    sizes = RegressorConfig(backbone="resnet10", width=0.125, identity=2, expression=2, texture=1)
    about = {"residual": {"identity": [0.5, 0.5]}}
    save_regressor(folder / "regressor", Regressor(sizes), about, dtype="int8")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


READERS = {
    "face": SavedFace.load,
    "checkpoint": load_checkpoint,
    "basis": read_linear_basis,
    "graph": GraphNet.from_file,
    "model": read_face_model,
    "regressor": read_regressor,
}


@pytest.mark.parametrize("name", READERS)
def test_a_tensor_file_or_one_line(name: str, files, tmp_path) -> None:
    path = tmp_path / "file.safetensors"

    @QUICK
    @given(st.one_of(mutated([files[name]]), st.binary(max_size=64)))
    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        try:
            READERS[name](path)
        except FaceReconError as error:
            one_line(error)

    attempt()


HEADERS = {
    "longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "no header": b"",
    "half a length": b"\x08\0\0",
    "no json": struct.pack("<Q", 4) + b"oops",
    "offsets beyond the end": None,
    "overlapping tensors": None,
    "a shape that does not fit": None,
    "an unknown type": None,
    "a negative offset": None,
}


def lying(kind: str) -> bytes:
    if HEADERS[kind] is not None:
        return HEADERS[kind]
    a = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = {
        "offsets beyond the end": {"mean": {**a, "data_offsets": [0, 800]}},
        "overlapping tensors": {"mean": a, "luma": a},
        "a shape that does not fit": {"mean": {**a, "shape": [1 << 60]}},
        "an unknown type": {"mean": {**a, "dtype": "X7"}},
        "a negative offset": {"mean": {**a, "data_offsets": [-8, 0]}},
    }[kind]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("name", READERS)
def test_a_lying_header_is_one_line(name: str, kind: str, tmp_path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(lying(kind))
    with pytest.raises((AssetError, InputError)) as error:
        READERS[name](path)
    one_line(error.value)
    assert "file.safetensors" in str(error.value)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy torch"])
@pytest.mark.parametrize("ending", [".pkl", ".pth", ".safetensors"])
def test_a_pickle_offered_as_weights_is_never_opened(kind: str, ending: str, tmp_path) -> None:
    path, mark = tmp_path / f"weights{ending}", tmp_path / "it ran"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"w": Bomb(mark)}, path, _use_new_zipfile_serialization=kind == "torch")
    readers = [*READERS.values(), read_converted, lambda p: load_decoder(str(p))]
    for reader in readers:
        with pytest.raises((AssetError, InputError), match=r"is a pickle .* so it was not opened") as error:
            reader(path)
        one_line(error.value)
    assert not mark.exists()
    if kind == "torch":
        assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_header_as_long_as_a_pickle_s_first_bytes_is_read(protocol: int, tmp_path) -> None:
    path = tmp_path / "file.safetensors"
    length = int.from_bytes(bytes([0x80, protocol]), "little")
    bare = int.from_bytes(safetensors_bytes({"w": torch.ones(1)}, {"a": ""})[:8], "little")
    path.write_bytes(safetensors_bytes({"w": torch.ones(1)}, {"a": "x" * (length - bare)}))
    assert path.read_bytes()[:2] == bytes([0x80, protocol])
    assert torch.equal(read_converted(path)[0]["w"], torch.ones(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, files, tmp_path) -> None:
    path = tmp_path / "file.safetensors"
    basis = torch.randn(2, 3, 8, 8)
    mean = torch.rand(3, 8, 8)
    mean[1, 2, 3] = value
    write_linear_basis(path, mean, basis + basis.flip(-1))
    with pytest.raises(AssetError, match=r"holds NaN or infinite numbers \(in 'mean'\)"):
        load_decoder(str(path))
    path.write_bytes(safetensors_bytes({"w": torch.tensor([1.0, value])}))
    with pytest.raises(AssetError, match="holds NaN or infinite"):
        read_converted(path)


def test_a_saved_face_that_is_not_finite_is_no_face(tmp_path) -> None:
    face = saved_face()
    face.params.identity[0, 1] = float("nan")
    face.save(tmp_path / "face.safetensors")
    with pytest.raises(InputError, match=r"holds NaN or infinite numbers \(in 'params.identity'\)"):
        SavedFace.load(tmp_path / "face.safetensors")


def test_a_decoder_file_of_ones_own(tmp_path) -> None:
    path = tmp_path / "mine.safetensors"
    basis = torch.randn(2, 3, 8, 8)
    write_linear_basis(path, torch.full((3, 8, 8), 0.5), 0.1 * (basis + basis.flip(-1)))
    decoder = load_decoder(str(path))
    assert decoder.dim == 2 and torch.allclose(decoder(torch.zeros(1, 2)), torch.full((1, 3, 8, 8), 0.5), atol=1e-3)
    with pytest.raises(AssetError, match="does not exist"):
        load_decoder(str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        load_decoder("liner")


@QUICK
@given(data=mutated([b'{"item": "a", "metrics": {"x": 1.5}}\n{"item": "b", "loss": "nan"}\n{"item": "c"}\n']))
def test_metrics_or_one_line(data: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(data)
    try:
        assert all(isinstance(row, dict) for row in read_metrics(path))
    except InputError as error:
        one_line(error)


# -- every reader of what others write -----------------------------------------------------------------


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _ict() -> bytes:
    """The arrays of ICT-FaceKit, all in one point."""
    buffer, flat = io.BytesIO(), np.zeros((1, 26719, 3), np.float32)
    faces = np.arange(8).reshape(2, 4)
    np.savez_compressed(
        buffer, vertices=flat[0], uv=np.zeros((4, 2), np.float32), faces=faces, faces_uv=faces % 4, identity=flat,
        expression=flat, expression_names=np.array(["jawOpen"]),
    )  # fmt: skip
    return buffer.getvalue()


def _mat() -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((1, 4))}, do_compression=True)
    return buffer.getvalue()


def _torch(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _model() -> bytes:
    """A head model of two triangles."""
    empty = torch.zeros(0, dtype=torch.int32)
    tensors = {
        "mean": torch.rand(4, 3), "identity_basis": torch.rand(2, 4, 3), "expression_basis": torch.rand(1, 4, 3),
        "faces": torch.tensor([[0, 1, 2], [0, 2, 3]]), "uvs": torch.rand(4, 2),
        "uv_faces": torch.tensor([[0, 1, 2], [0, 2, 3]]), "landmark_faces": torch.zeros(68, 1, dtype=torch.int32),
        "landmark_barycentric": torch.full((68, 1, 3), 1 / 3), "mesh_points": empty, "mesh_point_faces": empty,
        "mesh_point_barycentric": torch.zeros(0, 3), "mirror": torch.arange(4),
        "region.face": torch.ones(2, dtype=torch.uint8),
    }  # fmt: skip
    meta = {
        "name": "tiny",
        "expression_names": json.dumps(["smile"]),
        "expression_low": "0",
        "identity_variance": "[1]",
    }
    return safetensors_bytes(tensors, meta)


def _animation(kind: str) -> bytes:
    buffer, pictures = io.BytesIO(), [Image.new("RGB", (12, 8), (80 * i, 0, 0)) for i in range(3)]
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def _generator(**claimed: int) -> bytes:
    config = {"size": 8, "z_dim": 4, "w_dim": 4, "mapping_layers": 1, "channel_base": 32, "channel_max": 4}
    generator = Generator(GeneratorConfig(**config)).state_dict()
    header = {"format": FORMAT, "config": config | claimed, "mapping": True, "about": {}}
    return safetensors_bytes(generator, {"facerecon": json.dumps(header)})


def _plane(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.rand(2) if name in ("bias", "mean") else torch.rand(2, 2) for name in names}


_PAIRS = [[float(i), float(i % 7)] for i in range(68)]
_TABLE = "".join(f"{x},{y}\n" for x, y in _PAIRS).encode()
_ROWS = {
    "numbers": torch.arange(2),
    "seeds": torch.arange(2),
    "tensor.views": torch.rand(2, 1, 4),
    "figures": torch.rand(2, 1),
}
_OBJ = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
_IR = b"""<net><layers>
<layer id="0" name="a" type="Const"><data element_type="f32" offset="0" size="8" shape="2"/></layer>
<layer id="1" name="b" type="Add"/></layers>
<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>"""
_WEIGHTS = [{"paths": ["x"], "weights": [{"name": "a/filters", "shape": [2], "dtype": "float32"}]}]
_GRAPH = {
    "modelTopology": {
        "node": [{"name": "global_pooling/Mean", "op": "Relu", "input": ["x"]}, {"name": "x", "op": "Placeholder"}]
    },
    "weightsManifest": [{"paths": ["faceres.bin"], "weights": _WEIGHTS[0]["weights"]}],
}
_SEARCH = {"source": torch.rand(4), "views": torch.rand(1, 4)}


def _whole(path: Path) -> None:
    if problem := _damage(path):
        raise AssetError(problem)


def _convert(name: str) -> Callable[[Path], Any]:
    return lambda path: assets.convert(name, path.parent.parent)


# file in a folder of its own -> its content, what reads it
OUTSIDE: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    "l.npy": (_npy(np.array(_PAIRS)), read_landmarks),
    "l.json": (json.dumps({"landmarks": _PAIRS}).encode(), read_landmarks),
    "l.csv": (b"x,y\n" + _TABLE, read_landmarks),
    "l.pts": (b"version: 1\n{\n" + _TABLE.replace(b",", b" ") + b"}\n", read_landmarks),
    "head.npy": (_npy(np.ones((68, 3))), lambda path: read_landmarks3d(path, np.zeros((5, 3)))),
    "head.txt": (b"3\n" * 68, lambda path: read_landmarks3d(path, np.zeros((5, 3)))),
    "head.obj": (_OBJ, read_obj),
    "scan.obj": (_OBJ, lambda path: read_obj(path, textured=False)),
    "ict.npz": (_ict(), load_ict),
    "model.mat": (_mat(), lambda path: _read_mat(path, {"a": (2, 3), "b": (4, 1)}, "a model")),
    "TOPOLOGY.txt": (json.dumps([[0, 0.5, 0.25]] * 85).encode(), read_keypoint_places),
    "labels.csv": (b"seed,glasses,hat\n1,0,1\n2,,0\n", read_labels),
    "meta-info.json": (b'{"1": {"seed": 3}}', lambda path: UVMaps(path.parent)[0]),
    "face-latents/1.npy": (_npy(np.ones((2, 4), np.float16)), lambda path: UVMaps(path.parent.parent).latents(0)),
    "a.pkl": (pickle.dumps({"a": np.ones(3), "b": [1, (2, "x")]}), read_pickle),
    "a.pth": (_torch({"a": torch.ones(2)}), read_state),
    "old.pth": (_torch({"a": torch.ones(2)}, _use_new_zipfile_serialization=False), read_state),
    "config.json": (b'{"a": {"b": 1}}', lambda path: RunDirectory(path.parent, {"a": {"b": 1}}, resume=True)),
    "facts.json": (b'{"each": 256}', lambda path: CropShards(path.parent, 1, {})),
    "shard-00000.safetensors": (
        safetensors_bytes({"number": torch.arange(2), "asked": torch.tensor([2]), "x": torch.rand(2, 3)}),
        lambda path: (CropShards(path.parent, 2, {}).missing(), CropShards(path.parent, 2, {}).load()),
    ),
    "manifest.safetensors": (
        safetensors_bytes(_ROWS, {"type": "Manifest", "figures": '["nme"]', "facts": '{"a": 1}'}),
        lambda path: list(Manifest.load(path).items()),
    ),
    "search": (
        safetensors_bytes(_SEARCH, {"type": "Search", "facts": '{"figures": {}, "trace": []}'}),
        lambda path: Search.from_bytes(path.read_bytes()),
    ),
    "generator": (_generator(), read_generator),
    "tiny.safetensors": (_model(), read_face_model),
    "directions": (
        safetensors_bytes(_plane("weight", "bias", "mean", "response"), {"names": '["a", "b"]', "figures": "{}"}),
        Directions.load,
    ),
    "worn": (
        safetensors_bytes({"weight": torch.zeros(3, 1584), "bias": torch.zeros(3)}, {"figures": "{}"}),
        AccessoryClassifier.load,
    ),
    "clip.gif": (_animation("GIF"), lambda path: list(read_frames(path, 2))),
    "clip.webp": (_animation("WEBP"), lambda path: list(read_frames(path, 2))),
    "clip.png": (_animation("PNG"), lambda path: list(read_frames(path, 2))),
    "clip.tiff": (_animation("TIFF"), lambda path: list(read_frames(path, 2))),
    "net.xml": (_IR, _Graph),
    "net.bin": (np.arange(2, dtype="<f4").tobytes(), lambda path: _Graph(path.with_suffix(".xml"))),
    "model/tiny_face_detector_model-weights_manifest.json": (json.dumps(_WEIGHTS).encode(), _convert("face_detector")),
    "models/faceres.json": (json.dumps(_GRAPH).encode(), _convert("faceres1024")),
    "assets/manifest.json": (b'{"assets": {"ict": {"file": "x", "bytes": 3}}}', lambda path: assets.status("ict")),
    "whole.pth": (_torch({"a": torch.ones(2)}), _whole),
}  # fmt: skip

NESTED = b"[" * 3_000
OTHERS = [
    b"", b"\0" * 64, b"\xff\xfe\xfd", NESTED, b'{"a":' * 3_000, b"null", b"[]", b"{}", b'"x"', b"1", b"1e999", b"[NaN]",
    b"[" + b"9" * 4000 + b"]", b"9" * 5000, pickle.dumps([1, "a"]), b"GIF89a" + b"\xff" * 20,
    struct.pack("<Q", 1 << 50), b"PK\3\4" + b"\0" * 30, b"PK\5\6" + b"\0" * 18,
    b"\x93NUMPY\1\0" + struct.pack("<H", 9999) + b"(" * 9999, b"\x93NUMPY\1\0" + struct.pack("<H", 65_535) + b"{",
    b"\x93NUMPY\1\0\x4b\0" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999, 2), }".ljust(75),
    b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\0\1IM" + b"\x0f\0\0\0\xff\xff\xff\x7f", b"x,y\n" * 20,
    b"v " + b"1 " * 20_000, b"f " + b"1/1 " * 5, b"v 0 0 0\nvt 0 0\nf " + b"9" * 30 + b"/1 1/1 1/1",
    b"<net><layers/></net>", b"<a>" * 3_000,
]  # fmt: skip
"""Content of another kind than is expected."""

VALUES_OUTSIDE = [
    None,
    -1,
    0,
    1.5,
    10**9,
    10**400,
    "",
    "x",
    [],
    {},
    [[]],
    ["a"],
    {"a": 1},
    True,
    float("nan"),
    "\ud800",
]


def _swapped(draw: st.DrawFn, value: Any) -> Any:
    """Plain data in which one part is of another type, or missing, or nested deeply."""
    parts = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not parts or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(VALUES_OUTSIDE))
    part, changed = draw(st.sampled_from(parts)), copy.copy(value)
    if draw(st.integers(0, 4)) == 0:
        del changed[part]
    else:
        changed[part] = _swapped(draw, value[part])
    return changed


def _plain(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


@st.composite
def forged(draw: st.DrawFn, original: bytes) -> bytes:
    """As :func:`mutated`; or whole JSON, or a whole safetensors file, that means something else."""
    length = int.from_bytes(original[:8], "little")
    header = _plain(original[8 : 8 + length]) if 0 < length < len(original) else None
    content = _plain(original)
    if (header is None and content is None) or draw(st.integers(0, 3)) == 0:
        return draw(mutated([original]))
    if content is not None:
        return json.dumps(_swapped(draw, content)).encode()
    name = draw(st.sampled_from(sorted(name for name in header if header[name])))
    if name != "__metadata__":  # of the same bytes, so that the file is whole
        size = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
        kinds = [("U8", [size]), ("U8", [1, size]), ("I8", [size, 1, 1]), ("U8", [size, 0])]
        kinds += [("F32", [size // 4]), ("I32", [size // 4]), ("I64", [size // 8, 1])] if size % 8 == 0 else []
        kind, shape = draw(st.sampled_from([k for k in kinds if math.prod(k[1]) or not size]))
        header[name] |= {"dtype": kind, "shape": shape}
        if draw(st.booleans()):
            header["_" + name] = header.pop(name)
    else:
        key = draw(st.sampled_from(sorted(header[name])))
        inner = _plain(header[name][key].encode())
        text = json.dumps(_swapped(draw, inner)) if inner is not None and draw(st.integers(0, 3)) else None
        odd = st.sampled_from(["", "{", "[1", "nan", NESTED.decode(), *map(json.dumps, VALUES_OUTSIDE)])
        header[name][key] = draw(odd) if text is None else text
        if draw(st.integers(0, 4)) == 0:
            del header[name][key]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + original[8 + length :]


@pytest.mark.parametrize("key", GeneratorConfig.__dataclass_fields__)
def test_a_generator_of_countless_layers_is_not_built(key: str, tmp_path) -> None:
    (tmp_path / "g").write_bytes(_generator(**{key: 10**9}))
    with pytest.raises(AssetError, match=f"{key} must be") as error:
        read_generator(tmp_path / "g")
    one_line(error.value)


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_others_wrote_is_read_or_one_line(name: str, tmp_path, monkeypatch) -> None:
    """Truncated, flipped, nested, of other types, of another kind: nothing but an error of ours, and that soon."""
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    original, read = OUTSIDE[name]
    path = tmp_path / name
    for place, content in (
        ("uv-maps/1.png", PICTURES[0]), ("facts.json", b'{"each": 256}'), ("net.xml", _IR), ("net.bin", bytes(8)),
        ("model/tiny_face_detector_model.bin", bytes(8)), ("models/faceres.bin", bytes(8)),
    ):  # fmt: skip
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(content)
    Image.new("RGB", (8, 8)).save(tmp_path / "uv-maps" / "1.png")
    path.parent.mkdir(exist_ok=True)
    said = []

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(path)
            except FaceReconError as error:
                said.append(error)

    attempt(original)
    whole = len(said)
    for data in OTHERS:
        attempt(data)
    for share in (0.1, 0.5, 0.9):
        attempt(original[: int(share * len(original))])
    settings(QUICK, max_examples=EXAMPLES)(given(forged(original))(attempt))()
    assert len(said) > whole
    for error in said:
        one_line(error)
    assert whole == (name in EMPTY), said[:whole]


EXAMPLES = 20
EMPTY = ("ict.npz", "models/faceres.json")  # arrays of no head, a graph without weights: refused from the start


# -- configuration -------------------------------------------------------------------------------------

KEYS = [
    "img",
    "out",
    "batch",
    "seed",
    "fitting",
    "fitting.stages.joint.steps",
    "export",
    "pack",
    "face",
    "fit",
    "x.y",
    "",
]
VALUES = ["1", "null", "true", "[a,b]", "{a: 1}", "${pack.name}", "${oops}", "a b", "'", '"', "\\", "[", "é", "=", "-1"]


@settings(QUICK, max_examples=80)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.builds(
                lambda prefix, key, sign, value: f"{prefix}{key}{sign}{value}",
                st.sampled_from(["", "+", "++", "~"]),
                st.sampled_from(KEYS),
                st.sampled_from(["=", "", "@", "/"]),
                st.one_of(st.sampled_from(VALUES), st.text(max_size=8)),
            ),
        ),
        max_size=3,
    )
)
def test_overrides_or_one_line(overrides: list[str]) -> None:
    try:
        OmegaConf.to_container(compose("reconstruct", overrides), resolve=True)
    except ConfigError as error:
        one_line(error)


@pytest.mark.parametrize(
    "override, expected",
    [
        ("frames=abc", "frames must be a number; got 'abc'."),
        ("batch=nan", "batch must be finite; got nan."),
        ("fitting.detail.mirror=inf", "fitting.detail.mirror must be finite; got inf."),
        ("batch=[1]", "batch must be a number"),
        ("resume=yesterday", "resume must be true or false"),
        ("fitting.stages.joint.learning_rate=fast", "learning_rate must be a number"),
        ("export=obj", "export must be a list"),
        ("batch=${nowhere}", "nowhere"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose("reconstruct", [override])
    one_line(error.value)
    assert expected in str(error.value)


def test_a_tensor_file_of_any_name_and_text(tmp_path) -> None:
    odd = os.fsdecode(b"caf\xe9 [1] ${x}")
    path = tmp_path / odd / "face.safetensors"
    saved_face().replace(path=(odd,), decoder=odd).save(path)
    assert SavedFace.load(path).path == (odd,)
    path.write_bytes(safetensors_bytes({"x": torch.ones(1)}, {"decoder": odd}))
    tensors, metadata = read_safetensors(path, "a test", "make it again")
    assert metadata == {"decoder": "caf\\udce9 [1] ${x}"} and tensors["x"] == 1
    basis = torch.randn(2, 3, 8, 8)
    write_linear_basis(path, torch.full((3, 8, 8), 0.5), 0.1 * (basis + basis.flip(-1)))
    assert load_decoder(str(path)).size == 8
