"""Decides which bytes are a request: httptools, with netty's limits and words. No socket, no clock.

A request that offers another protocol (`Upgrade: h2c`) is an ordinary one: none other is spoken here.
"""

from __future__ import annotations

from typing import Protocol

import httptools

from mme.server.errors import BadRequest

MAX_BODY_BYTES = 64 << 20  # DJL's max_request_size
MAX_LINE_BYTES = 4096  # netty's maxInitialLineLength
MAX_HEADER_BYTES = 8192  # netty's maxHeaderSize
_MAX_RAW_BYTES = 4 * MAX_BODY_BYTES  # what is read and dropped of a request that is too large, framing included

# These two are netty's own: without a body, and the connection stays.
_TOO_LARGE = b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\n\r\n"
_EXPECTATION_FAILED = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n"
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"expect"))


class Sink(Protocol):
    """What is told of the requests in a stream."""

    def on_request(
        self, method: str, target: bytes, headers: list[tuple[str, str]], body: bytes, keep_alive: bool, is_1_1: bool
    ) -> None:
        """A whole request. Headers say its length, and nothing of how it was framed or of Expect."""

    def on_refused(self, answer: bytes) -> None:
        """This is the answer to a request that will not be seen; what follows it will be."""

    def on_expectation(self) -> None:
        """The client waits for `100 Continue` before it sends the body."""


class RequestReader:
    """Reads the stream of one client."""

    # Set by `_reset`, for each message.
    method: str
    is_in_message: bool
    has_head: bool
    _target: bytes
    _headers: list[tuple[str, str]]
    _body: bytes | bytearray
    _expectation: bytes
    _framing: bytes
    _upgrade_framing: bytes
    _header_bytes: int
    _raw_bytes: int
    _has_length: bool
    _is_dropped: bool

    def __init__(self, sink: Sink) -> None:
        self.messages = 0  # that have begun
        self._sink = sink
        self._parser = httptools.HttpRequestParser(self)
        self._reset()

    def feed(self, data: bytes) -> None:
        """Raises BadRequest for what isn't HTTP or is beyond the limits; then there is no reading on."""
        if self.is_in_message:
            self._raw_bytes += len(data)
        left: bytes | memoryview = data
        while left:
            try:
                self._parser.feed_data(left)
                break
            except httptools.HttpParserUpgrade as upgrade:
                left = memoryview(left)[upgrade.args[0] or len(left) :]
                if self._upgrade_framing:
                    self._parse_body()
            except httptools.HttpParserError:
                raise BadRequest("Invalid HTTP message.") from None
        limit = _MAX_RAW_BYTES if self.has_head else MAX_LINE_BYTES + MAX_HEADER_BYTES
        if self.is_in_message and self._raw_bytes > limit:
            raise BadRequest("Invalid HTTP message.")

    def _parse_body(self) -> None:
        """The parser takes a request that offers another protocol to end with its head: let one read its body."""
        framing, self._upgrade_framing = self._upgrade_framing, b""
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")

    # What the parser calls; an exception makes it a bad request

    def on_message_begin(self) -> None:
        if not self.has_head:
            self.is_in_message = True
            self.messages += 1

    def on_url(self, url: bytes) -> None:
        if not self.has_head:
            self._target += url
            if len(self._target) > MAX_LINE_BYTES:
                raise ValueError("the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("the headers are too long")
        if self.has_head:
            return  # a trailer
        lower = name.lower()
        if lower in _FRAMING:
            if lower == b"expect":
                self._expectation = value.lower()
                return
            self._framing = name + b": " + value
            if lower == b"transfer-encoding":
                return
            self._has_length = True
            self._is_dropped = int(value) > MAX_BODY_BYTES
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if self.has_head:
            return
        self.has_head = True
        self.method = self._parser.get_method().decode()
        if self._parser.should_upgrade():
            self._upgrade_framing = self._framing
        if self._is_dropped:
            self._sink.on_refused(_TOO_LARGE)
        elif self._expectation == b"100-continue":
            self._sink.on_expectation()
        elif self._expectation:
            self._is_dropped = True
            self._sink.on_refused(_EXPECTATION_FAILED)

    def on_body(self, body: bytes) -> None:
        if self._is_dropped:
            return
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            self._is_dropped = True
            self._sink.on_refused(_TOO_LARGE)

    def on_message_complete(self) -> None:
        if self._upgrade_framing:
            return
        method, target, headers, body = self.method, self._target, self._headers, bytes(self._body)
        is_dropped, has_length = self._is_dropped, self._has_length
        self._reset()
        if not is_dropped:
            if not has_length:
                headers.append(("content-length", str(len(body))))
            is_1_1 = self._parser.get_http_version() == "1.1"
            self._sink.on_request(method, target, headers, body, self._parser.should_keep_alive(), is_1_1)

    def _reset(self) -> None:
        self.method = ""
        self.is_in_message = self.has_head = self._has_length = self._is_dropped = False
        self._target = self._body = self._expectation = self._framing = self._upgrade_framing = b""
        self._headers = []
        self._header_bytes = self._raw_bytes = 0
