"""Decides what a file or folder of a model is: by its name, and by what lies in it, without loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mme.new.errors import NewError
from mme.packages.layout import HANDLER, PROPERTIES

Name = Literal["scikit-learn", "SetFit", "XGBoost", "ONNX", "TorchScript", "bare"]


@dataclass(frozen=True)
class Kind:
    """A kind of model: the folder of `serving_scripts/` that serves it, and what its file is called in a package."""

    name: Name
    scripts: str
    artifact: str = ""


BARE = Kind("bare", "bare")
_SETFIT = Kind("SetFit", "setfit", "model")
_BY_SUFFIX = {
    **dict.fromkeys((".joblib", ".pkl", ".pickle"), Kind("scikit-learn", "scikit_learn", "model.joblib")),
    ".skops": Kind("scikit-learn", "scikit_learn", "model.skops"),
    **dict.fromkeys((".json", ".ubj", ".xgb", ".bst"), Kind("XGBoost", "xgboost", "model.ubj")),
    ".onnx": Kind("ONNX", "onnx", "model.onnx"),
    **dict.fromkeys((".pt", ".pth", ".ts"), Kind("TorchScript", "torchscript", "model.pt")),
}
_KNOWN = (
    "scikit-learn (.joblib, .pkl, .skops), XGBoost (.json, .ubj), ONNX (.onnx), TorchScript (.pt) and SetFit's folders"
)
_WAYS_OUT = {
    ".h5": "export the network as ONNX (tf2onnx writes it)",
    ".keras": "export the network as ONNX (tf2onnx writes it)",
    ".pb": "export the graph as ONNX (tf2onnx writes it)",
    ".safetensors": "these are weights without a model: save the whole, as ONNX, TorchScript or SetFit's folder",
    ".ckpt": "these are weights without a model: export the network as ONNX or TorchScript",
    ".gz": "a package is packed already: `mme check` and `mme deploy` take it as it is",
}


def kind_of(path: Path) -> Kind:
    """What lies at a path. Raises NewError, with the way out, for what none of the engines serves."""
    if path.is_dir():
        if (path / "config_setfit.json").is_file():
            return _SETFIT
        if (path / PROPERTIES).is_file() or (path / HANDLER).is_file():
            raise NewError(f"{path} is a package already; pack it: mme pack {path}")
        raise NewError(
            f"{path} is no folder of a SetFit model, which has a config_setfit.json; save_pretrained writes it"
        )
    kind = _BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        way_out = _WAYS_OUT.get(path.suffix.lower(), "without --model, `mme new` starts a handler that you fill in")
        raise NewError(f"{path.name} is no kind of model that is known here: {_KNOWN} are; {way_out}")
    if path.suffix.lower() == ".json" and not _is_xgboost(path):
        raise NewError(f"{path.name} is no model of XGBoost, as Booster.save_model writes it")
    return kind


def _is_xgboost(path: Path) -> bool:
    try:
        return "learner" in json.loads(path.read_bytes())
    except (ValueError, TypeError, RecursionError):
        return False
