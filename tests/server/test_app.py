from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from container import until

from mme import tether

HANDLER = """\
import os, subprocess
from djl_python import Output
def handle(inputs):
    if inputs.is_empty():
        print("[METRICS]Warm Up.Milliseconds:12.5|#Level:Host|#Host:x,1")
        print("a line\\x1b[31m\\r of the model")
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        return None
    if inputs.get_as_string() == "raise":
        raise ValueError("as asked")
    return Output().add_as_json(inputs.get_properties() | {"contents": inputs.get_content().get_keys()})
"""


@dataclass
class Running:
    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path

    def logged(self, text: str) -> str:
        """The log, once it holds this."""
        until(lambda: is_logged(self.process, self.log, text), f"the log held {text}")
        return self.log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def container(folder: Path, *arguments: str, **environ: str) -> Iterator[Running]:
    """A server of its own, stopped at the end if the test didn't."""
    log = folder / "container.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            tether.tethered([sys.executable, "-m", "mme.server", "--port", "0", *arguments]),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ},
        )
    try:
        until(lambda: is_logged(process, log, "listening on "), "the server said where it listens")
        url = log.read_text().partition("listening on ")[2].split()[0]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield Running(client, process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def is_logged(process: subprocess.Popen[bytes], log: Path, text: str) -> bool:
    assert process.poll() is None, log.read_text()
    return text in log.read_text()


def package(folder: Path, handler: str = HANDLER) -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(handler)
    (folder / "serving.properties").write_text("maxWorkers=1\n")
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with the model `m` loaded."""
    folder = tmp_path_factory.mktemp("app")
    with container(folder) as running:
        load = {"model_name": "m", "url": str(package(folder / "m"))}
        headers = {"X-Amzn-SageMaker-Target-Model": "shop/m.tar.gz"}
        assert running.client.post("/models", json=load, headers=headers).status_code == 200
        yield running


def error(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    return answer.status_code, body["type"], body.get("message", "")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/ping", 200, None),
        ("POST", "/ping/", 200, None),
        ("OPTIONS", "/", 200, None),
        ("GET", "/", 404, "ResourceNotFoundException"),
        ("GET", "/nope", 404, "ResourceNotFoundException"),
        ("GET", "//models", 404, "ResourceNotFoundException"),
        ("GET", "/models?limit=x", 409, "NumberFormatException"),
        ("DELETE", "/models", 405, "MethodNotAllowedException"),
        ("PATCH", "/models/m", 405, "MethodNotAllowedException"),
        ("GET", "/models/nope", 404, "ModelNotFoundException"),
        ("GET", "/models/m/all", 404, "ModelNotFoundException"),
        ("PUT", "/models/nope?min_worker=1", 404, "ModelNotFoundException"),
        ("PUT", "/models/m?min_worker=x", 400, "BadRequestException"),
        ("DELETE", "/models/nope", 404, "ModelNotFoundException"),
        ("DELETE", "/models/m/other-version", 404, "ModelNotFoundException"),
        ("POST", "/models/nope/invoke", 404, "ModelNotFoundException"),
        ("POST", "/models/m/invoke?a=1", 405, "MethodNotAllowedException"),
        ("POST", "/models", 400, "BadRequestException"),
        ("POST", "/models?url=/nope/x", 404, "ModelNotFoundException"),
        ("POST", "/invocations", 400, "BadRequestException"),
        ("POST", "/predictions/nope", 404, "ModelNotFoundException"),
        ("POST", "/workflows", 400, "BadRequestException"),
        ("POST", "/_mme/models", 404, "ResourceNotFoundException"),
    ],
)
def test_each_route_answers_as_djl_does(
    running: Running, method: str, path: str, status: int, kind: str | None
) -> None:
    answer = running.client.request(method, path)
    assert answer.status_code == status, answer.text
    if kind:
        assert answer.json()["type"] == kind
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{not json", "JsonSyntaxException"),
        (b"[]", "JsonSyntaxException"),
        (b"null", "NullPointerException"),
        (b"{}", "NullPointerException"),
        (b'{"url": "/x"}', "NullPointerException"),
        (b"[" * 100_000, "JsonSyntaxException"),
    ],
)
def test_arguments_that_java_stumbles_over_are_its_500(running: Running, body: bytes, kind: str) -> None:
    answer = running.client.post("/models", content=body, headers={"Content-Type": "application/json"})
    assert error(answer)[:2] == (500, kind)


@pytest.mark.parametrize(
    ("path", "contents"),
    [
        ("/models/m/invoke", ["data"]),
        ("/predictions/m", ["data"]),
        ("/predictions/m?a=1", ["a", "data"]),
        ("/invocations?model_name=m", ["model_name", "data"]),
    ],
)
def test_every_way_to_a_model_reaches_it(running: Running, path: str, contents: list[str]) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "k=v;flag;k2=a=b", "b-last": "1"}
    seen = running.client.post(path, content=b"x", headers=headers).json()
    assert seen["contents"] == contents
    assert (seen["k"], seen["k2"], seen["handler"]) == ("v", "a=b", "handle")
    assert len(seen["requestId"]) == 36
    assert not any(key.lower() == "x-amzn-sagemaker-custom-attributes" for key in seen)


@pytest.mark.parametrize("attribute", [{"handler": "other"}, {"X-Amzn-SageMaker-Custom-Attributes": "handler=other"}])
def test_a_caller_cannot_choose_the_handler(running: Running, attribute: dict[str, str]) -> None:
    assert error(running.client.post("/models/m/invoke", headers=attribute))[:2] == (400, "BadRequestException")


def test_a_form_without_its_last_boundary_is_refused(running: Running) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    body = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nx'
    assert error(running.client.post("/models/m/invoke", content=body, headers=headers))[0] == 400
    whole = body + b"\r\n--B--\r\n"
    assert running.client.post("/models/m/invoke", content=whole, headers=headers).json()["contents"] == ["a"]


def test_the_status_names_processes_memory_and_the_target_model(running: Running) -> None:
    running.client.post("/models/m/invoke", content=b"x")
    status: dict[str, Any] = running.client.get("/_mme/models").json()
    (model,) = status["models"]
    assert (model["name"], model["target_model"], model["status"]) == ("m", "shop/m.tar.gz", "READY")
    (worker,) = model["workers"]
    assert psutil.pid_exists(worker["pid"])
    is_off = os.environ.get("MME_FORK") == "off"
    assert worker["origin"] == ("plain: forking is off (MME_FORK=off)" if is_off else "forked")
    assert status["memory"]["used_mb"] > 0 and status["memory"]["budget_mb"] is None


def test_the_metrics_count_what_was_answered(running: Running) -> None:
    running.client.post("/models/m/invoke", content=b"raise")
    running.logged("ValueError: as asked")  # and so what it printed before, its own metric included
    text = running.client.get("/metrics").text
    assert 'Response_total{code="424",model="shop/m.tar.gz"}' in text
    assert 'HandlerMetric{model="shop/m.tar.gz",name="Warm Up",unit="Milliseconds"} 12.5' in text
    assert 'Workers{model="shop/m.tar.gz"} 1.0' in text


def test_what_a_model_prints_is_in_the_log_under_its_name_and_cannot_forge_a_line(running: Running) -> None:
    running.client.post("/models/m/invoke", content=b"raise")
    log = running.logged("ValueError: as asked")
    assert "[shop/m.tar.gz] a line\\x1b[31m" in log
    record = log[: log.index("ValueError: as asked")].rpartition("[shop/m.tar.gz]")[2]
    assert "Traceback (most recent call last):" in record
    assert all(line.startswith("    ") for line in record.splitlines()[1:])


def test_the_servers_own_lines_name_the_target_and_no_name_forges_one(running: Running, tmp_path: Path) -> None:
    forged = "x\n2026-01-01T00:00:00.000Z INFO  listening on http://elsewhere"
    answer = running.client.post("/models", json={"model_name": forged, "url": str(tmp_path / "nothing")})
    assert answer.status_code == 404
    log = running.logged("elsewhere")
    assert re.search(r"^\S+Z INFO  shop/m\.tar\.gz: loaded in ", log, re.MULTILINE)
    assert [line[0] for line in log.splitlines() if "elsewhere" in line] == [" "]


def test_the_status_shows_what_a_model_printed_last(running: Running) -> None:
    running.client.post("/models/m/invoke", content=b"raise")
    running.logged("ValueError: as asked")
    (model,) = running.client.get("/_mme/models").json()["models"]
    last = model["log"][-1]
    assert last["level"] in ("INFO", "WARN") and last["time"].endswith("Z")
    assert "Traceback (most recent call last):" in last["text"] and last["text"].endswith("ValueError: as asked")


def test_sigterm_ends_everything_with_exit_code_0_even_what_a_handler_started(tmp_path: Path) -> None:
    with container(tmp_path, MME_CONTAINER_ID=f"test-{tmp_path}") as running:
        answer = running.client.post("/models", params={"url": str(package(tmp_path / "m"))})
        assert answer.status_code == 200, answer.text
        assert running.stop() == 0
    left = [each for each in psutil.process_iter() if environment(each).get("MME_CONTAINER_ID") == f"test-{tmp_path}"]
    assert left == []


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_models_of_the_store_are_there_from_the_start_and_a_broken_one_is_not(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    package(store / "good")
    package(store / "broken", "raise RuntimeError")
    with container(tmp_path, "--model-store", str(store), MME_FORK="off") as running:
        assert [model["modelName"] for model in running.client.get("/models").json()["models"]] == ["good"]
        assert running.client.get("/models/good").json()[0]["models"][0]["loadedAtStartup"] is True
        assert running.client.post("/invocations", content=b"x").json()["contents"] == ["data"]
        (model,) = running.client.get("/_mme/models").json()["models"]
        assert model["workers"][0]["origin"].startswith("plain: forking is off")


def test_paths_may_be_relative_to_where_the_server_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "store")
    venv = package(tmp_path / "venv")
    (venv / "serving.properties").write_text("maxWorkers=1\noption.enable_venv=true\n")
    monkeypatch.chdir(tmp_path / "store")
    with container(tmp_path, "--model-store", ".", MME_NURSERY_DIR="../nursery", DJL_CACHE_DIR="../cache") as running:
        loaded = running.client.post("/models", json={"model_name": "venv", "url": "../venv"})
        assert loaded.status_code == 200, loaded.text
        for name in ("store", "venv"):
            assert running.client.post(f"/models/{name}/invoke", content=b"x").json()["contents"] == ["data"]


def test_a_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "mme.server", "--model-store", str(tmp_path / "nope")]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert f"--model-store {tmp_path}/nope: there is no such folder" in refused.stderr


def test_a_port_that_is_taken_or_a_wrong_budget_is_said(tmp_path: Path, running: Running) -> None:
    port = str(running.client.base_url.port)
    argv = [sys.executable, "-m", "mme.server", "--port", port]
    taken = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert taken.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in taken.stderr
    wrong = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env={**os.environ, "MME_MEMORY_BUDGET_MB": "lots"}
    )
    assert wrong.returncode == 2
    assert "MME_MEMORY_BUDGET_MB=lots is not a whole number" in wrong.stderr


def test_json_is_written_for_people_too(running: Running) -> None:
    text = running.client.get("/ping").text
    assert json.loads(text) == {"m": {"status": "Healthy"}}
    assert text == '{\n  "m": {\n    "status": "Healthy"\n  }\n}\n'


def test_a_container_with_a_key_answers_who_has_it_and_tells_no_handler(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "m").mkdir(parents=True)
    (models / "m" / "model.py").write_text(
        "import os\nfrom djl_python import Output\n"
        "def handle(inputs):\n    return Output().add_as_json([inputs.get_properties(), dict(os.environ)])\n"
    )
    with container(tmp_path, "--model-store", str(models), MME_CONTAINER_KEY="a-key") as running:
        for headers in ({}, {"X-MME-Key": "another"}):
            refused = running.client.get("/ping", headers=headers)
            assert (refused.status_code, refused.json()["type"]) == (403, "ForbiddenException")
        answer = running.client.post("/models/m/invoke", headers={"X-MME-Key": "a-key", "X-Other": "told"})
        assert answer.status_code == 200 and "told" in answer.text and "a-key" not in answer.text
