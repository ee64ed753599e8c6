"""Decides how this room fails.

PackageError
├── CannotBuild        what lies in a folder can't become a package
├── PackageRefused     an archive that must not be unpacked
└── PackageNotFound    no file or folder there
"""

from __future__ import annotations


class PackageError(Exception):
    """A model package is at fault; the message says where, and what to do."""

    code = "PackageError"


class CannotBuild(PackageError):
    code = "CannotBuild"


class PackageRefused(PackageError):
    code = "PackageRefused"


class PackageNotFound(PackageError):
    code = "PackageNotFound"
