"""Eight callers over three hundred packages, on two instances that hold sixty each: caches that are always full.

All of it is real: the platform's process, signed calls over HTTP, a worker's process for each model. How often a model
is there is held against a simulation of the routing and of both caches over the same calls.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import threading
import time
import urllib.request
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from mme.platform.launch import Running

PACKAGES, INSTANCES, HELD, CALLERS = 300, 2, 60, 8
SECONDS = float(os.environ.get("MME_SOAK_S", "120"))
WEIGHTS = [1 / (rank + 1) for rank in range(PACKAGES)]  # zipf's distribution
TOLERANCE = 0.02  # of the calls, between what hit and what the simulation says
MOVING = CALLERS  # so many models of an instance may be on their way at any moment
BALLAST_MB, REQUIRED_MB = 32, 40  # what a model holds, and what its package says it needs
SAMPLE = 20  # models loaded to see what each of them takes
BUCKET = "soak"
IDENTITY = {"EndpointName": "soak"}

HANDLER = f"""
from djl_python import Output

ballast = b"x" * ({BALLAST_MB} << 20)


def handle(inputs):
    return None if inputs.is_empty() else Output().add("NAME")
"""
SETTINGS = f"engine=Python\nminWorkers=1\nmaxWorkers=1\nrequired_memory_mb={REQUIRED_MB}\n"

pytestmark = pytest.mark.soak


def simulated_hits(trace: list[int]) -> int:
    """Calls one after another: to the instance that has the model, else to the emptier one; the oldest use leaves."""
    instances: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(INSTANCES)]
    hits = 0
    for number in trace:
        holder = next((models for models in instances if number in models), None)
        if holder is not None:
            hits += 1
            holder.move_to_end(number)
            continue
        chosen = min(instances, key=lambda models: (len(models), random.random()))
        if len(chosen) == HELD:
            chosen.popitem(last=False)
        chosen[number] = None
    return hits


def instances_of(there: Running) -> list[dict[str, Any]]:
    """The endpoint's instances, as the platform's status shows them."""
    with urllib.request.urlopen(f"{there.url}/_mme/status") as answer:
        (endpoint,) = json.load(answer)["endpoints"]
    return [instance for variant in endpoint["variants"] for instance in variant["instances"]]


def loaded(instance: dict[str, Any]) -> int:
    return sum(model["where"] == "memory" for model in instance["models"])


def pss_mb(pid: int) -> float:
    """The proportional set size of a process and all that it started."""
    top = psutil.Process(pid)
    total_mb = 0.0
    for process in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total_mb += process.memory_full_info().pss / 2**20
    return total_mb


@contextlib.contextmanager
def endpoint(sagemaker: Any, instances: int) -> Iterator[None]:
    variant = {"VariantName": "A", "ModelName": "soak", "InstanceType": "ml.m5.12xlarge"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="soak", ProductionVariants=[variant | {"InitialInstanceCount": instances}]
    )
    sagemaker.create_endpoint(**IDENTITY, EndpointConfigName="soak")
    wait = {"Delay": 0.2, "MaxAttempts": 300}
    sagemaker.get_waiter("endpoint_in_service").wait(**IDENTITY, WaiterConfig=wait)
    yield
    sagemaker.delete_endpoint(**IDENTITY)
    sagemaker.get_waiter("endpoint_deleted").wait(**IDENTITY, WaiterConfig=wait)
    sagemaker.delete_endpoint_config(EndpointConfigName="soak")


def memory_that_holds(there: Running, connect: Any, pack: Callable[[dict[str, str]], bytes]) -> int:
    """Upload the packages and measure, on one instance, the memory in MB in which HELD of them fit and no more."""
    client = connect(there)
    s3, sagemaker, runtime = client("s3"), client("sagemaker"), client("sagemaker-runtime")
    s3.create_bucket(Bucket=BUCKET)
    for number in range(PACKAGES):
        files = {"model.py": HANDLER.replace("NAME", f"m{number}"), "serving.properties": SETTINGS}
        s3.put_object(Bucket=BUCKET, Key=f"models/m{number}.tar.gz", Body=pack(files))
    container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/models/"}
    sagemaker.create_model(ModelName="soak", PrimaryContainer=container)
    with endpoint(sagemaker, 1):
        taken_mb = []
        for number in range(2 * SAMPLE):
            runtime.invoke_endpoint(**IDENTITY, TargetModel=f"m{number}.tar.gz", Body=b"{}")
            if (number + 1) % SAMPLE == 0:
                taken_mb.append(pss_mb(instances_of(there)[0]["pid"]))
    each_mb = (taken_mb[1] - taken_mb[0]) / SAMPLE
    return round(taken_mb[1] + (HELD - 1 - 2 * SAMPLE) * each_mb + REQUIRED_MB + each_mb / 2)


def test_full_caches_under_load_answer_right_and_hit_as_often_as_simulated(
    start_platform: Any, connect: Any, pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MME_METRICS_PERIOD_S", "1")
    with start_platform(tmp_path, instance_memory_mb=2 * HELD * REQUIRED_MB) as measured:
        memory_mb = memory_that_holds(measured, connect, pack)
    with start_platform(tmp_path, instance_memory_mb=memory_mb) as there:
        client = connect(there)
        with endpoint(client("sagemaker"), INSTANCES):
            soak(there, client, memory_mb)


def soak(there: Running, client: Any, memory_mb: int) -> None:
    trace: list[int] = []
    errors: Counter[str] = Counter()
    counts: list[int] = []
    ended = threading.Event()
    began_at = datetime.datetime.now(datetime.UTC)
    end_s = time.monotonic() + SECONDS

    def call() -> None:
        runtime = client("sagemaker-runtime")
        while time.monotonic() < end_s:
            (number,) = random.choices(range(PACKAGES), WEIGHTS)
            trace.append(number)
            try:
                answer = runtime.invoke_endpoint(**IDENTITY, TargetModel=f"m{number}.tar.gz", Body=b"{}")
                if (body := answer["Body"].read().decode()) != f"m{number}":
                    errors[f"m{number} answered {body}"] += 1
            except (ClientError, BotoCoreError) as error:
                errors[repr(error)] += 1

    def watch() -> None:
        while not ended.wait(SECONDS / 100):
            if time.monotonic() > end_s - SECONDS / 2:
                counts.extend(loaded(instance) for instance in instances_of(there))

    with ThreadPoolExecutor(CALLERS + 1) as threads:
        watching = threads.submit(watch)
        for caller in [threads.submit(call) for _ in range(CALLERS)]:
            caller.result()
        ended.set()
        watching.result()
    in_use = [model for instance in instances_of(there) for model in instance["models"] if model["in_use"]]

    def statistic(metric: str, name: str) -> float:
        """Over the whole soak, as CloudWatch has it."""
        points = client("cloudwatch").get_metric_statistics(
            Namespace="AWS/SageMaker",
            MetricName=metric,
            Dimensions=[{"Name": "EndpointName", "Value": "soak"}, {"Name": "VariantName", "Value": "A"}],
            StartTime=began_at - datetime.timedelta(minutes=1),
            EndTime=datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1),
            Period=86400,
            Statistics=[name],
        )["Datapoints"]
        return float(sum(point[name] for point in points))

    deadline = time.monotonic() + 30
    while statistic("Invocations", "Sum") < len(trace) and time.monotonic() < deadline:
        time.sleep(0.2)
    hits = statistic("ModelCacheHit", "Sum") / len(trace)
    simulated = simulated_hits(trace) / len(trace)
    figures = {
        "seconds": SECONDS,
        "instance_memory_mb": memory_mb,
        "calls": len(trace),
        "loads": statistic("ModelLoadingTime", "SampleCount"),
        "unloads": statistic("ModelUnloadingTime", "SampleCount"),
        "hit_ratio": round(hits, 4),
        "simulated_hit_ratio": round(simulated, 4),
        "loaded_models": [min(counts), max(counts)],
        "errors": sum(errors.values()),
    }
    print(json.dumps(figures))
    assert not errors
    assert statistic("Invocations", "Sum") == len(trace)
    assert HELD - MOVING <= min(counts) and max(counts) <= HELD
    assert abs(hits - simulated) <= TOLERANCE
    assert in_use == []
