"""Decides what each kind of model is asked, and how its answer is put as the package will put it.

Run by `probe` as a program: what it loads may run code. Writes a probe.Found, or an error, as JSON to a file.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mme.new.probe import Found, Question

_FLOAT32 = 1e-5  # how exactly engines that compute with 32 bits give the same numbers again
_GIVE_ONE = "give a record that it understands, such as --example '[1, 2, 3]'"


class Unfit(Exception):
    """The model can't be served as it is; the message says why, and what to do."""


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded: what it is, in words; records to ask it; its answer to some, as its package will put it;
    the memory that its process had before it."""

    what: str
    records: list[Any]
    answer: Callable[[list[Any]], dict[str, Any]]
    before_mb: int
    tolerance: float = _FLOAT32

    def found(self) -> Found:
        """Ask the first record alone, then all of them."""
        batches = [self.records[:1], self.records][: len(self.records)]
        calls = [({"inputs": batch}, self.answer(batch)) for batch in batches]
        return Found(self.what, calls, max(0, _memory_mb() - self.before_mb), self.tolerance)


def scikit_learn(question: Question) -> Loaded:
    """Rows of as many numbers as the model was trained on."""
    import joblib
    import numpy as np
    from sklearn.base import is_classifier, is_regressor
    from sklearn.exceptions import InconsistentVersionWarning

    before_mb = _memory_mb()
    file = Path(question.file)
    warnings.simplefilter("ignore")
    if not question.allows_mismatch:
        warnings.simplefilter("error", InconsistentVersionWarning)
    try:
        if file.suffix == ".skops":
            import skops.io

            model = skops.io.load(file, trusted=list(question.trusted))
        else:
            model = joblib.load(file)
    except InconsistentVersionWarning as warning:
        raise Unfit(
            f"it was saved by scikit-learn {warning.original_sklearn_version}, and here as in the container is "
            f"{warning.current_sklearn_version}: train and save it with that, or accept with "
            "--allow-version-mismatch that it may predict otherwise"
        ) from None
    if not hasattr(model, "predict"):
        raise Unfit(
            f"it holds a {_type(model)}, which has no predict(); save the fitted model itself, or start with "
            "`mme new` without --model and write the handler"
        )
    width = getattr(model, "n_features_in_", None)
    if width is None:
        raise Unfit(f"a {_type(model)} doesn't say how many numbers it takes (n_features_in_); is it fitted?")
    does = "classifier" if is_classifier(model) else "regressor" if is_regressor(model) else "model"
    names = [str(name) for name in getattr(model, "feature_names_in_", [])]
    classes = [str(each) for each in getattr(model, "classes_", [])]
    what = f"a {does}, {_type(model)}, of {_counted(width, 'number')} a record{_listed(names)}"
    what += f"; it answers one of{_listed(classes)}" if classes else ""

    def answer(rows: list[Any]) -> dict[str, Any]:
        return {"predictions": model.predict(np.array(rows, dtype=float)).tolist()}

    return Loaded(what, _rows(question.example, width), answer, before_mb, tolerance=1e-9)


def setfit(question: Question) -> Loaded:
    """Sentences; the answer is the likeliest label of each, and how likely it is."""
    import logging
    import os

    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    logging.disable(logging.WARNING)
    from setfit import SetFitModel

    texts = question.example
    if texts is None:
        texts = ["Everything was perfect, thank you.", "It broke on the first day."]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Unfit("it takes sentences; give one, such as --example '\"It broke on the first day.\"'")
    before_mb = _memory_mb()
    model = SetFitModel.from_pretrained(question.file, device="cpu")
    labels = model.model_head.classes_

    def answer(texts: list[Any]) -> dict[str, Any]:
        probabilities = model.predict_proba(texts, as_numpy=True)
        likeliest = labels[probabilities.argmax(axis=1)].tolist()
        return {"predictions": likeliest, "probabilities": probabilities.max(axis=1).round(2).tolist()}

    what = f"a classifier of sentences; it answers one of{_listed([str(label) for label in labels])}"
    return Loaded(what, texts, answer, before_mb, tolerance=0.011)


def xgboost(question: Question) -> Loaded:
    """Rows of numbers. The file is written anew, in the format of its package, without names of columns."""
    import numpy as np
    import xgboost

    before_mb = _memory_mb()
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(question.file)
    names = booster.feature_names or []
    booster.feature_names = booster.feature_types = None  # the rows that come have none, and XGBoost insists
    booster.save_model(Path(question.file).with_name("model.ubj"))
    width = int(booster.num_features())
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    what = f"trees of XGBoost ({objective}) of {_counted(width, 'number')} a record{_listed(names)}"

    def answer(rows: list[Any]) -> dict[str, Any]:
        return {"predictions": booster.predict(xgboost.DMatrix(np.array(rows, dtype=np.float32))).tolist()}

    return Loaded(what, _rows(question.example, width), answer, before_mb)


def onnx(question: Question) -> Loaded:
    """Rows of numbers, as wide as the one input says, or as the user's record is."""
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    before_mb = _memory_mb()
    session = onnxruntime.InferenceSession(question.file, providers=["CPUExecutionProvider"])
    takes = [f"{each.name}: {each.type} {each.shape}" for each in session.get_inputs()]
    first = session.get_inputs()[0]
    if len(takes) > 1 or first.type != "tensor(float)" or len(first.shape) != 2:
        raise Unfit(
            f"it takes {'; '.join(takes)}, and JSON or CSV become one array of rows of 32-bit numbers; export it with "
            "such an input, or start with `mme new` without --model and write the handler"
        )
    if odd := [each.name for each in session.get_outputs() if not each.type.startswith("tensor(")]:
        raise Unfit(f"its output {odd[0]} is no array, which can't be answered; skl2onnx writes one with zipmap=False")
    count, width = first.shape
    rows = _rows(question.example, width if isinstance(width, int) else None)
    rows = rows[:count] if isinstance(count, int) else rows
    names = [each.name for each in session.get_outputs()]
    what = f"a graph of {_counted(len(rows[0]), 'number')} a record, whose outputs are{_listed(names)}"

    def answer(rows: list[Any]) -> dict[str, Any]:
        answered = session.run(None, {first.name: np.array(rows, dtype=np.float32)})
        return _predictions(list(zip(names, answered, strict=True)))

    return Loaded(what, rows, answer, before_mb)


def torchscript(question: Question) -> Loaded:
    """Rows like the user's record: the file doesn't say what it takes."""
    import torch

    if question.example is None:
        raise Unfit(f"a TorchScript file doesn't say what it takes: {_GIVE_ONE}")
    before_mb = _memory_mb()
    torch.set_num_threads(1)
    try:
        module = torch.jit.load(question.file, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise Unfit(
            f"it is no TorchScript ({str(error).strip().splitlines()[0]}); torch.jit.script(network).save writes it, "
            "and a state_dict is no model"
        ) from None
    rows = _rows(question.example, None)

    def answer(rows: list[Any]) -> dict[str, Any]:
        with torch.inference_mode():
            return _predictions(list(_tensors(module(torch.tensor(rows, dtype=torch.float32)), None)))

    return Loaded(f"a network of {_counted(len(rows[0]), 'number')} a record", rows, answer, before_mb)


_BY_KIND: dict[str, Callable[[Question], Loaded]] = {
    "scikit-learn": scikit_learn,
    "SetFit": setfit,
    "XGBoost": xgboost,
    "ONNX": onnx,
    "TorchScript": torchscript,
}


def _rows(example: Any, width: int | None) -> list[Any]:
    """The user's records as rows; without any, two that are made up."""
    if example is None:
        if width is None:
            raise Unfit(f"it doesn't say how many numbers it takes: {_GIVE_ONE}")
        counted = list(range(1, width + 1))
        return [counted, counted[::-1]] if width > 1 else [[1], [2]]
    rows = example if isinstance(example, list) and example and isinstance(example[0], list) else [example]
    for row in rows:
        if not isinstance(row, list) or not row or not all(type(value) in (int, float) for value in row):
            raise Unfit(f"it takes rows of numbers, and the example is {json.dumps(example)[:80]}; {_GIVE_ONE}")
        if len(row) != (width or len(rows[0])):
            raise Unfit(f"it takes {width or len(rows[0])} numbers a record, and the example has {len(row)}")
    return rows


def _tensors(value: Any, name: str | None) -> Any:
    """The arrays in what a network answers, each with its key."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _tensors(one, str(key))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one, None)
    else:
        yield name, value.numpy()


def _predictions(outputs: list[tuple[str | None, Any]]) -> dict[str, Any]:
    """Arrays as the engines that need no handler answer them in JSON (docs/other-models.md)."""
    import numpy as np

    arrays = [(name, np.atleast_1d(array.astype(int) if array.dtype == bool else array)) for name, array in outputs]
    if len(arrays) == 1:
        return {"predictions": arrays[0][1].tolist()}
    return {"predictions": [({"key": name} if name else {}) | {"value": array.tolist()} for name, array in arrays]}


def _type(model: Any) -> str:
    steps = getattr(model, "steps", None)
    return f"Pipeline of {', '.join(type(step).__name__ for _, step in steps)}" if steps else type(model).__name__


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:8])}{', …' if len(names) > 8 else ''})" if names else ""


def _memory_mb() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss / 2**20)


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
    except Exception as error:
        return {"error": f"{file} can't be asked {json.dumps(loaded.records)[:80]}: {_cause(error)}; {_GIVE_ONE}"}
    return asdict(found)


def _cause(error: Exception) -> str:
    """Its kind and its line that says most: the last of what torch tells of a script."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1].removeprefix("RuntimeError: ") if isinstance(error, RuntimeError) else lines[0]
    return f"{type(error).__name__}: {line[:300]}"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(answered(Question(**json.loads(sys.argv[1])))), encoding="utf-8")
