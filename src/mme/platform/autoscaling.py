"""Decides when a variant is scaled, and carries it out: target tracking on invocations per instance.

moto keeps what is registered (RegisterScalableTarget, PutScalingPolicy); this reads it each period, takes the metric
from the platform's own counters and scales through UpdateEndpointWeightsAndCapacities. A period stands for the minute
between two datapoints on AWS: a shorter one shows in seconds what takes minutes there. Values stay per minute.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.errors import AwsError, InvalidNextToken, ServiceUnavailable, ValidationException
from mme.platform.resources import Operation
from mme.platform.scalable_targets import DIMENSION, Registry, Target, checked, read_target
from mme.platform.tracking import POINTS_LOW, Change, Decision, decide

log = logging.getLogger(__name__)

_ACTIVITIES_BOUND = 1_000  # the latest are kept, while the platform runs; AWS keeps six weeks
_POLL_S = 0.1  # between two looks at an endpoint that is being scaled


@dataclass
class _Tracked:
    """What is known of a target since the platform saw it first."""

    total: float
    at_s: float
    points: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=POINTS_LOW))
    last: Change | None = None
    is_changing: bool = False


class Autoscaler:
    """Evaluates every registered variant each period. Belongs to one event loop."""

    def __init__(
        self,
        config: PlatformConfig,
        store: ObjectStore,
        operations: Mapping[str, Operation],
        invocations: Callable[[str, str], float | None],
        forget: Callable[[str], None] = lambda resource_id: None,
    ) -> None:
        """`operations` are the control plane's, by name; `invocations(endpoint, variant)` is the variant's
        InvocationsPerInstance summed up since it was deployed, or None if it isn't; `forget` is told the resource id
        of a target that was deregistered with its endpoint."""
        self._period_s = config.autoscaling_period_s
        self._registry = Registry(config, store)
        self._operations = operations
        self._invocations = invocations
        self._forget = forget
        self._tracked: dict[str, _Tracked] = {}
        self._activities: collections.deque[dict[str, Any]] = collections.deque(maxlen=_ACTIVITIES_BOUND)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin, in the running loop. moto may come up later."""
        self._spawn(self._run())

    async def close(self) -> None:
        """Stop. A change of capacity that is under way is left to the control plane."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("autoscaling: the platform failed", exc_info=error)

    async def _run(self) -> None:
        is_away = False
        while True:
            await asyncio.sleep(self._period_s)
            try:
                targets = await asyncio.to_thread(self._registry.targets)
                is_away = False
            except (BotoCoreError, ClientError) as error:
                if not is_away:
                    log.warning("scalable targets cannot be read, nothing is scaled: %s", error)
                is_away = True
                continue
            for gone in self._tracked.keys() - {one.resource_id for one in targets}:
                del self._tracked[gone]
            outcomes = await asyncio.gather(*map(self._evaluate, targets), return_exceptions=True)
            for one, outcome in zip(targets, outcomes, strict=True):
                if isinstance(outcome, Exception):  # which keeps no other target from being scaled
                    log.error("%s is not scaled: the platform failed", one.resource_id, exc_info=outcome)

    async def _evaluate(self, target: Target) -> None:
        try:
            endpoint = await self._operations["DescribeEndpoint"]({"EndpointName": target.endpoint_name})
        except ValidationException:
            if self._tracked.pop(target.resource_id, None) is not None:
                await self._deregister(target)
            return
        tracked = self._observe(target, endpoint["EndpointName"])
        capacity = _instance_count(endpoint, target.variant_name)
        if tracked is None or capacity is None or tracked.is_changing or endpoint["EndpointStatus"] != "InService":
            return
        decision = decide(
            capacity, list(tracked.points), target.policies, target.bounds, tracked.last, time.monotonic()
        )
        if decision.capacity != capacity:
            tracked.is_changing = True
            self._spawn(self._change(target, tracked, capacity, decision))

    async def _deregister(self, target: Target) -> None:
        """As AWS does with the targets of an endpoint that is deleted."""
        log.info("endpoint %s is gone: %s is no longer scaled", target.endpoint_name, target.resource_id)
        self._forget(target.resource_id)
        try:
            await asyncio.to_thread(self._registry.deregister, target)
        except (BotoCoreError, ClientError) as error:
            log.warning("%s cannot be deregistered: %s", target.resource_id, error)

    def _observe(self, target: Target, endpoint_name: str) -> _Tracked | None:
        """Add the datapoint of the period that ends now. A variant without calls has one too: 0, as on AWS.

        `endpoint_name` is as the endpoint was created; a target may be registered in other letters of either case.
        """
        total, now_s = self._invocations(endpoint_name, target.variant_name), time.monotonic()
        if total is None:
            return None
        tracked = self._tracked.setdefault(target.resource_id, _Tracked(total, now_s))
        if now_s > tracked.at_s:
            counted = total - tracked.total if total >= tracked.total else total
            tracked.points.append(60 * counted / (now_s - tracked.at_s))
        tracked.total, tracked.at_s = total, now_s
        return tracked

    async def _change(self, target: Target, tracked: _Tracked, before: int, decision: Decision) -> None:
        """Carry a decision out, and keep the activity as DescribeScalingActivities shows it.

        Afterwards the datapoints start anew, so that none from before the change triggers another one.
        """
        to = f"desired instance count to {decision.capacity}."
        activity = {
            "ActivityId": str(uuid.uuid4()),
            "ServiceNamespace": "sagemaker",
            "ResourceId": target.resource_id,
            "ScalableDimension": DIMENSION,
            "Description": f"Setting {to}",
            "Cause": _cause(target, before, decision),
            "StartTime": time.time(),
            "StatusCode": "InProgress",
            "StatusMessage": f"Successfully set {to} Waiting for change to be fulfilled by sagemaker.",
        }
        self._activities.appendleft(activity)
        try:
            reason = await self._scale(target, decision.capacity)
        except AwsError as error:
            reason = error.message
        finally:
            tracked.is_changing = False
        tracked.points.clear()
        activity["EndTime"] = time.time()
        if reason:
            activity |= {"StatusCode": "Failed", "StatusMessage": f"Failed to set {to} Reason: {reason}"}
        else:
            message = f"Successfully set {to} Change successfully fulfilled by sagemaker."
            activity |= {"StatusCode": "Successful", "StatusMessage": message}
            if decision.policy is not None:
                tracked.last = Change("out" if decision.capacity > before else "in", before, time.monotonic())
        log.info("%s: %s %s", target.resource_id, activity["StatusMessage"], activity["Cause"])

    async def _scale(self, target: Target, capacity: int) -> str:
        """Returns when the endpoint is no longer Updating: "" if the instances are there, else why they are not."""
        desired = {"VariantName": target.variant_name, "DesiredInstanceCount": capacity}
        named = {"EndpointName": target.endpoint_name}
        await self._operations["UpdateEndpointWeightsAndCapacities"](
            {**named, "DesiredWeightsAndCapacities": [desired]}
        )
        while True:
            endpoint = await self._operations["DescribeEndpoint"](named)
            if endpoint["EndpointStatus"] not in ("Updating", "RollingBack"):
                is_there = _instance_count(endpoint, target.variant_name) == capacity
                return (
                    "" if is_there else endpoint.get("FailureReason", f"the endpoint is {endpoint['EndpointStatus']}")
                )
            await asyncio.sleep(_POLL_S)

    async def refuse_target(self, parameters: Mapping[str, Any]) -> None:
        """Raise ValidationException for a RegisterScalableTarget that AWS refuses and moto would keep.

        A target that is registered again keeps what it isn't given anew.
        """
        if parameters["ScalableDimension"] != DIMENSION:
            return
        given = {name: value for name, value in parameters.items() if value is not None}
        if not given.keys() >= {"MinCapacity", "MaxCapacity"}:
            try:
                given = await asyncio.to_thread(self._registry.registered, parameters["ResourceId"]) | given
            except (BotoCoreError, ClientError) as error:
                raise ServiceUnavailable("scalable targets cannot be read; try again later") from error
        wanted = checked(read_target, given)
        endpoint = await self._operations["DescribeEndpoint"]({"EndpointName": wanted.endpoint_name})
        pending = endpoint.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
        names = {one["VariantName"] for one in [*endpoint.get("ProductionVariants", []), *pending]}
        if wanted.variant_name not in names:
            raise ValidationException(
                f'Could not find variant "{wanted.variant_name}" of endpoint "{endpoint["EndpointArn"]}"; '
                f"there are: {', '.join(sorted(names))}"
            )

    def describe_scaling_activities(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """DescribeScalingActivities of Application Auto Scaling, the newest first."""
        filters = ("ServiceNamespace", "ResourceId", "ScalableDimension")
        found = (
            activity
            for activity in self._activities
            if all(parameters.get(name) in (None, activity[name]) for name in filters)
        )
        token = parameters.get("NextToken") or "0"
        if not token.isdecimal():
            raise InvalidNextToken(f"{token!r} is no token of an earlier answer; ask again without it")
        start = int(token)
        size = parameters.get("MaxResults") or 50
        page = list(itertools.islice(found, start, start + size + 1))
        more = {"NextToken": str(start + size)} if len(page) > size else {}
        return {"ScalingActivities": page[:size], **more}


def _instance_count(endpoint: Mapping[str, Any], variant_name: str) -> int | None:
    for variant in endpoint.get("ProductionVariants", ()):
        if variant["VariantName"] == variant_name:
            count: int = variant["CurrentInstanceCount"]
            return count
    return None


def _cause(target: Target, before: int, decision: Decision) -> str:
    if decision.policy is None:
        limit = "minimum" if decision.capacity > before else "maximum"
        return f"{limit} capacity was set to {decision.capacity}"
    level = "High" if decision.capacity > before else "Low"
    alarm = f"TargetTracking-{target.resource_id}-Alarm{level}"
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{alarm}/{decision.policy.name}")
    return f"monitor alarm {alarm}-{number} in state ALARM triggered policy {decision.policy.name}"
