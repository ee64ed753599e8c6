"""Decides when a process gives memory back that its allocator keeps: after loading, which needs more than its result.

Half of what unpickling a forest takes are copies that are dropped again; glibc keeps their pages unless it is told.
"""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def trim() -> None:
    """Return unused pages of the heap to the system, in about a millisecond; nothing where the C library can't."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
