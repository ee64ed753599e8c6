"""Decides how a handler's answer is built: code, message, properties (headers), contents, or a stream."""

from __future__ import annotations

import datetime
import json
import logging
import struct
import sys
from collections.abc import Callable
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

from .np_util import to_nd_list
from .pair_list import PairList

_CONSTANTS = {True: "true", False: "false", None: "null"}


class _Encoder(json.JSONEncoder):
    """JSON with numpy's integers, floats and arrays, and dates as text; np.bool_ is refused as DJL refuses it."""

    def default(self, o: Any) -> Any:
        if isinstance(o, datetime.datetime):
            return str(o)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if isinstance(o, numpy.integer):
                return int(o)
            if isinstance(o, numpy.floating):
                return float(o)
            if isinstance(o, numpy.ndarray):
                return o.tolist()
        return super().default(o)


class _NotPlain(Exception):
    """A value that is no dict with str keys, list, tuple, str, number, bool or None, or is NaN or infinite."""


def _plain_json(value: Any, newline: str = "\n") -> str:
    """What `json.dumps` makes of plain values with an indent of 2, where it has no fast way. Raises _NotPlain."""
    kind = type(value)
    inner = newline + "  "
    if kind is dict:
        if set(map(type, value)) - {str}:
            raise _NotPlain
        items = [f"{encode_basestring(key)}:{_plain_json(item, inner)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(items) + newline + "}" if items else "{}"
    if kind is list or kind is tuple:
        if set(map(type, value)) <= {float, int}:
            items = list(map(repr, value))
        else:
            items = [_plain_json(item, inner) for item in value]
        text = ("," + inner).join(items)
        if "n" in text and ("nan" in items or "inf" in items or "-inf" in items):
            raise _NotPlain
        return "[" + inner + text + newline + "]" if items else "[]"
    if kind is str:
        return encode_basestring(value)
    if kind is int or (kind is float and isfinite(value)):
        return repr(value)
    if value is None or kind is bool:
        return _CONSTANTS[value]
    raise _NotPlain


def _json_lines(token_texts: Any) -> bytearray:
    """The form of a streamed piece unless the handler gives another: `{"outputs": piece}` and a newline."""
    return bytearray(json.dumps({"outputs": token_texts}).encode() + b"\n")


class Output:
    """One answer. `add*` and the setters return the Output itself, so that calls can be chained."""

    def __init__(self, code: int = 200, message: str = "OK") -> None:
        self.code = code
        self.message = message
        self.properties: dict[str, Any] = {}
        self.content = PairList()
        self.stream_content: Any = None
        self.stream_output_formatter: Callable[[Any], Any] | None = None
        self.finalize_function: Callable[..., Any] | None = None
        self.finalize_args: tuple[Any, ...] | None = None

    def __str__(self) -> str:
        pairs = zip(self.content.get_keys(), self.content.get_values(), strict=True)
        content = {key: f"type: {type(value)}" for key, value in pairs}
        shown = {"code": self.code, "message": self.message, "properties": self.properties, "content": content}
        return json.dumps(shown, indent=2)

    def set_code(self, code: int) -> Output:
        self.code = code
        return self

    def set_message(self, message: str) -> Output:
        self.message = message
        return self

    def error(self, error: str, code: int = 424, message: str = "invoke handler failure") -> Output:
        """Make this a JSON error answer: `{"code", "message", "error"}` with that status and reason phrase."""
        self.code, self.message = code, message
        self.add_property("content-type", "application/json")
        return self.add_as_json({"code": code, "message": message, "error": error})

    def add_property(self, key: str, val: Any) -> Output:
        """Set a property; the front makes it a response header."""
        self.properties[key] = val
        return self

    def get_properties(self) -> dict[str, Any]:
        return self.properties

    def get_property(self, key: str) -> Any:
        return self.properties.get(key)

    def add(self, value: Any, key: Any = None, batch_index: int | None = None) -> Output:
        """Add a content: text as UTF-8, bytes as they are, anything else as JSON.

        A client gets the first content only; in a batch, the one with the `batch_index` of its request.
        """
        if key is not None and type(key) is not str:
            logging.warning("Output key should be str type, got %s", type(key))
            key = str(key)
        if batch_index is not None:
            key = f"batch_{batch_index}.{key or ''}"
        if type(value) is str:
            value = value.encode("utf-8")
        elif type(value) is bytes:
            value = bytearray(value)
        elif type(value) is not bytearray:
            value = self._encode_json(value)
        self.content.add(key=key, value=value)
        return self

    def add_as_numpy(self, np_list: Any, key: Any = None, batch_index: int | None = None) -> Output:
        """Add arrays as a DJL NDList."""
        return self.add(to_nd_list(np_list), key, batch_index)

    def add_as_npz(self, np_list: Any, key: Any = None, batch_index: int | None = None) -> Output:
        """Add arrays as an .npz file."""
        import io

        import numpy as np

        file = io.BytesIO()
        np.savez(file, *np_list)
        return self.add(file.getvalue(), key, batch_index)

    def add_as_json(self, val: Any, key: Any = None, batch_index: int | None = None) -> Output:
        """Add a value as JSON; raises ValueError for NaN and infinities, TypeError for what JSON can't hold."""
        return self.add(self._encode_json(val), key, batch_index)

    def add_stream_content(
        self, stream_content: Any, output_formatter: Callable[[Any], Any] | None = _json_lines
    ) -> Output:
        """Answer with the pieces of an iterator as they come, each through `output_formatter` (None: as it is)."""
        self.stream_content = stream_content
        self.stream_output_formatter = output_formatter
        return self

    def finalize(self, finalize_function: Callable[..., Any], *args: Any) -> Output:
        """Call this function after the answer has been sent."""
        self.finalize_function = finalize_function
        self.finalize_args = args
        return self

    def execute_finalize(self) -> Any:
        if self.finalize_function:
            return self.finalize_function(*(self.finalize_args or ()))
        return None

    @staticmethod
    def _encode_json(val: Any) -> bytearray:
        try:
            text = _plain_json(val)
        except (_NotPlain, RecursionError):  # a list that holds itself is one without end
            text = json.dumps(val, ensure_ascii=False, allow_nan=False, indent=2, cls=_Encoder, separators=(",", ":"))
        return bytearray(text.encode("utf-8"))

    @staticmethod
    def binary_encode(data: dict[str, Any]) -> bytearray:
        """A dict as DJL's binary pairs: a big-endian count, then length-prefixed UTF-8 keys and values."""
        encoded = bytearray(struct.pack(">h", len(data)))
        for key, value in data.items():
            Output.write_utf8(encoded, key)
            Output.write_utf8(encoded, str(value))
        return encoded

    @staticmethod
    def write_utf8(msg: bytearray, val: str | None) -> None:
        """Append a length-prefixed text; None is the length -1."""
        data = b"" if val is None else val.encode("utf-8")
        msg += struct.pack(">i", -1 if val is None else len(data)) + data
