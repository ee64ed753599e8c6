"""Decides where each worker's temporary folder is, and that it goes with the worker, however that ends."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

from mme.scratch import scratch


class TemporaryFolders:
    """Folders for one server's workers, those of a model beside each other; another user can look into none of them."""

    def __init__(self, parent: Path) -> None:
        """Removes what servers that were killed have left in `parent`."""
        self._place = contextlib.ExitStack()
        self._root = self._place.enter_context(scratch(parent, "tmp-"))
        self._models: weakref.WeakKeyDictionary[Any, Path] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count(1)
        self._parents = threading.Lock()  # over them: none is removed under the next worker's folder

    def make(self, model: object) -> Path:
        """A new folder for a worker of this model; its parent is the model's."""
        folder = self._models.setdefault(model, self._root / str(next(self._numbers))) / str(next(self._numbers))
        with self._parents:
            for place in (folder.parent, folder):
                place.mkdir(mode=0o700, exist_ok=True)
        return folder

    def remove(self, folder: Path) -> None:
        """Remove a worker's folder, and the model's with its last one; from any thread."""
        shutil.rmtree(folder, ignore_errors=True)
        with self._parents, contextlib.suppress(OSError):  # others of the model are there
            folder.parent.rmdir()

    def close(self) -> None:
        self._place.close()
