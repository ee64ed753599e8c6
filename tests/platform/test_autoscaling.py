"""Autoscaling from boto3's registration to the number of running instances: moto, the control plane, hosting, calls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from mme.platform.autoscaling import Autoscaler
from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.containers import Launch
from mme.platform.control import Catalog
from mme.platform.endpoints import Endpoints
from mme.platform.errors import UnsupportedOperation
from mme.platform.hosting import Hosting
from mme.platform.resources import Operation, Resources
from mme.platform.scalable_targets import METRIC, refuse_policy
from mme.platform.state import State

pytestmark = pytest.mark.anyio
PERIOD_S = 0.1
TARGET = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/scaled/variant/AllTraffic",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
TRACKING = {
    "TargetValue": 100.0,
    "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC},
    "ScaleOutCooldown": 600,
    "ScaleInCooldown": 0,
}


class Shop:
    """An endpoint `scaled` of one variant, created through the control plane, with an autoscaler beside it."""

    def __init__(self, config: PlatformConfig, store: ObjectStore, hosting: Hosting) -> None:
        self.hosting = hosting
        self.state = State(config.home)
        resources = Resources(config, self.state)
        catalog = Catalog(resources)
        self.endpoints = Endpoints(resources, catalog, hosting)
        self.operations: dict[str, Operation] = {**catalog.operations, **self.endpoints.operations}
        self.operations["DescribeEndpoint"] = self.describe
        self.calls_per_minute = 0.0
        self.counted_at_s = time.monotonic()
        self.forgotten: list[str] = []
        self.scaler = Autoscaler(config, store, self.operations, self.total, self.forgotten.append)
        self.aws = boto3.client(
            "application-autoscaling",
            endpoint_url=config.moto_url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

    async def describe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As the control plane does, but for an endpoint that finds an error nobody foresaw."""
        if request["EndpointName"] == "cursed":
            raise ZeroDivisionError("by nought")
        return await self.endpoints.operations["DescribeEndpoint"](request)

    def total(self, endpoint_name: str, variant_name: str) -> float | None:
        """Count what the runtime would have counted since the last time, then ask hosting for the sum."""
        endpoint, now_s = self.hosting.endpoint(endpoint_name), time.monotonic()
        calls = self.calls_per_minute * (now_s - self.counted_at_s) / 60
        self.counted_at_s = now_s
        if endpoint is not None:
            variant = endpoint.variants[variant_name]
            variant.meter.add("InvocationsPerInstance", calls / len(variant.instances))
        return self.hosting.total(endpoint_name, variant_name, "InvocationsPerInstance")

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return await self.operations[operation](parameters)

    async def create(self) -> None:
        container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": "s3://packages/none/"}
        await self.call("CreateModel", ModelName="m", PrimaryContainer=container)
        variant = {
            "VariantName": "AllTraffic",
            "ModelName": "m",
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
        }
        await self.call("CreateEndpointConfig", EndpointConfigName="c", ProductionVariants=[variant])
        await self.call("CreateEndpoint", EndpointName="scaled", EndpointConfigName="c")
        await self.reaches("EndpointStatus", "InService")

    def register(self, low: int, high: int, **tracking: Any) -> None:
        self.aws.register_scalable_target(**TARGET, MinCapacity=low, MaxCapacity=high)
        self.aws.put_scaling_policy(
            **TARGET,
            PolicyName="track",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=TRACKING | tracking,
        )

    async def described(self) -> dict[str, Any]:
        endpoint = await self.call("DescribeEndpoint", EndpointName="scaled")
        return endpoint | endpoint.get("ProductionVariants", [{}])[0]

    async def reaches(self, member: str, value: Any) -> None:
        """Wait until DescribeEndpoint shows the value."""
        async with asyncio.timeout(90):
            while (await self.described()).get(member) != value:
                await asyncio.sleep(0.01)

    async def activity(self, status: str, number: int = 1) -> dict[str, Any]:
        """Wait for so many activities, the newest of this status; the newest."""
        async with asyncio.timeout(90):
            while True:
                found = self.scaler.describe_scaling_activities(TARGET)["ScalingActivities"]
                if len(found) >= number and found[0]["StatusCode"] == status:
                    newest: dict[str, Any] = found[0]
                    return newest
                await asyncio.sleep(0.01)


@pytest.fixture
def forget(moto_url: str) -> Iterator[None]:
    """Nothing is registered before and after."""
    yield
    aws = boto3.client(
        "application-autoscaling",
        endpoint_url=moto_url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    for target in aws.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]:
        aws.deregister_scalable_target(**{name: target[name] for name in TARGET})
    for policy in aws.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]:
        aws.delete_scaling_policy(PolicyName=policy["PolicyName"], **{name: policy[name] for name in TARGET})


@pytest.fixture
async def shop(rig: Any, moto_url: str, tmp_path: Path, forget: None) -> AsyncIterator[Shop]:
    config = replace(rig.config, moto_url=moto_url, autoscaling_period_s=PERIOD_S)
    hosting = Hosting(config, rig.store, kind=rig.kind)
    await hosting.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(hosting.close)
        shop = Shop(config, rig.store, hosting)
        stack.callback(shop.state.close)
        stack.push_async_callback(shop.endpoints.close)
        await shop.create()
        shop.scaler.start()
        stack.push_async_callback(shop.scaler.close)
        yield shop


async def test_load_brings_instances_and_silence_takes_them_away(shop: Shop) -> None:
    shop.register(1, 3)
    shop.calls_per_minute = 225  # where 100 are wanted per instance
    out = await shop.activity("Successful")
    assert (await shop.described())["CurrentInstanceCount"] == 3
    endpoint = shop.hosting.endpoint("scaled")
    assert endpoint is not None and len(endpoint.instances) == 3
    assert "-AlarmHigh-" in out["Cause"] and out["Cause"].endswith(" in state ALARM triggered policy track")
    shop.calls_per_minute = 0
    back = await shop.activity("Successful", 2)
    await shop.reaches("CurrentInstanceCount", 1)
    assert back["Description"] == "Setting desired instance count to 1."
    assert back["StatusMessage"] == (
        "Successfully set desired instance count to 1. Change successfully fulfilled by sagemaker."
    )
    assert "-AlarmLow-" in back["Cause"] and back["EndTime"] >= back["StartTime"]


async def test_load_never_brings_more_than_the_maximum(shop: Shop) -> None:
    shop.register(1, 2)
    shop.calls_per_minute = 10_000
    await shop.activity("Successful")
    assert (await shop.described())["CurrentInstanceCount"] == 2


async def test_a_minimum_above_the_capacity_is_met_at_once(shop: Shop) -> None:
    shop.aws.register_scalable_target(**TARGET, MinCapacity=2, MaxCapacity=3)
    activity = await shop.activity("Successful")
    assert activity["Cause"] == "minimum capacity was set to 2"
    assert (await shop.described())["CurrentInstanceCount"] == 2


async def test_a_change_that_fails_is_an_activity_with_the_reason(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.hosting, "_kind", replace(shop.hosting._kind, launch=lambda spec: Launch(["false"])))
    shop.aws.register_scalable_target(**TARGET, MinCapacity=2, MaxCapacity=3)
    activity = await shop.activity("Failed")
    assert activity["StatusMessage"].startswith(
        "Failed to set desired instance count to 2. Reason: The primary container"
    )
    assert (await shop.described())["CurrentInstanceCount"] == 1


async def test_a_deleted_endpoints_targets_are_deregistered(shop: Shop) -> None:
    shop.register(1, 3)
    shop.calls_per_minute = 10_000
    await shop.activity("Successful")
    await shop.call("DeleteEndpoint", EndpointName="scaled")
    async with asyncio.timeout(90):
        while shop.aws.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]:
            await asyncio.sleep(0.05)
    assert shop.aws.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []
    assert shop.forgotten == [TARGET["ResourceId"]]


async def test_what_aws_would_have_refused_keeps_no_other_target_from_being_scaled(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    dimension = {name: TARGET[name] for name in ("ServiceNamespace", "ScalableDimension")}
    limits: list[tuple[str, dict[str, int]]] = [
        ("endpoint/scaled/variant/AllTraffic/more", {"MinCapacity": 1, "MaxCapacity": 2}),
        ("endpoint/scaled/variant/Reversed", {"MinCapacity": 5, "MaxCapacity": 2}),
        ("endpoint/scaled/variant/Unlimited", {}),
        ("endpoint/nowhere/variant/AllTraffic", {"MinCapacity": 1, "MaxCapacity": 2}),
        ("endpoint/cursed/variant/AllTraffic", {"MinCapacity": 1, "MaxCapacity": 2}),
    ]
    for resource_id, given in limits:
        shop.aws.register_scalable_target(ResourceId=resource_id, **dimension, **given)
    shop.register(1, 3)
    for number, target_value in enumerate((0.0, -1.0)):
        shop.aws.put_scaling_policy(
            **TARGET,
            PolicyName=f"idle-{number}",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=TRACKING | {"TargetValue": target_value},
        )
    shop.calls_per_minute = 225
    await shop.activity("Successful")
    assert (await shop.described())["CurrentInstanceCount"] == 3
    said = [record.getMessage() for record in caplog.records]
    for what in (
        "scalable target of endpoint/scaled/variant/AllTraffic/more",
        "scalable target of endpoint/scaled/variant/Reversed",
        "scalable target of endpoint/scaled/variant/Unlimited",
        f"idle-0 of {TARGET['ResourceId']}",
        f"idle-1 of {TARGET['ResourceId']}",
    ):
        assert sum(line.startswith(f"{what} is not heeded: ") for line in said) == 1, what
    [cursed, *_] = [record for record in caplog.records if "endpoint/cursed" in record.getMessage()]
    assert cursed.exc_info is not None and cursed.exc_info[0] is ZeroDivisionError


async def test_activities_are_filtered_and_paged_newest_first(shop: Shop) -> None:
    shop.aws.register_scalable_target(**TARGET, MinCapacity=2, MaxCapacity=3)
    await shop.activity("Successful")
    shop.aws.register_scalable_target(**TARGET, MinCapacity=1, MaxCapacity=1)
    await shop.activity("Successful", 2)
    ask = shop.scaler.describe_scaling_activities
    assert ask({"ServiceNamespace": "ecs"}) == {"ScalingActivities": []}
    assert ask(TARGET | {"ResourceId": "endpoint/other/variant/AllTraffic"}) == {"ScalingActivities": []}
    first = ask({"ServiceNamespace": "sagemaker", "MaxResults": 1})
    second = ask({"ServiceNamespace": "sagemaker", "MaxResults": 1, "NextToken": first["NextToken"]})
    assert "NextToken" not in second
    causes = [page["ScalingActivities"][0]["Cause"] for page in (first, second)]
    assert causes == ["maximum capacity was set to 1", "minimum capacity was set to 2"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"PolicyType": "StepScaling"}, "PolicyType StepScaling is not supported"),
        ({}, "PolicyType StepScaling is not supported"),
        (
            {
                "PolicyType": "TargetTrackingScaling",
                "TargetTrackingScalingPolicyConfiguration": {"TargetValue": 1.0, "CustomizedMetricSpecification": {}},
            },
            "scaling by a customized metric is not supported",
        ),
    ],
)
def test_a_policy_that_would_never_act_is_refused_by_name(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedOperation, match=words):
        refuse_policy(TARGET | parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        TARGET
        | {
            "PolicyName": "track",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": TRACKING,
        },
        {"ScalableDimension": "ecs:service:DesiredCount", "PolicyType": "StepScaling"},
    ],
)
def test_a_policy_that_acts_or_is_none_of_ours_is_let_through(parameters: dict[str, Any]) -> None:
    refuse_policy(parameters)
