"""Decides how a packed handler is asked: in a worker of a model server that is started for it alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
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
        path = f"/models/{quote(self._name, safe='')}/invoke"
        response = _sent(self._client, self._client.build_request("POST", path, content=body, headers=headers))
        return Answer(response.status_code, dict(response.headers), response.content)


def ask(
    package: Path, body: str | bytes, content_type: str = "application/json", accept: str = "application/json"
) -> Answer:
    """Ask the handler of a package, an archive or a folder, in a worker as the endpoint will have it.

    Raises CannotLoad with the handler's own reason when it can't be loaded, PackageError when there is no package or
    it must not be unpacked. Leaves no process behind. For several questions use `served`.
    """
    with served(package) as model:
        return model.ask(body, content_type, accept)


@contextmanager
def served(package: Path, timeout_s: float = 300) -> Iterator[Served]:
    """Load a package into a worker of its own server, on a free port of this machine, until the block ends.

    `timeout_s` is for the load and for each question. Raises as `ask` does.
    """
    with unpacked(package) as folder, loaded(folder, slug(package), timeout_s) as model:
        yield model


@contextmanager
def loaded(folder: Path, name: str, timeout_s: float = 300) -> Iterator[Served]:
    """As `served`, for the unpacked files of a package."""
    with _server() as (url, log), httpx.Client(base_url=url, timeout=timeout_s) as client:
        request = {"model_name": name, "url": str(folder), "min_worker": 1, "max_worker": 1}
        response = _sent(client, client.build_request("POST", "/models", json=request))
        if response.status_code != 200:
            raise CannotLoad(_reason(response, log.read_text(errors="replace")))
        yield Served(client, name)


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


@contextmanager
def _server() -> Iterator[tuple[str, Path]]:
    """A model server's URL and log."""
    environment = os.environ | {"SAGEMAKER_MULTI_MODEL": "true", "SERVING_RESERVED_MEMORY_MB": "0"}
    for name in ("MME_MEMORY_BUDGET_MB", "MME_CONTAINER", "SERVING_MIN_WORKERS"):
        environment.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="mme-check-") as place:
        log = Path(place) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                tethered([sys.executable, "-m", "mme.server", "--port", "0"]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=place,
            )
        try:
            yield _url(process, log), log
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if match := _LISTENING.search(text):
            return match[1]
        if process.poll() is not None:
            raise CheckError(f"the model server ended at its start (exit code {process.returncode}): {text[-500:]}")
        time.sleep(0.01)
    raise CheckError(f"the model server didn't listen within {_START_TIMEOUT_S} s: {log.read_text()[-500:]}")


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
