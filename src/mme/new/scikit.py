"""Decides how a model of scikit-learn is loaded, and what it is asked: rows of numbers, named columns, or texts."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme.new.loaded import WRITE_IT, Loaded, Unfit, counted, listed, memory_mb, rows_of, type_of
from mme.new.probe import Question


class _Unfitted(Unfit):
    """Nothing can be asked of it, whatever it is given."""


def scikit_learn(question: Question) -> Loaded:
    """Rows of as many numbers as the model was trained on, where it takes those; else objects with its columns' names,
    or texts, for which its package gets another handler."""
    import joblib  # noqa: F401 - what takes memory anyway is imported before that is measured
    import sklearn.pipeline  # noqa: F401

    before_mb = memory_mb()
    model = _load(question)
    if not hasattr(model, "predict"):
        raise Unfit(f"it holds a {type_of(model)}, which has no predict(); save the fitted model itself, or {WRITE_IT}")
    names = [str(name) for name in getattr(model, "feature_names_in_", [])]
    width = getattr(model, "n_features_in_", None)
    takes, records = _records(model, question.example, width, names)
    counts = counted(width, takes) if width else takes + "s"
    what = f"a {_does(model)}, {type_of(model)}, of {counts}{' a record' if width else ''}{listed(names)}"
    if classes := [str(each) for each in getattr(model, "classes_", [])]:
        what += f"; it answers one of{listed(classes)}"

    def answer(records: list[Any]) -> dict[str, Any]:
        return {"predictions": _predicted(model, records, names)}

    return Loaded(what, records, answer, before_mb, tolerance=1e-9, takes=takes)


def _load(question: Question) -> Any:
    import joblib
    from sklearn.exceptions import InconsistentVersionWarning

    warnings.simplefilter("ignore")
    if not question.allows_mismatch:
        warnings.simplefilter("error", InconsistentVersionWarning)
    try:
        if Path(question.file).suffix == ".skops":
            import skops.io

            return skops.io.load(question.file, trusted=list(question.trusted))
        return joblib.load(question.file)
    except InconsistentVersionWarning as warning:
        raise Unfit(
            f"it was saved by scikit-learn {warning.original_sklearn_version}, and here as in the container is "
            f"{warning.current_sklearn_version}: train and save it with that, or accept with "
            "--allow-version-mismatch that it may predict otherwise"
        ) from None


def _records(model: Any, example: Any, width: int | None, names: list[str]) -> tuple[str, list[Any]]:
    """What the model takes, in a word, and records of it: the user's, or some that are made up."""
    given = example if isinstance(example, list) and example else [example]
    if isinstance(given[0], dict):
        return "column", given
    if names and not any(_answers(model, rows, width) for rows in (None, example)):
        records = [_made_up(model, names, place) for place in (0, -1)]
        if example is not None:
            raise Unfit(f"it takes columns by name: --example {shlex.quote(json.dumps(records[0]))}")
        return "column", records
    if isinstance(given[0], str):
        return "text", given
    if example is None and width is None:
        return "text", ["It was as good as new.", "It broke on the first day."]
    if width is None:
        _answers(model, example, width)  # which one that isn't fitted ends
        raise Unfit("it doesn't say how many numbers it takes; if it takes texts: --example '\"a text\"'")
    return "number", rows_of(example, width)


def _predicted(model: Any, records: list[Any], names: list[str]) -> Any:
    from sklearn.exceptions import NotFittedError

    try:
        return model.predict(_as_taken(model, records, names)).tolist()
    except NotFittedError:
        raise _Unfitted("it isn't fitted; fit it and save it again") from None


def _as_taken(model: Any, records: list[Any], names: list[str]) -> Any:
    """Records as the model takes them: texts, a table, where null is NaN as its handler makes it, or a matrix."""
    import numpy as np

    if isinstance(records[0], str):
        return records
    if isinstance(records[0], dict):
        import pandas as pd

        if missing := sorted(set(names) - set(records[0])):
            raise Unfit(f"it takes the columns{listed(names)}, and the example lacks {', '.join(missing)}")
        table = {}
        for name in names:
            known = _categories(model).get(name, [])
            values = pd.Series([record.get(name) for record in records], dtype=object if known else None)
            table[name] = values if None in known else values.fillna(np.nan)
        return pd.DataFrame(table)
    return np.array(records, dtype=float)


def _answers(model: Any, example: Any, width: int | None) -> bool:
    """Whether it takes rows of numbers: these, or some that are made up."""
    try:
        _predicted(model, rows_of(example, width), [])
    except _Unfitted:
        raise
    except Exception:  # of the model's own code: it takes something else
        return False
    return True


def _made_up(model: Any, names: list[str], place: int) -> dict[str, Any]:
    """A record with a value for each column: of those that are encoded one that the encoder knows, else 1."""
    record: dict[str, Any] = dict.fromkeys(names, 1)
    for column, known in _categories(model).items():
        # NaN, which stands for a value that is missing and which JSON hasn't got, is the one that isn't itself.
        if column in record and (values := [value for value in known if value == value]):
            record[column] = values[place]
    return record


def _categories(model: Any) -> dict[Any, list[Any]]:
    """What a pipeline's encoders know of each column that they encode."""
    return {
        column: known.tolist()
        for transformer, columns in _transformers(model)
        for column, known in zip(columns, getattr(transformer, "categories_", []), strict=False)
    }


def _transformers(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """What a pipeline's ColumnTransformers do with which columns."""
    for _, step in getattr(model, "steps", []):
        for _, transformer, columns in getattr(step, "transformers_", []):
            for _, each in getattr(transformer, "steps", [("", transformer)]):
                yield each, list(columns)


def _does(model: Any) -> str:
    from sklearn.base import is_classifier, is_regressor

    return "classifier" if is_classifier(model) else "regressor" if is_regressor(model) else "model"
