"""How the front treats clients that do as they should: drained at the end, and not read faster than needed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mme.plain import plain
from mme.platform.connection import Limits
from mme.platform.front import Front
from mme.platform.messages import BodyMismatch, ClientGone, Reply, Request
from mme.platform.plain import PlainFormatter

pytestmark = pytest.mark.anyio
HEAD = b"POST /%b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n%b\r\n"


def post(path: bytes, body: bytes, headers: bytes = b"") -> bytes:
    return HEAD % (path, len(body), headers) + body


def answer(reply: Reply, body: bytes, status: int = 200) -> None:
    reply.whole(status, [("content-length", str(len(body)))], body)


@contextlib.asynccontextmanager
async def listening(
    handle: Callable[[Request, Reply], Awaitable[None]], limits: Limits | None = None
) -> AsyncIterator[tuple[Front, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A front and one client of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    front = Front(handle, limits)
    await front.listen(listener)
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        while not front.connections:
            await asyncio.sleep(0)
        try:
            yield front, reader, writer
        finally:
            await front.close(0)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            while front.connections:
                await asyncio.sleep(0.01)


async def test_calls_under_way_are_answered_before_the_end_and_nobody_else_is_let_in() -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def handle(request: Request, reply: Reply) -> None:
        arrived.set()
        await go.wait()
        answer(reply, b"done")

    async with listening(handle) as (front, reader, writer):
        port = writer.get_extra_info("peername")[1]
        writer.write(post(b"", b"x"))
        await arrived.wait()
        closing = asyncio.create_task(front.close(10))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            while True:
                with contextlib.suppress(ConnectionResetError):  # it was not accepted yet when nobody was any more
                    _, another = await asyncio.open_connection("127.0.0.1", port)
                    another.close()
        go.set()
        assert (await reader.read()).endswith(b"\r\n\r\ndone")
        await closing


async def test_a_call_that_takes_longer_than_the_grace_is_cut_off() -> None:
    async def handle(request: Request, reply: Reply) -> None:
        await asyncio.Event().wait()

    async with listening(handle) as (front, reader, writer):
        writer.write(post(b"", b"x"))
        while not any(connection.is_busy for connection in front.connections):
            await asyncio.sleep(0.01)
        await front.close(0.05)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_an_answer_that_does_not_wait_for_the_body_leaves_the_connection_usable() -> None:
    async def handle(request: Request, reply: Reply) -> None:
        answer(reply, request.path.encode(), 413 if request.path == "/early" else 200)

    async with listening(handle) as (_, reader, writer):
        writer.write(HEAD % (b"early", 3_000_000, b""))
        assert b"HTTP/1.1 413 " in await reader.readuntil(b"/early")
        writer.write(bytes(3_000_000) + post(b"next", b"x"))
        assert b"HTTP/1.1 200 " in await reader.readuntil(b"/next")


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked_when_it_is_wanted() -> None:
    async def handle(request: Request, reply: Reply) -> None:
        answer(reply, await request.body.whole(100) if request.path == "/wanted" else b"no")

    expects = b"Expect: 100-continue\r\n"
    async with listening(handle) as (_, reader, writer):
        writer.write(HEAD % (b"wanted", 4, expects))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200 ")
        writer.write(HEAD % (b"unwanted", 4, expects))
        refusal = await reader.read()
        assert refusal.startswith(b"HTTP/1.1 200 ") and b"connection: close" in refusal


async def test_no_more_is_read_of_a_body_than_somebody_takes() -> None:
    go = asyncio.Event()
    sizes = []

    async def handle(request: Request, reply: Reply) -> None:
        await go.wait()
        async for piece in request.body.pieces():
            sizes.append(len(piece))
        answer(reply, b"all")

    async with listening(handle) as (front, reader, writer):
        size = 64 << 20
        writer.write(HEAD % (b"", size, b""))
        sending = asyncio.create_task(asyncio.to_thread(_send_all, writer.get_extra_info("socket").dup(), bytes(size)))
        connection = next(iter(front.connections))
        while connection.is_reading:
            await asyncio.sleep(0.01)
        assert not sending.done()
        go.set()
        await sending
        await reader.readuntil(b"all")
        assert sum(sizes) == size


def _send_all(connection: socket.socket, data: bytes) -> None:
    with connection:
        connection.setblocking(True)
        connection.sendall(data)


async def test_a_body_with_another_digest_is_not_handed_out_to_its_end() -> None:
    seen = []

    async def handle(request: Request, reply: Reply) -> None:
        request.body.must_have("0" * 64)
        try:
            async for piece in request.body.pieces():
                seen.append(piece)
        except BodyMismatch:
            answer(reply, b"other", 400)

    async with listening(handle) as (_, reader, writer):
        for body in (b"x" * 5, b""):
            writer.write(post(b"", body))
            await reader.readuntil(b"other")
    assert b"".join(seen) == b""


async def test_a_client_that_leaves_ends_the_reading_of_its_body_and_the_writing_of_its_answer() -> None:
    ends = []

    async def handle(request: Request, reply: Reply) -> None:
        try:
            if request.path == "/body":
                await request.body.whole(1000)
            await reply.begin(200, [])
            while True:
                await reply.piece(bytes(100_000))
        except ClientGone:
            ends.append(request.path)
            raise

    for path in (b"body", b"answer"):
        async with listening(handle) as (_, reader, writer):
            writer.write(HEAD % (path, 10, b""))
            if path == b"answer":
                await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
            while not ends or ends[-1] != f"/{path.decode()}":
                await asyncio.sleep(0.01)


async def test_beyond_as_many_clients_as_there_may_be_one_is_told_so_at_once() -> None:
    async def handle(request: Request, reply: Reply) -> None:
        answer(reply, b"ok")

    async with listening(handle, Limits(connections=1)) as (_, reader, writer):
        writer.write(post(b"", b""))
        await reader.readuntil(b"ok")
        another, its_writer = await asyncio.open_connection(*writer.get_extra_info("peername"))
        said = await another.read()
        assert said.startswith(b"HTTP/1.1 503 ") and b"<html>there are 1 connections already" in said
        its_writer.close()
        await its_writer.wait_closed()
        writer.write(post(b"", b""))
        await reader.readuntil(b"ok")


async def test_a_header_of_an_answer_begins_no_other_header() -> None:
    async def handle(request: Request, reply: Reply) -> None:
        with pytest.raises(ValueError, match="line break"):
            reply.whole(200, [("x-a", "b\r\nset-cookie: c"), ("content-length", "0")], b"")
        answer(reply, b"ok")

    async with listening(handle) as (_, reader, writer):
        writer.write(post(b"", b""))
        assert b"set-cookie" not in await reader.readuntil(b"ok")


async def test_what_others_say_begins_no_line_of_the_log_and_moves_no_cursor() -> None:
    record = logging.makeLogRecord({"msg": "model says\n2026-01-01 ERROR forged\r\x1b[2Jx\x85y", "levelname": "INFO"})
    text = PlainFormatter("%(levelname)s %(message)s").format(record)
    assert text == "INFO model says\n    2026-01-01 ERROR forged\\r\\x1b[2Jx\\x85y"
    assert plain("tab\tand\nlines é") == "tab\tand\nlines é"
