"""Decides how arrays travel: DJL's NDList (magic "NDAR", version 3, big-endian lengths) and .npz."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

MAGIC_NUMBER = "NDAR"
VERSION = 3


class _Reader:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._at = 0

    def unpack(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def take(self, length: int) -> bytes | bytearray:
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken

    def text(self) -> str:
        return self.take(self.unpack(">h")).decode("utf-8")


def from_nd_list(encoded: bytes | bytearray) -> list[Any]:
    """The arrays of an NDList, or of an .npz file if the bytes are one.

    Raises AssertionError for another magic or version, struct.error for a truncated list. `newbyteorder` is asked of
    the arrays of an NDList, as DJL 0.36 does: numpy 2 refuses it with AttributeError.
    """
    if len(encoded) >= 4 and encoded[:2] == b"PK":
        with np.load(io.BytesIO(encoded)) as arrays:
            return [arrays[name] for name in arrays.files]
    reader = _Reader(encoded)
    return [_read_array(reader) for _ in range(reader.unpack(">i"))]


def _read_array(reader: _Reader) -> Any:
    magic = reader.text()
    if magic != MAGIC_NUMBER:
        raise AssertionError(f"magic number is not NDAR, actual {magic}")
    version = reader.unpack(">i")
    if version != VERSION:
        raise AssertionError(f"require version {VERSION}, actual {version}")
    if reader.unpack("B") == 1:
        reader.text()  # its name
    reader.text()  # its sparse format
    dtype = np.dtype(reader.text().lower())
    shape = tuple(reader.unpack(">q") for _ in range(reader.unpack(">i")))
    for _ in range(reader.unpack(">i")):
        reader.unpack(">h")  # the layout, a char for each axis
    order = chr(reader.unpack("B"))
    array: Any = np.ndarray(shape, dtype, reader.take(reader.unpack(">i")))
    return array.newbyteorder(order)


def to_nd_list(np_list: Any) -> bytearray:
    """One array or a list of them as an NDList; under numpy 2 an AttributeError, as in `from_nd_list`."""
    arrays = np_list if type(np_list) is list else [np_list]
    encoded = bytearray(struct.pack(">i", len(arrays)))
    for array in arrays:
        data = array.newbyteorder("<").tobytes("C")
        encoded += _text(MAGIC_NUMBER) + struct.pack(">iB", VERSION, 0) + _text("default")
        encoded += _text(str(array.dtype).upper()) + struct.pack(">i", array.ndim)
        encoded += b"".join(struct.pack(">q", length) for length in array.shape)
        encoded += struct.pack(">i", array.ndim) + struct.pack(">h", ord("?")) * array.ndim
        encoded += b"<" + struct.pack(">i", len(data)) + data
    return encoded


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode("utf-8")
