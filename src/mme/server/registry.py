"""Decides which models there are: load, unload, scale, describe, and what state each of them is in.

A model is known from the moment its load begins; it is READY once a worker can answer, gone again if its load fails,
and FAILED if its workers can't be started any more. Unloading a model that is still loading ends the load.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Hashable, Iterator
from typing import Any

from mme.server import config as configuration
from mme.server import requirements
from mme.server.call import Call
from mme.server.config import ContainerConfig, LoadRequest, ModelConfig
from mme.server.errors import Conflict, LoadFailed, ModelNotFound, NotReady, QueueFull, WorkerFailed, told
from mme.server.limits import Limits, Process
from mme.server.memory import Memory
from mme.server.nursery import Nursery, WorkerSpec
from mme.server.pool import Pool

log = logging.getLogger(__name__)

_KEPT_RECORDS, _KEPT_CHARS = 10, 2000  # of what a model's workers print, for its status; the log has all of it
_DEFAULTS = {"batchSize": 1, "maxBatchDelayMillis": 100, "maxIdleSeconds": 60, "queueSize": 1000}


class Model:
    """One model, from its load request on."""

    def __init__(self, request: LoadRequest, is_startup: bool) -> None:
        self.request = request
        self.is_startup = is_startup
        self.target_model = request.target_model
        self.config: ModelConfig | None = None
        self.pool: Pool | None = None
        self.is_ready = False
        self.has_failed = False
        self.load_s = 0.0
        self.printed: dict[tuple[str, str], float] = {}
        self.last_records: collections.deque[dict[str, str]] = collections.deque(maxlen=_KEPT_RECORDS)
        self.load: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.request.name

    def keep(self, level: str, text: str) -> None:
        """Remember what its workers printed last, for whoever asks how it is."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.last_records.append({"time": now, "level": level, "text": text[:_KEPT_CHARS]})

    @property
    def status(self) -> str:
        """As `GET /models` tells it."""
        if self.has_failed or (self.pool is not None and self.pool.is_failed):
            return "FAILED"
        return "READY" if self.is_ready else "PENDING"

    @property
    def health(self) -> str:
        """As `/ping` and a description tell it."""
        return {"READY": "Healthy", "PENDING": "Unhealthy", "FAILED": "FAILED"}[self.status]

    def submit(self, call: Call) -> None:
        if not self.is_ready or self.pool is None:
            call.failed(WorkerFailed(f"Model is not ready: {self.name}") if self.has_failed else QueueFull(self.name))
        else:
            self.pool.submit(call)

    def describe(self) -> dict[str, Any]:
        settings: dict[str, int] = dict(_DEFAULTS)
        pool = self.pool
        if self.config is not None:
            settings = {
                "batchSize": self.config.batch_size,
                "maxBatchDelayMillis": round(self.config.max_batch_delay_s * 1000),
                "maxIdleSeconds": round(self.config.max_idle_s),
                "queueSize": self.config.queue_size,
            }
        workers = [
            {
                "id": worker.id,
                "startTime": worker.started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "status": "READY",
            }
            for worker in (pool.workers if pool else ())
        ]
        group = {
            "device": {"deviceType": "cpu", "deviceId": -1},
            "minWorkers": pool.min_workers if pool else 1,
            "maxWorkers": pool.max_workers if pool else 1,
            "workers": workers,
        }
        return {
            "modelName": self.name,
            "modelUrl": self.request.url,
            **settings,
            "requestInQueue": pool.waiting if pool else 0,
            "status": self.health,
            "loadedAtStartup": self.is_startup,
            "workerGroups": [group],
        }


class Registry:
    """The models of one container."""

    def __init__(self, container: ContainerConfig, nursery: Nursery) -> None:
        self.models: dict[str, Model] = {}
        self.memory = Memory(container.memory_budget_mb, container.multi_model, self._pids)
        self.limits = Limits(self._processes)
        self._container = container
        self._nursery = nursery
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> Model:
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(f"Model or workflow not found: {name}")
        return model

    def begin_load(self, request: LoadRequest, is_startup: bool = False) -> Model:
        """Start to load; `model.load` ends when a worker can answer, or raises the reason why it can't.

        Raises Conflict if there is a model of this name, loading ones included.
        """
        if request.name in self.models:
            raise Conflict(request.name)
        model = self.models[request.name] = Model(request, is_startup)
        model.load = asyncio.get_running_loop().create_task(self._load(model))
        self._tasks.add(model.load)
        model.load.add_done_callback(self._loaded)
        return model

    async def load(self, request: LoadRequest) -> Model:
        """Load and wait for it; the load goes on if the caller doesn't. Raises ServerError."""
        model = self.begin_load(request)
        assert model.load is not None
        try:
            await asyncio.shield(model.load)
        except asyncio.CancelledError:
            if model.load.cancelled():
                raise WorkerFailed("Worker shutting down") from None
            raise
        return model

    async def unload(self, name: str) -> None:
        """Forget a model at once and end its processes; returns when none is left. Raises ModelNotFound."""
        model = self.find(name)
        del self.models[name]
        if model.load is not None and not model.load.done():
            model.load.cancel()
            await asyncio.wait([model.load])
        if model.pool is not None:
            await model.pool.close()
        if model.config is not None and not any(
            other.config is not None and other.config.model_dir == model.config.model_dir
            for other in self.models.values()
        ):
            requirements.forget(model.config, self._container.cache_dir)
        log.info("%s: unloaded", model.request.title)

    async def scale(self, name: str, min_workers: int | None, max_workers: int | None) -> Pool:
        """Set new bounds for the workers, and wait until the least number of them is there."""
        pool = self.find(name).pool
        if pool is None:
            raise NotReady(name)
        least = pool.min_workers if min_workers is None else min_workers
        most = pool.max_workers if max_workers is None else max_workers
        growth = pool.scale(least, most)
        if growth is not None:
            await asyncio.wait([growth])
        return pool

    async def close(self) -> None:
        self._nursery.close_soon()
        await asyncio.gather(*map(self.unload, list(self.models)))
        await self.limits.close()
        await self.memory.close()

    def status(self) -> dict[str, Any]:
        """For `GET /_mme/models`: what each model has running, and what it takes."""
        return {
            "memory": {"budget_mb": self.memory.budget_mb, "used_mb": round(self.memory.used_mb(), 1)},
            "models": [self._status(model) for model in self.models.values()],
            "nursery": self._nursery.status(),
        }

    def _status(self, model: Model) -> dict[str, Any]:
        pool = model.pool
        workers = [
            {
                "pid": worker.process.pid,
                "origin": worker.process.origin,
                "pss_mb": round(self.memory.of([worker.process.pid]), 1),
                "status": "busy" if worker.flights else "idle",
            }
            for worker in (pool.workers if pool else ())
        ]
        template = pool.template if pool else None
        return {
            "name": model.name,
            "target_model": model.target_model or model.name,
            "status": model.status,
            "queue": pool.waiting if pool else 0,
            "workers": workers,
            "template": template and {"pid": template.pid, "pss_mb": round(self.memory.of([template.pid]), 1)},
            "log": list(model.last_records),
        }

    async def _load(self, model: Model) -> None:
        began = time.monotonic()
        try:
            config = model.config = configuration.read(model.request, self._container)
            await self.memory.reserve(model, config)
            await asyncio.to_thread(requirements.examine, config)
            python = await requirements.interpreter(config, self._container.cache_dir, self._container.box)
            spec = WorkerSpec(
                model_name=config.name,
                model_dir=config.model_dir,
                entry_point=config.entry_point,
                handler=config.handler,
                python=python,
                env=config.env,
                properties=config.properties,
                async_mode=config.async_mode,
                fallback_entry_point=config.fallback_entry_point,
            )
            pool = model.pool = Pool(config, spec, self._nursery)
            await pool.start()
            model.is_ready = True
            settle = asyncio.get_running_loop().create_task(self._settle(model, pool))
            self._tasks.add(settle)
            settle.add_done_callback(self._tasks.discard)
            model.load_s = time.monotonic() - began
            log.info("%s: loaded in %.0f ms from %s", config.title, model.load_s * 1000, config.model_dir)
        except OSError as error:
            self._load_failed(model, error)
            raise LoadFailed(f"error={error.errno}, {error.strerror}") from error
        except BaseException as error:
            self._load_failed(model, error)
            raise

    def _load_failed(self, model: Model, error: BaseException) -> None:
        log.warning("%s: not loaded: %s", model.request.title, told(error))
        self.memory.release(model)
        if self.models.get(model.name) is model:
            if model.request.synchronous:
                del self.models[model.name]
            else:
                model.has_failed = True

    def _loaded(self, load: asyncio.Task[None]) -> None:
        self._tasks.discard(load)
        if not load.cancelled():
            load.exception()  # whoever waits for the load is told; if nobody does, the log was

    async def _settle(self, model: Model, pool: Pool) -> None:
        await self.memory.settle(model, [worker.process.pid for worker in pool.workers])

    def _pids(self) -> dict[Hashable, list[int]]:
        """The processes of the nursery and of each model."""
        return {self._nursery: self._nursery.pids()} | {model: self.pids_of(model) for model in self.models.values()}

    def _processes(self) -> Iterator[tuple[ModelConfig, Process]]:
        for model in self.models.values():
            if model.config is not None and model.pool is not None:
                for process in model.pool.processes():
                    yield model.config, process

    def pids_of(self, model: Model) -> list[int]:
        if model.pool is None:
            return []
        pids = [worker.process.pid for worker in model.pool.workers]
        return pids if model.pool.template is None else [*pids, model.pool.template.pid]
