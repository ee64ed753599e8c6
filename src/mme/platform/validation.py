"""Decides whether a request has the shape that AWS asks for, by botocore's own service models.

botocore's clients check types, required members and minima before they send. A server checks everything again,
and maxima, patterns and enumerations besides; the wording is AWS's (aws/amazon-sagemaker-examples#4843).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape

from mme.platform.errors import SerializationException, ValidationException

# A caller may send thousands of faults; AWS too answers a few.
_MAX_FAULTS = 10

# Java's classes, as far as the models use them, in the terms of Python's re.
_JAVA_CLASSES = {
    r"\p{ASCII}": r"\x00-\x7f",
    r"\p{Print}": r"\x20-\x7e",
    r"\p{Graph}": r"\x21-\x7e",
    r"\p{Alnum}": "a-zA-Z0-9",
    r"\p{Alpha}": "a-zA-Z",
    r"\p{L}": r"\w",
    r"\p{N}": r"\d",
    r"\uD800\uDC00-\uDBFF\uDFFF": r"\U00010000-\U0010ffff",
    r"\p{Z}": r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
}


@cache
def service(name: str) -> ServiceModel:
    """botocore's model of a service, such as sagemaker or sagemaker-runtime."""
    return ServiceModel(Loader().load_service_model(name, "service-2"))


def operation(service_name: str, name: str) -> OperationModel | None:
    """The model of an operation, or None if the service has none of that name."""
    model = service(service_name)
    return model.operation_model(name) if name in model.operation_names else None


def check(shape: Shape, value: Any) -> None:
    """Raise ValidationException naming the faults of `value`, which came as JSON, against `shape`.

    Raises SerializationException for a value of another type than the shape's. Members that the shape does not have
    are ignored, as AWS ignores them.
    """
    found = faults(shape, value)
    if found:
        raise refusal(found)


def faults(shape: Shape, value: Any, member: str = "") -> list[str]:
    """The first faults of a value in AWS's words, an empty list for a sound one. Raises SerializationException."""
    return list(islice(_faults(shape, value, _join("", member)), _MAX_FAULTS))


def is_sound(shape: Shape, value: str) -> bool:
    """Whether a string has no faults: the same question as `faults`, for what is asked with each invocation."""
    lengths, enum, pattern = _limits(shape)
    for bound, limit in lengths:
        if len(value) < limit if bound == "min" else len(value) > limit:
            return False
    return (not enum or value in enum) and (pattern is None or _compiled(pattern).fullmatch(value) is not None)


def refusal(found: Sequence[str]) -> ValidationException:
    noun = "error" if len(found) == 1 else "errors"
    return ValidationException(f"{len(found)} validation {noun} detected: {'; '.join(found)}")


def _faults(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if not _has_type(shape, value):
        raise SerializationException(f"{_shown(value)} at '{path or 'request'}' is no {shape.type_name}; send one")
    if shape.type_name == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                yield _fault(None, _join(path, name), "Member must not be null")
        for name, member in shape.members.items():
            if value.get(name) is not None:
                yield from _faults(member, value[name], _join(path, name))
    elif shape.type_name == "list":
        yield from _size_faults(shape, value, path)
        for number, item in enumerate(value, 1):
            yield from _faults(shape.member, item, f"{path}.{number}.member")
    elif shape.type_name == "map":
        yield from _size_faults(shape, value, path)
        for key, item in value.items():
            yield from _faults(shape.key, key, f"{path}.key")
            yield from _faults(shape.value, item, f"{path}.{key}.member")
    elif shape.type_name == "string":
        yield from _string_faults(shape, value, path)
    elif shape.type_name in ("integer", "long", "float", "double"):
        for bound, words in (("min", "greater"), ("max", "less")):
            limit = shape.metadata.get(bound)
            if limit is not None and (value < limit if bound == "min" else value > limit):
                yield _fault(value, path, f"Member must have value {words} than or equal to {limit}")


class _Limits(NamedTuple):
    """What a shape's metadata, which botocore puts together anew each time, says of a value's length and form."""

    lengths: tuple[tuple[str, int], ...]
    enum: tuple[str, ...]
    pattern: str | None


@cache
def _limits(shape: Shape) -> _Limits:
    lengths = tuple((bound, shape.metadata[bound]) for bound in ("min", "max") if bound in shape.metadata)
    return _Limits(lengths, tuple(getattr(shape, "enum", ())), shape.metadata.get("pattern"))


def _string_faults(shape: Shape, value: str, path: str) -> Iterator[str]:
    yield from _size_faults(shape, value, path)
    _, enum, pattern = _limits(shape)
    if enum and value not in enum:
        yield _fault(value, path, f"Member must satisfy enum value set: [{', '.join(enum)}]")
    if pattern is not None and not _compiled(pattern).fullmatch(value):
        yield _fault(value, path, f"Member must satisfy regular expression pattern: {pattern}")


def _size_faults(shape: Shape, value: Any, path: str) -> Iterator[str]:
    for bound, limit in _limits(shape).lengths:
        if len(value) < limit if bound == "min" else len(value) > limit:
            words = "greater" if bound == "min" else "less"
            yield _fault(value, path, f"Member must have length {words} than or equal to {limit}")


def _has_type(shape: Shape, value: Any) -> bool:
    match shape.type_name:
        case "structure" | "map":
            return isinstance(value, dict)
        case "list":
            return isinstance(value, list)
        case "string" | "blob":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer" | "long":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float" | "double" | "timestamp":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return True


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    form = "%s" if "[" in pattern else "[%s]"  # a class of Java's stands alone or among others in brackets
    for java, python in _JAVA_CLASSES.items():
        pattern = pattern.replace(java, form % python)
    return re.compile(pattern.replace(r"\z", r"\Z"))


def _fault(value: Any, path: str, constraint: str) -> str:
    return f"Value {_shown(value)} at '{path}' failed to satisfy constraint: {constraint}"


def _shown(value: Any) -> str:
    return "null" if value is None else f"'{value}'"


def _join(path: str, name: str) -> str:
    """A member's path in lower camel case, as AWS writes it."""
    name = name[:1].lower() + name[1:]
    return f"{path}.{name}" if path else name
