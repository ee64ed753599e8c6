"""Decides how a body is read and an answer written by content type alone: JSON, CSV, text, images, arrays."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

import numpy as np

from .inputs import Input
from .outputs import Output

# One of these names must be in the header line of a CSV that isn't a bare matrix.
_CSV_HEADERS = ("question", "context", "inputs")


def decode_csv(inputs: Input, require_headers: bool = True) -> Any:
    """`{"inputs": …}` from a CSV with a header line, or a matrix from one without.

    Raises ValueError for a missing header line, or for cells that aren't numbers in a matrix.
    """
    text = inputs.get_as_string()
    if not require_headers:
        matrix = np.genfromtxt(StringIO(text), delimiter=",")
        if np.isnan(matrix).any():
            raise ValueError("CSV contains non-numeric data. Please provide numeric data only.")
        return matrix
    first_line = text.splitlines()[0].lower()
    if not any(name in first_line for name in _CSV_HEADERS):
        raise ValueError(
            "You need to provide the correct CSV with Header columns to use it with the inference toolkit default"
            " handler."
        )
    rows = list(csv.DictReader(StringIO(text)))
    return {"inputs": [row["inputs"] for row in rows] if "inputs" in rows[0] else rows}


def encode_csv(content: Any) -> str:
    """Dicts as CSV text; the first one's keys are the header line."""
    rows = list(content)
    stream = StringIO()
    writer = csv.DictWriter(stream, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def decode(inputs: Input, content_type: str | None, key: Any = None, require_csv_headers: bool = True) -> Any:
    """The request by its content type: JSON as it is, anything else under "inputs" (a CSV matrix bare)."""
    if not content_type:
        return inputs.get_as_json(key) if inputs.get_as_bytes(key) else {"inputs": ""}
    if "application/json" in content_type:
        return inputs.get_as_json(key)
    if "text/csv" in content_type:
        return decode_csv(inputs, require_csv_headers)
    if "text/plain" in content_type:
        return {"inputs": [inputs.get_as_string(key)]}
    if content_type.startswith("image/"):
        return {"inputs": inputs.get_as_image(key)}
    if "tensor/npz" in content_type:
        return {"inputs": inputs.get_as_npz(key)}
    if content_type in ("tensor/ndlist", "application/x-npy"):
        return {"inputs": inputs.get_as_numpy(key)}
    if content_type == "application/x-www-form-urlencoded":
        return {"inputs": inputs.get_as_string(key)}
    return {"inputs": inputs.get_as_bytes(key)}


def encode(outputs: Output, prediction: Any, content_type: str | None, key: Any = None) -> None:
    """Add a prediction and its Content-Type to the answer: JSON by default, .npz, or NDList for any other type.

    Raises AttributeError for text/csv, as DJL 0.36 does (its Output has no `add_as_string`).
    """
    if not content_type or "application/json" in content_type:
        outputs.add_as_json(prediction, key)
        outputs.add_property("Content-Type", "application/json")
    elif "text/csv" in content_type:
        raise AttributeError("'Output' object has no attribute 'add_as_string'")
    elif "tensor/npz" in content_type:
        outputs.add_as_npz(prediction, key)
        outputs.add_property("Content-Type", "tensor/npz")
    else:
        outputs.add_as_numpy(prediction, key)
        outputs.add_property("Content-Type", "tensor/ndlist")
