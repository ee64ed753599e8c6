"""Decides when a client's requests are handled and when its connection ends; by callbacks, without a task for each.

An answer of 400 or more closes the connection, as in DJL Serving. `Connection: close` and HTTP/1.0 are honoured, which
its netty doesn't.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from mme.server.errors import BadRequest, ServerError
from mme.server.exchange import Exchange
from mme.server.parsing import RequestReader

_MAX_WAITING = 8  # requests read ahead of the answer before them
_MAX_WAITING_BYTES = 1 << 20
READ_TIMEOUT_S = 30.0  # for a request's head, and for each pause in its body
BODY_TIMEOUT_S = 600.0  # for the whole of a body
IDLE_TIMEOUT_S = 300.0  # between requests
WRITE_TIMEOUT_S = 60.0  # for a client that doesn't take its answer
_LINGER_S = 2.0  # what a client still sends after a final answer is dropped for so long, or a reset would cost it that

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


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

    def __init__(self, server: Server) -> None:
        self._server = server
        self._now = asyncio.get_running_loop().time
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(self)
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
        messages = self._reader.messages
        try:
            self._reader.feed(data)
        except BadRequest as error:
            self._refuse(error)
        if self._reader.messages != messages:
            self._began = self._touched

    # What the reader calls

    def on_request(
        self, method: str, target: bytes, headers: list[tuple[str, str]], body: bytes, keep_alive: bool, is_1_1: bool
    ) -> None:
        self._owes_continue = False
        exchange = Exchange(self, method, target, headers, body)
        exchange.keep_alive = keep_alive
        exchange.chunkable = is_1_1
        self._enqueue(exchange, None)

    def on_refused(self, answer: bytes) -> None:
        self._enqueue(Exchange(self, "", b"", [], b""), answer)

    def on_expectation(self) -> None:
        if self.is_busy:
            self._owes_continue = True
        else:
            self.write(_CONTINUE)

    # What an exchange calls

    def write(self, data: bytes | bytearray) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def finish(self, exchange: Exchange, head: bytes, body: bytes | bytearray) -> None:
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
        if not self._reader.is_in_message:
            return now > self._touched + IDLE_TIMEOUT_S
        since = self._touched if self._reader.has_head else self._began
        return now > since + READ_TIMEOUT_S or now > self._began + BODY_TIMEOUT_S

    def timed_out(self) -> None:
        """The client stalls: in the midst of its request it is told so, else it is left."""
        if self._reader.is_in_message and self._is_flowing and not self._is_closing:
            self._refuse(RequestTimeout())
        else:
            self.abort()

    def _enqueue(self, exchange: Exchange, prepared: bytes | None) -> None:
        if self._current is None and self._is_flowing and not self._waiting:
            self._start(exchange, prepared)
        else:
            self._waiting.append((exchange, prepared))
            self._flow()

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
        if self._transport is None:
            return
        is_reading = self._is_flowing and len(self._waiting) < _MAX_WAITING
        is_reading = is_reading and sum(len(each.body) for each, _ in self._waiting) < _MAX_WAITING_BYTES
        if is_reading != self._is_reading and not self._is_closing:
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
        exchange = Exchange(self, "", b"", [], b"")
        self._enqueue(exchange, exchange.rendered(error))

    def _close(self) -> None:
        """Close; but leave a client that is still sending a moment to read the answer."""
        transport = self._transport
        if transport is None:
            return
        if (self._is_closing or self._reader.is_in_message) and not self._has_ended:
            self._is_closing = True
            self._is_lingering = True
            self._touched = self._now()
            if not self._is_reading:
                transport.resume_reading()
            transport.write_eof()
        else:
            self._is_closing = True
            transport.close()
