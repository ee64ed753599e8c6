"""Decides which branches the nursery has: what each imports, when it is replaced and let go, and its standby.

The root holds the standard library and the worker's code. A branch, forked from it or from the base branch, holds what
the models of one key import (see `importsets`): what their code names, and then what their workers were seen to import.
A standby is a worker without a model, forked while nobody waited for it: copying the tables of a hundred megabytes of
libraries takes longer than loading a small model.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from .forks import TRIES, ForkRefused, ForkServer, ForkServerGone
from .importsets import ImportSets, Key
from .spawner import Forked, Spawner

_BASE = ["djl_python", "mme.server.worker.api", "csv", "uuid", "pickle", "mme.server.worker.rehearsal"]
_BASE_KEY = Key(frozenset({"djl_python"}), frozenset())  # no model's: `key_of` leaves the API out
_BRANCH_TIMEOUT_S = 180.0  # importing torch on a busy machine takes a minute
_MAX_BRANCHES = 8  # each holds its imports in memory; the least recently used goes, its workers stay
_BUILDS_AT_ONCE = 2
_STANDBY_DELAY_S = 0.05  # after the load that took the last one, which has better uses for the processor


@dataclass(eq=False)
class Branch:
    """A fork server and the modules it holds, with a process forked ahead."""

    server: ForkServer
    modules: list[str]
    standby: Forked | None = None
    is_preparing: bool = False

    def let_standby_go(self) -> None:
        standby, self.standby = self.standby, None
        if standby is not None:
            standby.kill()


class Branches:
    """The branches of one nursery, by the key of the models that are forked from them."""

    def __init__(self, spawner: Spawner, sets: ImportSets) -> None:
        self.unfit: dict[Key, str] = {}
        self._spawner = spawner
        self._sets = sets
        self._planted: dict[Key, Branch] = {}
        self._building: dict[Key, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_BUILDS_AT_ONCE)
        self._had_base = False

    def start(self) -> None:
        """Begin to build the base branch, and those that were learned before."""
        self._build(_BASE_KEY)
        for key in self._sets.keys()[: _MAX_BRANCHES - 1]:
            self._build(key)

    def close(self) -> None:
        for branch in self._planted.values():
            branch.server.close()
            branch.let_standby_go()

    async def best(self, key: Key) -> tuple[Branch, bool]:
        """The branch that has most of what models of this key import and nothing else, and whether it is their own.

        Waits for one that is being built; raises ForkRefused if the key can't be forked.
        """
        if self._had_base and _BASE_KEY not in self._planted and _BASE_KEY not in self.unfit:
            await asyncio.shield(self._build(_BASE_KEY))  # it was killed
        if not key.is_shared:
            return Branch(self._spawner.root, []), False
        if self._sets.modules(key) is None and (named := key.installed()):
            # What the code says it imports is imported once, in the branch, and not again by the first worker.
            self._sets.learn(key, named)
        is_learned = self._sets.modules(key) is not None
        if is_learned and not self._is_bare(key) and key not in self._planted and key not in self.unfit:
            await asyncio.shield(self._build(key))
        if key in self.unfit:
            raise ForkRefused(self.unfit[key])
        if key in self._planted:
            self._planted[key] = self._planted.pop(key)  # the last used
            return self._planted[key], True
        if _BASE_KEY in self._building:
            await asyncio.shield(self._building[_BASE_KEY])
        fitting = [other for other in self._planted if other.env == key.env and other.imports <= key.imports]
        if fitting and not self._is_bare(key):
            return self._planted[max(fitting, key=lambda other: len(other.imports))], False
        if _BASE_KEY in self._planted and not key.env:
            return self._planted[_BASE_KEY], self._is_bare(key)
        return Branch(self._spawner.root, []), False

    def take_standby(self, branch: Branch) -> Forked | None:
        """The process that waits for a model, if there is one; another is prepared for the next."""
        standby, branch.standby = branch.standby, None
        self._prepare(branch, _STANDBY_DELAY_S)
        if standby is not None and standby.exited.done():
            standby.kill()
            return None
        return standby

    def complete(self, key: Key, modules: list[str]) -> None:
        """Prepare a fuller branch if a key's hasn't all of what one of its models has imported."""
        branch = self._planted.get(key)
        if not self._is_bare(key) and not (branch and set(modules) <= set(branch.modules)):
            self._build(key)

    def lost(self, server: ForkServer) -> None:
        """A fork server has gone; if it was a branch, the next model of its key has it built again."""
        for key in [key for key, branch in self._planted.items() if branch.server is server]:
            self._planted.pop(key).let_standby_go()

    def pids(self) -> list[int]:
        standbys = [branch.standby.pid for branch in self._planted.values() if branch.standby]
        return [*(branch.server.pid for branch in self._planted.values()), *standbys]

    def status(self) -> dict[str, Any]:
        """The branches, those being built, and the keys that can't be forked with the reason."""
        branches = [
            {
                "pid": branch.server.pid,
                "standby": branch.standby and branch.standby.pid,
                "imports": sorted(key.imports),
                "env": dict(key.env),
                "modules": len(branch.modules),
            }
            for key, branch in self._planted.items()
        ]
        return {
            "branches": branches,
            "building": [sorted(key.imports) for key in self._building],
            "unfit": [{"imports": sorted(key.imports), "reason": reason} for key, reason in self.unfit.items()],
        }

    def _is_bare(self, key: Key) -> bool:
        """Whether models of this key import nothing that isn't in the base branch."""
        base, modules = self._planted.get(_BASE_KEY), self._sets.modules(key)
        return base is not None and modules is not None and not key.env and set(modules) <= set(base.modules)

    def _build(self, key: Key) -> asyncio.Task[None]:
        task = self._building.get(key)
        if task is None:
            task = self._building[key] = self._spawner.spawn(self._build_branch(key))
        return task

    async def _build_branch(self, key: Key) -> None:
        """Make the branch of a key hold all that was learned for it; what it lacks is imported in a fork of it."""
        ends = 0
        try:
            async with self._slots:
                while key not in self.unfit:
                    wanted = _BASE if key == _BASE_KEY else self._sets.modules(key) or []
                    old = self._planted.get(key) or (None if key.env else self._planted.get(_BASE_KEY))
                    had = old.modules if old else []
                    lacking = [name for name in wanted if name not in set(had)]
                    if key in self._planted and not lacking:
                        return
                    request = {"role": "branch", "env": dict(key.env), "modules": lacking}
                    parent = old.server if old else self._spawner.root
                    try:
                        server = await self._spawner.fork_server(parent, request, "nursery")
                        await server.ready(_BRANCH_TIMEOUT_S)
                    except TimeoutError:
                        self.unfit[key] = f"importing took longer than {_BRANCH_TIMEOUT_S:.0f} s"
                    except ForkRefused as refusal:
                        ends += 1
                        if parent.is_alive and (ends >= TRIES or not isinstance(refusal, ForkServerGone)):
                            self.unfit[key] = str(refusal)
                    else:
                        self._plant(key, Branch(server, [*had, *lacking]))
        finally:
            del self._building[key]

    def _plant(self, key: Key, branch: Branch) -> None:
        superseded = [self._planted.pop(key)] if key in self._planted else []
        self._planted[key] = branch
        self._had_base = self._had_base or key == _BASE_KEY
        while len(self._planted) > _MAX_BRANCHES:
            superseded.append(self._planted.pop(next(other for other in self._planted if other != _BASE_KEY)))
        for old in superseded:
            old.server.kill()
            old.let_standby_go()
        self._prepare(branch)

    def _prepare(self, branch: Branch, delay_s: float = 0) -> None:
        if not branch.is_preparing and self._is_planted(branch):
            branch.is_preparing = True
            self._spawner.spawn(self._prepare_standby(branch, delay_s))

    async def _prepare_standby(self, branch: Branch, delay_s: float) -> None:
        try:
            await asyncio.sleep(delay_s)
            if branch.standby is None and self._is_planted(branch):
                with contextlib.suppress(ForkRefused):  # then each worker is asked for when it is wanted
                    branch.standby = await self._spawner.fork(branch.server, {"role": "standby"}, "nursery")
        finally:
            branch.is_preparing = False
            if not self._is_planted(branch):
                branch.let_standby_go()

    def _is_planted(self, branch: Branch) -> bool:
        return any(branch is other for other in self._planted.values())
