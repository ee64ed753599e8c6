"""Decides how a scikit-learn model file is served without a handler of one's own (`djl_python.sklearn_handler`).

Files are loaded by skops unless `option.model_format` says joblib, pickle or cloudpickle, which run code of the file's
maker and so need `option.trust_insecure_model_files=true`. A model.py beside the file may bring functions of its own:
decorated (`init_handler`, `input_formatter`, `prediction_handler`, `output_formatter`) or named as SageMaker's scripts
name them (`model_fn`, `input_fn`, `predict_fn`, `output_fn`). It is executed once.
Source: engines/python/setup/djl_python/sklearn_handler.py and custom_formatter_handling.py of DJL Serving.
"""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Callable
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

_EXTENSIONS = {
    "skops": ("skops",),
    "joblib": ("joblib", "jl"),
    "pickle": ("pkl", "pickle"),
    "cloudpickle": ("pkl", "pickle", "cloudpkl"),
}
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


class _Service:
    """The model of this process, once the init call has loaded it."""

    def __init__(self) -> None:
        self.model: Any = None
        self.functions: _Functions | None = None
        self._default_accept = "application/json"

    def initialize(self, properties: dict[str, Any]) -> None:
        """Load the model; raises ValueError or FileNotFoundError for settings that don't fit the folder's files."""
        model_format = properties.get("model_format", "skops")
        if model_format not in _EXTENSIONS:
            supported = ", ".join(_EXTENSIONS)
            raise ValueError(f"Unsupported model format: {model_format}. Supported formats: {supported}")
        folder = Path(properties["model_dir"])
        functions = _own_functions(folder)
        if "init" in functions.by_role:
            self.model = functions.call("init", str(folder))
        if self.model is None:
            self.model = _load(folder, model_format, properties)
        self._default_accept = properties.get("default_accept", "application/json")
        self.functions = functions

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
            prediction = self.model.predict(data)
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


def _load(folder: Path, model_format: str, properties: dict[str, Any]) -> Any:
    files = [str(file) for extension in _EXTENSIONS[model_format] for file in folder.glob(f"*.{extension}")]
    if not files:
        raise FileNotFoundError(f"No model file found with format '{model_format}' in {folder}")
    if len(files) > 1:
        raise ValueError(
            f"Multiple model files found in {folder}: {files}. Only one model file is supported per directory."
        )
    if model_format == "skops":
        trusted = [name.strip() for name in properties.get("skops_trusted_types", "").split(",") if name.strip()]
        if not trusted:
            raise ValueError(
                "option.skops_trusted_types must be set to load skops models, as a list of types divided by commas;"
                " skops.io.get_untrusted_types(file=...) names those that the file needs"
            )
        import skops.io

        return skops.io.load(files[0], trusted=trusted)
    if properties.get("trust_insecure_model_files", "false").lower() != "true":
        raise ValueError(
            f"option.trust_insecure_model_files must be set to 'true' to use {model_format} format"
            " (only skops is secure by default)"
        )
    if model_format == "joblib":
        import joblib

        return joblib.load(files[0])
    # cloudpickle's files are read by pickle; what they need of cloudpickle they import themselves.
    with open(files[0], "rb") as file:
        return pickle.load(file)


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


_service = _Service()


def handle(inputs: Input) -> Output | None:
    """Load the model on the first call; answer None to the init call, and predictions to every other."""
    if _service.functions is None:
        _service.initialize(inputs.get_properties())
    assert _service.functions is not None
    return None if inputs.is_empty() else _service.answer(inputs, _service.functions)
