"""Broken, lying and hostile input: one of our errors in one line, or a result; never another exception."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.compose import compose
from facerecon.errors import AssetError, ConfigError, FaceReconError, InputError
from facerecon.imaging.files import load_image
from facerecon.morphable.model import read_face_model
from facerecon.perception.graph import GraphNet, read_converted
from facerecon.perception.regressor import Regressor, RegressorConfig, read_regressor, save_regressor
from facerecon.run import load_checkpoint, read_metrics, save_checkpoint
from facerecon.storage import read_safetensors, safetensors_bytes
from facerecon.stylegan.decoder import load_decoder
from facerecon.stylegan.linear_basis import read_linear_basis, write_linear_basis
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
        ("out=${nowhere}", "nowhere"),
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
