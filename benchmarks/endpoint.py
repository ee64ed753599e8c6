"""Decides what is measured through the platform: signed calls of InvokeEndpoint, boto3's own share, and `mme up`."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import BUILD, load, models
from benchmarks.options import Options
from benchmarks.peer import JSON, PeerFailed
from benchmarks.steps import Record
from mme import packages, session
from mme.platform import launch
from mme.settings import Settings

HOME = BUILD / "home"
NAME = "benchmark"
TARGET = ("X-Amzn-SageMaker-Target-Model", "linear-regression.tar.gz")
UPS = 3
ANSWER_TIMEOUT_S = 60.0


def measure(options: Options) -> list[Record]:
    """Calls of an endpoint from 1 and 8 connections, signed beforehand; the same through boto3; starts of the platform.

    In a process of its own, since a session turns its process to the local platform; the home is stopped at the end.
    """
    models.prepare(models.LR)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, options.seconds).result()


def _measure(seconds: float) -> list[Record]:
    settings = Settings(home=HOME, instance_memory_mb=4096, backend="local")
    expect = json.dumps(models.LR.answer[0]).encode()
    records: list[Record] = []
    try:
        launch.down(HOME)
        shutil.rmtree(HOME, ignore_errors=True)
        _deploy(settings)
        port, call = _signed_call(settings)
        _first_answer(port, call)
        load.run(port, [call], concurrency=8, seconds=0.5)
        for callers in (1, 8):
            result = load.run(port, [call], concurrency=callers, seconds=seconds, expect=expect)
            records.append({"figure": "endpoint", "model": "lr", "callers": callers, **result.as_record()})
        records.append({"figure": "boto3", "model": "lr", "callers": 1, **_by_boto3(settings, seconds)})
        for _ in range(UPS):
            launch.down(HOME)
            began = time.perf_counter()
            subprocess.run(
                [Path(sys.executable).parent / "mme", "up"],
                env={"MME_HOME": str(HOME), "MME_INSTANCE_MEMORY_MB": "4096", "PATH": ""},
                check=True,
                capture_output=True,
            )
            up_s = time.perf_counter() - began
            port, call = _signed_call(settings)
            _first_answer(port, call)
            took_s = time.perf_counter() - began
            records.append({"figure": "up", "up_ms": round(1000 * up_s, 1), "ms": round(1000 * took_s, 1)})
        return records
    finally:
        launch.down(HOME)


def _deploy(settings: Settings) -> None:
    boto = session.connect(settings)
    archive = BUILD / TARGET[1]
    packages.build(models.LR.folder, archive)
    bucket = session.bucket(settings)
    boto.client("s3").upload_file(str(archive), bucket, f"models/{archive.name}")
    sagemaker = boto.client("sagemaker")
    container = {
        "Image": session.image_uri(settings),
        "Mode": "MultiModel",
        "ModelDataUrl": f"s3://{bucket}/models/",
    }
    sagemaker.create_model(ModelName=NAME, ExecutionRoleArn=session.role_arn(settings), PrimaryContainer=container)
    variant = {"VariantName": "All", "ModelName": NAME, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=NAME, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    waiter = sagemaker.get_waiter("endpoint_in_service")
    waiter.wait(EndpointName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def _signed_call(settings: Settings) -> tuple[int, bytes]:
    """The platform's port, and a request of InvokeEndpoint that is good for some minutes."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    running = session.running(settings)
    path, headers = f"/endpoints/{NAME}/invocations", dict([*JSON, TARGET])
    request = AWSRequest("POST", f"{running.url}{path}", headers=headers, data=models.LR.body)
    SigV4Auth(Credentials(running.access_key, running.secret_key), "sagemaker", running.region).add_auth(request)
    address = urlsplit(running.url)
    call = load.request("POST", path, models.LR.body, list(request.headers.items()), host=address.netloc)
    return address.port or 80, call


def _first_answer(port: int, call: bytes) -> None:
    """Ask until the model answers rightly: the first call of a model may be told to come again."""
    end = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        connection = load.Connection(port)
        status, body = connection.ask(call)
        connection.close()
        if status == 200:
            break
        if status != 429 or time.monotonic() > end:
            raise PeerFailed(f"the platform: InvokeEndpoint: {status} {body[:300].decode(errors='replace')}")
    if json.loads(body) != models.LR.answer:
        raise PeerFailed(f"the platform answers {json.loads(body)}, and not {models.LR.answer}")


def _by_boto3(settings: Settings, seconds: float) -> Record:
    """What a caller of boto3 waits for the same answer, one call after another."""
    runtime = session.connect(settings).client("sagemaker-runtime")
    times_s: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        answer = runtime.invoke_endpoint(
            EndpointName=NAME, TargetModel=TARGET[1], ContentType=JSON[0][1], Body=models.LR.body
        )
        answer["Body"].read()
        times_s.append(time.perf_counter() - began)
    return {"calls": len(times_s), "p50_ms": round(1000 * statistics.median(times_s), 4)}
