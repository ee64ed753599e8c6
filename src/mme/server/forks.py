"""Decides how the server talks to one fork server: a request for a fork at a time, and news of children's ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from mme import forkserver

_LENGTH = struct.Struct("!I")
_FORK_TIMEOUT_S = 15.0  # a fork takes milliseconds; one that takes this long has a stopped or starved server
TRIES = 3  # to fork what is killed, or loses its parent, at that moment; one that ends each time does so by itself
_FULL_SOCKET_S = 0.005  # about a fork; a message has four bytes in the socket as long as its descriptors wait there
_RECEIVE_BYTES = 1 << 16
_MAX_MESSAGE_BYTES = 1 << 24  # the longest says why a template isn't fit, in the words of its handler's error

Child = tuple[int, asyncio.Future[int]]  # its pid, and its exit code to come


def packed(message: dict[str, Any]) -> tuple[bytes, bytes]:
    """A message as `forkserver.receive` reads it: its length and itself."""
    data = json.dumps(message).encode()
    return _LENGTH.pack(len(data)), data


class ForkRefused(Exception):
    """The fork server can't fork; the text says why."""


class ForkServerGone(ForkRefused):
    """It has ended, or was ended since another took its place."""


class ForkServer:
    """One fork server, seen by its owner's event loop."""

    def __init__(
        self,
        control: socket.socket,
        family: Family,
        pid: int,
        exited: asyncio.Future[int],
        *,
        is_guardian: bool = False,
    ) -> None:
        """Takes over the owner's end of the control socket. The guardian may tell of processes that others forked."""
        self.pid = pid
        self.exited = exited
        self._control = control
        self._family = family
        self._is_guardian = is_guardian
        self._forked: set[int] = set()
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Child]] = {}
        self._received = bytearray()
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._read)

    @property
    def is_alive(self) -> bool:
        return self._control.fileno() >= 0

    async def ready(self, timeout_s: float) -> None:
        """Wait until it can fork. Raises ForkRefused if it can't, or TimeoutError (it is killed then)."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._ready)
        except BaseException:
            self.kill()
            raise

    async def fork(self, request: dict[str, Any], fds: Sequence[int]) -> Child:
        """A new child that goes on with this request. Raises ForkRefused; `fds` stay the caller's."""
        call_id = next(self._ids)
        answer: asyncio.Future[Child] = self._loop.create_future()
        self._pending[call_id] = answer
        try:
            async with asyncio.timeout(_FORK_TIMEOUT_S):
                await self._send(request | {"id": call_id}, fds)
                return await answer
        except TimeoutError as error:
            self.kill()
            raise ForkServerGone(f"fork server {self.pid} doesn't answer") from error
        except OSError as error:
            self._gone()
            raise ForkServerGone(f"fork server {self.pid} has gone") from error

    async def spare(self, pids: list[int]) -> None:
        """Have the guardian kill the orphans it adopted, but for these processes."""
        try:
            await self._send({"spare": pids}, [])
        except OSError:
            self._gone()

    def kill(self) -> None:
        """End it, and with it nothing that it forked."""
        forkserver.kill_group(self.pid)
        self._gone()

    def close(self) -> None:
        """Let it go: a fork server ends when its control socket closes, the guardian with everything it owns."""
        self._gone()

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        head, data = packed(message)
        async with self._sending:
            if self._control.fileno() < 0:
                raise BrokenPipeError(f"fork server {self.pid} has gone")
            if fds:
                await self._send_with(head, fds)
            else:
                await self._loop.sock_sendall(self._control, head)
            await self._loop.sock_sendall(self._control, data)

    async def _send_with(self, head: bytes, fds: Sequence[int]) -> None:
        """Send the first bytes of a message with its descriptors; a full socket only means that forks are waiting."""
        while True:
            try:
                socket.send_fds(self._control, [head], list(fds))
                return
            except BlockingIOError:
                await asyncio.sleep(_FULL_SOCKET_S)
                if self._control.fileno() < 0:
                    raise BrokenPipeError(f"fork server {self.pid} has gone") from None

    def _read(self) -> None:
        try:
            data = self._control.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        self._received += data
        try:
            while len(self._received) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
                if end > _MAX_MESSAGE_BYTES:
                    raise ValueError(f"a message of {end} bytes")
                if len(self._received) < end:
                    return
                message = json.loads(self._received[_LENGTH.size : end])
                del self._received[:end]
                self._take(message)
        # A handler can write to any descriptor of a template's, so nothing about a message is sure.
        except (KeyError, TypeError, ValueError):
            self.kill()

    def _take(self, message: dict[str, Any]) -> None:
        """Heed a message. Raises KeyError, TypeError or ValueError for one that no fork server sends."""
        if "ended" in message:
            if self._is_guardian or message["ended"] in self._forked:
                self._forked.discard(message["ended"])
                self._family.ended(message["ended"], message["code"])
        elif "ready" in message:
            if not self._ready.done():
                self._ready.set_result(None)
        elif "unfit" in message:
            self._fail(ForkRefused(message["unfit"]))
        else:
            answer = self._pending[message["id"]]
            if "refused" not in message and not self._is_child(message["pid"]):
                raise ValueError(f"{message['pid']} is not its child")
            del self._pending[message["id"]]
            if "refused" in message:
                if not answer.done():
                    answer.set_exception(ForkRefused(message["refused"]))
                return
            self._forked.add(message["pid"])
            exited = self._family.born(message["pid"])
            if answer.done():
                self._family.kill(message["pid"])  # whoever asked for it has given up
            else:
                answer.set_result((message["pid"], exited))

    def _is_child(self, pid: int) -> bool:
        """Whether it is the parent of this process, or may have been, of one that has ended by now."""
        if not 0 < pid < 1 << 31:
            return False
        try:
            return bool(psutil.Process(pid).ppid() == self.pid)
        except psutil.NoSuchProcess:
            return True

    def _fail(self, refusal: ForkRefused) -> None:
        if not self._ready.done():
            self._ready.set_exception(refusal)
            self._ready.exception()  # it is the business of those who wait for it, if any

    def _gone(self) -> None:
        if self._control.fileno() < 0:
            return
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        self._fail(ForkServerGone(f"fork server {self.pid} ended"))
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ForkServerGone(f"fork server {self.pid} has gone"))
        self._pending.clear()
        self._family.lost(self)


class Family:
    """The processes of one nursery and how each ended."""

    def __init__(self, on_lost: Callable[[ForkServer], None], on_orphan: Callable[[], None]) -> None:
        """`on_lost` is told of a fork server that has gone, `on_orphan` when there may be orphans to kill."""
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._on_lost = on_lost
        self._on_orphan = on_orphan
        self._loop = asyncio.get_running_loop()

    def pids(self) -> list[int]:
        return [*self._exits]

    def born(self, pid: int) -> asyncio.Future[int]:
        """Note a new process; the future is its exit code, minus the signal's number if one killed it."""
        exited = self._exits[pid] = self._loop.create_future()
        return exited

    def ended(self, pid: int, code: int) -> None:
        """A process has ended: so does what is left of its group."""
        exited = self._exits.pop(pid, None)
        if exited is not None:
            forkserver.kill_rest_of_group(pid)
        self._on_orphan()
        if exited is not None and not exited.done():
            exited.set_result(code)

    def kill(self, pid: int) -> None:
        """Kill a process with all that it started in its group."""
        forkserver.kill_group(pid)
        self.watch(pid)

    def lost(self, server: ForkServer) -> None:
        """A fork server doesn't answer any more, or was let go."""
        self.watch(server.pid)
        self._on_lost(server)

    def watch(self, pid: int) -> None:
        """Notice the end of a process without anyone's report: who would report it may have gone, or was stopped."""
        if pid not in self._exits or not hasattr(os, "pidfd_open"):  # which macOS has not
            return
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            self._presume_killed(pid)
        else:
            self._loop.add_reader(fd, self._unseen_end, pid, fd)

    def watch_all(self) -> None:
        for pid in self.pids():
            self.watch(pid)

    def _unseen_end(self, pid: int, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        # A fork server that lives on reports the real code first, if it is the parent.
        self._loop.call_later(0.1, self._presume_killed, pid)

    def _presume_killed(self, pid: int) -> None:
        if pid in self._exits:
            self.ended(pid, -9)
