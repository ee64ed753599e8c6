"""Decides which packages are on an instance's disk: downloaded on demand, the least recently used ones leave first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from mme.platform.hosting.disk import Disk, DiskKey
from mme.platform.hosting.happenings import Happening, Tell
from mme.platform.hosting.metrics import Observe, us_since
from mme.platform.hosting.models import Model, Models, Where
from mme.platform.hosting.plans import DiskFull, PackageMissing, PackageUnusable, StoreUnavailable
from mme.platform.hosting.store import PackageStore, S3Url


class Shelf:
    """The disk of one instance, within its budget."""

    def __init__(
        self,
        disk: Disk,
        store: PackageStore,
        prefix: S3Url,
        models: Models,
        loads: asyncio.Semaphore,
        *,
        budget_bytes: int,
        discard: Callable[[Model], Coroutine[Any, Any, None]],
        observe: Observe,
        tell: Tell,
    ) -> None:
        """`loads` bounds what is downloaded and loaded at once; `discard` takes a model from memory and disk."""
        self._disk = disk
        self._store = store
        self._prefix = prefix
        self._models = models
        self._loads = loads
        self._budget_bytes = budget_bytes
        self._discard = discard
        self._observe = observe
        self._tell = tell
        self._arriving: dict[str, int] = {}  # bytes of disk that packages on their way here have reserved

    async def bring(self, model: Model) -> None:
        """Have the package of a model here, as S3 holds it now, if S3 can say. Raises as `ModelCache.acquire`."""
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
                    on_downloaded=lambda: self._observe("ModelDownloadingTime", us_since(started)),
                )
            finally:
                self._arriving.pop(model.id, None)
                model.where = Where.DISK if model.key else Where.S3
            taken_s, size_mb = time.perf_counter() - started, model.key.size_bytes / 2**20
            self._tell(Happening("fetched", model.target, taken_s, size_mb))

    async def _is_current(self, key: DiskKey, at: S3Url) -> bool:
        """Whether the disk's copy is what S3 holds. One whose object S3 no longer has, or can't say, is used."""
        try:
            return key.is_of(await self._store.version(at))
        except (PackageMissing, StoreUnavailable):
            return True

    async def _reserve(self, model: Model, at: S3Url, size_bytes: int) -> None:
        """Make sure of that much disk for a package that arrives: those that are only on disk leave first."""
        if size_bytes > self._budget_bytes:
            raise PackageUnusable(str(at), f"it takes {size_bytes} bytes, the disk has {self._budget_bytes}")
        self._arriving.pop(model.id, None)
        while (free := self._budget_bytes - self._models.disk_bytes - sum(self._arriving.values())) < size_bytes:
            idle = [other for other in self._models if other.is_idle and other.key]
            victims = [other for other in idle if other.where is Where.DISK] or idle
            if not victims and any(other.in_use == 0 and other.change and other.key for other in self._models):
                await self._models.next_change()  # it is leaving, or is idle when it has arrived
                continue
            if not victims:
                raise DiskFull(f"{at} takes {size_bytes} bytes of disk; {free} are free and the rest is in use")
            victim = min(victims, key=lambda other: other.last_used)
            size_mb = victim.key.unpacked_bytes / 2**20 if victim.key else None
            # Whose load runs out of time must not cut the unload of another model off.
            await asyncio.shield(self._models.change(victim, self._discard(victim)))
            self._tell(Happening("removed", victim.target, time.monotonic() - victim.last_used, size_mb))
        self._arriving[model.id] = size_bytes
