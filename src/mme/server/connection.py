"""Decides how calls travel between the front and one worker process: frames on its socket, by callbacks alone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from mme.server.ahead import Ahead, Flight
from mme.server.call import Call
from mme.server.errors import BatchMismatch, InitOutOfMemory, LoadFailed, ServerError, WorkerFailed
from mme.server.worker import frames

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16  # below malloc's threshold for a mapping of its own
_EXIT_GRACE_S = 10.0  # an end is told in milliseconds, on a busy machine in seconds; who closed its socket may go on
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


class Owner(Protocol):
    """Who is told what becomes of a worker."""

    def worker_is_free(self, worker: Worker) -> None:
        """It has answered a frame's calls, and can take others."""

    def worker_went_on(self, worker: Worker, call: Call) -> None:
        """It has answered, and has begun this call, which it was handed ahead."""

    def worker_gives_back(self, worker: Worker) -> None:
        """It isn't going to begin what was handed ahead, as far as that can be taken back: do so."""

    def worker_is_lost(self, worker: Worker) -> None:
        """It is gone, told once."""

    def worker_imported(self, modules: list[str]) -> None: ...


class Worker:
    """One worker process."""

    def __init__(self, process: Process, owner: Owner, max_content_bytes: int) -> None:
        self.id = next(_worker_ids)
        self.process = process
        self.started_at = datetime.now(UTC)
        self.idle_since = 0.0
        self.flights: dict[int, Flight] = {}  # what it has begun
        self._owner = owner
        self._max_content_bytes = max_content_bytes
        self._loop = asyncio.get_running_loop()
        self._socket = process.socket
        self._decoder = frames.Decoder()
        self._unsent: list[memoryview] = []
        self._ids = itertools.count(1)
        self._init: asyncio.Future[LoadFailed | None] | None = None
        self._has_imported = False
        self._is_lost = False
        self._is_held = False  # what it streams stays in its socket, and its time doesn't pass
        self._timer: asyncio.TimerHandle | None = None
        self._ahead = Ahead(self._socket)
        self._has_taken = False  # the next of what it was handed ahead, as it says before its answer
        self._loop.add_reader(self._socket, self._readable)
        # One that ends with requests unread resets its socket, and libuv calls for an error only once.
        process.exited.add_done_callback(lambda _: self._read_last())

    async def init(self, properties: dict[str, str]) -> None:
        """Make the init call. Raises LoadFailed with DJL's words for how it failed; its cause is in the log."""
        self._init = self._loop.create_future()
        self._send(frames.encode({"id": 0, "op": "init", "inputs": [{"properties": properties, "content": []}]}))
        try:
            failure = await self._init
        except ConnectionError:
            code = await self._exit_code()
            if self._has_imported:
                raise LoadFailed("Python worker disconnected.", _ending(code)) from None
            raise LoadFailed(_stream_closed(code if code >= 0 else 128 - code), _ending(code)) from None
        finally:
            self._init = None
        if failure is not None:
            raise failure

    async def _exit_code(self) -> int:
        """How the process ended, or is about to: its socket goes first. Killed if it doesn't end by itself."""
        try:
            await asyncio.wait([self.process.exited], timeout=_EXIT_GRACE_S)
        finally:
            self.process.kill()
        return await asyncio.shield(self.process.exited)

    def dispatch(self, calls: Sequence[Call], handler: str, timeout_s: float) -> bool:
        """Send calls to a free worker, as a batch if there are several. False if it has ended, and got none of them."""
        flight = Flight(next(self._ids), calls, timeout_s)
        if not self._send(_request({"id": flight.number, "op": "invoke"}, calls, handler)):
            return False
        self._begin(flight)
        if self._is_held:
            self._flow(True)
        return True

    def _begin(self, flight: Flight) -> None:
        self.flights[flight.number] = flight
        flight.deadline = self._loop.time() + flight.timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(flight.deadline, self._check_time)

    @property
    def ahead(self) -> list[Call]:
        """The calls that wait in this worker, the oldest first."""
        return self._ahead.calls

    def hand_ahead(self, call: Call, handler: str, timeout_s: float) -> bool:
        """Send a busy worker the call to make next; its time begins with it. False if that can't be done now."""
        if self._is_lost or self._unsent or not self._ahead.has_room:
            return False
        flight = Flight(next(self._ids), (call,), timeout_s)
        if not self._ahead.hold(flight):
            return False
        self._send(_request({"id": flight.number, "op": "invoke", "token": flight.token}, (call,), handler))
        return True

    def take_back(self) -> Call | None:
        """The oldest call that was handed ahead and hasn't begun; it will not, here. None if there is none."""
        return self._ahead.take_back()

    def close(self, error: ServerError | None = None) -> None:
        """Kill the process; calls under way fail with `error`. `on_lost` isn't called."""
        if not self._is_lost:
            self._leave(error or WorkerFailed(DISCONNECTED))
        self.process.kill()  # one that was lost in its init call may still be ending

    def _send(self, buffers: list[frames.Buffer]) -> bool:
        """Send now, or as soon as the worker has read what is before; False if it has closed its end."""
        if self._unsent:
            self._unsent += [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
            return True
        try:
            sent = self._socket.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._loop.call_soon(self._read_last)  # not now: the caller is in the midst of dispatching
            return False
        if sent < sum(map(len, buffers)):
            self._unsent = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
            self._drop_sent(sent)
            self._loop.add_writer(self._socket, self._writable)
        return True

    def _writable(self) -> None:
        try:
            self._drop_sent(self._socket.sendmsg(self._unsent[:64]))
        except BlockingIOError:
            return
        except OSError:
            self._read_last()
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
            is_open = self._read()
        except BlockingIOError:
            return
        except OSError:
            is_open = False
        if not is_open:
            self._lose()

    def _read_last(self) -> None:
        """The worker has closed its end: what it answered before counts."""
        try:
            while not self._is_lost and self._read():
                pass
        except OSError:
            pass
        self._lose()

    def _read(self) -> bool:
        """Take what is there, a part of it if it is much; False if the worker has closed. Raises OSError."""
        room = self._decoder.room
        if room is None:
            data = self._socket.recv(_READ_BYTES)
            count = len(data)
        else:
            count = self._socket.recv_into(room)
        if not count:
            return False
        try:
            for header, body in self._decoder.feed(data) if room is None else self._decoder.filled(count):
                self._received(header, body)
        except frames.FrameError:
            self._lose()
        # A handler can write to any descriptor of its process, so nothing about a frame is sure.
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            self._lose()
        return True

    def _received(self, header: frames.Header, body: bytes | bytearray) -> None:
        if "taken" in header:
            self._has_taken = True
            return
        if "modules" in header:
            self._owner.worker_imported(header["modules"])
        flight = self.flights.get(header["id"])
        if flight is None:
            if header.get("imported"):
                self._has_imported = True
            elif header["id"] == 0 and self._init is not None and not self._init.done():
                self._init.set_result(_init_failure(header))
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
            self._go_on(flight.number)

    def _go_on(self, answered: int) -> None:
        """It has answered: has it begun a call that it was handed ahead?"""
        self._ahead.answered(answered)
        if self._ahead and not self._has_taken:
            self._owner.worker_gives_back(self)  # handed too late; what remains has begun by now
        self._has_taken = False
        following = self._ahead.next()
        if following is not None:
            self._begin(following)
            self._owner.worker_went_on(self, following.calls[0])
        else:
            self._owner.worker_is_free(self)

    def _flow(self, is_flowing: bool) -> None:
        """Read on, or leave what a worker streams in its socket; not if it has other calls' answers to give."""
        if self._is_lost:
            return
        if is_flowing:
            self._loop.add_reader(self._socket, self._readable)
            if self._is_held:
                self._is_held = False
                for flight in self.flights.values():
                    self._begin(flight)
        elif len(self.flights) == 1:
            self._loop.remove_reader(self._socket)
            self._is_held = True

    def _check_time(self) -> None:
        """One timer for all calls: it looks again when the next of them could be late."""
        self._timer = None
        if self.flights and not self._is_held:
            earliest = min(flight.deadline for flight in self.flights.values())
            if earliest <= self._loop.time():
                self._lose(WorkerFailed(TIMED_OUT))
            else:
                self._timer = self._loop.call_at(earliest, self._check_time)

    def _lose(self, late: ServerError | None = None) -> None:
        if not self._is_lost:
            self._owner.worker_gives_back(self)
            self._leave(WorkerFailed(DISCONNECTED), late)
            self._owner.worker_is_lost(self)

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
        for flight in self._ahead.close():  # begun, though the answer before hasn't arrived
            flight.calls[0].failed(error)


def _request(header: frames.Header, calls: Sequence[Call], handler: str) -> list[frames.Buffer]:
    """The frame that asks for these calls."""
    header["inputs"] = inputs = []
    parts: list[bytes] = []
    for call in calls:
        inputs.append({"properties": call.properties, "content": [(key, len(value)) for key, value in call.contents]})
        parts += [value for _, value in call.contents]
    if len(calls) == 1:
        calls[0].properties.setdefault("handler", handler)
    return frames.encode(header, *parts)


def _init_failure(header: frames.Header) -> LoadFailed | None:
    """What the answer to an init call says went wrong."""
    failure = header.get("failure")
    if failure is None:
        return None
    if failure["kind"] == "memory":
        return InitOutOfMemory()
    if failure["kind"] == "import":
        return LoadFailed(_stream_closed(1))
    return LoadFailed(
        f"Failed to initialize model: {header.get('message', 'invoke handler failure')}",
        "" if failure["traceback"] else f"the init call answered: {failure['error']}",
    )


def _ending(code: int) -> str:
    """How a process ended, by its exit code; negative ones are signals'."""
    if code >= 0:
        return f"its process exited with code {code}"
    return f"its process was killed by {signal.Signals(-code).name}"


def _stream_closed(code: int) -> str:
    return f"Python stream closed unexpectedly, exit code: {code}"
