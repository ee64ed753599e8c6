"""Decides what scaling policies may ask for, and reads what is registered with Application Auto Scaling in moto."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.config import Config

from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.errors import UnsupportedOperation
from mme.platform.tracking import COOLDOWN_S, Bounds, TargetTracking

METRIC = "SageMakerVariantInvocationsPerInstance"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"


def refuse_policy(parameters: Mapping[str, Any]) -> None:
    """Raise UnsupportedOperation for a PutScalingPolicy on a variant that would be kept and never do anything."""
    if parameters.get("ScalableDimension") != DIMENSION:
        return
    kind = parameters.get("PolicyType", "StepScaling")
    if kind != "TargetTrackingScaling":
        raise UnsupportedOperation(
            f"PolicyType {kind} is not supported by the local platform; use TargetTrackingScaling"
        )
    configuration = parameters.get("TargetTrackingScalingPolicyConfiguration", {})
    metric = configuration.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType", "a customized metric")
    if metric != METRIC:
        raise UnsupportedOperation(f"scaling by {metric} is not supported by the local platform; use {METRIC}")


@dataclass(frozen=True)
class Target:
    """A scalable target as registered, with its policies."""

    resource_id: str
    endpoint_name: str
    variant_name: str
    bounds: Bounds
    policies: tuple[TargetTracking, ...]


class Registry:
    """What is registered with Application Auto Scaling in moto. Blocking."""

    def __init__(self, config: PlatformConfig, store: ObjectStore) -> None:
        self._config = config
        self._store = store

    @functools.cached_property
    def _client(self) -> Any:
        import botocore.session  # slow, and no start of the platform has to wait for it

        return botocore.session.get_session().create_client(
            "application-autoscaling",
            region_name=self._config.region,
            endpoint_url=self._config.moto_url,
            aws_access_key_id=self._store.access_key,
            aws_secret_access_key=self._store.secret_key,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def targets(self) -> list[Target]:
        """The variants that are scalable targets; a policy of another kind than target tracking is left out."""
        policies: dict[str, list[TargetTracking]] = {}
        for policy in self._all("describe_scaling_policies", "ScalingPolicies"):
            configuration = policy.get("TargetTrackingScalingPolicyConfiguration", {})
            metric = configuration.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
            if metric == METRIC:
                tracking = _target_tracking(policy["PolicyName"], configuration)
                policies.setdefault(policy["ResourceId"], []).append(tracking)
        return [
            _target(target, tuple(policies.get(target["ResourceId"], ())))
            for target in self._all("describe_scalable_targets", "ScalableTargets")
        ]

    def deregister(self, target: Target) -> None:
        """Forget a target and its policies."""
        named = {"ServiceNamespace": "sagemaker", "ResourceId": target.resource_id, "ScalableDimension": DIMENSION}
        for policy in target.policies:
            self._client.delete_scaling_policy(PolicyName=policy.name, **named)
        self._client.deregister_scalable_target(**named)

    def _all(self, operation: str, member: str) -> list[dict[str, Any]]:
        pages = self._client.get_paginator(operation).paginate(ServiceNamespace="sagemaker")
        return [one for one in pages.search(f"{member}[]") if one["ScalableDimension"] == DIMENSION]


def _target_tracking(name: str, configuration: Mapping[str, Any]) -> TargetTracking:
    return TargetTracking(
        name,
        configuration["TargetValue"],
        configuration.get("ScaleOutCooldown", COOLDOWN_S),
        configuration.get("ScaleInCooldown", COOLDOWN_S),
        configuration.get("DisableScaleIn", False),
    )


def _target(registered: Mapping[str, Any], policies: tuple[TargetTracking, ...]) -> Target:
    resource_id = registered["ResourceId"]
    _, endpoint_name, _, variant_name = resource_id.split("/")
    suspended = registered.get("SuspendedState", {})
    bounds = Bounds(
        max(1, registered["MinCapacity"]),  # only inference components can go down to none
        registered["MaxCapacity"],
        suspended.get("DynamicScalingOutSuspended", False),
        suspended.get("DynamicScalingInSuspended", False),
    )
    return Target(resource_id, endpoint_name, variant_name, bounds, policies)
