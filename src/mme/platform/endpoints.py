"""Decides the life of an endpoint: which changes are allowed when, and what its status says meanwhile.

    Creating -> InService | Failed         CreateEndpoint
    InService -> Updating -> InService     UpdateEndpoint, UpdateEndpointWeightsAndCapacities
    InService -> Updating -> RollingBack -> InService   with the FailureReason, the old fleet serving all the while
    InService | Failed -> Deleting         DeleteEndpoint
    Failed -> InService                    the next start, if it served before

What an endpoint runs is kept with it, so that it comes back after a restart even if its configuration was deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, ParamSpec, Protocol

from mme.platform import listing
from mme.platform.control import Catalog
from mme.platform.deployments import described, dumped, loaded, retaining
from mme.platform.errors import ValidationException
from mme.platform.hosting.plans import EndpointPlan, HostingFault
from mme.platform.resources import (
    ENDPOINT,
    ENDPOINT_CONFIG,
    Answer,
    Operation,
    Request,
    Resources,
    now,
    present,
    refuse_member,
)
from mme.platform.state import StateUnwritable

log = logging.getLogger(__name__)

P = ParamSpec("P")

_MAX_REASON = 1024  # characters, FailureReason in the SageMaker API reference
_WRITE_AGAIN_S = 0.5  # after the disk was full
_SERVING = ("InService", "Updating", "RollingBack")
_IN_PROGRESS = ("Creating", "Updating", "RollingBack", "Deleting", "SystemUpdating")


class Fleet(Protocol):
    """What the control plane asks of hosting: `mme.platform.hosting.Hosting`."""

    async def deploy(self, plan: EndpointPlan) -> None: ...

    async def rescale(self, endpoint_name: str, desired: Mapping[str, tuple[float | None, int | None]]) -> None: ...

    async def remove(self, endpoint_name: str) -> None: ...

    def is_up(self, endpoint_name: str) -> bool: ...


class Endpoints:
    """The operations on endpoints, and the work that goes on behind them. To be used in one event loop."""

    def __init__(self, resources: Resources, catalog: Catalog, fleet: Fleet) -> None:
        self._resources = resources
        self._state = resources.state
        self._catalog = catalog
        self._fleet = fleet
        self._tasks: set[asyncio.Task[None]] = set()
        self.operations: dict[str, Operation] = {
            "CreateEndpoint": self._create,
            "DescribeEndpoint": self._describe,
            "ListEndpoints": self._list,
            "UpdateEndpoint": self._update,
            "UpdateEndpointWeightsAndCapacities": self._update_weights,
            "DeleteEndpoint": self._delete,
        }

    def returning(self) -> list[str]:
        """Those that `recover` brings back."""
        return [one["EndpointName"] for one in self._state.all(ENDPOINT) if _is_returning(one)]

    async def recover(self) -> None:
        """Bring back what the state holds. Returns when all that was in service is again, or has failed.

        One that served and didn't come back at an earlier start is tried again. What was being created, updated or
        deleted goes on by itself.
        """
        coming_back = []
        for document in self._state.all(ENDPOINT):
            name, status = document["EndpointName"], document["EndpointStatus"]
            if status == "Deleting":
                self._spawn(name, self._remove(name))
            elif status == "Creating":
                self._spawn(name, self._deploy(name))
            elif _is_returning(document):
                coming_back.append(self._spawn(name, self._bring_back(document)))
        if coming_back:
            await asyncio.wait(coming_back)

    async def close(self) -> None:
        """Leave unfinished work to the next start."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _create(self, request: Request) -> Answer:
        name = request["EndpointName"]
        refuse_member(request, "DeploymentConfig", "CreateEndpoint")
        self._resources.refuse_existing(ENDPOINT, name)
        config = self._resources.get(ENDPOINT_CONFIG, request["EndpointConfigName"])
        plan = self._catalog.plan(name, config)
        created = now()
        document = {
            "EndpointName": name,
            "EndpointArn": plan.arn,
            "EndpointConfigName": config["EndpointConfigName"],
            "EndpointStatus": "Creating",
            "CreationTime": created,
            "LastModifiedTime": created,
            "plan": None,
            "pending": dumped(plan, config["EndpointConfigName"], created),
        }
        self._resources.create(ENDPOINT, name, document, request.get("Tags", []))
        self._spawn(name, self._deploy(name))
        return {"EndpointArn": plan.arn}

    async def _describe(self, request: Request) -> Answer:
        document = self._resources.get(ENDPOINT, request["EndpointName"])
        return described(document)

    async def _list(self, request: Request) -> Answer:
        members = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
        found, token = listing.page(self._state.all(ENDPOINT), request, kind="Endpoint", members=members)
        return present({"Endpoints": found, "NextToken": token})

    async def _update(self, request: Request) -> Answer:
        refuse_member(request, "DeploymentConfig", "UpdateEndpoint")
        document = self._changeable(request["EndpointName"])
        config = self._resources.get(ENDPOINT_CONFIG, request["EndpointConfigName"])
        # Reported of AWS: the configuration in use must still be there (hashicorp/terraform-provider-aws#40048).
        self._resources.get(ENDPOINT_CONFIG, document["EndpointConfigName"])
        plan = self._catalog.plan(document["EndpointName"], config)
        if request.get("RetainAllVariantProperties"):
            excluded = {one["VariantPropertyType"] for one in request.get("ExcludeRetainedVariantProperties", ())}
            plan = retaining(plan, loaded(document, "plan"), excluded)
        self._begin(document, dumped(plan, config["EndpointConfigName"], now()))
        self._spawn(plan.name, self._deploy(plan.name))
        return {"EndpointArn": plan.arn}

    async def _update_weights(self, request: Request) -> Answer:
        document = self._changeable(request["EndpointName"])
        plan = loaded(document, "plan")
        variants = {variant.name: variant for variant in plan.variants}
        for desired in request["DesiredWeightsAndCapacities"]:
            variant_name = desired["VariantName"]
            refuse_member(desired, "ServerlessUpdateConfig", "DesiredWeightAndCapacity")
            if variant_name not in variants:
                raise ValidationException(
                    f'Could not find variant "{variant_name}" of endpoint "{plan.arn}"; '
                    f"there are: {', '.join(sorted(variants))}"
                )
            if desired.get("DesiredInstanceCount") == 0:
                raise ValidationException(
                    f'variant "{variant_name}" needs at least 1 instance; DesiredInstanceCount is 0'
                )
            variant = variants[variant_name]
            variants[variant_name] = replace(
                variant,
                weight=desired.get("DesiredWeight", variant.weight),
                instance_count=desired.get("DesiredInstanceCount", variant.instance_count),
            )
        changed = replace(plan, variants=tuple(variants.values()))
        self._begin(document, dumped(changed, document["EndpointConfigName"], document["plan"]["since"]))
        self._spawn(plan.name, self._rescale(plan.name))
        return {"EndpointArn": plan.arn}

    async def _delete(self, request: Request) -> Answer:
        document = self._resources.get(ENDPOINT, request["EndpointName"])
        self._refuse_in_progress(document)
        self._put(document, EndpointStatus="Deleting")
        self._spawn(document["EndpointName"], self._remove(document["EndpointName"]))
        return {}

    def _changeable(self, name: str) -> dict[str, Any]:
        document = self._resources.get(ENDPOINT, name)
        self._refuse_in_progress(document)
        if document["EndpointStatus"] == "Failed":
            raise ValidationException(f'Cannot update failed endpoint "{document["EndpointArn"]}"; delete it')
        return document

    def _refuse_in_progress(self, document: Mapping[str, Any]) -> None:
        """AWS's words for updates and deletes alike (aws/amazon-sagemaker-operator-for-k8s)."""
        if document["EndpointStatus"] in _IN_PROGRESS:
            raise ValidationException(f'Cannot update in-progress endpoint "{document["EndpointArn"]}".')

    def _begin(self, document: dict[str, Any], pending: dict[str, Any]) -> None:
        document.pop("FailureReason", None)
        self._put(document, EndpointStatus="Updating", pending=pending)

    def _put(self, document: Mapping[str, Any], **changes: Any) -> None:
        changed = {**document, "LastModifiedTime": now(), **changes}
        self._state.put(ENDPOINT, changed["EndpointName"], changed)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(name, done))
        return task

    def _finish(self, name: str, task: asyncio.Task[None]) -> None:
        """An error that nobody foresaw must not leave its endpoint in progress for ever."""
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("endpoint %s: the platform failed", name, exc_info=task.exception())
        if self._state.get(ENDPOINT, name) is not None:
            self._fail(name, f"The platform failed: {task.exception()!r}")

    async def _deploy(self, name: str) -> None:
        """Run the pending plan: the first one of an endpoint, or one that takes over from the fleet that serves."""
        plan = loaded(self._resources.get(ENDPOINT, name), "pending")
        try:
            await self._fleet.deploy(plan)
        except HostingFault as error:
            await self._written(self._fail, name, str(error))
        else:
            await self._written(self._succeed, name)

    async def _rescale(self, name: str) -> None:
        plan = loaded(self._resources.get(ENDPOINT, name), "pending")
        try:
            await self._fleet.rescale(name, {one.name: (one.weight, one.instance_count) for one in plan.variants})
        except HostingFault as error:
            await self._written(self._fail, name, str(error))
        else:
            await self._written(self._succeed, name)

    async def _bring_back(self, kept: dict[str, Any]) -> None:
        """After a restart: the fleet that served, and then the change that was under way."""
        name, failure = kept["EndpointName"], ""
        try:
            await self._fleet.deploy(loaded(kept, "plan"))
        except HostingFault as error:
            failure = str(error)
        if self._state.get(ENDPOINT, name) != kept:
            return  # what was asked for meanwhile decides
        if failure:
            await self._written(self._fail, name, failure)
        elif kept["pending"] is not None:
            self._spawn(name, self._deploy(name))
        elif kept["EndpointStatus"] == "Failed":
            del kept["FailureReason"]
            await self._written(self._put, kept, EndpointStatus="InService")

    async def _remove(self, name: str) -> None:
        await self._fleet.remove(name)
        await self._written(self._resources.delete, ENDPOINT, name)

    async def _written(self, change: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Make a change of the state for which nobody waits, again and again until the disk takes it."""
        while True:
            try:
                return change(*arguments, **named)
            except StateUnwritable as error:
                log.error("%s", error)
                await asyncio.sleep(_WRITE_AGAIN_S)

    def _succeed(self, name: str) -> None:
        document = self._resources.get(ENDPOINT, name)
        pending = document["pending"]
        self._put(
            document, EndpointStatus="InService", EndpointConfigName=pending["config"], plan=pending, pending=None
        )

    def _fail(self, name: str, reason: str) -> None:
        """A change has failed: a fleet that is up serves on; without one the endpoint is Failed."""
        document = self._resources.get(ENDPOINT, name)
        log.warning("endpoint %s: %s", name, reason)
        reason = reason[:_MAX_REASON]
        if document["plan"] is None or not self._fleet.is_up(name):
            self._put(document, EndpointStatus="Failed", FailureReason=reason, pending=None)
            return
        self._put(document, EndpointStatus="RollingBack", FailureReason=reason)
        self._put(document, EndpointStatus="InService", FailureReason=reason, pending=None)


def _is_returning(document: Mapping[str, Any]) -> bool:
    """Whether an endpoint serves, or served before."""
    status = document["EndpointStatus"]
    return status in _SERVING or (status == "Failed" and document["plan"] is not None)
