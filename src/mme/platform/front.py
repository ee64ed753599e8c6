"""Decides who is listened to: the connections of one socket, the clock that drops those that stall, and their end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from mme.platform.connection import Connection, Limits
from mme.platform.messages import ClientGone, Reply, Request

log = logging.getLogger(__name__)


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
        self._listener: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def listen(self, listener: socket.socket) -> None:
        self._listener = await self._loop.create_server(lambda: Connection(self), sock=listener, backlog=1024)

    async def close(self, grace_s: float) -> None:
        """Accept no more, give requests under way `grace_s` to be answered, then drop all."""
        self.is_closing = True
        if self._listener is not None:
            self._listener.close()
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
