"""Decides which bytes are a request, and which are refused before anybody sees them. No socket, no clock.

llhttp, by httptools, reads HTTP/1 and is strict: two lengths, a length beside chunks, folded lines, bare line feeds and
NULs are no HTTP to it. Beyond that a request here has one Host, a path as its target, and no coding but chunked.
"""

from __future__ import annotations

from typing import Protocol

import httptools

MAX_HEAD_BYTES = 64 * 1024  # the request line and the headers together; a signed address of S3's may have 8 KB
MAX_HEADERS = 200


class Refused(Exception):
    """A request that nobody will see; the connection ends with this answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Head:
    """A request without its body. The target is percent-encoded, header names are in lower case, values joined."""

    __slots__ = ("method", "target", "headers", "length", "expects_continue", "keep_alive", "is_1_1")

    method: str
    target: str
    headers: dict[str, str]
    length: int | None
    """Of the body in bytes; None where it comes in chunks."""
    expects_continue: bool
    keep_alive: bool
    is_1_1: bool


class Sink(Protocol):
    """What is told of the requests in a stream."""

    def on_request(self, head: Head) -> None: ...
    def on_body(self, piece: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class RequestReader:
    """Reads the stream of one client."""

    def __init__(self, sink: Sink) -> None:
        self.is_in_head = False
        self.is_in_message = False
        self.messages = 0  # that have begun
        self._sink = sink
        self.on_body = sink.on_body  # the parser looks for it when it is made
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0

    def feed(self, data: bytes) -> None:
        """Raises Refused; then there is no reading on."""
        was_in_head = self.is_in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Refused(501, "no protocol but HTTP/1.1 is spoken here") from None
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Refused):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError as error:
            raise Refused(400, str(error)) from None
        if was_in_head and self.is_in_head:
            self._count(len(data))  # the parser says nothing of a header before its end

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise Refused(431, f"the request line and the headers are longer than {MAX_HEAD_BYTES} bytes")

    # What the parser calls

    def on_message_begin(self) -> None:
        self.is_in_head = self.is_in_message = True
        self.messages += 1

    def on_url(self, piece: bytes) -> None:
        self._target += piece
        self._count(len(piece))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if not self.is_in_head:
            return  # a trailer
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in self._headers:
            if key == "host":
                raise Refused(400, "a request has one Host, and this one has two")
            text = f"{self._headers[key]},{text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        self.is_in_head = False
        head = Head()
        head.headers = headers = self._headers
        if len(headers) > MAX_HEADERS:
            raise Refused(431, f"the request has more than {MAX_HEADERS} headers")
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refused(505, f"HTTP/{version} is not spoken here")
        head.is_1_1 = version == "1.1"
        if "upgrade" in headers and self._parser.should_upgrade():
            raise Refused(501, "no protocol but HTTP/1.1 is spoken here")
        if "host" not in headers:
            raise Refused(400, "a request has one Host, and this one has none")
        if self._target[:1] != b"/" or b"#" in self._target:
            raise Refused(400, "the target of a request is a path here")
        head.target = self._target.decode("latin-1")
        head.method = self._parser.get_method().decode("latin-1")
        head.keep_alive = self._parser.should_keep_alive()
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or not head.is_1_1:
                raise Refused(501, "no transfer coding but chunked is understood, and that in HTTP/1.1")
            head.length = None
        else:
            head.length = int(headers.get("content-length", 0))
        head.expects_continue = False
        if "expect" in headers:
            if headers["expect"].lower() != "100-continue":
                raise Refused(417, "no expectation but 100-continue is understood")
            head.expects_continue = head.is_1_1
        self._begin()
        self._sink.on_request(head)

    def on_message_complete(self) -> None:
        self.is_in_message = False
        self._begin()
        self._sink.on_message_complete()
