"""Decides what a model package is: which files lie at its top level, and what its manifest records."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mme.packages.entries import Names, check_name
from mme.packages.errors import CannotBuild, PackageNotFound, PackageRefused
from mme.packages.libraries import bundled

PROPERTIES, HANDLER, REQUIREMENTS = "serving.properties", "model.py", "requirements.txt"
MANIFEST, EXAMPLES = "manifest.json", "examples.json"

# What Python raises for a source that it can't parse; the last two where it is nested too deeply.
UNREADABLE = (SyntaxError, ValueError, MemoryError, RecursionError)

# What tools leave in a folder and no handler needs.
_JUNK = {"__pycache__", ".ipynb_checkpoints", ".DS_Store", ".git"}


@dataclass(frozen=True)
class Manifest:
    """With what a package was built: Python's minor version, library versions, and the SHA-256 of each file; and what
    its lib/ brings along, each with version and licence."""

    python: str
    libraries: Mapping[str, str]
    files: Mapping[str, str]
    lib: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, libraries: Iterable[str] = ()) -> Manifest:
        """The manifest that a build of this folder in this environment has; `libraries` adds distributions by name."""
        return cls(
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            libraries=_libraries(folder, libraries),
            files={name: sha256(path) for name, path in files(folder).items()},
            lib={each.name: {"version": each.version, "licence": each.licence} for each in bundled(folder)},
        )

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Raises PackageRefused when the text is not a manifest."""
        try:
            value = json.loads(text)
            lib = {str(name): dict(fields) for name, fields in dict(value.get("lib", {})).items()}
            manifest = cls(str(value["python"]), dict(value["libraries"]), dict(value["files"]), lib)
            for fields in (manifest.libraries, manifest.files, *lib.values()):
                for name, text in fields.items():
                    if not isinstance(text, str):
                        raise ValueError(f"{name}: {text!r} is no text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PackageRefused(f"{MANIFEST} is not a manifest ({error}); build the package again") from None
        return manifest

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=2, sort_keys=True).encode() + b"\n"


def files(folder: Path) -> dict[str, Path]:
    """The files of a package's folder by their names in the archive, sorted; without the manifest and tools' leavings.

    Raises CannotBuild for links, other special files and names that `unpack` would refuse.
    """
    if not folder.is_dir():
        raise PackageNotFound(f"no folder {folder.name} to build a model package from")
    found: dict[str, Path] = {}
    known = Names()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        name = relative.as_posix()
        if _JUNK.intersection(relative.parts) or name == MANIFEST:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            kind = "a symbolic link" if path.is_symlink() else "neither a file nor a folder"
            raise CannotBuild(f'"{name}" is {kind}; put the file itself into the package')
        try:
            known.add(check_name(name), path.is_dir())
        except ValueError as error:
            raise CannotBuild(f"the name {ascii(name)} {error}; rename it") from None
        if path.is_file():
            found[name] = path
    if not found:
        raise CannotBuild(f"{folder.name} holds no files; prepare it with packages.prepare and save the model into it")
    return dict(sorted(found.items()))


def prepare(folder: Path, serving_scripts: Path, properties: Mapping[str, str | int] | None = None) -> Path:
    """Begin a package: an empty folder, the handler's files in it, and its serving.properties with these changes.

    A package that was prepared there before is replaced; any other folder that holds something is left alone
    (CannotBuild), so that a slip in a path deletes nothing.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / PROPERTIES).is_file():
            raise CannotBuild(f"{folder.name} holds other files than a model package's; choose another folder")
        shutil.rmtree(folder)
    shutil.copytree(serving_scripts, folder, ignore=shutil.ignore_patterns(*_JUNK))
    write_properties(folder, properties or {})
    return folder


def write_properties(folder: Path, properties: Mapping[str, str | int]) -> None:
    """Set keys in a package's serving.properties and leave its other lines as they are; ValueError for odd text."""
    for key, value in properties.items():
        if not re.fullmatch(r"[\w.-]+", key):
            raise ValueError(f"{key!r} is not a key that {PROPERTIES} can hold")
        text = str(value)
        if not text.isascii() or re.search(r"[\\\n\r]", text) or text != text.strip():
            raise ValueError(f"{key}={value!r} is read otherwise by Java; use ASCII without backslash or outer blanks")
    path = folder / PROPERTIES
    left = dict(properties)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        key = re.split(r"[=:\s]", line.strip(), maxsplit=1)[0]
        lines.append(f"{key}={left.pop(key)}" if key in left else line)
    lines += [f"{key}={value}" for key, value in left.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def imports(source: str) -> set[str]:
    """The top-level modules a handler imports, at its top or later; SyntaxError as Python has it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"djl_python"}


def requirement_names(folder: Path) -> list[str]:
    """The distributions that a folder's requirements.txt names; what isn't a name is left out."""
    path = folder / REQUIREMENTS
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [match[1] for line in text.splitlines() if (match := re.match(r"\s*([A-Za-z0-9][\w.-]*)", line))]


def _libraries(folder: Path, more: Iterable[str]) -> dict[str, str]:
    wanted = set(more)
    for path in folder.glob("*.py"):
        try:
            modules = imports(path.read_text(encoding="utf-8"))
        except UNREADABLE:
            continue  # `check` names the fault; a package can be built with it
        wanted.update(_distribution(module) for module in modules if not (folder / f"{module}.py").exists())
    wanted.update(requirement_names(folder))
    if any(folder.glob("*.skops")):
        wanted.add("skops")
    versions: dict[str, Any] = {}
    for name in wanted - {each.name for each in bundled(folder)}:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed here, so no version of it made this model
    return dict(sorted(versions.items()))


def _distribution(module: str) -> str:
    """Under which name a module's project is installed: sklearn comes with scikit-learn."""
    try:
        return metadata.metadata(module)["Name"]
    except metadata.PackageNotFoundError:
        return module_owners().get(module, [module])[0]


def module_owners() -> Mapping[str, list[str]]:
    """For each module that can be imported here, the distributions that brought it.

    Reading that takes a good part of a second, so it is done again only when something was installed or removed.
    """
    return _owners(tuple((place, os.stat(place).st_mtime_ns) for place in sys.path if os.path.isdir(place)))


@functools.lru_cache(1)
def _owners(_state: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, as the manifest has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
