"""Decides what passes between a client's connection and the gateway: a request, its body as it comes, the way back."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

Headers = Iterable[tuple[str, str]]

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_HIGH_WATER_BYTES = 256 * 1024  # of a body that nobody has taken yet; the client then has to wait


class ClientGone(Exception):
    """The caller closed the connection, or was dropped, before its body had come or its answer was taken."""


class BodyTooLarge(Exception):
    pass


class BodyMismatch(Exception):
    """The body that came isn't the one whose digest was signed."""


class Wire(Protocol):
    """What a request and its answer need of their connection."""

    def write(self, data: bytes) -> None: ...
    def flow(self) -> None: ...
    def answered(self, reply: Reply) -> None: ...
    async def drained(self) -> None: ...
    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request as it came: the path percent-encoded, header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Body

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


class Body:
    """The body of a request, read once. What is left of it when the request is answered is read and dropped."""

    __slots__ = (
        "length", "expects_continue", "has_begun", "has_ended", "is_broken", "_wire", "_pieces", "_held", "_more",
        "_digest", "_wanted",
    )  # fmt: skip

    def __init__(self, wire: Wire, length: int | None, *, expects_continue: bool) -> None:
        self.length = length
        """In bytes; None where it comes in chunks."""
        self.expects_continue = expects_continue
        """Whether the client waits for `100 Continue` before it sends anything."""
        self.has_begun = False
        self.has_ended = length == 0
        self.is_broken = False
        self._wire = wire
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._more: asyncio.Future[None] | None = None
        self._digest: Any = None
        self._wanted = ""

    def must_have(self, sha256: str) -> None:
        """Have reading it raise BodyMismatch, before the last of it is handed out, if its digest is another one."""
        self._digest, self._wanted = hashlib.sha256(), sha256

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ClientGone when it ends early, BodyMismatch as `must_have` says."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                was_full = self.is_full
                self._held -= len(piece)
                if was_full:
                    self._wire.flow()
                if self._digest is not None:
                    self._digest.update(piece)
                    self._check_digest()
                yield piece
            if self.is_broken:
                raise ClientGone
            if self.has_ended:
                self._check_digest()
                return
            if self.expects_continue:
                self.expects_continue = False
                if not self.has_begun:
                    self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._more = asyncio.get_running_loop().create_future()
            await self._more

    def _check_digest(self) -> None:
        is_all = self.has_ended and not self._pieces and not self.is_broken
        if self._digest is not None and is_all and self._digest.hexdigest() != self._wanted:
            raise BodyMismatch

    async def whole(self, limit_bytes: int) -> bytes:
        """All of it; raises BodyTooLarge before more than the limit is kept."""
        if self.length is not None and self.length > limit_bytes:
            raise BodyTooLarge
        whole = bytearray()
        async for piece in self.pieces():
            if self.has_ended and not whole and not self._pieces:
                return piece
            whole += piece
            if len(whole) > limit_bytes:
                raise BodyTooLarge
        return bytes(whole)

    @property
    def is_held_back(self) -> bool:
        """Whether it is not the client's fault that nothing comes."""
        return self.expects_continue and not self.has_begun

    @property
    def is_full(self) -> bool:
        return self._held > _HIGH_WATER_BYTES

    def feed(self, piece: bytes) -> None:
        """More of it has come."""
        self.has_begun = True
        self._held += len(piece)
        self._pieces.append(piece)
        self._wake()

    def end(self, *, is_broken: bool = False) -> None:
        """No more will come."""
        self.has_ended, self.is_broken = True, is_broken
        self._wake()

    def drop(self) -> None:
        """Nobody will read it."""
        self._pieces.clear()
        self._held = 0

    def _wake(self) -> None:
        if self._more is not None:
            more, self._more = self._more, None
            if not more.done():
                more.set_result(None)


class Reply:
    """How a request is answered: `whole` once, or `begin`, `piece`… and `end`. Raises ClientGone where nobody is."""

    __slots__ = ("body", "is_done", "has_begun", "keep_alive", "_is_head", "_is_chunkable", "_is_chunked", "_wire")

    def __init__(self, wire: Wire, body: Body, *, method: str, is_1_1: bool, keep_alive: bool) -> None:
        self.body = body
        self.is_done = False
        self.has_begun = False
        self.keep_alive = keep_alive
        self._is_head = method == "HEAD"
        self._is_chunkable = is_1_1
        self._is_chunked = False
        self._wire = wire

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer; `headers` say the body's length."""
        head = self._head(status, headers, "")
        if self._is_head:
            body = b""
        if len(body) < 65536:  # to copy this much costs less than a second write
            self._wire.write(head + body)
        else:
            self._wire.write(head)
            self._wire.write(body)
        self._done()

    async def begin(self, status: int, headers: Headers) -> None:
        """The head of an answer whose body follows in pieces, framed by its content-length or else in chunks."""
        headers = list(headers)
        framing = ""
        if status not in (204, 304) and not any(name == "content-length" for name, _ in headers):
            self._is_chunked = self._is_chunkable
            self.keep_alive = self.keep_alive and self._is_chunkable
            framing = "transfer-encoding: chunked\r\n" if self._is_chunked else ""
        self._wire.write(self._head(status, headers, framing))
        await self._wire.drained()

    async def piece(self, data: bytes) -> None:
        """Returns when the client has taken enough of what was written before."""
        if data and not self._is_head:
            self._wire.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        await self._wire.drained()

    def end(self) -> None:
        if self._is_chunked and not self._is_head:
            self._wire.write(b"0\r\n\r\n")
        self._done()

    def broken_off(self) -> None:
        """Nothing more of the answer will come: the connection ends, so that the client can tell."""
        self.is_done = True
        self._wire.abort()

    def _done(self) -> None:
        self.is_done = True
        self._wire.answered(self)

    def _head(self, status: int, headers: Headers, framing: str) -> bytes:
        assert not self.has_begun
        if self.body.is_held_back and not self.body.has_ended:
            self.keep_alive = False  # whether the body will follow after all, nobody can know
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        text = "".join(lines)
        if text.count("\n") != len(lines) or text.count("\r") != len(lines):
            raise ValueError("a header of the answer holds a line break")
        self.has_begun = True
        connection = "" if self.keep_alive else "connection: close\r\n"
        start = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\ndate: {_date()}\r\n"
        return f"{start}{text}{framing}{connection}\r\n".encode("latin-1", "replace")


_date_at = (0, "")


def _date() -> str:
    global _date_at
    now = int(time.time())
    if now != _date_at[0]:
        _date_at = (now, formatdate(now, usegmt=True))
    return _date_at[1]
