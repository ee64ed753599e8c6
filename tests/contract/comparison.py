"""Decides when two answers are the same: all is compared but places, process numbers, identifiers and times."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from container import Answer

# Sent with every answer; the `raw/` cases compare them to the letter.
COMMON_HEADERS = frozenset({"pragma", "cache-control", "expires", "x-request-id", "content-length"})
# What differs on purpose may be given as a pattern, by a text that begins so.
PATTERN = "re:"
# Exceptions whose messages speak of the Java code that raised them.
JAVA_MESSAGES = frozenset({"NullPointerException", "JsonSyntaxException"})

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HOST = re.compile(r"(127\.0\.0\.1|localhost):\d+")
# The same call fails with another text in another numpy.
_NUMPY = re.compile(r"`newbyteorder` was removed from [^\"]*|'numpy.ndarray' object has no attribute 'newbyteorder'")
_PYTHON = re.compile(r"/[^\s\"]*/bin/python[\d.]*")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z")
_CHANGING = {_UUID: "{uuid}", _HOST: "{host}", _TIME: "{time}", _NUMPY: "{no newbyteorder}", _PYTHON: "{python}"}


def seen(answer: Answer, models: str) -> dict[str, Any]:
    """An answer in the form in which it is compared."""
    headers = {name: value for name, value in answer.headers if name.lower() not in COMMON_HEADERS}
    return normal({"status": answer.status, "reason": answer.reason, "headers": headers}) | {
        "body": body(text_of(answer.body, models))
    }


def recorded(response: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded answer in the same form."""
    kept = {key: response[key] for key in ("status", "reason") if key in response}
    if "headers" in response:
        kept["headers"] = {
            name: value for name, value in response["headers"].items() if name.lower() not in COMMON_HEADERS
        }
    return normal(kept) | {"body": body(response["body"])}


def text_of(content: bytes, models: str) -> str:
    """The text of a body, with the models' folder written as the transcript writes it."""
    return content.decode(errors="backslashreplace").replace(models, "{models}")


def body(content: Any) -> Any:
    """A body as it is compared: JSON by value, other texts to the letter, long ones by length and ends."""
    if not isinstance(content, str):
        return content
    try:
        value = json.loads(content)
    except ValueError:
        return normal(content)
    if isinstance(value, int) and not isinstance(value, bool):
        return "{number}"  # handlers of the transcript answer with their process's number
    if isinstance(value, dict) and value.get("type") in JAVA_MESSAGES:
        value.pop("message", None)
    return normal(value)


def shortened(text: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """A long body as the transcript keeps it."""
    head, tail = like["head"], like["tail"]
    if "cut" in tail:  # the recording left the rest out
        return {**like, "head": text[: len(head)]}
    return {"length": len(text.encode()), "head": text[: len(head)], "tail": text[-len(tail) :]}


def normal(value: Any) -> Any:
    """Replace what changes from run to run by its name."""
    if isinstance(value, str):
        for pattern, name in _CHANGING.items():
            value = pattern.sub(name, value)
        return value
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, dict):
        return {
            key: "{number}" if key == "id" and isinstance(item, int) else normal(item) for key, item in value.items()
        }
    return value


def faults(expected: Any, got: Any, where: str = "") -> list[str]:
    """Where two compared forms differ, one line each; numbers may differ in the last digits that a CPU decides."""
    if isinstance(expected, dict) and isinstance(got, dict):
        found: list[str] = []
        for key in dict.fromkeys([*expected, *got]):
            place = f"{where}/{key}"
            if key not in got:
                found.append(f"{place}: missing, expected {expected[key]!r}")
            elif key not in expected:
                found.append(f"{place}: not expected, got {got[key]!r}")
            else:
                found += faults(expected[key], got[key], place)
        return found
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        return [
            fault for i, pair in enumerate(zip(expected, got, strict=True)) for fault in faults(*pair, f"{where}/{i}")
        ]
    if isinstance(expected, float) and isinstance(got, float) and math.isclose(expected, got, rel_tol=1e-12):
        return []
    if type(expected) is type(got) and expected == got:
        return []
    if isinstance(expected, str) and expected.startswith(PATTERN) and isinstance(got, str):
        if re.fullmatch(expected.removeprefix(PATTERN), got, re.DOTALL):
            return []
    return [f"{where or '/'}: expected {expected!r}, got {got!r}"]
