"""Decides what is told of a package's model files before anything loads them: pickles that reach too far, types that
skops was not told to trust."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mme import packages
from mme.checking import pickles
from mme.checking.contents import PICKLES, closure, modules_of, settings_of
from mme.checking.report import Finding, finding
from mme.packages.layout import requirement_names
from mme.packages.models import TRUSTED_TYPES

# What a model in a pickle may be made of where no manifest says more.
_SCIKIT_LEARN = ("scikit-learn", "joblib", "numpy")
_SHOWN = 5


# For each pickle of a package, by name: what it would import, or why it can't be read.
Pickled = dict[str, list[pickles.Import] | pickles.PickleError]


def pickled(folder: Path) -> Pickled:
    """Read the pickles of an unpacked package, without loading them."""
    found: Pickled = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and PICKLES.fullmatch(path.name) and path.relative_to(folder).parts[0] != packages.LIB:
            name = path.relative_to(folder).as_posix()
            try:
                found[name] = pickles.imports(path)
            except pickles.PickleError as error:
                found[name] = error
    return found


def check(folder: Path, read: Pickled, libraries: Mapping[str, str]) -> Iterator[Finding]:
    """The faults of an unpacked package's pickles, as they were read, and of its skops files; `libraries` are its
    model's, as the manifest has them."""
    allowed = _modules(folder, libraries) if read else set()
    for name, found in read.items():
        if isinstance(found, pickles.PickleError):
            yield finding("pickle-unreadable", str(found))
            continue
        yield from _reach(name, [each for each in found if not each.is_harmless], allowed)
    for path in sorted(folder.glob("*.skops")):
        yield from _types(path, settings_of(folder).get(TRUSTED_TYPES, ""))


def _modules(folder: Path, libraries: Mapping[str, str]) -> set[str]:
    """The modules that the package's model may come from: its libraries', what those require, and its own."""
    names = {*libraries, *_SCIKIT_LEARN}
    names.update(requirement_names(folder))
    own = {path.name.removesuffix(".py") for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    return modules_of(closure(names)) | own | packages.modules(folder)


def _reach(name: str, found: list[pickles.Import], allowed: set[str]) -> Iterator[Finding]:
    standard = [str(each) for each in found if each.is_standard and each.top != "__main__"]
    if standard:
        what = f"{name} would call {_listed(standard)} when it is loaded, which no model needs"
        yield finding("pickle-calls-the-system", what)
    if own := [str(each) for each in found if each.top == "__main__"]:
        what = f"{name} needs {_listed(own)}, which was defined in a notebook or script and is not in the package"
        yield finding("class-of-a-notebook", what)
    foreign = [str(each) for each in found if not each.is_standard and each.top not in allowed]
    if foreign:
        what = f"{name} would import {_listed(foreign)}, which is of none of its model's libraries"
        yield finding("pickle-of-a-strange-library", what)


def _types(path: Path, trusted: str) -> Iterator[Finding]:
    import skops.io

    try:
        unknown = set(skops.io.get_untrusted_types(file=path)) - {name.strip() for name in trusted.split(",")}
    except (zipfile.BadZipFile, OSError, LookupError, TypeError, ValueError) as error:
        yield finding("skops-unreadable", f"{path.name} can't be read as skops ({error})")
        return
    if unknown:
        what = f"{path.name} holds types that it isn't trusted with: {_listed(sorted(unknown))}"
        yield finding("skops-untrusted", what)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
