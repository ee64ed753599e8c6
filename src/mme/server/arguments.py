"""Decides how the arguments of a load are read: a JSON body as Gson reads it, a query as Java's integers are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import nan
from pathlib import PurePosixPath
from typing import Any

from mme.server.config import LoadRequest
from mme.server.errors import BadRequest, JavaFailure
from mme.server.integers import MAX, integer

_URL_IS_NULL = 'Cannot invoke "String.startsWith(String)" because "<parameter1>" is null'
_TEXTS = ("model_name", "url", "model_version", "engine", "device", "synchronous")
_NUMBERS = {
    "batch_size": "batch_size",
    "job_queue_size": "queue_size",
    "max_idle_time": "max_idle_s",
    "max_batch_delay": "max_batch_delay_ms",
    "min_worker": "min_workers",
    "max_worker": "max_workers",
}


def from_json(body: bytes) -> dict[str, Any]:
    """The arguments of a load in a JSON body. Raises JavaFailure, as DJL fails on what it can't read."""
    try:
        arguments = json.loads(body or b"null")
    except (ValueError, RecursionError) as error:
        raise JavaFailure("JsonSyntaxException", str(error)) from None
    if arguments is None:
        raise JavaFailure("NullPointerException")
    if not isinstance(arguments, dict):
        raise JavaFailure("JsonSyntaxException", f"Expected BEGIN_OBJECT but was {type(arguments).__name__}")
    for key, value in arguments.items():
        if key in _NUMBERS and value is not None:
            arguments[key] = _json_number(value)
        elif key in _TEXTS and isinstance(value, dict | list):
            raise JavaFailure("JsonSyntaxException", f"Expected a string but was {type(value).__name__}")
    if arguments.get("url") is None:
        raise JavaFailure("NullPointerException", _URL_IS_NULL)
    if arguments.get("model_name") is None:
        raise JavaFailure("NullPointerException")
    return arguments


def _json_number(value: Any) -> int:
    """A whole number as Gson takes it, as a text too."""
    try:
        number = nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = nan
    if not number.is_integer() or abs(number) > MAX:
        raise JavaFailure("JsonSyntaxException", f'For input string: "{value}"')
    return int(number)


def from_query(query: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a load in a query; a model without a name is called after its folder. Raises BadRequest."""
    if "url" not in query:
        raise BadRequest("Parameter url is required.")
    arguments: dict[str, Any] = dict(query)
    if not arguments.get("model_name"):
        arguments["model_name"] = PurePosixPath(query["url"]).name.partition(".")[0]
    return arguments


def load_request(arguments: Mapping[str, Any], target_model: str) -> LoadRequest:
    """The request that these arguments make. Raises NotANumber."""
    given = {field: arguments[key] for key, field in _NUMBERS.items() if arguments.get(key) is not None}
    numbers = {field: value if isinstance(value, int) else integer(value) for field, value in given.items()}
    synchronous = arguments.get("synchronous", True)
    return LoadRequest(
        name=_text(arguments["model_name"]) or "",
        url=_text(arguments["url"]) or "",
        version=_text(arguments.get("model_version")),
        engine=_text(arguments.get("engine")),
        target_model=target_model,
        synchronous=str(synchronous).lower() == "true",
        **numbers,
    )


def _text(value: Any) -> str | None:
    """As Gson reads a number or a truth value where a text is wanted."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
