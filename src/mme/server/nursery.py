"""Decides which process a model's worker is forked from, and which workers aren't forked, and why.

The root holds the standard library and the worker's code. A branch, forked from it, holds what the models of one key
import (see `importsets`), learned from the first worker of such a model. A template, forked from a branch, holds one
loaded model. A worker is forked from its model's template, from the best branch, or is a plain new interpreter.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mme import forkserver

from .capture import Capture
from .forks import Family, ForkRefused, ForkServer
from .importsets import ImportSets, Key, key_of

_MAIN = Path(__file__).with_name("worker") / "__main__.py"
_BASE = ["djl_python", "mme.server.worker.api", "csv", "uuid", "pickle", "mme.server.worker.rehearsal"]
_BASE_KEY = Key(frozenset(), frozenset())
_BRANCH_TIMEOUT_S = 180.0  # importing torch on a busy machine takes a minute
_MAX_BRANCHES = 8  # each holds its imports in memory; the least recently used goes, its workers stay
_BUILDS_AT_ONCE = 2
_CLOSE_TIMEOUT_S = 10.0
_SWEEP_DELAY_S = 0.05  # one look for orphans serves all the workers that end within it


class CannotFork(Exception):
    """A model's workers can't come from a template; the text says why."""


@dataclass(frozen=True, eq=False)
class WorkerSpec:
    """What a worker is: the model's name and folder, its handler, and the interpreter and environment it wants.

    `env` is added to the server's environment. `python` None is the server's own interpreter; one with a slash is
    relative to the folder. `properties` are what an init call is given.
    """

    model_name: str
    model_dir: Path
    entry_point: str
    handler: str = "handle"
    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    async_mode: bool = False
    fallback_entry_point: str = ""


class WorkerProcess:
    """A running worker: its end of the conversation is `socket`, connected and non-blocking."""

    def __init__(self, pid: int, origin: str, sock: socket.socket, exited: asyncio.Future[int]) -> None:
        self.pid = pid
        self.origin = origin
        self.socket = sock
        self.exited = exited

    def kill(self) -> None:
        """Kill the worker and all that it started in its group; may be called again."""
        if not self.exited.done():
            forkserver.kill_group(self.pid)


class Template:
    """A process that has loaded a model, never serves, and is forked into the model's workers."""

    def __init__(self, server: ForkServer) -> None:
        self.server = server

    @property
    def pid(self) -> int:
        return self.server.pid

    @property
    def exited(self) -> asyncio.Future[int]:
        return self.server.exited

    def kill(self) -> None:
        """End the template; its workers stay."""
        self.server.kill()


@dataclass(eq=False)
class _Branch:
    server: ForkServer
    modules: list[str]


class Nursery:
    """The fork servers of one container. Its methods are for the event loop that it was started in."""

    def __init__(
        self, folder: Path, *, fork: bool = True, on_line: Callable[[str, str, str], None] = lambda *_: None
    ) -> None:
        """`folder` keeps what was learned; `on_line(model name, "stdout" or "stderr", text)` gets what is printed."""
        self._folder = folder
        self._on_line = on_line
        self._no_fork = forkserver.can_fork() if fork else "forking is off (MME_FORK=off)"
        self._branches: dict[Key, _Branch] = {}
        self._building: dict[Key, asyncio.Task[None]] = {}
        self._unfit: dict[Key, str] = {}
        self._keys: weakref.WeakKeyDictionary[WorkerSpec, Key] = weakref.WeakKeyDictionary()
        self._captures: weakref.WeakSet[Capture] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closing = False

    async def start(self) -> None:
        """Start the root, and begin to warm the branches that were learned before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.get_running_loop()
        self._sets = ImportSets.load(self._folder)
        self._family = Family(self._lost, self._orphaned)
        self._slots = asyncio.Semaphore(_BUILDS_AT_ONCE)
        self._lifeline, self._life = (
            os.pipe()
        )  # everything here dies when this process does: `_life` is never passed on
        self._root, self._root_process = self._start_root()
        if not self._no_fork:
            self._build(_BASE_KEY)
            for key in self._sets.keys()[: _MAX_BRANCHES - 1]:
                self._build(key)

    async def close(self) -> None:
        """End every process that came from here, and return when they have gone."""
        self._is_closing = True
        if self._sweep:
            self._sweep.cancel()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pid in self._family.pids():
            forkserver.kill_group(pid)
        for branch in self._branches.values():
            branch.server.close()
        self._root.close()
        await asyncio.to_thread(self._root_process.wait, _CLOSE_TIMEOUT_S)
        os.close(self._life)
        os.close(self._lifeline)
        for capture in [*self._captures]:
            capture.close()

    async def worker(self, spec: WorkerSpec, template: Template | None = None) -> WorkerProcess:
        """A new worker of a model: from its template if that can, else from the best branch, else a plain process.

        One that comes from a template is ready for calls; any other waits for an `init` frame.
        Raises OSError if the interpreter that the model names can't be started.
        """
        if template is not None:
            try:
                return await self._worker_of(template.server, spec, "forked", {"role": "worker", "is_known": True})
            except ForkRefused:
                pass  # the template has gone, or its model began a thread: a branch serves as well
        reason = self._no_fork or self._own_interpreter(spec)
        if not reason:
            try:
                server, is_known = await self._best(spec)
                return await self._worker_of(server, spec, "forked", {"role": "worker", "is_known": is_known})
            except ForkRefused as refusal:
                reason = str(refusal)
        request = {"role": "plain", "python": _interpreter(spec)}
        return await self._worker_of(self._living_root(), spec, f"plain: {reason}", request)

    async def template(self, spec: WorkerSpec, timeout_s: float) -> Template:
        """A template of a model, its init call made. Raises CannotFork, saying why the model can't have one."""
        reason = self._no_fork or self._own_interpreter(spec)
        if spec.async_mode:
            reason = reason or "an async handler's event loop can't be forked"
        if reason:
            raise CannotFork(reason)
        try:
            server, _ = await self._best(spec)
            request = self._request(spec) | {"role": "template", "properties": dict(spec.properties)}
            forked = await self._fork_server(server, request, spec.model_name)
            await forked.ready(timeout_s)
        except ForkRefused as refusal:
            raise CannotFork(str(refusal)) from refusal
        except TimeoutError as error:
            raise CannotFork(f"its init call took longer than {timeout_s} s") from error
        return Template(forked)

    def learn(self, spec: WorkerSpec, modules: list[str]) -> None:
        """Note what a worker of this model has imported; if its branch lacks some, a fuller one is prepared."""
        key = self._keys.get(spec)
        if self._no_fork or key is None or self._is_closing:
            return
        if self._sets.learn(key, modules):
            self._spawn(asyncio.to_thread(self._sets.save))
        base = self._branches.get(_BASE_KEY)
        if base and not key.env and set(self._sets.modules(key) or ()) <= set(base.modules):
            return
        branch = self._branches.get(key)
        if not branch or not set(modules) <= set(branch.modules):
            self._build(key)

    def pids(self) -> list[int]:
        """The processes that the nursery runs for itself: neither workers nor templates."""
        return [self._root.pid, *(branch.server.pid for branch in self._branches.values())]

    def status(self) -> dict[str, Any]:
        """The root, all that was forked from it, the branches, and the keys that can't be forked with the reason."""
        branches = [
            {
                "pid": branch.server.pid,
                "imports": sorted(key.imports),
                "env": dict(key.env),
                "modules": len(branch.modules),
            }
            for key, branch in self._branches.items()
        ]
        return {
            "fork": not self._no_fork,
            "reason": self._no_fork,
            "pid": self._root.pid,
            "processes": self._family.pids(),
            "branches": branches,
            "building": [sorted(key.imports) for key in self._building],
            "unfit": [{"imports": sorted(key.imports), "reason": reason} for key, reason in self._unfit.items()],
        }

    def _own_interpreter(self, spec: WorkerSpec) -> str:
        return "" if spec.python in (None, sys.executable) else "it has an interpreter of its own"

    async def _key(self, spec: WorkerSpec) -> Key:
        key = self._keys.get(spec)
        if key is None:
            key = await asyncio.to_thread(key_of, spec.model_dir, spec.entry_point, spec.env)
            self._keys[spec] = key
        return key

    async def _best(self, spec: WorkerSpec) -> tuple[ForkServer, bool]:
        """The fork server that has most of what the model imports and nothing else, and whether it is its own.

        Waits for one that is being built; raises ForkRefused if the model's key can't be forked.
        """
        key = await self._key(spec)
        modules = self._sets.modules(key)
        base = self._branches.get(_BASE_KEY)
        is_bare = base is not None and not key.env and modules is not None and set(modules) <= set(base.modules)
        if modules is not None and not is_bare and key not in self._branches and key not in self._unfit:
            await asyncio.shield(self._build(key))
        if key in self._unfit:
            raise ForkRefused(self._unfit[key])
        if key in self._branches:
            self._branches[key] = self._branches.pop(key)  # the last used
            return self._branches[key].server, True
        if _BASE_KEY in self._building:
            await asyncio.shield(self._building[_BASE_KEY])
        fitting = [k for k in self._branches if k.env == key.env and k.imports <= key.imports]
        if not fitting:
            return self._living_root(), False
        best = max(fitting, key=lambda k: len(k.imports))
        return self._branches[best].server, is_bare and best == _BASE_KEY

    def _build(self, key: Key) -> asyncio.Task[None]:
        task = self._building.get(key)
        if task is None:
            task = self._building[key] = self._spawn(self._build_branch(key))
        return task

    async def _build_branch(self, key: Key) -> None:
        """Make the branch of a key hold all that was learned for it; what it lacks is imported in a fork of it."""
        try:
            async with self._slots:
                while key not in self._unfit:
                    wanted = _BASE if key == _BASE_KEY else self._sets.modules(key) or []
                    old = self._branches.get(key) or (None if key.env else self._branches.get(_BASE_KEY))
                    had = old.modules if old else []
                    lacking = [name for name in wanted if name not in set(had)]
                    if key in self._branches and not lacking:
                        return
                    request = {"role": "branch", "env": dict(key.env), "modules": lacking}
                    try:
                        server = await self._fork_server(old.server if old else self._living_root(), request, "nursery")
                        await server.ready(_BRANCH_TIMEOUT_S)
                    except TimeoutError:
                        self._unfit[key] = f"importing took longer than {_BRANCH_TIMEOUT_S:.0f} s"
                    except ForkRefused as refusal:
                        self._unfit[key] = str(refusal)
                    else:
                        self._plant(key, _Branch(server, [*had, *lacking]))
        finally:
            del self._building[key]

    def _plant(self, key: Key, branch: _Branch) -> None:
        superseded = [self._branches.pop(key)] if key in self._branches else []
        self._branches[key] = branch
        while len(self._branches) > _MAX_BRANCHES:
            superseded.append(self._branches.pop(next(k for k in self._branches if k != _BASE_KEY)))
        for old in superseded:
            old.server.kill()

    async def _fork_server(self, parent: ForkServer, request: dict[str, Any], name: str) -> ForkServer:
        ours, theirs = socket.socketpair()
        try:
            pid, exited = await self._forked(parent, request, theirs, name)
        except BaseException:
            ours.close()
            raise
        return ForkServer(ours, self._family, pid, exited)

    async def _worker_of(
        self, parent: ForkServer, spec: WorkerSpec, origin: str, request: dict[str, Any]
    ) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        try:
            pid, exited = await self._forked(parent, self._request(spec) | request, theirs, spec.model_name)
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return WorkerProcess(pid, origin, ours, exited)

    async def _forked(
        self, parent: ForkServer, request: dict[str, Any], theirs: socket.socket, name: str
    ) -> tuple[int, asyncio.Future[int]]:
        """Fork with one end of a socket and of two pipes for what the child prints, all closed here afterwards."""
        outputs = [os.pipe(), os.pipe()]
        try:
            child = await parent.fork(request | {"stdio": True}, [theirs.fileno(), *(write for _, write in outputs)])
        except BaseException:
            for read, _ in outputs:
                os.close(read)
            raise
        finally:
            theirs.close()
            for _, write in outputs:
                os.close(write)
        self._capture(name, *(read for read, _ in outputs))
        return child

    def _capture(self, name: str, stdout: int, stderr: int) -> None:
        for stream, fd in (("stdout", stdout), ("stderr", stderr)):
            self._captures.add(Capture(fd, lambda text, stream=stream: self._on_line(name, stream, text)))  # type: ignore[misc]

    def _request(self, spec: WorkerSpec) -> dict[str, Any]:
        return {
            "model_dir": str(spec.model_dir),
            "entry_point": spec.entry_point,
            "handler": spec.handler,
            "fallback_entry_point": spec.fallback_entry_point,
            "is_async": spec.async_mode,
            "env": dict(spec.env),
        }

    def _start_root(self) -> tuple[ForkServer, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, str(_MAIN), "root", str(theirs.fileno()), str(self._lifeline)],
            pass_fds=[theirs.fileno(), self._lifeline],
            env={**forkserver.SINGLE_THREADED, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        theirs.close()
        assert process.stdout and process.stderr
        self._capture("nursery", os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()))
        process.stdout.close()
        process.stderr.close()
        return ForkServer(ours, self._family, process.pid, self._loop.create_future()), process

    def _living_root(self) -> ForkServer:
        if not self._root.is_alive and not self._is_closing:
            self._root_process.poll()
            self._root, self._root_process = self._start_root()
        return self._root

    def _lost(self, server: ForkServer) -> None:
        if self._is_closing:
            return
        if server is self._root:
            forkserver.kill_group(server.pid)  # it may only be deaf
            self._family.watch_all()
        for key in [key for key, branch in self._branches.items() if branch.server is server]:
            del self._branches[key]

    def _orphaned(self) -> None:
        if self._sweep is None and not self._is_closing:
            self._sweep = self._loop.call_later(_SWEEP_DELAY_S, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        if self._root.is_alive:
            self._spawn(self._root.spare(self._family.pids()))

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _interpreter(spec: WorkerSpec) -> str:
    """The path of the interpreter that a model names: in its folder if it has a slash, else on PATH."""
    name = spec.python or sys.executable
    path = spec.model_dir / name if os.sep in name else Path(shutil.which(name) or spec.model_dir / name)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return str(path)
