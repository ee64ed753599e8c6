"""Decides what is told of a load that failed: the real cause with its file and line, and which known error it is.

DJL Serving's answers hide most causes ("Python stream closed unexpectedly, exit code: 1"); the log has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mme.checking.known import recognised

_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\S+ \w+\s+", re.MULTILINE)
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)')
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Cause:
    """Why a package can't be loaded, and which of the known errors that is."""

    what: str
    name: str


def of(message: str, log: str, name: str, folder: Path) -> Cause:
    """The cause of the load of model `name` from `folder`, which was answered with `message`."""
    records = [record.rstrip() for record in _TIME.split(log)]
    found = _raised([record for record in records if record.startswith(f"[{name}] ")], folder)
    what = found or _told([record for record in records if record.startswith(f"{name}: not loaded: ")]) or message
    if message.startswith("No enough memory"):
        what = f"{message} {_memory(records, name)}"
    return Cause(what, recognised(what, "load", "check", "build") or "handler-fails")


def _raised(records: list[str], folder: Path) -> str:
    """The last error that the model's processes printed, with the last line of the package's own that led to it."""
    for record in reversed(records):
        _, is_there, trace = record.rpartition(_TRACEBACK)
        if not is_there:
            continue
        lines = [line.removeprefix("    ") for line in trace.splitlines()[1:]]
        frames = [match for line in lines if (match := _FRAME.match(line))]
        own = [(Path(frame[1]), frame[2]) for frame in frames if Path(frame[1]).is_relative_to(folder)]
        error = next((line for line in lines if _EXCEPTION.fullmatch(line)), "")
        if error:
            where = f"{own[-1][0].relative_to(folder)} line {own[-1][1]}: " if own else ""
            return where + error.replace(f"{folder}/", "")
    return ""


def _told(records: list[str]) -> str:
    """What the server's own line adds in brackets to DJL's words."""
    match = re.search(r"not loaded: .*? \((.*)\)$", records[-1], re.DOTALL) if records else None
    return match[1] if match else ""


def _memory(records: list[str], name: str) -> str:
    for record in reversed(records):
        if match := re.match(rf"{re.escape(name)}: required memory: (\d+) MB, free: (-?\d+) MB", record):
            return f"It asks for required_memory_mb={match[1]} beside reserved_memory_mb, and {match[2]} MB are free."
    return ""
