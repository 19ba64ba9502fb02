"""Files of other projects are read as data: what they hold comes back, and nothing in them runs."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facerecon.assets import foreign
from facerecon.assets.foreign import Record, read_checkpoint, read_pickle, read_state, read_torchscript, tensors_of
from facerecon.errors import AssetError


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.block = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
        self.register_buffer("mean", torch.arange(3.0))
        self.tied = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.first(x - self.mean[:, None, None]).mean((2, 3)))


class Harmful:
    """Would make a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


CONTENT = {
    "a": torch.randn(4, 3).T, "half": torch.randn(5).half(), "count": torch.tensor(3), "none": None,
    "nested": [1, (2.5, "text", {3}), {"flag": True, "bytes": b"\0\xff"}],
    "array": np.arange(6, dtype=">f4").reshape(2, 3), "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "number": np.float32(0.25), "parameter": torch.nn.Parameter(torch.ones(2)),
    "ordered": collections.OrderedDict(x=torch.zeros(0, 2)), "big": 1 << 90,
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_of_tensors_and_containers_comes_back(tmp_path, protocol, same) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    found = read_pickle(path)
    expected = CONTENT | {
        "array": torch.arange(6.0).view(2, 3), "columns": torch.arange(6.0, dtype=torch.float64).view(2, 3),
        "number": 0.25, "parameter": torch.ones(2), "ordered": {"x": torch.zeros(0, 2)},
    }  # fmt: skip
    nested, wanted = found.pop("nested"), expected.pop("nested")
    same(found, expected)
    assert nested == wanted


def test_shared_and_strided_tensors_stay_so(tmp_path) -> None:
    whole = torch.arange(12.0)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": whole, "b": whole[2:10:2]}, 2))
    found = read_pickle(tmp_path / "a.pkl")
    assert torch.equal(found["b"], whole[2:10:2])


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'touch MARK'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\nMARK\x85R.",
        b"(S'touch MARK'\nios\nsystem\n.",
        b"ctorch.serialization\nload\n(S'x'\ntR.",
        b"ctorch\nhub\n.",
        b"cnumpy\nndarray\n(I3\ntR.",
        b"c__torch__\nA\n)\x81.",
        b"S'x'\nP\n.",
    ],
)
def test_what_is_not_on_the_list_ends_the_reading(tmp_path, text) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "a.pkl").write_bytes(text.replace(b"MARK", str(mark).encode()))
    with pytest.raises(AssetError) as error:
        read_pickle(tmp_path / "a.pkl")
    assert "which could run code" in one_line(error) or "no readable pickle" in one_line(error)
    assert not mark.exists()


def test_harm_inside_tensors_is_not_run(tmp_path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([torch.ones(2), Harmful(mark)], 4))
    with pytest.raises(AssetError, match=r"a pickle with '(posix|nt|os)\.system' in it"):
        read_pickle(tmp_path / "a.pkl")
    # in the bytes that a tensor's numbers are kept in, which torch reads
    numbers = pickle.dumps(Harmful(mark), 2)
    forged = b"\x80\x02ctorch.storage\n_load_from_bytes\nB" + len(numbers).to_bytes(4, "little") + numbers + b"\x85R."
    (tmp_path / "b.pkl").write_bytes(forged)
    torch.save({"a": Harmful(mark)}, tmp_path / "c.pth")
    for name, read in (("b.pkl", read_pickle), ("c.pth", read_checkpoint)):
        with pytest.raises(AssetError) as error:
            read(tmp_path / name)
        one_line(error)
    assert not mark.exists()


def test_a_tensor_reaches_no_further_than_its_numbers(tmp_path) -> None:
    data = pickle.dumps(torch.arange(4.0), 2)
    for forged in (data.replace(b"K\x04\x85", b"K\x09\x85"), data.replace(b"K\x00K\x04", b"K\x03K\x04")):
        assert forged != data
        (tmp_path / "a.pkl").write_bytes(forged)
        with pytest.raises(AssetError, match="beyond its numbers"):
            read_pickle(tmp_path / "a.pkl")


def test_a_network_record_is_its_contents(tmp_path) -> None:
    """As NVIDIA pickles networks: a class of its own code, of which the state alone is read."""

    class Network:
        def __getstate__(self):
            return {"name": "Gs", "variables": [("4x4/bias", np.ones(3, np.float32))], "code": "import os"}

    Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
    modules = {"dnnlib": None, "dnnlib.tflib": None, "dnnlib.tflib.network": None}
    for name in modules:
        sys.modules[name] = type(sys)(name)
    sys.modules["dnnlib.tflib.network"].Network = Network
    try:
        data = pickle.dumps((Network(), Network()), 4)
    finally:
        for name in modules:
            del sys.modules[name]
    (tmp_path / "n.pkl").write_bytes(data)
    first, _ = read_pickle(tmp_path / "n.pkl")
    assert isinstance(first, Record) and first.kind == "dnnlib.tflib.network.Network"
    assert first.state["variables"][0][0] == "4x4/bias" and first.state["code"] == "import os"
    assert torch.equal(tensors_of(first)["variables.0.1"], torch.ones(3))


@pytest.fixture
def script(tmp_path) -> tuple[Small, Path]:
    module = Small().eval()
    path = tmp_path / "net.pt"
    torch.jit.trace(module, torch.rand(2, 3, 8, 8)).save(str(path))
    return module, path


def test_torchscript_is_read_as_tensors(script) -> None:
    module, path = script
    found = read_torchscript(path)
    expected = {name: t for name, t in module.state_dict().items() if name != "tied"}
    assert {name for name in found if name != "tied"} == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    with pytest.raises(AssetError, match=r"not opened|no readable"):
        read_checkpoint(path)  # weights_only refuses it


def test_torchscript_code_is_not_looked_at(script, tmp_path) -> None:
    module, path = script
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bare.pt", "w") as bare:
        for name in source.namelist():
            bare.writestr(name, b"no code at all" if "/code/" in name else source.read(name))
    assert torch.equal(read_torchscript(tmp_path / "bare.pt")["first.bias"], module.first.bias)
    for keep, words in (("data/0", "no readable TorchScript"), ("data.pkl", "no data.pkl in it")):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "less.pt", "w") as less:
            for name in source.namelist():
                if not name.endswith(keep):
                    less.writestr(name, source.read(name))
        with pytest.raises(AssetError, match=words):
            read_torchscript(tmp_path / "less.pt")


def test_state_dictionaries_with_and_without_wrappers(tmp_path) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(1)}
    for k, content in enumerate((state, {"net": state, "acc": 3.5}, {f"module.{n}": t for n, t in state.items()})):
        torch.save(content, tmp_path / f"{k}.pth", _use_new_zipfile_serialization=bool(k % 2))
        assert set(read_state(tmp_path / f"{k}.pth", "net")) == {"a", "b"}
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(AssetError, match="no state dictionary"):
        read_state(tmp_path / "list.pth")


def doubled(start: bytes, step: bytes, levels: int, end: bytes) -> bytes:
    """A pickle of few bytes in which each level names the one below it twice; STEP joins the two."""
    levels_ = b"".join(b"(h%ch%c%bq%c" % (k, k, step, k + 1) for k in range(levels))
    return b"\x80\x02" + start + b"q\0" + levels_ + end + b"."


BOMBS = {
    "lists": doubled(b"]", b"l", 60, b""),
    "tuples": doubled(b"N\x85", b"t", 60, b""),
    "a key that is hashed": doubled(b"N\x85", b"t", 60, b"}h\x3cNs"),
    "members of a set": doubled(b"N\x85", b"t", 60, b"c__builtin__\nset\n(h\x3c\x85tR"),
    "a list that holds itself twice": b"\x80\x02]q\0(h\0h\0e.",
    "copies of a long list": b"\x80\x02](%be\x85q\1c__builtin__\nset\nq\2%b." % (b"N" * 9000, b"h\2h\1R" * 2000),
    "copies of a long text": b"\x80\x02X\0\0\x10\0%b\x85q\1c_codecs\nencode\nq\2%b."
    % (b"a" * (1 << 20), b"h\2h\1R" * 2000),
    "instructions": b"\x80\x02" + b"]" * 20_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_goes_off_in_no_time(kind: str, tmp_path, monkeypatch) -> None:
    """Without a bound most of these would take longer than anyone waits, or more memory than there is."""
    monkeypatch.setattr(foreign, "_MOST", 10_000)
    data = BOMBS[kind]
    (tmp_path / "a.pkl").write_bytes(data)
    torch.save({"a": torch.ones(1)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, data if name.endswith("data.pkl") else whole.read(name))
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("c/data.pkl", data)
        archive.writestr("c/constants.pkl", b"")
    said = []
    for path, read in (("a.pkl", read_pickle), ("b.pth", read_checkpoint), ("c.pt", read_torchscript)):
        try:
            tensors_of(read(tmp_path / path))
        except AssetError as error:
            said.append(str(error))
    assert len(said) == 3 and all("\n" not in text and len(text) < 600 for text in said)


def test_shared_parts_are_settled_once(tmp_path) -> None:
    array = np.ones(3)
    row = [array, array]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"x": [row, row], "y": row}, 4))
    found = read_pickle(tmp_path / "a.pkl")
    assert found["x"][0] is found["x"][1] is found["y"] and found["y"][0] is found["y"][1]


def test_a_tensor_of_more_numbers_than_its_file_is_refused(tmp_path) -> None:
    wide = torch.ones(1).expand(1 << 40)
    torch.save({"w": wide}, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": wide}, 2))
    for path, read in ((tmp_path / "a.pth", read_state), (tmp_path / "a.pkl", read_pickle)):
        with pytest.raises(AssetError, match="more numbers than it has"):
            read(path)


def test_archives_that_are_packed_are_refused(script, tmp_path) -> None:
    """A few kilobytes unpack to gigabytes."""
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "whole.pth")
    for path, read in ((tmp_path / "whole.pth", read_checkpoint), (script[1], read_torchscript)):
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in whole.namelist():
                archive.writestr(name, whole.read(name) + (bytes(1 << 20) if name.endswith("data/0") else b""))
        with pytest.raises(AssetError, match="it is packed, as torch"):
            read(tmp_path / "z")


@pytest.mark.parametrize("protocol", [2, 4])
def test_any_bytes_give_content_or_one_line(tmp_path, protocol) -> None:
    original, path = pickle.dumps(CONTENT, protocol), tmp_path / "a.pkl"

    @settings(
        max_examples=150, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.integers(0, len(original) - 1), st.integers(0, 255), st.booleans())
    def attempt(at: int, value: int, cut: bool) -> None:
        path.write_bytes(original[:at] if cut else original[:at] + bytes([value]) + original[at + 1 :])
        with contextlib.suppress(AssetError):
            tensors_of({"x": read_pickle(path)})

    attempt()


def test_scripted_bytes_give_tensors_or_one_line(script, tmp_path) -> None:
    _, path = script
    with zipfile.ZipFile(path) as source:
        files = {name: source.read(name) for name in source.namelist()}
    data = next(name for name in files if name.endswith("/data.pkl"))
    generator = np.random.default_rng(0)
    for _ in range(150):
        forged = bytearray(files[data])
        forged[generator.integers(len(forged))] = generator.integers(256)
        with zipfile.ZipFile(tmp_path / "f.pt", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, bytes(forged) if name == data else content)
        try:
            read_torchscript(tmp_path / "f.pt")
        except AssetError:
            continue
