"""Decides which scalable targets and policies can be, and reads what is registered of them in moto, which takes any."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from botocore.config import Config

from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.errors import UnsupportedOperation, ValidationException
from mme.platform.tracking import COOLDOWN_S, Bounds, TargetTracking

log = logging.getLogger(__name__)

T = TypeVar("T")

METRIC = "SageMakerVariantInvocationsPerInstance"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
_HIGHEST_TARGET = 2.0**360  # TargetTrackingScalingPolicyConfiguration in the API reference


def refuse_policy(parameters: Mapping[str, Any]) -> None:
    """Raise for a PutScalingPolicy on a variant that AWS refuses, or that would be kept and never do anything.

    ValidationException, UnsupportedOperation.
    """
    if parameters.get("ScalableDimension") != DIMENSION:
        return
    kind = parameters.get("PolicyType", "StepScaling")
    if kind != "TargetTrackingScaling":
        raise UnsupportedOperation(
            f"PolicyType {kind} is not supported by the local platform; use TargetTrackingScaling"
        )
    configuration = parameters.get("TargetTrackingScalingPolicyConfiguration", {})
    metric = _metric(configuration) or "a customized metric"
    if metric != METRIC:
        raise UnsupportedOperation(f"scaling by {metric} is not supported by the local platform; use {METRIC}")
    checked(_read_policy, parameters)


def checked(read: Callable[[Mapping[str, Any]], T], parameters: Mapping[str, Any]) -> T:
    """What is read of a request; raises ValidationException for what can't be."""
    try:
        return read(parameters)
    except ValueError as error:
        raise ValidationException(str(error)) from None


@dataclass(frozen=True)
class Target:
    """A scalable target as registered, with its policies."""

    resource_id: str
    endpoint_name: str
    variant_name: str
    bounds: Bounds
    policies: tuple[TargetTracking, ...] = ()


class Registry:
    """What is registered with Application Auto Scaling in moto. Blocking."""

    def __init__(self, config: PlatformConfig, store: ObjectStore) -> None:
        self._config = config
        self._store = store
        self._told: set[str] = set()

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
        """The variants that are scalable targets; a policy of another kind than target tracking is left out.

        So is what AWS would have refused, which is logged once.
        """
        policies: dict[str, list[TargetTracking]] = {}
        tracking = [
            policy
            for policy in self._all("describe_scaling_policies", "ScalingPolicies")
            if _metric(policy.get("TargetTrackingScalingPolicyConfiguration", {})) == METRIC
        ]
        for resource_id, policy in self._sound(_read_policy, tracking):
            policies.setdefault(resource_id, []).append(policy)
        registered = self._sound(read_target, self._all("describe_scalable_targets", "ScalableTargets"))
        return [replace(one, policies=tuple(policies.get(one.resource_id, ()))) for one in registered]

    def registered(self, resource_id: str) -> dict[str, Any]:
        """What is registered of a variant; nothing of one that is no scalable target."""
        targets = self._all("describe_scalable_targets", "ScalableTargets")
        return next((one for one in targets if one["ResourceId"] == resource_id), {})

    def _sound(self, read: Callable[[Mapping[str, Any]], T], rows: Iterable[Mapping[str, Any]]) -> list[T]:
        found = []
        for row in rows:
            try:
                found.append(read(row))
            except ValueError as error:
                told = f"{row.get('PolicyName', 'scalable target')} of {row['ResourceId']} is not heeded: {error}"
                if told not in self._told:
                    self._told.add(told)
                    log.warning("%s", told)
        return found

    def deregister(self, target: Target) -> None:
        """Forget a target and its policies."""
        named = {"ServiceNamespace": "sagemaker", "ResourceId": target.resource_id, "ScalableDimension": DIMENSION}
        for policy in target.policies:
            self._client.delete_scaling_policy(PolicyName=policy.name, **named)
        self._client.deregister_scalable_target(**named)

    def _all(self, operation: str, member: str) -> list[dict[str, Any]]:
        pages = self._client.get_paginator(operation).paginate(ServiceNamespace="sagemaker")
        return [one for one in pages.search(f"{member}[]") if one["ScalableDimension"] == DIMENSION]


def _metric(configuration: Mapping[str, Any]) -> str | None:
    metric: str | None = configuration.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
    return metric


def _read_policy(given: Mapping[str, Any]) -> tuple[str, TargetTracking]:
    """The resource and the policy, as asked for or as registered. Raises ValueError for one that can't be."""
    resource_id: str = given["ResourceId"]
    _names(resource_id)
    configuration = given["TargetTrackingScalingPolicyConfiguration"]
    target_value = configuration["TargetValue"]
    if not 0 < target_value < _HIGHEST_TARGET:
        raise ValueError(f"TargetValue {target_value} can't be met; give a number above 0 and below 2^360")
    return resource_id, TargetTracking(
        given["PolicyName"],
        target_value,
        configuration.get("ScaleOutCooldown", COOLDOWN_S),
        configuration.get("ScaleInCooldown", COOLDOWN_S),
        configuration.get("DisableScaleIn", False),
    )


def read_target(given: Mapping[str, Any]) -> Target:
    """The target, as asked for or as registered, without its policies. Raises ValueError for one that can't be."""
    endpoint_name, variant_name = _names(given["ResourceId"])
    low, high = given.get("MinCapacity"), given.get("MaxCapacity")
    if low is None or high is None:
        raise ValueError("a new scalable target needs both limits; give MinCapacity and MaxCapacity")
    if not 0 <= low <= high:
        raise ValueError(f"MinCapacity {low} with MaxCapacity {high} can't be; give 0 <= MinCapacity <= MaxCapacity")
    suspended = given.get("SuspendedState", {})
    bounds = Bounds(
        max(1, low),  # only inference components can go down to none
        max(1, high),
        suspended.get("DynamicScalingOutSuspended", False),
        suspended.get("DynamicScalingInSuspended", False),
    )
    return Target(given["ResourceId"], endpoint_name, variant_name, bounds)


def _names(resource_id: str) -> tuple[str, str]:
    """The endpoint and the variant that a resource id names. Raises ValueError."""
    match resource_id.split("/"):
        case ["endpoint", endpoint_name, "variant", variant_name] if endpoint_name and variant_name:
            return endpoint_name, variant_name
    raise ValueError(f"ResourceId {resource_id!r} is no variant; write endpoint/NAME/variant/NAME")
