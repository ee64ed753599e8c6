"""The client of the hot path, against servers that answer as they are told, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from mme.platform.wire import Broken, Connections

pytestmark = pytest.mark.anyio

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Gives each request the next of its answers; None closes the connection instead."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if self.answers else PLAIN
                if answer is None:
                    break
                writer.write(answer)
                if b"Content-Length" not in answer and b"chunked" not in answer and b" 100 " not in answer:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncIterator[tuple[Server, Connections]]:
    server = Server(list(answers))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    connections = Connections(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    try:
        yield server, connections
    finally:
        connections.close()
        listener.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (PLAIN, 200, b"ok"),
        (b"HTTP/1.1 204 No content\r\nContent-Length: 0\r\n\r\n", 204, b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", 200, b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nup to the end", 200, b"up to the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, 200, b"ok"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx", 503, b"x"),
    ],
)
async def test_an_answer_is_read_however_it_is_framed(answer: bytes, status: int, body: bytes) -> None:
    async with serving(answer) as (_, connections):
        assert (await connections.post("/x", {}, b""))[::2] == (status, body)
        assert (await connections.post("/x", {}, b""))[::2] == (200, b"ok")


async def test_calls_one_after_another_share_a_connection_and_calls_at_once_do_not() -> None:
    async with serving() as (server, connections):
        for _ in range(3):
            await connections.post("/x", {}, b"1")
        assert server.connections == 1
        await asyncio.gather(*(connections.post("/x", {}, b"1") for _ in range(4)))
        assert server.connections == 4


async def test_a_connection_that_is_to_be_closed_is_not_used_again() -> None:
    closing = b"HTTP/1.1 400 Bad\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    async with serving(closing) as (server, connections):
        await connections.post("/x", {}, b"")
        await connections.post("/x", {}, b"")
        assert server.connections == 2


async def test_headers_and_big_bodies_arrive_as_they_were_given() -> None:
    body = bytes(range(256)) * 4096
    async with serving() as (server, connections):
        await connections.post("/models/m/invoke", {"X-Amzn-SageMaker-Target-Model": "ü.tar.gz"}, body)
    [request] = server.requests
    head, _, received = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /models/m/invoke HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "X-Amzn-SageMaker-Target-Model: ü.tar.gz".encode("latin-1") in head
    assert received == body


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb", "a\0b"])
async def test_a_header_cannot_smuggle_another_one(value: str) -> None:
    async with serving() as (server, connections):
        with pytest.raises(ValueError, match="line break or a NUL"):
            await connections.post("/x", {"X-Amzn-SageMaker-Custom-Attributes": value}, b"")
        assert server.requests == []


@pytest.mark.parametrize(
    "answer",
    [None, b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
)
async def test_what_is_no_answer_is_broken_and_the_next_call_is_not(answer: bytes | None) -> None:
    async with serving(PLAIN, answer) as (_, connections):
        await connections.post("/x", {}, b"")
        with pytest.raises(Broken) as caught:
            await connections.post("/x", {}, b"")
        assert caught.value.is_sent
        assert (await connections.post("/x", {}, b""))[2] == b"ok"


async def test_a_refused_connection_was_surely_not_sent() -> None:
    async with serving() as (_, connections):
        pass
    with pytest.raises(Broken) as caught:
        await connections.post("/x", {}, b"")
    assert not caught.value.is_sent


async def test_a_call_that_is_cancelled_takes_its_connection_along() -> None:
    async with serving(b"HTTP/1.1 100 Continue\r\n\r\n") as (server, connections):
        call = asyncio.create_task(connections.post("/x", {}, b""))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait({call})
        assert (await connections.post("/x", {}, b""))[2] == b"ok"
        assert server.connections == 2


async def test_a_connection_that_was_closed_while_it_was_idle_is_not_used_even_before_the_loop_sees_it() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ONE_ANSWER_SERVER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    connections = Connections(f"http://127.0.0.1:{int(process.stdout.readline())}")
    assert (await connections.post("/x", {}, b""))[2] == b"ok"
    process.kill()
    process.wait()  # it is dead, and the event loop has not run since
    with pytest.raises(Broken) as caught:
        await connections.post("/x", {}, b"")
    assert not caught.value.is_sent
    process.stdout.close()
    connections.close()


ONE_ANSWER_SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
there, _ = listener.accept()
there.recv(65536)
there.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
there.recv(65536)
"""
