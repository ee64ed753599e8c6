"""The API of handlers: what each call answers, and the errors for its misuse, as DJL Serving 0.36 has them."""

from __future__ import annotations

import datetime
import importlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mme.server

API = str(Path(mme.server.__file__).parent / "python")


@pytest.fixture
def djl(monkeypatch):
    monkeypatch.syspath_prepend(API)
    yield importlib.import_module("djl_python")
    for name in [name for name in sys.modules if name.partition(".")[0] == "djl_python"]:
        del sys.modules[name]


def an_input(djl, content: dict[str, bytes], **properties: str):
    inputs = djl.Input()
    inputs.properties.update({name.replace("_", "-"): value for name, value in properties.items()})
    for key, data in content.items():
        inputs.content.add(key, bytearray(data))
    return inputs


def test_it_needs_nothing_of_ours_on_the_path():
    code = "import djl_python, sys; print([m for m in sys.modules if m.startswith('mme')], djl_python.__version__)"
    found = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": API}, capture_output=True, text=True)
    assert found.stdout == "[] 0.36.0\n", found.stderr


def test_the_init_call_is_the_one_without_content(djl):
    assert djl.Input().is_empty()
    assert djl.Input().get_data() is None and djl.Input().get_as_bytes() is None
    assert not an_input(djl, {"data": b""}).is_empty()


def test_properties_are_found_in_any_case(djl):
    inputs = an_input(djl, {"data": b""}, Content_Type="text/csv")
    assert inputs.get_property("content-type") == inputs.get_property("CONTENT-TYPE") == "text/csv"
    assert inputs.get_property("accept") is None
    assert inputs.get_properties() == {"Content-Type": "text/csv"}


def test_data_is_the_content_of_that_key_else_the_first(djl):
    assert an_input(djl, {"a": b"1", "data": b"2"}).get_as_string() == "2"
    two = an_input(djl, {"a": b"1", "b": b"2"})
    assert (two.get_as_bytes(), two.get_as_string("b")) == (bytearray(b"1"), "2")
    assert two.contains_key("a") and not two.contains_key("c")
    with pytest.raises(KeyError, match="requested data for key:c is not found!"):
        two.get_as_bytes("c")


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json; charset=utf-8", {"a": "é"}),
        ("text/plain", '{"a": "é"}'),
        ("application/octet-stream", bytearray('{"a": "é"}'.encode())),
        (None, bytearray('{"a": "é"}'.encode())),
    ],
)
def test_get_data_reads_as_the_content_type_says(djl, content_type, expected):
    properties = {"content_type": content_type} if content_type else {}
    assert an_input(djl, {"data": '{"a": "é"}'.encode()}, **properties).get_data() == expected


def test_csv_rows_are_dicts_by_the_header_line(djl):
    assert an_input(djl, {"data": b"a,b\n1,2\n3,4\n"}).get_as_csv() == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_malformed_json_is_the_json_modules_error(djl):
    with pytest.raises(json.JSONDecodeError, match="Expecting value"):
        an_input(djl, {"data": b""}).get_as_json()


def test_npz_arrays_come_back(djl):
    arrays = [np.arange(3), np.ones((2, 2), dtype="float32")]
    sent = djl.Output().add_as_npz(arrays).content.value_at(0)
    inputs = an_input(djl, {"data": sent}, content_type="tensor/npz")
    for read in (inputs.get_data(), inputs.get_as_numpy()):
        assert all(np.array_equal(a, b) for a, b in zip(read, arrays, strict=True))


def test_an_ndlist_is_refused_under_numpy_2(djl):
    def text(value: str) -> bytes:
        return struct.pack(">h", len(value)) + value.encode()

    head = struct.pack(">i", 1) + text("NDAR") + struct.pack(">iB", 3, 0) + text("default") + text("FLOAT32")
    shape = struct.pack(">iqi", 1, 2, 1) + struct.pack(">h", ord("?")) + b"<"
    encoded = head + shape + struct.pack(">i", 8) + struct.pack("<2f", 1, 2)
    for call in (
        an_input(djl, {"data": encoded}, content_type="tensor/ndlist").get_data,
        lambda: djl.Output().add_as_numpy([np.ones(2)]),
    ):
        with pytest.raises(AttributeError, match="newbyteorder"):
            call()
    with pytest.raises(AssertionError, match="magic number is not NDAR, actual NDAX"):
        an_input(djl, {"data": encoded.replace(b"NDAR", b"NDAX")}).get_as_numpy()


def test_a_merged_batch_gives_each_request_its_own(djl):
    inputs = an_input(djl, {"batch_000.data": b"a", "batch_011.x": b"b"})
    inputs.properties.update({"batch_size": "12", "batch_000.Host": "h", "handler": "handle"})
    assert inputs.is_batch() and inputs.get_batch_size() == 12
    batches = inputs.get_batches()
    assert [batch.get_as_string() for batch in (batches[0], batches[11])] == ["a", "b"]
    assert batches[0].get_properties() == {"Host": "h"} and batches[1].is_empty()
    alone = an_input(djl, {"data": b"a"})
    assert alone.get_batches() == [alone] and alone.get_batch_size() == 1


def test_an_output_is_built_by_chained_calls(djl):
    output = djl.Output().set_code(201).set_message("made").add_property("X", 1).add("a").add(b"b", key="k")
    assert (output.code, output.message, output.get_properties()) == (201, "made", {"X": 1})
    assert output.get_property("X") == 1 and output.get_property("x") is None
    assert output.content.get_values() == [b"a", bytearray(b"b")]
    assert output.content.get_keys() == [None, "k"]
    assert json.loads(str(output))["content"] == {"null": "type: <class 'bytes'>", "k": "type: <class 'bytearray'>"}


def test_keys_of_a_batchs_answers_name_the_request(djl):
    output = djl.Output().add("a", batch_index=0).add("b", key=7, batch_index=11)
    assert output.content.get_keys() == ["batch_0.", "batch_11.7"]


def test_json_is_indented_without_a_space_after_the_colon_and_keeps_its_letters(djl):
    made = datetime.datetime(2026, 1, 2, 3, 4, 5)
    value = {"a": [np.int64(1), np.float32(0.5)], "b": np.arange(2), "c": "é", "d": made}
    expected = (
        '{\n  "a":[\n    1,\n    0.5\n  ],\n  "b":[\n    0,\n    1\n  ],\n  "c":"é",\n  "d":"2026-01-02 03:04:05"\n}'
    )
    assert djl.Output().add_as_json(value).content.value_at(0).decode() == expected
    assert djl.Output().add(value).content.value_at(0).decode() == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), (float("inf"), ValueError), (np.bool_(True), TypeError), ({1}, TypeError)],
)
def test_what_json_cannot_hold_is_refused(djl, value, error):
    with pytest.raises(error):
        djl.Output().add_as_json([value])


def test_an_error_is_a_json_answer(djl):
    output = djl.Output().error("why", code=400, message="bad")
    assert (output.code, output.message) == (400, "bad")
    assert output.get_properties() == {"content-type": "application/json"}
    assert output.content.value_at(0).decode() == '{\n  "code":400,\n  "message":"bad",\n  "error":"why"\n}'


def test_a_finalizer_is_called_with_its_arguments(djl):
    called = []
    djl.Output().finalize(lambda *words: called.append(words), "a", "b").execute_finalize()
    djl.Output().execute_finalize()
    assert called == [("a", "b")]


def test_binary_pairs_are_length_prefixed(djl):
    assert djl.Output.binary_encode({"a": 1}) == b"\0\1" + b"\0\0\0\1a" + b"\0\0\0\1" + b"1"


def test_output_has_no_add_as_string_as_in_djl(djl):
    assert not hasattr(djl.Output(), "add_as_string")


def test_pairs_keep_their_order_and_may_repeat(djl):
    pairs = djl.PairList()
    pairs.add("a", 1)
    pairs.add("a", 2)
    pairs.add("x", None)
    pairs.add(pair=("b", 3))
    pairs.add("first", 0, index=0)
    pairs.add_all({"c": 4})
    assert pairs.get_keys() == ["first", "a", "a", "b", "c"] and pairs.get_values() == [0, 1, 2, 3, 4]
    assert (pairs.get("a"), pairs.get("z"), pairs.size(), pairs.key_at(3), pairs.value_at(3)) == (1, None, 5, "b", 3)
    assert djl.PairList(["k"], ["v"]).get("k") == "v" and djl.PairList().is_empty()
    with pytest.raises(ValueError, match="key value size mismatch."):
        djl.PairList(["k"], ["v", "w"])


@pytest.mark.parametrize(
    ("data", "content_type", "expected"),
    [
        (b'{"inputs": 1}', "application/json", {"inputs": 1}),
        (b'{"inputs": 1}', None, {"inputs": 1}),
        (b"", None, {"inputs": ""}),
        (b"inputs\na\nb\n", "text/csv", {"inputs": ["a", "b"]}),
        (b"question,context\nq,c\n", "text/csv", {"inputs": [{"question": "q", "context": "c"}]}),
        (b"hello", "text/plain", {"inputs": ["hello"]}),
        (b"a=1", "application/x-www-form-urlencoded", {"inputs": "a=1"}),
        (b"\x00", "audio/wav", {"inputs": bytearray(b"\x00")}),
    ],
)
def test_decode_reads_by_content_type(djl, data, content_type, expected):
    decode = importlib.import_module("djl_python.encode_decode").decode
    assert decode(an_input(djl, {"data": data}), content_type) == expected


def test_a_csv_matrix_must_be_numbers_and_other_csv_have_headers(djl):
    decode = importlib.import_module("djl_python.encode_decode").decode
    read = decode(an_input(djl, {"data": b"1,2\n3,4\n"}), "text/csv", require_csv_headers=False)
    assert read.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="non-numeric"):
        decode(an_input(djl, {"data": b"1,x\n"}), "text/csv", require_csv_headers=False)
    with pytest.raises(ValueError, match="Header"):
        decode(an_input(djl, {"data": b"1,2\n"}), "text/csv")


def test_encode_writes_by_accepted_type(djl):
    module = importlib.import_module("djl_python.encode_decode")
    output = djl.Output()
    module.encode(output, [1], "application/json")
    assert output.get_properties() == {"Content-Type": "application/json"}
    output = djl.Output()
    module.encode(output, [np.ones(2)], "tensor/npz")
    assert output.get_properties() == {"Content-Type": "tensor/npz"}
    with pytest.raises(AttributeError, match="add_as_string"):
        module.encode(djl.Output(), [{"a": 1}], "text/csv")
    assert module.encode_csv([{"a": 1}, {"a": 2}]) == "a\r\n1\r\n2\r\n"


def test_marked_functions_are_found_in_a_models_file_that_is_executed_once(djl, tmp_path):
    loader = importlib.import_module("djl_python.service_loader")
    (tmp_path / "model.py").write_text(
        "from djl_python.input_parser import init_handler, input_formatter, prediction_handler\n"
        "from djl_python.output_formatter import output_formatter\n"
        "input_formatter(read := lambda x: x)\ninit_handler(load := lambda x: x)\n"
        "prediction_handler(predict := lambda x, m: x)\noutput_formatter(write := lambda x: x)\n"
    )
    module = loader.load_model_service(str(tmp_path), "model.py", "-1").module
    for mark, name in (("input_formatter", "read"), ("output_formatter", "write"), ("init_handler", "load")):
        assert loader.get_annotated_function(str(tmp_path), f"is_{mark}") is getattr(module, name)
    assert loader.has_function_in_module(module, "predict") and not loader.has_function_in_module(module, "handle")
    assert loader.get_annotated_function(str(tmp_path / "nowhere"), "is_init_handler") is None
    del sys.modules[module.__name__]
