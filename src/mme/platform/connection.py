"""Decides when a client's requests are handled, how far it is read ahead of them, and when it is dropped."""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from mme.platform.messages import Body, ClientGone, Reply, Request
from mme.platform.reading import Head, Refused, RequestReader

if TYPE_CHECKING:
    from mme.platform.front import Front

_READ_AHEAD = 8  # requests of one client that are read before the one before them is answered
_DROPPED_LIMIT_BYTES = 64 << 20  # of the body of a request that was answered; beyond it, closing costs less
_LINGER_S = 2.0  # what a client still sends after its last answer is dropped so long, or a reset would cost it that
_MOST_CONNECTIONS = 4096
_OWN_DESCRIPTORS = 128  # of the platform, beside those of its clients


def _affordable_connections() -> int:
    """As many as this process has descriptors for, one for each client and one for its call."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    affordable = _MOST_CONNECTIONS if limit == resource.RLIM_INFINITY else (limit - _OWN_DESCRIPTORS) // 2
    return max(1, min(affordable, _MOST_CONNECTIONS))


@dataclass(frozen=True)
class Limits:
    """What a client may take of time, in seconds, and how many there may be."""

    head_s: float = 30
    """From a request's first byte to the end of its headers."""
    pause_s: float = 60
    """In each span of this length a body brings, or the reader of an answer takes, `pace_bytes`."""
    pace_bytes: int = 60 * 1024
    idle_s: float = 75
    """Between requests; longer than clients keep an idle connection, so that it is they who close it."""
    connections: int = field(default_factory=_affordable_connections)
    """Beyond them a client is answered 503 at once."""


class Connection(asyncio.Protocol):
    """One client: its requests in order, the next one handled when the one before is answered."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._limits = front.limits
        self._now = asyncio.get_running_loop().time
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(self)
        self._waiting: deque[tuple[Request, Reply]] = deque()  # the first of them is being answered
        self._is_closing = False  # nothing more is read as a request
        self._is_lingering = False
        self.is_reading = True  # not while too much of what was read waits to be used
        self._refusal: Refused | None = None
        self._room: asyncio.Future[None] | None = None  # while the client doesn't take what is written
        self._since = self._now()  # when the head, the span of a body, the silence or the lingering began
        self._span_bytes = 0
        self._dropped_bytes = 0
        self._unsent_bytes = 0
        self._unsent_since: float | None = None

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._front.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._front.connections.discard(self)
        for request, _ in self._waiting:
            if not request.body.has_ended:
                request.body.end(is_broken=True)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def eof_received(self) -> bool:
        """A client may stop sending and still take its answers, unless a request of it is cut short."""
        if self._reader.is_in_message or not self._waiting:
            return False
        self._is_closing = True
        return True

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        reader = self._reader
        messages = reader.messages
        try:
            reader.feed(data)
        except Refused as refusal:
            self._refuse(refusal)
        if reader.is_in_head and reader.messages != messages:
            self._since = self._now()

    # What the reader calls

    def on_request(self, head: Head) -> None:
        path, _, query = head.target.partition("?")
        body = Body(self, head.length, expects_continue=head.expects_continue)
        reply = Reply(self, body, method=head.method, is_1_1=head.is_1_1, keep_alive=head.keep_alive)
        self._waiting.append((Request(head.method, path, query, head.headers, body), reply))
        self._since, self._span_bytes = self._now(), 0
        if len(self._waiting) == 1:
            self._front.start(*self._waiting[0])
        elif len(self._waiting) > _READ_AHEAD:
            self.flow()

    def on_body(self, piece: bytes) -> None:
        request, reply = self._waiting[-1]
        self._span_bytes += len(piece)
        if not reply.is_done:
            request.body.feed(piece)
            if request.body.is_full:
                self.flow()
            return
        self._dropped_bytes += len(piece)
        if self._dropped_bytes > _DROPPED_LIMIT_BYTES:
            self.end()

    def on_message_complete(self) -> None:
        if not self._waiting:
            return  # it was ended while its body was still being dropped
        request, reply = self._waiting[-1]
        request.body.end()
        if not reply.keep_alive:
            self._is_closing = True
        if reply.is_done:
            self._next()

    # What a request and its answer call

    def write(self, data: bytes) -> None:
        if self._transport is None:
            raise ClientGone
        self._transport.write(data)

    async def drained(self) -> None:
        if self._room is not None:
            await self._room
        if self._transport is None:
            raise ClientGone

    def answered(self, reply: Reply) -> None:
        """The answer is complete: go on with the next request, or close."""
        if not reply.keep_alive:
            self.end()
        elif reply.body.has_ended:
            self._next()
        else:
            reply.body.drop()
            self.flow()

    def flow(self) -> None:
        """Read on, unless too much that was read waits to be used."""
        if self._transport is None or self._is_lingering:
            return
        is_reading = len(self._waiting) <= _READ_AHEAD and not (self._waiting and self._waiting[-1][0].body.is_full)
        if is_reading != self.is_reading:
            self.is_reading = is_reading
            self._since, self._span_bytes = self._now(), 0
            if is_reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """Close; but leave a client that is still sending a moment to read the answer."""
        transport = self._transport
        if transport is None or self._is_lingering:
            return
        self._is_closing = self._is_lingering = True
        self._since = self._now()
        self._waiting.clear()
        if self._reader.is_in_message or self._refusal is not None:
            if not self.is_reading:
                transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()

    def check_pace(self, now: float) -> None:
        """Drop a client that lets too much time pass; not one that waits for its answer or that has to wait for us."""
        transport, limits = self._transport, self._limits
        if transport is None:
            return
        unsent_bytes = transport.get_write_buffer_size()
        if self._unsent_since is None or not unsent_bytes or unsent_bytes + limits.pace_bytes <= self._unsent_bytes:
            self._unsent_since, self._unsent_bytes = (now if unsent_bytes else None), unsent_bytes
        elif now > self._unsent_since + limits.pause_s:
            transport.abort()
        if self._is_lingering:
            if now > self._since + _LINGER_S and not unsent_bytes:
                transport.abort()
        elif self._reader.is_in_head:
            if now > self._since + limits.head_s:
                self._refuse(Refused(408, f"the head of a request did not come within {limits.head_s:g} s"))
        elif self._reader.is_in_message:
            if self.is_reading and not self._waiting[-1][0].body.is_held_back and now > self._since + limits.pause_s:
                if self._span_bytes < limits.pace_bytes:
                    self._refuse(Refused(408, f"the body brought next to nothing for {limits.pause_s:g} s"))
                self._since, self._span_bytes = now, 0
        elif not self._waiting and now > self._since + limits.idle_s:
            transport.abort()

    def _next(self) -> None:
        self._waiting.popleft()
        self._dropped_bytes = 0
        self._since = self._now()
        if self._waiting:
            self._front.start(*self._waiting[0])
        elif self._refusal is not None:
            self._tell(self._refusal)
        elif self._is_closing or self._front.is_closing:
            self.end()
        if not self.is_reading:
            self.flow()

    def _refuse(self, refusal: Refused) -> None:
        """Read nothing more; answer what came before, then so."""
        if self._is_closing:
            return
        self._is_closing = True
        self._refusal = refusal
        if self._waiting and not self._waiting[-1][0].body.has_ended:  # it is this one's body that is refused
            request, reply = self._waiting.pop()
            request.body.end(is_broken=True)
            if reply.has_begun:
                self.abort()
            reply.is_done = True
        if not self._waiting:
            self._tell(refusal)

    def _tell(self, refusal: Refused) -> None:
        if self._transport is None:
            return
        text = f"{refusal}\n".encode("latin-1", "replace")
        reply = Reply(self, Body(self, 0, expects_continue=False), method="", is_1_1=True, keep_alive=False)
        reply.whole(refusal.status, [("content-type", "text/plain"), ("content-length", str(len(text)))], text)
