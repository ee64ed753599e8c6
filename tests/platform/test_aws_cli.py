"""The `aws` command line, version 1, as people type it: an endpoint's whole life, and the files around it."""

from __future__ import annotations

import datetime
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from mme.platform.launch import Running

ROLE = "arn:aws:iam::000000000000:role/role"
WAIT = {"Delay": 0.1, "MaxAttempts": 900}

HANDLER = """
from djl_python import Output


def handle(inputs):
    return None if inputs.is_empty() else Output().add_as_json(inputs.get_as_json())
"""

Aws = Callable[..., str]

# Runs each line of JSON, a list of arguments, as `aws` in a fork: what takes a second is to import it.
FORKING = """
import json, os, sys
from awscli.clidriver import main

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv = ["aws", *json.loads(line)]
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def aws(platform: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """Runs `aws` and returns what it prints; a failure is raised with what it says."""
    folder = tmp_path_factory.mktemp("aws")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": platform.url,
        "AWS_ACCESS_KEY_ID": platform.access_key,
        "AWS_SECRET_ACCESS_KEY": platform.secret_key,
        "AWS_DEFAULT_REGION": platform.region,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    argv = [sys.executable, "-W", "ignore", "-c", FORKING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, env=environment, cwd=folder, text=True, **pipes) as forking:
        assert forking.stdin is not None and forking.stdout is not None
        requests, codes = forking.stdin, forking.stdout

        def run(*arguments: str) -> str:
            print(json.dumps(arguments), file=requests, flush=True)
            if int(codes.readline()):
                raise RuntimeError(f"aws {' '.join(arguments)}: {(folder / 'stderr').read_text()}")
            return (folder / "stdout").read_text()

        yield run


def package(file: Path) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, text in (("model.py", HANDLER), ("serving.properties", "engine=Python\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return file


def test_an_endpoint_lives_its_life_by_the_command_line(aws: Aws, client: Any, tmp_path: Path) -> None:
    aws("s3", "mb", "s3://cli-models")
    aws("s3", "cp", str(package(tmp_path / "echo.tar.gz")), "s3://cli-models/models/")
    container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": "s3://cli-models/models/"}
    variant = {"VariantName": "A", "ModelName": "cli", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    made = aws(
        *("sagemaker", "create-model", "--model-name", "cli", "--execution-role-arn", ROLE),
        *("--primary-container", json.dumps(container), "--tags", "Key=a,Value=b"),
    )
    assert json.loads(made) == {"ModelArn": "arn:aws:sagemaker:us-east-1:000000000000:model/cli"}
    config = ("--endpoint-config-name", "cli")
    aws("sagemaker", "create-endpoint-config", *config, "--production-variants", json.dumps([variant]))
    aws("sagemaker", "create-endpoint", "--endpoint-name", "cli", *config)
    # `aws sagemaker wait` looks every 30 s, and at once.
    client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="cli", WaiterConfig=WAIT)
    aws("sagemaker", "wait", "endpoint-in-service", "--endpoint-name", "cli")
    answer = tmp_path / "answer.json"
    said = aws(
        *("sagemaker-runtime", "invoke-endpoint", "--endpoint-name", "cli", "--target-model", "echo.tar.gz"),
        *("--content-type", "application/json", "--body", '{"x": 1}', str(answer)),
    )
    assert json.loads(said)["InvokedProductionVariant"] == "A"
    assert json.loads(answer.read_text()) == {"x": 1}
    with pytest.raises(RuntimeError, match=r"An error occurred \(ValidationError\) when calling the InvokeEndpoint"):
        aws(
            *("sagemaker-runtime", "invoke-endpoint", "--endpoint-name", "cli", "--target-model", "none.tar.gz"),
            *("--body", "{}", str(answer)),
        )
    assert "cli" in aws("sagemaker", "list-endpoints", "--name-contains", "cli", "--output", "text")
    aws(
        *("sagemaker", "create-endpoint-config", "--endpoint-config-name", "cli-2", "--production-variants"),
        "VariantName=B,ModelName=cli,InstanceType=ml.m5.large,InitialInstanceCount=1",
    )
    aws("sagemaker", "update-endpoint", "--endpoint-name", "cli", "--endpoint-config-name", "cli-2")
    client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="cli", WaiterConfig=WAIT)
    described = json.loads(aws("sagemaker", "describe-endpoint", "--endpoint-name", "cli"))
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "cli-2")
    aws("sagemaker", "delete-endpoint", "--endpoint-name", "cli")
    client("sagemaker").get_waiter("endpoint_deleted").wait(EndpointName="cli", WaiterConfig=WAIT)
    aws("sagemaker", "wait", "endpoint-deleted", "--endpoint-name", "cli")
    for name in ("cli", "cli-2"):
        aws("sagemaker", "delete-endpoint-config", "--endpoint-config-name", name)
    aws("sagemaker", "delete-model", "--model-name", "cli")
    assert json.loads(aws("sagemaker", "list-models", "--name-contains", "cli")) == {"Models": []}


def test_folders_are_synchronised_listed_copied_signed_and_removed(aws: Aws, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub folder").mkdir(parents=True)
    (here / "a.txt").write_text("a")
    (here / "sub folder" / "größe.txt").write_text("b")
    (here / "large").write_bytes(os.urandom(9 << 20))
    aws("s3", "mb", "s3://cli-files")
    aws("s3", "sync", str(here), "s3://cli-files/folder")
    assert aws("s3", "sync", str(here), "s3://cli-files/folder") == ""
    aws("s3", "cp", "s3://cli-files/folder/large", "s3://cli-files/copy/large")
    aws("s3", "mv", "s3://cli-files/folder/a.txt", "s3://cli-files/copy/a.txt")
    listed = aws("s3", "ls", "s3://cli-files", "--recursive")
    assert [line.split(maxsplit=3)[3] for line in listed.splitlines()] == [
        "copy/a.txt",
        "copy/large",
        "folder/large",
        "folder/sub folder/größe.txt",
    ]
    with urlopen(aws("s3", "presign", "s3://cli-files/copy/a.txt").strip()) as answer:
        assert answer.read() == b"a"
    aws("s3", "cp", "s3://cli-files/copy", str(there), "--recursive")
    kind = aws("s3api", "head-object", "--bucket", "cli-files", "--key", "copy/a.txt", "--query", "ContentType")
    assert json.loads(kind) == "text/plain"
    aws("s3", "rm", "s3://cli-files/copy/a.txt")
    assert "a.txt" not in aws("s3", "ls", "s3://cli-files/copy/")
    for refused in (
        ("put-object-tagging", "--tagging", "TagSet=[{Key=a,Value=b}]"),
        ("put-object", "--if-none-match", "*", "--body", str(here / "a.txt")),
    ):
        with pytest.raises(RuntimeError, match=r"An error occurred \(NotImplemented\) when calling the PutObject"):
            aws("s3api", *refused, "--bucket", "cli-files", "--key", "copy/large")
    assert (there / "large").read_bytes() == (here / "large").read_bytes()
    aws("s3", "rb", "s3://cli-files", "--force")
    assert "cli-files" not in aws("s3", "ls")


def test_metrics_and_logs_are_read_and_written(aws: Aws) -> None:
    aws("cloudwatch", "put-metric-data", "--namespace", "cli", "--metric-name", "calls", "--value", "3")
    assert "calls" in aws("cloudwatch", "list-metrics", "--namespace", "cli")
    now = datetime.datetime.now(datetime.UTC)
    over = [(now + datetime.timedelta(minutes=minutes)).isoformat() for minutes in (-5, 5)]
    asked = ("--namespace", "cli", "--metric-name", "calls", "--start-time", over[0], "--end-time", over[1])
    summed = json.loads(aws("cloudwatch", "get-metric-statistics", *asked, "--period", "600", "--statistics", "Sum"))
    assert [point["Sum"] for point in summed["Datapoints"]] == [3]
    with pytest.raises(RuntimeError, match=r"\(UnsupportedOperation\).*keeps no values to work out p99 from"):
        aws("cloudwatch", "get-metric-statistics", *asked, "--period", "600", "--extended-statistics", "p99")
    aws("logs", "create-log-group", "--log-group-name", "/cli")
    aws("logs", "create-log-stream", "--log-group-name", "/cli", "--log-stream-name", "one")
    event = f"timestamp={time.time_ns() // 1_000_000},message=a line of its own"
    aws("logs", "put-log-events", "--log-group-name", "/cli", "--log-stream-name", "one", "--log-events", event)
    found = aws("logs", "filter-log-events", "--log-group-name", "/cli", "--output", "text")
    assert "a line of its own" in found
    read = aws("logs", "get-log-events", "--log-group-name", "/cli", "--log-stream-name", "one", "--output", "text")
    assert "a line of its own" in read
