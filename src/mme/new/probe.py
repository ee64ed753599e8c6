"""Decides how a model's file is loaded and asked: in a process of its own, which may run what is in it, or crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mme.new.errors import NewError
from mme.progress import waiting

_TIMEOUT_S = 600  # a large model, and torch from a cold disk


@dataclass(frozen=True)
class Question:
    """What is to be found out about a model: its kind, what its file was called and is called in the package, the
    user's own records, what may be accepted."""

    kind: str
    name: str
    file: str
    example: Any = None
    trusted: tuple[str, ...] = ()
    allows_mismatch: bool = False


@dataclass(frozen=True)
class Found:
    """What a model is, in words; calls with the answers that the model itself gave; how many megabytes it took."""

    what: str
    calls: list[tuple[Any, Any]]
    """Each a request's JSON and the answer's."""
    taken_mb: int = 0
    tolerance: float = 1e-9
    takes: str = "number"


def ask(question: Question, folder: Path) -> Found:
    """Load the model in a new process, in the package's folder, whose modules it may import, and ask it.

    Raises NewError with the model's own words when it can't be loaded or asked.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".json", encoding="utf-8") as reply:
        command = [sys.executable, "-B", "-m", "mme.new.asking", json.dumps(asdict(question)), reply.name]
        try:
            with waiting(f"loading and asking {question.name}"):
                done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise NewError(f"{question.name} was not loaded and asked within {_TIMEOUT_S} s") from None
        said = reply.read()
    if not said:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise NewError(f"loading {question.name} ended its process ({_ending(done.returncode)}): {last or 'no word'}")
    told = json.loads(said)
    if "error" in told:
        raise NewError(told["error"])
    return Found(**told)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
