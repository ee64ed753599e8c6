"""Endpoints: brought up, swapped, scaled, kept alive, taken down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ended import is_gone

from mme.platform.errors import ModelError, ServiceUnavailable, ValidationError
from mme.platform.hosting import DeploymentFailed, Hosting
from mme.platform.hosting.instance_types import instance_type, memory_budget_mb
from mme.platform.hosting.logs import LOG_FILE
from mme.processes import marked

pytestmark = pytest.mark.anyio


def process_ids(rig: Any) -> list[int]:
    return sorted(process.pid for process in marked("MME_MARK", str(rig.config.home)))


async def test_an_endpoint_that_is_removed_leaves_no_process_and_no_folder(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up(rig.plan(instance_count=2)):
        await rig.ask("a.tar.gz")
        assert len(process_ids(rig)) == 2
        await rig.hosting.remove("shop")
        assert process_ids(rig) == []
        assert not (rig.config.folder / "shop").exists()
        with pytest.raises(ValidationError, match="Endpoint shop of account 000000000000 not found"):
            await rig.ask("a.tar.gz")
        await rig.hosting.remove("shop")


async def test_an_instance_whose_log_finds_no_room_on_the_disk_leaves_no_folder_either(rig: Any) -> None:
    folder = rig.config.folder / "shop" / "AllTraffic" / "0"
    folder.mkdir(parents=True)
    (folder / LOG_FILE).symlink_to("/dev/full")
    async with rig.up():
        assert (folder / LOG_FILE).is_symlink()
        await rig.hosting.deploy(rig.plan())
        async with asyncio.timeout(60):
            while folder.exists():
                await asyncio.sleep(0.01)
        assert len(process_ids(rig)) == 1


async def test_disks_of_instances_that_a_killed_platform_was_taking_away_go_at_the_next_start(rig: Any) -> None:
    fleet = rig.config.folder / "shop" / "AllTraffic"
    for number in ("0", "1", "7"):
        (fleet / number / "models").mkdir(parents=True)
    async with rig.up(rig.plan(instance_count=2)):
        assert sorted(folder.name for folder in fleet.iterdir()) == ["0", "1"]


async def test_an_endpoint_that_is_being_brought_back_is_unavailable_and_not_unknown(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up(rig.plan_named("other")):
        rig.hosting.expect(["shop"])
        with pytest.raises(ServiceUnavailable, match="Endpoint shop is being brought back"):
            await rig.ask("a.tar.gz")
        await rig.hosting.deploy(rig.plan())
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"


async def test_a_container_that_does_not_start_fails_the_deployment_in_awss_words(rig: Any) -> None:
    rig.open("start_fails")
    with pytest.raises(
        DeploymentFailed, match="primary container for production variant AllTraffic did not pass the pi"
    ):
        async with rig.up():
            raise AssertionError("it must not come up")
    assert process_ids(rig) == []


async def test_a_single_model_that_s3_does_not_have_fails_the_deployment(rig: Any) -> None:
    plan = rig.plan(mode="SingleModel", model_data_url=f"s3://packages/{rig.prefix}/none.tar.gz")
    with pytest.raises(DeploymentFailed, match="Failed to download model data for production variant AllTraffic"):
        async with rig.up(plan):
            raise AssertionError("it must not come up")


@pytest.mark.parametrize(
    ("model_data_url", "words"),
    [("", "'' is not an S3 URL"), ("s3:///none/", "'s3:///none/' is not an S3 URL"), ("s3://[/", "Invalid IPv6 URL")],
    ids=["empty", "without a bucket", "unreadable"],
)
@pytest.mark.parametrize("mode", ["SingleModel", "MultiModel"])
async def test_model_data_that_is_nowhere_fails_the_deployment_and_leaves_the_old_fleet_serving(
    rig: Any, mode: str, model_data_url: str, words: str
) -> None:
    rig.put("a.tar.gz")
    async with rig.up():
        with pytest.raises(DeploymentFailed, match="Production variant AllTraffic cannot be started") as failed:
            await rig.hosting.deploy(rig.plan(mode=mode, model_data_url=model_data_url))
        assert words in str(failed.value)
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"
        assert len(process_ids(rig)) == 1


async def test_a_folder_that_cannot_be_made_fails_the_deployment_until_it_can(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up(rig.plan_named("other")):
        in_the_way = rig.config.folder / "shop"
        in_the_way.touch()
        with pytest.raises(DeploymentFailed, match="variant AllTraffic cannot be started: Not a directory$"):
            await rig.hosting.deploy(rig.plan(instance_count=2))
        in_the_way.unlink()
        await rig.hosting.deploy(rig.plan(instance_count=2))
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"


async def test_a_new_fleet_takes_over_when_it_is_healthy_and_calls_under_way_end_on_the_old_one(rig: Any) -> None:
    rig.put("a.tar.gz", invoke_gate="gate")
    async with rig.up():
        old = rig.instance
        under_way = asyncio.create_task(rig.ask("a.tar.gz"))
        await rig.reached("gate")
        await rig.hosting.deploy(rig.plan(environment={"STAND_IN_CAPACITY": "2"}))
        assert rig.instance is not old and old.in_flight == 1
        rig.open("gate")
        old_pid = (await under_way)["pid"]
        assert (await rig.ask("a.tar.gz"))["pid"] != old_pid
        await rig.until(lambda: len(process_ids(rig)) == 1)
        await rig.until(lambda: not old.folder.exists())


async def test_a_fleet_that_does_not_come_up_leaves_the_old_one_serving(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up():
        pid = (await rig.ask("a.tar.gz"))["pid"]
        rig.open("start_fails")
        with pytest.raises(DeploymentFailed):
            await rig.hosting.deploy(rig.plan(instance_count=2))
        assert (await rig.ask("a.tar.gz"))["pid"] == pid
        assert len(process_ids(rig)) == 1


async def test_instances_are_added_and_taken_away_and_weights_changed(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up():
        first = rig.instance
        await rig.hosting.rescale("shop", {"AllTraffic": (None, 3)})
        assert len(rig.instances) == 3 and rig.instance is first
        assert [instance.number for instance in rig.instances] == [0, 1, 2]
        await rig.hosting.rescale("shop", {"AllTraffic": (0.5, 1)})
        assert rig.instances == [first]
        await rig.until(lambda: len(process_ids(rig)) == 1)
        assert (await rig.hosting.status())[0]["variants"][0]["weight"] == 0.5


async def test_a_model_goes_to_the_instance_that_has_it_else_to_the_emptiest(rig: Any) -> None:
    for name in ("a", "b", "c", "d"):
        rig.put(f"{name}.tar.gz")
    async with rig.up(rig.plan(instance_count=2)):
        pids: dict[str, set[int]] = {}
        for _ in range(3):
            for name in ("a", "b", "c", "d"):
                pids.setdefault(name, set()).add((await rig.ask(f"{name}.tar.gz"))["pid"])
        assert all(len(found) == 1 for found in pids.values())
        assert [instance.cache.loaded_count for instance in rig.instances] == [2, 2]


async def test_a_model_whose_calls_pile_up_is_loaded_on_a_second_instance(rig: Any) -> None:
    rig.put("hot.tar.gz", invoke_gate="gate")
    async with rig.up(rig.plan(instance_count=2)):
        calls = [asyncio.create_task(rig.ask("hot.tar.gz")) for _ in range(12)]
        await rig.reached_event("load", 2)
        rig.open("gate")
        assert len({answer["pid"] for answer in await asyncio.gather(*calls)}) == 2


async def test_without_replication_calls_queue_where_the_model_is(rig: Any) -> None:
    rig.put("hot.tar.gz", invoke_gate="gate")
    async with rig.up(rig.plan(instance_count=2), replicate=False):
        calls = [asyncio.create_task(rig.ask("hot.tar.gz")) for _ in range(12)]
        await rig.reached_event("invoke", 12)
        rig.open("gate")
        assert len({answer["pid"] for answer in await asyncio.gather(*calls)}) == 1


async def test_a_killed_container_is_replaced_and_its_models_come_back_on_demand(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up():
        pid = (await rig.ask("a.tar.gz"))["pid"]
        os.kill(pid, signal.SIGKILL)
        again = await rig.ask_until_answered("a.tar.gz")
        assert again["pid"] != pid and again["answer"] == "a.tar.gz"
        assert len(process_ids(rig)) == 1


async def test_a_container_that_hangs_is_replaced(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up(health_period_s=0.05):
        pid = (await rig.ask("a.tar.gz"))["pid"]
        rig.open("ping_fails")
        await rig.until(lambda: rig.instance.container is None)
        (rig.meeting / "ping_fails").unlink()
        assert (await rig.ask("a.tar.gz"))["pid"] != pid


async def test_a_failed_model_is_unloaded_by_the_health_check_so_that_ping_recovers(rig: Any) -> None:
    rig.put("a.tar.gz")
    rig.put("b.tar.gz")
    async with rig.up(health_period_s=0.05):
        pid = (await rig.ask("b.tar.gz"))["pid"]
        await rig.ask("a.tar.gz")
        rig.open("fail_a.tar.gz")
        with pytest.raises(ModelError):
            await rig.ask("a.tar.gz")
        await rig.reached_event("unload", 1)
        assert (await rig.ask("a.tar.gz"))["pid"] == pid, "the container must not have been replaced"


async def test_what_a_container_starts_ends_with_it(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up():
        pid = rig.instance.container.pid
        environment = dict(
            line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in line
        )
        starter = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", START_ORPHAN, env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert starter.stdout is not None
        orphan = int(await starter.stdout.readline())
        os.kill(pid, signal.SIGKILL)
        await rig.until(lambda: is_gone(orphan))
        await starter.wait()


START_ORPHAN = """
import os
pid = os.posix_spawnp("sleep", ["sleep", "600"], os.environ, setsid=True)
print(pid, flush=True)
"""


async def test_a_container_gets_its_budget_and_its_models_environment_but_no_credentials(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    plan = rig.plan(instance_type="ml.m5.large", environment={"SERVING_OPTS": "x", "SAGEMAKER_MULTI_MODEL": "no"})
    async with rig.up(plan, instance_memory_mb=3000):
        text = Path(f"/proc/{rig.instance.container.pid}/environ").read_text()
        environment = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    assert environment["MME_MEMORY_BUDGET_MB"] == "3000"
    assert environment["SAGEMAKER_MULTI_MODEL"] == "true"
    assert environment["SERVING_OPTS"] == "x"
    assert environment["MME_MARK"] == str(rig.config.home)
    assert "AWS_SECRET_ACCESS_KEY" not in environment


async def test_the_status_shows_where_each_model_is(rig: Any) -> None:
    rig.put("a.tar.gz")
    rig.put("b.tar.gz")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "1"})):
        await rig.ask("a.tar.gz")
        await rig.ask("b.tar.gz")
        [endpoint] = await rig.hosting.status()
        json.dumps(endpoint)
    models = endpoint["variants"][0]["instances"][0]["models"]
    assert [(model["target_model"], model["where"]) for model in models] == [
        ("b.tar.gz", "memory"),
        ("a.tar.gz", "disk"),
    ]


async def test_containers_end_with_the_platform_however_it_ends(rig: Any) -> None:
    async with rig.up():
        pass
    assert process_ids(rig) == []


async def test_instances_that_are_being_taken_away_end_with_the_platform_too(rig: Any) -> None:
    async with rig.up(rig.plan(instance_count=2)):
        await rig.hosting.rescale("shop", {"AllTraffic": (None, 1)})
    assert process_ids(rig) == []


async def test_a_container_kind_that_does_not_exist_is_refused_by_name(rig: Any) -> None:
    with pytest.raises(ValueError, match="no container 'podman'; there are: embedded"):
        Hosting(replace(rig.config, container="podman"), rig.store)


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_gib"),
    [
        ("ml.t2.medium", 2, 4), ("ml.m5.large", 2, 8), ("ml.m5.xlarge", 4, 16), ("ml.c5.xlarge", 4, 8),
        ("ml.c5.2xlarge", 8, 16), ("ml.r5.large", 2, 16), ("ml.m5.24xlarge", 96, 384), ("ml.g4dn.xlarge", 4, 16),
    ],
)  # fmt: skip
def test_instance_types_have_awss_figures(name: str, vcpus: int, memory_gib: int) -> None:
    known = instance_type(name)
    assert known is not None and (known.vcpus, known.memory_mb) == (vcpus, memory_gib * 1024)


def test_the_memory_budget_is_the_types_memory_capped() -> None:
    assert memory_budget_mb("ml.t2.medium", 3072) == 3072
    assert memory_budget_mb("ml.t2.medium", 100_000) == 4096
    assert memory_budget_mb("ml.unheard-of.9xlarge", 2048) == 2048
