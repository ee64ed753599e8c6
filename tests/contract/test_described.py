"""What DJL Serving 0.36 was seen to do, or does by its source, beyond what was recorded; holds for any container."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import scenes
import transcript
from container import Answer, Container

if TYPE_CHECKING:
    from conftest import Replay

JSON = {"Content-Type": "application/json"}
NOT_ALLOWED = "Requested method is not allowed, please refer to API document."


@pytest.fixture(scope="module")
def stage(replay: Replay) -> Iterator[scenes.Stage]:
    """A stage with the handler that does whatever a request asks for loaded as `sink`."""
    staged = scenes.Stage(replay.fresh(), replay.folder("described"), [])
    sink = {"model.py": transcript.kitchen_sink(), "serving.properties": PROPERTIES}
    assert staged.container.load("sink", staged.put("sink", sink)).status == 200
    yield staged
    staged.close()


@pytest.fixture
def served(stage: scenes.Stage) -> Container:
    return stage.container


PROPERTIES = "engine=Python\nminWorkers=1\nmaxWorkers=1\nrequired_memory_mb=10\n"


def header(answer: Answer, name: str) -> str | None:
    return next((value for key, value in answer.headers if key.lower() == name), None)


def error(answer: Answer) -> tuple[int, str, str | None]:
    described = json.loads(answer.body)
    assert described["code"] == answer.status
    return answer.status, described["type"], described.get("message")


def op(served: Container, name: str, **more: Any) -> Answer:
    return served.call("POST", "/models/sink/invoke", JSON, json.dumps({"op": name, **more}).encode())


def test_a_client_gets_the_first_of_several_contents(served: Container) -> None:
    answer = op(served, "two")
    assert (answer.status, answer.body, header(answer, "content-type")) == (200, b"A", None)


def test_an_output_without_content_is_an_empty_200(served: Container) -> None:
    answer = op(served, "empty")
    assert (answer.status, answer.body, header(answer, "content-length")) == (200, b"", "0")


def test_numpys_bool_is_not_json(served: Container) -> None:
    answer = op(served, "npbool")
    assert answer.status == 424
    assert json.loads(answer.body)["error"].endswith("is not JSON serializable")


def test_code_200_always_says_ok_and_other_codes_say_what_the_handler_says(served: Container) -> None:
    assert op(served, "status", code=200, message="fine").reason == "OK"
    assert op(served, "status", code=299).reason == "my message"


STREAMS = """\
from djl_python import Output
def handle(inputs):
    if inputs.is_empty():
        return None
    asked = inputs.get_as_string()
    pieces = {"none": iter([]), "kinds": iter(["a", b"b", bytearray(b"c"), {"d": 1}])}[asked]
    output = Output().add_stream_content(pieces, output_formatter=None)
    output.add_property("Content-Type", "text/x-mine")
    return output
"""


def test_streamed_pieces_may_be_text_bytes_or_json(stage: scenes.Stage) -> None:
    stage.container.load("streams", stage.put("streams", {"model.py": STREAMS}))
    kinds, none = stage.invoke("streams", "kinds"), stage.invoke("streams", "none")
    assert (kinds.body, header(kinds, "transfer-encoding")) == (b'abc{\n  "d":1\n}', "chunked")
    assert (none.status, none.body, header(none, "content-length")) == (200, b"", "0")
    assert header(kinds, "content-type") == header(none, "content-type") == "text/x-mine"
    stage.container.unload("streams")


def test_what_a_handler_prints_does_not_disturb_its_answer(served: Container) -> None:
    assert op(served, "print").body == b"ok"


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_a_model_is_invoked_by_any_of_these_methods(served: Container, method: str) -> None:
    assert served.call(method, "/models/sink/invoke", JSON, b'{"op": "text"}').body == b"plain"


def test_the_invoke_route_takes_no_query(served: Container) -> None:
    answer = served.call("POST", "/models/sink/invoke?a=1", JSON, b'{"op": "text"}')
    assert error(answer) == (405, "MethodNotAllowedException", NOT_ALLOWED)


@pytest.mark.parametrize("headers", [{"handler": "evil"}, {"X-Amzn-SageMaker-Custom-Attributes": "a=b;handler=evil"}])
def test_a_client_does_not_choose_the_handler(served: Container, headers: dict[str, str]) -> None:
    answer = served.call("POST", "/models/sink/invoke", headers, b"x")
    assert error(answer) == (400, "BadRequestException", "The handler can't be overridden in a request")
    assert answer.reason == "The handler can't be overridden in a request"


@pytest.mark.parametrize("path", ["/invocations", "/v1/chat/completions"])
@pytest.mark.parametrize("named", ["query", "header"])
def test_the_routes_of_single_models_take_a_models_name(served: Container, path: str, named: str) -> None:
    place = f"{path}?model_name=sink" if named == "query" else path
    headers = JSON if named == "query" else JSON | {"model_name": "sink"}
    assert served.call("POST", place, headers, b'{"op": "text"}').body == b"plain"


def test_a_model_is_a_workflow_of_its_own(served: Container) -> None:
    assert served.call("GET", "/workflows/sink").body == served.call("GET", "/models/sink").body
    assert error(served.call("DELETE", "/workflows/nope"))[:2] == (404, "ModelNotFoundException")
    asked = served.call("POST", "/workflows")
    assert error(asked) == (400, "BadRequestException", "Either parameter url or template is required.")


def test_metrics_and_the_log_level_are_under_server(served: Container) -> None:
    metrics = served.call("GET", "/server/metrics")
    assert (metrics.status, (header(metrics, "content-type") or "")[:10]) == (200, "text/plain")
    assert error(served.call("POST", "/server/metrics"))[0] == 405
    assert json.loads(served.call("GET", "/server/logging?level=info").body) == {"status": "OK"}
    assert error(served.call("GET", "/server/other"))[:2] == (404, "ResourceNotFoundException")


def test_a_chunked_request_is_one_content(served: Container) -> None:
    head = "POST /models/sink/invoke HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert '"len":5' in served.raw([f"{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"])


def test_the_name_of_a_model_ends_at_a_slash(stage: scenes.Stage) -> None:
    served = stage.container
    assert served.call("POST", "/models/sink/more/invoke", JSON, b'{"op": "text"}').body == b"plain"
    answer = served.call("POST", "/models/a/b/invoke", {}, b"x")
    assert error(answer) == (404, "ModelNotFoundException", "Model or workflow not found: a")


def test_a_name_may_have_blanks(stage: scenes.Stage) -> None:
    folder = stage.put("a b", {"model.py": scenes.WHOLE, "serving.properties": PROPERTIES})
    assert stage.container.load("a b", folder).status == 200
    assert stage.container.call("POST", "/models/a%20b/invoke", {}, b"x").body == b"x"
    assert json.loads(stage.container.unload("a b").body)["status"] == 'Model or workflow "a b" unregistered'


def test_a_model_without_a_name_cannot_be_unloaded_by_it(served: Container) -> None:
    assert error(served.call("DELETE", "/models/"))[0] == 405


def test_a_url_may_be_a_file_url(stage: scenes.Stage) -> None:
    folder = stage.put("by-url", {"model.py": scenes.WHOLE})
    body = json.dumps({"model_name": "by-url", "url": f"file://{folder}"}).encode()
    assert stage.container.call("POST", "/models", JSON, body).status == 200
    assert stage.container.unload("by-url").status == 200


INIT = (
    "from djl_python import Output\ndef handle(inputs):\n    if inputs.is_empty():\n        {}\n    return Output()\n"
)
FAILED = "Failed to initialize model: invoke handler failure"
LOADS: dict[str, tuple[str, str, tuple[int, str, str | None]]] = {
    "no memory in the init call": (INIT.format("raise MemoryError('x')"), "", (507, "EngineException", "OOM")),
    "the init call answers an error": (INIT.format("return Output().error('x')"), "", (500, "EngineException", FAILED)),
    "no such function": ("x = 1\n", "", (500, "EngineException", FAILED)),
    "another function's name": (scenes.WHOLE, "option.handler=serve", (500, "EngineException", FAILED)),
    "the import ends the process": (
        "import os\nos._exit(3)\n",
        "",
        (500, "EngineException", "Python stream closed unexpectedly, exit code: 3"),
    ),
    "the import exits": (
        "import sys\nsys.exit(5)\n",
        "",
        (500, "EngineException", "Python stream closed unexpectedly, exit code: 5"),
    ),
    "the import is interrupted": (
        "raise KeyboardInterrupt\n",
        "",
        (500, "EngineException", "Python stream closed unexpectedly, exit code: 130"),
    ),
    "the import is killed": (
        "import os\nos.kill(os.getpid(), 9)\n",
        "",
        (500, "EngineException", "Python stream closed unexpectedly, exit code: 137"),
    ),
    "the init call exits": (
        INIT.format("raise SystemExit"),
        "",
        (500, "EngineException", "Python worker disconnected."),
    ),
    "no such module": (
        scenes.WHOLE,
        "option.entryPoint=nope",
        (500, "EngineException", "Python stream closed unexpectedly, exit code: 1"),
    ),
    "memory that isn't a number": (
        scenes.WHOLE,
        "required_memory_mb=abc",
        (409, "NumberFormatException", 'For input string: "abc"'),
    ),
    "no such interpreter": (
        scenes.WHOLE,
        "option.pythonExecutable=/nope/python",
        (500, "EngineException", "error=2, No such file or directory"),
    ),
    "an interpreter that may not be run": (
        scenes.WHOLE,
        "option.pythonExecutable=./model.py",
        (500, "EngineException", "error=13, Permission denied"),
    ),
    "workers that aren't a number": (
        scenes.WHOLE,
        "minWorkers=abc",
        (409, "NumberFormatException", 'For input string: "abc"'),
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_a_load_that_fails(stage: scenes.Stage, name: str) -> None:
    code, properties, expected = LOADS[name]
    model = name.replace(" ", "-").replace("'", "")
    folder = stage.put(model, {"model.py": code, "serving.properties": f"engine=Python\n{properties}\n"})
    assert error(stage.container.load(model, folder)) == expected
    assert model not in stage.container.names()


LOAD_BODIES: dict[str, tuple[str, int, str]] = {
    "nothing": ("", 500, "NullPointerException"),
    "null": ("null", 500, "NullPointerException"),
    "a list": ("[]", 500, "JsonSyntaxException"),
    "a word for a number": ('{"model_name": "m", "url": "/nope", "min_worker": "two"}', 500, "JsonSyntaxException"),
    "a fraction": ('{"model_name": "m", "url": "/nope", "batch_size": 1.5}', 500, "JsonSyntaxException"),
    "a number too large": ('{"model_name": "m", "url": "/nope", "max_worker": 1e10}', 500, "JsonSyntaxException"),
    "an object for a name": ('{"model_name": {}, "url": "/nope"}', 500, "JsonSyntaxException"),
    "numbers as texts": ('{"model_name": "m", "url": "/nope", "min_worker": "2"}', 404, "ModelNotFoundException"),
    "null for a number": ('{"model_name": "m", "url": "/nope", "min_worker": null}', 404, "ModelNotFoundException"),
    "a number for a text": ('{"model_name": 5, "url": 6}', 404, "ModelNotFoundException"),
}


@pytest.mark.parametrize("name", LOAD_BODIES)
def test_a_load_is_read_as_gson_reads_it(served: Container, name: str) -> None:
    body, status, type_ = LOAD_BODIES[name]
    assert error(served.call("POST", "/models", JSON, body.encode()))[:2] == (status, type_)


@pytest.mark.parametrize("value", ["two", "1.5", "", "%205", "99999999999", "1_0"])
def test_a_number_in_a_query_is_read_as_java_reads_it(served: Container, value: str) -> None:
    answer = served.call("POST", f"/models?model_name=m&url=/nope&min_worker={value}")
    assert error(answer)[:2] == (409, "NumberFormatException")


FILES: dict[str, tuple[tuple[str, ...], tuple[int, str]]] = {
    "a model of another engine beside model.py": (("model.py", "saved_model.pb"), (409, "IllegalArgumentException")),
    "a model of Triton": (("config.pbtxt",), (409, "IllegalArgumentException")),
    "weights under another name": (("weights.pt",), (404, "ModelNotFoundException")),
    "a transformers model without transformers' handler": (("config.json",), (500, "EngineException")),
    "code under another name": (("serve.py",), (404, "ModelNotFoundException")),
}


@pytest.mark.parametrize("name", FILES)
def test_the_engine_is_told_by_the_files(stage: scenes.Stage, name: str) -> None:
    files, expected = FILES[name]
    model = name.replace(" ", "-").replace("'", "")
    folder = stage.put(model, {each: "" for each in files})
    assert error(stage.container.load(model, folder))[:2] == expected


def test_a_time_limit_that_is_not_a_number_is_passed_over(stage: scenes.Stage) -> None:
    folder = stage.put("limit", {"model.py": scenes.WHOLE, "serving.properties": "option.predict_timeout=abc\n"})
    assert stage.container.load("limit", folder).status == 200
    stage.container.unload("limit")


def test_bounds_of_workers_are_told_as_they_were_asked(served: Container) -> None:
    answer = served.call("PUT", "/models/sink?min_worker=1")
    assert json.loads(answer.body)["status"].endswith("New Worker configuration min workers:1 max workers:-1")


def test_bounds_of_workers_must_be_numbers(served: Container) -> None:
    answer = served.call("PUT", "/models/sink?min_worker=abc")
    assert error(answer) == (400, "BadRequestException", 'For input string: "abc"')
    assert answer.reason == 'parameter is invalid number.For input string: "abc"'


def test_a_model_scaled_to_nothing_refuses_calls(stage: scenes.Stage) -> None:
    folder = stage.put("none", {"model.py": scenes.WHOLE, "serving.properties": PROPERTIES})
    stage.container.load("none", folder)
    assert stage.container.call("PUT", "/models/none?min_worker=0&max_worker=0").status == 200
    answer = stage.invoke("none", "x")
    assert error(answer) == (503, "WlmShutdownException", "All model workers has been shutdown: none")
    stage.container.unload("none")


def test_one_connection_serves_requests_that_were_sent_at_once(served: Container) -> None:
    host = "Host: 127.0.0.1\r\n\r\n"
    received = served.raw([f"GET /ping HTTP/1.1\r\n{host}OPTIONS / HTTP/1.1\r\n{host}"])
    assert received.startswith("HTTP/1.1 200 OK\r\n")
