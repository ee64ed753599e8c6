"""Decides how a model's code is loaded: a file of its folder, an absolute path, or a module by name.

A file is executed once in a process, whoever asks for it (DJL 0.36 executes model.py three times and more).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def load_module(model_dir: str, entry_point: str) -> ModuleType:
    """The module of an entry point: a path to a file ending in .py or an absolute one, else a module's name.

    Raises ValueError for a file that isn't there, and whatever the code raises.
    """
    if not entry_point.endswith(".py") and not os.path.isabs(entry_point):
        return importlib.import_module(entry_point)
    path = os.path.join(model_dir, entry_point)
    if not os.path.exists(path):
        raise ValueError(f"entry-point file not found {path}.")
    name = f"model_{hashlib.md5(path.encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} isn't a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class ModelService:
    """A loaded module with its model's folder, called by function name."""

    def __init__(self, module: Any, model_dir: str) -> None:
        self.module = module
        self.model_dir = model_dir

    def invoke_handler(self, function_name: str, inputs: Any) -> Any:
        inputs.properties["model_dir"] = self.model_dir
        return getattr(self.module, function_name)(inputs)

    async def invoke_handler_async(self, function_name: str, inputs: Any) -> Any:
        inputs.properties["model_dir"] = self.model_dir
        return await getattr(self.module, function_name)(inputs)


def load_model_service(model_dir: str, entry_point: str, device_id: Any, namespace: str | None = None) -> ModelService:
    """The entry point as a ModelService; `device_id` and `namespace` are DJL's and change nothing here."""
    return ModelService(load_module(model_dir, entry_point), model_dir)


def has_function_in_module(module: Any, function_name: str) -> bool:
    return callable(getattr(module, function_name, None))


def find_decorated_function(module: Any, decorator_attribute: str) -> Callable[..., Any] | None:
    """The first function of a module, by name, that a decorator has marked with this attribute."""
    for name in dir(module):
        value = getattr(module, name)
        if callable(value) and getattr(value, decorator_attribute, False):
            found: Callable[..., Any] = value
            return found
    return None


def get_annotated_function(
    model_dir: str, decorator_attribute: str, namespace: str | None = None
) -> Callable[..., Any] | None:
    """The marked function of the folder's model.py, or None if there is no such function or no model.py."""
    if not os.path.exists(os.path.join(model_dir, "model.py")):
        return None
    return find_decorated_function(load_module(model_dir, "model.py"), decorator_attribute)


def formatters(model_dir: str) -> dict[str, Callable[..., Any]]:
    """The marked input and output formatters of the folder's model.py, by the property that names them."""
    found = {name: get_annotated_function(model_dir, f"is_{name}") for name in ("output_formatter", "input_formatter")}
    return {name: function for name, function in found.items() if function}
