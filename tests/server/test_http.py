from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from mme.server import http, parsing
from mme.server.errors import JavaFailure
from mme.server.exchange import Exchange

Talk = Callable[["Peer"], Awaitable[None]]
DEADLINE_S = 60.0


class Peer:
    """One client connection, its bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: http.Server) -> None:
        self.reader, self.writer, self.server = reader, writer, server

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), DEADLINE_S)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        return await asyncio.wait_for(self.reader.read(), DEADLINE_S)

    async def answer(self) -> tuple[bytes, bytes]:
        """The status line and the body of one answer that tells its length."""
        head = await self.until(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
        return head.split(b"\r\n")[0], await asyncio.wait_for(self.reader.readexactly(length), DEADLINE_S)


def converse(handle: Callable[[Exchange], None], talk: Talk) -> None:
    """Run a server with this handler, and talk to it over a socket."""

    async def run() -> None:
        server = http.Server(handle)
        port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 27)
        try:
            await talk(Peer(reader, writer, server))
        finally:
            writer.close()
            await server.close()

    uvloop.run(run())


def echo(exchange: Exchange) -> None:
    exchange.answer(200, b"%s %s %s" % (exchange.method.encode(), exchange.target, exchange.body))


def post(body: bytes, *headers: bytes) -> bytes:
    return b"".join(
        (
            b"POST /x HTTP/1.1\r\n",
            *(header + b"\r\n" for header in headers),
            b"content-length: %d\r\n\r\n" % len(body),
            body,
        )
    )


def test_an_answer_has_djls_headers_and_the_connection_stays() -> None:
    async def talk(peer: Peer) -> None:
        for _ in range(2):
            peer.send(post(b"abc"))
            head = (await peer.until(b"\r\n\r\n")).decode()
            assert await peer.reader.readexactly(11) == b"POST /x abc"
            lines = head.split("\r\n")
            assert lines[0] == "HTTP/1.1 200 OK"
            assert lines[1].startswith("x-request-id: ") and len(lines[1]) == 14 + 36
            assert lines[2:] == [
                "Pragma: no-cache",
                "Cache-Control: no-cache; no-store, must-revalidate, private",
                "Expires: Thu, 01 Jan 1970 00:00:00 UTC",
                "content-length: 11",
                "connection: keep-alive",
                "",
                "",
            ]

    converse(echo, talk)


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    waiting: list[Exchange] = []

    def handle(exchange: Exchange) -> None:
        if exchange.body == b"slow":
            waiting.append(exchange)
        else:
            echo(exchange)

    async def talk(peer: Peer) -> None:
        peer.send(post(b"slow") + b"".join(post(b"%d" % number) for number in range(2000)))
        await asyncio.sleep(0)
        while not waiting:
            await asyncio.sleep(0.001)
        assert len(waiting) == 1
        waiting[0].answer(200, b"first")
        assert (await peer.answer())[1] == b"first"
        for number in range(2000):
            assert (await peer.answer())[1] == b"POST /x %d" % number

    converse(handle, talk)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_request_may_come_in_any_pieces(step: int) -> None:
    chunked = (
        b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;e=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    )
    bare = b"GET /y HTTP/1.1\r\n\r\n"

    async def talk(peer: Peer) -> None:
        data = post(b"abc") + chunked + bare
        for at in range(0, len(data), step):
            peer.send(data[at : at + step])
            await peer.writer.drain()
            await asyncio.sleep(0)
        answers = [(await peer.answer())[1] for _ in range(3)]
        assert answers == [b"POST /x abc", b"POST /x abcde", b"GET /y "]

    converse(echo, talk)


def test_a_request_without_a_length_is_given_one_and_loses_its_framing() -> None:
    seen: list[list[tuple[str, str]]] = []

    def handle(exchange: Exchange) -> None:
        seen.append(exchange.headers)
        exchange.answer(204)

    async def talk(peer: Peer) -> None:
        peer.send(b"POST /x HTTP/1.1\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        head = await peer.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 204 No Content\r\n") and b"content-length" not in head

    converse(handle, talk)
    assert seen == [[("A", "b"), ("content-length", "3")]]


def test_expect_100_is_answered_before_the_body_and_in_its_turn() -> None:
    waiting: list[Exchange] = []

    async def talk(peer: Peer) -> None:
        expecting = b"POST /x HTTP/1.1\r\nExpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
        peer.send(expecting)
        assert await peer.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"abc" + expecting)
        while not waiting:
            await asyncio.sleep(0.001)
        assert not any(name.lower() == "expect" for name, _ in waiting[0].headers)
        echo(waiting.pop())
        assert (await peer.answer())[1] == b"POST /x abc"
        assert await peer.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"def")
        while not waiting:
            await asyncio.sleep(0.001)
        echo(waiting.pop())
        assert (await peer.answer())[1] == b"POST /x def"

    converse(waiting.append, talk)


def test_another_expectation_is_refused_and_the_connection_stays() -> None:
    async def talk(peer: Peer) -> None:
        peer.send(post(b"abc", b"Expect: coffee") + post(b"d"))
        assert await peer.answer() == (b"HTTP/1.1 417 Expectation Failed", b"")
        assert (await peer.answer())[1] == b"POST /x d"

    converse(echo, talk)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_413_and_is_not_kept(monkeypatch: pytest.MonkeyPatch, is_chunked: bool) -> None:
    monkeypatch.setattr(parsing, "MAX_BODY_BYTES", 1000)

    async def talk(peer: Peer) -> None:
        peer.send(post(b"x" * 1000))
        assert (await peer.answer())[1] == b"POST /x " + b"x" * 1000
        if is_chunked:
            peer.send(b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        else:
            peer.send(post(b"x" * 1001))
        assert await peer.answer() == (b"HTTP/1.1 413 Request Entity Too Large", b"")
        peer.send(post(b"small"))
        assert (await peer.answer())[1] == b"POST /x small"

    converse(echo, talk)


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /" + b"a" * parsing.MAX_LINE_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * parsing.MAX_HEADER_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\n folded\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_so_and_the_connection_closes(data: bytes) -> None:
    async def talk(peer: Peer) -> None:
        peer.send(post(b"before") + data)
        assert (await peer.answer())[1] == b"POST /x before"
        head, body = await peer.answer()
        assert head == b"HTTP/1.1 400 Invalid HTTP message."
        assert b'"type": "BadRequestException"' in body
        peer.send(b"x" * 100_000)  # still sending: it must be able to read the answer all the same
        assert await peer.rest() == b""

    converse(echo, talk)


def test_an_endless_head_is_refused_before_it_fills_memory() -> None:
    async def talk(peer: Peer) -> None:
        peer.send(b"GET / HTTP/1.1\r\nA: ")
        for _ in range(200):
            peer.send(b"a" * 4096)
            await peer.writer.drain()
        assert (await peer.answer())[0] == b"HTTP/1.1 400 Invalid HTTP message."

    converse(echo, talk)


@pytest.mark.parametrize(
    "body", [b"", b"content-length: 3\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
def test_an_offer_to_upgrade_is_ignored_and_its_body_is_not_taken_for_a_request(body: bytes) -> None:
    async def talk(peer: Peer) -> None:
        peer.send(b"PUT /u HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + (body or b"\r\n"))
        peer.send(post(b"next"))
        assert (await peer.answer())[1] == (b"PUT /u abc" if body else b"PUT /u ")
        assert (await peer.answer())[1] == b"POST /x next"

    converse(echo, talk)


@pytest.mark.parametrize(
    "data", [b"GET /y HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET /y HTTP/1.0\r\n\r\n"], ids=["close", "1.0"]
)
def test_a_client_that_wants_the_connection_closed_gets_that(data: bytes) -> None:
    async def talk(peer: Peer) -> None:
        peer.send(data)
        answer = await peer.rest()
        assert answer.endswith(b"connection: close\r\n\r\nGET /y ")

    converse(echo, talk)


def test_an_answer_of_400_or_more_closes() -> None:
    async def talk(peer: Peer) -> None:
        peer.send(post(b"abc") + post(b"never answered"))
        answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert answer.count(b"HTTP/1.1") == 1

    converse(lambda exchange: exchange.fail(JavaFailure("NullPointerException")), talk)


def test_head_has_the_length_but_not_the_body() -> None:
    async def talk(peer: Peer) -> None:
        peer.send(b"HEAD /y HTTP/1.1\r\n\r\n" + post(b"abc"))
        head = await peer.until(b"\r\n\r\n")
        assert b"content-length: 8\r\n" in head
        assert (await peer.answer())[1] == b"POST /x abc"

    converse(echo, talk)


def test_a_half_open_client_gets_its_answer() -> None:
    waiting: list[Exchange] = []

    async def talk(peer: Peer) -> None:
        peer.send(post(b"abc"))
        peer.writer.write_eof()
        while not waiting:
            await asyncio.sleep(0.001)
        echo(waiting[0])
        assert (await peer.rest()).endswith(b"POST /x abc")

    converse(waiting.append, talk)


def test_who_handles_a_request_is_told_when_the_client_leaves() -> None:
    waiting: list[Exchange] = []

    async def talk(peer: Peer) -> None:
        peer.send(post(b"abc"))
        while not waiting:
            await asyncio.sleep(0.001)
        gone = asyncio.Event()
        waiting[0].on_gone = gone.set
        waiting[0].is_waiting = True
        peer.writer.close()
        await asyncio.wait_for(gone.wait(), DEADLINE_S)
        waiting[0].answer(200, b"too late")

    converse(waiting.append, talk)


def test_a_handlers_headers_and_reason_cannot_split_the_answer() -> None:
    def handle(exchange: Exchange) -> None:
        headers = [
            ("X-A", "b\r\nX-Evil: 1"),
            ("X-Bad\r\nname", "c"),
            ("Content-Length", "9999"),
            ("X-Ü", "d"),
            ("X-É", "ü€"),
        ]
        exchange.answer(299, b"body", headers, "so\r\nX-Evil: 2")

    async def talk(peer: Peer) -> None:
        peer.send(post(b""))
        head = await peer.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 299 so  X-Evil: 2\r\nX-A: b  X-Evil: 1\r\nx-request-id: ")
        assert head.count(b"ontent-") == 1
        assert await peer.reader.readexactly(4) == b"body"

    converse(handle, talk)


def test_a_stream_is_chunked_and_a_broken_one_is_cut_off() -> None:
    def handle(exchange: Exchange) -> None:
        exchange.begin(200, [("A", "b")])
        exchange.piece(b"one")
        exchange.piece(b"")
        exchange.piece(b"three")
        exchange.end(complete=exchange.body == b"whole")

    async def talk(peer: Peer) -> None:
        peer.send(post(b"whole"))
        head = await peer.until(b"\r\n\r\n")
        assert b"transfer-encoding: chunked\r\n" in head and b"content-length" not in head
        assert await peer.until(b"0\r\n\r\n") == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"
        peer.send(post(b"broken"))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await peer.until(b"0\r\n\r\n")

    converse(handle, talk)


@pytest.mark.parametrize("client", ["open", "half-closed", "leaving"])
def test_a_stream_is_held_back_for_a_client_that_does_not_read_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    if client != "leaving":
        monkeypatch.setattr(http, "WRITE_TIMEOUT_S", 0.0)
    flow: list[bool] = []
    streams: list[Exchange] = []

    def handle(exchange: Exchange) -> None:
        exchange.on_flow = flow.append
        streams.append(exchange)
        exchange.begin(200)

    async def talk(peer: Peer) -> None:
        gone = asyncio.Event()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(post(b""))
        while not streams:
            await asyncio.sleep(0.001)
        streams[0].on_gone = gone.set
        if client == "half-closed":
            (connection,) = peer.server.connections
            peer.writer.write_eof()
            while not connection._has_ended:
                await asyncio.sleep(0.001)
        for _ in range(1000):
            if flow:
                break
            streams[0].piece(b"x" * 100_000)
            await asyncio.sleep(0)
        assert flow[:1] == [False]
        if client == "leaving":
            peer.writer.transport.abort()
        await asyncio.wait_for(gone.wait(), DEADLINE_S)
        assert flow == [False, True], "what was held back for it is let go"
        streams[0].piece(b"for nobody")

    converse(handle, talk)


def test_a_client_that_stalls_in_its_request_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.0)

    async def talk(peer: Peer) -> None:
        peer.send(b"POST /x HTTP/1.1\r\ncontent-length: 3\r\n\r\nab")
        assert (await peer.answer())[0] == b"HTTP/1.1 408 Request Timeout"
        assert await peer.rest() == b""

    converse(echo, talk)


def test_an_idle_connection_is_closed_but_not_one_that_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Exchange] = []

    async def talk(peer: Peer) -> None:
        peer.send(post(b"abc"))
        while not waiting:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(http, "IDLE_TIMEOUT_S", 0.0)
        await asyncio.sleep(1.5)  # past the server's clock
        echo(waiting[0])
        assert (await peer.answer())[1] == b"POST /x abc"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await peer.until(b"never")

    converse(waiting.append, talk)


def test_closing_lets_a_request_under_way_finish() -> None:
    waiting: list[Exchange] = []

    async def talk(peer: Peer) -> None:
        peer.send(post(b"abc"))
        while not waiting:
            await asyncio.sleep(0.001)
        closing = asyncio.ensure_future(peer.server.close(drain_s=DEADLINE_S))
        await asyncio.sleep(0)
        assert not closing.done()
        echo(waiting[0])
        assert (await peer.answer())[1] == b"POST /x abc"
        await asyncio.wait_for(closing, DEADLINE_S)

    converse(waiting.append, talk)
