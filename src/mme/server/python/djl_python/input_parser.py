"""Decides how a model.py marks its functions for the built-in handlers: by attributes that these decorators set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def input_formatter(function: _Function) -> _Function:
    """Mark the function that turns an Input into what the model takes."""
    function.is_input_formatter = True  # type: ignore[attr-defined]
    return function


def prediction_handler(function: _Function) -> _Function:
    """Mark the function that is called as `(data, model)` in place of `model.predict`."""
    function.is_prediction_handler = True  # type: ignore[attr-defined]
    return function


def init_handler(function: _Function) -> _Function:
    """Mark the function that is called with the model's folder and returns the model."""
    function.is_init_handler = True  # type: ignore[attr-defined]
    return function
