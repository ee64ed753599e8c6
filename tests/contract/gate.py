"""Lets a test hold a handler at a known point: this file is put beside the handlers that the contract suite replays."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def wait(name: object) -> str:
    """Report that this process has arrived, then block until the test opens the gate `name`; the answer is "slept"."""
    held = _hold(name)
    with open(FOLDER / f"{name}.arrived", "a") as arrived:
        arrived.write(f"{os.getpid()}\n")
    gate = os.open(FOLDER / f"{name}.gate", os.O_RDONLY)
    os.read(gate, 1)
    os.close(gate)
    os.close(held)
    return "slept"


def die_at(name: str) -> None:
    """Return at once; when the test opens the gate `name`, this process is killed as the kernel would kill it."""
    _hold(name)

    def die() -> None:
        wait(name)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die, daemon=True).start()


def _hold(name: str) -> int:
    """Open the end of a pipe that closes with this process, so that the test sees when it has ended."""
    return os.open(FOLDER / f"{name}.alive", os.O_WRONLY | os.O_NONBLOCK)
