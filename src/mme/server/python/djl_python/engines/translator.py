"""Decides how numbers come in and answers go out for a model without code: as DJL's NoopServingTranslator does it.

In: JSON (`[[…]]`, or that under `inputs` or `instances`) and CSV become one array of float32; npz, npy, NDList and
safetensors are told by their first bytes, whatever the content type, and may hold several named arrays. Out: what
Accept says, else what came in. Whatever fails between the two is the request's fault: 400, a TranslateException.
Source: NoopServingTranslatorFactory and CsvTranslator of DJL 0.36, and a running DJL Serving. One thing is different:
rows of unequal length are refused, where DJL fills short ones up with zeros.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..inputs import Input
from ..outputs import Output
from .tensors import Tensors, decoded, ndlist, npz, safetensors

Predict = Callable[[Tensors], Tensors]
Handle = Callable[[Input], Output | None]


class TranslateException(Exception):
    """A request that can't be read, or whose answer can't be written as it asks."""


def served(load: Callable[[Path, Mapping[str, Any]], Predict]) -> Handle:
    """A handler that loads its model in the init call: `load` gets the model's folder and its properties."""
    predict: Predict | None = None

    def handle(inputs: Input) -> Output | None:
        nonlocal predict
        if predict is None:
            predict = load(Path(inputs.get_property("model_dir")), inputs.get_properties())
        if inputs.is_empty():
            return None
        try:
            return written(predict(read(inputs)), inputs)
        except Exception as error:  # of the engine as well: its messages are what the caller has to know
            logging.warning("refused: %s", error)
            return refusal(str(error))

    return handle


def model_file(folder: Path, properties: Mapping[str, Any], *suffixes: str) -> Path:
    """The model's file, named by option.modelName, the folder or "model". Raises FileNotFoundError."""
    for stem in (properties.get("modelName", folder.name), "model"):
        for suffix in suffixes:
            if (file := folder / f"{stem}{suffix}").is_file():
                return file
    raise FileNotFoundError(f"{' or '.join(suffixes)} file not found in: {folder}")


def read(inputs: Input) -> Tensors:
    """The arrays of a request; those of JSON and CSV have no name."""
    content_type = _media_type(inputs.get_property("Content-Type"))
    if content_type == "application/json":
        return [(None, _json_rows(json.loads(inputs.get_as_string())))]
    if content_type == "text/csv":
        return [(None, _csv_rows(inputs.get_as_string()))]
    return decoded(bytes(inputs.get_as_bytes()))


def written(tensors: Tensors, inputs: Input) -> Output:
    """The answer in the form that Accept names, else in that of the request; JSON goes without a content type."""
    sent = _media_type(inputs.get_property("Content-Type"))
    wanted = (inputs.get_property("Accept") or "").lower()
    if "tensor/npz" in (wanted, sent):
        return Output().add(npz(tensors)).add_property("Content-Type", "tensor/npz")
    if "tensor/safetensors" in (wanted, sent):
        return Output().add(safetensors(tensors)).add_property("Content-Type", "tensor/safetensors")
    if wanted == "text/csv":
        return Output().add(_csv_text(tensors)).add_property("Content-Type", "text/csv")
    if "application/json" in (wanted, sent):
        predictions: list[Any]
        if len(tensors) == 1:
            predictions = _plain(tensors[0][1])
        else:
            predictions = [{"key": name, "value": _plain(array)} for name, array in tensors]
            predictions = [{key: value for key, value in one.items() if value is not None} for one in predictions]
        return Output().add(json.dumps({"predictions": predictions}, separators=(",", ":")))
    return Output().add(ndlist(tensors)).add_property("Content-Type", "tensor/ndlist")


def refusal(message: str) -> Output:
    """DJL's answer to a request that can't be translated."""
    said = {"code": 400, "type": "TranslateException", "message": message}
    output = Output(400, "Bad Request").add_property("content-type", "application/json")
    return output.add(json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def _media_type(value: str | None) -> str:
    return (value or "").partition(";")[0].lower()


def _json_rows(body: Any) -> Any:
    if isinstance(body, dict):
        body = body.get("inputs", body.get("instances"))
    if not isinstance(body, list):
        raise TranslateException("Input is not a supported json format")
    if not body:
        raise TranslateException("Index 0 out of bounds for length 0")
    rows = body if isinstance(body[0], list) else [body]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            raise TranslateException(f"Row {number} is not a list of {len(rows[0])} numbers, as the first one is")
        for value in row:
            if type(value) not in (int, float, str):
                raise TranslateException(f"Expected NUMBER but was {json.dumps(value)[:40]} in row {number}")
    with np.errstate(over="ignore"):
        matrix = np.array([[float(value) for value in row] for row in rows]).astype(np.float32)
    return matrix if rows is body else matrix[0]


def _csv_rows(text: str) -> Any:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows:
        raise TranslateException("CSV data is empty")
    first = 0 if any(_is_numeric(cell.strip()) for cell in rows[0]) else 1  # a row without any number is a header
    width = len(rows[first])
    for number, row in enumerate(rows[first:], start=first + 1):
        if len(row) != width:
            raise TranslateException(f"Row {number} has {len(row)} columns, expected {width}")
    numbers = [[float(cell) if cell.strip() else np.nan for cell in row] for row in rows[first:]]
    return np.array(numbers).astype(np.float32)


def _is_numeric(cell: str) -> bool:
    return bool(cell) and set(cell) <= set("0123456789-.eE+")


def _csv_text(tensors: Tensors) -> str:
    if len(tensors) != 1:
        raise TranslateException(f"Expected 1 output for CSV and was {len(tensors)}")
    array = tensors[0][1]
    if array.ndim not in (1, 2):
        raise TranslateException(f"Only 1D or 2D arrays supported, found shape: {array.shape}")
    rows = _plain(array.astype(np.float32).reshape(1, -1) if array.ndim == 1 else array.astype(np.float32))
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def _plain(array: Any) -> list[Any]:
    """Lists of numbers; a float32 as the shortest number that means it, 0.1 and not 0.10000000149011612."""
    if array.dtype in (np.float32, np.float16):
        array = array.astype(str).astype(np.float64)
    elif array.dtype == np.bool_:
        array = array.astype(np.int64)
    listed: list[Any] = np.atleast_1d(array).tolist()
    return listed
