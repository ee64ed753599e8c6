"""Decides which engine DJL would serve a folder with, and where its handler is.

Source: ModelInfo.inferEngine and PyModel.load of DJL Serving 0.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mme.server.errors import InvalidValue, JavaFailure, ModelNotFound

_SKLEARN_FILES = (".skops", ".joblib", ".pkl", ".pickle", ".cloudpkl")
# Engines that DJL would choose for these files, and that are not served here.
_OTHER_ENGINES = {
    "PyTorch": (".pt",),
    "TritonServer": ("config.pbtxt",),
    "TensorFlow": ("saved_model.pb",),
    "OnnxRuntime": (".onnx",),
    "XGBoost": (".json", ".xgb", ".bst"),
}


def recommended_entry_point(folder: Path, options: Mapping[str, str], engine: str | None) -> str | None:
    """The entry point that DJL recommends for the files of the folder, once the engine is sure to be Python.

    Raises ModelNotFound if no engine would know the folder, InvalidValue for an engine that isn't Python.
    """
    files = {entry.name for entry in folder.iterdir() if entry.is_file()}
    stems = {"model", options.get("modelName", folder.name)}

    def has(*names: str) -> bool:
        return any(stem + name in files if name.startswith(".") else name in files for name in names for stem in stems)

    recommended = None
    if has(*_SKLEARN_FILES):
        recommended = "djl_python.sklearn_handler"
    elif "model_id" in options or has("config.json"):
        recommended = "djl_python.huggingface"
    if engine is None:
        other = next((name for name, theirs in _OTHER_ENGINES.items() if has(*theirs)), None)
        if other is None and recommended is None and not has(".py") and not (folder / "MAR-INF").is_dir():
            raise ModelNotFound(f"Failed to detect engine of the model: {folder}")
        engine = other or "Python"
    if engine not in ("Python", "MPI"):
        raise InvalidValue(f"Deep learning engine not found: {engine}")
    return recommended


def entry_points(
    folder: Path, options: Mapping[str, str], environ: Mapping[str, str], recommended: str | None
) -> tuple[str, str]:
    """The entry point, and the one that serves if that has no such function (a script for a built-in handler).

    Raises JavaFailure if there is neither a chosen nor a recommended one, nor a model.py.
    """
    chosen = options.get("entryPoint", environ.get("DJL_ENTRY_POINT"))
    if chosen:
        return chosen, ""
    if (folder / "model.py").is_file():
        return "model.py", recommended or ""
    if recommended is None:
        raise JavaFailure("FileNotFoundException", f".py file not found in: {folder}")
    return recommended, ""
