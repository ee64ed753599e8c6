"""Decides who is listened to: the connections of one socket, the clock that drops those that stall, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from mme.platform.connection import Connection, Limits
from mme.platform.messages import ClientGone, Reply, Request

log = logging.getLogger(__name__)

_PAUSE_S = 0.1  # before somebody is let in again after descriptors ran out
# As a load balancer of AWS's says it: boto3 reads neither XML nor JSON in a 5xx that is HTML, and may try again.
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
)


class Front:
    """The connections of one listening socket. Belongs to one event loop."""

    def __init__(self, handle: Callable[[Request, Reply], Awaitable[None]], limits: Limits | None = None) -> None:
        """`handle` answers a request; what it raises is logged, and ends the connection of an unanswered client."""
        self.limits = limits or Limits()
        self.is_closing = False
        self.connections: set[Connection] = set()
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def listen(self, listener: socket.socket) -> None:
        listener.listen(1024)
        listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        """Let clients in, one after the other; beyond as many as there may be, each is told so and let go at once."""
        with listener:
            while True:
                try:
                    client, _ = await self._loop.sock_accept(listener)
                    if len(self.connections) < self.limits.connections:
                        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        await self._loop.connect_accepted_socket(lambda: Connection(self), client)
                    else:
                        self._turn_away(client)
                except OSError as error:
                    log.warning("a client cannot be let in: %s", error)
                    await asyncio.sleep(_PAUSE_S)

    def _turn_away(self, client: socket.socket) -> None:
        reason = f"<html>there are {self.limits.connections} connections already; try again later</html>\n".encode()
        with client, contextlib.suppress(OSError):  # it may have left
            client.sendall(_TURNED_AWAY % (len(reason), reason))
            client.shutdown(socket.SHUT_WR)

    async def close(self, grace_s: float) -> None:
        """Accept no more, give requests under way `grace_s` to be answered, then drop all."""
        self.is_closing = True
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        for connection in list(self.connections):
            if not connection.is_busy:
                connection.abort()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.end()
        if self._clock is not None:
            self._clock.cancel()

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._clock is None:
            self._clock = self._loop.call_later(self._tick_s, self._tick)

    @property
    def _tick_s(self) -> float:
        return min(1.0, self.limits.head_s / 4, self.limits.pause_s / 4)

    def _tick(self) -> None:
        now = self._loop.time()
        for connection in list(self.connections):
            connection.check_pace(now)
        self._clock = self._loop.call_later(self._tick_s, self._tick) if self.connections else None

    def start(self, request: Request, reply: Reply) -> None:
        task = self._loop.create_task(self._answer(request, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request, reply: Reply) -> None:
        try:
            await self._handle(request, reply)
        except ClientGone:
            pass  # there is nobody left to be told
        except Exception:
            log.exception("%s %r was not answered to its end", request.method, request.path)
        finally:
            if not reply.is_done:
                reply.broken_off()
