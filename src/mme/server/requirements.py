"""Decides whether a package can run here, and in which interpreter, so that nothing is installed for others.

What is satisfied already costs nothing. What isn't goes into a virtual environment in the container's cache, shared by
packages that ask for the same, in which the packages of the server's own environment can be seen. DJL Serving installs
into its own environment, and goes on with a warning if that fails; here the load fails with pip's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mme import forkserver, packages
from mme.discretion import discreet, within
from mme.private import NotPrivate, private
from mme.server.config import ModelConfig
from mme.server.errors import LoadFailed
from mme.server.worker import box

_ASK_FOR_PACKAGES = "import json, sys; print(json.dumps([sys.version, [p for p in sys.path if 'packages' in p]]))"
_PIP_CONFIGS = (".config/pip/pip.conf", ".pip/pip.conf")
# Of a line that may lead to a file of the package's: what is in that decides what is installed.
_NAMES_A_FILE = re.compile(r"-[rce]|--(requirement|constraint|editable)|[^#]*/|file:")
_READ_BY_PIP = ("PIP_", "SSL_CERT_", "REQUESTS_CA_")  # variables that may name files
_installs: dict[Path, asyncio.Lock] = {}
_satisfied: set[str] = set()  # looked up once: nothing is uninstalled from under a running server


def examine(config: ModelConfig) -> None:
    """Whether the package is what its manifest says, and its lib/ is for this interpreter; LoadFailed where it isn't.

    DJL Serving looks at neither: it would serve other files than were packed, and fail at an import.
    """
    try:
        packages.verify(config.model_dir)
    except packages.PackageRefused as error:
        raise LoadFailed(str(error)) from None
    if config.python is None and (reason := packages.misfit(config.model_dir)):
        raise LoadFailed(reason)


async def interpreter(config: ModelConfig, cache_dir: Path | None, rules: box.Rules) -> str | None:
    """The interpreter for the package's workers; None stands for the server's own, from which workers are forked.

    Raises LoadFailed with what pip said, OSError if the configured interpreter can't be run.
    """
    file = config.model_dir / "requirements.txt"
    wanted = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if config.python is None and not config.enable_venv and are_satisfied(wanted.splitlines()):
        return None
    if not wanted.strip() and not config.enable_venv:
        return config.python
    environment = await asyncio.to_thread(_place, config, wanted, cache_dir)
    async with _alone_with(environment):
        if not (environment / "complete").exists():
            await _make(environment, config, file if wanted.strip() else None, rules)
    return str(environment / "bin" / "python")


def forget(config: ModelConfig | None, cache_dir: Path | None) -> None:
    """Remove the environment that a package had for itself alone (`option.enable_venv`), as DJL does on unload."""
    if config is not None and config.enable_venv:
        shutil.rmtree(_place(config, "", cache_dir), ignore_errors=True)


def are_satisfied(lines: Iterable[str]) -> bool:
    """Whether the server's environment has all of it. What isn't a plain requirement (options, urls) is left to pip."""
    for line in lines:
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#") or text in _satisfied:
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return False
        if requirement.url is not None or not _is_installed(requirement, set()):
            return False
        _satisfied.add(text)
    return True


def _is_installed(requirement: Requirement, seen: set[str]) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return True
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    if not requirement.specifier.contains(found.version, prereleases=True):
        return False
    name = canonicalize_name(requirement.name)
    for extra in requirement.extras:
        if f"{name}[{extra}]" in seen:
            continue
        seen.add(f"{name}[{extra}]")
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is not None and "extra" in str(needed.marker) and needed.marker.evaluate({"extra": extra}):
                needed.marker = None
                if not _is_installed(needed, seen):
                    return False
    return True


def _place(config: ModelConfig, wanted: str, cache_dir: Path | None) -> Path:
    """The same place for the same interpreter, list and wheels of the package's own; else no other package's."""
    if config.enable_venv:
        key = str(config.model_dir)
    else:
        has_files = any(_NAMES_A_FILE.match(line.strip()) for line in wanted.splitlines())
        key = wanted + _digest(config.model_dir if has_files else config.model_dir / "requirements")
    digest = hashlib.sha256(f"{config.python or sys.executable}\0{key}".encode()).hexdigest()[:16]
    try:
        cache = cache_dir or private(Path(tempfile.gettempdir()) / f"mme-cache-{os.getuid()}")
        return private(cache / "environments") / digest
    except NotPrivate as error:  # somebody else's environment would be somebody else's code
        reason = "requirements.txt can't be satisfied: the server has no folder of its own for it"
        raise LoadFailed(reason, str(error)) from error


def _digest(folder: Path) -> str:
    """Of the names and contents of all files in a folder; the same for one that isn't there and an empty one."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


@contextlib.asynccontextmanager
async def _alone_with(environment: Path) -> AsyncIterator[None]:
    """No other load makes this environment meanwhile, in this server or in one beside it."""
    async with _installs.setdefault(environment, asyncio.Lock()):
        with environment.parent.with_name(f"{environment.name}.lock").open("w") as lock:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            yield


async def _make(environment: Path, config: ModelConfig, file: Path | None, rules: box.Rules) -> None:
    python = config.python or sys.executable
    shutil.rmtree(environment, ignore_errors=True)
    environment.mkdir()
    with _home(environment) as home:
        run = partial(_run, rules, environment, home, [str(config.model_dir), *box.around(python)])
        await run(python, "-m", "venv", "--without-pip", str(environment))
        own = str(environment / "bin" / "python")
        parent_packages = json.loads(await run(python, "-c", _ASK_FOR_PACKAGES))[1]
        site = Path(json.loads(await run(own, "-c", _ASK_FOR_PACKAGES))[1][0])
        (site / "parent.pth").write_text("\n".join(parent_packages) + "\n")
        if file is not None:
            links = file.parent / "requirements"
            options = ["--find-links", str(links)] if links.is_dir() else []
            if _is_offline(config):
                options.append("--no-index" if links.is_dir() else "--no-deps")
            pip = [sys.executable, "-m", "pip", "--python", own, "--disable-pip-version-check", "--no-input"]
            try:
                await run(*pip, "install", "--quiet", *options, "--requirement", str(file))
            except LoadFailed as error:
                raise LoadFailed(discreet(str(error), {within(file.parent): "", within(environment): ""})) from error
    (environment / "complete").touch()


@contextlib.contextmanager
def _home(environment: Path) -> Iterator[Path]:
    """A home for what makes the environment, with what the user's says to pip."""
    home = environment / "home"
    for name in _PIP_CONFIGS:
        (home / name).parent.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(Path.home() / name, home / name)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)  # what was killed may still be at it; the next to make it removes all


def _is_offline(config: ModelConfig) -> bool:
    return os.environ.get("DJL_OFFLINE", config.env.get("DJL_OFFLINE", "")).lower() == "true"


async def _run(rules: box.Rules, environment: Path, home: Path, reads: list[str], *argv: str) -> str:
    """What a command prints that makes an environment; it may run a package's code, so it has a box, with a network."""
    variables = rules.environment(os.environ) | {"HOME": str(home), "TMPDIR": str(home)}
    named = [value for name, value in variables.items() if name.startswith(_READ_BY_PIP) and os.path.isabs(value)]
    request = rules.request(str(home)) | {"has_network": True}
    asked = json.dumps(request), str(environment), json.dumps([*reads, *named])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", box.__file__, *asked, *argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=variables,
        start_new_session=True,
    )
    try:
        output = (await process.communicate())[0].decode("utf-8", "replace")
    finally:  # at the end or before it: what it has started goes with it
        forkserver.kill_rest_of_group(process.pid)
        await process.wait()
    if process.returncode:
        raise LoadFailed(f"requirements.txt can't be satisfied; pip says: {output.strip()}")
    return output
