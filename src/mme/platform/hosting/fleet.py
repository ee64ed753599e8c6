"""Decides how an instance is kept alive: its container, started, watched and replaced."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import psutil

from mme.platform.config import MARK, PlatformConfig
from mme.platform.containers import Container, ContainerKind, ContainerSpec, ContainerStartFailed
from mme.platform.hosting.cache import ModelCache
from mme.platform.hosting.disk import Disk
from mme.platform.hosting.happenings import Happening, Place, Watch
from mme.platform.hosting.instance_types import instance_type, memory_budget_mb
from mme.platform.hosting.logs import InstanceLog
from mme.platform.hosting.metrics import Meter
from mme.platform.hosting.models import describe
from mme.platform.hosting.plans import DeploymentFailed, HostingFault, PackageUnusable, VariantPlan
from mme.platform.hosting.publisher import Publisher
from mme.platform.hosting.store import PackageStore, S3Url

log = logging.getLogger(__name__)

HEALTH_PERIOD_S = 5.0  # SageMaker asks GET /ping and GET /models about this often (pytorch/serve#1028)
_UNHEALTHY_LIMIT = 3  # so many failures in a row and the container is replaced
_LONGEST_BACKOFF_S = 30.0


class Instance:
    """One container with its disk and its budget. Replaces the container when it dies or answers no longer."""

    def __init__(
        self,
        endpoint_name: str,
        plan: VariantPlan,
        number: int,
        folder: Path,
        kind: ContainerKind,
        config: PlatformConfig,
        packages: PackageStore,
        publisher: Publisher,
        meter: Meter,
        health_period_s: float,
        watch: Watch,
    ) -> None:
        self.id = f"i-{secrets.token_hex(8)}"
        self.number = number
        self.folder = folder
        self.in_flight = 0
        self.memory_used_mb: float | None = None
        """What the container took when it was last asked, its fork servers included; None where it can't say."""
        self._plan = plan
        self._kind = kind
        self._config = config
        self._health_period_s = health_period_s
        self._packages = packages
        self.memory_mb = memory_budget_mb(plan.instance_type, config.instance_memory_mb)
        self._disk_bytes = config.instance_disk_mb * 2**20
        self._container: Container | None = None
        self._is_ready = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._cpu_before: tuple[float, float] | None = None
        known = instance_type(plan.instance_type)
        self._tell = functools.partial(watch, Place(endpoint_name, plan.name, number))
        self.cache = ModelCache(
            Disk(folder / "models", packages),
            packages,
            S3Url.parse(plan.model_data_url),
            self,
            is_cached=plan.model_cache == "Enabled",
            disk_budget_bytes=self._disk_bytes,
            load_timeout_s=config.load_timeout_s,
            loads_at_once=max(2, known.vcpus if known else 2),
            observe=meter.add,
            tell=self._tell,
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._log = InstanceLog(endpoint_name, plan.name, self.id, folder, publisher)

    @property
    def container(self) -> Container | None:
        """The healthy container, or None while there is none."""
        return self._container

    def waiting(self, target: str | None) -> int:
        """How many calls of a model, or of the only one, are here and unanswered."""
        if target is None:
            return self.in_flight
        model = self.cache.holds(target)
        return 0 if model is None else model.in_use

    async def ready(self) -> Container:
        """The healthy container; waits while it is being replaced."""
        while self._container is None:
            await self._is_ready.wait()
        return self._container

    async def settle(self, container: Container) -> None:
        """Wait until it is known whether a container whose connection broke still lives, so that no call follows."""
        if not await container.ping():
            await asyncio.wait({container.exited}, timeout=1)

    async def start(self) -> None:
        """Bring the instance up. Raises ContainerStartFailed, or HostingFault for a single model that isn't there."""
        if self._plan.is_multi_model:
            await self.cache.restore()
        else:
            at = S3Url.parse(self._plan.model_data_url)
            disk = Disk(self.folder / "single", self._packages)
            await asyncio.to_thread(disk.scan)
            await disk.fetch("0", "", at, reserve=self._fits_alone)
        await self._start_container()
        self._watching = asyncio.create_task(self._watch())

    async def _fits_alone(self, size_bytes: int) -> None:
        if size_bytes > self._disk_bytes:
            url = self._plan.model_data_url
            raise PackageUnusable(url, f"it takes {size_bytes} bytes, the disk has {self._disk_bytes}")

    async def _start_container(self) -> None:
        environment = {**self._plan.environment, "AWS_REGION": self._config.region}
        if self._plan.is_multi_model:
            environment["SAGEMAKER_MULTI_MODEL"] = "true"
        spec = ContainerSpec(
            f"{self.id}-{secrets.token_hex(4)}",
            self.folder,
            environment,
            own={
                MARK: str(self._config.home),
                "MME_MEMORY_BUDGET_MB": str(self.memory_mb),
                "MME_NURSERY_DIR": str(self._config.folder / "nursery"),
            },
            model_store=None if self._plan.is_multi_model else self.folder / "single" / "0" / "model",
            image=self._plan.image,
            memory_mb=self.memory_mb,
        )
        self._container = await Container.start(self._kind, spec, on_record=self._log.write)
        self._is_ready.set()

    async def stop(self) -> None:
        """End the container and all that it started. The disk stays."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.cache.close()
        container, self._container = self._container, None
        if container is not None:
            await container.stop()
        self._log.close()

    async def _watch(self) -> None:
        """Keep a healthy container here until `stop`."""
        while True:
            container = await self.ready()
            reason = await self._unhealthy(container)
            log.warning("instance %s of %s: its container is replaced: %s", self.id, self._plan.name, reason)
            self._log.write(f"the container is replaced: {reason}")
            self._tell(Happening("replaced", detail=reason))
            self._container = None
            self._is_ready.clear()
            self.cache.container_lost()
            await container.stop(grace_s=0)
            backoff_s = 0.0
            while self._container is None:
                await asyncio.sleep(backoff_s)
                backoff_s = min(max(2 * backoff_s, 0.5), _LONGEST_BACKOFF_S)
                try:
                    await self._start_container()
                except ContainerStartFailed as error:
                    log.warning("instance %s: %s; tried again in %.1f s", self.id, error, backoff_s)
                    self._log.write(str(error))

    async def _unhealthy(self, container: Container) -> str:
        """Returns when the container has to be replaced, with the reason."""
        failures = 0
        while failures < _UNHEALTHY_LIMIT:
            done, _ = await asyncio.wait({container.exited}, timeout=self._health_period_s)
            if done:
                return f"it ended with exit code {container.exited.result()}"
            asked_at = time.monotonic()
            is_healthy = await container.ping()
            statuses = await container.models() if self._plan.is_multi_model else {}
            if self._plan.is_multi_model:
                self.cache.learn(statuses, asked_at)
                await self._cure()
            failures = 0 if is_healthy and statuses is not None else failures + 1
        return f"GET /ping or GET /models failed {failures} times in a row"

    async def _cure(self) -> None:
        try:
            await self.cache.cure()
        except HostingFault as error:
            log.warning("instance %s: %s", self.id, error)

    async def refresh(self) -> None:
        """Ask the container what its models cost just now."""
        if self._container is not None and self._plan.is_multi_model:
            figures = await self._container.figures()
            self.cache.show(figures)
            self.memory_used_mb = (figures or {}).get("memory", {}).get("used_mb")

    def describe(self) -> dict[str, Any]:
        """The instance as `mme status` shows it."""
        return {
            "number": self.number,
            "id": self.id,
            "pid": self._container.pid if self._container else None,
            "memory_budget_mb": self.memory_mb,
            "memory_used_mb": self.memory_used_mb,
            "disk_mb": round(self.cache.disk_bytes / 2**20, 1),
            "in_flight": self.in_flight,
            "models": [describe(model) for model in self.cache.models],
        }

    def utilization(self) -> dict[str, float]:
        """Percent of CPU, memory and disk in use. Reads /proc: not for the event loop."""
        container = self._container
        if container is None:
            return {}
        memory_bytes, cpu = 0, 0.0
        try:
            top = psutil.Process(container.pid)
            processes = [top, *top.children(recursive=True)]
        except psutil.Error:
            return {}
        for process in processes:
            try:
                memory_bytes += process.memory_info().rss - getattr(process.memory_info(), "shared", 0)
                cpu += sum(process.cpu_times()[:2])
            except psutil.Error:
                continue  # ended meanwhile
        now = time.monotonic()
        before, self._cpu_before = self._cpu_before, (now, cpu)
        figures = {
            "MemoryUtilization": 100 * memory_bytes / (self.memory_mb * 2**20),
            "DiskUtilization": 100 * self.cache.disk_bytes / self._disk_bytes,
        }
        if before is not None and now > before[0]:
            figures["CPUUtilization"] = max(0.0, 100 * (cpu - before[1]) / (now - before[0]))
        return figures


def failure_reason(variant_name: str, error: Exception) -> DeploymentFailed:
    """AWS's FailureReason for an instance that can't be brought up; pytorch/serve#397, and ours for all else."""
    if isinstance(error, ContainerStartFailed):
        return DeploymentFailed(
            f"The primary container for production variant {variant_name} did not pass the ping health check. "
            f"Please check CloudWatch logs for this endpoint."
        )
    if isinstance(error, HostingFault):
        return DeploymentFailed(f"Failed to download model data for production variant {variant_name}: {error}")
    reason = getattr(error, "strerror", None) or error  # without the path on this machine
    return DeploymentFailed(f"Production variant {variant_name} cannot be started: {reason}")


async def remove_folder(folder: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
