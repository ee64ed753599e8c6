"""Decides how the front and a worker talk: `u32 total | u32 header length | header (JSON, UTF-8) | body`, big-endian.

`total` counts what follows it. Both ends use this module; it needs the standard library only.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

# Room for a batch of the largest requests (64 MiB each, DJL's max_request_size); a larger length is a broken stream.
MAX_FRAME_BYTES = 1 << 30

Buffer = bytes | bytearray | memoryview
Header = dict[str, Any]
Frame = tuple[Header, bytes | bytearray]

_HEAD = struct.Struct("!II")
_LENGTH_BYTES = 4
_from_json = json.JSONDecoder().raw_decode
_SEND_BUFFER_BYTES = 1 << 20  # taken only while it is filled; the kernel gives less where its limit is lower
_SENDMSG_MAX_BUFFERS = 512  # below IOV_MAX (1024) everywhere


class FrameError(Exception):
    """What arrived isn't a frame: the stream can't be read any further, so close it."""


def widen(sock: socket.socket) -> None:
    """Let a socket hold a body of usual size, so that who sends it needn't be woken for each part that was read."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)


def encode(header: Header, *parts: Buffer) -> list[Buffer]:
    """One frame as buffers to be written together (`transport.writelines`, `send`); bodies aren't copied.

    Raises ValueError if the frame would be larger than MAX_FRAME_BYTES.
    """
    head = _to_json(header).encode("utf-8", "surrogatepass")
    total = _LENGTH_BYTES + len(head) + sum(map(len, parts))
    if total > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {total} bytes is larger than {MAX_FRAME_BYTES}; send less at once")
    return [_HEAD.pack(total, len(head)) + head, *parts]


def send(sock: socket.socket, buffers: Sequence[Buffer]) -> None:
    """Write all of the buffers to a blocking socket, in one system call where they fit."""
    left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while left:
        sent = sock.sendmsg(left[:_SENDMSG_MAX_BUFFERS])
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]


class Decoder:
    """Cuts a stream into frames: `feed` it whatever arrives, and take the frames that are complete.

    While a body is under way, `room` is where its next bytes belong: what is received there, and told to `filled`,
    isn't copied again. Such a body is a bytearray that nobody else holds; one that came whole is bytes.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.room: memoryview | None = None
        self._max_frame_bytes = max_frame_bytes
        self._chunks: list[bytes] = []
        self._held_bytes = 0
        self._wanted_bytes = _HEAD.size
        self._header: Header = {}
        self._body = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by `data`, in order, as (header, body).

        Raises FrameError for a length beyond the maximum, lengths that contradict each other and a header that
        isn't a JSON object.
        """
        frames: list[Frame] = []
        if self.room is not None:
            count = min(len(data), len(self.room))
            self.room[:count] = data[:count]
            frames = self.filled(count)
            data = data[count:]
        if self._chunks:
            self._chunks.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._wanted_bytes:
                return frames
            data = b"".join(self._chunks)
            self._chunks.clear()
        start = 0
        self._wanted_bytes = _HEAD.size
        while (available := len(data) - start) >= _HEAD.size:
            total, header_bytes = _HEAD.unpack_from(data, start)
            if total > self._max_frame_bytes or header_bytes + _LENGTH_BYTES > total:
                raise FrameError(f"not a frame: total {total}, header {header_bytes} bytes")
            header_at = start + _HEAD.size
            body_at = header_at + header_bytes
            end = start + _LENGTH_BYTES + total
            if available >= end - start:
                frames.append((_header(data[header_at:body_at]), data[body_at:end]))
                start = end
                continue
            if available >= body_at - start:
                self._begin_body(_header(data[header_at:body_at]), end - body_at, data[body_at:])
                return frames
            self._wanted_bytes = body_at - start
            break
        self._held_bytes = available
        if available:
            self._chunks.append(data[start:])
        return frames

    def _begin_body(self, header: Header, size_bytes: int, beginning: bytes) -> None:
        self._header = header
        self._body = bytearray(size_bytes)
        self._body[: len(beginning)] = beginning
        self.room = memoryview(self._body)[len(beginning) :]

    def filled(self, count: int) -> list[Frame]:
        """The frame that is complete now that so many bytes were received into `room`, if it is."""
        assert self.room is not None, "no body is under way"
        if count < len(self.room):
            self.room = self.room[count:]
            return []
        self.room = None
        body, self._body = self._body, bytearray()
        return [(self._header, body)]


def _header(data: bytes) -> Header:
    try:
        text = data.decode("utf-8", "surrogatepass")
        header, end = _from_json(text)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not a frame: its header isn't JSON: {error}") from error
    if end != len(text) or not isinstance(header, dict):
        raise FrameError("not a frame: its header isn't one JSON object")
    return header


def _json_encoder() -> Callable[[Header], str]:
    """Compact JSON. `JSONEncoder.encode` makes a new encoder in C for each call; this keeps one, where there is one."""
    plain = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    encode = make(None, plain.default, json.encoder.encode_basestring, None, ":", ",", False, False, True)
    return lambda header: "".join(encode(header, 0))


_to_json = _json_encoder()
