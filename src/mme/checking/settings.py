"""Decides whether a package's serving.properties says what its author means, and where it doesn't."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mme.checking.report import Finding, finding
from mme.server import config, properties
from mme.server.errors import JavaFailure, ServerError

_FILE = "serving.properties"

# The whole numbers of serving.properties that matter on a CPU, with the least that makes sense.
_LEAST = {
    "minWorkers": 0,
    "maxWorkers": 1,
    "batch_size": 1,
    "max_batch_delay": 0,
    "max_idle_time": 1,
    "job_queue_size": 1,
    "retry_threshold": 0,
    "required_memory_mb": 0,
    "reserved_memory_mb": 0,
    "option.predict_timeout": 1,
    "option.model_loading_timeout": 1,
}
_OTHERS = ("engine", "option.entryPoint", "option.handler", "option.env", "option.async_mode", "option.enable_venv")
_KNOWN = {re.sub(r"option\.|[_.-]", "", key).lower(): key for key in (*_LEAST, *_OTHERS)}


def check(folder: Path) -> Iterator[Finding]:
    """The faults of an unpacked package's serving.properties, by line."""
    path = folder / _FILE
    if not path.is_file():
        yield finding("no-settings", f"there is no {_FILE}, so DJL Serving guesses")
        return
    values: dict[str, tuple[int, str]] = {}
    sound = True
    for number, line in _lines(path):
        try:
            parsed = properties.parse(line)
        except ServerError as error:
            sound = False
            yield finding("unreadable-line", f"{_FILE} line {number}: {line} can't be read ({error})")
            continue
        for key, value in parsed.items():
            if not re.search(r"[=:]", line):
                yield finding(
                    "line-without-value", f"{_FILE} line {number}: {line} has no =, and sets {key} to {value!r}"
                )
            if key in values:
                yield finding(
                    "set-twice",
                    f"{_FILE} line {number}: {key} was set in line {values[key][0]} already, and the last one wins",
                )
            values[key] = (number, value)
            for found in _line(number, key, value):
                sound = sound and found.level == "warning"
                yield found
    if sound:
        yield from _whole(folder, values)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Each setting with the number of the line it begins in; continued lines are joined."""
    found: list[tuple[int, str]] = []
    is_continued = False
    for number, line in enumerate(path.read_text(encoding="iso-8859-1").splitlines(), start=1):
        line = line.lstrip(" \t\f")
        if is_continued:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{line}")
        elif line and line[0] not in "#!":
            found.append((number, line))
        else:
            continue
        is_continued = (len(line) - len(line.rstrip("\\"))) % 2 == 1
    return found


def _line(number: int, key: str, value: str) -> Iterator[Finding]:
    where = f"{_FILE} line {number}: {key}={value}"
    least = _LEAST.get(key)
    if least is not None:
        if not re.fullmatch(r"[+-]?\d+", value):
            blank = " (it ends in a blank, which DJL Serving keeps)" if value.strip() != value else ""
            yield finding("not-a-number", f"{where} is not a whole number{blank}", key=key, least=least)
        elif int(value) < least:
            yield finding("number-too-small", f"{where} is less than {least}", key=key, least=least)
        return
    meant = _KNOWN.get(re.sub(r"option\.|[_.-]", "", key).lower())
    if meant and meant != key:
        what = f"{where} is no setting that DJL Serving knows"
        yield finding("misspelt-setting", what, meant=meant, value=value)
    elif value != value.strip():
        yield finding("blank-at-the-end", f"{where!r} ends in a blank, which DJL Serving keeps")


def _whole(folder: Path, by_line: dict[str, tuple[int, str]]) -> Iterator[Finding]:
    values = {key: value for key, (_, value) in by_line.items()}
    least, most = int(values.get("minWorkers", 1)), int(values.get("maxWorkers", 1))
    if least > most and "maxWorkers" in values:
        what = f"{_FILE}: minWorkers={least} is more than maxWorkers={most}"
        yield finding("more-at-least-than-at-most", what)
    if "required_memory_mb" not in values:
        what = f"{_FILE} doesn't say required_memory_mb, so only the size of the files is counted before a load"
        yield finding("memory-unsaid", what)
    try:
        config.read(config.LoadRequest(name="check", url=str(folder)), config.ContainerConfig.from_environ({}))
    except JavaFailure:
        return  # there is no handler, which contents.layout() tells
    except ServerError as error:
        words = str(error).replace(str(folder), "the package")
        key = "engine" if "ngine not found" in words else words.partition("=")[0]
        where = f" line {by_line[key][0]}" if key in by_line else ""
        name = "unknown-engine" if key == "engine" else "unusable-setting"
        yield finding(name, f"{_FILE}{where}: DJL Serving can't use it: {words}")
