"""Two hundred models of one container, loaded at once and called for a minute, leave nothing when they are unloaded."""

from __future__ import annotations

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import joblib
import numpy as np
import psutil
import pytest
from container import Container, embedded, until
from sklearn.linear_model import LinearRegression

from mme.settings import Settings

MODELS, CALLERS = 200, 8
SECONDS = float(os.environ.get("MME_SOAK_S", "60"))

pytestmark = pytest.mark.soak


def package(folder: Path, slope: float) -> Path:
    """A linear regression whose answer to x is `slope` times x."""
    folder.mkdir()
    for path in (Settings().scripts_dir / "scikit_learn").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    x = np.arange(4.0).reshape(-1, 1)
    joblib.dump(LinearRegression().fit(x, slope * x[:, 0]), folder / "model.joblib")
    return folder


def pss_mb(server: psutil.Process) -> float:
    """The proportional set size of the server and all that it started; one that has just ended counts nothing."""
    total = 0
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def call_until(container: Container, end: float, wrong: list[str]) -> int:
    """Ask models by chance over one connection; how often, with what went wrong added to the list."""
    connection, calls = HTTPConnection(*container.address, timeout=30), 0
    while time.monotonic() < end:
        number = random.randrange(MODELS)
        body = json.dumps([[2.0]])
        connection.request("POST", f"/models/m{number}/invoke", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        calls += 1
        if response.status != 200 or abs(json.loads(answer)["predictions"][0] - 2 * number) > 1e-6:
            wrong.append(f"m{number}: {response.status} {answer[:200]!r}")
    connection.close()
    return calls


def test_two_hundred_models_are_loaded_called_and_given_back(tmp_path: Path) -> None:
    folders = [package(tmp_path / f"m{number}", number) for number in range(MODELS)]
    with embedded() as container, ThreadPoolExecutor(MODELS) as threads:
        server = container.process()
        assert container.load("first", folders[0]).status == 200
        until(lambda: not json.loads(container.call("GET", "/_mme/models").body)["nursery"]["building"], "it was warm")
        before_mb = pss_mb(server)
        began = time.monotonic()
        answers = list(threads.map(lambda number: container.load(f"m{number}", folders[number]), range(MODELS)))
        loading_s = time.monotonic() - began
        assert [answer.status for answer in answers] == [200] * MODELS
        loaded_mb = pss_mb(server)
        wrong: list[str] = []
        end = time.monotonic() + SECONDS
        calls = sum(threads.map(lambda _: call_until(container, end, wrong), range(CALLERS)))
        assert wrong == []
        called_mb = pss_mb(server)
        assert {answer.status for answer in threads.map(lambda n: container.unload(f"m{n}"), range(MODELS))} == {200}
        until(lambda: pss_mb(server) < before_mb + 0.02 * (called_mb - before_mb) + 5, "the memory was given back")
        after_mb = pss_mb(server)
    print(
        f"\n{MODELS} models loaded at once in {loading_s:.1f} s; {calls} calls in {SECONDS:.0f} s, none wrong; "
        f"{(loaded_mb - before_mb) / MODELS:.1f} MB per model loaded, "
        f"{(called_mb - before_mb) / MODELS:.1f} MB called; "
        f"{100 * (called_mb - after_mb) / (called_mb - before_mb):.1f} % given back"
    )
