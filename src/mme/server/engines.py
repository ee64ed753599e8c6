"""Decides which engine DJL would serve a folder with, and where its handler is.

Source: ModelInfo.inferEngine and PyModel.load of DJL Serving 0.36.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from mme.server.errors import InvalidValue, JavaFailure, LoadFailed, ModelNotFound

_SKLEARN_FILES = (".skops", ".joblib", ".pkl", ".pickle", ".cloudpkl")
# What DJL looks for after model.skops and the like: the first engine with one of its files is the folder's.
_FILES = {
    "PyTorch": (".pt",),
    "TritonServer": ("config.pbtxt",),
    "TensorFlow": ("saved_model.pb",),
    "OnnxRuntime": (".onnx",),
    "XGBoost": (".json", ".xgb", ".bst"),
}
_PYTHON = ("Python", "MPI")
# DJL's Java engines that are served here too, by handlers of ours, and the module that each runs its models with.
_HANDLERS = {
    "PyTorch": ("djl_python.engines.pytorch", "torch"),
    "OnnxRuntime": ("djl_python.engines.onnx_runtime", "onnxruntime"),
    "XGBoost": ("djl_python.engines.xgboost_json", "xgboost"),
}
_TRANSLATORS = ("translatorFactory", "translator", "application")


def engine_of(folder: Path, options: Mapping[str, str], engine: str | None) -> str:
    """The engine that is asked for, else the one that DJL infers from the folder's files.

    Raises ModelNotFound if no engine would know the folder, InvalidValue for one that isn't here, LoadFailed for a
    translator, which would be Java.
    """
    if engine is None:
        engine = next((name for name, theirs in _FILES.items() if _has(folder, options, *theirs)), None)
    if engine is None:
        if not recommended_entry_point(folder, options) and not _has(folder, options, ".py"):
            if not (folder / "MAR-INF").is_dir():
                raise ModelNotFound(f"Failed to detect engine of the model: {folder}")
        engine = "Python"
    if engine in _PYTHON:
        return engine
    if engine not in _HANDLERS or importlib.util.find_spec(_HANDLERS[engine][1]) is None:
        raise InvalidValue(f"Deep learning engine not found: {engine}")
    if chosen := [key for key in _TRANSLATORS if key in options]:
        raise LoadFailed(
            f"option.{chosen[0]}={options[chosen[0]]} names a translator in Java, which this server doesn't run; "
            "remove it to send and get plain numbers, or serve the model by a model.py"
        )
    return engine


def built_in_handler(engine: str) -> str | None:
    """The module that serves models of an engine other than Python."""
    return None if engine in _PYTHON else _HANDLERS[engine][0]


def recommended_entry_point(folder: Path, options: Mapping[str, str]) -> str | None:
    """The entry point that DJL recommends to its Python engine for the files of the folder."""
    if _has(folder, options, *_SKLEARN_FILES):
        return "djl_python.sklearn_handler"
    if "model_id" in options or _has(folder, options, "config.json"):
        return "djl_python.huggingface"
    return None


def _has(folder: Path, options: Mapping[str, str], *names: str) -> bool:
    """Whether there is a file of one of these names; of a suffix, with the model's name or "model" before it."""
    stems = {"model", options.get("modelName", folder.name)}
    wanted = {stem + name if name.startswith(".") else name for name in names for stem in stems}
    return any((folder / name).is_file() for name in wanted)


def entry_points(folder: Path, options: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, str]:
    """The entry point, and the one that serves if that has no such function (a script for a built-in handler).

    Raises JavaFailure if there is neither a chosen nor a recommended one, nor a model.py.
    """
    recommended = recommended_entry_point(folder, options)
    chosen = options.get("entryPoint", environ.get("DJL_ENTRY_POINT"))
    if chosen:
        return chosen, ""
    if (folder / "model.py").is_file():
        return "model.py", recommended or ""
    if recommended is None:
        raise JavaFailure("FileNotFoundException", f".py file not found in: {folder}")
    return recommended, ""
