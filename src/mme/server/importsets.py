"""Decides which models can share a branch of the nursery: those whose code imports the same under the same settings."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mme import packages

_MAX_FILES = 200  # of a package are read for their imports; what more there is shows in what the worker imports
_MAX_FILE_BYTES = 1 << 20
_MAX_SOURCES = 64  # are remembered with what they import
_MAX_SETS = 64  # are remembered, the last used


@dataclass(frozen=True)
class Key:
    """What a model's code says it imports, and the environment it wants while it does."""

    imports: frozenset[str]
    env: frozenset[tuple[str, str]]

    def id(self) -> str:
        """A name for the key, the same in every run."""
        text = json.dumps([sorted(self.imports), sorted(self.env)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_shared(self) -> bool:
        """Whether what models of this key import is this interpreter's: on a path of its own a package may have code.

        That must run in its workers' boxes alone; a branch has none.
        """
        return "PYTHONPATH" not in dict(self.env)

    def installed(self) -> list[str]:
        """Those of the imports that this interpreter would find; nothing is imported to tell."""
        tops = {name: name.partition(".")[0] for name in self.imports}
        return sorted(name for name, top in tops.items() if top and importlib.util.find_spec(top))


def key_of(folder: Path, entry_point: str, env: Mapping[str, str]) -> Key:
    """The key of a package: the modules that its Python files import, in functions too, but for its own and Python's.

    What lies in its lib/ is its own: another version of it may be installed here, and its files import much more.

    A file that isn't Python counts as one that imports nothing: its worker will say what is wrong with it.
    """
    names: set[str] = set()
    own = {"__main__", "djl_python", *packages.modules(folder), *sys.stdlib_module_names}
    found = (path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] != packages.LIB)
    for path in sorted(found)[:_MAX_FILES]:
        own.add(path.relative_to(folder).parts[0].removesuffix(".py"))
        if path.stat().st_size <= _MAX_FILE_BYTES:
            names.update(_imported_by(path.read_bytes()))
    if any(folder.glob("*.skops")):
        names.add("skops.io")  # which brings so much along that models in other formats have a branch without it
    if not entry_point.endswith(".py"):
        names.add(entry_point)
        own.discard("djl_python")  # a handler of DJL's own, such as djl_python.sklearn_handler
    return Key(frozenset(name for name in names if name.partition(".")[0] not in own), frozenset(env.items()))


@lru_cache(_MAX_SOURCES)  # the same handler comes with many models, and parsing takes longer than forking
def _imported_by(source: bytes) -> frozenset[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return frozenset(names)


@dataclass
class ImportSets:
    """What the models of each key were seen to import, in order, kept in a file for the next start."""

    path: Path
    _modules: dict[Key, list[str]] = field(default_factory=dict)
    _saving: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, folder: Path) -> ImportSets:
        """The sets learned by this interpreter; none if the file isn't there or can't be understood."""
        name = hashlib.sha256(f"{sys.executable} {sys.version}".encode()).hexdigest()[:8]
        sets = cls(folder / f"import-sets-{name}.json")
        try:
            entries = json.loads(sets.path.read_text("utf-8"))
            for entry in entries:
                key = Key(frozenset(entry["imports"]), frozenset(entry["env"].items()))
                sets._modules[key] = [str(name) for name in entry["modules"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return sets
        return sets

    def keys(self) -> list[Key]:
        """The keys, the last learned first."""
        return [*reversed(self._modules)]

    def modules(self, key: Key) -> list[str] | None:
        """What models of this key import, or None if none was loaded yet."""
        return self._modules.get(key)

    def learn(self, key: Key, modules: Iterable[str]) -> bool:
        """Add what a model of this key has imported; whether that was news."""
        known = self._modules.pop(key, None)
        merged = [*dict.fromkeys([*(known or []), *modules])]
        self._modules[key] = merged
        while len(self._modules) > _MAX_SETS:
            del self._modules[next(iter(self._modules))]
        return known is None or len(merged) > len(known)

    def save(self) -> None:
        """Write the file, readable by this user only: an environment may hold secrets. For any thread."""
        with self._saving:
            entries = [
                {"imports": sorted(key.imports), "env": dict(key.env), "modules": modules}
                for key, modules in [*self._modules.items()]
            ]
            new = self.path.with_suffix(f".{os.getpid()}.new")
            new.touch(0o600)
            new.write_text(json.dumps(entries), "utf-8")
            new.replace(self.path)
