"""Decides what IAM policies say about one call: an explicit deny first, then an allow, else nobody allows it.

AWS: "Policy evaluation logic", "IAM JSON policy elements reference" in the IAM User Guide. Evaluated are Effect,
Action, NotAction, Resource, NotResource, policy variables, and conditions by StringEquals, StringLike and their
negations. Whatever else a statement says is never guessed: where the answer hangs on it, the verdict is UNDECIDED and
names it.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_ELEMENTS = frozenset({"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"})
_OPERATORS = ("StringEquals", "StringLike", "StringNotEquals", "StringNotLike")
_KEYS = frozenset(
    {
        "sagemaker:targetmodel",
        "iam:passedtoservice",
        "aws:principalarn",
        "aws:principalaccount",
        "aws:username",
        "aws:userid",
        "aws:requestedregion",
    }
)
_TAG = "aws:principaltag/"
_TOKEN = re.compile(r"\$\{[^}]*\}|[*?]|\$|[^*?$]+")
_COLON = re.compile(r":(?![^{}]*\})")  # a colon between two parts of an ARN, not one within a ${variable}
_NOTHING = "(?!)"  # the expression that matches no text


class Unsupported(Exception):
    """A statement that concerns the call says something that is not evaluated here; the text names it."""


class Effect(enum.Enum):
    ALLOWED = "allowed by a policy"
    NOT_ALLOWED = "allowed by no policy"
    DENIED = "denied by a policy"
    UNDECIDED = "a policy cannot be evaluated"


@dataclass(frozen=True)
class Verdict:
    """What the policies say; `reason` names what could not be evaluated when they are UNDECIDED."""

    effect: Effect
    reason: str = ""


@dataclass(frozen=True)
class Policy:
    """A policy as IAM keeps it; `name` is for messages."""

    name: str
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """What somebody wants to do. Keys of `context` are condition keys in lower case; one that is missing is absent."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def evaluate(policies: Iterable[Policy], call: Call) -> Verdict:
    """The verdict of all policies together.

    What cannot be evaluated only matters where it decides: an unclear Deny leaves the call UNDECIDED unless another one
    denies it for certain, an unclear Allow unless another one allows it.
    """
    is_allowed = False
    doubts: dict[bool, str] = {}
    for policy in policies:
        has_variables = policy.document.get("Version") == "2012-10-17"
        for statement in _listed(policy.document.get("Statement", [])):
            allows = statement.get("Effect") == "Allow"
            try:
                applies = _applies(statement, call, has_variables)
            except Unsupported as doubt:
                doubts.setdefault(allows, f"{doubt} in policy {policy.name!r} is not evaluated by this platform")
                continue
            if applies and not allows:
                return Verdict(Effect.DENIED)
            is_allowed = is_allowed or applies
    if False in doubts:
        return Verdict(Effect.UNDECIDED, doubts[False])
    if is_allowed:
        return Verdict(Effect.ALLOWED)
    if True in doubts:
        return Verdict(Effect.UNDECIDED, doubts[True])
    return Verdict(Effect.NOT_ALLOWED)


def _applies(statement: Mapping[str, Any], call: Call, has_variables: bool) -> bool:
    """Whether a statement concerns the call. Raises Unsupported where that hangs on what is not evaluated."""
    if not _concerns(statement, "Action", lambda pattern: _is_action(pattern, call.action)):
        return False
    variables = call.context if has_variables else None
    if not _concerns(statement, "Resource", lambda pattern: _is_resource(pattern, call.resource, variables)):
        return False
    doubts = [f"the element {name}" for name in statement if name not in _ELEMENTS]
    if statement.get("Effect") not in ("Allow", "Deny"):
        doubts.append(f"the effect {statement.get('Effect')!r}")
    for operator, keys in statement.get("Condition", {}).items():
        for key, values in keys.items():
            try:
                if not _holds(operator, key, [str(value) for value in _listed(values)], call.context, variables):
                    return False
            except Unsupported as doubt:
                doubts.append(str(doubt))
    if doubts:
        raise Unsupported(doubts[0])
    return True


def _concerns(statement: Mapping[str, Any], element: str, matches: Any) -> bool:
    if element in statement:
        return any(matches(pattern) for pattern in _listed(statement[element]))
    if f"Not{element}" in statement:
        return not any(matches(pattern) for pattern in _listed(statement[f"Not{element}"]))
    raise Unsupported(f"a statement without {element}")


@functools.lru_cache(maxsize=4096)
def _is_action(pattern: str, action: str) -> bool:
    return re.fullmatch(_expression(pattern, None), action, re.IGNORECASE) is not None


def _is_resource(pattern: str, resource: str, variables: Mapping[str, str] | None) -> bool:
    """Part by part, since a wildcard ends at a colon; the parts an ARN lacks are taken as wildcards, as AWS does."""
    if pattern == "*":
        return True
    patterns = _COLON.split(pattern, maxsplit=5)
    parts = resource.split(":", 5)
    if len(parts) < 6:
        return False
    patterns += ["*"] * (6 - len(patterns))
    return all(
        re.fullmatch(_expression(pattern, variables), part, re.DOTALL) is not None
        for pattern, part in zip(patterns, parts, strict=True)
    )


def _holds(
    operator: str, key: str, patterns: list[str], context: Mapping[str, str], variables: Mapping[str, str] | None
) -> bool:
    if operator not in _OPERATORS:
        raise Unsupported(f"the condition operator {operator}")
    _must_be_known(key, f"the condition key {key}")
    is_negated = "Not" in operator
    value = context.get(key.lower())
    if value is None:
        return is_negated
    has_wildcards = operator.endswith("Like")
    is_found = any(
        re.fullmatch(_expression(pattern, variables, has_wildcards), value, re.DOTALL) is not None
        for pattern in patterns
    )
    return is_found is not is_negated


def _expression(pattern: str, variables: Mapping[str, str] | None, has_wildcards: bool = True) -> str:
    """A policy's pattern as a regular expression. A variable's value stands for itself, wildcards and all."""
    parts = []
    for token in _TOKEN.findall(pattern):
        if token in ("*", "?") and has_wildcards:
            parts.append(".*" if token == "*" else ".")
        elif token.startswith("${") and variables is not None:
            parts.append(_variable(token[2:-1], variables))
        else:
            parts.append(re.escape(token))
    return "".join(parts)


def _variable(name: str, variables: Mapping[str, str]) -> str:
    if name in ("*", "?", "$"):
        return re.escape(name)
    _must_be_known(name, f"the policy variable ${{{name}}}")
    value = variables.get(name.lower())
    return _NOTHING if value is None else re.escape(value)


def _must_be_known(key: str, what: str) -> None:
    if key.lower() not in _KEYS and not key.lower().startswith(_TAG):
        raise Unsupported(what)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
