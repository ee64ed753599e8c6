"""Decides which process a model's worker is forked from, and which workers aren't forked, and why.

A worker is forked from its model's template (a process that has loaded the model, itself forked from a branch), is its
branch's standby, is forked from the best branch (see `branches`), or is a plain new interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mme import forkserver

from .branches import Branches
from .forks import TRIES, ForkRefused, ForkServer, ForkServerGone
from .importsets import ImportSets, Key, key_of
from .spawner import Forked, Spawner
from .tempfolders import TemporaryFolders
from .worker import box


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

    def __init__(self, forked: Forked, origin: str) -> None:
        self.pid = forked.pid
        self.origin = origin
        self.socket = forked.socket
        self.exited = forked.exited
        self._family = forked.family

    def kill(self) -> None:
        """Kill the worker and all that it started in its group; may be called again."""
        if not self.exited.done():
            self._family.kill(self.pid)


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


class Nursery:
    """The fork servers of one container. Its methods are for the event loop that it was started in."""

    def __init__(
        self,
        folder: Path,
        *,
        fork: bool = True,
        rules: box.Rules = box.Rules(),  # noqa: B008
        on_line: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        """`folder` keeps what was learned, and has the workers' temporary folders while they live.

        `on_line(model name, "stdout" or "stderr", text)` gets what is printed.
        """
        self._folder = folder
        self._rules = rules
        self._on_line = on_line
        self._no_fork = forkserver.can_fork() if fork else "forking is off (MME_FORK=off)"
        self._keys: weakref.WeakKeyDictionary[WorkerSpec, Key] = weakref.WeakKeyDictionary()

    async def start(self) -> None:
        """Start the root, and begin to warm the branches that were learned before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sets = ImportSets.load(self._folder)
        self._temporary = TemporaryFolders(self._folder)
        environment = self._rules.environment(os.environ)
        self._spawner = Spawner(environment, self._on_line, lambda server: self._branches.lost(server))
        self._branches = Branches(self._spawner, self._sets)
        if not self._no_fork:
            self._branches.start()

    def close_soon(self) -> None:
        """From here on the end of each process is seen, even if the one that should report it was stopped."""
        self._spawner.family.watch_all()

    async def close(self) -> None:
        """End every process that came from here, and return when they have gone."""
        await self._spawner.close()
        self._branches.close()
        await asyncio.to_thread(self._temporary.close)

    async def worker(self, spec: WorkerSpec, template: Template | None = None) -> WorkerProcess:
        """A new worker of a model: from its template if that can, else from the best branch, else a plain process.

        One that comes from a template is ready for calls; any other waits for an `init` frame.
        Raises OSError if the interpreter that the model names can't be started.
        """
        folder = self._temporary.make(spec)
        try:
            worker = await self._start_worker(spec, template, folder)
        except BaseException:
            self._temporary.remove(folder)
            raise
        self._remove_after(worker.exited, folder)
        return worker

    async def _start_worker(self, spec: WorkerSpec, template: Template | None, folder: Path) -> WorkerProcess:
        own = self._request(spec, folder)
        if template is not None:
            # The template may have gone, or its model may have begun a thread: a branch serves as well.
            with contextlib.suppress(ForkRefused):
                return await self._worker(template.server, spec, "forked", own | {"role": "worker", "is_known": True})
        reason = self._no_fork or _own_interpreter(spec)
        for _ in range(0 if reason else TRIES):
            try:
                branch, is_known = await self._branches.best(await self._key(spec))
                request = own | {"role": "worker", "is_known": is_known}
                standby = self._branches.take_standby(branch)
                if standby is not None and (worker := await self._awake(standby, spec, request)):
                    return worker
                return await self._worker(branch.server, spec, "forked", request)
            except ForkRefused as refusal:
                reason = str(refusal)
                if not isinstance(refusal, ForkServerGone):
                    break
        request = own | {"role": "plain", "python": _interpreter(spec)}
        return await self._worker(self._spawner.root, spec, f"plain: {reason}", request)

    async def template(self, spec: WorkerSpec, timeout_s: float) -> Template:
        """A template of a model, its init call made. Raises CannotFork, saying why the model can't have one."""
        reason = self._no_fork or _own_interpreter(spec)
        if spec.async_mode:
            reason = reason or "an async handler's event loop can't be forked"
        if reason:
            raise CannotFork(reason)
        folder = self._temporary.make(spec)
        try:
            forked = await self._start_template(spec, timeout_s, folder)
        except BaseException:
            self._temporary.remove(folder)
            raise
        self._remove_after(forked.exited, folder)
        return Template(forked)

    async def _start_template(self, spec: WorkerSpec, timeout_s: float, folder: Path) -> ForkServer:
        request = self._request(spec, folder) | {"role": "template", "properties": dict(spec.properties)}
        reason = ""
        for _ in range(TRIES):
            try:
                branch, _ = await self._branches.best(await self._key(spec))
                forked = await self._spawner.fork_server(branch.server, request, spec.model_name)
                await forked.ready(timeout_s)
                return forked
            except ForkRefused as refusal:
                reason = str(refusal)
                if not isinstance(refusal, ForkServerGone):
                    break
            except TimeoutError:
                reason = f"its init call took longer than {timeout_s} s"
                break
        raise CannotFork(reason)

    def _remove_after(self, exited: asyncio.Future[int], folder: Path) -> None:
        def remove(_: object) -> None:
            if not self._spawner.is_closing:
                self._spawner.spawn(asyncio.to_thread(self._temporary.remove, folder))

        exited.add_done_callback(remove)

    def learn(self, spec: WorkerSpec, modules: list[str]) -> None:
        """Note what a worker of this model has imported; if its branch lacks some, a fuller one is prepared."""
        key = self._keys.get(spec)
        if self._no_fork or key is None or not key.is_shared or self._spawner.is_closing:
            return
        if self._sets.learn(key, modules):
            self._spawner.spawn(asyncio.to_thread(self._sets.save))
        self._branches.complete(key, modules)

    def pids(self) -> list[int]:
        """The processes that the nursery runs for itself: neither workers nor templates."""
        return [self._spawner.root.pid, *self._branches.pids()]

    def status(self) -> dict[str, Any]:
        """The root, all that was forked from it, the branches, and the keys that can't be forked with the reason."""
        return {
            "fork": not self._no_fork,
            "reason": self._no_fork,
            "pid": self._spawner.root.pid,
            "processes": self._spawner.family.pids(),
            "box": box.describe(self._rules),
        } | self._branches.status()

    async def _key(self, spec: WorkerSpec) -> Key:
        key = self._keys.get(spec)
        if key is None:
            key = await asyncio.to_thread(key_of, spec.model_dir, spec.entry_point, spec.env)
            self._keys[spec] = key
        return key

    async def _awake(self, standby: Forked, spec: WorkerSpec, request: dict[str, Any]) -> WorkerProcess | None:
        """Have a standby become a worker of this model; None if it has just ended."""
        try:
            await standby.tell(request, spec.model_name)
        except OSError:
            standby.kill()
            return None
        except BaseException:
            standby.kill()
            raise
        return WorkerProcess(standby, "forked")

    async def _worker(
        self, parent: ForkServer, spec: WorkerSpec, origin: str, request: dict[str, Any]
    ) -> WorkerProcess:
        forked = await self._spawner.fork(parent, request, spec.model_name)
        return WorkerProcess(forked, origin)

    def _request(self, spec: WorkerSpec, folder: Path) -> dict[str, Any]:
        return {
            "model_dir": str(spec.model_dir),
            "entry_point": spec.entry_point,
            "handler": spec.handler,
            "fallback_entry_point": spec.fallback_entry_point,
            "is_async": spec.async_mode,
            "env": dict(spec.env),
            "tmp_dir": str(folder),
            "box": self._rules.request(str(folder.parent)),
        }


def _own_interpreter(spec: WorkerSpec) -> str:
    return "" if spec.python in (None, sys.executable) else "it has an interpreter of its own"


def _interpreter(spec: WorkerSpec) -> str:
    """The path of the interpreter that a model names: in its folder if it has a slash, else on PATH."""
    name = spec.python or sys.executable
    path = spec.model_dir / name if os.sep in name else Path(shutil.which(name) or spec.model_dir / name)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return str(path)
