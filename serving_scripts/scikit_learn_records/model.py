"""What DJL Serving runs for a scikit-learn model of named columns or texts: records in, a prediction for each out.

DJL Serving executes this file several times when a worker starts, so it only imports and defines; the model is loaded
by the first call, which is empty, and stays for those that follow.
"""

import csv
import importlib
import io
import json

from djl_python import Input, Output
from rows import load  # the handler for rows of numbers, which lies beside this one

model = None


def records_of(inputs):
    """The records that a call holds: CSV with a header, a plain text, {"inputs": records}, or records alone."""
    content_type = (inputs.get_property("content-type") or "application/json").partition(";")[0].strip().lower()
    if content_type == "text/csv":
        rows = csv.DictReader(io.StringIO(inputs.get_as_string()), restval="")
        return [{column: number_in(cell) for column, cell in row.items() if column} for row in rows]
    if content_type == "text/plain":
        return [inputs.get_as_string()]
    if content_type != "application/json":
        raise ValueError(f"content type {content_type}: expected application/json, text/csv or text/plain")
    body = inputs.get_as_json()
    if isinstance(body, dict) and "inputs" in body:
        body = body["inputs"]
    return body if isinstance(body, list) else [body]


def number_in(text):
    """The number that a cell of CSV holds, None where it is empty, or else its text."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def arranged(records, columns):
    """Texts as they are, objects as a table of the model's columns; ValueError for what is neither."""
    if not records:
        raise ValueError("expected records, given none")
    wanted = str if columns is None else dict
    expected = "a text" if columns is None else f"an object with {', '.join(columns)}"
    for number, record in enumerate(records, start=1):
        if not isinstance(record, wanted):
            raise ValueError(f"expected {expected}; record {number} is {json.dumps(record)[:80]}")
        if columns is not None and (missing := [column for column in columns if column not in record]):
            raise ValueError(f"expected {expected}; record {number} lacks {', '.join(missing)}")
    # Imported where it is needed: texts do without it.
    return records if columns is None else importlib.import_module("pandas").DataFrame(records, columns=columns)


def handle(inputs: Input) -> Output | None:
    """Answer {"predictions": [...]}, in the order of the records; 400 with the reason for a call it can't read."""
    global model
    if model is None:
        model = load(inputs)
    if inputs.is_empty():
        return None
    columns = getattr(model, "feature_names_in_", None)
    try:
        predictions = model.predict(arranged(records_of(inputs), None if columns is None else list(columns)))
    except (ValueError, TypeError) as error:
        return Output().error(str(error), code=400, message="invalid input")
    return Output().add_property("content-type", "application/json").add_as_json({"predictions": predictions.tolist()})
