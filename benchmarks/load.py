"""Decides how load is made and timed: each of n keep-alive connections asks again as soon as it has its answer.

One thread, blocking sockets and one selector; answers are parsed by httptools. `client_cpu` shows what that takes of a
core: near 1.0, the client was the limit and not the server.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httptools

_RECEIVE_BYTES = 1 << 18
_MAX_ERRORS = 100  # then it is given up: a server that refuses calls isn't measured


class Disconnected(Exception):
    """The server closed the connection before its answer was whole."""


def request(
    method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = (), host: str = "127.0.0.1"
) -> bytes:
    """An HTTP/1.1 request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.append(f"Host: {host}")
    lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Connection:
    """One keep-alive connection to a port of this machine."""

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self.stays = True
        """May another request follow the answer that came?"""

    def send(self, data: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._is_whole = False
        self.began = time.perf_counter()
        self.socket.sendall(data)

    def receive(self) -> tuple[int, bytes] | None:
        """Read what is there: status and body once the answer is whole, else None. Raises Disconnected, OSError."""
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise Disconnected("the server closed the connection")
        self._parser.feed_data(data)
        return (self._parser.get_status_code(), b"".join(self._body)) if self._is_whole else None

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """Send a request and wait for its answer."""
        self.send(data)
        while True:
            answer = self.receive()
            if answer is not None:
                return answer

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._is_whole = True
        self.stays = self._parser.should_keep_alive()  # the parser knows it now only

    def close(self) -> None:
        self.socket.close()


@dataclass(frozen=True)
class Result:
    """What a load came to. Latencies are those of right answers, `rps` counts only these."""

    calls: int
    errors: int
    seconds: float
    rps: float
    p50_ms: float | None
    p99_ms: float | None
    client_cpu: float
    first_error: str | None

    def as_record(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


class _Run:
    def __init__(self, port: int, requests: Sequence[bytes], expect: bytes, seconds: float, calls: int | None) -> None:
        self.port, self.requests, self.expect, self.calls = port, requests, expect, calls
        self.until = time.perf_counter() + seconds
        self.sent = 0
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self.selector = selectors.DefaultSelector()

    def next(self, connection: Connection | None) -> None:
        """Send the next request, over a new connection if this one can't be used; after the end, close it."""
        is_over = self.sent == self.calls or time.perf_counter() >= self.until
        if is_over or len(self.errors) >= _MAX_ERRORS:
            if connection is not None:
                self.drop(connection)
            return
        try:
            if connection is None:
                connection = Connection(self.port)
                self.selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(self.requests[self.sent % len(self.requests)])
            self.sent += 1
        except OSError as error:
            self.failed(connection, error)

    def failed(self, connection: Connection | None, error: Exception) -> None:
        self.errors.append(str(error))
        if connection is not None:
            self.drop(connection)
        self.next(None)

    def drop(self, connection: Connection) -> None:
        self.selector.unregister(connection.socket)
        connection.close()

    def came(self, connection: Connection) -> None:
        try:
            answer = connection.receive()
        except (OSError, Disconnected, httptools.HttpParserError) as error:
            self.failed(connection, error)
            return
        if answer is None:
            return
        took = time.perf_counter() - connection.began
        status, body = answer
        if 200 <= status < 300 and self.expect in body:
            self.latencies.append(took)
        else:
            self.errors.append(f"{status} {body[:200].decode(errors='replace')}")
        if connection.stays:
            self.next(connection)
        else:
            self.drop(connection)
            self.next(None)


def run(
    port: int,
    requests: Sequence[bytes],
    *,
    concurrency: int,
    seconds: float,
    calls: int | None = None,
    expect: bytes = b"",
    grace_s: float = 20,
) -> Result:
    """Ask in turn what `requests` hold, `concurrency` at a time, for `seconds` or until `calls` were sent.

    Calls under way may end after that.
    An error is an answer whose status isn't 2xx or whose body lacks `expect`, a lost connection, and an answer that
    didn't come within `grace_s` after the end.
    """
    going = _Run(port, requests, expect, seconds, calls)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(concurrency):
        going.next(None)
    while going.selector.get_map():
        if time.perf_counter() > going.until + grace_s:
            for key in list(going.selector.get_map().values()):
                going.errors.append(f"no answer within {grace_s:g} s after the end")
                going.drop(key.data)
            break
        for key, _ in going.selector.select(1.0):
            going.came(key.data)
    took = time.perf_counter() - began
    ordered = sorted(going.latencies)
    return Result(
        calls=len(ordered),
        errors=len(going.errors),
        seconds=took,
        rps=len(ordered) / took,
        p50_ms=1000 * statistics.median(ordered) if ordered else None,
        p99_ms=1000 * ordered[int(0.99 * (len(ordered) - 1))] if ordered else None,
        client_cpu=(time.process_time() - cpu) / took,
        first_error=going.errors[0] if going.errors else None,
    )
