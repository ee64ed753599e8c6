"""Decides how a packed handler is asked: in a worker of a model server that belongs to this process alone."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from mme import packages
from mme.tether import tethered

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 10
_LISTENING = re.compile(r"listening on (http://\S+)")
_EXCEPTION = re.compile(r"\b([A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit)): (.*)")


class CheckError(Exception):
    """A package could not be asked; the message says why."""

    code = "CheckError"


class CannotLoad(CheckError):
    """The server refused to load the package, or its handler failed while it loaded."""

    code = "CannotLoad"


@dataclass(frozen=True)
class Answer:
    """What a handler answered; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        """Raises ValueError when the body is not JSON."""
        return json.loads(self.body)


class Served:
    """A package whose handler is loaded in a worker and can be asked."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self._client, self._name = client, name

    def ask(
        self, body: str | bytes, content_type: str = "application/json", accept: str = "application/json"
    ) -> Answer:
        """The handler's answer to one call, whatever its status; CheckError when it gives none in time."""
        headers = {"Content-Type": content_type, "Accept": accept}
        request = self._client.build_request("POST", f"{_path(self._name)}/invoke", content=body, headers=headers)
        response = _sent(self._client, request)
        return Answer(response.status_code, dict(response.headers), response.content)


def ask(
    package: Path, body: str | bytes, content_type: str = "application/json", accept: str = "application/json"
) -> Answer:
    """Ask the handler of a package, an archive or a folder, in a worker as the endpoint will have it.

    Raises CannotLoad with the handler's own reason when it can't be loaded, PackageError when there is no package or
    it must not be unpacked. The worker ends with the question; the server it belongs to ends with this process, or
    with `close`, and makes the next question a fast one. For several questions use `served`.
    """
    with served(package) as model:
        return model.ask(body, content_type, accept)


@contextmanager
def served(package: Path, timeout_s: float = 300) -> Iterator[Served]:
    """Load a package into a worker, behind a free port of this machine, until the block ends.

    `timeout_s` is for the load and for each question. Raises as `ask` does.
    """
    with unpacked(package) as folder, loaded(folder, slug(package), timeout_s) as model:
        yield model


@contextmanager
def loaded(folder: Path, name: str, timeout_s: float = 300) -> Iterator[Served]:
    """As `served`, for the unpacked files of a package."""
    server = _running()
    name = f"{name}-{next(_numbers)}"
    with httpx.Client(base_url=server.url, timeout=timeout_s) as client:
        begin = len(server.log())
        request = {"model_name": name, "url": str(folder), "min_worker": 1, "max_worker": 1}
        try:
            response = _sent(client, client.build_request("POST", "/models", json=request))
            if response.status_code != 200:
                raise CannotLoad(_reason(response, server.log()[begin:]))
            yield Served(client, name)
            _sent(client, client.build_request("DELETE", _path(name)))
        except CannotLoad:
            raise
        except BaseException:
            close()  # the worker may be busy for long, and nobody waits for it any more
            raise


@contextmanager
def unpacked(package: Path) -> Iterator[Path]:
    """A package's files as they land on an endpoint's disk: an archive unpacked, a folder built and unpacked."""
    with tempfile.TemporaryDirectory(prefix="mme-check-") as place:
        archive = package
        if package.is_dir():
            archive = Path(place) / f"{package.name}.tar.gz"
            packages.build(package, archive)
        folder = Path(place) / slug(package) / "model"
        packages.unpack(archive, folder)
        yield folder


def slug(package: Path) -> str:
    """A package's name: its file's without .tar.gz, or its folder's."""
    return package.resolve().name.removesuffix(".gz").removesuffix(".tar")


def close() -> None:
    """End the model server that answers this process's questions; the next question starts another one."""
    global _server
    with _lock:
        if _server is not None:
            _server.stop()
        _server = None


def _running() -> _Server:
    global _server
    with _lock:
        if _server is None or not _server.answers():
            if _server is not None:
                _server.stop()
            _server = _Server()
            atexit.register(_server.stop)
        return _server


class _Server:
    """A model server of this process, so that only the first question pays for its start and a library's import.

    The kernel ends it when the thread that started it ends, so it has a thread of its own, which waits for it.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._place = tempfile.TemporaryDirectory(prefix="mme-check-")
        self._log = Path(self._place.name) / "log"
        self._log.touch()
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._keep, name="model server", daemon=True).start()
        self._started.wait()
        self.url = self._listening()
        self._address = httpx.URL(self.url)

    def is_running(self) -> bool:
        return self._owner == os.getpid() and self._process is not None and self._process.poll() is None

    def answers(self) -> bool:
        """Whether it accepts connections; just after its death that tells more than the process does."""
        try:
            socket.create_connection((self._address.host, self._address.port), timeout=5).close()
        except OSError:
            return False
        return self.is_running()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        if self._owner != os.getpid():
            return  # a fork of the process that it belongs to
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._place.cleanup()

    def _keep(self) -> None:
        environment = os.environ | {"SAGEMAKER_MULTI_MODEL": "true", "SERVING_RESERVED_MEMORY_MB": "0"}
        for name in ("MME_MEMORY_BUDGET_MB", "MME_CONTAINER", "SERVING_MIN_WORKERS"):
            environment.pop(name, None)
        try:
            with self._log.open("wb") as output:
                self._process = subprocess.Popen(
                    tethered([sys.executable, "-m", "mme.server", "--port", "0"]),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=self._place.name,
                )
        finally:
            self._started.set()
        self._process.wait()

    def _listening(self) -> str:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self.is_running():
            if match := _LISTENING.search(self.log()):
                return match[1]
            time.sleep(0.01)
        log = self.log()[-500:]
        self.stop()
        raise CheckError(f"the model server ended or didn't listen within {_START_TIMEOUT_S} s: {log}")


_server: _Server | None = None
_lock = threading.Lock()
_numbers = itertools.count(1)  # so that a package can be asked twice at once


def _path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def _sent(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    try:
        return client.send(request)
    except httpx.TimeoutException:
        raise CheckError(f"no answer within {client.timeout.read} s; give `served` a longer timeout_s") from None
    except httpx.HTTPError as error:
        raise CheckError(f"the model server gave no answer ({error})") from None


def _reason(response: httpx.Response, log: str) -> str:
    """The exception in the log that the server's answer hides, else the answer's message."""
    exceptions = _EXCEPTION.findall(log)
    if exceptions:
        name, message = exceptions[-1]
        return f"{name}: {message}"
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError):
        return f"the server answered {response.status_code} {response.text[:200]}"
