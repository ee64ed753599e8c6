"""Decides how a packed handler is asked: in a worker of a model server that belongs to this process alone."""

from __future__ import annotations

import atexit
import codecs
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from mme import packages
from mme.checking import causes
from mme.checking.process import CheckError, ModelServer
from mme.packages import PackageError
from mme.plain import plain
from mme.progress import waiting
from mme.scratch import scratch

_LOG_ROUND_S = 0.2


class CannotLoad(CheckError):
    """The server refused to load the package, or its handler failed while it loaded; `name` is the known error's."""

    code = "CannotLoad"

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


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
    with _client(server, timeout_s) as client:
        try:
            _load(server, {"model_name": name, "url": str(folder), "min_worker": 1, "max_worker": 1}, timeout_s)
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
    with scratch() as place:
        archive = package
        if package.is_dir():
            archive = place / f"{package.name}.tar.gz"
            packages.build(package, archive)
        folder = place / slug(package) / "model"
        packages.unpack(archive, folder)
        yield folder


def slug(package: Path) -> str:
    """A package's name: its file's without .tar.gz, or its folder's."""
    return package.resolve().name.removesuffix(".gz").removesuffix(".tar")


class FolderServer:
    """A model server with the packages of a folder: its address, what it serves, and why it doesn't serve the rest."""

    def __init__(self, server: ModelServer, models: tuple[str, ...], refused: Mapping[str, str]) -> None:
        self._server = server
        self._loaded_bytes = server.log_bytes()  # of the log, which tells of the loads
        self.url = server.url
        self.models = models
        self.refused = refused

    def wait(self) -> None:
        """Copy what the server logs after the loads to stderr until it ends."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a character
        with self._server.open_log() as log:
            log.seek(self._loaded_bytes)
            while True:
                is_running = self._server.is_running()
                sys.stderr.write(plain(decoder.decode(log.read())))
                sys.stderr.flush()
                if not is_running:
                    return
                time.sleep(_LOG_ROUND_S)


@contextmanager
def serve_folder(folder: Path, port: int = 0, timeout_s: float = 300) -> Iterator[FolderServer]:
    """Serve every package of a folder, archives and folders, from one model server, until the block ends.

    Each is loaded under its slug, with its own settings; the server's are the environment's, as a container's.
    Port 0 picks a free one. One that can't be loaded is refused with the cause; CheckError if the folder holds none.
    """
    found = {slug(path): path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    # An archive often lies beside the folder that it was built from; it is what an endpoint would get.
    found |= {slug(path): path for path in folder.glob("*.tar.gz")}
    if not found:
        raise CheckError(f"{folder} holds no packages, neither archives (*.tar.gz) nor folders")
    environment = {name: value for name, value in os.environ.items() if name != "MME_CONTAINER_ID"}
    with ExitStack() as stack:
        server = ModelServer(port, environment | {"SAGEMAKER_MULTI_MODEL": "true"})
        stack.callback(server.stop)
        models: list[str] = []
        refused: dict[str, str] = {}
        for name, package in sorted(found.items()):
            try:
                place = stack.enter_context(unpacked(package))
                _load(server, {"model_name": name, "url": str(place)}, timeout_s)
                models.append(name)
            except (CannotLoad, PackageError) as error:
                refused[package.name] = str(error)
        yield FolderServer(server, tuple(models), refused)


def close() -> None:
    """End the model server that answers this process's questions; the next question starts another one."""
    global _server
    with _lock:
        if _server is not None:
            _server.stop()
        _server = None


def _running() -> ModelServer:
    global _server
    with _lock:
        if _server is None or not _server.answers():
            if _server is not None:
                _server.stop()
            environment = os.environ | {"SAGEMAKER_MULTI_MODEL": "true", "SERVING_RESERVED_MEMORY_MB": "0"}
            for name in ("MME_MEMORY_BUDGET_MB", "MME_CONTAINER_ID", "SERVING_MIN_WORKERS"):
                environment.pop(name, None)
            with waiting("starting a model server"):
                _server = ModelServer(0, environment, is_for_all=False)
            atexit.register(_server.stop)
        return _server


_server: ModelServer | None = None
_lock = threading.Lock()
_numbers = itertools.count(1)  # so that a package can be asked twice at once


def _load(server: ModelServer, request: dict[str, str | int], timeout_s: float) -> None:
    """Load a model by POST /models. Raises CannotLoad with the cause."""
    begin = server.log_bytes()
    with _client(server, timeout_s) as client:
        with waiting(f"loading {request['model_name']}"):
            response = _sent(client, client.build_request("POST", "/models", json=request))
    if response.status_code == 200:
        return
    try:
        message = str(response.json()["message"])
    except (ValueError, KeyError):
        message = f"the server answered {response.status_code} {response.text[:200].strip()}"
    cause = causes.of(message, server.log(begin), str(request["model_name"]), Path(str(request["url"])))
    raise CannotLoad(cause.what, cause.name)


def _client(server: ModelServer, timeout_s: float) -> httpx.Client:
    """A client for a server of this machine: it reads no certificates, which takes longer than a question."""
    return httpx.Client(base_url=server.url, headers=server.headers, timeout=timeout_s, verify=False, trust_env=False)


def _path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def _sent(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    try:
        return client.send(request)
    except httpx.TimeoutException:
        raise CheckError(f"no answer within {client.timeout.read} s; give `served` a longer timeout_s") from None
    except httpx.HTTPError as error:
        raise CheckError(f"the model server gave no answer ({error})") from None
