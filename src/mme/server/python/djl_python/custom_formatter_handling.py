"""Decides how a model file is served without a handler of one's own, and what a model.py beside it changes.

A model.py may bring functions: decorated (`init_handler`, `input_formatter`, `prediction_handler`, `output_formatter`)
or named as SageMaker's scripts name them (`model_fn`, `input_fn`, `predict_fn`, `output_fn`). It is executed once.
Source: custom_formatter_handling.py, sklearn_handler.py and xgboost_handler.py of DJL Serving's engines/python/setup.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .encode_decode import decode
from .inputs import Input
from .outputs import Output
from .service_loader import find_decorated_function, load_module

_ACCEPTED = ("application/json", "text/csv")
_ROLES = ("init", "input", "predict", "output")
_DECORATED = {
    "init": "is_init_handler",
    "input": "is_input_formatter",
    "predict": "is_prediction_handler",
    "output": "is_output_formatter",
}
# SageMaker's function of each role and the parameter names that DJL takes it by; another signature is passed over.
_SAGEMAKER: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "init": ("model_fn", (("model_dir",),)),
    "input": ("input_fn", (("request_body", "content_type"), ("request_body", "request_content_type"))),
    "predict": ("predict_fn", (("input_data", "model"),)),
    "output": ("output_fn", (("prediction", "accept"), ("prediction", "response_content_type"))),
}
_FAILED = {
    "init": "Custom init handler execution failed",
    "input": "Custom input formatter execution failed",
    "predict": "Custom prediction handler execution failed",
    "output": "Custom output formatter execution failed",
}


class CustomFormatterError(Exception):
    """A function of the package's own model.py failed; the cause is the exception that it raised."""


@dataclass(frozen=True)
class _Functions:
    """What a model.py brings, by role."""

    by_role: dict[str, Callable[..., Any]]
    is_sagemaker: bool = False

    def call(self, role: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.by_role[role](*args, **kwargs)
        except Exception as error:
            logging.exception(_FAILED[role])
            raise CustomFormatterError(_FAILED[role]) from error


class FileService:
    """The model of this process, once the init call has loaded it: `load` gets its folder and properties."""

    def __init__(self, load: Callable[[Path, dict[str, Any]], Any], predict: Callable[[Any, Any], Any]) -> None:
        self._load = load
        self._predict = predict
        self.model: Any = None
        self.functions: _Functions | None = None
        self._default_accept = "application/json"

    def initialize(self, properties: dict[str, Any]) -> None:
        """Load the model; raises ValueError or FileNotFoundError for settings that don't fit the folder's files."""
        folder = Path(properties["model_dir"])
        functions = _own_functions(folder)
        if "init" in functions.by_role:
            self.model = functions.call("init", str(folder))
        if self.model is None:
            self.model = self._load(folder, properties)
        self._default_accept = properties.get("default_accept", "application/json")
        self.functions = functions

    def handle(self, inputs: Input) -> Output | None:
        """Load the model on the first call; answer None to the init call, and predictions to every other."""
        if self.functions is None:
            self.initialize(inputs.get_properties())
        assert self.functions is not None
        return None if inputs.is_empty() else self.answer(inputs, self.functions)

    def answer(self, inputs: Input, functions: _Functions) -> Output:
        """Decode, predict, encode, each by the package's own function where it has one."""
        content_type = inputs.get_property("Content-Type")
        accept = inputs.get_property("Accept")
        if accept == "*/*":
            accept = self._default_accept
        own = functions.by_role
        if "output" not in own and not any(each in accept for each in _ACCEPTED):
            raise ValueError(f"Unsupported Accept type: {accept}. Supported types: {', '.join(_ACCEPTED)}")
        data = self._data(inputs, content_type, functions)
        prediction = functions.call("predict", data, self.model) if "predict" in own else None
        if prediction is None:
            prediction = self._predict(self.model, data)
        return self._output(prediction, accept, functions)

    @staticmethod
    def _data(inputs: Input, content_type: Any, functions: _Functions) -> Any:
        data: Any
        if "input" not in functions.by_role:
            if "text/csv" in content_type:
                data = decode(inputs, content_type, require_csv_headers=False)
            else:
                decoded = decode(inputs, content_type)
                data = np.array(decoded.get("inputs") if isinstance(decoded, dict) else decoded)
        elif functions.is_sagemaker:
            data = functions.call("input", inputs.get_as_bytes(), content_type)
        else:
            data = functions.call("input", inputs, content_type=content_type)
        if not hasattr(data, "ndim"):
            raise ValueError(f"Input processing failed for content type {content_type}")
        return data.reshape(1, -1) if data.ndim == 1 else data

    @staticmethod
    def _output(prediction: Any, accept: Any, functions: _Functions) -> Output:
        if "output" in functions.by_role:
            more = (accept,) if functions.is_sagemaker else ()
            written = functions.call("output", prediction, *more)
            if written is not prediction:
                output = Output().add(written)
                return output.add_property("Content-Type", accept) if functions.is_sagemaker else output
        if "text/csv" in accept:
            lines = StringIO()
            np.savetxt(lines, prediction, fmt="%s", delimiter=",")
            return Output().add(lines.getvalue().rstrip()).add_property("Content-Type", "text/csv")
        return Output().add_as_json({"predictions": prediction.tolist()})


def model_file(folder: Path, model_format: str, extensions: Mapping[str, tuple[str, ...]]) -> Path:
    """The folder's one file of a format. Raises FileNotFoundError without one, ValueError for several."""
    files = [str(file) for extension in extensions[model_format] for file in folder.glob(f"*.{extension}")]
    if not files:
        raise FileNotFoundError(f"No model file found with format '{model_format}' in {folder}")
    if len(files) > 1:
        raise ValueError(
            f"Multiple model files found in {folder}: {files}. Only one model file is supported per directory."
        )
    return Path(files[0])


def _own_functions(folder: Path) -> _Functions:
    """The functions of the folder's model.py; raises CustomFormatterError if it cannot be executed."""
    if not (folder / "model.py").is_file():
        return _Functions({})
    try:
        module = load_module(str(folder), "model.py")
    except Exception as error:
        raise CustomFormatterError(f"Failed to load custom code from {folder}") from error
    decorated = {role: found for role in _ROLES if (found := find_decorated_function(module, _DECORATED[role]))}
    if decorated:
        return _Functions(decorated)
    named = {role: found for role in _ROLES if (found := _sagemaker_function(module, role))}
    return _Functions(named, is_sagemaker=bool(named))


def _sagemaker_function(module: ModuleType, role: str) -> Callable[..., Any] | None:
    name, signatures = _SAGEMAKER[role]
    function = getattr(module, name, None)
    if not callable(function):
        return None
    parameters = tuple(inspect.signature(function).parameters)
    if parameters not in signatures:
        wanted = " or ".join(f"{name}({', '.join(each)})" for each in signatures)
        logging.warning("%s(%s) is passed over, as DJL Serving does: name it %s", name, ", ".join(parameters), wanted)
        return None
    return function  # type: ignore[no-any-return]
