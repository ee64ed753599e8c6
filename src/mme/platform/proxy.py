"""Decides how a request goes on to a process behind the gateway, and its answer back: piece by piece, nothing kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from mme.platform.messages import BodyMismatch, ClientGone, Reply, Request

# Of one connection only (RFC 9110, 7.6.1); 100-continue was answered here when the body was first read.
_HOP_BY_HOP = frozenset(
    "connection expect keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
)
_NOT_PASSED_BACK = _HOP_BY_HOP | {"date", "server"}  # the date is written here
_SKIPPED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # which aiohttp would add
ANSWER_S = 50.0  # for an answer to begin and for each next piece; boto3 waits for 60


Shown = Callable[[aiohttp.ClientResponse], tuple[int, list[tuple[str, str]]]]


class UpstreamGone(Exception):
    """The process behind the gateway does not answer; nothing has been sent to the caller yet."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
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


def shown_all(answer: aiohttp.ClientResponse) -> tuple[int, list[tuple[str, str]]]:
    """An answer's status, and its headers as `passed_back` has them."""
    return answer.status, passed_back(answer)


async def stream(
    session: aiohttp.ClientSession, url: str, request: Request, reply: Reply, shown: Shown = shown_all
) -> None:
    """Pass a request on and its answer back, both while they come.

    `shown` says with which status and headers it goes back, and is asked before anything does. Raises UpstreamGone if
    nothing was sent yet. An answer that breaks off later breaks off for the caller too.
    """
    data = None if request.body.length == 0 else request.body.pieces()
    try:
        answer = await _request(session, url, request, data)
    except (aiohttp.ClientError, TimeoutError) as error:
        for reason in (error.__cause__, error.__context__):
            if isinstance(reason, ClientGone | BodyMismatch):
                raise reason from error
        raise UpstreamGone(str(error)) from error
    async with answer:
        status, headers = shown(answer)
        if status == 304:
            reply.whole(status, headers, b"")
            return
        await reply.begin(status, headers)
        async for piece in answer.content.iter_any():
            await reply.piece(piece)
        reply.end()


async def exchange(session: aiohttp.ClientSession, url: str, request: Request, body: bytes) -> Answer:
    """Pass a small request on, whose body was read before, and return its answer. Raises UpstreamGone."""
    try:
        async with await _request(session, url, request, body) as answer:
            return Answer(answer.status, passed_back(answer), await answer.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UpstreamGone(str(error)) from error


async def _request(session: aiohttp.ClientSession, url: str, request: Request, data: Any) -> aiohttp.ClientResponse:
    headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
    limit = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=ANSWER_S)
    target = URL(url + request.target, encoded=True)
    return await session.request(
        request.method, target, headers=headers, data=data, allow_redirects=False, timeout=limit
    )


def passed_back(answer: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    """The headers, with lower-case names; so are the keys of an object's metadata, as on AWS.

    moto would let every page of a browser read its answers: nothing that says so is passed back.
    """
    named = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in answer.raw_headers)
    return [
        (name, value)
        for name, value in named
        if name not in _NOT_PASSED_BACK and not name.startswith("access-control-")
    ]
