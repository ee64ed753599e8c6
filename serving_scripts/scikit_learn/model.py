"""What DJL Serving runs for a scikit-learn model: rows of numbers in, a prediction for each row out.

DJL Serving executes this file several times when a worker starts, so it only imports and defines; the model is loaded
by the first call, which is empty, and stays for those that follow.
"""

import csv
import importlib
import io
import json
import warnings
from pathlib import Path

import joblib
import numpy as np
import sklearn
from djl_python import Input, Output
from sklearn.exceptions import InconsistentVersionWarning

model = None


def load(inputs):
    """The package's model, from model.skops or model.joblib.

    A file that another scikit-learn saved is an error, since it might predict otherwise; with
    option.allow_version_mismatch=true it is a warning in the log. Of a skops file only scikit-learn's own types are
    made and those that option.skops_trusted_types names; a joblib file is a pickle, which may run anything.
    """
    is_allowed = (inputs.get_property("allow_version_mismatch") or "").lower() == "true"
    warnings.filterwarnings("always" if is_allowed else "error", category=InconsistentVersionWarning)
    # Trained on named columns: the rows that come here are in the same order and have no names.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    sklearn.set_config(assume_finite=True)  # matrix_of looks for NaN and infinity: once is enough
    saved = Path(inputs.get_property("model_dir")) / "model.skops"
    if not saved.exists():
        return joblib.load(saved.with_suffix(".joblib"))
    # Not imported for joblib's files: skops imports all of scikit-learn, and with that torch where it is installed.
    skops_io = importlib.import_module("skops.io")
    trusted = (inputs.get_property("skops_trusted_types") or "").split(",")
    return skops_io.load(saved, trusted=[name.strip() for name in trusted if name.strip()])


def rows_of(inputs):
    """The rows that a call holds, as lists: CSV lines, {"inputs": rows}, or rows alone. One flat row is one record."""
    content_type = (inputs.get_property("content-type") or "application/json").partition(";")[0].strip().lower()
    if content_type == "text/csv":
        lines = csv.reader(io.StringIO(inputs.get_as_string()))
        return [[float(value) for value in line] for line in lines if line]
    if content_type != "application/json":
        raise ValueError(f"content type {content_type}: expected application/json or text/csv")
    body = inputs.get_as_json()
    if isinstance(body, dict):
        if "inputs" not in body:
            raise ValueError(f'expected {{"inputs": [...]}}, given an object with the keys {sorted(body)}')
        body = body["inputs"]
    if not isinstance(body, list):
        raise ValueError(f"expected a list of rows, given {json.dumps(body)[:80]}")
    return [body] if body and not any(isinstance(row, list) for row in body) else body


def matrix_of(rows, width):
    """The rows as an array of shape (records, width); ValueError naming the expected and the given shape."""
    expected = f"expected shape (records, {width}), one row of {width} numbers per record"
    if not rows:
        raise ValueError(f"{expected}; given no records")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list):
            raise ValueError(f"{expected}; record {number} is {json.dumps(row)[:80]}, not a list")
        if len(row) != width:
            raise ValueError(f"{expected}; given ({len(rows)}, {len(row)}) by record {number}, {json.dumps(row)[:80]}")
        for value in row:
            if type(value) not in (int, float):
                raise ValueError(f"{expected}; record {number} holds {json.dumps(value)[:80]}, not a number")
    matrix = np.array(rows, dtype=float)
    if not np.isfinite(matrix).all():
        raise ValueError(f"{expected}; given NaN or infinity")
    return matrix


def handle(inputs: Input) -> Output | None:
    """Answer {"predictions": [...]}, in the order of the records; 400 with the reason for a call it can't read."""
    global model
    if model is None:
        model = load(inputs)
    if inputs.is_empty():
        return None
    try:
        matrix = matrix_of(rows_of(inputs), model.n_features_in_)
    except (ValueError, OverflowError) as error:
        return Output().error(str(error), code=400, message="invalid input")
    output = Output().add_property("content-type", "application/json")
    return output.add_as_json({"predictions": model.predict(matrix).tolist()})
