"""Decides what is known of a target model on one instance, and what changes there: one change at a time per model."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from mme.platform.hosting.disk import DiskKey
from mme.platform.hosting.happenings import Happening, Tell

log = logging.getLogger(__name__)


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

    @property
    def is_idle(self) -> bool:
        """Whether it may be moved: nobody uses it, and no change of it is under way."""
        return self.in_use == 0 and self.change is None

    @property
    def memory_mb(self) -> float | None:
        """What its processes took when it was last asked for; None where nobody measures it."""
        processes = [*self.figures.get("workers", ()), *filter(None, [self.figures.get("template")])]
        measured = [process["pss_mb"] or 0 for process in processes if "pss_mb" in process]
        return round(sum(measured), 1) if measured else None

    @property
    def is_held(self) -> bool:
        """Whether it is in memory or on its way there."""
        return self.where not in (Where.S3, Where.DISK) or self.change is not None


class Models:
    """The models of one instance, and the tasks that move them between S3, disk and memory."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._by_target: dict[str, Model] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._by_target.values()))

    def __len__(self) -> int:
        return len(self._by_target)

    def get(self, target: str) -> Model | None:
        return self._by_target.get(target)

    def add(self, target: str, model_id: str) -> Model:
        model = self._by_target[target] = Model(target, model_id)
        return model

    def drop_if_unused(self, model: Model) -> None:
        """Forget a model that nobody uses and that is nowhere here."""
        if model.in_use == 0 and model.where is Where.S3 and model.change is None:
            self._by_target.pop(model.target, None)

    @property
    def loaded_count(self) -> int:
        return sum(1 for model in self._by_target.values() if model.where is Where.MEMORY)

    @property
    def disk_bytes(self) -> int:
        return sum(model.key.unpacked_bytes for model in self._by_target.values() if model.key)

    def change(self, model: Model, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a change of a model that has none under way; who gives up waiting for the task leaves it going on."""

        async def run() -> None:
            try:
                await work
            finally:
                # Here and not in a callback: who looks in between would wait for a task that is done.
                model.change = None
                self.drop_if_unused(model)
                self.changed()

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            work.close()  # in case it was cancelled before it began
            if not task.cancelled() and (error := task.exception()):
                log.info("%s: %s", model.target, error)
                self._tell(Happening("failed", model.target, detail=str(error)))

        task = model.change = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(done)
        return task

    def changed(self) -> None:
        """Wake who waits for the next change."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def next_change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def close(self) -> None:
        """Stop the changes under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def show(self, figures: dict[str, Any] | None) -> None:
        """Keep what the container says of its models' workers and memory."""
        entries = (figures or {}).get("models", [])
        by_id = {entry.get("name"): entry for entry in entries if isinstance(entry, dict)}
        for model in self._by_target.values():
            model.figures = by_id.get(model.id, {})


def describe(model: Model) -> dict[str, Any]:
    """A model as `mme status` shows it."""
    return {
        "target_model": model.target,
        "id": model.id,
        "where": str(model.where),
        "in_use": model.in_use,
        "last_used": time.time() - time.monotonic() + model.last_used,
        "disk_mb": round(model.key.unpacked_bytes / 2**20, 1) if model.key else None,
        "workers": model.figures.get("workers", []),
        "template": model.figures.get("template"),
        "log": model.figures.get("log", []),
        "memory_mb": model.memory_mb,
    }
