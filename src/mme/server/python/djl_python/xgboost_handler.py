"""Decides how an XGBoost model file is served without a handler of one's own (`djl_python.xgboost_handler`).

`option.model_format` is json unless it says ubj, or pickle or xgb, which need `option.trust_insecure_model_files=true`.
Source: engines/python/setup/djl_python/xgboost_handler.py of DJL Serving.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from .custom_formatter_handling import FileService, model_file
from .inputs import Input
from .outputs import Output

_EXTENSIONS = {
    "json": ("json",),
    "ubj": ("ubj",),
    "pickle": ("pkl", "pickle"),
    "xgb": ("xgb", "model", "bst"),
}


def _load(folder: Path, properties: dict[str, Any]) -> Any:
    import xgboost

    model_format = properties.get("model_format") or os.environ.get("MODEL_FORMAT") or "json"
    if model_format not in _EXTENSIONS:
        supported = ", ".join(_EXTENSIONS)
        raise ValueError(f"Unsupported model format: {model_format}. Supported formats: {supported}")
    trusted = properties.get("trust_insecure_model_files") or os.environ.get("TRUST_INSECURE_MODEL_FILES") or "false"
    if model_format in ("pickle", "xgb") and trusted.lower() != "true":
        raise ValueError(
            "option.trust_insecure_model_files must be set to 'true' to use unsafe formats"
            " (only json/ubj are secure by default)"
        )
    file = model_file(folder, model_format, _EXTENSIONS)
    if model_format == "pickle":
        return pickle.loads(file.read_bytes())
    booster = xgboost.Booster()
    booster.load_model(file)
    return booster


def _predict(model: Any, data: Any) -> Any:
    import xgboost

    return model.predict(xgboost.DMatrix(data))


def handle(inputs: Input) -> Output | None:
    """The model's predictions; None to the init call."""
    return _service.handle(inputs)


_service = FileService(_load, _predict)
