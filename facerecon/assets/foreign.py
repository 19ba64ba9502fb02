"""Tensor files of other projects, read without running anything in them.

- ``torch.save`` archives (``.pth``, ``.pt``, the ``.t7`` of DPR): :func:`read_checkpoint`, by ``weights_only``, once a
  look at them has shown that this ends.
- TorchScript archives: :func:`read_torchscript` takes their tensors and never looks at their code.
- plain pickles (``.pkl``): :func:`read_pickle`.

The last two go through one small machine that understands the *data* opcodes of a pickle. It holds no way to import or
to call anything: a global is a name, which is looked up in a table of what may be built here (tensors, arrays, plain
containers, and records: the contents of a few known network classes, without the class). Any other name ends the
reading before anything is made of it. Time and memory are bounded by the file's size, whatever it nests and shares.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from facerecon.errors import AssetError
from facerecon.modes import in_own_modes, without_numbers
from facerecon.storage import all_finite, read_safetensors

__all__ = [
    "Record",
    "check_fit",
    "float_tensors",
    "load_converted",
    "read_checkpoint",
    "read_pickle",
    "read_released",
    "read_state",
    "read_torchscript",
    "shapes_of",
    "tensors_of",
]

_AGAIN = "get the released file again"
_MAGIC = 0x1950A86A20F9469CFC6C  # before all else in what torch.save wrote of old
_LARGEST = 1 << 31  # bytes of one tensor or file: the largest released file has 1.2 GB
_DEEPEST = 60  # nesting of modules
_LONGEST = 300  # characters of a dotted name
_MOST = 1 << 18  # instructions of a pickle, parts of what it holds: the released files have a few ten thousand
_HEAVIEST = 10_000  # parts of a tuple, with those of the tuples in it: what hashing and comparing it may take


@dataclass
class Record:
    """An object of a class that is not here: its name, what it was made from, and its attributes."""

    kind: str
    arguments: tuple = ()
    state: dict[str, Any] = field(default_factory=dict)


class _Refused(Exception):
    """The file holds what is not on the list of what may be read."""


class _Damaged(Exception):
    """The file is of another format than its name or header."""


# -- what may be built -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Name:
    """A global of the pickle: a name, nothing more."""

    text: str


@dataclass
class _Array:
    """A numpy array between its making and its state."""

    value: np.ndarray | None = None


@dataclass
class _DType:
    """A numpy type between its making and its state."""

    code: str
    order: str = "="


@dataclass(frozen=True)
class _Storage:
    """Numbers of one type in a row, as a flat tensor."""

    values: Tensor


_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_RECORDS = {"dnnlib.tflib.network.Network", "torch_utils.persistence._reconstruct_persistent_obj"}
"""Network classes whose contents may be read, as records."""


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, within its bounds."""
    if not isinstance(storage, _Storage):
        raise _Damaged("a tensor without numbers")
    numbers = [offset, *size, *stride]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers) or len(size) != len(stride):
        raise _Damaged("a tensor of an impossible shape")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.values.numel():
        raise _Damaged("a tensor that reaches beyond its numbers")
    if math.prod(size) > storage.values.numel():
        raise _Damaged("a tensor of more numbers than it has")
    return storage.values.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_parameter(value: Any, *_: Any) -> Any:
    if not isinstance(value, Tensor):
        raise _Damaged("a parameter that is no tensor")
    return value


def _storage_from_bytes(data: Any) -> _Storage:
    if not isinstance(data, bytes):
        raise _Damaged("a tensor without numbers")
    _survey(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(found, torch.storage.TypedStorage):
            raise _Damaged("a tensor without numbers")
        flat = torch.empty(0, dtype=found.dtype)
        return _Storage(flat.set_(found.untyped(), 0, (found.size(),), (1,)))


def _encode(text: Any, coding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise _Damaged("bytes of an unknown coding")
    return text.encode("latin1")


def _dtype(code: Any, *_: Any) -> _DType:
    if not isinstance(code, str) or code.lstrip("<>=|") not in _NUMBERS:
        raise _Refused(f"an array of '{str(code)[:20]}'")
    return _DType(code.lstrip("<>=|"), code[0] if code[0] in "<>" else "=")


def _numpy_values(dtype: Any, data: Any) -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(dtype, _DType) or not isinstance(data, bytes):
        raise _Damaged("an array without numbers")
    return np.frombuffer(data, np.dtype(dtype.order + dtype.code))


def _scalar(dtype: Any, data: Any) -> Any:
    return _numpy_values(dtype, data).item()


def _plain(kind: type) -> Callable:
    def make(*arguments: Any) -> Any:
        if len(arguments) > 1:
            raise _Damaged(f"a {kind.__name__} of several parts")
        return kind(*arguments)

    return make


_BUILDERS: dict[str, Callable] = {
    "collections.OrderedDict": _plain(dict),
    "dnnlib.util.EasyDict": _plain(dict),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.storage._load_from_bytes": _storage_from_bytes,
    "torch.Size": _plain(tuple),
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    **{f"{module}.multiarray._reconstruct": lambda *_: _Array() for module in ("numpy.core", "numpy._core")},
    **{f"{module}.multiarray.scalar": _scalar for module in ("numpy.core", "numpy._core")},
    **{
        f"{module}.{kind.__name__}": _plain(kind) for module in ("builtins", "__builtin__") for kind in (set, frozenset)
    },
}
_MENTIONED = {"numpy.ndarray", "torch.nn.parameter.Parameter"}
"""Names that may be mentioned, as arguments."""


# -- the machine -----------------------------------------------------------------------------------------

_MARK = object()
_PUSHED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_MADE = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip


class _Machine:
    """Reads the data of one pickle: of a TorchScript archive with ``storages`` (kind, key, count), and classes of its
    own code as records.
    """

    def __init__(self, storages: Callable[[torch.dtype, str, int], _Storage] | None = None):
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.weights: dict[int, tuple[int, Any]] = {}  # of tuples by id, which they keep as they are kept here
        self.left = 0  # bytes that may still be copied

    def read(self, file: IO[bytes]) -> Any:
        """What the pickle holds, which the file stands at the start of."""
        start = file.tell()
        self.left = 4 * (file.seek(0, io.SEEK_END) - start) + (1 << 24)
        file.seek(start)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > _MOST:
                raise _Damaged("more parts than any network has")
            name = opcode.name
            if name in _PUSHED:
                self.stack.append(_PUSHED[name])
            elif name in _MADE:
                self.stack.append(_MADE[name]())
            elif name in _VALUES:
                self.stack.append(argument)
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, "_" + name.lower(), None)
                if step is None:
                    raise _Refused(f"the instruction {name}")
                step(argument)
        raise _Damaged("it ends early")

    def _above_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise _Damaged("a part without a start")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, key: Any) -> None:
        self.memo[key] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, key: Any) -> None:
        self.stack.append(self.memo[key])

    _binget = _long_binget = _get

    def _weighed(self, value: Any) -> Any:
        """A tuple or set that is not too heavy; one that holds itself twice, over and over, takes forever to hash."""
        weight = 1 + sum(self.weights[id(part)][0] if id(part) in self.weights else 1 for part in value)
        if weight > _HEAVIEST:
            raise _Damaged("tuples in tuples without end")
        self.weights[id(value)] = weight, value
        return value

    def _tuple(self, _: Any) -> None:
        self.stack.append(self._weighed(tuple(self._above_mark())))

    def _tuple_of(self, count: int, _: Any) -> None:
        items = self._weighed(tuple(self.stack[-count:]))
        del self.stack[-count:]
        self.stack.append(items)

    _tuple1 = partialmethod(_tuple_of, 1)
    _tuple2 = partialmethod(_tuple_of, 2)
    _tuple3 = partialmethod(_tuple_of, 3)

    def _list(self, _: Any) -> None:
        self.stack.append(list(self._above_mark()))

    def _dict(self, _: Any) -> None:
        self.stack.append(_pairs(self._above_mark()))

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._above_mark()
        self._top(list).extend(items)

    def _additems(self, _: Any) -> None:
        items = self._above_mark()
        self._top(set).update(items)

    def _setitem(self, _: Any) -> None:
        self._setitems(None, [self.stack.pop(-2), self.stack.pop()])

    def _setitems(self, _: Any, items: list[Any] | None = None) -> None:
        items = self._above_mark() if items is None else items
        self._top(dict).update(_pairs(items))

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise _Damaged(f"something that is no {kind.__name__} is used as one")
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._named(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._named(module, name)

    def _named(self, module: Any, name: Any) -> None:
        text = f"{module}.{name}"
        known = text in _BUILDERS or text in _MENTIONED or text in _RECORDS
        storage = module == "torch" and name in _STORAGES
        own = self.storages is not None and text.startswith("__torch__.")
        if not (known or storage or own):
            raise _Refused(f"'{text[:80]}'")
        self.stack.append(_Name(text))

    def _reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise _Damaged("something that is no name is used as one")
        self._copying(arguments)
        if name.text in _BUILDERS:
            made = _BUILDERS[name.text](*arguments)
            self.stack.append(self._weighed(made) if isinstance(made, (tuple, frozenset)) else made)
        elif name.text in _RECORDS or name.text.startswith("__torch__."):
            self.stack.append(Record(name.text, arguments))
        else:
            raise _Refused(f"an object of '{name.text[:80]}'")

    _newobj = _reduce

    def _copying(self, parts: tuple) -> None:
        """Count what is copied, which may be much more than the file where one part is copied over and over."""
        self.left -= sum(len(part) for part in parts if isinstance(part, (str, bytes)))
        self.left -= 16 * sum(len(part) for part in parts if isinstance(part, (list, tuple, dict, set, frozenset)))
        if self.left < 0:
            raise _Damaged("much more in it than it is large")

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            parts = state if isinstance(state, tuple) else (state,)
            for part in parts:
                if isinstance(part, dict):
                    target.state.update(part)
                elif part is not None:
                    raise _Damaged(f"attributes of '{target.kind[:60]}' that are no table")
        elif isinstance(target, _Array):
            if not isinstance(state, tuple) or len(state) != 5:
                raise _Damaged("an array without numbers")
            _, shape, dtype, fortran, data = state
            self._copying((data,))
            values = _numpy_values(dtype, data)
            target.value = values.reshape(shape, order="F" if fortran else "C")
        elif isinstance(target, _DType):
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
                raise _Damaged("numbers of an unknown order")
            target.order = "=" if state[1] == "|" else state[1]
        elif not isinstance(target, dict):
            raise _Damaged("attributes of something that has none")

    def _binpersid(self, _: Any) -> None:
        mark = self.stack.pop()
        whole = isinstance(mark, tuple) and len(mark) == 5 and mark[0] == "storage" and isinstance(mark[1], _Name)
        if self.storages is None or not whole or mark[1].text.removeprefix("torch.") not in _STORAGES:
            raise _Refused("a reference to something outside of it")
        if not isinstance(mark[4], int) or not 0 <= mark[4] <= _LARGEST:
            raise _Damaged("a tensor of an impossible size")
        self.stack.append(self.storages(_STORAGES[mark[1].text.removeprefix("torch.")], str(mark[2]), mark[4]))


class _Survey(_Machine):
    """Goes through a pickle that torch is to read, and makes nothing: is it of a size and a nesting that ends?"""

    def _named(self, module: Any, name: Any) -> None:
        self.stack.append(_Name(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if isinstance(arguments, tuple):
            self._copying(arguments)
            if isinstance(name, _Name) and name.text.endswith("bytearray"):  # of any length that it names
                raise _Refused("a 'bytearray'")
        self.stack.append(object())  # that is not looked into

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        self.stack.pop()

    def _binpersid(self, _: Any) -> None:
        self.stack[-1] = object()

    def _top(self, kind: type) -> Any:
        return self.stack[-1] if isinstance(self.stack[-1], kind) else kind()


def _survey(file: IO[bytes]) -> None:
    """Hold what ``torch.save`` wrote, an archive or the pickles of old, against :class:`_Survey` before torch, which
    runs nothing of it either, follows it as far as it goes."""
    archived = file.read(4) == b"PK\x03\x04"  # as torch tells them apart
    file.seek(0)
    if not archived:
        if _Survey().read(file) != _MAGIC:
            raise _Refused("no tensors of torch.save")
        for _ in range(4):  # version, system, content, keys
            _Survey().read(file)
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise _Damaged("it is packed, as torch.save never does")
            if entry.filename.endswith(".pkl"):
                _Survey().read(io.BytesIO(archive.read(entry)))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise _Damaged("a key without a value")
    keys = [str(key.text) if isinstance(key, _Name) else key for key in items[::2]]
    return dict(zip(keys, items[1::2], strict=True))


_BROKEN = (
    ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError, RuntimeError, OSError, MemoryError,
    AssertionError, zipfile.BadZipFile, _Damaged,
)  # fmt: skip


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """What is wrong with a file that is read here as one line."""
    _must_exist(path)
    try:
        yield
    except _Refused as error:
        raise AssetError(
            f"{path} is a pickle with {error} in it, which could run code; only tensors and plain containers are read, "
            f"so reading ended there. {_AGAIN[:1].upper()}{_AGAIN[1:]}."
        ) from None
    except Exception as error:
        if not isinstance(error, _BROKEN) and type(error).__name__ != "UnpicklingError":
            raise
        raise _broken(path, error, kind) from None


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise AssetError(f"{path} does not exist; give the path of a released file.")


def _broken(path: Path, error: Exception, kind: str) -> AssetError:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:140]
    return AssetError(f"{path} is no readable {kind} ({reason}); {_AGAIN}.")


def read_pickle(path: str | Path) -> Any:
    """The data of a plain pickle: tensors, arrays as tensors, plain containers, :class:`Record`.

    Raises:
        AssetError: missing, damaged, or it names anything that is not on the list of what may be built.
    """
    path = Path(path)
    with _reading(path, "pickle"), open(path, "rb") as file:
        return _settled(_Machine().read(file))


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their dotted names; its code is not looked at.

    Raises:
        AssetError: missing, damaged, no TorchScript archive, or with more than tensors, numbers and modules in it.
    """
    path = Path(path)
    with _reading(path, "TorchScript archive"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next((n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl") and n.count("/") == 1), None)
        if root is None:
            raise _Damaged("no data.pkl in it")
        largest = path.stat().st_size
        if any(e.file_size > largest for e in archive.infolist() if not e.filename.startswith(f"{root}code/")):
            raise _Damaged("it is packed, as torch.jit.save never does with numbers")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise _Damaged("its numbers are big-endian")
        kept: dict[str, bytearray] = {}

        def storage(dtype: torch.dtype, key: str, count: int) -> _Storage:
            if key not in kept:
                entry = archive.getinfo(f"{root}data/{key}")
                if entry.file_size > _LARGEST:
                    raise _Damaged("a tensor of an impossible size")
                kept[key] = bytearray(archive.read(entry))
            if len(kept[key]) != count * dtype.itemsize:
                raise _Damaged("a tensor of another size than declared")
            return _Storage(torch.frombuffer(kept[key], dtype=dtype) if count else torch.empty(0, dtype=dtype))

        return tensors_of(_settled(_Machine(storage).read(io.BytesIO(archive.read(f"{root}data.pkl")))))


def _settled(value: Any, depth: int = 0, made: dict[int, Any] | None = None) -> Any:
    """Arrays as tensors, throughout; what is there once and named twice stays so."""
    made = {} if made is None else made
    if depth > 4 * _DEEPEST:
        raise _Damaged("nested too deeply")
    if not isinstance(value, (_Array, dict, list, tuple, Record)):
        return value
    if id(value) in made:
        if made[id(value)] is _MARK:
            raise _Damaged("something that holds itself")
        return made[id(value)]
    made[id(value)] = _MARK
    if isinstance(value, _Array):
        if value.value is None:
            raise _Damaged("an array without numbers")
        found: Any = torch.from_numpy(np.array(value.value.astype(value.value.dtype.newbyteorder("="))))
    elif isinstance(value, dict):
        found = {key: _settled(part, depth + 1, made) for key, part in value.items()}
    elif isinstance(value, Record):
        arguments = tuple(_settled(part, depth + 1, made) for part in value.arguments)
        found = Record(value.kind, arguments, _settled(value.state, depth + 1, made))
    else:
        found = type(value)(_settled(part, depth + 1, made) for part in value)
    made[id(value)] = found
    return found


def tensors_of(value: Any) -> dict[str, Tensor]:
    """All tensors of nested containers and records, under dotted names.

    Of modules, parameters and buffers stand under their own names, as in a state dictionary.

    Raises:
        AssetError: nested more deeply than any network, with more parts, or with a tensor of more numbers than it has.
    """
    try:
        return dict(_walk(value, "", 0, iter(range(_MOST))))
    except (_Damaged, RuntimeError) as error:
        raise AssetError(f"the file holds {error or 'too much'}, which no network does; {_AGAIN}.") from None


_TRANSPARENT = ("_parameters", "_buffers", "_modules")


def _walk(value: Any, name: str, depth: int, left: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEEPEST or len(name) > _LONGEST or next(left, None) is None:
        raise _Damaged("tensors nested too deeply")
    if isinstance(value, Tensor):
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise _Damaged("a tensor of more numbers than it has")
        yield name, value
        return
    if isinstance(value, Record):
        if value.arguments and isinstance(value.arguments[0], Mapping) and "state" in value.arguments[0]:
            yield from _walk(value.arguments[0]["state"], name, depth + 1, left)
        yield from _walk(value.state, name, depth + 1, left)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if isinstance(key, Hashable) and key in _TRANSPARENT:
                yield from _walk(part, name, depth + 1, left)
            else:
                yield from _walk(part, f"{name}.{key}" if name else str(key), depth + 1, left)
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _walk(part, f"{name}.{i}" if name else str(i), depth + 1, left)


# -- torch.save ------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Any:
    """What ``torch.save`` wrote, where that is tensors and plain containers only.

    Raises:
        AssetError: missing, damaged, or with more than that in it (it is not opened then).
    """
    path = Path(path)
    _must_exist(path)
    try:
        with open(path, "rb") as file:
            _survey(file)
        with warnings.catch_warnings():  # of odd pickle protocols
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, _Refused) or type(error).__name__ == "UnpicklingError":
            raise AssetError(
                f"{path} is a pickle with more than tensors in it, which could run code, so it was not opened; "
                f"{_AGAIN}."
            ) from None
        raise _broken(path, error, "checkpoint") from None
    tensors_of(content)  # within bounds
    return content


def read_state(path: str | Path, *containers: str) -> dict[str, Tensor]:
    """A state dictionary that ``torch.save`` wrote, alone or under one of the keys ``containers``.

    ``module.`` before every name, which parallel training leaves, is taken off.

    Raises:
        AssetError: as :func:`read_checkpoint`, or it holds no state dictionary.
    """
    content = read_checkpoint(path)
    for key in containers:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    whole = isinstance(content, Mapping) and bool(content)
    if not whole or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in content.items()):
        under = "".join(f", nor one under '{key}'" for key in containers)
        raise AssetError(f"{path} holds no state dictionary of tensors{under}; {_AGAIN}.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def float_tensors(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: str | Path, what: str,
    unused: tuple[str, ...] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """The expected tensors of a state dictionary, in float32; every key is used once, or known to be of no use.

    Args:
        state: {name: tensor}.
        expected: {name: shape}.
        path, what: for messages ("an iresnet50").
        unused: beginnings of names that may be there and are left out; counters of batches always are.

    Raises:
        AssetError: one is missing, left over, of another shape, or holds NaN or infinity; one line names it.
    """
    there = {n for n in state if not n.endswith("num_batches_tracked") and not n.startswith(unused or ("\0",))}
    for kind, keys in (("lacks", sorted(set(expected) - there)), ("holds unknown", sorted(there - set(expected)))):
        if keys:
            rest = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise AssetError(f"{path} is not {what}: it {kind} '{keys[0][:80]}'{rest}; {_AGAIN}.")
    found = {}
    for name, shape in expected.items():
        value = state[name]
        if tuple(value.shape) != tuple(shape):
            raise AssetError(f"{path}: '{name}' is {tuple(value.shape)}, expected {tuple(shape)}; {_AGAIN}.")
        if not value.is_floating_point() or not all_finite(value):
            raise AssetError(f"{path}: '{name}' holds NaN, infinite or whole numbers; {_AGAIN}.")
        found[name] = value.float().contiguous()
    return found


def shapes_of(kind: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a network's weights and buffers, without counters of batches."""
    with without_numbers():
        state = kind().state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}


def read_released(
    kind: Callable[[], nn.Module],
    path: str | Path,
    what: str,
    *containers: str,
    unused: tuple[str, ...] = (),
    official: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """Weights of a network from the released checkpoint.

    Args:
        kind: makes the network.
        path: the checkpoint.
        what: it should hold, for messages.
        containers: as of :func:`read_state`.
        unused: as of :func:`float_tensors`.
        official: the released name of one of ours.

    Raises:
        AssetError: missing, damaged, or another network; one line.
    """
    shapes = shapes_of(kind)
    expected = {official(name): shape for name, shape in shapes.items()}
    found = float_tensors(read_state(path, *containers), expected, path, what, unused)
    return {name: found[official(name)] for name in shapes}


def check_fit(net: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, advice: str) -> None:
    """Hold tensors of a file against those that a network needs.

    Raises:
        AssetError: a name or a shape differs; the message names one and ends with ``advice``.
    """
    wanted = shapes_of(lambda: net).items()
    found = {name: tuple(t.shape) for name, t in tensors.items()}.items()
    if odd := sorted(set(wanted) ^ set(found)):
        raise AssetError(f"{path} does not fit {type(net).__name__} (at {odd[0][0]} {odd[0][1]}); {advice}.")


@in_own_modes
def load_converted(kind: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """A network from its converted file, frozen, in eval mode and torch's channels-last layout.

    Args:
        kind: makes the network.
        path: safetensors with its weights, without counters of batches.

    Raises:
        AssetError: the file cannot be read or does not hold this network's tensors.
    """
    tensors, _ = read_safetensors(path, "a converted network of the release", "convert the released file again")
    with without_numbers():
        net = kind()
    check_fit(net, tensors, path, "convert it again")
    counters = {name: torch.tensor(0) for name in net.state_dict() if name.endswith("num_batches_tracked")}
    net.load_state_dict({**tensors, **counters}, assign=True)
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
