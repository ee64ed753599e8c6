"""A failure's text names places as the container on AWS would, and nothing of this machine; it shows no stack."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from botocore.exceptions import ClientError

from mme.platform.launch import Running

HANDLER = """
import os, sys, tempfile
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        {init}
        return None
    open({path})
"""


@pytest.fixture(scope="module")
def message(client: Any, pack: Callable[[dict[str, str]], bytes]) -> Any:
    """Makes a package of the files, calls it, and gives the error's texts."""
    s3, sagemaker, runtime = (client(name) for name in ("s3", "sagemaker", "sagemaker-runtime"))
    s3.create_bucket(Bucket="discretion")
    container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": "s3://discretion/models/"}
    sagemaker.create_model(ModelName="discretion", PrimaryContainer=container)
    one = {"VariantName": "v", "ModelName": "discretion", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="discretion", ProductionVariants=[one])
    sagemaker.create_endpoint(EndpointName="discretion", EndpointConfigName="discretion")
    wait = {"Delay": 1, "MaxAttempts": 60}
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="discretion", WaiterConfig=wait)

    def call(name: str, files: dict[str, str]) -> str:
        s3.put_object(Bucket="discretion", Key=f"models/{name}", Body=pack(files))
        with pytest.raises(ClientError) as error:
            runtime.invoke_endpoint(EndpointName="discretion", TargetModel=name, Body=b"{}")
        return " ".join([error.value.response["Error"]["Message"], error.value.response.get("OriginalMessage", "")])

    yield call
    sagemaker.delete_endpoint(EndpointName="discretion")
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="discretion", WaiterConfig=wait)


def reading(path: str, init: str = "pass") -> dict[str, str]:
    return {"model.py": HANDLER.format(path=path, init=init), "serving.properties": "engine=Python\n"}


CASES = {
    "a file of the package": (reading('os.path.abspath("weights.bin")'), r"/opt/ml/models/[0-9a-f]+/model/weights.bin"),
    "a temporary file": (reading('os.path.join(tempfile.gettempdir(), "scratch")'), "'/tmp/scratch'"),
    "a library": (reading('os.path.join(sys.prefix, "lib", "none.py")'), "'lib/none.py'"),
    "a file of the user's": (reading(repr(os.path.expanduser("~/none"))), "'none'"),
    "a load": (reading("", 'raise ValueError(os.path.abspath("weights.bin"))'), "Failed to initialize model"),
    "a package without a handler": (
        {"serving.properties": "engine=Python\n"},
        r".py file not found in: /opt/ml/models/[0-9a-f]+/model",
    ),
    "requirements": (
        {**reading(""), "requirements.txt": "--no-index\n-r more.txt\n"},
        "requirements.txt can't be satisfied; pip says: .*more.txt",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_no_error_names_a_place_of_this_machine(name: str, message: Any, platform: Running) -> None:
    files, expected = CASES[name]
    text = message(f"{name.replace(' ', '-').replace(chr(39), '')}.tar.gz", files)
    assert re.search(expected, text), text
    secret = {str(platform.home), sys.prefix, sys.base_prefix, os.path.expanduser("~") + "/", str(Path.cwd())}
    assert [place for place in secret if place in text] == []
    assert "Traceback" not in text and 'File "' not in text


@pytest.mark.parametrize("path", ["/", "/models", "/moto-api/data.json"])
def test_no_port_of_a_platform_answers_who_has_no_key(
    path: str, message: Any, platform: Running, listening: Any
) -> None:
    """The gateway, the page, S3, moto and the containers: others on this machine reach them all."""
    ports = {port for _, port in listening(platform.home)}
    assert len(ports) >= 5
    for port in ports:
        with pytest.raises(HTTPError) as refused:
            urlopen(f"http://127.0.0.1:{port}{path}")
        with refused.value as answer:
            assert answer.code in (400, 403), (port, answer.read())
