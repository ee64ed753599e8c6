"""Decides who loads and asks a model of which kind, and how what fails is told.

Run by `probe` as a program: what it loads may run code. Writes a probe.Found, or an error, as JSON to a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mme.new import engines, scikit
from mme.new.loaded import GIVE_ONE, WRITE_IT, Loaded, Unfit
from mme.new.probe import Question

_BY_KIND: dict[str, Callable[[Question], Loaded]] = {
    "scikit-learn": scikit.scikit_learn,
    "SetFit": engines.setfit,
    "XGBoost": engines.xgboost,
    "ONNX": engines.onnx,
    "TorchScript": engines.torchscript,
}


def answered(question: Question) -> dict[str, Any]:
    """What is found, or the error that says why nothing is."""
    file = question.name
    try:
        loaded = _BY_KIND[question.kind](question)
    except Unfit as error:
        return {"error": f"{file}: {error}"}
    except ModuleNotFoundError as error:
        return {"error": f"{file} needs the module {error.name}, which is not installed here"}
    except Exception as error:  # whatever the model's code raises is its maker's to read
        return {"error": f"{file} can't be loaded: {_cause(error)}"}
    try:
        found = loaded.found()
    except Unfit as error:
        return {"error": f"{file}: {error}"}
    except Exception as error:
        asked = json.dumps(loaded.records)[:80]
        way_out = f"{GIVE_ONE}; if it takes anything but rows of numbers, {WRITE_IT}"
        return {"error": f"{file} can't be asked {asked}: {_cause(error)}; {way_out}"}
    return asdict(found)


def _cause(error: Exception) -> str:
    """Its kind and its line that says most: the last of what torch tells of a script."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1].removeprefix("RuntimeError: ") if isinstance(error, RuntimeError) else lines[0]
    return f"{type(error).__name__}: {line[:300]}"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(answered(Question(**json.loads(sys.argv[1])))), encoding="utf-8")
