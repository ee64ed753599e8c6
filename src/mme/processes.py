"""Decides which processes still belong to a home or a container: those that carry its mark in their environment."""

from __future__ import annotations

import os

import psutil


def marked(name: str, value: str) -> list[psutil.Process]:
    """The processes, other than this one, that were started with `name=value` in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return found


def sweep(name: str, value: str, timeout_s: float = 5) -> int:
    """Kill every process that carries `name=value` in its environment, and say how many there were.

    Repeats until none is left, since one that forks while it is being killed leaves a child;
    raises TimeoutError naming the pids that are still there after `timeout_s`.
    """
    swept: set[int] = set()
    for _ in range(10):
        processes = marked(name, value)
        if not processes:
            return len(swept)
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        swept.update(process.pid for process in processes)
        psutil.wait_procs(processes, timeout=timeout_s / 10)
    left = [process.pid for process in marked(name, value)]
    if left:
        raise TimeoutError(f"processes {left} with {name}={value} could not be killed; end them by hand")
    return len(swept)
