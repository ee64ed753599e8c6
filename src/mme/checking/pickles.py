"""Decides what a pickle would import, and which of that no model needs; it is read opcode by opcode, and never run.

A list of imports says what a pickle reaches for, and not that it is harmless: libraries hold functions that run code
too. Sources: Python's pickle.py; joblib's numpy_pickle.py for the arrays that lie between the opcodes.
"""

from __future__ import annotations

import _compat_pickle
import bz2
import gzip
import io
import lzma
import math
import pickle
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from mme.packages import Limits

_READABLE_BYTES = Limits().size_bytes  # of a pickle, inflated
_MAX_NESTING = 50  # of arrays of objects in each other, which joblib writes as pickles in the pickle

# What a broken pickle raises, here as in Python's own reader.
_BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
)
_JOBLIB_ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"

# What pickles of models hold of the standard library: containers and values.
_HARMLESS = frozenset(
    [f"builtins.{name}" for name in "bool bytearray bytes complex dict float frozenset int list object range".split()]
    + [f"builtins.{name}" for name in "set slice str tuple type".split()]
    + [f"collections.{name}" for name in "Counter OrderedDict defaultdict deque".split()]
    + [f"datetime.{name}" for name in "date datetime time timedelta timezone".split()]
    + [f"pathlib.{name}" for name in "Path PosixPath PurePath PurePosixPath".split()]
    + "_codecs.encode copyreg._reconstructor decimal.Decimal fractions.Fraction functools.partial uuid.UUID".split()
)


class PickleError(Exception):
    """A file that can't be read as a pickle."""


@dataclass(frozen=True, order=True)
class Import:
    """What a pickle would look up: a name in a module; a dotted one is looked up part by part."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def is_harmless(self) -> bool:
        """Whether it is one of the standard library's containers and values that pickles of models hold."""
        return str(self) in _HARMLESS

    @property
    def is_standard(self) -> bool:
        """Whether it comes with Python, or by way of a module that a library has imported, as joblib has `os`."""
        return self.top in sys.stdlib_module_names or any(part.islower() for part in self.name.split(".")[:-1])


def imports(path: Path) -> list[Import]:
    """What loading a pickle or joblib file would import, sorted. Nothing of it is imported here.

    Raises PickleError for a file that is neither, is damaged, or is larger than a package may be.
    """
    found: set[Import] = set()
    try:
        with _inflated(path) as file:
            _Reader(file, found).load()
    except _BROKEN as error:
        raise PickleError(f"{path.name} can't be read as a pickle ({type(error).__name__}: {error})") from None
    return sorted(found)


def _inflated(path: Path) -> io.BufferedReader:
    """The file as joblib opens it: by its first bytes plain, or compressed."""
    with path.open("rb") as file:
        begin = file.read(6)
    opened: IO[bytes]
    if begin.startswith(b"\x1f\x8b"):
        opened = cast(IO[bytes], gzip.open(path))
    elif begin.startswith(b"BZh"):
        opened = cast(IO[bytes], bz2.open(path))
    elif begin.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        opened = cast(IO[bytes], lzma.open(path))
    elif begin.startswith(b"\x78"):
        from joblib.compressor import BinaryZlibFile

        opened = BinaryZlibFile(str(path))
    elif begin.startswith(b"\x04\x22\x4d\x18"):
        raise ValueError("it is compressed by lz4; use another compression")
    else:
        opened = path.open("rb")
    return io.BufferedReader(_Limited(opened))


class _Limited(io.RawIOBase):
    """An inflated file that ends in an error where it is larger than the limit."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _READABLE_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), 2**20))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it holds more than {_READABLE_BYTES} bytes")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Made:
    """Stands for whatever a pickle would import or make: takes any state, and does nothing."""

    def __init__(self, name: str, arguments: Any = ()) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...


_Unpickler: Any = pickle._Unpickler  # the one that is written in Python; typeshed knows it in part


class _Reader(_Unpickler):  # type: ignore[misc]
    """Python's own reader of opcodes, with those that import or call something changed to note it."""

    dispatch = dict(_Unpickler.dispatch)

    def __init__(self, file: IO[bytes], found: set[Import], depth: int = 0) -> None:
        super().__init__(file)
        self._file, self._found, self._depth = file, found, depth

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:  # written by Python 2, whose names Python 3 translates
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        found = Import(module, name)
        self._found.add(found)
        return _Made(str(found))

    def persistent_load(self, pid: Any) -> Any:
        return _Made("a persistent object", pid)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it names its classes by the extension code {code}")

    def load_bytearray8(self) -> None:
        self.load_binbytes8()  # the original fills the memory before it looks whether there are as many bytes
        self.stack[-1] = bytearray(self.stack[-1])

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._made(klass, args))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, _Made):
            made.state = state
            if made.name == _JOBLIB_ARRAY:
                self._pass_array(state)

    def _made(self, callee: Any, arguments: Any) -> _Made:
        if not isinstance(callee, _Made):
            raise pickle.UnpicklingError(f"it calls a {type(callee).__name__}")
        return _Made(callee.name, arguments)

    def _pass_array(self, wrapper: dict[str, Any]) -> None:
        """Go on behind the array that follows its wrapper: raw bytes, or a pickle of its objects."""
        dtype = wrapper["dtype"]
        has_objects = dtype.state[7] & 1  # numpy's flag NPY_ITEM_REFCOUNT
        if has_objects:
            if self._depth == _MAX_NESTING:
                raise pickle.UnpicklingError(f"more than {_MAX_NESTING} arrays of objects are nested")
            _Reader(self._file, self._found, self._depth + 1).load()
            return
        if wrapper.get("numpy_array_alignment_bytes") is not None:
            self._pass(self._exactly(1)[0])
        kind, size = dtype.arguments[0][0], int(dtype.arguments[0][1:])
        self._pass(size * (4 if kind == "U" else 1) * math.prod(map(int, wrapper["shape"])))

    def _pass(self, size_bytes: int) -> None:
        while size_bytes > 0:
            size_bytes -= len(self._exactly(min(size_bytes, 2**20)))

    def _exactly(self, size_bytes: int) -> bytes:
        data = self._file.read(size_bytes)
        if len(data) < size_bytes:
            raise EOFError("it ends in an array")
        return data

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
