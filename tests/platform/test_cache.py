"""The model cache of an instance: what is fetched, loaded, evicted, and kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mme.platform.errors import InternalDependencyException, ModelError, ServiceUnavailable, ValidationError
from mme.platform.hosting.models import Where
from mme.platform.hosting.store import PackageVersion

pytestmark = pytest.mark.anyio


async def test_fifty_calls_at_once_load_a_model_once(rig: Any) -> None:
    rig.put("lr.tar.gz", load_gate="gate")
    async with rig.up():
        calls = [asyncio.create_task(rig.ask("lr.tar.gz")) for _ in range(50)]
        await rig.reached("gate")
        rig.open("gate")
        answers = await asyncio.gather(*calls)
    assert {answer["answer"] for answer in answers} == {"lr.tar.gz"}
    assert len(rig.events("load")) == 1


async def test_models_load_side_by_side(rig: Any) -> None:
    rig.put("a.tar.gz", load_gate="a")
    rig.put("b.tar.gz", load_gate="b")
    async with rig.up():
        calls = [asyncio.create_task(rig.ask(target)) for target in ("a.tar.gz", "b.tar.gz")]
        await rig.reached("a")
        await rig.reached("b")
        rig.open("a")
        rig.open("b")
        await asyncio.gather(*calls)


async def test_without_memory_the_least_recently_used_model_leaves(rig: Any) -> None:
    for name in ("a", "b", "c", "d"):
        rig.put(f"{name}.tar.gz")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "3"})):
        for name in ("a", "b", "c", "a", "d"):
            await rig.ask(f"{name}.tar.gz")
        places = {name: rig.where(f"{name}.tar.gz") for name in ("a", "b", "c", "d")}
    assert places == {"a": "memory", "b": "disk", "c": "memory", "d": "memory"}
    assert len(rig.events("unload")) == 1


async def test_as_many_models_leave_as_a_big_one_needs(rig: Any) -> None:
    for name in ("a", "b", "c"):
        rig.put(f"{name}.tar.gz")
    rig.put("big.tar.gz", size=2)
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "3"})):
        for name in ("a", "b", "c", "big"):
            await rig.ask(f"{name}.tar.gz")
        assert [rig.where(f"{name}.tar.gz") for name in ("a", "b", "c", "big")] == ["disk", "disk", "memory", "memory"]


async def test_a_model_in_use_never_leaves(rig: Any) -> None:
    rig.put("busy.tar.gz", invoke_gate="gate")
    rig.put("next.tar.gz")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "1"})):
        busy = asyncio.create_task(rig.ask("busy.tar.gz"))
        await rig.reached("gate")
        waiting = asyncio.create_task(rig.ask("next.tar.gz"))
        await rig.reached_event("load", 2)
        assert rig.events("unload") == []
        rig.open("gate")
        assert (await busy)["answer"] == "busy.tar.gz"
        assert (await waiting)["answer"] == "next.tar.gz"


async def test_a_model_that_never_fits_gets_the_containers_507_and_an_empty_instance_stays_usable(rig: Any) -> None:
    rig.put("a.tar.gz")
    rig.put("huge.tar.gz", size=9)
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "2"})):
        await rig.ask("a.tar.gz")
        with pytest.raises(ModelError, match="No enough memory to load the model") as caught:
            await rig.ask("huge.tar.gz")
        assert caught.value.members["OriginalStatusCode"] == 507
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"


@pytest.mark.parametrize(("options", "left"), [({}, "disk"), ({"instance_disk_mb": 1}, "s3")])
async def test_an_eviction_ends_though_the_load_that_it_was_for_ran_out_of_time(
    rig: Any, options: dict[str, int], left: str
) -> None:
    ballast = "".join(chr(33 + (n * n + n // 7) % 90) for n in range(600_000))
    rig.put("a.tar.gz", unload_gate="gate", ballast=ballast)
    rig.put("b.tar.gz", ballast=ballast)
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "1"}), **options):
        await rig.ask("a.tar.gz")
        with out_of_time(rig):
            with pytest.raises(ModelError, match="b.tar.gz was not loaded within"):
                await rig.ask("b.tar.gz")
        rig.open("gate")
        async with asyncio.timeout(60):
            assert (await rig.ask("b.tar.gz"))["answer"] == "b.tar.gz"
        assert rig.where("a.tar.gz") == left


async def test_a_reload_that_runs_out_of_time_at_its_unload_keeps_no_other_model_out(rig: Any) -> None:
    rig.put("a.tar.gz", unload_gate="gate")
    rig.put("b.tar.gz")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "1"})):
        await rig.ask("a.tar.gz")
        rig.open("stop_a.tar.gz")
        with out_of_time(rig):
            reloading = asyncio.create_task(rig.ask("a.tar.gz"))
            await rig.reached("gate")
            await rig.until(lambda: rig.where("a.tar.gz") != "unloading")
        rig.open("gate")
        with pytest.raises(ModelError, match="a.tar.gz was not loaded within"):
            await reloading
        async with asyncio.timeout(60):
            assert (await rig.ask("b.tar.gz"))["answer"] == "b.tar.gz"


@contextlib.contextmanager
def out_of_time(rig: Any) -> Iterator[None]:
    """No load takes long meanwhile, or it is given up."""
    cache = rig.instance.cache
    usual_s, cache._load_timeout_s = cache._load_timeout_s, 0.5
    yield
    cache._load_timeout_s = usual_s


async def test_an_unknown_model_evicts_nothing(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "1"})):
        await rig.ask("a.tar.gz")
        with pytest.raises(ValidationError):
            await rig.ask("none.tar.gz")
        assert rig.where("a.tar.gz") == "memory"


async def test_a_model_evicted_from_memory_comes_back_from_disk(rig: Any) -> None:
    rig.put("a.tar.gz")
    rig.put("b.tar.gz")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "1"})):
        await rig.ask("a.tar.gz")
        await rig.ask("b.tar.gz")
        rig.delete("a.tar.gz")
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"


async def test_a_package_replaced_or_deleted_in_s3_keeps_answering_while_it_is_loaded(rig: Any) -> None:
    rig.put("a.tar.gz", answer="first")
    async with rig.up():
        assert (await rig.ask("a.tar.gz"))["answer"] == "first"
        rig.put("a.tar.gz", answer="second")
        assert (await rig.ask("a.tar.gz"))["answer"] == "first"
        rig.delete("a.tar.gz")
        assert (await rig.ask("a.tar.gz"))["answer"] == "first"


async def test_a_package_replaced_in_s3_is_the_one_that_the_next_load_gets(rig: Any) -> None:
    rig.put("a.tar.gz", answer="first")
    rig.put("b.tar.gz")
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "1"})):
        await rig.ask("a.tar.gz")
        rig.put("a.tar.gz", answer="second")
        await rig.ask("b.tar.gz")
        assert (await rig.ask("a.tar.gz"))["answer"] == "second"


async def test_without_caching_a_model_leaves_memory_and_disk_right_after_its_call(rig: Any) -> None:
    rig.put("a.tar.gz", answer="first")
    async with rig.up(rig.plan(model_cache="Disabled")):
        assert (await rig.ask("a.tar.gz"))["answer"] == "first"
        rig.put("a.tar.gz", answer="second")
        assert (await rig.ask("a.tar.gz"))["answer"] == "second"
        await rig.until(lambda: rig.where("a.tar.gz") == "s3")
        assert [path.name for path in (rig.instance.folder / "models").iterdir()] == []
    assert len(rig.events("load")) == 2 and len(rig.events("unload")) == 2


async def test_calls_at_once_share_one_load_without_caching_too(rig: Any) -> None:
    rig.put("a.tar.gz", invoke_gate="gate")
    async with rig.up(rig.plan(model_cache="Disabled")):
        calls = [asyncio.create_task(rig.ask("a.tar.gz")) for _ in range(5)]
        await rig.reached_event("invoke", 5)
        rig.open("gate")
        await asyncio.gather(*calls)
        await rig.until(lambda: rig.where("a.tar.gz") == "s3")
    assert len(rig.events("load")) == 1


async def test_the_disk_stays_within_its_budget(rig: Any) -> None:
    ballast = "".join(chr(33 + (n * n + n // 7) % 90) for n in range(400_000))
    for name in ("a", "b", "c"):
        rig.put(f"{name}.tar.gz", ballast=ballast)
    async with rig.up(instance_disk_mb=1):
        for name in ("a", "b", "c", "a"):
            assert (await rig.ask(f"{name}.tar.gz"))["answer"] == f"{name}.tar.gz"
            assert rig.instance.cache.disk_bytes <= 2**20
        assert rig.where("b.tar.gz") == "s3"
    assert rig.events("unload")


async def test_a_package_larger_than_the_disk_is_refused_before_it_lands(rig: Any) -> None:
    rig.put("bomb.tar.gz", ballast="0" * 3_000_000)
    async with rig.up(instance_disk_mb=1):
        with pytest.raises(ValidationError, match="Failed to extract model data archive"):
            await rig.ask("bomb.tar.gz")
        assert [path.name for path in (rig.instance.folder / "models").iterdir()] == []


async def test_a_restarted_instance_uses_its_disk_unless_s3_has_another_package(rig: Any) -> None:
    rig.put("kept.tar.gz", answer="first")
    rig.put("replaced.tar.gz", answer="first")
    async with rig.up():
        await rig.ask("kept.tar.gz")
        await rig.ask("replaced.tar.gz")
    leftovers = rig.config.folder / "shop" / "AllTraffic" / "0" / "models" / ".new-interrupted"
    leftovers.mkdir()
    rig.put("replaced.tar.gz", answer="second")
    async with rig.up():
        assert not leftovers.exists()
        assert rig.where("kept.tar.gz") == "disk"
        inode = (rig.instance.folder / "models").joinpath(model_id(rig, "kept.tar.gz")).stat().st_ino
        assert (await rig.ask("kept.tar.gz"))["answer"] == "first"
        assert (rig.instance.folder / "models" / model_id(rig, "kept.tar.gz")).stat().st_ino == inode
        assert (await rig.ask("replaced.tar.gz"))["answer"] == "second"


async def test_a_download_that_is_not_what_the_etag_says_never_becomes_a_model(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up():
        store = rig.instance.cache._shelf._store
        genuine = store.download

        async def torn(at: Any, to: Any, *, limit_bytes: int) -> PackageVersion:
            version = await genuine(at, to, limit_bytes=limit_bytes)
            to.write_bytes(to.read_bytes()[:-20])
            return PackageVersion(version.etag, version.size_bytes)

        store.download = torn
        with pytest.raises(ValidationError, match="Failed to extract model data archive"):
            await rig.ask("a.tar.gz")
        store.download = genuine
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"


async def test_an_s3_that_is_away_is_an_internal_dependency_and_loaded_models_go_on(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with rig.up():
        await rig.ask("a.tar.gz")
        object.__setattr__(rig.instance.cache._shelf._store._store, "s3_url", "http://127.0.0.1:9")
        try:
            with pytest.raises(InternalDependencyException, match="S3"):
                await rig.ask("b.tar.gz")
            assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"
        finally:
            object.__setattr__(rig.instance.cache._shelf._store._store, "s3_url", rig.s3.meta.endpoint_url)


async def test_a_load_whose_container_dies_is_unavailable_and_the_model_is_not_thought_loaded(rig: Any) -> None:
    rig.put("killer.tar.gz", exit_in="load")
    rig.put("a.tar.gz")
    async with rig.up():
        await rig.ask("a.tar.gz")
        with pytest.raises(ServiceUnavailable, match="went away while it loaded killer.tar.gz"):
            await rig.ask("killer.tar.gz")
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"
        assert rig.where("killer.tar.gz") == "disk"


async def test_a_409_is_believed_only_if_the_container_lists_the_model(rig: Any) -> None:
    rig.put("a.tar.gz")
    rig.put("odd.tar.gz", load_status=409, load_message="Deep learning engine not found: XGBoost")
    async with rig.up():
        await rig.ask("a.tar.gz")
        model = next(model for model in rig.instance.cache.models if model.target == "a.tar.gz")
        model.where = Where.DISK  # as if the platform had lost sight of it
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"
        assert [event["id"] for event in rig.events("load")] == [model.id, model.id]
        with pytest.raises(ModelError, match="Deep learning engine not found"):
            await rig.ask("odd.tar.gz")


async def test_the_container_gets_an_opaque_name_and_the_folder_of_the_package(rig: Any) -> None:
    rig.put("team/a.tar.gz")
    async with rig.up():
        await rig.ask("team/a.tar.gz")
        [event] = rig.events("load")
        assert "team" not in event["id"] and event["id"].isalnum()
        key = json.loads((rig.instance.folder / "models" / event["id"] / "key.json").read_text())
        assert key["target"] == "team/a.tar.gz"
        assert (rig.instance.folder / "models" / event["id"] / "model" / "behaviour.json").exists()


def model_id(rig: Any, target: str) -> str:
    return next(model.id for model in rig.instance.cache.models if model.target == target)


async def test_a_disk_that_takes_no_more_is_unavailable_and_leaves_nothing_half_done(rig: Any) -> None:
    rig.put("a.tar.gz", ballast="".join(chr(33 + (n * n + n // 7) % 90) for n in range(400_000)))
    async with rig.up():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(ServiceUnavailable, match="disk does not take .*a.tar.gz: File too large"):
                await rig.ask("a.tar.gz")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.name for path in (rig.instance.folder / "models").iterdir()] == []
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_calls_kills_and_evictions_ends_with_right_answers_and_nothing_in_use(
    rig: Any, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"m{number}.tar.gz" for number in range(12)]
    for name in names:
        rig.put(name, size=chance.choice([1, 1, 2]))
    outcomes: Counter[str] = Counter()
    killed: list[Any] = []

    async def caller() -> None:
        for _ in range(40):
            name = chance.choice(names)
            try:
                assert (await rig.ask(name))["answer"] == name
                outcomes["answered"] += 1
            except (ModelError, ServiceUnavailable) as error:
                assert "507" not in str(error), "there was always something to evict"
                outcomes[type(error).__name__] += 1

    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "6"}, instance_count=2)):
        callers = [asyncio.create_task(caller()) for _ in range(6)]
        for _ in range(3):
            await asyncio.sleep(chance.random() / 2)
            if (container := chance.choice(rig.instances).container) is not None:
                with contextlib.suppress(ProcessLookupError):  # it was killed before, and is still there by name
                    os.kill(container.pid, signal.SIGKILL)
                killed.append(container)
        await asyncio.gather(*callers, *(container.exited for container in killed))
        for name in names:
            assert (await rig.ask(name))["answer"] == name
        for instance in rig.instances:
            assert instance.in_flight == 0
            assert all(model.in_use == 0 for model in instance.cache.models)
            listed = await (await instance.ready()).models()
            assert set(listed) == {model.id for model in instance.cache.models if model.where is Where.MEMORY}
    assert outcomes["answered"] > 200
