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
def scratch(parent: Path | None = None, prefix: str = _PREFIX) -> Iterator[Path]:
    """A new folder in the temporary directory or in `parent`, for this user alone, removed at the end.

    Its process holds a lock on it, which the kernel lets go of with the process. What killed processes of this user
    left unlocked under the same prefix is removed first; nobody else's folder is looked into.
    """
    place = parent or Path(tempfile.gettempdir())
    _remove_what_the_dead_left(place, prefix)
    folder, lock = _new(place, prefix)
    owner = os.getpid()
    try:
        yield folder
    finally:
        if os.getpid() == owner:  # not a fork of it that ends
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new(place: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        with contextlib.suppress(FileNotFoundError):  # another start took it for a dead one's before it was locked
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_what_the_dead_left(place: Path, prefix: str) -> None:
    for folder in place.glob(prefix + "*"):
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
