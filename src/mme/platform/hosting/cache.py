"""Decides which models are in an instance's memory and on its disk: load on demand, evict the least recently used.

One load per model at a time, whoever asks. A model counts as in use from the moment a call asks for it, so none is
evicted between its load and its answer. AWS: "Multi-model endpoints: how they work", "Set SageMaker AI multi-model
endpoint model caching behavior".
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from mme.platform.containers import Container, ContainerGone, Reply
from mme.platform.hosting.disk import Disk, DiskKey
from mme.platform.hosting.plans import (
    ContainerLost,
    DiskFull,
    LoadRefused,
    LoadTimedOut,
    PackageMissing,
    PackageUnusable,
    StoreUnavailable,
)
from mme.platform.hosting.store import PackageStore, S3Url

log = logging.getLogger(__name__)

_EVICTIONS_AT_LEAST = 16  # a load may cause, however few models are loaded when it begins

Observe = Callable[[str, float], None]
"""Takes the name of one of AWS's metrics and a value, times in microseconds."""


class Where(enum.StrEnum):
    S3 = "s3"
    DOWNLOADING = "downloading"
    DISK = "disk"
    LOADING = "loading"
    MEMORY = "memory"
    UNLOADING = "unloading"


class Model:
    """A target model on one instance."""

    __slots__ = (
        "target",
        "id",
        "path",
        "where",
        "in_use",
        "last_used",
        "loaded_at",
        "is_broken",
        "key",
        "change",
        "figures",
    )

    def __init__(self, target: str, model_id: str) -> None:
        self.target = target
        self.id = model_id
        self.path = f"/models/{model_id}/invoke"
        self.where = Where.S3
        self.in_use = 0
        self.last_used = time.monotonic()
        self.loaded_at = 0.0
        self.is_broken = False
        self.key: DiskKey | None = None
        self.change: asyncio.Task[None] | None = None
        self.figures: dict[str, Any] = {}


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
    ) -> None:
        self._disk = disk
        self._store = store
        self._prefix = prefix
        self._containers = containers
        self._is_cached = is_cached
        self._disk_budget_bytes = disk_budget_bytes
        self._load_timeout_s = load_timeout_s
        self._loads = asyncio.Semaphore(loads_at_once)
        self._room = asyncio.Lock()
        self._observe = observe
        self._models: dict[str, Model] = {}
        self._arriving: dict[str, int] = {}  # bytes of disk that packages on their way here have reserved
        self._waiting: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def restore(self) -> None:
        """Take over what an earlier run of this instance left on its disk."""
        for model_id, key in (await asyncio.to_thread(self._disk.scan)).items():
            if key.target and self._id(key.target) == model_id:
                model = self._models[key.target] = Model(key.target, model_id)
                model.where, model.key = Where.DISK, key
            else:
                await self._disk.remove(model_id)

    async def close(self) -> None:
        """Stop what is under way. The container is somebody else's to stop."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _id(self, target: str) -> str:
        return hashlib.sha256(f"{self._prefix}\0{target}".encode()).hexdigest()[:32]

    @property
    def models(self) -> list[Model]:
        """All models known here, the most recently used first."""
        return sorted(self._models.values(), key=lambda model: -model.last_used)

    @property
    def loaded_count(self) -> int:
        return sum(1 for model in self._models.values() if model.where is Where.MEMORY)

    @property
    def held_count(self) -> int:
        """How many models are in memory or on their way there; what "emptiest" is measured by."""
        return sum(1 for target in self._models if self.holds(target))

    @property
    def disk_bytes(self) -> int:
        return sum(model.key.unpacked_bytes for model in self._models.values() if model.key)

    def holds(self, target: str) -> Model | None:
        """The model if it is in memory or on its way there."""
        model = self._models.get(target)
        if model is None or model.where in (Where.S3, Where.DISK) and model.change is None:
            return None
        return model

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
            model = self._models[target] = Model(target, self._id(target))
        model.in_use += 1
        model.last_used = time.monotonic()
        try:
            while model.where is not Where.MEMORY or model.is_broken or model.change is not None:
                if model.change is None:
                    self._change(model, self._bring(model))
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
            if model.where is Where.MEMORY and not self._is_cached and model.change is None:
                self._change(model, self._discard(model))
            elif model.where is Where.S3 and model.change is None:
                self._models.pop(model.target, None)
            self._notify()

    def distrust(self, model: Model, reason: str) -> None:
        """The container says that the model no longer serves: the next call unloads and loads it again."""
        if model.where is Where.MEMORY and not model.is_broken:
            log.warning("%s is loaded again by the next call: %s", model.target, reason)
            model.is_broken = True

    def container_lost(self) -> None:
        """Whatever was in memory is on disk only."""
        for model in self._models.values():
            if model.where in (Where.MEMORY, Where.LOADING, Where.UNLOADING):
                model.where, model.is_broken, model.figures = Where.DISK, False, {}
        self._notify()

    def _change(self, model: Model, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            finally:
                model.change = (
                    None  # here and not in a callback: who looks in between would wait for a task that is done
                )
                if model.in_use == 0 and model.where is Where.S3:
                    self._models.pop(model.target, None)
                self._notify()

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            work.close()  # in case it was cancelled before it began
            if not task.cancelled() and (error := task.exception()):
                log.info("%s: %s", model.target, error)

        task = model.change = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(done)
        return task

    def _notify(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def _something_changes(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def _bring(self, model: Model) -> None:
        try:
            async with asyncio.timeout(self._load_timeout_s):
                container = await self._containers.ready()
                if model.is_broken:
                    await self._unload(model, container)
                await self._bring_to_disk(model)
                await self._bring_to_memory(model)
        except TimeoutError:
            await self._forget(model)
            raise LoadTimedOut(f"{model.target} was not loaded within {self._load_timeout_s:g} s") from None

    async def _bring_to_disk(self, model: Model) -> None:
        at = self._prefix.join(model.target)
        if model.key is not None and await self._is_current(model.key, at):
            return
        started = time.perf_counter()
        async with self._loads:
            model.where, model.key = Where.DOWNLOADING, None
            try:
                model.key = await self._disk.fetch(
                    model.id,
                    model.target,
                    at,
                    reserve=lambda size_bytes: self._reserve(model, at, size_bytes),
                    on_downloaded=lambda: self._observe("ModelDownloadingTime", _us_since(started)),
                )
            finally:
                self._arriving.pop(model.id, None)
                model.where = Where.DISK if model.key else Where.S3

    async def _is_current(self, key: DiskKey, at: S3Url) -> bool:
        """Whether the disk's copy is what S3 holds. One whose object S3 no longer has, or can't say, is used."""
        try:
            return key.is_of(await self._store.version(at))
        except (PackageMissing, StoreUnavailable):
            return True

    async def _reserve(self, model: Model, at: S3Url, size_bytes: int) -> None:
        """Make sure of that much disk for a package that arrives: those that are only on disk leave first."""
        if size_bytes > self._disk_budget_bytes:
            raise PackageUnusable(str(at), f"it takes {size_bytes} bytes, the disk has {self._disk_budget_bytes}")
        self._arriving.pop(model.id, None)
        while (free := self._disk_budget_bytes - self.disk_bytes - sum(self._arriving.values())) < size_bytes:
            idle = [other for other in self._models.values() if self._is_idle(other) and other.key]
            victims = [other for other in idle if other.where is Where.DISK] or idle
            if not victims:
                raise DiskFull(f"{at} takes {size_bytes} bytes of disk; {free} are free and the rest is in use")
            victim = min(victims, key=lambda other: other.last_used)
            await self._change(victim, self._discard(victim))
        self._arriving[model.id] = size_bytes

    async def _bring_to_memory(self, model: Model) -> None:
        evictions_left: int | None = None
        async with contextlib.AsyncExitStack() as stack:
            while (refusal := await self._load(model)) is not None:
                if evictions_left is None:
                    # One load at a time makes room, so that none takes what another one's evictions freed. The bound
                    # keeps a model that never fits from driving out, again and again, what calls bring back meanwhile.
                    had_to_wait = self._room.locked()
                    await stack.enter_async_context(self._room)
                    evictions_left = 2 * self.loaded_count + _EVICTIONS_AT_LEAST
                    if had_to_wait:
                        continue
                if evictions_left == 0 or not await self._make_room():
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
                    self._notify()
            if reply.status == 507:
                return reply
            if reply.status != 200 and not (reply.status == 409 and await self._is_listed(container, model)):
                raise LoadRefused(reply.status, reply.message())
            if container is await self._containers.ready():
                model.where, model.is_broken, model.loaded_at = Where.MEMORY, False, time.monotonic()
                self._observe("ModelLoadingTime", _us_since(started))
                self._observe("LoadedModelCount", self.loaded_count)
                return None

    async def _is_listed(self, container: Container, model: Model) -> bool:
        """409 says that the model is there already, but DJL says it of a bad engine too; the list tells which it is."""
        while (listed := await container.models()) is not None and listed.get(model.id) == "PENDING":
            await asyncio.sleep(0.05)
        return listed is not None and listed.get(model.id) == "READY"

    @staticmethod
    def _is_idle(model: Model) -> bool:
        return model.in_use == 0 and model.change is None

    async def _make_room(self) -> bool:
        """Unload the least recently used idle model; without one, wait for one. False: there is nothing to unload."""
        while True:
            in_memory = [model for model in self._models.values() if model.where is Where.MEMORY]
            if idle := [model for model in in_memory if self._is_idle(model)]:
                victim = min(idle, key=lambda model: model.last_used)
                log.info("%s leaves memory, unused for %.1f s", victim.target, time.monotonic() - victim.last_used)
                await self._change(victim, self._unload(victim, await self._containers.ready()))
                return True
            moving = [model for model in self._models.values() if model.where in (Where.LOADING, Where.UNLOADING)]
            if not in_memory and not moving:
                return False
            await self._something_changes()
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
        except TimeoutError:
            model.where, model.is_broken = Where.MEMORY, True
            raise LoadRefused(504, f"the container did not unload {model.target} in time") from None
        if reply.status not in (200, 404):
            model.where, model.is_broken = Where.MEMORY, True
            raise LoadRefused(reply.status, reply.message())
        model.where, model.is_broken, model.figures = Where.DISK, False, {}
        self._observe("ModelUnloadingTime", _us_since(started))
        self._observe("LoadedModelCount", self.loaded_count)

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
        for model in self._models.values():
            if model.where is Where.MEMORY and model.change is None and model.loaded_at < asked_at:
                if (status := statuses.get(model.id, "not loaded")) not in ("READY", "PENDING"):
                    self.distrust(model, f"the container lists it as {status}")

    def show(self, figures: dict[str, Any] | None) -> None:
        """Keep what the container says of its models' workers and memory."""
        entries = (figures or {}).get("models", [])
        by_id = {entry.get("name"): entry for entry in entries if isinstance(entry, dict)}
        for model in self._models.values():
            model.figures = by_id.get(model.id, {})

    async def cure(self) -> None:
        """Unload idle models that the container calls broken: one FAILED model makes DJL's /ping fail for all."""
        for model in list(self._models.values()):
            if model.is_broken and self._is_idle(model) and model.where is Where.MEMORY:
                await self._change(model, self._unload(model, await self._containers.ready()))


def _us_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e6


def describe(model: Model) -> dict[str, Any]:
    """A model as `mme status` shows it."""
    workers = model.figures.get("workers", [])
    memory = [worker.get("pss_mb") or 0 for worker in workers]
    if template := model.figures.get("template"):
        memory.append(template.get("pss_mb") or 0)
    return {
        "target_model": model.target,
        "id": model.id,
        "where": str(model.where),
        "in_use": model.in_use,
        "last_used": time.time() - time.monotonic() + model.last_used,
        "disk_mb": round(model.key.unpacked_bytes / 2**20, 1) if model.key else None,
        "workers": workers,
        "template": model.figures.get("template"),
        "log": model.figures.get("log", []),
        "memory_mb": round(sum(memory), 1) if model.figures else None,
    }
