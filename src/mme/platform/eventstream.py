"""Decides how the pieces of a streamed answer look on the wire: AWS's event stream encoding.

Amazon Transcribe's developer guide, "Event stream encoding": total length, length of the headers, CRC-32 of both,
headers, payload, CRC-32 of all before. botocore.eventstream decodes it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping

_STRING = 7  # the type of a header value


def payload_part(piece: bytes) -> bytes:
    """A `PayloadPart` event of ResponseStream."""
    headers = {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}
    return encode(headers, piece)


def exception(name: str, message: str, members: Mapping[str, str]) -> bytes:
    """The event that ends a stream with a modelled exception."""
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return encode(headers, json.dumps({"Message": message, **members}).encode())


def encode(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message with string headers."""
    block = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    message = b"".join((prelude, struct.pack(">I", zlib.crc32(prelude)), block, payload))
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    key, text = name.encode(), value.encode()
    return struct.pack(">B", len(key)) + key + struct.pack(">BH", _STRING, len(text)) + text
