"""Decides how a scikit-learn model file is served without a handler of one's own (`djl_python.sklearn_handler`).

Files are loaded by skops unless `option.model_format` says joblib, pickle or cloudpickle, which run code of the file's
maker and so need `option.trust_insecure_model_files=true`.
Source: engines/python/setup/djl_python/sklearn_handler.py of DJL Serving.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from .custom_formatter_handling import FileService, model_file
from .inputs import Input
from .outputs import Output

_EXTENSIONS = {
    "skops": ("skops",),
    "joblib": ("joblib", "jl"),
    "pickle": ("pkl", "pickle"),
    "cloudpickle": ("pkl", "pickle", "cloudpkl"),
}


def _load(folder: Path, properties: dict[str, Any]) -> Any:
    model_format = properties.get("model_format", "skops")
    if model_format not in _EXTENSIONS:
        supported = ", ".join(_EXTENSIONS)
        raise ValueError(f"Unsupported model format: {model_format}. Supported formats: {supported}")
    file = model_file(folder, model_format, _EXTENSIONS)
    if model_format == "skops":
        trusted = [name.strip() for name in properties.get("skops_trusted_types", "").split(",") if name.strip()]
        if not trusted:
            raise ValueError(
                "option.skops_trusted_types must be set to load skops models, as a list of types divided by commas;"
                " skops.io.get_untrusted_types(file=...) names those that the file needs"
            )
        import skops.io

        return skops.io.load(file, trusted=trusted)
    if properties.get("trust_insecure_model_files", "false").lower() != "true":
        raise ValueError(
            f"option.trust_insecure_model_files must be set to 'true' to use {model_format} format"
            " (only skops is secure by default)"
        )
    if model_format == "joblib":
        import joblib

        return joblib.load(file)
    # cloudpickle's files are read by pickle; what they need of cloudpickle they import themselves.
    with file.open("rb") as pickled:
        return pickle.load(pickled)


def handle(inputs: Input) -> Output | None:
    """The model's predictions; None to the init call."""
    return _service.handle(inputs)


_service = FileService(_load, lambda model, data: model.predict(data))
