"""A way to S3 that misbehaves: between the platform and rclone, for the objects that it is told of."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_SLOW_DOWN = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code></Error>'


@dataclass(eq=False)
class Fault:
    """What becomes of the reads of one object: half of the bytes come, then the fault.

    `reached` is set when the first read is there; a held one goes on when `gate` is.
    """

    kind: Literal["held", "cut off", "refused", "other bytes"]
    reached: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)


class Detour:
    """A proxy in a thread of its own. `upstream` is asked at each request, since rclone may have been started again."""

    def __init__(self, upstream: Callable[[], str]) -> None:
        self._upstream = upstream
        self._faults: dict[str, Fault] = {}
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    @contextmanager
    def spoiling(self, key: str, kind: Literal["held", "cut off", "refused", "other bytes"]) -> Iterator[Fault]:
        """Have the reads of an object go wrong until the block ends."""
        fault = self._faults[key] = Fault(kind)
        try:
            yield fault
        finally:
            del self._faults[key]
            fault.gate.set()

    async def _serve(self) -> None:
        async with aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0, force_close=True)
        ) as self._session:
            application = web.Application(client_max_size=1 << 30)
            application.router.add_route("*", "/{path:.*}", self._pass_on)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._ended.wait()
            await runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = request.content if request.can_read_body else None
        url = URL(self._upstream() + request.raw_path, encoded=True)
        try:
            async with self._session.request(
                request.method, url, headers=request.headers, data=body, allow_redirects=False
            ) as answer:
                return await self._answer(request, answer)
        except aiohttp.ClientError:
            assert request.transport is not None
            request.transport.abort()  # as rclone, which has gone, would have done
            raise

    async def _answer(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        fault = self._faults.get(request.path.lstrip("/").partition("/")[2]) if request.method == "GET" else None
        if fault is not None and fault.kind == "refused":
            fault.reached.set()
            return web.Response(status=503, text=_SLOW_DOWN, content_type="application/xml")
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
        told = web.StreamResponse(status=answer.status, headers=headers)
        told.content_length = answer.content_length
        await told.prepare(request)
        body = await answer.read()
        half = len(body) // 2
        if fault is not None:
            await told.write(body[:half])
            fault.reached.set()
            body = body[half:]
        if fault is not None and fault.kind == "cut off":
            assert request.transport is not None
            request.transport.close()
            return told
        if fault is not None and fault.kind == "held":
            await asyncio.to_thread(fault.gate.wait)
        if fault is not None and fault.kind == "other bytes":
            body = bytes(byte ^ 1 for byte in body)
        await told.write(body)
        await told.write_eof()
        return told
