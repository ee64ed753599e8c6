"""Decides which models are in an instance's memory: loaded on demand, the least recently used ones leave first.

One load per model at a time, whoever asks. A model counts as in use from the moment a call asks for it, so none is
evicted between its load and its answer. AWS: "Multi-model endpoints: how they work", "Set SageMaker AI multi-model
endpoint model caching behavior".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from typing import Any, Protocol

from mme.platform.containers import Container, ContainerGone, Reply
from mme.platform.hosting.disk import Disk
from mme.platform.hosting.happenings import Happening, Tell
from mme.platform.hosting.metrics import Observe, us_since
from mme.platform.hosting.models import Model, Models, Where
from mme.platform.hosting.plans import (
    ContainerLost,
    LoadRefused,
    LoadTimedOut,
)
from mme.platform.hosting.shelf import Shelf
from mme.platform.hosting.store import PackageStore, S3Url

log = logging.getLogger(__name__)

_EVICTIONS_AT_LEAST = 16  # a load may cause, however few models are loaded when it begins


class Containers(Protocol):
    """Where the cache finds the container to load into."""

    async def ready(self) -> Container:
        """The healthy container; waits while it is being replaced."""

    async def settle(self, container: Container) -> None:
        """Wait until it is known whether a container whose connection broke still lives."""


class ModelCache:
    """The models of one instance. All of it belongs to one event loop."""

    def __init__(
        self,
        disk: Disk,
        store: PackageStore,
        prefix: S3Url,
        containers: Containers,
        *,
        is_cached: bool,
        disk_budget_bytes: int,
        load_timeout_s: float,
        loads_at_once: int,
        observe: Observe,
        tell: Tell,
    ) -> None:
        self._disk = disk
        self._prefix = prefix
        self._containers = containers
        self._is_cached = is_cached
        self._load_timeout_s = load_timeout_s
        self._loads = asyncio.Semaphore(loads_at_once)
        self._room = asyncio.Lock()
        self._observe = observe
        self._tell = tell
        self._models = Models(tell)
        self._shelf = Shelf(
            disk,
            store,
            prefix,
            self._models,
            self._loads,
            budget_bytes=disk_budget_bytes,
            discard=self._discard,
            observe=observe,
            tell=tell,
        )

    async def restore(self) -> None:
        """Take over what an earlier run of this instance left on its disk."""
        for model_id, key in (await asyncio.to_thread(self._disk.scan)).items():
            if self._is_cached and key.target and self._id(key.target) == model_id:
                model = self._models.add(key.target, model_id)
                model.where, model.key = Where.DISK, key
            else:
                await self._disk.remove(model_id)

    def _id(self, target: str) -> str:
        return hashlib.sha256(f"{self._prefix}\0{target}".encode()).hexdigest()[:32]

    async def close(self) -> None:
        """Stop what is under way. The container is somebody else's to stop."""
        await self._models.close()

    @property
    def models(self) -> list[Model]:
        """All models known here, the most recently used first."""
        return sorted(self._models, key=lambda model: -model.last_used)

    @property
    def loaded_count(self) -> int:
        return self._models.loaded_count

    @property
    def held_count(self) -> int:
        """How many models are in memory or on their way there; what "emptiest" is measured by."""
        return sum(1 for model in self._models if model.is_held)

    @property
    def disk_bytes(self) -> int:
        return self._models.disk_bytes

    def holds(self, target: str) -> Model | None:
        """The model if it is in memory or on its way there."""
        model = self._models.get(target)
        return model if model is not None and model.is_held else None

    def show(self, figures: dict[str, Any] | None) -> None:
        """Keep what the container says of its models' workers and memory."""
        self._models.show(figures)

    def hit(self, target: str) -> Model | None:
        """The model, counted as in use, if it is loaded and sound; the whole cost of a warm call. See `release`."""
        model = self._models.get(target)
        if model is None or model.where is not Where.MEMORY or model.is_broken or model.change is not None:
            return None
        model.in_use += 1
        model.last_used = time.monotonic()
        return model

    async def acquire(self, target: str) -> Model:
        """The model, loaded and counted as in use until `release`.

        A caller that gives up leaves the load going on. Raises PackageMissing, PackageUnusable, LoadRefused,
        LoadTimedOut, ContainerLost, StoreUnavailable, DiskFull.
        """
        model = self._models.get(target)
        if model is None:
            self._prefix.join(target)  # refuses what can't be a key before it is remembered
            model = self._models.add(target, self._id(target))
        model.in_use += 1
        model.last_used = time.monotonic()
        try:
            while model.where is not Where.MEMORY or model.is_broken or model.change is not None:
                if model.change is None:
                    self._models.change(model, self._bring(model))
                assert model.change is not None
                await asyncio.shield(model.change)
        except BaseException:
            self.release(model)
            raise
        return model

    def release(self, model: Model) -> None:
        """The caller is done with the model."""
        model.in_use -= 1
        model.last_used = time.monotonic()
        if model.in_use == 0:
            if model.where in (Where.MEMORY, Where.DISK) and not self._is_cached and model.change is None:
                self._models.change(model, self._discard(model))
            self._models.drop_if_unused(model)
            self._models.changed()

    def distrust(self, model: Model, reason: str) -> None:
        """The container says that the model no longer serves: the next call unloads and loads it again."""
        if model.where is Where.MEMORY and not model.is_broken:
            log.warning("%s is loaded again by the next call: %s", model.target, reason)
            model.is_broken = True

    def container_lost(self) -> None:
        """Whatever was in memory is on disk only."""
        for model in self._models:
            if model.where in (Where.MEMORY, Where.LOADING, Where.UNLOADING):
                model.where, model.is_broken, model.figures = Where.DISK, False, {}
        self._models.changed()

    async def _bring(self, model: Model) -> None:
        try:
            async with asyncio.timeout(self._load_timeout_s):
                container = await self._containers.ready()
                if model.is_broken:
                    await self._unload(model, container)
                    self._tell(Happening("unloaded", model.target, detail="it no longer answered"))
                await self._shelf.bring(model)
                await self._bring_to_memory(model)
        except TimeoutError:
            await self._forget(model)
            raise LoadTimedOut(f"{model.target} was not loaded within {self._load_timeout_s:g} s") from None

    async def _bring_to_memory(self, model: Model) -> None:
        evictions_left: int | None = None
        async with contextlib.AsyncExitStack() as stack:
            while (refusal := await self._load(model)) is not None:
                if evictions_left is None:
                    # One load at a time makes room, so that none takes what another one's evictions freed. The bound
                    # keeps a model that never fits from driving out, again and again, what calls bring back meanwhile.
                    had_to_wait = self._room.locked()
                    await stack.enter_async_context(self._room)
                    evictions_left = 2 * self._models.loaded_count + _EVICTIONS_AT_LEAST
                    if had_to_wait:
                        continue
                if evictions_left == 0 or not await self._make_room(model):
                    raise LoadRefused(refusal.status, refusal.message())
                evictions_left -= 1

    async def _load(self, model: Model) -> Reply | None:
        """Have the container load the model. Returns its reply where it has no memory for it (507)."""
        while True:
            container = await self._containers.ready()
            async with self._loads:
                model.where = Where.LOADING
                started = time.perf_counter()
                try:
                    reply = await container.load(model.id, self._disk.model_folder(model.id), model.target)
                except ContainerGone as error:
                    await self._containers.settle(container)
                    if not error.is_sent:
                        continue
                    raise ContainerLost(f"the container went away while it loaded {model.target}") from error
                finally:
                    model.where = Where.DISK
                    self._models.changed()
            if reply.status == 507:
                return reply
            if reply.status != 200 and not (reply.status == 409 and await self._is_listed(container, model)):
                raise LoadRefused(reply.status, reply.message())
            if container is await self._containers.ready():
                model.where, model.is_broken, model.loaded_at = Where.MEMORY, False, time.monotonic()
                self._observe("ModelLoadingTime", us_since(started))
                self._tell(Happening("loaded", model.target, time.perf_counter() - started))
                self._observe("LoadedModelCount", self._models.loaded_count)
                return None

    async def _is_listed(self, container: Container, model: Model) -> bool:
        """409 says that the model is there already, but DJL says it of a bad engine too; the list tells which it is."""
        while (listed := await container.models()) is not None and listed.get(model.id) == "PENDING":
            await asyncio.sleep(0.05)
        return listed is not None and listed.get(model.id) == "READY"

    async def _make_room(self, wanted: Model) -> bool:
        """Unload the least recently used idle model; without one, wait for one. False: there is nothing to unload."""
        while True:
            in_memory = [model for model in self._models if model.where is Where.MEMORY]
            if idle := [model for model in in_memory if model.is_idle]:
                victim = min(idle, key=lambda model: model.last_used)
                unused_s, size_mb = time.monotonic() - victim.last_used, victim.memory_mb
                log.info("%s leaves memory, unused for %.1f s", victim.target, unused_s)
                container = await self._containers.ready()
                # Whose load runs out of time must not cut the unload of another model off.
                await asyncio.shield(self._models.change(victim, self._unload(victim, container)))
                self._tell(Happening("evicted", victim.target, unused_s, size_mb, wanted.target))
                await asyncio.sleep(container.memory_lag_s)
                return True
            moving = [model for model in self._models if model.where in (Where.LOADING, Where.UNLOADING)]
            if not in_memory and not moving:
                return False
            await self._models.next_change()
            if any(model.where not in (Where.LOADING, Where.UNLOADING) for model in moving):
                return True  # one that was on its way has arrived, or has not

    async def _unload(self, model: Model, container: Container) -> None:
        model.where = Where.UNLOADING
        started = time.perf_counter()
        try:
            reply = await container.unload(model.id)
        except ContainerGone:
            model.where, model.is_broken = Where.DISK, False
            return
        except asyncio.CancelledError:
            model.where, model.is_broken = Where.MEMORY, True  # or no longer: the next unload will tell
            raise
        except TimeoutError:
            model.where, model.is_broken = Where.MEMORY, True
            raise LoadRefused(504, f"the container did not unload {model.target} in time") from None
        if reply.status not in (200, 404):
            model.where, model.is_broken = Where.MEMORY, True
            raise LoadRefused(reply.status, reply.message())
        model.where, model.is_broken, model.figures = Where.DISK, False, {}
        self._observe("ModelUnloadingTime", us_since(started))
        self._observe("LoadedModelCount", self._models.loaded_count)

    async def _forget(self, model: Model) -> None:
        """Tell the container to drop a load that took too long."""
        try:
            await (await self._containers.ready()).unload(model.id)
        except (ContainerGone, TimeoutError) as error:
            log.warning("%s: its load took too long and cannot be cancelled: %s", model.target, error)

    async def _discard(self, model: Model) -> None:
        """From memory and disk."""
        if model.where is Where.MEMORY:
            await self._unload(model, await self._containers.ready())
        await self._disk.remove(model.id)
        model.where, model.key = Where.S3, None

    def learn(self, statuses: dict[str, str] | None, asked_at: float) -> None:
        """Distrust what the container lists as broken or not at all, if it was loaded before the list was asked for."""
        if statuses is None:
            return
        for model in self._models:
            if model.where is Where.MEMORY and model.change is None and model.loaded_at < asked_at:
                if (status := statuses.get(model.id, "not loaded")) not in ("READY", "PENDING"):
                    self.distrust(model, f"the container lists it as {status}")

    async def cure(self) -> None:
        """Unload idle models that the container calls broken: one FAILED model makes DJL's /ping fail for all."""
        for model in self._models:
            if model.is_broken and model.is_idle and model.where is Where.MEMORY:
                await self._models.change(model, self._unload(model, await self._containers.ready()))
                self._tell(Happening("unloaded", model.target, detail="the container called it broken"))
