"""Decides where temporary files lie, and that those of a process that was killed go when the next one begins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "mme-scratch-"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder in the temporary directory, for this user alone, removed at the end.

    Its process holds a lock on it, which the kernel lets go of with the process. What killed processes of this user
    left unlocked is removed first; nobody else's folder is looked into.
    """
    _remove_what_the_dead_left()
    folder, lock = _new()
    owner = os.getpid()
    try:
        yield folder
    finally:
        if os.getpid() == owner:  # not a fork of it that ends
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with contextlib.suppress(FileNotFoundError):  # another start took it for a dead one's before it was locked
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_what_the_dead_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # it has just been removed, or is no folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # its process lives
        finally:
            os.close(lock)
