"""Decides how model.json, .xgb or .bst is run: by XGBoost on the CPU, one flat list of numbers out.

Source: XgbModel and XgbSymbolBlock of DJL 0.36, read and not tried: the engine was not in the server at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tensors import Tensors
from .translator import Predict, TranslateException, model_file, served

_MODES: dict[str, dict[str, bool]] = {
    "DEFAULT": {},
    "OUTPUT_MARGIN": {"output_margin": True},
    "LEAF": {"pred_leaf": True},
    "CONTRIB": {"pred_contribs": True},
}


def load(folder: Path, properties: Mapping[str, Any]) -> Predict:
    """option.Mode chooses among predictions, margins, leaves and contributions. Raises ValueError for another one."""
    import xgboost

    mode = str(properties.get("Mode", "DEFAULT")).upper()
    if mode not in _MODES:
        raise ValueError(f"option.Mode={mode} is none of {', '.join(_MODES)}")
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(model_file(folder, properties, ".json", ".xgb", ".bst"))

    def predict(tensors: Tensors) -> Tensors:
        if len(tensors) != 1 or tensors[0][1].ndim != 2:
            raise TranslateException("XgbNDArray shape must be in two dimension.")
        rows = xgboost.DMatrix(tensors[0][1], nthread=1)
        answered = booster.predict(rows, validate_features=False, **_MODES[mode])
        return [(None, answered.reshape(-1))]

    return predict


handle = served(load)
