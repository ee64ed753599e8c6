"""Decides which endpoints run: brings fleets up, swaps and scales them, takes them down, and counts what they do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.containers import ContainerKind, ContainerStartFailed, kind_named
from mme.platform.hosting.fleet import HEALTH_PERIOD_S, Instance, failure_reason, remove_folder
from mme.platform.hosting.happenings import Happening, Place, Watch, unwatched
from mme.platform.hosting.logs import log_group
from mme.platform.hosting.metrics import INSTANCES, INVOCATIONS, Meter
from mme.platform.hosting.plans import EndpointPlan, HostingFault, VariantPlan
from mme.platform.hosting.publisher import Publisher
from mme.platform.hosting.routing import Endpoint, Variant
from mme.platform.hosting.store import PackageStore

log = logging.getLogger(__name__)


class Hosting:
    """All endpoints of a platform. Belongs to one event loop, which must be the main thread's."""

    def __init__(
        self,
        config: PlatformConfig,
        store: ObjectStore,
        *,
        kind: ContainerKind | None = None,
        health_period_s: float = HEALTH_PERIOD_S,
        replicate: bool = True,
        watch: Watch = unwatched,
    ) -> None:
        self.config = config
        self._store = store
        self._kind = kind or kind_named(config.container)
        self._health_period_s = health_period_s
        self._replicate = replicate
        self.watch = watch
        self._publisher = Publisher(config, store)
        self._packages: PackageStore | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._meters: dict[tuple[str, str], Meter] = {}
        self._changes: dict[str, asyncio.Lock] = {}
        self._instances: dict[Path, Instance] = {}  # all there are, also those that start or retire, by their folders
        self._coming_back: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def start(self) -> None:
        """To be awaited once, in the running loop, before anything else."""
        if self._kind.sweep is not None:
            await asyncio.to_thread(self._kind.sweep, self.config.home)
        self._packages = PackageStore(self._store)
        self._publisher.start()
        self._spawn(self._measure(), self._tasks)

    async def close(self) -> None:
        """Stop every container and send what is left of metrics and logs."""
        self._is_closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._retiring, return_exceptions=True)
        await _all(instance.stop() for instance in self._instances.values())
        self._collect()
        self._endpoints.clear()
        await asyncio.to_thread(self._publisher.close)
        if self._packages is not None:
            await self._packages.close()

    def _spawn(self, work: Any, tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Those that are deployed."""
        return list(self._endpoints.values())

    @property
    def packages(self) -> PackageStore:
        """Where the packages are read from, once this has started."""
        assert self._packages is not None, "Hosting.start() comes first"
        return self._packages

    def endpoint(self, endpoint_name: str) -> Endpoint | None:
        """The endpoint if it is deployed."""
        return self._endpoints.get(endpoint_name)

    def is_up(self, endpoint_name: str) -> bool:
        return endpoint_name in self._endpoints

    def expect(self, endpoint_names: Iterable[str]) -> None:
        """These are brought back after a restart: until each has been deployed, or has failed, it is coming back."""
        self._coming_back.update(endpoint_names)

    def is_coming_back(self, endpoint_name: str) -> bool:
        return endpoint_name in self._coming_back

    def total(self, endpoint_name: str, variant_name: str, metric: str) -> float | None:
        """The sum of all values of a variant's metric since it was first deployed; None if it isn't deployed."""
        meter = self._meters.get((endpoint_name, variant_name))
        return None if meter is None else meter.total(metric)

    async def deploy(self, plan: EndpointPlan) -> None:
        """Bring an endpoint up; returns when every container answers /ping.

        One that is up already keeps serving until the new fleet is healthy, then the new one takes over and the old
        one goes when its calls are done. Raises DeploymentFailed and leaves everything as it was.
        """
        async with self._lock(plan.name):
            try:
                variants = await self._build(plan.name, plan.variants)
            finally:
                self._coming_back.discard(plan.name)
            old = self._endpoints.get(plan.name)
            self._endpoints[plan.name] = Endpoint(plan.name, variants)
            count = sum(len(variant.instances) for variant in variants.values())
            self.watch(Place(plan.name), Happening("deployed", detail=_instances(count)))
            if old is not None:
                self._spawn(self._retire(old.instances), self._retiring)
            else:
                await self._remove_what_was_retiring(plan.name)

    async def _remove_what_was_retiring(self, endpoint_name: str) -> None:
        """Remove the disks of instances that a platform which was killed did not get to take away."""
        for folder in (self.config.folder / endpoint_name).glob("*/*"):
            if folder not in self._instances:
                await remove_folder(folder)

    async def rescale(self, endpoint_name: str, desired: Mapping[str, tuple[float | None, int | None]]) -> None:
        """Give variants another weight, another number of instances, or both; None leaves it as it is.

        Returns when new instances answer. Raises DeploymentFailed and leaves everything as it was.
        """
        async with self._lock(endpoint_name):
            endpoint = self._endpoints[endpoint_name]
            leaving: list[Instance] = []
            new: list[Instance] = []
            changed: dict[str, Variant] = {}
            for name, (weight, count) in desired.items():
                old = endpoint.variants[name]
                plan = replace(
                    old.plan,
                    weight=old.weight if weight is None else weight,
                    instance_count=len(old.instances) if count is None else count,
                )
                missing = plan.instance_count - len(old.instances)
                try:
                    added = await self._start_instances(endpoint_name, plan, max(0, missing), old.meter)
                except BaseException:
                    await self._discard(new)
                    raise
                new += added
                kept = old.instances if missing >= 0 else old.instances[: plan.instance_count]
                leaving += old.instances[len(kept) :]
                changed[name] = Variant(plan, old.meter, (*kept, *added), replicate=self._replicate)
            self._endpoints[endpoint_name] = Endpoint(endpoint_name, endpoint.variants | changed)
            for name, variant in changed.items():
                detail = f"{_instances(len(variant.instances))}, weight {variant.weight:g}"
                self.watch(Place(endpoint_name, name), Happening("deployed", detail=detail))
            if leaving:
                self._spawn(self._retire(leaving), self._retiring)

    async def remove(self, endpoint_name: str) -> None:
        """Take an endpoint down, with its instances' disks. Calls under way get the error of a container that went."""
        async with self._lock(endpoint_name):
            endpoint = self._endpoints.pop(endpoint_name, None)
            await self._discard(endpoint.instances if endpoint is not None else [])
            self.watch(Place(endpoint_name), Happening("deleted"))
            self._collect()
            for key in [key for key in self._meters if key[0] == endpoint_name]:
                del self._meters[key]
            self._publisher.forget(log_group(endpoint_name))
            folder = self.config.folder / endpoint_name
            if not any(one.is_relative_to(folder) for one in self._instances):
                await remove_folder(folder)

    async def status(self) -> list[dict[str, Any]]:
        """Endpoints, variants, instances and models, with what the models cost just now."""
        await self.refresh()
        return [
            {"name": endpoint.name, "variants": [variant.describe() for variant in endpoint.variants.values()]}
            for endpoint in self._endpoints.values()
        ]

    async def refresh(self) -> None:
        """Ask every container what its models cost just now."""
        await _all(instance.refresh() for endpoint in self._endpoints.values() for instance in endpoint.instances)

    async def flush(self, timeout_s: float = 5) -> bool:
        """Send metrics and log lines now; whether all of it arrived."""
        self._collect()
        return await asyncio.to_thread(self._publisher.flush, timeout_s)

    def _lock(self, endpoint_name: str) -> asyncio.Lock:
        return self._changes.setdefault(endpoint_name, asyncio.Lock())

    async def _build(self, endpoint_name: str, plans: Iterable[VariantPlan]) -> dict[str, Variant]:
        plans = tuple(plans)
        meters = [
            self._meters.setdefault((endpoint_name, plan.name), Meter(INVOCATIONS, endpoint_name, plan.name))
            for plan in plans
        ]
        started = await asyncio.gather(
            *(
                self._start_instances(endpoint_name, plan, plan.instance_count, meter)
                for plan, meter in zip(plans, meters, strict=True)
            ),
            return_exceptions=True,
        )
        failed = next((outcome for outcome in started if isinstance(outcome, BaseException)), None)
        if failed is not None:
            up = [instance for outcome in started if isinstance(outcome, list) for instance in outcome]
            await self._discard(up)
            raise failed
        return {
            plan.name: Variant(plan, meter, instances, replicate=self._replicate)
            for plan, meter, instances in zip(plans, meters, started, strict=True)
            if isinstance(instances, list)
        }

    def _instance(self, endpoint_name: str, plan: VariantPlan, meter: Meter) -> Instance:
        variant_folder = self.config.folder / endpoint_name / plan.name
        number = next(n for n in itertools.count() if variant_folder / str(n) not in self._instances)
        instance = Instance(
            endpoint_name,
            plan,
            number,
            variant_folder / str(number),
            self._kind,
            self.config,
            self.packages,
            self._publisher,
            meter,
            self._health_period_s,
            self.watch,
        )
        self._instances[instance.folder] = instance
        return instance

    async def _start_instances(self, endpoint_name: str, plan: VariantPlan, count: int, meter: Meter) -> list[Instance]:
        instances: list[Instance] = []

        async def start() -> None:
            instances.append(self._instance(endpoint_name, plan, meter))
            await instances[-1].start()

        outcomes = await asyncio.gather(*(start() for _ in range(count)), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                await self._discard(instances)
                if isinstance(outcome, (ContainerStartFailed, HostingFault, ValueError, OSError)):
                    log.warning("endpoint %s, variant %s: %s", endpoint_name, plan.name, outcome)
                    raise failure_reason(plan.name, outcome) from outcome
                raise outcome
        return instances

    async def _discard(self, instances: list[Instance]) -> None:
        try:
            await _all(instance.stop() for instance in instances)
        finally:
            for instance in instances:
                await remove_folder(instance.folder)
                self._instances.pop(instance.folder, None)
                with contextlib.suppress(OSError):  # others are in there
                    instance.folder.parent.rmdir()
                    instance.folder.parent.parent.rmdir()

    async def _retire(self, instances: list[Instance]) -> None:
        """Stop instances that get no new calls when the ones under way are done, at the latest when those time out."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.config.invoke_timeout_s
        while any(one.in_flight for one in instances) and loop.time() < deadline and not self._is_closing:
            await asyncio.sleep(0.05)
        await self._discard(instances)

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(self.config.metrics_period_s)
            figures = await asyncio.to_thread(self._utilization)
            self._collect()
            now = datetime.datetime.now(datetime.UTC)
            for meter in figures:
                self._publisher.metrics(INSTANCES, meter.drain(now))

    def _utilization(self) -> list[Meter]:
        meters = []
        for endpoint in list(self._endpoints.values()):
            for variant in endpoint.variants.values():
                meter = Meter(INSTANCES, endpoint.name, variant.plan.name)
                for instance in variant.instances:
                    for name, value in instance.utilization().items():
                        meter.add(name, value)
                meters.append(meter)
        return meters

    def _collect(self) -> None:
        """Hand what was counted to the publisher."""
        now = datetime.datetime.now(datetime.UTC)
        for endpoint in self._endpoints.values():
            for variant in endpoint.variants.values():
                if variant.plan.is_multi_model:
                    for instance in variant.instances:
                        variant.meter.add("LoadedModelCount", instance.cache.loaded_count)
        for meter in self._meters.values():
            self._publisher.metrics(INVOCATIONS, meter.drain(now))


def _instances(count: int) -> str:
    return f"{count} instance{'' if count == 1 else 's'}"


async def _all(work: Iterable[Any]) -> None:
    """Run all of it to the end, then raise the first failure."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
