"""Decides how a server under test is started, asked, measured and stopped; what differs between them is in `adapters`.

What is here fits every server that keeps the multi-model container contract.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import BUILD, FOLDER, environments, load, memory, models
from mme.processes import marked, sweep

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
JSON = [("Content-Type", "application/json")]


class PeerFailed(Exception):
    """A server doesn't start, or gives an answer that isn't the model's."""


class Peer:
    """One kind of server, and the one that runs of it."""

    name: ClassVar[str]
    title: ClassVar[str]
    requirements: ClassVar[tuple[str, ...]] = ()
    lean: ClassVar[bool] = False
    """Without pandas, pyarrow and torch, and so without SetFit."""
    ready: ClassVar[str] = "/ping"
    unloads: ClassVar[bool] = True
    scales: ClassVar[bool] = False
    """Can it give a loaded model one more worker?"""
    warm_s: ClassVar[float] = 0.5
    """Traffic before anything is timed; a JVM compiles meanwhile."""

    def __init__(self) -> None:
        self.log = BUILD / "logs" / f"{self.name}.log"
        self.connection: load.Connection | None = None
        self.loaded: set[str] = set()
        """Models that a measurement leaves loaded for the next one."""

    # What differs

    def python(self) -> Path:
        """The interpreter of its environment. Raises environments.CannotInstall."""
        return environments.python(self.name, self.requirements, lean=self.lean)

    def command(self) -> list[str]:
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        return {}

    def prepare(self, name: str) -> None:
        """What a user does once, before a model is loaded: no part of a load's time."""

    def load_request(self, name: str) -> bytes:
        arguments = json.dumps({"model_name": name, "url": str(models.STORE / name)}).encode()
        return load.request("POST", "/models", arguments, JSON)

    def load(self, name: str) -> None:
        self.expect_ok(f"load {name}", self.send(self.load_request(name)))

    def unload(self, name: str) -> None:
        self.must("DELETE", f"/models/{name}")

    def request(self, name: str, body: bytes) -> bytes:
        """The request that asks a model, as bytes."""
        return load.request("POST", f"/models/{name}/invoke", body, JSON)

    def answer(self, body: bytes) -> Any:
        """What the model said, out of an answer's body."""
        return json.loads(body)

    def settle(self) -> None:
        """Wait until it does nothing more by itself."""
        time.sleep(0.5)

    # Life

    @property
    def kinds(self) -> list[models.Kind]:
        return [models.LR, models.ET] if self.lean else [models.LR, models.ET, models.SF]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and stop it with all that it started. Raises PeerFailed, environments.CannotInstall."""
        self.port, self.second_port, self.third_port = free_ports(3)
        self.mark = uuid.uuid4().hex
        self.folder = BUILD / "runs" / self.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = self.command()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment(), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.loaded.clear()
        try:
            self._wait_until_ready()
            yield
        finally:
            self._stop()

    def _environment(self) -> Mapping[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",  # BentoML prints one with each call
            "PYTHONPATH": str(FOLDER / "peers"),
            "TMPDIR": str(self.folder),
            "PORT": str(self.port),
            "STORE": str(models.STORE),
            memory.MARK: self.mark,
            **self.environ(),
        }

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            if self.process.poll() is not None:
                raise PeerFailed(f"{self.name} ended with {self.process.returncode}; see {self.log}")
            with suppress(OSError, load.Disconnected):
                if self.is_ready():
                    return
            if time.monotonic() > end:
                raise PeerFailed(f"{self.name} was not ready after {START_TIMEOUT_S:.0f} s; see {self.log}")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        return self.call("GET", self.ready)[0] == 200

    def _stop(self) -> None:
        """SIGTERM to the server; what is left of it a while later is killed."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        end = time.monotonic() + 2
        while marked(memory.MARK, self.mark) and time.monotonic() < end:
            time.sleep(0.05)
        sweep(memory.MARK, self.mark)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Calls

    def call(self, method: str, path: str, body: bytes = b"", headers: Any = ()) -> tuple[int, bytes]:
        """One call over a connection that is kept, and opened anew where the server closed it."""
        return self.send(load.request(method, path, body, headers))

    def send(self, data: bytes) -> tuple[int, bytes]:
        if self.connection is None:
            self.connection = load.Connection(self.port, timeout_s=180.0)
        connection, self.connection = self.connection, None
        try:
            answer = connection.ask(data)
        except BaseException:
            connection.close()
            raise
        if connection.stays:
            self.connection = connection
        else:
            connection.close()
        return answer

    def must(self, method: str, path: str, body: bytes = b"", headers: Any = ()) -> bytes:
        return self.expect_ok(f"{method} {path}", self.call(method, path, body, headers))

    def expect_ok(self, what: str, answer: tuple[int, bytes]) -> bytes:
        status, content = answer
        if status != 200:
            raise PeerFailed(f"{self.name}: {what}: {status} {content[:300].decode(errors='replace')}")
        return content

    def check(self, name: str) -> None:
        """Ask a model once. Raises PeerFailed if the answer isn't the one of the process that trained it."""
        kind = models.kind_of(name)
        content = self.expect_ok(name, self.send(self.request(name, kind.body)))
        if self.answer(content) != kind.answer:
            raise PeerFailed(f"{self.name}: {name} answers {self.answer(content)}, and not {kind.answer}")

    def taken(self) -> memory.Taken:
        self.settle()
        return memory.settled(self.process.pid, self.mark)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, below those that the kernel gives to clients and that Java servers refuse."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    return ports
