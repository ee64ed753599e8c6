"""Endpoints created, updated, scaled, called and deleted at random, their containers killed and the platform restarted.

The control plane, hosting and the runtime are real, the containers are the stand-in. Whatever happened, each answer is
one that AWS gives there, and in the end nothing is in use, nothing runs and nothing is left on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mme.platform.config import ObjectStore
from mme.platform.control import Catalog
from mme.platform.endpoints import Endpoints
from mme.platform.errors import AwsError
from mme.platform.hosting import Hosting
from mme.platform.resources import Resources
from mme.platform.runtime import Runtime
from mme.platform.state import State
from mme.processes import marked

ENDPOINTS = ("one", "two")
TARGETS = ("a.tar.gz", "b.tar.gz", "c.tar.gz", "missing.tar.gz")
CONFIGS = {"cached": {}, "uncached": {"MultiModelConfig": {"ModelCacheSetting": "Disabled"}}}
CHANGING = ("Creating", "Updating", "RollingBack", "Deleting")
names = st.sampled_from(ENDPOINTS)
configs = st.sampled_from(sorted(CONFIGS))
is_healthy = st.booleans()


class Machine(RuleBasedStateMachine):
    """The reference: the endpoints there are, each with the configuration that serves it, or None if it has failed.

    A change is waited for by the rule that makes it, but for the calls, kills and refused changes that come meanwhile.
    """

    rig: Any  # of the test's own; see conftest
    root: Path
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.home = self.root / str(self.runs)
        self.config = replace(self.rig.config, home=self.home, folder=self.home / "instances")
        self.runner = asyncio.Runner()
        self.state: State | None = None
        self.serving: dict[str, str | None] = {}
        self.killed: dict[str, set[int]] = {}  # the containers of each endpoint that may not be replaced yet

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def in_time() -> Any:
            async with asyncio.timeout(120):
                return await work

        return self.runner.run(in_time())

    @initialize()
    def begin(self) -> None:
        self.do(self._enter())
        for name, members in CONFIGS.items():
            container = {"Image": "i", "Mode": "MultiModel", "ModelDataUrl": f"s3://packages/{self.rig.prefix}/"}
            self.do(self.call("CreateModel", ModelName=name, PrimaryContainer={**container, **members}))
            variant = {
                "VariantName": "A",
                "ModelName": name,
                "InstanceType": "ml.m5.large",
                "InitialInstanceCount": 1,
                "InitialVariantWeight": 1.0,
            }
            self.do(self.call("CreateEndpointConfig", EndpointConfigName=name, ProductionVariants=[variant]))

        self.create("one", "cached", True)

    async def _enter(self) -> None:
        self.state = State(self.home)
        resources = Resources(self.config, self.state)
        catalog = Catalog(resources)
        self.hosting = Hosting(self.config, self.rig.store, kind=self.rig.kind, health_period_s=0.1)
        await self.hosting.start()
        self.endpoints = Endpoints(resources, catalog, self.hosting)
        self.operations = {**catalog.operations, **self.endpoints.operations}
        self.runtime = Runtime(self.hosting)
        await self.endpoints.recover()

    async def _leave(self) -> None:
        await self.endpoints.close()
        await self.hosting.close()
        self.state.close()

    async def call(self, operation: str, **request: Any) -> dict[str, Any]:
        return await self.operations[operation](request)

    async def fault(self, operation: str, **request: Any) -> str:
        try:
            await self.call(operation, **request)
        except AwsError as error:
            return f"{error.code}: {error.message}"
        return "none"

    async def status(self, name: str) -> str:
        return str((await self.call("DescribeEndpoint", EndpointName=name))["EndpointStatus"])

    async def settled(self, name: str) -> str:
        while (status := await self.status(name)) in CHANGING:
            assert (await self.fault("DeleteEndpoint", EndpointName=name)).startswith(
                "ValidationException: Cannot update in-progress endpoint"
            )
            await self.invoke(name, TARGETS[0], is_changing=True)
            await asyncio.sleep(0.01)
        return status

    async def changed(self, name: str, operation: str, is_healthy: bool, **request: Any) -> str:
        """The status after a change that a healthy container can make, and that an unhealthy one makes fail."""
        await self.replaced(name)
        if not is_healthy:
            self.rig.open("start_fails")
        try:
            await self.call(operation, EndpointName=name, **request)
            return await self.settled(name)
        finally:
            (self.rig.meeting / "start_fails").unlink(missing_ok=True)

    async def invoke(self, name: str, target: str, *, is_changing: bool = False) -> None:
        """Make a call; its answer must be right, or an error that AWS gives in this state of things."""
        headers = {"x-amzn-sagemaker-target-model": target}
        try:
            answer = await self.runtime.invoke_endpoint(name, headers, b"{}")
        except AwsError as error:
            told = f"{error.code}: {error.message}"
            if "not found." in told:
                assert is_changing or self.serving.get(name) is None, told
            elif "Failed to download model data" in told:
                assert target == "missing.tar.gz", told
            else:  # lost with its container, during the call or the load
                assert error.code in ("ModelError", "ServiceUnavailable"), told
                assert is_changing or self.killed.get(name), told
            return
        assert json.loads(answer.body)["answer"] == target
        assert is_changing or self.serving.get(name) is not None

    @rule(name=names, config=configs, is_healthy=is_healthy)
    def create_one(self, name: str, config: str, is_healthy: bool) -> None:
        self.create(name, config, is_healthy)

    def create(self, name: str, config: str, is_healthy: bool) -> None:
        if name in self.serving:
            fault = self.do(self.fault("CreateEndpoint", EndpointName=name, EndpointConfigName=config))
            assert fault.startswith("ValidationException: Cannot create already existing endpoint")
            return
        status = self.do(self.changed(name, "CreateEndpoint", is_healthy, EndpointConfigName=config))
        assert status == ("InService" if is_healthy else "Failed")
        self.serving[name] = config if is_healthy else None

    @rule(name=names, config=configs, is_healthy=is_healthy)
    def update(self, name: str, config: str, is_healthy: bool) -> None:
        if self.serving.get(name) is None:
            fault = self.do(self.fault("UpdateEndpoint", EndpointName=name, EndpointConfigName=config))
            assert fault.startswith("ValidationException: C")  # could not find it, or cannot update a failed one
            return
        status = self.do(self.changed(name, "UpdateEndpoint", is_healthy, EndpointConfigName=config))
        assert status == "InService"
        if is_healthy:
            self.serving[name] = config

    @rule(name=names, count=st.integers(1, 2))
    def scale(self, name: str, count: int) -> None:
        if self.serving.get(name) is None:
            return
        desired = [{"VariantName": "A", "DesiredInstanceCount": count}]
        self.do(self.changed(name, "UpdateEndpointWeightsAndCapacities", True, DesiredWeightsAndCapacities=desired))
        described = self.do(self.call("DescribeEndpoint", EndpointName=name))
        assert described["ProductionVariants"][0]["CurrentInstanceCount"] == count

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name not in self.serving:
            fault = self.do(self.fault("DeleteEndpoint", EndpointName=name))
            assert fault.startswith("ValidationException: Could not find endpoint")
            return
        self.do(self._delete(name))
        del self.serving[name]
        self.killed.pop(name, None)

    async def _delete(self, name: str) -> None:
        await self.call("DeleteEndpoint", EndpointName=name)
        while (await self.fault("DescribeEndpoint", EndpointName=name)) == "none":
            await asyncio.sleep(0.005)

    @rule(name=names, asked=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=6))
    def invoke_at_once(self, name: str, asked: list[str]) -> None:
        self.do(self.replaced(name))
        self.do(self._invoke_all(name, asked))

    @rule(name=names, asked=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=6), which=st.integers(0, 1))
    def kill_meanwhile(self, name: str, asked: list[str], which: int) -> None:
        self.do(self._invoke_all(name, asked, which))

    async def _invoke_all(self, name: str, asked: list[str], kill: int | None = None) -> None:
        calls = [asyncio.create_task(self.invoke(name, target)) for target in asked]
        await asyncio.sleep(0)
        if kill is not None:
            self.kill(name, kill)
        await asyncio.gather(*calls)

    def kill(self, name: str, which: int) -> None:
        endpoint = self.hosting.endpoint(name)
        containers = [one.container for one in endpoint.instances if one.container] if endpoint else []
        if containers:
            pid = containers[which % len(containers)].pid
            self.killed.setdefault(name, set()).add(pid)
            with contextlib.suppress(ProcessLookupError):  # it was killed before, and is still there by name
                os.kill(pid, signal.SIGKILL)

    async def replaced(self, name: str) -> None:
        """Wait until each container that was killed has a successor: from then on no call may be lost."""
        endpoint, killed = self.hosting.endpoint(name), self.killed.pop(name, set())
        for instance in endpoint.instances if endpoint is not None else ():
            while (await instance.ready()).pid in killed:
                await asyncio.sleep(0.01)

    @rule()
    def restart(self) -> None:
        self.do(self._leave())
        assert marked("MME_MARK", str(self.home)) == []
        self.do(self._enter())

    @invariant()
    def the_state_is_what_was_done(self) -> None:
        if self.state is None:
            return
        for name, config in self.serving.items():
            described = self.do(self.call("DescribeEndpoint", EndpointName=name))
            assert described["EndpointStatus"] == ("Failed" if config is None else "InService")
            assert config is None or described["EndpointConfigName"] == config
            assert (self.hosting.endpoint(name) is not None) == (config is not None)
        listed = self.do(self.call("ListEndpoints"))["Endpoints"]
        assert sorted(one["EndpointName"] for one in listed) == sorted(self.serving)

    def teardown(self) -> None:
        try:
            if self.state is not None:
                self.do(self._end())
        finally:
            self.runner.close()

    async def _end(self) -> None:
        for name, config in list(self.serving.items()):
            endpoint = self.hosting.endpoint(name)
            await self.replaced(name)
            for target in TARGETS if endpoint is not None else ():
                await self.invoke(name, target)
            for instance in endpoint.instances if endpoint is not None else ():
                while any(model.change for model in instance.cache.models):
                    await asyncio.sleep(0.005)
                assert instance.in_flight == 0
                assert [model.target for model in instance.cache.models if model.in_use] == []
                if config == "uncached":
                    assert instance.cache.models == [] and instance.cache.disk_bytes == 0
            await self._delete(name)
        while marked("MME_MARK", str(self.home)):  # what an update has left is drained and ends by itself
            await asyncio.sleep(0.02)
        while [folder for folder in self.config.folder.glob("*/*/*") if folder.is_dir()]:
            await asyncio.sleep(0.02)
        await self._leave()
        assert len(asyncio.all_tasks()) == 1


def test_whatever_happens_the_state_is_consistent_and_nothing_is_left(
    rig: Any, object_store: ObjectStore, tmp_path: Path
) -> None:
    for target in TARGETS[:3]:
        rig.put(target)
    Machine.rig, Machine.root = rig, tmp_path / "homes"
    bounded = settings(
        max_examples=10,
        stateful_step_count=16,
        phases=[Phase.generate],
    )
    run_state_machine_as_test(Machine, settings=bounded)
