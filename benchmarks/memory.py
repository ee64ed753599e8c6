"""Decides what a server takes: the proportional set size of all its processes, each shared page counted once."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from mme.processes import marked

MARK = "MME_BENCHMARK"  # in the environment of a server under test, and so in that of whatever it starts


@dataclass(frozen=True)
class Taken:
    """Memory of a server's processes, in MB."""

    pss_mb: float
    private_mb: dict[int, float]
    """What each process, by its id, shares with no other: what would come back if it alone ended."""


def processes(pid: int, mark: str) -> list[psutil.Process]:
    """A server, its descendants, and those that carry its mark: daemons leave the tree."""
    found = {process.pid: process for process in marked(MARK, mark)}
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        found |= {process.pid: process for process in [root, *root.children(recursive=True)]}
    return list(found.values())


def measure(pid: int, mark: str) -> Taken:
    """What the server takes now; a process that ends meanwhile counts nothing. Linux only, for its PSS."""
    pss, private = 0.0, {}
    for process in processes(pid, mark):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError):
            full = process.memory_full_info()
            pss += full.pss / 2**20
            private[process.pid] = full.uss / 2**20
    return Taken(pss, private)


def settled(pid: int, mark: str, timeout_s: float = 8.0) -> Taken:
    """As `measure`, once two looks half a second apart differ by less than a hundredth or 1 MB."""
    end = time.monotonic() + timeout_s
    before = measure(pid, mark)
    while True:
        time.sleep(0.5)
        now = measure(pid, mark)
        if abs(now.pss_mb - before.pss_mb) < max(1.0, now.pss_mb / 100) or time.monotonic() > end:
            return now
        before = now
