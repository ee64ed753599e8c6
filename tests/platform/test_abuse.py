"""What is no HTTP, or not the one meant, gets one refusal from either server and its connection's end: RFC 9112, 11."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import container
import pytest

import mme.server.http
from mme.platform.connection import Limits
from mme.platform.front import Front
from mme.platform.launch import Running
from mme.platform.messages import Reply, Request
from mme.server.exchange import Exchange

ANSWER_S = 60.0


@dataclass(frozen=True)
class Target:
    """A server under abuse, and a path that it answers with 200."""

    address: tuple[str, int]
    ping: bytes

    def send(self, *pieces: bytes, is_half_closed: bool = False) -> bytes:
        """All that comes back until the server closes; a server that doesn't is a TimeoutError."""
        received = b""
        with socket.create_connection(self.address, timeout=ANSWER_S) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    connection.sendall(piece)
                if is_half_closed:
                    connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # what came before a reset is still there to be read
                while more := connection.recv(65536):
                    received += more
        return received

    def get(self, *lines: bytes) -> bytes:
        return b"\r\n".join((b"GET %b HTTP/1.1" % self.ping, b"Host: 127.0.0.1", *lines, b"", b""))


def statuses(received: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.fixture(scope="module")
def embedded() -> Iterator[Target]:
    with container.embedded() as running:
        yield Target(running.address, b"/ping")


@pytest.fixture(params=["the gateway", "the model server"])
def target(request: pytest.FixtureRequest) -> Target:
    if request.param == "the model server":
        server: Target = request.getfixturevalue("embedded")
        return server
    platform: Running = request.getfixturevalue("platform")
    return Target(("127.0.0.1", int(platform.url.rpartition(":")[2])), b"/_mme/ping")


HIDDEN = b"GET PING HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED: dict[str, bytes] = {
    "a length beside chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunks beside a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + HIDDEN,
    "the same length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "a list of lengths": POST + b"Content-Length: 0, 40\r\n\r\n" + HIDDEN,
    "a length with a sign": POST + b"Content-Length: +0\r\n\r\n" + HIDDEN,
    "a length below nothing": POST + b"Content-Length: -1\r\n\r\n" + HIDDEN,
    "a length in hexadecimal": POST + b"Content-Length: 0x2\r\n\r\nab",
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 40\r\n\r\n" + HIDDEN,
    "a coding that is not chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked, and then another coding": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two codings in two lines": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a coding hidden by a tab": POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a folded line": POST + b"X-A: b\r\n Content-Length: 40\r\n\r\n" + HIDDEN,
    "a bare line feed after the request line": b"GET PING HTTP/1.1\nHost: 127.0.0.1\r\n\r\n",
    "a bare line feed after a header": POST + b"X-A: b\nContent-Length: 40\r\n\r\n" + HIDDEN,
    "a bare carriage return in a header": POST + b"X-A: b\rContent-Length: 40\r\n\r\n" + HIDDEN,
    "a NUL in a value": POST + b"X-A: a\0b\r\n\r\n",
    "a NUL in a name": POST + b"X\0A: ab\r\n\r\n",
    "a NUL in the target": b"GET /a\0b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a header without a colon": POST + b"Content-Length\r\n\r\n",
    "a header without a name": POST + b": a\r\n\r\n",
    "a tab in the request line": b"GET\tPING\tHTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a version to come": b"GET PING HTTP/1.2\r\nHost: 127.0.0.1\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a request line without end": b"GET /" + b"a" * 300_000,
    "a header without end": POST + b"X-A: " + b"a" * 300_000,
    "a header that is too long": POST + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n",
    "a hundred thousand headers": POST + b"".join(b"X-%d: a\r\n" % number for number in range(100_000)) + b"\r\n",
    "a chunk size below nothing": CHUNKED + b"-1\r\n\r\n" + HIDDEN,
    "a chunk size beyond 64 bits": CHUNKED + b"fffffffffffffffff\r\n" + HIDDEN,
    "a chunk size with 0x": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n" + HIDDEN,
    "a chunk size with a space": CHUNKED + b"2 \r\nab\r\n0\r\n\r\n",
    "a chunk size and a bare line feed": CHUNKED + b"2\nab\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"2\r\nabcd\r\n0\r\n\r\n" + HIDDEN,
    "no chunk size": CHUNKED + b"\r\n0\r\n\r\n",
    "an expectation that nobody meets": POST + b"Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_once_and_nothing_after_it_is_read(target: Target, name: str) -> None:
    sent = REFUSED[name].replace(b"PING", target.ping)
    received = target.send(sent, is_half_closed=name == "an expectation that nobody meets")
    assert len(statuses(received)) == 1, received
    assert statuses(received)[0] in (400, 413, 417, 431, 501, 505), received
    assert b"/src/" not in received and b"Traceback" not in received


@pytest.mark.parametrize("line", [b"GET http://127.0.0.1/a HTTP/1.1", b"CONNECT a:1 HTTP/1.1"])
def test_a_target_that_is_no_path_opens_nothing(target: Target, line: bytes) -> None:
    received = target.send(line + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", is_half_closed=True)
    assert len(statuses(received)) <= 1 and statuses(received) != [200], received


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /_mme/ping HTTP/1.1\r\n\r\n", 400),
        (b"GET /_mme/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET /_mme/ping\r\n\r\n", 505),
        (b"GET /_mme/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 501),
    ],
)
def test_the_gateway_takes_less_than_the_model_server_must(platform: Running, sent: bytes, status: int) -> None:
    assert statuses(Target(("127.0.0.1", int(platform.url.rpartition(":")[2])), b"").send(sent)) == [status]


def test_requests_in_a_row_are_answered_in_order(target: Target) -> None:
    requests = [target.get(), target.get(), target.get(b"Connection: close")]
    assert statuses(target.send(b"".join(requests))) == [200, 200, 200]
    assert statuses(target.send(*(b"%c" % byte for byte in b"".join(requests)))) == [200, 200, 200]


def test_what_follows_the_last_request_of_a_connection_is_not_read(target: Target) -> None:
    assert statuses(target.send(target.get(b"Connection: close"), target.get())) == [200]


def test_a_client_that_has_said_all_still_gets_its_answers(target: Target) -> None:
    assert statuses(target.send(target.get(), target.get(), is_half_closed=True)) == [200, 200]


def test_a_request_cut_short_is_not_answered_as_a_whole_one(target: Target) -> None:
    for sent in (target.get()[:-2], POST + b"Content-Length: 9\r\n\r\nabc", CHUNKED + b"3\r\nab"):
        assert 200 not in statuses(target.send(sent, is_half_closed=True))


def test_an_old_client_is_answered_and_left(target: Target) -> None:
    assert statuses(target.send(b"GET %b HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n" % target.ping)) == [200]


def test_chunks_with_extensions_and_trailers_are_read_as_their_bytes(target: Target) -> None:
    body = b"1;a=b\r\na\r\n1\r\nb\r\n0\r\nX-Trailer: c\r\n\r\n"
    received = target.send(CHUNKED + body + target.get(b"Connection: close"), is_half_closed=True)
    assert statuses(received)[0] != 200 and len(statuses(received)) <= 2


def test_a_thousand_connections_that_say_nothing_keep_nobody_out(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(900):
            stack.enter_context(socket.create_connection(target.address, timeout=ANSWER_S))
        assert statuses(target.send(target.get(b"Connection: close"))) == [200]


async def _gateway(request: Request, reply: Reply) -> None:
    body = await request.body.whole(1 << 20)
    reply.whole(200, [("content-length", str(len(body)))], body)


def _model_server(exchange: Exchange) -> None:
    exchange.answer(200, exchange.body)


@contextlib.asynccontextmanager
async def impatient(kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the two servers with time limits of a fraction of a second; its port."""
    if kind == "the gateway":
        limits = Limits(head_s=0.2, pause_s=0.2, pace_bytes=1024, idle_s=0.2)
        front = Front(_gateway, limits)
        listener = socket.create_server(("127.0.0.1", 0))
        await front.listen(listener)
        yield listener.getsockname()[1], front
        await front.close(0)
    else:
        for name in ("READ_TIMEOUT_S", "IDLE_TIMEOUT_S", "WRITE_TIMEOUT_S"):
            monkeypatch.setattr(mme.server.http, name, 0.2)
        server = mme.server.http.Server(_model_server)
        yield await server.listen("127.0.0.1", 0), server
        await server.close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["the gateway", "the model server"])
@pytest.mark.parametrize(
    ("begin", "drop", "status"),
    [
        (b"", b"", None),
        (b"POST /a", b"a", 408),
        (POST, b"X-A: b\r\n", 408),
        (POST + b"Content-Length: 1000000\r\n\r\n", b"", 408),
        (CHUNKED, b"", 408),
    ],
)
async def test_a_client_that_lets_time_pass_is_dropped(
    kind: str, begin: bytes, drop: bytes, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(ANSWER_S), impatient(kind, monkeypatch) as (port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        received = asyncio.create_task(reader.read())
        while not received.done():  # a header's worth now and then keeps no connection open
            await asyncio.sleep(0.05)
            if drop and kind == "the gateway":
                writer.write(drop)
        with contextlib.suppress(ConnectionResetError):
            assert statuses(await received) == ([] if status is None else [status])
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()
        while server.connections:
            await asyncio.sleep(0.01)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["the gateway", "the model server"])
async def test_a_client_that_does_not_take_its_answer_is_dropped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(ANSWER_S), impatient(kind, monkeypatch) as (port, server):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.settimeout(0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = bytes(1_000_000)
        request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while True:  # one after the other, as long as they are taken, and never an answer read
                await asyncio.get_running_loop().sock_sendall(connection, request)
        while server.connections:
            await asyncio.sleep(0.01)
        connection.close()
