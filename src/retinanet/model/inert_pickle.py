"""Read a pickle without creating the objects in it: nothing that the file names is imported or called.

Files of ``torch.save`` are read, and plain pickles with NumPy arrays, such as those of detectron2's model zoo.

A pickle is a program that builds objects. Here every function and class that it names is replaced by a :class:`Node`,
which only records how it was used. After the program has ended, :class:`_Values` looks through the records: those of
dictionaries, tensors, NumPy arrays and modules become dictionaries and tensors, all others become :class:`Skipped`.
Neither step can
reach a function of the file's choice, so the result does not depend on knowing which ones are harmful.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

# First number in a file that torch.save wrote before it wrote zip archives.
_MAGIC = 0x1950A86A20F9469CFC6C
# A file that asks for these is refused, because weights never need them. The reader is safe without this list.
_HOSTILE = re.compile(
    r"(os|posix|nt)\.(?!(stat_result|PathLike|fspath|environ)$)"
    r"|(subprocess|commands|sys|shutil|socket|ctypes|importlib|runpy|pty|_?pickle|marshal|webbrowser)\."
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|open|file|input|raw_input|breakpoint|__import__|reload|apply"
    r"|setattr|delattr|globals|locals|vars|exit|quit)$"
    r"|_?io\.(open|FileIO)|(torch|numpy)\.(\w+\.)*load$"
)
# The same functions, named as members of a module that imports theirs, such as torch.serialization "os.system". A
# method of a class, such as "Dataset.collate", has an upper-case letter before the dot.
_MEMBER = re.compile(r"(.*\.)?[a-z_]\w*\.[a-z_]\w*")
_DICTIONARIES = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict")
# The functions that NumPy pickles arrays with, before and since version 2 (the second from protocol 5 on), and types of
# their numbers.
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_BUFFERS = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_ARRAY_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}
_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
}


@dataclass(frozen=True)
class Skipped:
    """An object of the file that was not created.

    Attributes:
        name: its class or function.
        attributes: those that were stored with it.
    """

    name: str
    attributes: dict[Any, Any] = field(default_factory=dict)


class AsksForCode(pickle.UnpicklingError):
    """The file names a function that weights never need; the message is its name."""


class Node:
    """The record of an object: the name of its class or function, the arguments, and what was put into the object."""

    name: str
    method: bool = False
    arguments: tuple[Any, ...]
    state: Any
    pairs: list[tuple[Any, Any]]

    def __new__(cls, *arguments: Any, **settings: Any) -> Node:
        """Record a call of ``cls``, which stands for a class or a function; refuse a call of a method."""
        if cls.method:
            raise AsksForCode(cls.name)
        node = super().__new__(cls)
        node.arguments, node.state, node.pairs = arguments, None, []
        return node

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))

    def extend(self, items: Iterable[Any]) -> None:
        """Ignore the items of a list or set of another class."""

    append = add = extend

    def __call__(self, *arguments: Any) -> None:
        """Refuse to call an object."""
        raise AsksForCode(f"a call of the result of {self.name}")


class _Unpickler(pickle._Unpickler):
    """Build a tree of plain values and nodes.

    This is Python's own implementation, not its faster one in C, because a damaged file cannot make it allocate much
    memory. The opcodes left out allocate memory in advance or look up registered classes; torch.save never writes them.
    """

    dispatch = {  # noqa: RUF012  # as in the base class
        code: action
        for code, action in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER)
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self.classes: dict[str, type[Node]] = {}
        self.references: list[Any] = []

    def _load_bytearray(self: Any) -> None:
        """Read what the file has of the bytes. The base class allocates the number of bytes that the file names."""
        (count,) = struct.unpack("<Q", self.read(8))
        content = self.read(count)
        if len(content) != count:
            raise EOFError
        self.append(bytearray(content))

    dispatch[pickle.BYTEARRAY8[0]] = cast("Any", _load_bytearray)  # NumPy arrays in protocol 5

    def find_class(self, module: str, name: str) -> type[Node]:
        """Return a class of nodes of this file, never the class or function of that name."""
        full = f"{module}.{name}"
        if _HOSTILE.match(full) or _MEMBER.fullmatch(name):
            raise AsksForCode(full)
        method = "." in name and name.rpartition(".")[2][:1].islower()
        return self.classes.setdefault(full, type("Node", (Node,), {"name": full, "method": method}))

    def persistent_load(self, pid: Any) -> Any:
        """Record a reference to a storage: a tuple of the word, its type, key, device and number of elements."""
        if pid[0] == "module":  # old files: a class and its source code
            return pid[1]
        self.references.append(pid)
        return self.find_class("", "storage")(pid)


class _Values:
    """Convert nodes to dictionaries and tensors; an object that occurs twice is converted once."""

    def __init__(self, read_storage: Callable[[str], bytearray]) -> None:
        self.read_storage = read_storage
        self.storages: dict[str, Tensor] = {}
        self.done: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        """Return the value that ``value`` stands for."""
        if type(value) not in (dict, list, tuple) and not isinstance(value, Node):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = Skipped("a value that contains itself")
            self.done[id(value)] = self._converted(value)
        return self.done[id(value)]

    def _converted(self, value: Any) -> Any:
        if type(value) is dict:
            return self._dictionary(value.items())
        if not isinstance(value, Node):
            return type(value)(map(self, value))
        if value.name in _DICTIONARIES:
            first = value.arguments[0] if value.arguments else ()
            return self._dictionary([*(first if type(first) is list else ()), *value.pairs])
        if value.name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes, or of a subclass
            function, _, arguments = value.arguments[:3]
            return self(function(*arguments))
        if value.name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return self(value.arguments[0])
        if value.name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return self._tensor(*value.arguments[:4])
        if value.name in _ARRAYS and type(value.state) is tuple and len(value.state) == 5:
            return _array(*value.state[1:])
        if value.name in _BUFFERS and len(value.arguments) == 4:
            content, kind, shape, order = value.arguments
            return _array(shape, kind, order == "F", content)
        state = value.state[0] if type(value.state) is tuple and value.state else value.state
        attributes = self._dictionary(state.items()) if type(state) is dict else {}
        if value.pairs:  # a class of dictionaries, whose items may also be attributes
            return attributes | self._dictionary(value.pairs)
        if value.name.startswith("omegaconf.") and (inner := attributes.keys() & {"_content", "_val"}):
            return attributes[inner.pop()]
        if {"_parameters", "_buffers", "_modules"} <= attributes.keys():
            return _state_dict(attributes)
        return Skipped(value.name, attributes)

    def _dictionary(self, pairs: Iterable[Any]) -> dict[Any, Any]:
        return {key: self(value) for key, value in pairs if not isinstance(key, Node)}

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor | Skipped:
        _, kind, key, _, count = storage.arguments[0][:5]
        dtype = _TYPES.get(kind.name.split(".")[-1])
        if dtype is None:
            return Skipped(kind.name)
        if key not in self.storages:
            content = self.read_storage(key)
            if len(content) != count * dtype.itemsize:
                raise ValueError(f"storage {key!r} has {len(content)} bytes")
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key].as_strided(self._numbers(size), self._numbers(stride), offset)

    @staticmethod
    def _numbers(size: Any) -> tuple[int, ...]:
        return tuple(size.arguments[0] if isinstance(size, Node) else size)  # a torch.Size or a tuple


def _array(shape: Any, kind: Any, fortran: Any, content: Any) -> Tensor | Skipped:
    """Return the NumPy array that was pickled as its shape, type, order of axes and bytes, as a tensor."""
    dtype = _ARRAY_TYPES.get(kind.arguments[0]) if kind.name == "numpy.dtype" else None
    if dtype is None or kind.state[1] == ">":  # objects, text, and numbers in the byte order of other machines
        return Skipped("numpy.ndarray")
    if isinstance(content, Node):  # bytes in pickles of protocol 2, which has none: _codecs.encode(text), or bytes()
        content = content.arguments[0] if content.arguments else b""
    content = content.encode("latin1") if isinstance(content, str) else content
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if fortran else flat.reshape(shape)


def _state_dict(module: dict[Any, Any]) -> dict[str, Any]:
    """Return the state dict of a module, given its attributes; submodules are already converted."""
    own = {**module["_parameters"], **module["_buffers"]}
    state = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    for name, child in module["_modules"].items():
        state |= {f"{name}.{key}": value for key, value in child.items()} if isinstance(child, dict) else {}
    return state


def read_inert(path: Path) -> Any:
    """Return the content of a pickle, or of a file that ``torch.save`` wrote.

    Objects that are no data are :class:`Skipped`.

    Raises:
        AsksForCode: the file asks for a function that weights never need.
        Exception: the file is damaged or was written otherwise.
    """
    if not zipfile.is_zipfile(path):
        return _read_pickles(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = next(name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        order = archive.read(folder + "byteorder") if folder + "byteorder" in names else b"little"
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("torch.save does not compress")  # so no entry is larger than the file
        _require_same_order(order.decode())
        content = _Unpickler(io.BytesIO(archive.read(pickled))).load()
        return _Values(lambda key: bytearray(archive.read(f"{folder}data/{key}")))(content)


def _read_pickles(path: Path) -> Any:
    """Read a plain pickle, or the format of ``torch.save`` before zip archives.

    That format has five pickles, of which the first is a number, then each storage, after its number of elements.
    """
    with path.open("rb") as file:
        magic = _Unpickler(file).load()
        if magic != _MAGIC:
            return _Values(_no_storage)(magic)
        _, system = (_Unpickler(file).load() for _ in range(2))
        _require_same_order("little" if system["little_endian"] else "big")
        unpickler = _Unpickler(file)
        content, keys = unpickler.load(), _Unpickler(file).load()
        types = {key: _TYPES[kind.name.split(".")[-1]] for _, kind, key, *_ in unpickler.references}
        storages = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            storages[key] = bytearray(file.read(count * types[key].itemsize))
    return _Values(storages.__getitem__)(content)


def _no_storage(key: str) -> bytearray:
    raise ValueError(f"a plain pickle has no storage {key!r}")


def _require_same_order(order: str) -> None:
    if order != sys.byteorder:
        raise ValueError("written on a machine with another byte order")
