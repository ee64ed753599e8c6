"""Decides how an answer is written: DJL Serving's status lines and headers around what a handler or the server says."""

from __future__ import annotations

import itertools
import random
import re
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol

from mme.server.errors import ServerError

_NO_CACHE = (
    "Pragma: no-cache\r\nCache-Control: no-cache; no-store, must-revalidate, private\r\n"
    "Expires: Thu, 01 Jan 1970 00:00:00 UTC\r\n"
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What the server alone decides; a handler's properties of these names are left out.
_FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive", "x-request-id"))
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {413: "Request Entity Too Large"}
_JSON = (("content-type", "application/json"),)

# A request's id has the form of DJL's UUIDs; a random start for each container, and a count.
_ID_START = str(uuid.uuid4())[:24]
_id_ends = itertools.count(random.getrandbits(47))

Headers = Iterable[tuple[str, str]]


class Wire(Protocol):
    """What an exchange needs of its connection."""

    def write(self, data: bytes | bytearray) -> None: ...
    def finish(self, exchange: Exchange, head: bytes, body: bytes | bytearray) -> None: ...
    def abort(self) -> None: ...


class Exchange:
    """One request, and the way to answer it: `answer` once, or `begin`, `piece`… and `end`.

    If the client leaves first, `on_gone` is called and answering does nothing from then on; where work on the answer
    hasn't begun (`is_waiting`), a client that has stopped sending counts as one that has left. While a client doesn't
    keep up with the pieces, `on_flow(False)` asks to hold them back; `on_flow(True)` ends that, as its leaving does.
    """

    __slots__ = (
        "method", "target", "headers", "body", "request_id", "keep_alive", "chunkable", "is_waiting", "on_gone",
        "on_flow", "_wire",
    )  # fmt: skip

    def __init__(self, wire: Wire, method: str, target: bytes, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.request_id = f"{_ID_START}{next(_id_ends):012x}"
        self.keep_alive = True
        self.chunkable = True
        self.is_waiting = False
        self.on_gone: Callable[[], None] | None = None
        self.on_flow: Callable[[bool], None] | None = None
        self._wire: Wire | None = wire

    def answer(
        self, code: int, body: bytes | bytearray = b"", headers: Headers = (), reason: str | None = None
    ) -> None:
        """The whole answer. What can't stand in a header or a reason phrase is made harmless."""
        wire, self._wire = self._wire, None
        self.on_gone = self.on_flow = None
        if wire is not None:
            has_body = code != HTTPStatus.NO_CONTENT
            head = self._head(code, reason, headers, f"content-length: {len(body)}\r\n" if has_body else "")
            wire.finish(self, head, body if has_body and self.method != "HEAD" else b"")

    def answer_json(self, code: int, body: bytes | bytearray, reason: str | None = None) -> None:
        self.answer(code, body, _JSON, reason)

    def fail(self, error: ServerError) -> None:
        self.answer_json(error.code, error.body(), error.reason)

    def rendered(self, error: ServerError) -> bytes:
        """The bytes of an error that is answered without asking the application; closes the connection."""
        body = error.body()
        return self._head(error.code, error.reason, _JSON, f"content-length: {len(body)}\r\n") + body

    def begin(self, code: int, headers: Headers = (), reason: str | None = None) -> None:
        """The head of an answer whose body follows in pieces."""
        if self._wire is not None:
            self.keep_alive = self.keep_alive and self.chunkable
            framing = "transfer-encoding: chunked\r\n" if self.chunkable else ""
            self._wire.write(self._head(code, reason, headers, framing))

    def piece(self, data: bytes | bytearray) -> None:
        if self._wire is not None and data and self.method != "HEAD":
            self._wire.write(b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if self.chunkable else data)

    def end(self, complete: bool = True) -> None:
        """The last piece has been given. An incomplete body is cut off, so that the client can tell."""
        wire, self._wire = self._wire, None
        self.on_gone = self.on_flow = None
        if wire is not None and complete:
            wire.finish(self, b"0\r\n\r\n" if self.chunkable and self.method != "HEAD" else b"", b"")
        elif wire is not None:
            wire.abort()

    def gone(self) -> None:
        self._wire = None
        on_gone, on_flow, self.on_gone, self.on_flow = self.on_gone, self.on_flow, None, None
        if on_flow is not None:  # what was held back for this client is held back for nobody now
            on_flow(True)
        if on_gone is not None:
            on_gone()

    def _head(self, code: int, reason: str | None, headers: Headers, framing: str) -> bytes:
        if code >= 400:
            self.keep_alive = False
        phrase = _REASONS.get(code, "") if reason is None else _CONTROL.sub(" ", reason)
        lines = [f"HTTP/1.1 {code} {phrase}\r\n"]
        for name, value in headers:
            if name.lower() not in _FRAMING and _TOKEN.fullmatch(name):
                lines.append(f"{name}: {_CONTROL.sub(' ', value)}\r\n")
        connection = "keep-alive" if self.keep_alive else "close"
        lines.append(f"x-request-id: {self.request_id}\r\n{_NO_CACHE}{framing}connection: {connection}\r\n\r\n")
        return "".join(lines).encode("latin-1", "replace")
