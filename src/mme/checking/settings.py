"""Decides whether a package's serving.properties says what its author means, and where it doesn't."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mme.checking.report import Finding
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
        yield Finding(
            "warning", f"there is no {_FILE}, so DJL Serving guesses", 'write one that says at least "engine=Python"'
        )
        return
    values: dict[str, tuple[int, str]] = {}
    sound = True
    for number, line in _lines(path):
        try:
            parsed = properties.parse(line)
        except ServerError as error:
            sound = False
            yield Finding(
                "error",
                f"{_FILE} line {number}: {line} can't be read ({error})",
                "write \\\\ for a backslash, and \\u only before four hexadecimal digits",
            )
            continue
        for key, value in parsed.items():
            if not re.search(r"[=:]", line):
                yield Finding(
                    "warning",
                    f"{_FILE} line {number}: {line} has no =, and sets {key} to {value!r}",
                    "write key=value",
                )
            if key in values:
                yield Finding(
                    "warning",
                    f"{_FILE} line {number}: {key} was set in line {values[key][0]} already, and the last one wins",
                    "keep one of them",
                )
            values[key] = (number, value)
            for finding in _line(number, key, value):
                sound = sound and finding.level == "warning"
                yield finding
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
            yield Finding("error", f"{where} is not a whole number{blank}", f"write a number, such as {key}={least}")
        elif int(value) < least:
            yield Finding("error", f"{where} is less than {least}", f"write {key}={least} or more, or leave it out")
        return
    meant = _KNOWN.get(re.sub(r"option\.|[_.-]", "", key).lower())
    if meant and meant != key:
        yield Finding("error", f"{where} is no setting that DJL Serving knows", f"write {meant}={value}")
    elif value != value.strip():
        yield Finding("warning", f"{where!r} ends in a blank, which DJL Serving keeps", "remove it")


def _whole(folder: Path, by_line: dict[str, tuple[int, str]]) -> Iterator[Finding]:
    values = {key: value for key, (_, value) in by_line.items()}
    least, most = int(values.get("minWorkers", 1)), int(values.get("maxWorkers", 1))
    if least > most and "maxWorkers" in values:
        yield Finding(
            "error",
            f"{_FILE}: minWorkers={least} is more than maxWorkers={most}",
            "raise maxWorkers or lower minWorkers",
        )
    if "required_memory_mb" not in values:
        yield Finding(
            "warning",
            f"{_FILE} doesn't say required_memory_mb, so only the size of the files is counted before a load",
            "set it to what the model's workers take together; a scikit-learn worker takes about 100 on DJL Serving",
        )
    try:
        config.read(config.LoadRequest(name="check", url=str(folder)), config.ContainerConfig.from_environ({}))
    except JavaFailure:
        return  # there is no handler, which contents.layout() tells
    except ServerError as error:
        words = str(error).replace(str(folder), "the package")
        key = "engine" if "ngine not found" in words else words.partition("=")[0]
        where = f" line {by_line[key][0]}" if key in by_line else ""
        yield Finding(
            "error",
            f"{_FILE}{where}: DJL Serving can't use it: {words}",
            "write engine=Python"
            if key == "engine"
            else "correct it, or begin from the serving.properties beside our handlers in serving_scripts/",
        )
