"""Decides what is told of a load that failed: the real cause with its file and line, and its cure.

DJL Serving's answers hide most causes ("Python stream closed unexpectedly, exit code: 1"); the log has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\S+ \w+\s+", re.MULTILINE)
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)')
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Cause:
    """Why a package can't be loaded, and what to do about it."""

    what: str
    cure: str


# By what the cause says, the first that is found in it. More than one line of `what` is never asked.
_CURES = (
    (r"No module named '([\w]+)", "add it to requirements.txt, or put its file into the package"),
    (r"MemoryError|\bOOM\b", "load less, or give the instance more memory; required_memory_mb says what a model takes"),
    (r"Invalid output type", "return an Output, or None where the call is empty (inputs.is_empty())"),
    (r"FileNotFoundError", "put the file into the package; model_dir in inputs.get_properties() says where it lies"),
    (r"exited with code", "remove what ends the process (os._exit, sys.exit), or raise an error in its place"),
    (r"SIGKILL", "nobody but the system does that, as a rule for want of memory: load less, or take a larger instance"),
    (r"killed by", "a native library crashed: try its call alone, and look for the version that the container has"),
    (r"not loaded within", "do less at the start, or raise option.model_loading_timeout"),
    (r"required_memory_mb", "set both to what the model's workers really take, or take a larger instance"),
    (r"requirements\.txt", "correct the name or the version, or put the wheel into the folder requirements/"),
    (r"lib/ holds", "serve it where the container's wheels can be imported, or build lib/ for this machine"),
    (r"is not what manifest\.json says|are not what", "unpack the archive again; if that is at fault, build it again"),
    (r"Untrusted", "name the types that you know and trust: option.skops_trusted_types=<type>,<type>"),
    (r"error=\d+, ", "correct option.pythonExecutable, or leave it out"),
    (
        r"InconsistentVersion",
        "train and build again with the container's versions, or accept theirs: option.allow_version_mismatch=true",
    ),
    (r"has no attribute|unpickl|pickle", "train and build again with the container's versions"),
)


def of(message: str, log: str, name: str, folder: Path) -> Cause:
    """The cause of the load of model `name` from `folder`, which was answered with `message`."""
    records = [record.rstrip() for record in _TIME.split(log)]
    found = _raised([record for record in records if record.startswith(f"[{name}] ")], folder)
    what = found or _told([record for record in records if record.startswith(f"{name}: not loaded: ")]) or message
    if message.startswith("No enough memory"):
        what = f"{message} {_memory(records, name)}"
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, what)), "correct it and build again")
    return Cause(what, cure)


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
