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
import re
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from mme.packages import Limits

_READABLE_BYTES = Limits().size_bytes  # of a pickle, inflated
_INFLATED_BYTES = 16 * 2**20  # of opcodes in a compressed file, or twenty times its size; arrays are passed over

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
_JOBLIB_ARRAYS = {"NumpyArrayWrapper", "NDArrayWrapper", "ZNDArrayWrapper"}  # the others lie in files of their own
_RAW = re.compile(r"([biufcmMSUV])([1-9][0-9]{0,9})")  # types whose arrays are their bytes alone

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
            _Reader(_Opcodes(file, max(20 * path.stat().st_size, _INFLATED_BYTES)), found).load()
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


class _Opcodes:
    """The part of a file that isn't arrays, as far as it is no larger than the limit; it is all kept in memory."""

    def __init__(self, file: IO[bytes], limit_bytes: int) -> None:
        self.file, self._limit, self._left = file, limit_bytes, limit_bytes

    def read(self, size_bytes: int) -> bytes:
        self._take(size_bytes)
        return self.file.read(size_bytes)

    def readline(self) -> bytes:
        line = self.file.readline(self._left + 1)
        self._take(len(line))
        return line

    def _take(self, size_bytes: int) -> None:
        self._left -= size_bytes
        if self._left < 0:
            raise pickle.UnpicklingError(f"what isn't arrays in it is larger than {self._limit} bytes")


class _Made:
    """Stands for whatever a pickle would import or make: takes any state, and does nothing."""

    def __init__(self, name: str, arguments: Any = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


_Unpickler: Any = pickle._Unpickler  # the one that is written in Python; typeshed knows it in part


class _Reader(_Unpickler):  # type: ignore[misc]
    """Python's own reader of opcodes, with those that import or call something changed to note it."""

    dispatch = dict(_Unpickler.dispatch)

    def __init__(self, opcodes: _Opcodes, found: set[Import], outer: _Reader | None = None) -> None:
        super().__init__(opcodes)
        self._opcodes, self._found, self._outer = opcodes, found, outer

    def find_class(self, module: str, name: str) -> Any:
        if min(self.proto, (self._outer or self).proto) < 3:  # written by Python 2, whose names Python 3 translates
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        found = Import(module, name)
        self._found.add(found)
        # joblib reads arrays behind this name alone, and none in the pickle of an array's objects.
        if name.rpartition(".")[2] in _JOBLIB_ARRAYS and (str(found) != _JOBLIB_ARRAY or self._outer):
            raise pickle.UnpicklingError(f"it keeps an array as {found}; save it again with joblib 1")
        return _Made(str(found))

    def persistent_load(self, pid: Any) -> Any:
        return _Made("a persistent object", pid)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it names its classes by the extension code {code}")

    def load_bytearray8(self) -> None:
        self.load_binbytes8()  # the original fills the memory before it looks whether there are as many bytes
        self.stack[-1] = bytearray(self.stack[-1])

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._made(klass, tuple(args)))

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
            if made.state is not None:
                raise pickle.UnpicklingError(f"it sets the state of a {made.name} twice")
            made.state = state
            if made.name == _JOBLIB_ARRAY:
                self._pass_array(made)
                self.stack[-1] = _Made("an array")

    # Of dictionaries and sets only an array's state is read, by its names; other keys could take for ever to hash.

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_additems(self) -> None:
        self.pop_mark()

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(frozenset())

    def _set_items(self, items: list[Any]) -> None:
        if isinstance(target := self.stack[-1], dict):
            target.update((key, items[i + 1]) for i, key in enumerate(items) if i % 2 == 0 and type(key) is str)

    def _made(self, callee: Any, arguments: Any) -> _Made:
        if not isinstance(callee, _Made):
            raise pickle.UnpicklingError(f"it calls a {type(callee).__name__}")
        if not isinstance(arguments, tuple) or (arguments and callee.name == _JOBLIB_ARRAY):
            raise pickle.UnpicklingError(f"it calls {callee.name} as no model does")
        return _Made(callee.name, arguments)

    def _pass_array(self, made: _Made) -> None:
        """Go on behind the array that follows its wrapper: raw bytes, or a pickle of its objects.

        Which of them, and how many bytes, must be beyond doubt: what is passed over here would be run otherwise. NumPy
        takes a type from the argument of `dtype`, and sets its state only where that is no type of its own.
        """
        wrapper: dict[str, Any] = made.state
        dtype, shape = wrapper["dtype"], wrapper["shape"]
        if not isinstance(dtype, _Made) or dtype.name != "numpy.dtype" or dtype.arguments[1:] != (False, True):
            raise pickle.UnpicklingError("it has an array of a type that isn't NumPy's")
        text, state = dtype.arguments[0], dtype.state
        if not isinstance(text, str) or state[0] not in (3, 4) or not isinstance(state[7], int):
            raise pickle.UnpicklingError("it has an array of a type that NumPy doesn't write")
        has_objects = bool(state[7] & 1)  # numpy's flag NPY_ITEM_REFCOUNT
        raw = _RAW.fullmatch(text)
        size_bytes = int(raw[2]) * (4 if raw[1] == "U" else 1) if raw else 0
        if (
            (has_objects and text != "O8" and text[:1] != "V")
            or not (has_objects or raw)
            or (raw and raw[1] in "SUV" and state[5] != size_bytes)
        ):
            raise pickle.UnpicklingError(
                f"it has an array of the type {text[:20]!r}, and says otherwise of its objects or size"
            )
        if not isinstance(shape, tuple) or not all(isinstance(length, int) and length >= 0 for length in shape):
            raise pickle.UnpicklingError("it has an array whose shape isn't whole numbers")
        if has_objects:
            _Reader(self._opcodes, self._found, self).load()
            return
        if wrapper.get("numpy_array_alignment_bytes") is not None:
            self._pass(self._exactly(1)[0])
        self._pass(size_bytes * math.prod(shape))

    def _pass(self, size_bytes: int) -> None:
        while size_bytes > 0:
            size_bytes -= len(self._exactly(min(size_bytes, 2**20)))

    def _exactly(self, size_bytes: int) -> bytes:
        data = self._opcodes.file.read(size_bytes)
        if len(data) < size_bytes:
            raise EOFError("it ends in an array")
        return data

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset


def _taking(load: Callable[[_Reader], None], count: int) -> Callable[[_Reader], None]:
    """An opcode that puts the last objects of the stack (0: all since the mark) into another: no array's wrapper, which
    a call could hand back under another name."""

    def checked(reader: _Reader) -> None:
        if any(isinstance(item, _Made) and item.name == _JOBLIB_ARRAY for item in reader.stack[-count:]):
            raise pickle.UnpicklingError(f"it hands {_JOBLIB_ARRAY} to something else")
        load(reader)

    return checked


for _opcodes, _count in (
    ((pickle.TUPLE1, pickle.APPEND, pickle.BUILD, pickle.REDUCE, pickle.NEWOBJ), 1),
    ((pickle.TUPLE2, pickle.SETITEM, pickle.NEWOBJ_EX), 2),
    ((pickle.TUPLE3,), 3),
    ((pickle.TUPLE, pickle.LIST, pickle.APPENDS, pickle.DICT, pickle.SETITEMS, pickle.ADDITEMS), 0),
    ((pickle.FROZENSET, pickle.OBJ, pickle.INST), 0),
):
    for _code in _opcodes:
        _Reader.dispatch[_code[0]] = _taking(_Reader.dispatch[_code[0]], _count)
