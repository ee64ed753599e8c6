"""Decides that a folder is this user's alone: what lies in it is secret, or is believed when it is found again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

UMASK = 0o077
"""Of processes that write what nobody else may read."""


class NotPrivate(ValueError):
    """Another user has the folder, or could have put something into it; the message says so, and what to do."""


def private(folder: Path) -> Path:
    """The folder, made with its parents if it isn't there, closed to everybody else if it is.

    Raises NotPrivate for one that another user owns or may write to, and for a link or a file in its place.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise NotPrivate(f"{folder} is no folder; remove it, or choose another") from None
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
        raise NotPrivate(f"{folder} isn't this user's alone: others may have put anything there; choose another folder")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder
