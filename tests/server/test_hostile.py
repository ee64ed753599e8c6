"""No bytes of a client or of a worker make the server hang, leak or answer with a failure that isn't DJL Serving's."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from container import Container, until
from hypothesis import given, settings
from hypothesis import strategies as st

# Each property takes about five seconds.
# Answers to a client's mistakes, DJL's 500s for what Java stumbles over, and nothing else.
STATUSES = {100, 200, 202, 204, 400, 404, 405, 408, 409, 413, 417, 424, 500, 503, 507}
JAVA_500 = {"NullPointerException", "JsonSyntaxException", "EngineException", "FileNotFoundException"}
ANSWER_S = 60.0

ECHO = """\
from djl_python import Output
def handle(inputs):
    if inputs.is_empty():
        return None
    return Output().add_as_json({"keys": [str(key) for key in inputs.get_content().get_keys()]})
"""
# Writes what it is sent onto the very socket that connects its worker with the front.
SABOTEUR = """\
import os, socket, stat
from djl_python import Output
def handle(inputs):
    if inputs.is_empty():
        return None
    scribble = bytes(inputs.get_as_bytes())
    for fd in map(int, os.listdir("/proc/self/fd") if scribble else ()):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, scribble)
        except OSError:
            pass  # the directory's own descriptor, closed by now
    return Output().add("survived")
"""
PROPERTIES = "engine=Python\nminWorkers=1\nmaxWorkers=1\nrequired_memory_mb=10\n"
# The saboteur's answer may never come; the others' may take as long as the machine is busy.
SHORT = PROPERTIES + "option.predict_timeout=1\n"


@pytest.fixture(scope="module")
def target(served: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The server with an echo and a saboteur loaded; afterwards both still answer, and nothing has piled up.

    A third model is there for requests that happen to unload it.
    """
    for name, code in {"echo": ECHO, "saboteur": SABOTEUR, "prey": ECHO}.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "model.py").write_text(code)
        (folder / "serving.properties").write_text(SHORT if code is SABOTEUR else PROPERTIES)
        assert served.load(name, folder).status == 200
    invoke(served, "echo", b"x")
    until(served.is_rested, "a process waited for the next model")
    before = held(served)
    yield served
    assert invoke(served, "echo", b"x") == 200
    until(lambda: invoke(served, "saboteur", b"") == 200, "the saboteur had a worker")
    assert served.call("GET", "/ping").status == 200
    until(lambda: held(served)[0] <= before[0], "the server had closed its connections")
    until(lambda: held(served)[1] <= before[1], "no worker was left over")


def held(served: Container) -> tuple[int, int]:
    """Descriptors and processes, but for the nursery's own: it may warm a branch or have a worker wait at any time."""
    server = served.process()
    nursery = json.loads(served.call("GET", "/_mme/models").body)["nursery"]
    count = len(nursery["building"])
    count += sum(1 if branch["standby"] is None else 2 for branch in nursery["branches"])
    # Each is one process; its socket and two pipes are held for it.
    return server.num_fds() - 3 * count, len(server.children(recursive=True)) - count


def invoke(served: Container, model: str, body: bytes) -> int:
    return served.call("POST", f"/models/{model}/invoke", {}, body).status


def exchange(served: Container, pieces: list[bytes]) -> bytes:
    """Send bytes, say that no more will come, and take all that comes back; a hang is a TimeoutError."""
    received = b""
    with socket.create_connection(served.address, timeout=ANSWER_S) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                received += more
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
    return received


def check(received: bytes) -> None:
    """What came back is nothing, or answers that the contract knows."""
    assert not received or received.startswith(b"HTTP/1.1 "), received[:200]
    for line in re.finditer(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n", received):
        assert int(line[1]) in STATUSES, line[0]
    for failure in re.finditer(rb'"code": 500,\s+"type": "(\w+)"', received):
        assert failure[1].decode() in JAVA_500, received


token = st.text("abcdefXYZ-_%0129", min_size=1, max_size=12)
methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW", "get"])
paths = st.one_of(
    st.sampled_from(
        [
            "/",
            "/ping",
            "/ping/",
            "/models",
            "/models?limit=1&next_page_token=0",
            "/models?limit=%FF",
            "*",
            "//",
            "/_mme/models",
            "/models/prey",
            "/models/echo/invoke",
            "/models/echo/invoke?x=1",
            "/models/%2e%2e/invoke",
            "/predictions/echo",
            "/invocations",
            "/invocations?model_name=echo",
            "/workflows",
            "/metrics",
            "http://x/ping",
        ]
    ),
    st.text(min_size=1, max_size=30).map(lambda text: "/" + text.replace(" ", "").replace("\r", "").replace("\n", "")),
    st.integers(4000, 5000).map(lambda count: "/" + "a" * count),
)
headers = st.one_of(
    st.sampled_from(
        [
            "Content-Length: 5",
            "Content-Length: -1",
            "Content-Length: 99999999999999999999",
            "Content-Length: 5, 5",
            "Content-Length: 70000000",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: gzip",
            "Expect: 100-continue",
            "Expect: pancakes",
            "Connection: close",
            "Connection: upgrade\r\nUpgrade: websocket",
            "Host: a\r\nHost: b",
            ": x",
            "Content-Type: application/json",
            "Content-Type: multipart/form-data; boundary=BB",
            "Content-Type: multipart/form-data",
            "Content-Type: application/x-www-form-urlencoded",
            "Content-Type: text/plain; charset=nonsense",
            "X-Amzn-SageMaker-Custom-Attributes: =;==;a=;=b;;handler=evil",
            "X-Amzn-SageMaker-Target-Model: ../..",
            "handler: evil",
            "batch_size: 3",
            "Accept: \xff\xfe",
        ]
    ),
    st.tuples(token, st.text(max_size=40)).map(
        lambda pair: f"{pair[0]}: {pair[1]}".replace("\r", "").replace("\n", "")
    ),
    st.integers(7000, 9000).map(lambda count: "X-Long: " + "h" * count),
)
bodies = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"5;a=b\r\nhel",
            b"zz\r\n",
            b"a=1&b=%zz&&=",
            b'{"model_name":',
            b'--BB\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--BB--\r\n',
            b"--BB\r\n\r\n--BB",
            b"--BB--",
            b"GET /ping HTTP/1.1\r\n\r\n",
        ]
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/9.9", "XTTP/1.1", ""]))
    lines = [f"{draw(methods)} {draw(paths)} {version}", *draw(st.lists(headers, max_size=4))]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + draw(bodies)


@settings(max_examples=400)
@given(pieces=st.lists(st.one_of(requests(), requests(), bodies), min_size=1, max_size=4))
def test_no_bytes_on_a_connection_hang_it_or_bring_a_strange_failure(target: Container, pieces: list[bytes]) -> None:
    check(exchange(target, pieces))


@settings(max_examples=50)
@given(cut=st.integers(1, 200), piece=st.integers(1, 9))
def test_a_request_may_come_in_any_pieces_and_may_stop_anywhere(target: Container, cut: int, piece: int) -> None:
    whole = b"POST /models/echo/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
    sent = whole[:cut]
    received = exchange(target, [sent[at : at + piece] for at in range(0, len(sent), piece)])
    assert received.startswith(b"HTTP/1.1 200 OK\r\n") if sent == whole else b" 200 " not in received


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)
FIELDS = (
    "model_name",
    "url",
    "model_version",
    "device",
    "engine",
    "batch_size",
    "job_queue_size",
    "max_idle_time",
    "max_batch_delay",
    "min_worker",
    "max_worker",
    "synchronous",
)
load_requests = st.one_of(
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=5),
    values,
    st.fixed_dictionaries(
        {"model_name": st.text(max_size=8), "url": st.sampled_from(["..", "", "a", "\0", "x" * 5000])}
    ),
    st.fixed_dictionaries({"model_name": st.sampled_from(["echo", "m"]), "url": values, "min_worker": values}),
)


@settings(max_examples=200)
@given(asked=load_requests)
def test_no_request_to_load_brings_a_strange_failure(target: Container, asked: Any) -> None:
    body = json.dumps(asked).encode()
    answer = target.call("POST", "/models", {"Content-Type": "application/json"}, body)
    assert answer.status in STATUSES, (asked, answer)
    if answer.status >= 400:
        described = json.loads(answer.body)
        assert described["code"] == answer.status
        assert answer.status != 500 or described["type"] in JAVA_500, (asked, described)


@settings(max_examples=100)
@given(query=st.dictionaries(st.sampled_from(["min_worker", "max_worker", "limit"]), st.text(max_size=6), max_size=3))
def test_no_request_to_scale_brings_a_strange_failure(target: Container, query: dict[str, str]) -> None:
    plausible = {key: value for key, value in query.items() if not value.strip().isdigit()}
    words = "&".join(f"{key}={''.join(f'%{byte:02x}' for byte in value.encode())}" for key, value in plausible.items())
    assert target.call("PUT", f"/models/echo?{words}").status in {200, 400, 409}


def frame(header: Any, body: bytes = b"", total: int = 0, head: int = 0) -> bytes:
    """A frame of the worker's protocol, whose lengths may lie by the given amounts."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!II", max(0, 4 + len(text) + len(body) + total), max(0, len(text) + head)) + text + body


answer_keys = st.sampled_from(
    [
        "id",
        "code",
        "message",
        "properties",
        "index",
        "content_length",
        "more",
        "failure",
        "modules",
        "imported",
        "taken",
        "token",
    ]
)
scribbles = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.builds(frame, st.dictionaries(answer_keys, values, max_size=6), st.binary(max_size=20)),
    st.builds(
        frame, st.fixed_dictionaries({"id": st.integers(0, 400), "code": values, "properties": values, "index": values})
    ),
    st.builds(frame, st.binary(max_size=20), st.binary(max_size=20), st.integers(-9, 9), st.integers(-9, 9)),
    st.builds(frame, st.just({}), total=st.just(1 << 30)),
)


@settings(max_examples=100)
@given(scribble=scribbles)
def test_a_worker_that_sends_anything_costs_its_own_call_at_most(target: Container, scribble: bytes) -> None:
    status = invoke(target, "saboteur", scribble)
    assert 100 <= status < 600
    assert invoke(target, "echo", b"x") == 200
    until(lambda: invoke(target, "saboteur", b"") == 200, "the worker had been replaced")
