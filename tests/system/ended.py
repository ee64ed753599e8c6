"""Whether a process still does anything."""

from __future__ import annotations

import psutil


def is_gone(pid: int) -> bool:
    """Whether it has ended, or has and waits for its parent to ask after it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
