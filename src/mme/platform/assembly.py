"""Decides how the rooms of the platform are put together, and when it is ready to be called."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import aiohttp

from mme.platform import gateway, proxy
from mme.platform.admission import Admission
from mme.platform.autoscaling import Autoscaler
from mme.platform.backing import Service
from mme.platform.config import RUNNING_FILE, ObjectStore, PlatformConfig
from mme.platform.control import Catalog
from mme.platform.endpoints import Endpoints
from mme.platform.files import Files
from mme.platform.front import Front
from mme.platform.hosting import Hosting
from mme.platform.journal import Journal
from mme.platform.keyring import Keyring
from mme.platform.objects import Objects
from mme.platform.page.app import Page
from mme.platform.page.events import Recorder
from mme.platform.resources import Resources
from mme.platform.runtime import Runtime
from mme.platform.scalable_targets import DIMENSION
from mme.platform.state import State

log = logging.getLogger(__name__)

_GRACE_S = 3  # for calls under way when the process is asked to end


class Platform:
    """Everything of one home, in this process.

    Its environment says what is seldom changed: `MME_IAM` (`enforce` checks policies), `MME_SIGV4` (`off` takes
    any signature), `MME_METRICS_PERIOD_S` and `MME_AUTOSCALING_PERIOD_S` (60).
    """

    def __init__(
        self,
        *,
        home: Path,
        region: str,
        instance_memory_mb: int,
        container: str,
        state: State,
        objects: Service,
        aws: Service,
        keys: tuple[str, str],
    ) -> None:
        self._config = PlatformConfig(
            home=home,
            folder=home / "instances",
            moto_url=aws.url,
            region=region,
            instance_memory_mb=instance_memory_mb,
            container=container,
            metrics_period_s=float(os.environ.get("MME_METRICS_PERIOD_S", "10")),
            autoscaling_period_s=float(os.environ.get("MME_AUTOSCALING_PERIOD_S", "60")),
        )
        self._store = ObjectStore(objects.url, *keys, region)
        self._state = state
        self._objects = objects
        self._aws = aws
        recorder = Recorder()
        self._hosting = Hosting(self._config, self._store, watch=recorder)
        self._runtime = Runtime(self._hosting)
        self._page = Page(self._hosting, self._runtime, recorder, state, keys[1])
        resources = Resources(self._config, state)
        catalog = Catalog(resources)
        self._endpoints = Endpoints(resources, catalog, self._hosting)
        self._hosting.expect(self._endpoints.returning())
        self._operations = {**catalog.operations, **self._endpoints.operations}
        self._scaler = Autoscaler(self._config, self._store, self._operations, self._invocations, self._forget_target)
        self._access = None
        sigv4 = os.environ.get("MME_SIGV4", "")
        if sigv4 not in ("", "off"):
            raise ValueError(f"MME_SIGV4={sigv4} means nothing; use off, or leave it unset to check signatures")
        self._is_checked = not sigv4
        iam = os.environ.get("MME_IAM", "")
        if iam not in ("", "enforce"):
            raise ValueError(f"MME_IAM={iam} means nothing; use enforce, or leave it unset to check no policies")
        if iam:
            from mme.platform.access import Access

            self._access = Access(self._config, self._store)
        self._url = ""

    async def run(self, port: int, ended: asyncio.Event) -> None:
        """Answer on a loopback port until `ended` is set; the port is written under the home when all is ready."""
        listener = socket.create_server(("127.0.0.1", port))
        self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with proxy.new_session() as session:
            front = Front(self._gateway(session))
            await front.listen(listener)
            try:
                await self._hosting.start()
                await self._page.start()
                await _first(ended, self._ready())
                self._scaler.start()
                await ended.wait()
            finally:
                await asyncio.gather(front.close(_GRACE_S), self._page.close())
                await self._scaler.close()
                await self._endpoints.close()
                await self._hosting.close()

    async def _ready(self) -> None:
        await self._objects.up()
        await self._endpoints.recover()
        said = {
            "url": self._url,
            "page_url": self._page.url,
            "pid": os.getpid(),
            "region": self._config.region,
            "instance_memory_mb": self._config.instance_memory_mb,
            "container": self._config.container,
            "access_key": self._store.access_key,
            "secret_key": self._store.secret_key,
        }
        new = self._config.home / f"{RUNNING_FILE}.new"
        new.touch(0o600)
        new.write_text(json.dumps(said))
        new.replace(self._config.home / RUNNING_FILE)
        gc.collect()
        gc.freeze()  # what is here now stays, and no collection needs to look through it while calls wait
        log.info("ready at %s, home %s", self._url, self._config.home)

    def _gateway(self, session: aiohttp.ClientSession) -> gateway.Gateway:
        return gateway.Gateway(
            self._config,
            self._store,
            operations=self._operations,
            runtime=self._runtime,
            admission=Admission(
                self._store, Keyring(self._store, self._aws, session, self._state), is_checked=self._is_checked
            ),
            objects=self._objects,
            kept_objects=Objects(session, self._store, Files(self._config.home / "objects"), self._state),
            aws=self._aws,
            journal=Journal(self._state),
            session=session,
            status=self._status,
            access=self._access,
            scaler=self._scaler,
        )

    def _invocations(self, endpoint_name: str, variant_name: str) -> float | None:
        return self._hosting.total(endpoint_name, variant_name, "InvocationsPerInstance")

    def _forget_target(self, resource_id: str) -> None:
        self._state.forget(f"application-autoscaling/{resource_id}/{DIMENSION}")

    async def _status(self) -> dict[str, Any]:
        services = [self._objects, self._aws]
        return {
            "url": self._url,
            "pid": os.getpid(),
            "home": str(self._config.home),
            "region": self._config.region,
            "services": [{"name": one.name, "pid": one.pid, "port": one.port, "up": one.is_up} for one in services],
            "endpoints": await self._hosting.status(),
        }


async def replay(state: State, moto_url: str, region: str, home: Path) -> None:
    """Make a moto that has just started what the one before was. One that ends meanwhile is started again anyway."""
    buckets = sorted(folder.name for folder in (home / "objects").iterdir() if folder.is_dir())
    try:
        async with proxy.new_session() as session:
            await Journal(state).replay(session, moto_url, region, buckets)
    except aiohttp.ClientError as error:
        log.warning("moto went while its configuration was being repeated: %s", error)


async def _first(ended: asyncio.Event, work: Awaitable[None]) -> None:
    """Wait for the work, or for the end if that comes first."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(ended.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
