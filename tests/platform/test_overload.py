"""Past its capacity the platform refuses quickly, keeps its throughput and its other tenants, and recovers at once."""

from __future__ import annotations

import asyncio
import collections
import io
import random
import tarfile
from dataclasses import dataclass, field
from typing import Any

import pytest

from mme.platform.launch import Running

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

HANDLER = """
import time

from djl_python import Output


def handle(inputs):
    if inputs.is_empty():
        return None
    time.sleep(%s)
    return Output().add_as_json("done")
"""
SPAN_S = 15.0
PATIENCE_S = 5.0  # an answer that comes later helps nobody
LONGEST_BACK_OFF_S = 8.0  # of a client that was refused: botocore's, `random() * 2 ** attempt` up to its fourth retry


@dataclass
class Tally:
    """What callers got, by status; `useful` counts what came in time."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    useful: int = 0


def package(sleep_s: float) -> bytes:
    made = io.BytesIO()
    properties = "engine=Python\nminWorkers=1\nmaxWorkers=1\n"
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in (("model.py", HANDLER % sleep_s), ("serving.properties", properties)):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


class Callers:
    """Clients that sign, each with one connection and one call at a time."""

    def __init__(self, there: Running, sign: Any) -> None:
        self._there = there
        self._sign = sign
        self._port = int(there.url.rpartition(":")[2])

    def _request(self, target: str) -> bytes:
        given = {"Content-Type": "application/json", "X-Amzn-SageMaker-Target-Model": target}
        given["Host"] = f"127.0.0.1:{self._port}"
        path = "/endpoints/overload/invocations"
        headers = self._sign(self._there, "sagemaker", "POST", path, given, b"{}") | {"Content-Length": "2"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {path} HTTP/1.1\r\n{lines}\r\n{{}}".encode()

    async def call(self, target: str, count: int, span_s: float) -> Tally:
        """What `count` callers get within the time."""
        tally = Tally()
        request = self._request(target)
        end = asyncio.get_running_loop().time() + span_s
        await asyncio.gather(*(self._one(request, end, tally) for _ in range(count)))
        return tally

    async def _one(self, request: bytes, end: float, tally: Tally) -> None:
        now = asyncio.get_running_loop().time
        refusals = 0
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while (began := now()) < end:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            status = int(head.split(" ", 2)[1])
            tally.statuses[status] += 1
            tally.useful += status == 200 and now() - began < PATIENCE_S and now() < end
            refusals = 0 if status == 200 else refusals + 1
            if refusals:
                await asyncio.sleep(random.random() * min(2.0 ** (refusals - 1), LONGEST_BACK_OFF_S))
        writer.close()
        await writer.wait_closed()


@pytest.fixture(scope="module")
def callers(platform: Running, client: Any, sign: Any) -> Callers:
    s3, sagemaker = client("s3"), client("sagemaker")
    s3.create_bucket(Bucket="overload")
    s3.put_object(Bucket="overload", Key="m/slow.tar.gz", Body=package(0.01))
    s3.put_object(Bucket="overload", Key="m/other.tar.gz", Body=package(0))
    container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": "s3://overload/m/"}
    role = "arn:aws:iam::000000000000:role/role"
    sagemaker.create_model(ModelName="overload", ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {"VariantName": "A", "ModelName": "overload", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="overload", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="overload", EndpointConfigName="overload")
    wait = {"Delay": 1, "MaxAttempts": 120}
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="overload", WaiterConfig=wait)
    return Callers(platform, sign)


async def test_a_flood_costs_neither_throughput_nor_neighbours_and_leaves_nothing(callers: Callers) -> None:
    await asyncio.gather(callers.call("slow.tar.gz", 1, 2), callers.call("other.tar.gz", 1, 2))
    peak = await callers.call("slow.tar.gz", 256, SPAN_S)
    flood, other = await asyncio.gather(
        callers.call("slow.tar.gz", 768, SPAN_S), callers.call("other.tar.gz", 2, SPAN_S)
    )
    after = await callers.call("slow.tar.gz", 4, 2)
    for name, tally in {"peak": peak, "flood": flood, "other": other, "after": after}.items():
        print(f"{name}: {tally.useful} useful answers of {dict(tally.statuses)}")
    assert set(peak.statuses) == {200}
    assert set(flood.statuses) == {200, 503}
    assert flood.useful >= 0.9 * peak.useful
    assert set(other.statuses) == {200} and other.useful > flood.useful
    assert set(after.statuses) == {200}
