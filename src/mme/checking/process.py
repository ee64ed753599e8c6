"""Decides how a model server of this process's own is started and ended, and with which environment."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import BinaryIO

import httpx

from mme.scratch import scratch
from mme.tether import tethered

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 10
_LISTENING = re.compile(r"listening on (http://\S+)")


class CheckError(Exception):
    """A package could not be asked; the message says why."""

    code = "CheckError"


class ModelServer:
    """A model server of this process, so that only the first question pays for its start and a library's import.

    The kernel ends it when the thread that started it ends, so it has a thread of its own, which waits for it.
    """

    def __init__(self, port: int, environment: Mapping[str, str], *, is_for_all: bool = True) -> None:
        """Unless it `is_for_all` who reach its port, a request has to have its `headers`."""
        key = "" if is_for_all else secrets.token_hex(16)
        self.headers = {"X-MME-Key": key} if key else {}
        self._command = [sys.executable, "-m", "mme.server", "--port", str(port)]
        self._environment = {**environment, "MME_CONTAINER_KEY": key}
        self._owner = os.getpid()
        self._places = contextlib.ExitStack()
        self._place = self._places.enter_context(scratch())
        self._log = self._place / "log"
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

    def log_bytes(self) -> int:
        """How long the log is."""
        return self._log.stat().st_size

    def log(self, begin: int = 0) -> str:
        """The log from a byte on."""
        with self.open_log() as log:
            log.seek(begin)
            return log.read().decode(errors="replace")

    def open_log(self) -> BinaryIO:
        return self._log.open("rb")

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
        self._places.close()

    def _keep(self) -> None:
        try:
            with self._log.open("wb") as output:
                self._process = subprocess.Popen(
                    tethered(self._command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd=self._place,
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
