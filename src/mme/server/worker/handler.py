"""Decides how a model's handler is loaded and called, and what its failures become: DJL's codes and texts."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Input, Output

# Failures that say "no memory" though they aren't a MemoryError, as DJL's engine tells them.
_MEMORY_ERRORS = ("OutOfMemoryError", "MemoryError")
_MEMORY_TEXTS = ("No available memory for the cache blocks", "CUDA error: out of memory")
_FIRST_ERROR_CODE = 300  # an init call that answers this or more has failed, as in DJL
_NO_MEMORY_CODE = 507
_REASON_CHARS = 500  # a reason is told in a line of the log


@dataclass(frozen=True)
class HandlerSpec:
    """Where a handler is: the folder, the entry point in it (a file, or a module's name), and the function."""

    model_dir: str
    entry_point: str
    function: str = "handle"
    fallback_entry_point: str = ""
    is_async: bool = False


class Handler:
    """A loaded handler. Raises whatever its module raises when it is loaded."""

    def __init__(self, spec: HandlerSpec) -> None:
        from . import api
        from .api import service_loader

        self.spec = spec
        self._api = api
        self._error = self._traceback = ""
        self._module = service_loader.load_module(spec.model_dir, spec.entry_point or spec.fallback_entry_point)
        if spec.fallback_entry_point and not callable(getattr(self._module, spec.function, None)):
            logging.info("%s has no function %s: %s serves", spec.entry_point, spec.function, spec.fallback_entry_point)
            self._module = service_loader.load_module(spec.model_dir, spec.fallback_entry_point)
        # As in DJL, model.py's own formatters are properties of every call.
        self._formatters = (
            service_loader.formatters(spec.model_dir) if Path(spec.model_dir, "model.py").exists() else {}
        )

    def function(self, inputs: Input) -> Callable[[Input], Any]:
        """The handler function that this request is for; completes the request's properties as DJL does."""
        properties = inputs.properties
        name = inputs.function_name = properties.setdefault("handler", self.spec.function)
        properties["cluster_size"] = 1
        properties["device_id"] = "-1"
        if self._formatters:
            properties.update(self._formatters)
        properties["model_dir"] = self.spec.model_dir
        function: Callable[[Input], Any] = getattr(self._module, name)
        return function

    def call(self, inputs: Input) -> Output:
        """The handler's answer, or the answer that DJL gives in place of what it raised or returned."""
        try:
            return self._checked(self.function(inputs)(inputs))
        except Exception as error:
            return self._failed(error, "service.invoke_handler()", "invoke handler failure")

    async def call_async(self, inputs: Input) -> Any:
        """As `call` for an `async def` handler; may also return its asynchronous generator of Outputs."""
        try:
            answer = await self.function(inputs)(inputs)
            return answer if isinstance(answer, AsyncIterator) else self._checked(answer)
        except Exception as error:
            where = "service.invoke_handler_async()"
            return self._failed(error, where, f"{where} failure")

    def failure(self, output: Output) -> dict[str, Any]:
        """What an init call's frame says in addition if this answer to it means that the model can't be served."""
        if output.code < _FIRST_ERROR_CODE:
            return {}
        kind = "memory" if output.code == _NO_MEMORY_CODE else "handler"
        return {"failure": {"kind": kind, "error": self._error or _reason(output), "traceback": self._traceback}}

    def _checked(self, answer: Any) -> Output:
        if answer is None:
            return self._api.Output(code=204, message="No content")
        if isinstance(answer, self._api.Output):
            return answer
        self._error = f"Invalid output type: {type(answer)}"
        return self._api.Output().error(self._error)

    def _failed(self, error: Exception, where: str, message: str) -> Output:
        """What DJL answers when a handler raised: 507 for want of memory, else 424 with the error's text."""
        self._error, self._traceback = str(error), traceback_of(error)
        logging.error("Failed invoke %s\n%s", where, self._traceback)
        if type(error).__name__ in _MEMORY_ERRORS or any(known in self._error for known in _MEMORY_TEXTS):
            return self._api.Output(code=_NO_MEMORY_CODE, message=self._error)
        return self._api.Output().error(self._error, message=message)


def _reason(output: Output) -> str:
    """What an error answer says: the error of `Output.error`, else its text."""
    values = output.content.get_values()
    text = b"".join(bytes(value) for value in values if isinstance(value, bytes | bytearray)).decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:_REASON_CHARS] or output.message


def traceback_of(error: BaseException) -> str:
    """The error as Python prints it, without a line's end."""
    return "".join(traceback.format_exception(error)).rstrip()


def reseed() -> None:
    """Give this process random numbers of its own: a fork continues its parent's otherwise.

    Python's `random` reseeds itself after a fork; numpy's and torch's global generators don't.
    """
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
