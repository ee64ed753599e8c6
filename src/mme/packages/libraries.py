"""Decides what lies in a package's lib/: libraries for the container's Python and system, on whatever machine it is
built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, parse_tag, sys_tags
from packaging.utils import canonicalize_name

from mme.packages.errors import CannotBuild
from mme.progress import waiting
from mme.scratch import scratch

LIB = "lib"

# What an installer writes down of an installation, which a package is not.
_INSTALLERS_NOTES = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"}
_PIP_TIMEOUT_S = 600
_OLDEST_GLIBC = 5  # manylinux wheels begin with glibc 2.5 (PEP 513)


@dataclass(frozen=True)
class Target:
    """A CPython on a Linux, as wheels are built for it. The default is the DJL Serving image's: Ubuntu 22.04."""

    python: str = "3.11"
    machine: str = "x86_64"
    glibc_minor: int = 35

    def __str__(self) -> str:
        return f"Python {self.python} on Linux {self.machine}"

    def platforms(self) -> list[str]:
        """The platforms whose wheels it takes, the newest first (PEP 600, with the older names)."""
        newest_first = range(self.glibc_minor, _OLDEST_GLIBC - 1, -1)
        names = [*(f"manylinux_2_{minor}" for minor in newest_first), "manylinux2014", "manylinux2010", "manylinux1"]
        return [f"{name}_{self.machine}" for name in names]

    def tags(self) -> frozenset[Tag]:
        """The tags of the wheels that it takes."""
        major, minor = map(int, self.python.split("."))
        of_cpython = cpython_tags((major, minor), platforms=self.platforms())
        of_any = compatible_tags((major, minor), f"cp{major}{minor}", self.platforms())
        return frozenset([*of_cpython, *of_any])


CONTAINER = Target()


@dataclass(frozen=True)
class Library:
    """A distribution in a package's lib/, with its licence in its own words and the tags of its wheel."""

    name: str
    version: str
    licence: str
    tags: frozenset[Tag]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def add_libraries(folder: Path, requirements: Iterable[str], target: Target = CONTAINER) -> list[Library]:
    """Unpack these distributions into a package's lib/, for the target, and return what then lies there.

    Each is pinned ("onnxruntime==1.32.0"), and what it requires in turn is not taken along: name it too where the
    container doesn't have it. One that is installed here in this version and for the target is copied, without a
    network; pip fetches the others' wheels. A handler finds them when it puts the folder lib on sys.path, first.
    Raises ValueError for a requirement that isn't pinned, CannotBuild with pip's words where there is no such wheel.
    """
    wanted = [_pinned(text) for text in requirements]
    place = folder / LIB
    place.mkdir(exist_ok=True)
    absent = []
    for requirement in wanted:
        installed = _installed(requirement)
        if installed is not None and target.tags() & _library(installed).tags:
            _copy(installed, place)
        else:
            absent.append(str(requirement))
    if absent:
        with waiting(f"fetching {', '.join(absent)}"):
            _fetch(absent, place, target)
    return bundled(folder)


def read_requirements(file: Path) -> list[str]:
    """The lines of a requirements file, without comments and blanks, as `add_libraries` takes them.

    Raises ValueError for a file that is no text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text; write a name==version a line into it") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def bundled(folder: Path) -> list[Library]:
    """The distributions in a package's lib/, by name; none where it has no such folder."""
    found = metadata.distributions(path=[str(folder / LIB)]) if (folder / LIB).is_dir() else ()
    return sorted((_library(each) for each in found), key=lambda library: library.name)


def modules(folder: Path) -> set[str]:
    """The names that a handler can import from a package's lib/."""
    entries = (folder / LIB).iterdir() if (folder / LIB).is_dir() else ()
    return {path.name.partition(".")[0] for path in entries if path.suffix != ".dist-info"}


def misfit(folder: Path, target: Target | None = None) -> str | None:
    """Why a package's lib/ can't be imported by the target, or by this interpreter without one; None if it can."""
    libraries = bundled(folder)
    if not libraries:
        return None
    taken: Set[Tag] = target.tags() if target else _own_tags()
    for library in libraries:
        if not library.tags & taken:
            built_for = ", ".join(sorted(map(str, library.tags)))
            here = target or f"Python {sys.version_info.major}.{sys.version_info.minor} on {_own_platform()}"
            return f"{LIB}/ holds {library} for {built_for}, which {here} can't import"
    return None


@cache
def _own_tags() -> frozenset[Tag]:
    return frozenset(sys_tags())


def _own_platform() -> str:
    return next(iter(sys_tags())).platform


def _pinned(text: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is no requirement ({error}); write name==version") from None
    if [part.operator for part in requirement.specifier] != ["=="] or requirement.extras or requirement.url:
        raise ValueError(f"{text!r} doesn't name one version; write {requirement.name}==<version>")
    return requirement


def _installed(requirement: Requirement) -> metadata.Distribution | None:
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return None
    return found if found.files and requirement.specifier.contains(found.version, prereleases=True) else None


def _library(found: metadata.Distribution) -> Library:
    wheel = (found.read_text("WHEEL") or "").splitlines()
    tags = frozenset(tag for line in wheel if line.startswith("Tag: ") for tag in parse_tag(line[5:].strip()))
    return Library(canonicalize_name(found.metadata["Name"]), found.version, _licence(found.metadata), tags)


def _licence(fields: metadata.PackageMetadata) -> str:
    expressions: list[str] = fields.get_all("License-Expression", [])
    classified = [line.rpartition(" :: ")[2] for line in fields.get_all("Classifier", []) if line.startswith("License")]
    free_texts = [text.strip().partition("\n")[0] for text in fields.get_all("License", [])]
    return ", ".join(expressions or classified or free_texts) or "not stated"


def _copy(found: metadata.Distribution, place: Path) -> None:
    for file in found.files or ():
        if ".." in file.parts or file.suffix == ".pyc" or _is_a_note(Path(file)):
            continue
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(str(file.locate())), place / file)


def _is_a_note(path: Path) -> bool:
    return path.parent.suffix == ".dist-info" and path.name in _INSTALLERS_NOTES


def _fetch(requirements: list[str], place: Path, target: Target) -> None:
    """What pip would install for the target, without scripts and notes."""
    with scratch() as fetched:
        version = target.python.replace(".", "")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        of_target = ["--python-version", target.python, "--implementation", "cp", "--abi", f"cp{version}"]
        of_target += [word for name in target.platforms() for word in ("--platform", name)]
        options = ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(fetched), *of_target]
        said = subprocess.run([*pip, *options, *requirements], capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
        if said.returncode:
            lines = [line for line in said.stderr.splitlines() if line.startswith("ERROR: ")] or [said.stderr.strip()]
            raise CannotBuild(
                f"no wheel of {', '.join(requirements)} for {target}; pip says: {lines[-1].removeprefix('ERROR: ')}; "
                "correct the version, or give pip an index or PIP_FIND_LINKS that has it"
            )
        shutil.rmtree(fetched / "bin", ignore_errors=True)
        for path in [*fetched.rglob("*")]:
            if _is_a_note(path):
                path.unlink()
        shutil.copytree(fetched, place, dirs_exist_ok=True)
