"""A worker process, driven through its socket: how DJL's handlers are loaded, called, and answered for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mme.server
from mme.server.worker import box, frames

DEADLINE_S = 120.0
MAIN = Path(mme.server.__file__).parent / "worker" / "__main__.py"
KITCHEN_SINK = """
import json, os, sys, time
from djl_python import Input, Output
import numpy as np
INIT = {}
print("imported")
def handle(inputs: Input):
    if inputs.is_empty():
        INIT.update(inputs.get_properties())
        return None
    b = inputs.get_as_bytes()
    try: q = json.loads(bytes(b))
    except ValueError: q = {"op": "echo"}
    op = q["op"]
    if op == "echo":
        return Output().add_as_json({"props": {k: str(v) for k, v in inputs.get_properties().items()},
            "keys": inputs.get_content().get_keys(), "len": len(b), "data_type": type(inputs.get_data()).__name__})
    if op == "init": return Output().add_as_json({k: str(v) for k, v in INIT.items()})
    if op == "place":
        return Output().add_as_json({"cwd": os.getcwd(), "path": sys.path[:3], "name": __name__,
            "open": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc") else 5, "X": os.environ.get("X_TEST")})
    if op == "status":
        o = Output(code=q["code"], message=q.get("message", "my message"))
        o.add_property("Content-Type", "application/x-mine"); o.add_property("X-Foo", "bar"); o.add("hello")
        return o
    if op == "raise": raise ValueError("boom \\u00e9")
    if op == "raise_empty": raise KeyError("k")
    if op == "error": return Output().error("oops")
    if op == "error400": return Output().error("bad input", code=400, message="my msg")
    if op == "none": return None
    if op == "dict": return {"a": 1}
    if op == "empty": return Output()
    if op == "memory": raise MemoryError("cannot allocate")
    if op == "sysexit": sys.exit(3)
    if op == "osexit": os._exit(4)
    if op == "big": return Output().add("x" * q["n"])
    if op == "nan": return Output().add_as_json({"v": float("nan")})
    if op == "np": return Output().add_as_json({"i": np.int64(3), "a": np.arange(4).reshape(2, 2)})
    if op == "npbool": return Output().add_as_json({"b": np.bool_(True)})
    if op == "dictadd": return Output().add({"a": [1, 2], "u": "\\u00e9"})
    if op == "ndlist": return Output().add_as_numpy([np.ones(2, dtype="float32")])
    if op == "two": return Output().add("A", key="a").add("B", key="b")
    if op == "stream": return Output().add_stream_content(iter(["a", "b"]))
    if op == "stream2": return Output().add_stream_content(iter(["a", b"b", {"c": 1}]), output_formatter=None)
    if op == "stream_raises": return Output().add_stream_content((1 // n for n in [1, 0]), output_formatter=None)
    if op == "finalize": return Output().add("x").finalize(print, "finalized", q["word"])
    if op == "code": return Output(code=q["code"]).add("x")
    if op == "other": import wave; return Output().add("x")
    if op == "print": print("from print"); sys.stderr.write("from stderr\\n"); return Output().add("ok")
"""


class Worker:
    """A plain worker process with the front's end of its socket."""

    def __init__(self, folder: Path, **request: object) -> None:
        self.socket, theirs = socket.socketpair()
        self.pipe: tuple[int, ...] = os.pipe()
        self.request = {
            "model_dir": str(folder),
            "entry_point": "model.py",
            "handler": "handle",
            "fallback_entry_point": "",
            "is_async": False,
            "env": {},
            "tmp_dir": str(folder),
            "box": box.Rules().request(str(folder)),
        } | request
        self.process = subprocess.Popen(
            [sys.executable, MAIN, "worker", str(theirs.fileno()), str(self.pipe[0]), json.dumps(self.request)],
            pass_fds=[theirs.fileno(), self.pipe[0]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        theirs.close()
        self.socket.settimeout(DEADLINE_S)
        self.decoder = frames.Decoder()
        self.received: list[tuple[dict, bytes]] = []

    def send(self, *bodies: bytes, op: str = "invoke", call_id: int = 1, properties: dict | None = None) -> None:
        inputs = [{"properties": dict(properties or {}), "content": [["data", len(body)]]} for body in bodies]
        if op == "init":
            inputs = [{"properties": properties or {}, "content": []}]
        frames.send(self.socket, frames.encode({"id": call_id, "op": op, "inputs": inputs}, *bodies))

    def receive(self) -> tuple[dict, bytes]:
        while not self.received:
            data = self.socket.recv(1 << 16)
            assert data, "the worker closed its socket"
            self.received += self.decoder.feed(data)
        return self.received.pop(0)

    def init(self, **properties: str) -> dict:
        self.send(op="init", call_id=0, properties=properties)
        header, _ = self.receive()
        return self.receive()[0] if header == {"id": 0, "imported": True} else header

    def ask(self, op: str, **more: object) -> tuple[int, str, bytes]:
        self.send(json.dumps({"op": op, **more}).encode(), properties={"Content-Type": "application/json"})
        header, body = self.receive()
        return header["code"], header["message"], body

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    def close(self) -> tuple[int, str, str]:
        """Close the front's end, and wait for the worker's; may be called again."""
        self.socket.close()
        ends, self.pipe = self.pipe, ()
        for fd in ends:
            os.close(fd)
        return self.ended() if self.process.returncode is None else (self.process.returncode, "", "")


@pytest.fixture
def start(tmp_path):
    workers = []

    def start(code: str = KITCHEN_SINK, **request: object) -> Worker:
        (tmp_path / "model.py").write_text(textwrap.dedent(code))
        workers.append(Worker(tmp_path, **request))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.py").write_text(KITCHEN_SINK)
    worker = Worker(folder)
    assert worker.init(foo="bar")["code"] == 204
    yield worker
    worker.close()


def failure(error: str, code: int = 424, message: str = "invoke handler failure") -> tuple[int, str, bytes]:
    body = f'{{\n  "code":{code},\n  "message":"{message}",\n  "error":{json.dumps(error, ensure_ascii=False)}\n}}'
    return code, message, body.encode()


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("raise", failure("boom é")),
        ("raise_empty", failure("'k'")),
        ("error", failure("oops")),
        ("error400", failure("bad input", 400, "my msg")),
        ("dict", failure("Invalid output type: <class 'dict'>")),
        ("nan", failure("Out of range float values are not JSON compliant: nan")),
        ("memory", (507, "cannot allocate", b"")),
        ("none", (204, "No content", b"")),
        ("empty", (200, "OK", b"")),
        ("two", (200, "OK", b"A")),
        (
            "np",
            (
                200,
                "OK",
                b'{\n  "i":3,\n  "a":[\n    [\n      0,\n      1\n    ],\n    [\n      2,\n      3\n    ]\n  ]\n}',
            ),
        ),
        ("dictadd", (200, "OK", '{\n  "a":[\n    1,\n    2\n  ],\n  "u":"é"\n}'.encode())),
    ],
)
def test_a_handlers_answer_is_what_djl_makes_of_it(ready, op, expected):
    assert ready.ask(op) == expected


def test_an_ndlist_is_refused_under_numpy_2_as_djl_036_refuses_it(ready):
    code, _, body = ready.ask("ndlist")
    assert code == 424
    assert "newbyteorder" in json.loads(body)["error"]


def test_numpys_bool_is_refused_as_json(ready):
    code, _, body = ready.ask("npbool")
    assert code == 424
    assert json.loads(body)["error"] == "Object of type bool is not JSON serializable"


@pytest.mark.parametrize("code", [200, 201, 404, 500])
def test_code_message_and_properties_are_the_handlers(ready, code):
    ready.send(json.dumps({"op": "status", "code": code}).encode())
    header, body = ready.receive()
    assert (header["code"], header["message"], body) == (code, "my message", b"hello")
    assert header["properties"] == [["Content-Type", "application/x-mine"], ["X-Foo", "bar"]]


def test_a_handler_sees_the_requests_properties_and_its_place(ready):
    ready.send(b"1,2", properties={"content-TYPE": "text/csv", "requestId": "r"})
    seen = json.loads(ready.receive()[1])
    assert seen == {
        "props": {
            "content-TYPE": "text/csv",
            "requestId": "r",
            "handler": "handle",
            "cluster_size": "1",
            "device_id": "-1",
            "model_dir": ready.request["model_dir"],
        },
        "keys": ["data"],
        "len": 3,
        "data_type": "str",
    }


@pytest.mark.parametrize(
    ("content_type", "data_type"),
    [
        (None, "bytearray"),
        ("application/octet-stream", "bytearray"),
        ("text/plain", "str"),
        ("application/json", "dict"),
    ],
)
def test_data_has_the_type_that_its_content_type_says(ready, content_type, data_type):
    properties = {"Content-Type": content_type} if content_type else {}
    ready.send(b'{"op": "echo"}', properties=properties)
    assert json.loads(ready.receive()[1])["data_type"] == data_type


def test_a_request_without_a_body_is_not_the_init_call(ready):
    ready.send(b"")
    header, body = ready.receive()
    assert (header["code"], json.loads(body)["len"]) == (200, 0)


def test_the_init_call_has_the_models_properties(ready):
    assert json.loads(ready.ask("init")[2]) == {
        "foo": "bar",
        "handler": "handle",
        "cluster_size": "1",
        "device_id": "-1",
        "model_dir": ready.request["model_dir"],
    }


def test_a_worker_is_in_its_models_folder_with_djl_python_first_on_its_path(ready):
    seen = json.loads(ready.ask("place")[2])
    assert seen["cwd"] == ready.request["model_dir"]
    assert seen["path"][:2] == [str(MAIN.parents[1] / "python"), ready.request["model_dir"]]
    assert seen["name"].startswith("model_")
    assert seen["open"] == 6  # three streams, the socket, the lifeline, and the listing itself


def test_a_big_answer_arrives_whole(ready):
    assert ready.ask("big", n=30 << 20)[2] == b"x" * (30 << 20)


@pytest.mark.parametrize(
    ("op", "pieces"),
    [("stream", [b'{"outputs": "a"}\n', b'{"outputs": "b"}\n']), ("stream2", [b"a", b"b", b'{\n  "c":1\n}'])],
)
def test_a_stream_comes_in_pieces_of_which_the_first_has_the_head(ready, op, pieces):
    ready.send(json.dumps({"op": op}).encode())
    answers = [ready.receive() for _ in range(len(pieces) + 1)]
    assert [body for _, body in answers[:-1]] == pieces
    assert answers[0][0]["code"] == 200 and answers[0][0]["more"] is True
    assert all("code" not in header for header, _ in answers[1:])
    assert answers[-1] == ({"id": 1, "index": 0, "more": False}, b"")


def test_a_stream_that_fails_says_so_in_its_last_frame(ready):
    ready.send(b'{"op": "stream_raises"}')
    assert ready.receive()[1] == b"1"
    assert ready.receive()[0] == {
        "id": 1,
        "index": 0,
        "more": False,
        "error": "integer division or modulo by zero",
    }


def test_an_import_of_a_call_is_reported_once_with_its_answer(ready):
    ready.send(b'{"op": "other"}')
    assert "wave" in ready.receive()[0]["modules"]
    ready.send(b'{"op": "other"}')
    assert "modules" not in ready.receive()[0]


def test_calls_that_wait_on_the_socket_are_answered_in_order(ready):
    for call_id in (5, 6, 7):
        ready.send(b'{"op": "none"}', call_id=call_id)
    assert [ready.receive()[0]["id"] for _ in range(3)] == [5, 6, 7]


def test_what_a_handler_prints_and_a_failures_traceback_are_on_its_streams(start):
    worker = start()
    worker.init()
    worker.ask("print")
    worker.ask("raise")
    worker.ask("finalize", word="x")
    code, out, err = worker.close()
    assert code == 0
    assert out.startswith("imported\nfrom print\nERROR::Failed invoke service.invoke_handler()\nTraceback (most recent")
    assert out.endswith("ValueError: boom é\nfinalized x\n")
    assert out.count("imported") == 1
    assert err == "from stderr\n"


@pytest.mark.parametrize(("op", "code"), [("sysexit", 3), ("osexit", 4)])
def test_a_handler_that_exits_ends_its_worker_with_that_code(start, op, code):
    worker = start()
    worker.init()
    worker.send(json.dumps({"op": op}).encode())
    assert worker.ended()[0] == code


@pytest.mark.parametrize("code", ["200", 1.5, None, 70000])
def test_a_code_that_is_no_short_integer_ends_the_worker_as_in_djl(start, code):
    worker = start()
    worker.init()
    worker.send(json.dumps({"op": "code", "code": code}).encode())
    ended, _, err = worker.ended()
    assert ended == 1 and "struct.error" in err


@pytest.mark.parametrize(
    ("code", "kind", "error"),
    [
        ("def handle(inputs:\n  return\n", "import", "was never closed"),
        ("import not_there_xyz", "import", "No module named 'not_there_xyz'"),
        ("raise MemoryError('no mem')", "import", "no mem"),
        ("def handle(inputs): raise ValueError('bad model')", "handler", "bad model"),
        ("def handle(inputs): raise MemoryError('too big')", "memory", "too big"),
        ("def handle(inputs): return {}", "handler", "Invalid output type: <class 'dict'>"),
        ("def other(inputs): return None", "handler", "has no attribute 'handle'"),
        (
            "from djl_python import Output\ndef handle(inputs): return Output().error('no')",
            "handler",
            "no",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(start, code, kind, error):
    worker = start(code)
    cause = worker.init()["failure"]
    assert cause["kind"] == kind
    assert error in cause["error"]
    if kind == "import":
        assert "Traceback" in cause["traceback"]
        assert worker.ended()[0] == 1


@pytest.mark.parametrize(("code", "exit_code"), [("import os; os._exit(7)", 7), ("import sys; sys.exit(5)", 5)])
def test_a_model_that_exits_while_it_loads_ends_its_worker(start, code, exit_code):
    worker = start(code)
    worker.send(op="init", call_id=0)
    assert worker.ended()[0] == exit_code


def test_an_entry_point_that_is_not_there_is_named(start):
    assert "entry-point file not found" in start(entry_point="nope.py").init()["failure"]["error"]


def test_an_entry_point_may_lie_in_a_folder_or_be_a_modules_name(start, tmp_path):
    (tmp_path / "code").mkdir()
    for path in (tmp_path / "code" / "serve.py", tmp_path / "served.py"):
        path.write_text("from djl_python import Output\ndef answer(inputs): return Output().add('yes')")
    for entry_point in ("code/serve.py", "served"):
        worker = start(entry_point=entry_point, handler="answer")
        assert worker.init()["code"] == 200
        assert worker.ask("any")[2] == b"yes"


def test_the_fallback_serves_where_the_entry_point_has_no_such_function(start, tmp_path):
    (tmp_path / "spare.py").write_text(
        "from djl_python import Output\ndef handle(inputs): return Output().add('spare')"
    )
    worker = start("X = 1", fallback_entry_point="spare.py")
    worker.init()
    assert worker.ask("any")[2] == b"spare"


def test_marked_formatters_are_properties_of_every_call(start):
    worker = start("""
        from djl_python import Output
        from djl_python.input_parser import input_formatter
        from djl_python.output_formatter import output_formatter
        @input_formatter
        def read(inputs): return inputs.get_as_json()
        @output_formatter
        def write(value): return {"is": value}
        def handle(inputs):
            if inputs.is_empty(): return None
            properties = inputs.get_properties()
            return Output().add_as_json(properties["output_formatter"](properties["input_formatter"](inputs)))
        """)
    worker.init()
    worker.send(b'"x"')
    assert json.loads(worker.receive()[1]) == {"is": "x"}


BATCHES = """
import json
from djl_python import Input, Output
def handle(inputs: Input):
    if inputs.is_empty(): return None
    o = Output()
    for i, one in enumerate(inputs.get_batches()):
        q = one.get_as_string()
        if q == "raise": raise ValueError("boom in batch")
        if q == "short": return Output().add("only one", batch_index=0)
        if q == "none": return None
        if q == "bare": return Output().add("a").add("b").add("c")
        o.add(json.dumps({"i": i, "n": inputs.get_batch_size(), "is_batch": inputs.is_batch(), "body": q,
            "merged": sorted(inputs.get_properties()), "keys": inputs.get_content().get_keys(),
            "props": sorted(one.get_properties())}), key="out", batch_index=i)
        if q == "prop": o.add_property("X-All", "all")
    return o
"""


def test_a_batch_is_one_input_and_each_of_its_requests_gets_its_own_answer(start):
    worker = start(BATCHES)
    worker.init()
    worker.send(b"a", b"prop", properties={"Host": "h"})
    (first, one), (second, two) = worker.receive(), worker.receive()
    assert (first["index"], second["index"]) == (0, 1)
    assert first["properties"] == second["properties"] == [["X-All", "all"]]
    assert json.loads(two) == {
        "i": 1,
        "n": 2,
        "is_batch": True,
        "body": "prop",
        "merged": [
            "batch_000.Host",
            "batch_001.Host",
            "batch_size",
            "cluster_size",
            "device_id",
            "handler",
            "model_dir",
        ],
        "keys": ["batch_000.data", "batch_001.data"],
        "props": ["Host"],
    }
    assert json.loads(one)["body"] == "a"


def test_a_lone_request_is_no_batch(start):
    worker = start(BATCHES)
    worker.init()
    worker.send(b"one")
    assert json.loads(worker.receive()[1])["is_batch"] is False


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"short", "Batch output size mismatch, expected: 3, actual: 1"),
        (b"none", "Batch output size mismatch, expected: 3, actual: 0"),
        (b"bare", "Unexpected batch output key: None"),
    ],
)
def test_a_batch_whose_answers_do_not_match_fails_for_all_in_it(start, body, problem):
    worker = start(BATCHES)
    worker.init()
    worker.send(b"a", body, b"c")
    answers = [worker.receive()[0] for _ in range(3)]
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert {answer["failure"]["error"] for answer in answers} == {problem}
    assert {answer["failure"]["kind"] for answer in answers} == {"batch"}


def test_a_batch_whose_handler_raises_fails_for_all_in_it(start):
    worker = start(BATCHES)
    worker.init()
    worker.send(b"a", b"raise", b"c")
    for index in range(3):
        header, body = worker.receive()
        assert (header["index"], header["code"], header["message"], body) == (index, *failure("boom in batch"))


ASYNC = """
import asyncio
from djl_python import Output
GATE = None
async def pieces():
    for text in "ab":
        yield Output().add(text).add_property("X-Piece", text)
async def handle(inputs):
    global GATE
    if inputs.is_empty():
        GATE = asyncio.Event()
        return None
    q = inputs.get_as_string()
    if q == "wait": await GATE.wait()
    if q == "open": GATE.set()
    if q == "raise": raise ValueError("async boom")
    if q == "crash": raise SystemExit(6)
    if q == "pieces": return pieces()
    return Output().add(q)
"""


def test_an_async_handler_has_several_calls_in_flight(start):
    worker = start(ASYNC, is_async=True)
    assert worker.init()["code"] == 204
    worker.send(b"wait", call_id=1)
    worker.send(b"open", call_id=2)
    answers = {header["id"]: body for header, body in (worker.receive(), worker.receive())}
    assert answers == {1: b"wait", 2: b"open"}


def test_an_async_handlers_failure_is_its_calls_alone(start):
    worker = start(ASYNC, is_async=True)
    worker.init()
    worker.send(b"wait", call_id=1)
    worker.send(b"raise", call_id=2)
    header, body = worker.receive()
    assert header["id"] == 2
    message = "service.invoke_handler_async() failure"
    assert (header["code"], header["message"], body) == failure("async boom", 424, message)
    assert worker.close()[0] == 0  # the call that waits doesn't hold it


def test_an_async_handlers_generator_is_a_stream(start):
    worker = start(ASYNC, is_async=True)
    worker.init()
    worker.send(b"pieces")
    (first, a), (second, b), (last, _) = (worker.receive() for _ in range(3))
    assert (a, b) == (b"a", b"b")
    assert first["code"] == 200 and first["properties"] == [["X-Piece", "a"]] and first["more"] is True
    assert "code" not in second and last == {"id": 1, "index": 0, "more": False}


def test_an_async_handler_that_exits_ends_its_worker(start):
    worker = start(ASYNC, is_async=True)
    worker.init()
    worker.send(b"crash")
    assert worker.ended()[0] == 6


def test_hostile_bytes_end_the_worker_and_nothing_else(start):
    worker = start()
    worker.init()
    worker.socket.sendall(b"\xff" * 64)
    code, _, err = worker.ended()
    assert code == 1 and "FrameError" in err


def test_a_call_handed_ahead_is_made_unless_its_token_has_been_taken_back(start):
    worker = start()
    worker.init()
    ours, theirs = socket.socketpair()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs.fileno().to_bytes(4, sys.byteorder))
    with ours, theirs:
        worker.socket.sendmsg(frames.encode({"op": "tokens"}), [rights])
        ours.send(bytes([5, 7]))  # that of 6 is gone
        for token in (5, 6, 7):
            header = {"id": token, "op": "invoke", "token": token, "inputs": [{"properties": {}, "content": []}]}
            frames.send(worker.socket, frames.encode(header))
        answers = [worker.receive()[0] for _ in range(3)]
    assert answers[0] == {"taken": True}  # said before the answer to 5: the call after it has begun
    assert [answer["id"] for answer in answers[1:]] == [5, 7]
