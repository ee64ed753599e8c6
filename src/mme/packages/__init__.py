"""A model package: build it reproducibly, list it, unpack it safely. The one place that knows its layout."""

from mme.packages.build import build
from mme.packages.entries import Limits
from mme.packages.errors import CannotBuild, PackageError, PackageNotFound, PackageRefused
from mme.packages.examples import Example, examples, write_examples
from mme.packages.layout import Manifest, prepare, write_properties
from mme.packages.unpack import PARTIAL_SUFFIX, UNPACKER_VERSION, describe, names, read, unpack

__all__ = [
    "PARTIAL_SUFFIX",
    "UNPACKER_VERSION",
    "CannotBuild",
    "Example",
    "Limits",
    "Manifest",
    "PackageError",
    "PackageNotFound",
    "PackageRefused",
    "build",
    "describe",
    "examples",
    "names",
    "prepare",
    "read",
    "unpack",
    "write_examples",
    "write_properties",
]
