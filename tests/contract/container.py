"""Decides what the suite knows of a container under test: its address, its answers, and how to hold its handlers."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from mme import tether

# Long enough for a loaded machine; a wait ends as soon as what it waits for is there.
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Answer:
    """One HTTP answer as it came: header names keep their case and order."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until `condition` holds; TimeoutError names `what` was waited for."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_s:.0f} s in vain until {what}")
        time.sleep(0.005)


class Gate:
    """A point in a handler (`gate.wait(name)`) where the test holds its process. One byte in the pipe lets one go."""

    def __init__(self, folder: Path, name: str) -> None:
        self._arrived = folder / f"{name}.arrived"
        for path in (folder / f"{name}.gate", folder / f"{name}.alive"):
            os.mkfifo(path)
        # Open for both, so that no opening of the pipe ever blocks: only the reading of the byte does.
        self._gate = os.open(folder / f"{name}.gate", os.O_RDWR)
        self._alive = os.open(folder / f"{name}.alive", os.O_RDONLY | os.O_NONBLOCK)

    def expect(self, count: int) -> None:
        """Wait until `count` calls in all have reached the gate."""
        until(lambda: len(self.arrivals()) >= count, f"{count} calls reached {self._arrived}")

    def arrivals(self) -> list[str]:
        """The processes that reached the gate, in order, one for each call."""
        return self._arrived.read_text().split() if self._arrived.exists() else []

    def let_one_go(self) -> None:
        os.write(self._gate, b".")

    def open(self) -> None:
        """Release whoever waits, and (up to a thousand) whoever comes later."""
        os.write(self._gate, b"." * 1000)

    def is_deserted(self) -> bool:
        """Is no process held here any more? (A pipe that nobody holds open for writing is at its end.)"""
        try:
            return os.read(self._alive, 1) == b""
        except BlockingIOError:
            return False

    def expect_deaths(self) -> None:
        """Wait until every process that was held here has ended."""
        until(self.is_deserted, "the worker had ended")

    def close(self) -> None:
        os.close(self._gate)
        os.close(self._alive)


class Container:
    """Any server that keeps the multi-model container contract at `url`."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
        self.address = (host, int(port or 80))
        self.is_ours = self.call("GET", "/_mme/models").status == 200

    def call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Send one request on a connection of its own, as the recordings were made."""
        connection = http.client.HTTPConnection(*self.address, timeout=DEADLINE_S * 2)
        try:
            try:
                connection.request(method, path, body, dict(headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was sent: the answer is already there
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, response.reason, tuple(response.getheaders()), content)
        finally:
            connection.close()

    def process(self) -> psutil.Process:
        """The server's own process, if it is a descendant of this one; for counting what it holds."""
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # a worker that has ended since it was listed
                ports = [each.laddr.port for each in child.net_connections() if each.status == psutil.CONN_LISTEN]
                if self.address[1] in ports:
                    return child
        raise LookupError(f"no child of this process listens on {self.address[1]}")

    def is_rested(self) -> bool:
        """Does our server's nursery build nothing, and has a process wait for a model in each branch?"""
        nursery = json.loads(self.call("GET", "/_mme/models").body)["nursery"]
        return not nursery["building"] and all(branch["standby"] for branch in nursery["branches"])

    def load(self, name: str, folder: Path) -> Answer:
        body = json.dumps({"model_name": name, "url": str(folder)}).encode()
        return self.call("POST", "/models", {"Content-Type": "application/json"}, body)

    def unload(self, name: str) -> Answer:
        return self.call("DELETE", f"/models/{quote(name, safe='')}")

    def names(self) -> list[str]:
        """The names of all registered models."""
        return [model["modelName"] for model in json.loads(self.call("GET", "/models?limit=100").body)["models"]]

    def describe(self, name: str) -> dict[str, Any]:
        """The one version of a model, as `GET /models/{name}` describes it."""
        described: dict[str, Any] = json.loads(self.call("GET", f"/models/{name}").body)[0]["models"][0]
        return described

    def queued(self, name: str, count: int) -> None:
        """Wait until `count` calls are queued for a model."""
        until(lambda: self.describe(name)["requestInQueue"] == count, f"{count} calls were queued for {name}")

    def clear(self) -> bool:
        """Unload every model; False if some cannot be unloaded."""
        for name in self.names():
            self.unload(name)
        return not self.names()

    def raw(self, pieces: list[str]) -> str:
        """Send bytes as they are and return what comes back; `<closed>` at the end says that the server hung up."""
        with socket.create_connection(self.address, timeout=DEADLINE_S) as connection:
            received = b""
            for piece in pieces:
                connection.sendall(piece.encode())
                received += self._whole_answer(connection)
            if b"connection: close" not in received.lower():
                return received.decode()
            try:
                rest = connection.recv(65536)
            except ConnectionResetError:
                rest = b""
            return (received + rest).decode() + ("<closed>" if not rest else "")

    @staticmethod
    def _whole_answer(connection: socket.socket) -> bytes:
        received = b""
        while more := connection.recv(65536):
            received += more
            head, blank, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            if blank and (head.endswith(b"100 Continue") or (length and len(body) >= int(length[1]))):
                break
        return received


@contextmanager
def embedded() -> Iterator[Container]:
    """Start the embedded server as the platform would, on a free port, and stop it at the end."""
    environment = {
        **{
            key: value for key, value in os.environ.items() if not key.startswith(("SERVING_", "OPTION_", "SAGEMAKER_"))
        },
        "SAGEMAKER_MULTI_MODEL": "true",
        "OMP_NUM_THREADS": "1",
        # A requirement that is not there is refused at once, with or without a network.
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as cache:
        environment["DJL_CACHE_DIR"] = cache
        argv = tether.tethered([sys.executable, "-m", "mme.server", "--port", "0"])
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            yield Container(_address(process, log.fileno()))
        finally:
            process.terminate()
            code = process.wait(DEADLINE_S)
        assert code == 0, f"the server ended with {code}:\n{_text(log.fileno())}"


def _address(process: subprocess.Popen[bytes], log: int) -> str:
    def found() -> re.Match[str] | None:
        assert process.poll() is None, f"the server did not start:\n{_text(log)}"
        return re.search(r"listening on (http://\S+)", _text(log))

    until(lambda: found() is not None, "the server said where it listens")
    match = found()
    assert match
    return match[1]


def _text(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
