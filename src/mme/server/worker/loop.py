"""Decides the order in which a worker answers: one call after the other, or several in flight for an async handler."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from . import frames
from .handler import Handler, HandlerSpec, traceback_of

if TYPE_CHECKING:
    from .api import Output

_RECEIVE_BYTES = 1 << 16  # below malloc's threshold for a mapping of its own
_TAKEN = frames.encode({"taken": True})  # the next call, says a worker with its answer
_RIGHTS_BYTES = socket.CMSG_SPACE(4)  # room for one descriptor


class LoadFailed(Exception):
    """The entry point can't be imported; the worker ends with exit code 1, as DJL's does."""


class Imports:
    """What this process has imported and its fork server hadn't: reported once, with the next answer."""

    def __init__(self, had: list[str], model_dir: str) -> None:
        """`had` is reported too, the first time, if it isn't empty: what the fork server had imported for others."""
        self._seen = len(sys.modules)
        self._had = had
        self._model_dir = model_dir

    def news(self) -> frames.Header:
        """`{"modules": names in the order of import}`, or nothing if there is nothing new."""
        count = len(sys.modules) - self._seen
        if not count and not self._had:
            return {}
        # From the end: to look at a module is to write to its memory, which is shared with the fork server until then.
        latest = [*islice(reversed(sys.modules.items()), max(count, 0))]
        self._seen += count
        fresh = [*self._had, *(name for name, module in reversed(latest) if self._is_for_all(name, module))]
        self._had = []
        return {"modules": fresh} if fresh else {}

    def _is_for_all(self, name: str, module: Any) -> bool:
        """Whether other models can import the module under this name: not the model's own, nor an alias."""
        spec = getattr(module, "__spec__", None)
        if spec is None or spec.name != name or name.partition(".")[0] in ("mme", "__main__"):
            return False
        places = [spec.origin or "", *(spec.submodule_search_locations or ())]
        return not any(str(place).startswith(self._model_dir) for place in places)


class Worker:
    """One worker: reads requests from its socket, and answers until the socket closes."""

    def __init__(
        self, sock: socket.socket, spec: HandlerSpec, imports: Imports, handler: Handler | None = None
    ) -> None:
        """`handler` is there already in a worker that comes from a template: it needs no init call."""
        self._socket = sock
        self._spec = spec
        self._imports = imports
        self._handler = handler
        self._decoder = frames.Decoder()
        self._tokens: socket.socket | None = None  # comes with the first call that is handed ahead
        self._token: int | None = None  # one that was taken and whose call hasn't come yet

    def run(self) -> None:
        """Serve until the front closes the socket. Raises LoadFailed, and whatever ends a handler's process."""
        first: list[frames.Frame] = []
        if self._handler is None:
            first = self._receive()
            if not first:
                return
            self._handler = self._load(first[0][0]["id"])
        if self._spec.is_async:
            asyncio.run(self._serve_async(self._handler, first))
        else:
            self._serve(self._handler, first)

    def _load(self, call_id: int) -> Handler:
        try:
            handler = Handler(self._spec)
        except Exception as error:
            text = traceback_of(error)
            logging.error("Python engine process died\n%s", text)
            cause = {"kind": "import", "error": str(error), "traceback": text}
            frames.send(self._socket, frames.encode({"id": call_id, "index": 0, "failure": cause}))
            raise LoadFailed from error
        frames.send(self._socket, frames.encode({"id": call_id, "imported": True}))
        return handler

    def _serve(self, handler: Handler, requests: list[frames.Frame]) -> None:
        from . import calls, heap

        while True:
            for header, body in requests:
                if not self._may_begin(header):
                    continue
                output = handler.call(calls.to_input(header, body))
                is_last = output.stream_content is None and output.finalize_function is None
                for answer in calls.answers(header, output, self._extra(header, handler, output)):
                    taken = _TAKEN if is_last and self._take() else ()
                    frames.send(self._socket, [*taken, *answer])
                _finalize(output)
                if header["op"] == "init":
                    del output
                    heap.trim()
            requests = self._receive()
            if not requests:
                return

    def _receive(self) -> list[frames.Frame]:
        """The requests that are there, at least one; none when the front has closed."""
        requests: list[frames.Frame] = []
        while not requests:
            room = self._decoder.room
            if room is not None:
                count = self._socket.recv_into(room, 0, socket.MSG_WAITALL)
                if not count:
                    return []
                requests = self._decoder.filled(count)
                continue
            data, rights, _, _ = self._socket.recvmsg(_RECEIVE_BYTES, _RIGHTS_BYTES)
            if not data:
                return []
            for _, _, descriptor in rights:
                self._tokens = socket.socket(fileno=int.from_bytes(descriptor, sys.byteorder))
            requests = self._decoder.feed(data)
        return requests

    def _take(self) -> bool:
        """Take the token of the next call that was handed ahead, if there is one that the front hasn't taken back."""
        if self._token is None and self._tokens is not None:
            try:
                self._token = self._tokens.recv(1, socket.MSG_DONTWAIT)[0]
            except BlockingIOError:
                return False
        return self._token is not None

    def _may_begin(self, header: frames.Header) -> bool:
        """Whether this call is to be made here. Tokens come in the order of their calls."""
        if "token" not in header:
            return bool(header["op"] != "tokens")
        if not self._take() or header["token"] != self._token:
            return False
        self._token = None
        return True

    async def _serve_async(self, handler: Handler, requests: list[frames.Frame]) -> None:
        reader, writer = await asyncio.open_connection(sock=self._socket)
        tasks: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:  # one task's crash ends them all, and the process
            while True:
                for header, body in requests:
                    call = self._answer(handler, header, body, writer)
                    if header["op"] == "init":
                        await call
                        continue
                    task = group.create_task(call)
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                data = await reader.read(_RECEIVE_BYTES)
                if not data:
                    break
                requests = self._decoder.feed(data)
            for task in tasks:
                task.cancel()
        writer.close()

    async def _answer(
        self, handler: Handler, header: frames.Header, body: bytes | bytearray, writer: asyncio.StreamWriter
    ) -> None:
        from . import calls

        output = await handler.call_async(calls.to_input(header, body))
        if isinstance(output, AsyncIterator):
            async for answer in calls.stream_of_outputs(header, output):
                writer.writelines(answer)
                await writer.drain()
            return
        for answer in calls.answers(header, output, self._extra(header, handler, output)):
            writer.writelines(answer)
            await writer.drain()
        _finalize(output)

    def _extra(self, header: frames.Header, handler: Handler, output: Output) -> frames.Header:
        return self._imports.news() | (handler.failure(output) if header["op"] == "init" else {})


def _finalize(output: Output) -> None:
    try:
        output.execute_finalize()
    except Exception:
        logging.exception("Failed on finalize function")
