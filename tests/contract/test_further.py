"""Where the embedded server differs from DJL Serving on purpose, though no recorded case shows it."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import container
import differences
import pytest
from container import Container

from mme import packages

COUNTING = """\
import os
from djl_python import Output
with open("executed", "a") as file:
    file.write(f"{os.getpid()}\\n")
KEPT = []
def handle(inputs):
    if inputs.is_empty():
        KEPT.append("by the init call")
        return None
    return Output().add_as_json({"executed": open("executed").read().split(), "kept": KEPT, "pid": os.getpid()})
"""


@pytest.fixture(scope="module")
def ours() -> Iterator[Container]:
    with container.embedded() as running:
        yield running


@pytest.mark.parametrize(
    "request_line_and_header", ["GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close", "GET /ping HTTP/1.0"]
)
def test_a_client_that_asks_for_the_connection_to_close_gets_it_closed(
    ours: Container, request_line_and_header: str
) -> None:
    assert ours.raw([f"{request_line_and_header}\r\n\r\n"]).endswith("{}\n<closed>")


def test_each_of_several_requests_sent_at_once_has_its_own_request_id(ours: Container) -> None:
    with socket.create_connection(ours.address, timeout=container.DEADLINE_S) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 3)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while more := connection.recv(65536):
            received += more
    assert len(set(re.findall(rb"x-request-id: (\S+)", received))) == received.count(b"HTTP/1.1 200 OK") == 3


def test_model_py_is_executed_once_in_a_worker(ours: Container, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(COUNTING)
    (tmp_path / "serving.properties").write_text("engine=Python\nminWorkers=1\nmaxWorkers=1\n")
    assert ours.load("counting", tmp_path).status == 200
    body = ours.call("POST", "/models/counting/invoke", {}, b"x").body.decode()
    pid = re.search(r'"pid":(\d+)', body)
    assert pid and body.count(f'"{pid[1]}"') == 1
    assert "by the init call" in body


STREAMING = """\
from djl_python import Output
def handle(inputs):
    if inputs.is_empty():
        return None
    return Output().add_stream_content((1 // n for n in [1, 0]), output_formatter=str)
"""


def test_a_stream_that_fails_is_cut_off(ours: Container, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(STREAMING)
    assert ours.load("streaming", tmp_path).status == 200
    with pytest.raises(http.client.IncompleteRead) as cut:
        ours.call("POST", "/models/streaming/invoke", {}, b"x")
    assert cut.value.partial == b"1"


def test_a_package_that_is_not_what_its_manifest_says_is_not_loaded(ours: Container, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def handle(inputs): ...\n")
    files = {"model.py": hashlib.sha256(b"def handle(inputs): return None\n").hexdigest()}
    (tmp_path / "manifest.json").write_bytes(packages.Manifest("3.11", {}, files).to_json())
    answer = ours.load("changed", tmp_path)
    assert answer.status == 500 and b"model.py is not what manifest.json says" in answer.body


def test_libraries_for_another_system_are_named_when_they_are_loaded(ours: Container, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def handle(inputs): ...\n")
    info = tmp_path / "lib" / "tiny-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp39-cp39-macosx_11_0_arm64\n")
    answer = ours.load("foreign", tmp_path)
    assert answer.status == 500 and b"lib/ holds tiny 1.0 for cp39-cp39-macosx_11_0_arm64" in answer.body


def test_each_further_difference_names_a_test_that_shows_it() -> None:
    assert [each.test for each in differences.further() if not callable(globals().get(each.test))] == []


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Host": "localhost:8080", "Origin": "http://127.0.0.1:8888"}, 200),
        ({"Host": "models"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_page_in_a_browser_cannot_drive_the_server(ours: Container, headers: dict[str, str], status: int) -> None:
    assert ours.call("GET", "/ping", headers).status == status
    registered = ours.call("POST", "/models?url=/none&model_name=none", headers)
    assert registered.status == (404 if status == 200 else 403)
