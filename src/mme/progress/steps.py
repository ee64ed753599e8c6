"""Decides what is being waited for: whoever makes others wait says so here, and knows nothing of who shows it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Step:
    """One thing that is waited for. Its words and its count may change while it lasts, from any thread."""

    def __init__(self, text: str, total: int | None, is_bytes: bool) -> None:
        self.text = text
        self.total = total
        self.is_bytes = is_bytes
        self.done = 0

    def say(self, text: str) -> None:
        self.text = text

    def advance(self, count: int) -> None:
        with _lock:
            self.done += count

    def count(self) -> str:
        """How far it is, in words; empty where nothing is counted."""
        if not (self.done or self.total):
            return ""
        done, total = (f"{each / 2**20:.0f}" if self.is_bytes else str(each) for each in (self.done, self.total or 0))
        of_total = f"{done} of {total}" if self.total else done
        return f"{of_total} MB" if self.is_bytes else of_total

    def __str__(self) -> str:
        return f"{self.text}: {count}" if (count := self.count()) else self.text


class Watcher(Protocol):
    """Who shows what is waited for, from when the first step begins until the last one ends."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


@contextmanager
def waiting(text: str, total: int | None = None, *, is_bytes: bool = False) -> Iterator[Step]:
    """Say that a block makes somebody wait, and for what; of several, the one that began last is shown.

    With a `total`, whoever waits sees how much of it is done. Costs some microseconds where nobody watches.
    """
    step = Step(text, total, is_bytes)
    with _lock:
        _steps.append(step)
        is_first = len(_steps) == 1
    if is_first and _watcher is not None:
        _watcher.begin()
    try:
        yield step
    finally:
        with _lock:
            _steps.remove(step)
            is_last = not _steps
        if is_last and _watcher is not None:
            _watcher.end()


def current() -> Step | None:
    """What is waited for at this moment."""
    with _lock:
        return _steps[-1] if _steps else None


def watch(watcher: Watcher | None) -> None:
    """Let somebody show what is waited for from now on; None lets nobody."""
    global _watcher
    _watcher = watcher


_lock = threading.Lock()
_steps: list[Step] = []
_watcher: Watcher | None = None
