"""How a server that is no container of the contract loads and asks a model: by the model's own `answering.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location


def load(folder: str) -> Callable[[bytes], str]:
    """The model of a folder, as a function from a call's body to its answer."""
    spec = spec_from_file_location("answering", f"{folder}/answering.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return partial(module.answer, module.load(folder))
