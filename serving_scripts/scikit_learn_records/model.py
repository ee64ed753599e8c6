"""What DJL Serving runs for a scikit-learn model of named columns or texts: records in, a prediction for each out.

DJL Serving executes this file several times when a worker starts, so it only imports and defines; the model is loaded
by the first call, which is empty, and stays for those that follow.
"""

import csv
import importlib
import io
import json

import numpy as np
import sklearn
from djl_python import Input, Output
from rows import load  # the handler for rows of numbers, which lies beside this one
from sklearn.base import BaseEstimator

model = None
known = {}


def categories_of(part, columns=()):
    """Each column that the model encodes, with its categories by their texts; of one it reads as text, the empty one.

    An encoder within a pipeline may have been given an array: its columns are the pipeline's.
    """
    if isinstance(part, list | tuple):
        for each in part:
            yield from categories_of(each, columns)
    if not isinstance(part, BaseEstimator):
        return
    columns = getattr(part, "feature_names_in_", columns)
    for column, categories in zip(columns, getattr(part, "categories_", ()), strict=False):
        yield column, {str(category): category for category in categories.tolist()}
    # A ColumnTransformer gives a column that is named alone, in no list, to what reads texts.
    for _, _, column in getattr(part, "transformers_", ()):
        if isinstance(column, str):
            yield column, {"": ""}
    yield from categories_of(list(vars(part).values()), columns)


def records_of(inputs):
    """The records that a call holds: CSV with a header, a plain text, {"inputs": records}, or records alone."""
    content_type = (inputs.get_property("content-type") or "application/json").partition(";")[0].strip().lower()
    if content_type == "text/csv":
        return list(records_in(inputs.get_as_string().removeprefix("\ufeff")))
    if content_type == "text/plain":
        return [inputs.get_as_string()]
    if content_type != "application/json":
        raise ValueError(f"content type {content_type}: expected application/json, text/csv or text/plain")
    body = inputs.get_as_json()
    if isinstance(body, dict) and "inputs" in body:
        body = body["inputs"]
    return body if isinstance(body, list) else [body]


def records_in(text):
    """The records of CSV with a header; ValueError for a line that is longer or shorter than that."""
    lines = filter(None, csv.reader(io.StringIO(text, newline="")))
    header = next(lines, [])
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            expected = f"expected {len(header)} values in a line, as the header has"
            raise ValueError(f"{expected}; record {number} has {len(line)}, {json.dumps(line)[:80]}")
        yield {column: value_in(cell, known.get(column, {})) for column, cell in zip(header, line, strict=True)}


def value_in(cell, categories):
    """What a cell of CSV holds: one of the column's categories, None where it is empty, or else a number or text."""
    if cell in categories:
        return categories[cell]
    if not cell.strip():
        return None
    if are_texts(categories):
        return cell
    try:
        return float(cell)
    except ValueError:
        return cell


def are_texts(categories):
    """Whether a column holds texts, even such as look like numbers."""
    return any(isinstance(category, str) for category in categories.values())


def arranged(records, columns):
    """Texts as they are, objects as a table of the model's columns; ValueError for what is neither.

    null becomes NaN, which encoders and imputers know as missing, but where the model was trained on None itself.
    """
    if not records:
        raise ValueError("expected records, given none")
    wanted = str if columns is None else dict
    expected = "a text" if columns is None else f"an object with {', '.join(columns)}"
    for number, record in enumerate(records, start=1):
        if not isinstance(record, wanted):
            raise ValueError(f"expected {expected}; record {number} is {json.dumps(record)[:80]}")
        if columns is not None and (missing := [column for column in columns if column not in record]):
            raise ValueError(f"expected {expected}; record {number} lacks {', '.join(missing)}")
    if columns is None:
        return records
    pandas = importlib.import_module("pandas")  # where it is needed: texts do without it
    table = {}
    for column in columns:
        categories = known.get(column, {})
        absent = None if None in categories.values() else np.nan
        values = [absent if record[column] is None else record[column] for record in records]
        # Where all are missing pandas would make numbers of them, and an encoder of texts doesn't take those.
        table[column] = pandas.Series(values, dtype=object if are_texts(categories) else None)
    return pandas.DataFrame(table)


def handle(inputs: Input) -> Output | None:
    """Answer {"predictions": [...]}, in the order of the records; 400 with the reason for a call it can't read."""
    global model, known
    if model is None:
        model = load(inputs)
        known = dict(categories_of(model))
        sklearn.set_config(assume_finite=False)  # which rows are looked through for; here the model has to
    if inputs.is_empty():
        return None
    columns = getattr(model, "feature_names_in_", None)
    try:
        predictions = model.predict(arranged(records_of(inputs), None if columns is None else list(columns)))
    except (ValueError, TypeError, OverflowError, RecursionError, csv.Error) as error:
        return Output().error(str(error), code=400, message="invalid input")
    return Output().add_property("content-type", "application/json").add_as_json({"predictions": predictions.tolist()})
