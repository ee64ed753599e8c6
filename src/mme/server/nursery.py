"""Decides which process a model's worker is forked from, and which workers aren't forked, and why.

The root holds the standard library and the worker's code. A branch, forked from it, holds what the models of one key
import (see `importsets`): what their code names, and then what their workers were seen to import. A template, forked
from a branch, holds one loaded model. A worker is forked from its model's template, from the best branch, or is a plain
new interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mme import forkserver

from .forks import ForkRefused, ForkServer, ForkServerGone
from .importsets import ImportSets, Key, key_of
from .spawner import Spawner

_BASE = ["djl_python", "mme.server.worker.api", "csv", "uuid", "pickle", "mme.server.worker.rehearsal"]
_BASE_KEY = Key(frozenset({"djl_python"}), frozenset())  # no model's: `key_of` leaves the API out
_BRANCH_TIMEOUT_S = 180.0  # importing torch on a busy machine takes a minute
_MAX_BRANCHES = 8  # each holds its imports in memory; the least recently used goes, its workers stay
_BUILDS_AT_ONCE = 2
_TRIES = 3  # to fork from a branch that goes at that moment; another has taken its place


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

    async def start(self) -> None:
        """Start the root, and begin to warm the branches that were learned before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sets = ImportSets.load(self._folder)
        self._slots = asyncio.Semaphore(_BUILDS_AT_ONCE)
        self._spawner = Spawner(self._on_line, self._lost)
        if not self._no_fork:
            self._build(_BASE_KEY)
            for key in self._sets.keys()[: _MAX_BRANCHES - 1]:
                self._build(key)

    async def close(self) -> None:
        """End every process that came from here, and return when they have gone."""
        await self._spawner.close()
        for branch in self._branches.values():
            branch.server.close()

    async def worker(self, spec: WorkerSpec, template: Template | None = None) -> WorkerProcess:
        """A new worker of a model: from its template if that can, else from the best branch, else a plain process.

        One that comes from a template is ready for calls; any other waits for an `init` frame.
        Raises OSError if the interpreter that the model names can't be started.
        """
        if template is not None:
            # The template may have gone, or its model may have begun a thread: a branch serves as well.
            with contextlib.suppress(ForkRefused):
                return await self._worker(template.server, spec, "forked", {"role": "worker", "is_known": True})
        reason = self._no_fork or _own_interpreter(spec)
        for _ in range(0 if reason else _TRIES):
            try:
                server, is_known = await self._best(spec)
                return await self._worker(server, spec, "forked", {"role": "worker", "is_known": is_known})
            except ForkRefused as refusal:
                reason = str(refusal)
                if not isinstance(refusal, ForkServerGone):
                    break
        request = {"role": "plain", "python": _interpreter(spec)}
        return await self._worker(self._spawner.root, spec, f"plain: {reason}", request)

    async def template(self, spec: WorkerSpec, timeout_s: float) -> Template:
        """A template of a model, its init call made. Raises CannotFork, saying why the model can't have one."""
        reason = self._no_fork or _own_interpreter(spec)
        if spec.async_mode:
            reason = reason or "an async handler's event loop can't be forked"
        if reason:
            raise CannotFork(reason)
        request = _request(spec) | {"role": "template", "properties": dict(spec.properties)}
        try:
            server, _ = await self._best(spec)
            forked = await self._spawner.fork_server(server, request, spec.model_name)
            await forked.ready(timeout_s)
        except ForkRefused as refusal:
            raise CannotFork(str(refusal)) from refusal
        except TimeoutError as error:
            raise CannotFork(f"its init call took longer than {timeout_s} s") from error
        return Template(forked)

    def learn(self, spec: WorkerSpec, modules: list[str]) -> None:
        """Note what a worker of this model has imported; if its branch lacks some, a fuller one is prepared."""
        key = self._keys.get(spec)
        if self._no_fork or key is None or self._spawner.is_closing:
            return
        if self._sets.learn(key, modules):
            self._spawner.spawn(asyncio.to_thread(self._sets.save))
        branch = self._branches.get(key)
        if not self._is_bare(key) and not (branch and set(modules) <= set(branch.modules)):
            self._build(key)

    def pids(self) -> list[int]:
        """The processes that the nursery runs for itself: neither workers nor templates."""
        return [self._spawner.root.pid, *(branch.server.pid for branch in self._branches.values())]

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
            "pid": self._spawner.root.pid,
            "processes": self._spawner.family.pids(),
            "branches": branches,
            "building": [sorted(key.imports) for key in self._building],
            "unfit": [{"imports": sorted(key.imports), "reason": reason} for key, reason in self._unfit.items()],
        }

    async def _key(self, spec: WorkerSpec) -> Key:
        key = self._keys.get(spec)
        if key is None:
            key = await asyncio.to_thread(key_of, spec.model_dir, spec.entry_point, spec.env)
            self._keys[spec] = key
        return key

    def _is_bare(self, key: Key) -> bool:
        """Whether models of this key import nothing that isn't in the base branch."""
        base, modules = self._branches.get(_BASE_KEY), self._sets.modules(key)
        return base is not None and modules is not None and not key.env and set(modules) <= set(base.modules)

    async def _best(self, spec: WorkerSpec) -> tuple[ForkServer, bool]:
        """The fork server that has most of what the model imports and nothing else, and whether it is its own.

        Waits for one that is being built; raises ForkRefused if the model's key can't be forked.
        """
        key = await self._key(spec)
        if self._sets.modules(key) is None and (named := key.installed()):
            # What the code says it imports is imported once, in the branch, and not again by the first worker.
            self._sets.learn(key, named)
        is_learned = self._sets.modules(key) is not None
        if is_learned and not self._is_bare(key) and key not in self._branches and key not in self._unfit:
            await asyncio.shield(self._build(key))
        if key in self._unfit:
            raise ForkRefused(self._unfit[key])
        if key in self._branches:
            self._branches[key] = self._branches.pop(key)  # the last used
            return self._branches[key].server, True
        if _BASE_KEY in self._building:
            await asyncio.shield(self._building[_BASE_KEY])
        fitting = [other for other in self._branches if other.env == key.env and other.imports <= key.imports]
        if fitting and not self._is_bare(key):
            return self._branches[max(fitting, key=lambda other: len(other.imports))].server, False
        if _BASE_KEY in self._branches and not key.env:
            return self._branches[_BASE_KEY].server, self._is_bare(key)
        return self._spawner.root, False

    def _build(self, key: Key) -> asyncio.Task[None]:
        task = self._building.get(key)
        if task is None:
            task = self._building[key] = self._spawner.spawn(self._build_branch(key))
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
                    parent = old.server if old else self._spawner.root
                    try:
                        server = await self._spawner.fork_server(parent, request, "nursery")
                        await server.ready(_BRANCH_TIMEOUT_S)
                    except TimeoutError:
                        self._unfit[key] = f"importing took longer than {_BRANCH_TIMEOUT_S:.0f} s"
                    except ForkRefused as refusal:
                        if parent.is_alive:
                            self._unfit[key] = str(refusal)
                    else:
                        self._plant(key, _Branch(server, [*had, *lacking]))
        finally:
            del self._building[key]

    def _plant(self, key: Key, branch: _Branch) -> None:
        superseded = [self._branches.pop(key)] if key in self._branches else []
        self._branches[key] = branch
        while len(self._branches) > _MAX_BRANCHES:
            superseded.append(self._branches.pop(next(other for other in self._branches if other != _BASE_KEY)))
        for old in superseded:
            old.server.kill()

    def _lost(self, server: ForkServer) -> None:
        for key in [key for key, branch in self._branches.items() if branch.server is server]:
            del self._branches[key]

    async def _worker(
        self, parent: ForkServer, spec: WorkerSpec, origin: str, request: dict[str, Any]
    ) -> WorkerProcess:
        ours, (pid, exited) = await self._spawner.fork(parent, _request(spec) | request, spec.model_name)
        ours.setblocking(False)
        return WorkerProcess(pid, origin, ours, exited)


def _own_interpreter(spec: WorkerSpec) -> str:
    return "" if spec.python in (None, sys.executable) else "it has an interpreter of its own"


def _request(spec: WorkerSpec) -> dict[str, Any]:
    return {
        "model_dir": str(spec.model_dir),
        "entry_point": spec.entry_point,
        "handler": spec.handler,
        "fallback_entry_point": spec.fallback_entry_point,
        "is_async": spec.async_mode,
        "env": dict(spec.env),
    }


def _interpreter(spec: WorkerSpec) -> str:
    """The path of the interpreter that a model names: in its folder if it has a slash, else on PATH."""
    name = spec.python or sys.executable
    path = spec.model_dir / name if os.sep in name else Path(shutil.which(name) or spec.model_dir / name)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return str(path)
