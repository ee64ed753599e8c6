"""Decides whether a model fits, as DJL Serving does, and what the container's processes take.

DJL (ModelInfo.checkAvailableMemory): free = MemAvailable; a load is refused if free - required < reserved; required is
`required_memory_mb`, else, in a multi-model container, 1.2 times the files. With a budget, free is the budget less the
proportional set size (PSS) of the server and all its processes, and nothing is reserved by default.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path

import psutil

from mme.server.config import ModelConfig
from mme.server.errors import OutOfMemory

log = logging.getLogger(__name__)

_RESERVED_MB = 500  # DJL's default
_FILES_FACTOR = 1.2
_SPARE_DESCRIPTORS = 64  # a model takes a few; below this many left, it is refused
_ROUND_S = 1.0  # for a round of measurements, if they are few
_RESTS = 50  # as long as a measurement took (1-15 ms), it rests so many times: all of them take 2 % of a processor
_MB = 1 << 20


def raise_descriptor_limit() -> None:
    """Let this process and its children open as many files as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pss_mb(pid: int) -> float:
    """What a process takes, shared pages counted in parts where the system can (else its resident size); 0 if gone."""
    try:
        process = psutil.Process(pid)
        size_bytes = process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
    except (psutil.Error, OSError):
        return 0.0
    return float(size_bytes) / _MB


class Memory:
    """The container's memory: what is taken, by process, and what loads under way will take."""

    def __init__(
        self, budget_mb: int | None, is_multi_model: bool, pids: Callable[[], Mapping[Hashable, list[int]]]
    ) -> None:
        """`pids` tells the processes of each owner: each model, and whatever else there is but this process."""
        self.budget_mb = budget_mb
        self._is_multi_model = is_multi_model
        self._pids = pids
        self._last_mb: dict[int, float] = {}
        self._promised_mb: dict[Hashable, float] = {}
        self._round: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._last_mb[os.getpid()] = pss_mb(os.getpid())
        self._round = asyncio.get_running_loop().create_task(self._measure_in_turn())

    async def close(self) -> None:
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait([self._round])

    def of(self, pids: Iterable[int]) -> float:
        """What processes took when they were last measured, in MB."""
        return sum(self._last_mb.get(pid, 0.0) for pid in pids)

    def used_mb(self) -> float:
        """What all processes take, a model that loads at least what it was promised."""
        owned = {owner: self.of(pids) for owner, pids in self._pids().items()}
        loading = sum(max(0.0, mb - owned.get(owner, 0.0)) for owner, mb in self._promised_mb.items())
        return self.of([os.getpid()]) + sum(owned.values()) + loading

    async def reserve(self, owner: Hashable, config: ModelConfig) -> None:
        """Take what the model will need, until `settle` knows better. Raises OutOfMemory if it doesn't fit."""
        required = config.required_mb
        if required is None:
            required = int(_FILES_FACTOR * _files_bytes(config.model_dir) / _MB) if self._is_multi_model else 0
        reserved = config.reserved_mb
        if self.budget_mb is None:
            free = psutil.virtual_memory().available / _MB
            reserved = _RESERVED_MB if reserved is None else reserved
        else:
            await self._measure([pid for pid in self._all_pids() if pid not in self._last_mb])
            free = self.budget_mb - self.used_mb()
        log.info("%s: required memory: %d MB, free: %d MB", config.title, required, free)
        if free - required < (reserved or 0) or not _has_descriptors():
            raise OutOfMemory()
        self._promised_mb[owner] = required

    async def settle(self, owner: Hashable, pids: Iterable[int]) -> None:
        """The load of a model is over: measure its processes, and count these instead of what was promised."""
        await self._measure(pids)
        self.release(owner)

    def release(self, owner: Hashable) -> None:
        self._promised_mb.pop(owner, None)

    def _all_pids(self) -> list[int]:
        return [pid for pids in self._pids().values() for pid in pids]

    async def _measure(self, pids: Iterable[int]) -> None:
        loop = asyncio.get_running_loop()
        for pid in pids:
            self._last_mb[pid] = await loop.run_in_executor(None, pss_mb, pid)

    async def _measure_in_turn(self) -> None:
        """Measure each process now and then; all of them often enough, none so often that it is felt."""
        while True:
            pids = [os.getpid(), *self._all_pids()]
            self._last_mb = {pid: self._last_mb[pid] for pid in pids if pid in self._last_mb}
            for pid in pids:
                began = time.monotonic()
                await self._measure([pid])
                await asyncio.sleep(max(_ROUND_S / len(pids), _RESTS * (time.monotonic() - began)))


def _files_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _has_descriptors() -> bool:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return True
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir(folder)) >= _SPARE_DESCRIPTORS
