"""Decides what a process and all that it started count for: processors' time, memory, number."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    cpu_s: float
    """Of processors, since the beginning, with that of descendants that have ended."""
    memory_mb: float
    """What is shared counted once (on Linux the proportional set sizes; elsewhere what isn't shared)."""
    processes: int


def usage(pid: int) -> Usage:
    """What the process and its descendants take now. Raises psutil.NoSuchProcess for one that isn't there."""
    top = psutil.Process(pid)
    cpu_s, memory_bytes, processes = 0.0, 0, 0
    for process in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            memory = process.memory_full_info()
            memory_bytes += getattr(memory, "pss", memory.uss)
            cpu_s += sum(process.cpu_times()[:4])  # own and ended children's, each user and system
            processes += 1
    return Usage(cpu_s, memory_bytes / 2**20, processes)
