"""Decides how calls travel between the front and one worker process: frames on its socket, by callbacks alone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from mme.server.call import Call
from mme.server.errors import BatchMismatch, InitOutOfMemory, LoadFailed, ServerError, WorkerFailed
from mme.server.worker import frames

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16  # below malloc's threshold for a mapping of its own
_EXIT_GRACE_S = 2.0
_LARGE_READ_BYTES = 1 << 20  # once an answer turns out to be large
DISCONNECTED = "java.util.concurrent.ExecutionException: java.io.IOException: Python worker disconnected."
TIMED_OUT = "java.util.concurrent.TimeoutException"
_worker_ids = itertools.count(1)


class Process(Protocol):
    """What a worker's process is to the front; the nursery makes them."""

    pid: int
    origin: str
    exited: asyncio.Future[int]

    @property
    def socket(self) -> Any: ...
    def kill(self) -> None: ...


class _Flight:
    """The calls of one request frame, with what is left to be answered."""

    __slots__ = ("calls", "timeout_s", "deadline")

    def __init__(self, calls: Sequence[Call], timeout_s: float, now: float) -> None:
        self.calls = dict(enumerate(calls))
        self.timeout_s = timeout_s
        self.deadline = now + timeout_s


class Worker:
    """One worker process. `on_free` is called when a frame's calls are all answered, `on_lost` once when it is gone."""

    def __init__(
        self,
        process: Process,
        on_free: Callable[[Worker], None],
        on_lost: Callable[[Worker], None],
        on_modules: Callable[[list[str]], None],
        max_content_bytes: int,
    ) -> None:
        self.id = next(_worker_ids)
        self.process = process
        self.started_at = datetime.now(UTC)
        self.idle_since = 0.0
        self.flights: dict[int, _Flight] = {}
        self._on_free, self._on_lost, self._on_modules = on_free, on_lost, on_modules
        self._max_content_bytes = max_content_bytes
        self._loop = asyncio.get_running_loop()
        self._socket = process.socket
        self._decoder = frames.Decoder()
        self._read_bytes = _READ_BYTES
        self._unsent: list[memoryview] = []
        self._ids = itertools.count(1)
        self._init: asyncio.Future[frames.Header] | None = None
        self._has_imported = False
        self._is_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._socket, self._readable)

    async def init(self, properties: dict[str, str]) -> None:
        """Make the init call. Raises LoadFailed with DJL's words for how it failed; its cause is in the log."""
        self._init = self._loop.create_future()
        self._send(frames.encode({"id": 0, "op": "init", "inputs": [{"properties": properties, "content": []}]}))
        try:
            header = await self._init
        except ConnectionError:
            code = await self._exit_code()
            if self._has_imported:
                raise LoadFailed("Python worker disconnected.", _ending(code)) from None
            raise LoadFailed(_stream_closed(code if code >= 0 else 128 - code), _ending(code)) from None
        finally:
            self._init = None
        failure = header.get("failure")
        if failure is None:
            return
        if failure["kind"] == "memory":
            raise InitOutOfMemory()
        if failure["kind"] == "import":
            raise LoadFailed(_stream_closed(1))
        raise LoadFailed(
            f"Failed to initialize model: {header.get('message', 'invoke handler failure')}",
            "" if failure["traceback"] else f"the init call answered: {failure['error']}",
        )

    async def _exit_code(self) -> int:
        """How the process ended, or is about to: its socket goes first. Killed if it doesn't end by itself."""
        try:
            await asyncio.wait([self.process.exited], timeout=_EXIT_GRACE_S)
        finally:
            self.process.kill()
        return await asyncio.shield(self.process.exited)

    def dispatch(self, calls: Sequence[Call], handler: str, timeout_s: float) -> None:
        """Send calls, as a batch if there are several."""
        inputs = []
        parts: list[bytes] = []
        for call in calls:
            content = []
            for key, value in call.contents:
                content.append((key, len(value)))
                parts.append(value)
            inputs.append({"properties": call.properties, "content": content})
        if len(calls) == 1:
            calls[0].properties.setdefault("handler", handler)
        number = next(self._ids)
        flight = self.flights[number] = _Flight(calls, timeout_s, self._loop.time())
        if self._timer is None:
            self._timer = self._loop.call_at(flight.deadline, self._check_time)
        self._send(frames.encode({"id": number, "op": "invoke", "inputs": inputs}, *parts))

    def close(self, error: ServerError | None = None) -> None:
        """Kill the process; calls under way fail with `error`. `on_lost` isn't called."""
        if not self._is_lost:
            self._leave(error or WorkerFailed(DISCONNECTED))
        self.process.kill()  # one that was lost in its init call may still be ending

    def _send(self, buffers: list[frames.Buffer]) -> None:
        if self._unsent:
            self._unsent += [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
            return
        try:
            sent = self._socket.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._loop.call_soon(self._lose)  # not now: the caller is in the midst of dispatching
            return
        if sent < sum(map(len, buffers)):
            self._unsent = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
            self._drop_sent(sent)
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        try:
            self._drop_sent(self._socket.sendmsg(self._unsent[:64]))
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _drop_sent(self, sent: int) -> None:
        while self._unsent and sent >= len(self._unsent[0]):
            sent -= len(self._unsent.pop(0))
        if sent:
            self._unsent[0] = self._unsent[0][sent:]

    def _readable(self) -> None:
        try:
            data = self._socket.recv(self._read_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._read_bytes = _LARGE_READ_BYTES if len(data) == self._read_bytes else _READ_BYTES
        try:
            for header, body in self._decoder.feed(data):
                self._received(header, body)
        except frames.FrameError:
            self._lose()
        # A handler can write to any descriptor of its process, so nothing about a frame is sure.
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            self._lose()

    def _received(self, header: frames.Header, body: bytes) -> None:
        if "modules" in header:
            self._on_modules(header["modules"])
        flight = self.flights.get(header["id"])
        if flight is None:
            if header.get("imported"):
                self._has_imported = True
            elif header["id"] == 0 and self._init is not None and not self._init.done():
                self._init.set_result(header)
            return
        call = flight.calls[header["index"]]
        more = header.get("more")
        if more is None:
            failure = header.get("failure")
            if failure is not None and failure.get("kind") == "batch":
                call.failed(BatchMismatch(failure["error"]))
            elif len(body) > self._max_content_bytes:
                log.error(
                    "worker %d (pid %d) answered %d bytes; DJL Serving takes no more than %d (MAX_NETTY_BUFFER_SIZE) at"
                    " once and would end the worker: answer less, or with add_stream_content",
                    self.id,
                    self.process.pid,
                    len(body),
                    self._max_content_bytes,
                )
                call.failed(WorkerFailed(DISCONNECTED))
            else:
                call.answered(header["code"], header["message"], header.get("properties", ()), body)
        else:
            if "code" in header:
                call.begin(header["code"], header["message"], header.get("properties", ()), self._flow)
            call.piece(body)
            if more:
                flight.deadline = self._loop.time() + flight.timeout_s
                return
            self._flow(True)
            call.end(complete="error" not in header)
        del flight.calls[header["index"]]
        if not flight.calls:
            del self.flights[header["id"]]
            self._on_free(self)

    def _flow(self, is_flowing: bool) -> None:
        """Read on, or leave what a worker streams in its socket; not if it has other calls' answers to give."""
        if self._is_lost:
            return
        if is_flowing:
            self._loop.add_reader(self._socket, self._readable)
        elif len(self.flights) == 1:
            self._loop.remove_reader(self._socket)

    def _check_time(self) -> None:
        """One timer for all calls: it looks again when the next of them could be late."""
        self._timer = None
        if self.flights:
            earliest = min(flight.deadline for flight in self.flights.values())
            if earliest <= self._loop.time():
                self._lose(WorkerFailed(TIMED_OUT))
            else:
                self._timer = self._loop.call_at(earliest, self._check_time)

    def _lose(self, late: ServerError | None = None) -> None:
        if not self._is_lost:
            self._leave(WorkerFailed(DISCONNECTED), late)
            self._on_lost(self)

    def _leave(self, error: ServerError, late: ServerError | None = None) -> None:
        self._is_lost = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        if self._init is None or self._init.done():
            self.process.kill()
        if self._timer is not None:
            self._timer.cancel()
        if self._init is not None and not self._init.done():
            self._init.set_exception(ConnectionError())
        now = self._loop.time()
        flights, self.flights = self.flights, {}
        for flight in flights.values():
            for call in flight.calls.values():
                call.failed(late if late is not None and flight.deadline <= now else error)


def _ending(code: int) -> str:
    """How a process ended, by its exit code; negative ones are signals'."""
    if code >= 0:
        return f"its process exited with code {code}"
    return f"its process was killed by {signal.Signals(-code).name}"


def _stream_closed(code: int) -> str:
    return f"Python stream closed unexpectedly, exit code: {code}"
