"""Decides which process of a model takes more memory of its own than it may, and ends it: never a neighbour.

What counts is private memory (USS), with that of the processes it started. It is sampled, a few times a second: what
is taken and given back in between isn't seen. RLIMIT_AS would count what libraries only reserve, and torch reserves
more than machines have.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import psutil

from mme.server.config import ModelConfig

log = logging.getLogger(__name__)

_PERIOD_S = 0.2
_MB = 1 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Process(Protocol):
    @property
    def pid(self) -> int: ...
    def kill(self) -> None: ...


def private_mb(pid: int) -> float:
    """What a process and its descendants have for themselves alone; 0 if it has gone."""
    total = 0.0
    for each in _tree(pid):
        try:
            total += psutil.Process(each).memory_full_info().uss / _MB
        except (psutil.Error, OSError):
            continue
    return total


def _resident_mb(pid: int) -> float:
    """As much as the private memory can be, read in microseconds; 0 where there is no /proc."""
    pages = 0
    for each in _tree(pid):
        try:
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * _PAGE_BYTES / _MB


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return
    for child in children.split():
        yield from _tree(int(child))


class Limits:
    """Watches the processes of all models."""

    def __init__(self, processes: Callable[[], Iterable[tuple[ModelConfig, Process]]]) -> None:
        self._processes = processes
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._look_again())

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])

    async def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_PERIOD_S)
            for config, process in [*self._processes()]:
                limit_mb = config.worker_memory_mb
                if limit_mb is None or _resident_mb(process.pid) <= limit_mb:
                    continue
                taken_mb = await loop.run_in_executor(None, private_mb, process.pid)
                if taken_mb > limit_mb:
                    log.error(
                        "%s: process %d is killed: it has %d MB of its own, and may have %d (MME_WORKER_MEMORY_MB)",
                        config.title,
                        process.pid,
                        taken_mb,
                        limit_mb,
                    )
                    process.kill()
