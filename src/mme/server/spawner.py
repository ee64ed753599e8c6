"""Decides how the nursery's processes come to be, what holds them together, and that none of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mme import forkserver
from mme.server.worker import frames
from mme.tether import tethered

from .capture import Capture
from .forks import Family, ForkServer, packed

_MAIN = Path(__file__).with_name("worker") / "__main__.py"
_CLOSE_TIMEOUT_S = 8.0  # the root ends in milliseconds, on a busy machine in a second or two
_SWEEP_DELAY_S = 0.05  # one look for orphans serves all the processes that end within it


@dataclass(eq=False)
class Forked:
    """A process of the nursery with our end of its socket, non-blocking; what it prints is `name`'s."""

    name: str
    socket: socket.socket
    pid: int
    exited: asyncio.Future[int]
    family: Family

    async def tell(self, request: dict[str, Any], name: str) -> None:
        """Give a standby what it waits for. Raises OSError if it has ended."""
        self.name = name
        await asyncio.get_running_loop().sock_sendall(self.socket, b"".join(packed(request)))

    def kill(self) -> None:
        """End it, and let its socket go."""
        self.socket.close()
        if not self.exited.done():
            self.family.kill(self.pid)


class Spawner:
    """The root, and every process that is forked from it or from one of its descendants."""

    def __init__(
        self,
        environment: Mapping[str, str],
        on_line: Callable[[str, str, str], None],
        on_lost: Callable[[ForkServer], None],
    ) -> None:
        """Starts the root, in this environment. `on_lost` is told of each fork server that has gone, it included."""
        self.family = Family(self._lost, self._orphaned)
        self._environment = environment
        self._on_line = on_line
        self._on_lost = on_lost
        self._captures: weakref.WeakSet[Capture] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self.is_closing = False
        self._loop = asyncio.get_running_loop()
        # All of them die when the last writer of this pipe does, which is this process: `_life` is never passed on.
        self._lifeline, self._life = os.pipe()
        self._root, self._process = self._start_root()

    @property
    def root(self) -> ForkServer:
        """The root; another is started if it has gone."""
        if not self._root.is_alive and not self.is_closing:
            self._process.poll()
            self._root, self._process = self._start_root()
        return self._root

    async def close(self) -> None:
        """End every process that came from here, and return when they have gone."""
        self.is_closing = True
        if self._sweep:
            self._sweep.cancel()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pid in self.family.pids():
            forkserver.kill_group(pid)
        self._root.close()
        self._process.send_signal(signal.SIGCONT)  # one that was stopped ends its tree too
        try:
            await asyncio.to_thread(self._process.wait, _CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            forkserver.kill_group(self._process.pid)
            await asyncio.to_thread(self._process.wait)
        os.close(self._life)
        os.close(self._lifeline)
        for capture in [*self._captures]:
            capture.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do something in the background; it is cancelled by `close`."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def fork_server(self, parent: ForkServer, request: dict[str, Any], name: str) -> ForkServer:
        """A new fork server, forked from another; what it prints is `name`'s. Raises ForkRefused."""
        forked = await self.fork(parent, request, name)
        return ForkServer(forked.socket, self.family, forked.pid, forked.exited)

    async def fork(self, parent: ForkServer, request: dict[str, Any], name: str) -> Forked:
        """A new process. Raises ForkRefused."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        for end in (ours, theirs):
            frames.widen(end)
        (stdout, its_stdout), (stderr, its_stderr) = os.pipe(), os.pipe()
        try:
            pid, exited = await parent.fork(request | {"stdio": True}, [theirs.fileno(), its_stdout, its_stderr])
        except BaseException:
            ours.close()
            os.close(stdout)
            os.close(stderr)
            raise
        finally:
            theirs.close()
            os.close(its_stdout)
            os.close(its_stderr)
        forked = Forked(name, ours, pid, exited, self.family)
        self._capture(lambda: forked.name, stdout, stderr)
        return forked

    def _capture(self, name: Callable[[], str], stdout: int, stderr: int) -> None:
        for stream, fd in (("stdout", stdout), ("stderr", stderr)):
            self._captures.add(Capture(fd, lambda text, stream=stream: self._on_line(name(), stream, text)))  # type: ignore[misc]

    def _start_root(self) -> tuple[ForkServer, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        (stdout, its_stdout), (stderr, its_stderr) = os.pipe(), os.pipe()
        process = subprocess.Popen(
            # By the kernel: one that is stopped doesn't see its lifeline close.
            tethered([sys.executable, str(_MAIN), "root", str(theirs.fileno()), str(self._lifeline)]),
            pass_fds=[theirs.fileno(), self._lifeline],
            env={**forkserver.SINGLE_THREADED, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=its_stdout,
            stderr=its_stderr,
            start_new_session=True,
        )
        theirs.close()
        os.close(its_stdout)
        os.close(its_stderr)
        self._capture(lambda: "nursery", stdout, stderr)
        root = ForkServer(ours, self.family, process.pid, self._loop.create_future(), is_guardian=True)
        return root, process

    def _lost(self, server: ForkServer) -> None:
        if self.is_closing:
            return
        if server is self._root:
            forkserver.kill_group(server.pid)  # it may only be deaf
            self.family.watch_all()
        self._on_lost(server)

    def _orphaned(self) -> None:
        if self._sweep is None and not self.is_closing:
            self._sweep = self._loop.call_later(_SWEEP_DELAY_S, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        if self._root.is_alive:
            self.spawn(self._root.spare(self.family.pids()))
