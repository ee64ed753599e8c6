"""Decides how bytes on a connection become requests: HTTP/1.1 on httptools, one at a time, without a task for each.

What DJL Serving's netty does is kept: its limits, its words for what isn't HTTP, and that an answer of 400 or more
closes the connection. `Connection: close` and HTTP/1.0 are honoured, which netty doesn't.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from mme.server.errors import BadRequest, ServerError
from mme.server.exchange import Exchange

MAX_BODY_BYTES = 64 << 20  # DJL's max_request_size
MAX_LINE_BYTES = 4096  # netty's maxInitialLineLength
MAX_HEADER_BYTES = 8192  # netty's maxHeaderSize
_MAX_RAW_BYTES = 4 * MAX_BODY_BYTES  # what is read and dropped of a request that is too large, framing included
_MAX_WAITING = 8  # requests read ahead of the answer before them
_MAX_WAITING_BYTES = 1 << 20
READ_TIMEOUT_S = 30.0  # for a request's head, and for each pause in its body
BODY_TIMEOUT_S = 600.0  # for the whole of a body
IDLE_TIMEOUT_S = 300.0  # between requests
WRITE_TIMEOUT_S = 60.0  # for a client that doesn't take its answer
_LINGER_S = 2.0  # what a client still sends after a final answer is dropped for so long, or a reset would cost it that

_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"expect"))
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# These two are netty's own: without a body, and the connection stays.
_TOO_LARGE = b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\n\r\n"
_EXPECTATION_FAILED = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n"


class RequestTimeout(ServerError):
    code = 408
    type = "BadRequestException"

    def __init__(self) -> None:
        super().__init__(f"The request paused for more than {READ_TIMEOUT_S:.0f} seconds.")


class Server:
    """The connections of one listening socket, and the clock that ends those that stall."""

    def __init__(self, handle: Callable[[Exchange], None]) -> None:
        """`handle` is called with each request, must not raise, and may answer then or later."""
        self.handle = handle
        self.connections: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._clock: asyncio.TimerHandle | None = None
        self._listener: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Accept connections. Returns the port, which the system chooses for port 0; raises OSError."""
        self._listener = await self._loop.create_server(lambda: Connection(self), host, port, backlog=1024)
        return int(self._listener.sockets[0].getsockname()[1])

    async def close(self, drain_s: float = 0) -> None:
        """Accept no more, let requests under way finish for up to `drain_s`, and close."""
        if self._listener is not None:
            self._listener.close()
        deadline = self._loop.time() + drain_s
        while any(connection.is_busy for connection in self.connections) and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
        if self._clock is not None:
            self._clock.cancel()

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._clock is None:
            self._clock = self._loop.call_later(1, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        for connection in [each for each in self.connections if each.is_late(now)]:
            connection.timed_out()
        self._clock = self._loop.call_later(1, self._tick) if self.connections else None


class Connection(asyncio.Protocol):
    """One client: hands its requests on in order, the next when the one before is answered, and writes the answers."""

    _header_bytes: int
    _body_bytes: int
    _raw_bytes: int
    _is_in_message: bool
    _has_head: bool
    _has_length: bool
    _is_dropped: bool

    def __init__(self, server: Server) -> None:
        self._server = server
        self._now = asyncio.get_running_loop().time
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._current: Exchange | None = None
        self._waiting: deque[tuple[Exchange, bytes | None]] = deque()
        self._is_advancing = False
        self._is_closing = False  # nothing more is read as a request
        self._has_ended = False  # the client sends nothing more
        self._is_flowing = True  # the client takes what is written
        self._is_reading = True
        self._owes_continue = False
        self._is_lingering = False
        self._began = self._touched = 0.0  # when the message began, and when something last happened
        self._reset()

    @property
    def is_busy(self) -> bool:
        return self._current is not None or bool(self._waiting)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._touched = self._now()
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        self._waiting.clear()
        if self._current is not None:
            exchange, self._current = self._current, None
            exchange.gone()

    def eof_received(self) -> bool:
        """A client may stop sending and still take an answer; but no worker begins for one that may have left."""
        self._has_ended = self._is_closing = True
        return self.is_busy and not (self._current is not None and self._current.is_waiting)

    def pause_writing(self) -> None:
        self._is_flowing = False
        self._touched = self._now()
        self._flow()

    def resume_writing(self) -> None:
        self._is_flowing = True
        self._touched = self._now()
        self._flow()
        self._next()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._touched = self._now()
        if self._is_in_message:
            self._raw_bytes += len(data)
        left: bytes | memoryview = data
        while left:
            try:
                self._parser.feed_data(left)
                break
            except httptools.HttpParserUpgrade as upgrade:
                left = memoryview(left)[upgrade.args[0] or len(left) :]
                if self._upgrade_body:
                    self._parse_body()
            except httptools.HttpParserError:
                self._refuse(BadRequest("Invalid HTTP message."))
                return
        if self._is_in_message:
            if not self._has_head and self._raw_bytes > MAX_LINE_BYTES + MAX_HEADER_BYTES:
                self._refuse(BadRequest("Invalid HTTP message."))
            elif self._raw_bytes > _MAX_RAW_BYTES:
                self.abort()

    # What the parser calls; an exception makes it a bad request

    def on_message_begin(self) -> None:
        if self._has_head:
            return
        self._is_in_message = True
        self._began = self._touched

    def on_url(self, url: bytes) -> None:
        if self._has_head:
            return
        self._target += url
        if len(self._target) > MAX_LINE_BYTES:
            raise ValueError("the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("the headers are too long")
        if self._has_head:
            return  # a trailer
        lower = name.lower()
        if lower not in _FRAMING:
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        elif lower == b"content-length":
            self._has_length = True
            self._is_dropped = int(value) > MAX_BODY_BYTES
            self._framing = b"content-length: " + value
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))
        elif lower == b"expect":
            self._expectation = value.lower()
        else:
            self._framing = b"transfer-encoding: " + value

    def on_headers_complete(self) -> None:
        if self._has_head:
            return
        self._has_head = True
        self._method = self._parser.get_method().decode()
        if self._parser.should_upgrade():
            self._upgrade_body = self._framing
        if self._is_dropped:
            self._enqueue_prepared(_TOO_LARGE)
        elif self._expectation:
            if self._expectation != b"100-continue":
                self._is_dropped = True
                self._enqueue_prepared(_EXPECTATION_FAILED)
            elif self.is_busy:
                self._owes_continue = True
            else:
                self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._is_dropped:
            return
        self._body_bytes += len(body)
        self._body.append(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._is_dropped = True
            self._body.clear()
            self._enqueue_prepared(_TOO_LARGE)

    def on_message_complete(self) -> None:
        if self._upgrade_body:
            return
        self._owes_continue = False
        if not self._is_dropped:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            if not self._has_length:
                self._headers.append(("content-length", str(len(body))))
            exchange = Exchange(self, self._method, self._target, self._headers, body)
            exchange.keep_alive = self._parser.should_keep_alive()
            exchange.chunkable = self._parser.get_http_version() == "1.1"
            self._reset()
            self._enqueue(exchange, None)
        else:
            self._reset()

    # What an exchange calls

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def finish(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        """The answer is complete: go on with the next request, or close."""
        if self._transport is None:
            return
        if len(body) < 65536:  # to copy this much costs less than a second write
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        self._current = None
        if not exchange.keep_alive or (self._has_ended and not self._waiting):
            self._waiting.clear()
            self._close()
        else:
            self._touched = self._now()
            if self._waiting or self._owes_continue or not self._is_reading:
                self._next()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def is_late(self, now: float) -> bool:
        """Has the client let too much time pass? One that waits for its answer hasn't."""
        if self._is_lingering:
            return now > self._touched + _LINGER_S
        if not self._is_flowing:
            return now > self._touched + WRITE_TIMEOUT_S
        if self.is_busy:
            return False
        if not self._is_in_message:
            return now > self._touched + IDLE_TIMEOUT_S
        since = self._touched if self._has_head else self._began
        return now > since + READ_TIMEOUT_S or now > self._began + BODY_TIMEOUT_S

    def timed_out(self) -> None:
        """The client stalls: in the midst of its request it is told so, else it is left."""
        if self._is_in_message and self._is_flowing and not self._is_closing:
            self._refuse(RequestTimeout())
        else:
            self.abort()

    def _reset(self) -> None:
        self._method = ""
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._expectation = self._framing = self._upgrade_body = b""
        self._header_bytes = self._body_bytes = self._raw_bytes = 0
        self._is_in_message = self._has_head = self._has_length = self._is_dropped = False

    def _parse_body(self) -> None:
        """The parser leaves a request that offers another protocol after its head; go on to the body, in this one."""
        framing, self._upgrade_body = self._upgrade_body, b""
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")

    def _enqueue(self, exchange: Exchange, prepared: bytes | None) -> None:
        if self._current is None and self._is_flowing and not self._waiting:
            self._start(exchange, prepared)
        else:
            self._waiting.append((exchange, prepared))
            self._flow()

    def _enqueue_prepared(self, answer: bytes, keep_alive: bool = True) -> None:
        exchange = Exchange(self, "", b"", [], b"")
        exchange.keep_alive = keep_alive
        self._enqueue(exchange, answer)

    def _start(self, exchange: Exchange, prepared: bytes | None) -> None:
        self._current = exchange
        if prepared is None:
            self._server.handle(exchange)
        else:
            self.finish(exchange, prepared, b"")

    def _next(self) -> None:
        if self._is_advancing:
            return
        self._is_advancing = True
        while self._waiting and self._current is None and self._is_flowing:
            self._start(*self._waiting.popleft())
        self._is_advancing = False
        if self._owes_continue and not self.is_busy:
            self._owes_continue = False
            self.write(_CONTINUE)
        if not self._is_reading:
            self._flow()

    def _flow(self) -> None:
        """Read no further ahead than a few requests, and not while the client doesn't take its answers."""
        if self._transport is None or self._is_closing:
            return
        is_reading = self._is_flowing and len(self._waiting) < _MAX_WAITING
        is_reading = is_reading and sum(len(each.body) for each, _ in self._waiting) < _MAX_WAITING_BYTES
        if is_reading != self._is_reading:
            self._is_reading = is_reading
            if is_reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
        if self._current is not None and self._current.on_flow is not None:
            self._current.on_flow(self._is_flowing)

    def _refuse(self, error: ServerError) -> None:
        """Answer what was asked before, then this error, and read nothing more."""
        self._is_closing = True
        self._reset()
        exchange = Exchange(self, "", b"", [], b"")
        self._enqueue(exchange, exchange.rendered(error))

    def _close(self) -> None:
        """Close; but leave a client that is still sending a moment to read the answer."""
        transport = self._transport
        if transport is None:
            return
        if (self._is_closing or self._is_in_message) and not self._has_ended:
            self._is_closing = True
            self._is_lingering = True
            self._touched = self._now()
            if not self._is_reading:
                transport.resume_reading()
            transport.write_eof()
        else:
            self._is_closing = True
            transport.close()
