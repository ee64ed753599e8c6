"""Decides how a model.py marks the function that writes its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def output_formatter(function: _Function) -> _Function:
    """Mark the function that turns a prediction into the answer's content."""
    function.is_output_formatter = True  # type: ignore[attr-defined]
    return function
