"""A model package: build it reproducibly, list it, unpack it safely. The one place that knows its layout."""

from mme.packages.build import build, pack
from mme.packages.entries import Limits
from mme.packages.errors import CannotBuild, PackageError, PackageNotFound, PackageRefused
from mme.packages.examples import Example, examples, write_examples
from mme.packages.layout import Manifest, prepare, write_properties
from mme.packages.libraries import (
    CONTAINER,
    LIB,
    Library,
    Target,
    add_libraries,
    bundled,
    misfit,
    modules,
    read_requirements,
)
from mme.packages.models import Format, convert_model, save_model
from mme.packages.unpack import PARTIAL_SUFFIX, UNPACKER_VERSION, describe, names, read, unpack, verify

__all__ = [
    "CONTAINER",
    "LIB",
    "PARTIAL_SUFFIX",
    "UNPACKER_VERSION",
    "CannotBuild",
    "Example",
    "Format",
    "Library",
    "Limits",
    "Manifest",
    "PackageError",
    "PackageNotFound",
    "PackageRefused",
    "Target",
    "add_libraries",
    "build",
    "bundled",
    "convert_model",
    "describe",
    "examples",
    "misfit",
    "modules",
    "names",
    "pack",
    "prepare",
    "read",
    "read_requirements",
    "save_model",
    "unpack",
    "verify",
    "write_examples",
    "write_properties",
]
