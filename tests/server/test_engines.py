"""Models without code: which engine a folder is for, and what each answers, seen on DJL Serving and here alike."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xgboost
from onnx import TensorProto, checker, helper, numpy_helper, save_model

from mme import checking
from mme.checking import Served
from mme.server import engines
from mme.server.errors import InvalidValue, LoadFailed

WEIGHTS = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
ANSWERS = [[22.0, 28.0], [49.0, 64.0]]


def onnx_model(folder: Path, *, with_label: bool = False) -> None:
    """y = x · weights, and after it the greater one's place if that is wanted."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    if with_label:
        nodes.append(helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0))
        outputs.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(WEIGHTS, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    save_model(model, folder / "model.onnx")


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.from_numpy(WEIGHTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights


class Labelled(Linear):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = x @ self.weights
        return {"y": y, "label": y.argmax(1)}


def torch_model(folder: Path, *, with_label: bool = False) -> None:
    torch.jit.script((Labelled() if with_label else Linear()).eval()).save(str(folder / "model.pt"))


def booster(classes: int = 0) -> xgboost.Booster:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    objective = {"objective": "multi:softprob", "num_class": classes} if classes else {"objective": "binary:logistic"}
    labels = rows[:, 0] // 20 if classes else rows[:, 0] > 30
    return xgboost.train(objective | {"nthread": 1}, xgboost.DMatrix(rows, label=labels), 3)


KINDS: dict[str, Callable[..., None]] = {"onnx": onnx_model, "torchscript": torch_model}


def made(folder: Path, write: Callable[[Path], None]) -> Iterator[Served]:
    folder.mkdir()
    write(folder)
    with checking.served(folder) as answering:
        yield answering


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    yield
    checking.close()


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from made(tmp_path_factory.mktemp("one") / "model", KINDS[request.param])


@pytest.fixture(scope="module", params=KINDS)
def labelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    write = KINDS[request.param]
    yield from made(tmp_path_factory.mktemp("two") / "model", lambda folder: write(folder, with_label=True))


@pytest.mark.parametrize("body", [{"inputs": ROWS}, {"instances": ROWS}, ROWS, [["1", "2", "3"], [4, 5, 6]]])
def test_rows_come_as_json_in_four_forms(model: Served, body: Any) -> None:
    answer = model.ask(json.dumps(body), "application/json; charset=utf-8")
    assert (answer.status, answer.text) == (200, '{"predictions":[[22.0,28.0],[49.0,64.0]]}')
    assert "content-type" not in answer.headers


@pytest.mark.parametrize("text", ["1,2,3\n4,5,6", "a,b,c\n1,2,3\r\n4,5,6\r\n", '"1", 2 ,3\n4,5,6\n'])
def test_rows_come_as_csv_with_a_header_line_or_without(model: Served, text: str) -> None:
    assert model.ask(text, "text/csv", accept="application/json").json() == {"predictions": ANSWERS}
    answer = model.ask(text, "text/csv", accept="text/csv")
    assert (answer.text, answer.headers["content-type"]) == ("22.0,28.0\n49.0,64.0\n", "text/csv")


def test_what_is_no_number_in_a_csv_but_nothing_is_not_a_number(model: Served) -> None:
    answers = model.ask("1,,3", "text/csv", accept="application/json").json()
    assert all(math.isnan(value) for value in answers["predictions"][0])


REFUSED = {
    "an object without rows": ({"data": ROWS}, "Input is not a supported json format"),
    "a number": (5, "Input is not a supported json format"),
    "no rows": ([], "Index 0 out of bounds for length 0"),
    "a word": ([["a", 2, 3]], "could not convert string to float: 'a'"),
    "a null": ([[None, 2, 3]], "Expected NUMBER but was null in row 1"),
    "a truth": ([[True, 2, 3]], "Expected NUMBER but was true in row 1"),
    "three dimensions": ([ROWS], "Expected NUMBER but was [1.0, 2.0, 3.0] in row 1"),
    "rows of unequal length": ([[1, 2, 3], [1]], "Row 2 is not a list of 3 numbers, as the first one is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_matrix_of_numbers_is_refused_as_untranslatable(model: Served, name: str) -> None:
    body, message = REFUSED[name]
    answer = model.ask(json.dumps(body), "application/json")
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert answer.json() == {"code": 400, "type": "TranslateException", "message": message}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [("[[1, 2]]", "application/json"), ("1,2\n", "text/csv"), ("[[1,2,3]]", "text/plain"), ("", "tensor/ndlist")],
)
def test_the_engines_own_refusal_and_other_bytes_are_untranslatable_too(
    model: Served, body: str, content_type: str
) -> None:
    answer = model.ask(body, content_type)
    assert (answer.status, answer.json()["type"]) == (400, "TranslateException")


def test_several_outputs_have_their_names(labelled: Served) -> None:
    answer = labelled.ask(json.dumps(ROWS), "application/json").json()
    assert sorted(answer["predictions"], key=lambda one: one["key"]) == [
        {"key": "label", "value": [1, 1]},
        {"key": "y", "value": ANSWERS},
    ]
    assert labelled.ask(json.dumps(ROWS), "application/json", accept="text/csv").status == 400


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


MATRIX = np.array(ROWS, dtype=np.float32)


@pytest.mark.parametrize("content_type", ["tensor/ndlist", "application/octet-stream"])
@pytest.mark.parametrize("data", [npz(arr_0=MATRIX), npz(x=MATRIX), npy(MATRIX)], ids=["unnamed", "named", "npy"])
def test_arrays_are_told_by_their_bytes(model: Served, data: bytes, content_type: str) -> None:
    assert model.ask(data, content_type, accept="application/json").json() == {"predictions": ANSWERS}


def test_arrays_come_back_as_npz_where_that_was_sent_or_is_wanted(model: Served) -> None:
    sent = model.ask(npz(arr_0=MATRIX), "tensor/npz", accept="application/json")
    wanted = model.ask(json.dumps(ROWS), "application/json", accept="tensor/npz")
    for answer in (sent, wanted):
        assert answer.headers["content-type"] == "tensor/npz"
        with np.load(io.BytesIO(answer.body)) as arrays:
            assert [arrays[name].tolist() for name in arrays.files] == [ANSWERS]


def test_an_ndlist_is_djls_own_byte_for_byte(tmp_path: Path) -> None:
    for answering in made(tmp_path / "model", onnx_model):
        answer = answering.ask(npz(arr_0=MATRIX[:1]), "tensor/ndlist", accept="*/*")
        again = answering.ask(answer.body, "tensor/ndlist", accept="application/json")
        safe = answering.ask(npz(arr_0=MATRIX[:1]), "tensor/ndlist", accept="tensor/safetensors")
    assert answer.headers["content-type"] == "tensor/ndlist"
    assert answer.body.hex() == (
        "0000000100044e4441520000000301000179000544454e53450007464c4f4154333200000002000000000000000100000000000000020000"
        "0002003f003f3c000000080000b0410000e041"
    )
    assert (again.status, again.json()["message"]) == (400, "Invalid input tensor name: y")
    header = b'{"y":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    assert safe.body == b"8" + bytes(7) + header + np.array(ANSWERS[:1], np.float32).tobytes()


def test_safetensors_come_in(model: Served) -> None:
    header = json.dumps({"arr_0": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    data = len(header).to_bytes(8, "little") + header + MATRIX.tobytes()
    assert model.ask(data, "tensor/safetensors", accept="text/csv").headers["content-type"] == "tensor/safetensors"
    assert model.ask(data, "application/octet-stream", accept="application/json").json() == {"predictions": ANSWERS}


@pytest.mark.parametrize("suffix", ["json", "xgb", "bst"])
def test_an_xgboost_file_alone_answers_one_flat_list(tmp_path: Path, suffix: str) -> None:
    def write(folder: Path) -> None:
        booster(3).save_model(folder / ("model.json" if suffix == "json" else "model.ubj"))
        if suffix != "json":
            (folder / "model.ubj").rename(folder / f"model.{suffix}")

    expected = booster(3).predict(xgboost.DMatrix(MATRIX)).reshape(-1)
    for answering in made(tmp_path / "model", write):
        answer = answering.ask(json.dumps(ROWS), "application/json")
        flat = answering.ask("[1, 2, 3]", "application/json")
    assert answer.json()["predictions"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert (flat.status, flat.json()["message"]) == (400, "XgbNDArray shape must be in two dimension.")


def test_an_xgboost_file_in_djls_python_handler_answers_row_by_row(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        booster(3).save_model(folder / "model.ubj")
        properties = "engine=Python\noption.entryPoint=djl_python.xgboost_handler\noption.model_format=ubj\n"
        (folder / "serving.properties").write_text(properties)

    expected = booster(3).predict(xgboost.DMatrix(MATRIX))
    for answering in made(tmp_path / "model", write):
        answer = answering.ask(json.dumps({"inputs": ROWS}), "application/json", accept="application/json")
    assert np.allclose(answer.json()["predictions"], expected, atol=1e-6)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text("")
    return folder


@pytest.mark.parametrize(
    ("names", "engine"),
    [
        (("model.pt", "model.py"), "PyTorch"),
        (("model.onnx", "model.py"), "OnnxRuntime"),
        (("model.json",), "XGBoost"),
        (("model.joblib",), "Python"),
        (("model.py", "weights.pt"), "Python"),
        (("model.ubj", "model.py"), "Python"),
    ],
)
def test_the_engine_is_told_by_the_files(tmp_path: Path, names: tuple[str, ...], engine: str) -> None:
    assert engines.engine_of(files(tmp_path, *names), {}, None) == engine
    assert engines.engine_of(tmp_path, {}, "Python") == "Python"


@pytest.mark.parametrize(
    ("name", "asked", "engine"),
    [
        ("saved_model.pb", None, "TensorFlow"),
        ("config.pbtxt", None, "TritonServer"),
        ("model.plan", "TensorRT", "TensorRT"),
        ("model.lgb", "LightGBM", "LightGBM"),
    ],
)
def test_an_engine_that_is_not_here_is_refused_by_name(
    tmp_path: Path, name: str, asked: str | None, engine: str
) -> None:
    with pytest.raises(InvalidValue, match=f"Deep learning engine not found: {engine}"):
        engines.engine_of(files(tmp_path, name), {}, asked)


def test_a_translator_in_java_is_refused_by_name(tmp_path: Path) -> None:
    options = {"translatorFactory": "ai.djl.huggingface.translator.TextClassificationTranslatorFactory"}
    with pytest.raises(LoadFailed, match="option.translatorFactory=ai.djl.* names a translator in Java"):
        engines.engine_of(files(tmp_path, "model.onnx"), options, None)
