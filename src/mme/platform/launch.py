"""Decides how a home's platform is started in the background, found, and stopped with all that it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mme.platform.config import MARK, RUNNING_FILE
from mme.platform.state import owner_pid
from mme.private import UMASK, NotPrivate, private
from mme.processes import marked, sweep
from mme.progress import waiting

if TYPE_CHECKING:
    from mme.settings import Settings  # slow to import, and only named here

LOG_FILE = "platform.log"

UP_TIMEOUT_S = 120  # endpoints of before are brought back first, each with its containers
PING_TIMEOUT_S = 10
DOWN_TIMEOUT_S = 15  # calls under way may end, then it is killed

# Leaves the platform without a parent that would have to wait for it, and says its process id.
_DETACH = """
import subprocess, sys
with open(sys.argv[1], "ab") as log:
    print(subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True).pid)
"""

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LaunchError(Exception):
    """The platform can't be started as asked; the message says why, and what to do."""


@dataclass(frozen=True)
class Running:
    """A platform that answers. The keys are its home's own and open nothing else."""

    url: str
    page_url: str
    """Of the live page, with the key to it."""
    pid: int
    home: Path
    region: str
    instance_memory_mb: int
    container: str
    access_key: str
    secret_key: str


def find(home: Path) -> Running | None:
    """The platform of this home if it is ready to be called."""
    home = home.expanduser().resolve()
    pid = owner_pid(home)
    if pid is None:
        return None
    try:
        said = json.loads((home / RUNNING_FILE).read_text())
    except FileNotFoundError:
        return None  # it is starting, or ending
    return Running(**{**said, "home": home}) if said["pid"] == pid and _answers(said["url"]) else None


def up(settings: Settings) -> Running:
    """The platform of `settings.home`, started unless it runs. Returns when it answers and its endpoints are back.

    Raises LaunchError if it doesn't start, or if the one that runs was started with other settings.
    """
    home = settings.home.expanduser().resolve()
    running = find(home) or _start(settings, home)
    for name in ("region", "instance_memory_mb", "container"):
        if getattr(running, name) != getattr(settings, name):
            raise LaunchError(
                f"the platform of {home} runs with {name}={getattr(running, name)}, not {getattr(settings, name)}; "
                "`mme down` stops it, and its endpoints come back with the next start"
            )
    return running


def down(home: Path) -> bool:
    """Stop the platform of this home and whatever carries its mark; whether there was anything to stop.

    What it keeps stays, and comes back with the next `up`. Raises TimeoutError for a process that can't be killed.
    """
    home = home.expanduser().resolve()
    with waiting("stopping the platform"):
        return _down(home)


def _down(home: Path) -> bool:
    pid = owner_pid(home)
    if pid is not None:
        _signal(pid, signal.SIGTERM)
        if not _wait(lambda: owner_pid(home) != pid, DOWN_TIMEOUT_S):
            _signal(pid, signal.SIGKILL)
            _wait(lambda: owner_pid(home) != pid, DOWN_TIMEOUT_S)
    swept = sweep(MARK, str(home)) + _sweep_docker(home)
    (home / RUNNING_FILE).unlink(missing_ok=True)
    return pid is not None or swept > 0


def _sweep_docker(home: Path) -> int:
    """Remove what a killed platform left in Docker, where the end of our processes ends nothing."""
    try:
        said = json.loads((home / RUNNING_FILE).read_text())
    except FileNotFoundError:
        return 0
    if said["container"] != "docker":
        return 0
    from mme.platform.containers import sweep_docker  # slow to import, and seldom needed

    return sweep_docker(home)


def _refuse_missing(container: str) -> None:
    if container != "embedded":
        from mme.platform.containers import kind_named

        try:
            kind_named(container)
        except ValueError as error:
            raise LaunchError(str(error)) from None


def _start(settings: Settings, home: Path) -> Running:
    _refuse_missing(settings.container)
    try:
        private(home)
    except NotPrivate as error:
        raise LaunchError(str(error)) from None
    if owner_pid(home) is None and marked(MARK, str(home)):
        sweep(MARK, str(home))  # what a killed platform left
    argv = [
        *(sys.executable, "-m", "mme.platform", "--home", str(home), "--region", settings.region),
        *("--instance-memory-mb", str(settings.instance_memory_mb), "--container", settings.container),
    ]
    log_file = home / LOG_FILE
    begin = log_file.stat().st_size if log_file.exists() else 0
    detached = subprocess.run(
        [sys.executable, "-S", "-E", "-c", _DETACH, str(log_file), *argv],
        env=_environment(home),
        cwd="/",
        umask=UMASK,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    pid = int(detached.stdout)
    # Another process may have started one at the same moment: then ours ends, and theirs is as good.
    with waiting("starting the platform"):
        _wait(lambda: find(home) is not None or (_has_ended(pid) and owner_pid(home) is None), UP_TIMEOUT_S)
    running = find(home)
    if running is None:
        said = log_file.read_bytes()[begin:].decode("utf-8", "replace").strip().splitlines()
        raise LaunchError("\n".join([f"the platform did not start; the last lines of {log_file}:", *said[-20:]]))
    return running


def _environment(home: Path) -> dict[str, str]:
    """Without anything that could lead to AWS or through a proxy, and with the mark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {MARK: str(home), "NO_PROXY": "*", "no_proxy": "*"}


def _answers(url: str) -> bool:
    try:
        _direct.open(f"{url}/_mme/ping", timeout=PING_TIMEOUT_S).close()
    except OSError:
        return False  # it was killed just now, and the kernel has not yet let go of its lock
    return True


def _wait(done: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
