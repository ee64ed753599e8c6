"""What containers say, from a handler's print to `mme logs`: a real endpoint, and log groups as CloudWatch has them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from tutorial import Served, platform_serving

from mme import logs, packages, session
from mme.logs import Record
from mme.session import SessionError
from mme.settings import Settings

# Ctrl-C is ignored by what a shell without a terminal starts in the background, and by its children.
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from mme.cli import main; main()"
HANDLER = """
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        print("ready\\x1b[2J to serve")
        return None
    raise ValueError("as asked")
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("logs")
    (folder / "line").mkdir()
    (folder / "line" / "model.py").write_text(HANDLER)
    (folder / "line" / "serving.properties").write_text("engine=Python\nrequired_memory_mb=50\n")
    packages.build(folder / "line", folder / "line.tar.gz")
    with platform_serving(folder / "home", {"line": folder / "line.tar.gz"}) as served:
        yield served


def until(found: Callable[[], list[Record]]) -> list[Record]:
    """What is found, as soon as it is something: records arrive a second or two after they were written."""
    deadline = time.monotonic() + 60
    while not (records := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return records


def written(served: Served, endpoint: str, *messages: str) -> None:
    """Records of another endpoint, as CloudWatch Logs has them."""
    client = served.boto.client("logs")
    group = {"logGroupName": f"{logs.GROUPS}{endpoint}"}
    try:
        client.create_log_group(**group)
        client.create_log_stream(**group, logStreamName="blue/i-1")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ResourceAlreadyExistsException"
    at_ms = int(time.time() * 1000)
    events = [{"timestamp": at_ms + number, "message": message} for number, message in enumerate(messages)]
    client.put_log_events(**group, logStreamName="blue/i-1", logEvents=events)


def test_a_traceback_is_one_record_under_its_models_name(served: Served) -> None:
    with pytest.raises(ClientError, match="ModelError"):
        served.boto.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=served.endpoint, TargetModel="line.tar.gz", Body=b"{}"
        )
    (failed,) = until(lambda: [each for each in logs.read(served.settings) if "as asked" in each.text])
    assert re.match(r"tutorial AllTraffic/\S+ \d{4}-\S+Z INFO  \[line\.tar\.gz\] ERROR::Failed invoke", str(failed))
    assert "Traceback (most recent call last):" in failed.text and failed.text.endswith("ValueError: as asked")
    assert all(line.startswith("    ") for line in str(failed).splitlines()[1:])
    texts = [record.text for record in logs.read(served.settings)]
    assert any(" line.tar.gz: loaded in " in text for text in texts)
    assert any(r"[line.tar.gz] ready\x1b[2J to serve" in text for text in texts)


def test_the_status_shows_what_a_model_said_last(served: Served) -> None:
    with pytest.raises(ClientError, match="ModelError"):
        served.boto.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=served.endpoint, TargetModel="line.tar.gz", Body=b"{}"
        )
    deadline = time.monotonic() + 60
    while True:
        status = session.platform_status(served.settings)
        assert status is not None and time.monotonic() < deadline
        (model,) = status["endpoints"][0]["variants"][0]["instances"][0]["models"]
        if "as asked" in str(model["log"]):
            break
    assert model["log"][-1]["text"].endswith("ValueError: as asked")


def test_an_endpoint_is_shown_alone_or_all_together_by_time(served: Served) -> None:
    written(served, "other", "first", "second\n  of two lines")
    assert [str(record) for record in logs.read(served.settings, "other")] == [
        "other blue/i-1 first",
        "other blue/i-1 second\n  of two lines",
    ]
    until(lambda: [each for each in logs.read(served.settings) if each.endpoint == "tutorial"])
    records = list(logs.read(served.settings))
    assert {record.endpoint for record in records} >= {"tutorial", "other"}
    assert records == sorted(records, key=lambda record: record.at_ms)


def test_an_endpoint_that_never_logged_is_told_with_those_that_did(served: Served) -> None:
    until(lambda: list(logs.read(served.settings)))
    with pytest.raises(SessionError, match=r"no endpoint 'nope' has logged anything; there are: .*tutorial"):
        list(logs.read(served.settings, "nope"))


def test_without_a_platform_the_way_to_start_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="`mme up` starts it"):
        list(logs.read(Settings(home=tmp_path)))


def test_a_line_of_a_record_can_neither_pass_for_another_record_nor_command_a_terminal() -> None:
    record = Record(0, "e", "v/i", "one\x1b[2J\rtwo\nthree\n\n\tfour")
    assert str(record) == "e v/i one\\x1b[2J\\rtwo\n    three\n\n\tfour"


def test_following_shows_each_record_once_as_it_comes_until_ctrl_c(served: Served) -> None:
    written(served, "tail", "before")
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "logs", "tail", "--follow"],
        env=os.environ | {"MME_HOME": str(served.settings.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "tail blue/i-1 before\n"
    for message in ("after", "later"):
        written(served, "tail", message)
        assert process.stdout.readline() == f"tail blue/i-1 {message}\n"
    os.killpg(process.pid, signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    assert (process.returncode, rest, said) == (0, "", "")
