"""Decides how a request goes on to a process behind the gateway, and its answer back: piece by piece, nothing kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

# Of one connection only (RFC 9110, 7.6.1); 100-continue was answered here when the body was first read.
_HOP_BY_HOP = frozenset(
    "connection expect keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
)
_NOT_PASSED_BACK = _HOP_BY_HOP | {"date", "server"}  # uvicorn writes the date itself
_SKIPPED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # which aiohttp would add


class ClientGone(Exception):
    """The caller closed the connection before the whole body had come."""


class BodyTooLarge(Exception):
    pass


class UpstreamGone(Exception):
    """The process behind the gateway does not answer; nothing has been sent to the caller yet."""


@dataclass
class Request:
    """An HTTP request as it came: the path percent-encoded, header names in lower case. Its body is read once."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    receive: Receive
    has_begun: bool = False
    has_ended: bool = False

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ClientGone when it ends early."""
        self.has_begun = True
        while not self.has_ended:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.has_ended = True
                raise ClientGone
            self.has_ended = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body; raises BodyTooLarge before more than the limit is kept."""
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit_bytes:
            raise BodyTooLarge
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > limit_bytes:
                raise BodyTooLarge
        return bytes(whole)

    async def discard(self, limit_bytes: int) -> bool:
        """Read what is left of the body, so that the next request on the connection begins where this one ends.

        Returns whether it does. Where the client waits for 100 Continue, it will not send the body anyhow.
        """
        if not self.has_body or self.has_ended:
            return True
        if "expect" in self.headers and not self.has_begun:
            return False
        async for piece in self.pieces():
            limit_bytes -= len(piece)
            if limit_bytes < 0:
                return False
        return True

    @property
    def has_body(self) -> bool:
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def new_session() -> aiohttp.ClientSession:
    """A client that changes nothing on the way: no decompression, no limit of its own, no cookies, no proxies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_SKIPPED,
        max_line_size=65536,
        max_field_size=65536,
    )


async def stream(session: aiohttp.ClientSession, url: str, request: Request, send: Send) -> int:
    """Pass a request on and its answer back, both while they come; returns the status.

    Raises UpstreamGone if nothing was sent yet. An answer that breaks off later breaks off for the caller too.
    """
    data = request.pieces() if request.has_body else None
    try:
        answer = await _request(session, url, request, data)
    except (aiohttp.ClientError, TimeoutError) as error:
        if isinstance(error.__cause__, ClientGone) or isinstance(error.__context__, ClientGone):
            raise ClientGone from error
        raise UpstreamGone(str(error)) from error
    async with answer:
        await send({"type": "http.response.start", "status": answer.status, "headers": passed_back(answer)})
        async for piece in answer.content.iter_any():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    return answer.status


async def exchange(session: aiohttp.ClientSession, url: str, request: Request, body: bytes) -> Answer:
    """Pass a small request on, whose body was read before, and return its answer. Raises UpstreamGone."""
    try:
        async with await _request(session, url, request, body) as answer:
            return Answer(answer.status, passed_back(answer), await answer.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UpstreamGone(str(error)) from error


async def _request(session: aiohttp.ClientSession, url: str, request: Request, data: Any) -> aiohttp.ClientResponse:
    headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
    return await session.request(
        request.method, URL(url + request.target, encoded=True), headers=headers, data=data, allow_redirects=False
    )


def passed_back(answer: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The headers, with lower-case names as ASGI wants them; so are the keys of an object's metadata, as on AWS."""
    names = ((name.lower(), value) for name, value in answer.raw_headers)
    return [(name, value) for name, value in names if name.decode("latin-1") not in _NOT_PASSED_BACK]
