"""Decides whether the container finds in a package what it needs: a handler, its libraries, in the right versions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mme import packages
from mme.checking.containers import Container
from mme.checking.report import Finding, finding
from mme.packages import Manifest
from mme.packages.layout import (
    EXAMPLES,
    HANDLER,
    MANIFEST,
    PROPERTIES,
    REQUIREMENTS,
    UNREADABLE,
    imports,
    module_owners,
)
from mme.server import engines, properties
from mme.server.errors import ModelNotFound, ServerError

# Set to true by who accepts that a model is loaded by other versions than it was trained with.
MISMATCH = "option.allow_version_mismatch"

PICKLES = re.compile(r".*\.(joblib|pkl|pickle|cloudpickle)")


def layout(folder: Path, container: Container) -> Iterator[Finding]:
    """Whether the files lie at the top level, and whether the handler is one."""
    visible = [path for path in folder.iterdir() if path.name not in (MANIFEST, EXAMPLES) and path.name[0] != "."]
    if len(visible) == 1 and visible[0].is_dir():
        inner = visible[0].name
        what = f'everything lies in the folder "{inner}" instead of the top level'
        yield finding("folder-too-deep", what, inner=inner)
        return
    engine, faults = _engine(folder, container)
    yield from faults
    if faults or engine not in ("Python", None):
        return
    entry, function = _entry_point(folder)
    if entry.startswith("djl_python."):
        yield from _built_in(entry, folder, container)
        return
    path = folder / entry
    if not path.is_file():
        if entry == HANDLER and any(PICKLES.fullmatch(item.name) for item in visible) and not _names_entry(folder):
            if container.serves_without_code:
                return
            what = f"there is no handler, and the container {container.tag} brings none for scikit-learn's files"
            yield finding("container-too-old", what)
            return
        if nested := [item.name for item in sorted(visible) if (item / PROPERTIES).is_file()]:
            inner = nested[0]
            what = f'the package lies in the folder "{inner}", and other files beside that: DJL Serving looks no deeper'
            yield finding("folder-too-deep", what, inner=inner)
            return
        what = f"there is no handler: {entry} is missing at the top level"
        yield finding("no-handler", what, entry=entry, function=function)
        return
    try:
        tree = ast.parse(path.read_bytes())
    except UNREADABLE as error:
        line = getattr(error, "lineno", None)
        reason = getattr(error, "msg", error) if str(error) else "it is nested too deeply"
        what = f"{entry} is not Python: {reason}" + (f" (line {line})" if line else "")
        yield finding("syntax-error", what, entry=entry)
        return
    for node in tree.body:
        if isinstance(node, ast.Raise):
            what = f"{entry} line {node.lineno}: its import ends in {ast.unparse(node)}"
            yield finding("raises-when-imported", what)
            return
    if function not in _top_level_names(tree):
        yield finding("no-function", f"{entry} has no function {function}", function=function)


def _engine(folder: Path, container: Container) -> tuple[str | None, list[Finding]]:
    """The engine that DJL Serving takes for the folder, None if it finds none, and what is wrong with it."""
    values = settings_of(folder)
    options = {key.removeprefix("option."): value for key, value in values.items() if key.startswith("option.")}
    try:
        engine = engines.engine_of(folder, options, values.get("engine"))
    except ModelNotFound:
        return None, []  # told by what is missing
    except ServerError as error:
        return None, [finding("unserved-engine", f"the CPU containers can't serve it: {error}")]
    if engine != "Python" and not container.serves_without_code:
        what = f"{engine} answers neither JSON nor CSV in the container {container.tag}, only arrays (npz, NDList)"
        return engine, [finding("container-too-old", what)]
    return engine, []


def _built_in(entry: str, folder: Path, container: Container) -> Iterator[Finding]:
    """Whether a handler of DJL's own is in the container, and finds one model in the package."""
    if not container.serves_without_code and entry in ("djl_python.sklearn_handler", "djl_python.xgboost_handler"):
        yield finding("container-too-old", f"the container {container.tag} has no {entry}")
    elif entry == "djl_python.xgboost_handler":
        if settings_of(folder).get("option.model_format", "json") == "json" and (folder / MANIFEST).is_file():
            yield finding("manifest-taken-for-a-model", f"{entry} takes each .json for a model, and {MANIFEST} is one")


def requirements(folder: Path, container: Container) -> Iterator[Finding]:
    """Whether what the handler imports is in the container, in the package, or required."""
    required: dict[str, Requirement] = {}
    lines = _read(folder / REQUIREMENTS)
    if "\ufffd" in lines:
        yield finding("no-requirement", f"{REQUIREMENTS} is no text in UTF-8; save it as such")
        return
    for number, line in enumerate(lines.splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            yield finding("no-requirement", f"{REQUIREMENTS} line {number}: {text} is no requirement ({error})")
            continue
        required[canonicalize_name(requirement.name)] = requirement
        if not requirement.url and not any(part.operator in ("==", "===") for part in requirement.specifier):
            yield finding(
                "unpinned-requirement",
                f"{REQUIREMENTS} line {number}: {text} isn't pinned, so each load may install another version",
                library=requirement.name,
                version=_installed(requirement.name) or "<version>",
            )
    brought = modules_of(closure(required))
    for path in sorted(folder.glob("*.py")):
        try:
            modules = imports(path.read_text(encoding="utf-8"))
        except UNREADABLE:
            continue  # told by layout() where it is the handler
        for module in sorted(modules - container.modules - brought):
            if (folder / f"{module}.py").exists() or (folder / module).is_dir() or module in packages.modules(folder):
                continue
            name = module_owners().get(module, [module])[0]
            yield finding(
                "missing-library",
                f"{path.name} imports {module}, which neither the container {container.tag} nor {REQUIREMENTS} brings",
                library=name,
                version=_installed(name) or "<version>",
            )


def versions(folder: Path, manifest: Manifest, container: Container) -> Iterator[Finding]:
    """Whether the model meets the Python and the libraries it was made with."""
    pinned = {}
    for line in _read(folder / REQUIREMENTS).splitlines():
        if match := re.fullmatch(r"\s*([\w.-]+)\s*==\s*([\w.+!-]+)\s*(#.*)?", line):
            pinned[canonicalize_name(match[1])] = match[2]
    for name, version in manifest.libraries.items():
        key = canonicalize_name(name)
        bound = f"=={pinned[key]}" if key in pinned else container.libraries.get(key, "")
        there = bound.removeprefix("==")
        if not SpecifierSet(bound).contains(version.partition("+")[0], prereleases=True):
            is_allowed = settings_of(folder).get(MISMATCH) == "true" and key not in pinned
            place = f"{REQUIREMENTS} installs" if key in pinned else f"the container {container.tag} has"
            yield finding(
                "other-version",
                f"the package was built with {name} {version}, but {place} {there}",
                "warning" if is_allowed else "error",
                library=name,
                bound=bound,
                version=version,
            )
    if reason := packages.misfit(folder, packages.Target(container.python)):
        yield finding("library-of-another-system", f"{reason} (the container {container.tag})")
    pickles = sorted(name for name in manifest.files if PICKLES.fullmatch(name))
    if pickles and manifest.python != container.python:
        yield finding(
            "pickle-of-another-python",
            f"{pickles[0]} is a pickle written by Python {manifest.python}, and the container {container.tag} "
            f"reads it with {container.python}",
            python=container.python,
        )


def _entry_point(folder: Path) -> tuple[str, str]:
    values = settings_of(folder)
    return values.get("option.entryPoint", HANDLER), values.get("option.handler", "handle")


def _names_entry(folder: Path) -> bool:
    return "option.entryPoint" in settings_of(folder)


def settings_of(folder: Path) -> dict[str, str]:
    """What a package's serving.properties sets; nothing where it can't be read."""
    try:
        return properties.read(folder / PROPERTIES)
    except ServerError:
        return {}  # told by settings.check()


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def closure(required: Iterable[str]) -> set[str]:
    """The distributions and what they require in turn, as far as they are installed here."""
    found: set[str] = set()
    open_names = [canonicalize_name(name) for name in required]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        found.add(name)
        try:
            texts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, texts):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_names.append(canonicalize_name(requirement.name))
    return found


def modules_of(distributions: set[str]) -> set[str]:
    """The modules they bring; of one that isn't installed here, the module of its own name."""
    modules = {name.replace("-", "_") for name in distributions}
    for module, owners in module_owners().items() if distributions else ():
        if any(canonicalize_name(owner) in distributions for owner in owners):
            modules.add(module)
    return modules
