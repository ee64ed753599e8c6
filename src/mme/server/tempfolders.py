"""Decides where each worker's temporary folder is, and that it goes with the worker, however that ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import psutil

_PREFIX = "tmp-"  # before the pid of the server whose workers' folders are inside


class TemporaryFolders:
    """Folders for one server's workers, those of a model beside each other; another user can look into none of them."""

    def __init__(self, parent: Path) -> None:
        """Removes what servers that were killed have left in `parent`."""
        for left in parent.glob(_PREFIX + "*"):
            pid = left.name.removeprefix(_PREFIX)
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
        self._root = parent / f"{_PREFIX}{os.getpid()}"
        self._models: weakref.WeakKeyDictionary[Any, Path] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count(1)

    def make(self, model: object) -> Path:
        """A new folder for a worker of this model; its parent is the model's."""
        folder = self._models.setdefault(model, self._root / str(next(self._numbers))) / str(next(self._numbers))
        for place in (self._root, folder.parent, folder):
            place.mkdir(mode=0o700, exist_ok=True)
        return folder

    def remove(self, folder: Path) -> None:
        """Remove a worker's folder, and the model's with its last one."""
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others of the model are there
            folder.parent.rmdir()

    def close(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
