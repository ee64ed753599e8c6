"""The built-in handler for scikit-learn files: what it loads, on whose word, and what a model.py beside it changes."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LinearRegression

import mme.server

TRUSTED = {"model_format": "joblib", "trust_insecure_model_files": "true"}


@pytest.fixture
def djl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The API as a worker sees it, with a handler that has loaded nothing."""
    monkeypatch.syspath_prepend(str(Path(mme.server.__file__).parent / "python"))
    handler = importlib.reload(importlib.import_module("djl_python.sklearn_handler"))
    yield handler
    for name in [name for name in sys.modules if name.startswith(("djl_python", "model_"))]:
        del sys.modules[name]


@pytest.fixture
def model() -> LinearRegression:
    return LinearRegression().fit(np.array([[1, 2], [3, 4]]), np.array([1, 3]))


def request(djl: Any, body: str | None, accept: str | None = "application/json", **properties: str) -> Any:
    inputs = djl.Input()
    inputs.properties.update(properties)
    if accept:
        inputs.properties["Accept"] = accept
    if body is not None:
        inputs.content.add("data", bytearray(body.encode()))
    return inputs


def load(djl: Any, folder: Path, **options: str) -> None:
    assert djl.handle(request(djl, None, model_dir=str(folder), **options)) is None


def ask(djl: Any, body: str, content_type: str = "application/json", accept: str = "application/json") -> Any:
    return djl.handle(request(djl, body, accept, **{"Content-Type": content_type}))


def text(output: Any) -> str:
    return bytes(output.content.value_at(0)).decode()


def test_a_skops_file_is_loaded_with_the_types_that_are_trusted(tmp_path: Path, djl: Any, model: Any) -> None:
    skops.io.dump(model, tmp_path / "model.skops")
    with pytest.raises(ValueError, match="option.skops_trusted_types must be set"):
        load(djl, tmp_path)
    load(djl, tmp_path, skops_trusted_types="numpy.ndarray, sklearn.linear_model._base.LinearRegression")
    assert json.loads(text(ask(djl, "[[1, 2], [3, 4]]")))["predictions"] == pytest.approx([1, 3])


@pytest.mark.parametrize(
    ("name", "model_format", "dump"),
    [
        ("model.joblib", "joblib", joblib.dump),
        ("model.pkl", "pickle", lambda model, file: Path(file).write_bytes(pickle.dumps(model))),
        ("any.cloudpkl", "cloudpickle", lambda model, file: Path(file).write_bytes(pickle.dumps(model))),
    ],
)
def test_a_file_that_can_run_code_needs_the_users_word(
    tmp_path: Path, djl: Any, model: Any, name: str, model_format: str, dump: Callable[[Any, str], Any]
) -> None:
    dump(model, str(tmp_path / name))
    with pytest.raises(ValueError, match=f"must be set to 'true' to use {model_format} format"):
        load(djl, tmp_path, model_format=model_format)
    load(djl, tmp_path, model_format=model_format, trust_insecure_model_files="TRUE")
    assert json.loads(text(ask(djl, "[1, 2]")))["predictions"] == pytest.approx([1])


def test_a_folder_must_hold_exactly_one_file_of_the_format(tmp_path: Path, djl: Any, model: Any) -> None:
    with pytest.raises(FileNotFoundError, match="No model file found with format 'joblib'"):
        load(djl, tmp_path, **TRUSTED)
    for name in ("a.joblib", "b.jl"):
        joblib.dump(model, tmp_path / name)
    with pytest.raises(ValueError, match="Multiple model files found"):
        load(djl, tmp_path, **TRUSTED)
    with pytest.raises(ValueError, match="Unsupported model format: onnx"):
        load(djl, tmp_path, model_format="onnx")


def test_csv_comes_in_and_goes_out(tmp_path: Path, djl: Any, model: Any) -> None:
    joblib.dump(model, tmp_path / "model.joblib")
    load(djl, tmp_path, **TRUSTED)
    output = ask(djl, "1,2\n3,4\n", "text/csv", "text/csv")
    assert [float(line) for line in text(output).split("\n")] == pytest.approx([1, 3])
    assert output.get_property("Content-Type") == "text/csv"
    with pytest.raises(ValueError, match="CSV contains non-numeric data"):
        ask(djl, "a,b\n", "text/csv", "text/csv")


def test_any_accept_means_the_default_one(tmp_path: Path, djl: Any, model: Any) -> None:
    joblib.dump(model, tmp_path / "model.joblib")
    load(djl, tmp_path, **TRUSTED, default_accept="text/csv")
    assert ask(djl, "[1, 2]", accept="*/*").get_property("Content-Type") == "text/csv"
    with pytest.raises(ValueError, match="Unsupported Accept type: image/png"):
        ask(djl, "[1, 2]", accept="image/png")


DECORATED = """
import numpy as np
from djl_python.input_parser import init_handler, input_formatter, prediction_handler
from djl_python.output_formatter import output_formatter
STATE = []

@init_handler
def begin(model_dir):
    STATE.append("begun")
    return 10

@input_formatter
def read(inputs, content_type=None):
    return np.array(inputs.get_as_json()["rows"])

@prediction_handler
def predict(data, model):
    return data * model

@output_formatter
def write(prediction):
    return {"doubled": (prediction * 2).tolist(), "state": STATE}
"""
SAGEMAKER = """
import json
import numpy as np
STATE = []

def model_fn(model_dir):
    STATE.append("begun")
    return 10

def input_fn(request_body, request_content_type):
    assert request_content_type == "application/x-rows"
    return np.array(json.loads(request_body))

def predict_fn(input_data, model):
    return input_data * model

def output_fn(prediction, accept):
    return json.dumps({"sum": int(prediction.sum()), "state": STATE})
"""


def test_decorated_functions_take_the_place_of_each_step(tmp_path: Path, djl: Any) -> None:
    (tmp_path / "model.py").write_text(DECORATED)
    load(djl, tmp_path)
    assert json.loads(text(ask(djl, '{"rows": [[1, 2]]}'))) == {"doubled": [[20, 40]], "state": ["begun"]}


def test_functions_named_as_sagemakers_scripts_name_them_do_too(tmp_path: Path, djl: Any) -> None:
    (tmp_path / "model.py").write_text(SAGEMAKER)
    load(djl, tmp_path)
    output = ask(djl, "[[1, 2]]", "application/x-rows", "application/x-mine")
    assert json.loads(text(output)) == {"sum": 30, "state": ["begun"]}
    assert output.get_property("Content-Type") == "application/x-mine"


def test_a_sagemaker_function_with_other_parameter_names_is_passed_over_and_said_so(
    tmp_path: Path, djl: Any, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    joblib.dump(model, tmp_path / "model.joblib")
    (tmp_path / "model.py").write_text("def predict_fn(input_object, model): raise RuntimeError")
    load(djl, tmp_path, **TRUSTED)
    assert json.loads(text(ask(djl, "[1, 2]")))["predictions"] == pytest.approx([1])
    assert "predict_fn(input_object, model) is passed over" in caplog.text
    assert "name it predict_fn(input_data, model)" in caplog.text


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("def input_fn(request_body, content_type): 1 / 0", "Custom input formatter execution failed"),
        ("def predict_fn(input_data, model): 1 / 0", "Custom prediction handler execution failed"),
        ("def output_fn(prediction, accept): 1 / 0", "Custom output formatter execution failed"),
    ],
)
def test_a_function_that_fails_is_named(tmp_path: Path, djl: Any, model: Any, function: str, message: str) -> None:
    joblib.dump(model, tmp_path / "model.joblib")
    (tmp_path / "model.py").write_text(function)
    load(djl, tmp_path, **TRUSTED)
    with pytest.raises(
        importlib.import_module("djl_python.custom_formatter_handling").CustomFormatterError, match=message
    ) as failure:
        ask(djl, "[1, 2]")
    assert isinstance(failure.value.__cause__, ZeroDivisionError)


def test_a_model_py_that_cannot_be_executed_fails_the_load(tmp_path: Path, djl: Any) -> None:
    (tmp_path / "model.py").write_text("import not_there_xyz")
    with pytest.raises(
        importlib.import_module("djl_python.custom_formatter_handling").CustomFormatterError,
        match="Failed to load custom code from",
    ):
        load(djl, tmp_path)
