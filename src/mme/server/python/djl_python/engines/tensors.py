"""Decides how named arrays travel as bytes: .npz, .npy, DJL's NDList and safetensors.

Source: NDList, NDSerializer and NDList.decodeSafetensors of DJL 0.36's api.
"""

from __future__ import annotations

import io
import json
import re
import struct
from typing import Any

import numpy as np

Tensors = list[tuple[str | None, Any]]
"""Arrays in order, each with its name or None."""

_VERSION = 3  # of NDList's arrays
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip


def decoded(data: bytes) -> Tensors:
    """The arrays that some bytes are, by how they begin. Raises ValueError for bytes that are none of the four."""
    if len(data) < 9:
        raise ValueError(f"Invalid input length: {len(data)}")
    if data[:2] == b"PK":
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return [(_name(key), arrays[key]) for key in arrays.files]
    if data[:6] == b"\x93NUMPY":
        return [(None, np.load(io.BytesIO(data), allow_pickle=False))]
    try:
        return _from_safetensors(data) if data[8:9] == b"{" else _from_ndlist(io.BytesIO(data))
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError(f"Malformed NDArray data: {error}") from error


def npz(tensors: Tensors) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **_named(tensors))
    return file.getvalue()


def safetensors(tensors: Tensors) -> bytes:
    kinds = {np.dtype(kind): name for name, kind in _SAFETENSORS.items()}
    header: dict[str, Any] = {}
    body = b""
    for name, array in _named(tensors).items():
        begin, body = len(body), body + array.tobytes()
        described = {"dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": [begin, len(body)]}
        header[name] = described
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + body


def ndlist(tensors: Tensors) -> bytes:
    encoded = struct.pack(">i", len(tensors))
    for name, array in tensors:
        little = array.astype(array.dtype.newbyteorder("<"))
        data = little.tobytes()
        encoded += _text("NDAR") + struct.pack(">iB", _VERSION, name is not None) + (_text(name) if name else b"")
        encoded += _text("DENSE") + _text("BOOLEAN" if array.dtype == np.bool_ else array.dtype.name.upper())
        encoded += struct.pack(f">i{array.ndim}q", array.ndim, *array.shape)
        encoded += struct.pack(">i", array.ndim) + "?".encode("utf-16-be") * array.ndim  # the axes' layout, unknown
        encoded += b"<" + struct.pack(">i", len(data)) + data
    return encoded


def _from_ndlist(stream: io.BytesIO) -> Tensors:
    def number(form: str) -> Any:
        return struct.unpack(form, stream.read(struct.calcsize(form)))[0]

    def text() -> str:
        return stream.read(number(">H")).decode()

    tensors: Tensors = []
    for _ in range(number(">i")):
        magic, version = text(), number(">i")
        if magic != "NDAR" or not 1 <= version <= _VERSION:
            raise ValueError(f"Malformed NDArray data: {magic} {version}")
        name = text() if version > 1 and number("B") else None
        text()  # the sparse format
        kind = text().lower()
        shape = [number(">q") for _ in range(number(">i"))]
        stream.read(2 * number(">i"))  # the axes' layout
        is_big = version > 2 and number("c") == b">"
        dtype = np.dtype({"boolean": "bool"}.get(kind, kind)).newbyteorder(">" if is_big else "<")
        data = stream.read(number(">i"))
        tensors.append((name, np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))))
    return tensors


def _from_safetensors(data: bytes) -> Tensors:
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors: Tensors = []
    for name, said in header.items():
        begin, end = said["data_offsets"]
        array = np.frombuffer(data[start + begin : start + end], _SAFETENSORS[said["dtype"]])
        tensors.append((_name(name), array.reshape(said["shape"])))
    return tensors


def _name(key: str) -> str | None:
    """numpy's arr_0, arr_1 … stand for arrays without a name."""
    return None if re.fullmatch(r"arr_\d+", key) else key


def _named(tensors: Tensors) -> dict[str, Any]:
    return {name or f"arr_{number}": array for number, (name, array) in enumerate(tensors)}


def _text(value: str) -> bytes:
    return struct.pack(">H", len(value.encode())) + value.encode()
