"""Containers as a choice: what a djl-serving on PATH and Docker are told, how they end, which faults are survived."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import xgboost
from ended import is_gone

from mme import packages
from mme.platform import launch
from mme.platform.config import MARK
from mme.platform.containers import KINDS, Container, ContainerSpec, ContainerStartFailed, kind_named
from mme.platform.containers.kinds import docker_image
from mme.platform.errors import ModelError
from mme.settings import ROOT, Settings

pytestmark = pytest.mark.anyio

PROGRAMS = Path(__file__).with_name("stand_in_programs.py")
REAL = ("djl-serving", "docker")
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.36.0-cpu-full"


@pytest.fixture
def meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the programs on PATH, both stand-ins, meet the test."""
    folder = tmp_path / "meeting"
    folder.mkdir(exist_ok=True)
    (tmp_path / "bin").mkdir()
    for name in REAL:
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{PROGRAMS}" {name} "{folder}" "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An instance's disk with one model on it."""
    model = tmp_path / "instance" / "models" / "m1" / "model"
    model.mkdir(parents=True)
    (model / "behaviour.json").write_text('{"answer": "a"}')
    return tmp_path / "instance"


def spec(disk: Path, **changes: Any) -> ContainerSpec:
    environment = {"SAGEMAKER_MULTI_MODEL": "true", "AWS_REGION": "us-east-1"}
    one = ContainerSpec("c-1", disk, environment, {MARK: "/a/home"}, image=IMAGE, memory_mb=2048)
    return replace(one, **changes)


def told(meeting: Path, program: str) -> dict[str, Any]:
    """How the container was started."""
    started = [json.loads(line) for line in (meeting / "started.jsonl").read_text().splitlines()]
    return next(one for one in started if one["program"] == program and one["argv"][:1] in ([], ["run"]))


async def test_djl_serving_is_told_by_its_environment_alone(meeting: Path, disk: Path) -> None:
    container = await Container.start(KINDS["djl-serving"], spec(disk), on_record=print)
    await container.stop()
    said = told(meeting, "djl-serving")
    environment = said["environment"]
    assert said["argv"] == []
    assert environment["SERVING_INFERENCE_ADDRESS"] == environment["SERVING_MANAGEMENT_ADDRESS"]
    assert environment["SERVING_INFERENCE_ADDRESS"].startswith("http://127.0.0.1:")
    assert environment["SERVING_LOAD_MODELS"] == "NONE"
    assert environment["SAGEMAKER_MULTI_MODEL"] == "true"
    assert environment["PYTHON_EXECUTABLE"] == sys.executable
    assert environment["DJL_CACHE_DIR"] == str(disk / "djl-cache")
    assert "-Xmx1g" in environment["JAVA_OPTS"]


async def test_docker_runs_the_image_as_sagemaker_does(meeting: Path, disk: Path) -> None:
    container = await Container.start(KINDS["docker"], spec(disk), on_record=print)
    await container.stop()
    said = told(meeting, "docker")
    words = said["argv"]
    options = list(zip(words, words[1:], strict=False))
    assert words[-2:] == ["deepjavalibrary/djl-serving:0.36.0-cpu-full", "serve"]
    assert ("--volume", f"{disk / 'models'}:/opt/ml/models") in options
    assert ("--env", "SAGEMAKER_MULTI_MODEL") in options and said["environment"]["SAGEMAKER_MULTI_MODEL"] == "true"
    assert ("--env", "AWS_REGION") in options and said["environment"]["AWS_REGION"] == "us-east-1"
    assert ("--memory", "2048m") in options
    assert ("--label", "mme.home=/a/home") in options
    assert dict(options)["--publish"].startswith("127.0.0.1:") and dict(options)["--publish"].endswith(":8080")
    assert not [word for word in words if word.startswith("MME_")]


async def test_a_single_model_is_mounted_where_the_image_looks_for_it(meeting: Path, disk: Path) -> None:
    alone = spec(disk, model_store=disk / "models" / "m1" / "model", environment={})
    for name in REAL:
        container = await Container.start(KINDS[name], alone, on_record=print)
        reply = await container.invoke("/invocations", {"Content-Type": "text/plain"}, b"x")
        await container.stop()
        assert reply.status == 200
    djl, docker = told(meeting, "djl-serving"), told(meeting, "docker")
    assert djl["environment"]["SERVING_MODEL_STORE"] == str(alone.model_store)
    assert djl["environment"]["SERVING_LOAD_MODELS"] == "ALL"
    assert f"{alone.model_store}:/opt/ml/model" in docker["argv"]


@pytest.mark.parametrize("name", REAL)
async def test_the_reserve_makes_of_the_machine_an_instance_of_its_size(
    meeting: Path, disk: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = psutil.virtual_memory()  # as it was once: others take some and give some back meanwhile
    monkeypatch.setattr(psutil, "virtual_memory", lambda: there)
    launched = KINDS[name].launch(spec(disk, memory_mb=1024))
    said = [word.split("=")[1] for word in launched.argv if word.startswith("SERVING_RESERVED_MEMORY_MB=")]
    reserve_mb = int(launched.environment.get("SERVING_RESERVED_MEMORY_MB") or said[0])
    assert there.available // 2**20 - reserve_mb == 1024 - 500
    unbounded = KINDS[name].launch(spec(disk, memory_mb=0))
    assert "SERVING_RESERVED_MEMORY_MB" not in " ".join([*unbounded.argv, *unbounded.environment])


async def test_what_the_model_sets_wins_over_what_the_image_would_have(
    meeting: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_OPTS", "-Xmx2g")
    monkeypatch.setenv("SERVING_SECRET", "not of this platform")
    own = {"SERVING_RESERVED_MEMORY_MB": "7", "PYTHON_EXECUTABLE": "/a/python"}
    environment = KINDS["djl-serving"].launch(spec(disk, environment=own)).environment
    assert environment["SERVING_RESERVED_MEMORY_MB"] == "7"
    assert (environment["PYTHON_EXECUTABLE"], environment["JAVA_OPTS"]) == ("/a/python", "-Xmx2g")
    assert "SERVING_SECRET" not in environment


@pytest.mark.parametrize(
    ("image", "runs"),
    [
        (IMAGE, "deepjavalibrary/djl-serving:0.36.0-cpu-full"),
        (
            "520713654638.dkr.ecr.eu-south-1.amazonaws.com/djl-inference:0.35.0-cpu-full",
            "deepjavalibrary/djl-serving:0.35.0-cpu-full",
        ),
        ("", "deepjavalibrary/djl-serving:0.36.0-cpu-full"),
        ("mine/served:1", "mine/served:1"),
    ],
)
def test_of_awss_image_its_public_twin_runs_and_any_other_as_it_is(image: str, runs: str) -> None:
    assert docker_image(image) == runs


@pytest.mark.parametrize(
    ("name", "seen"), [("djl-serving", "{disk}/models/m1/model"), ("docker", "/opt/ml/models/m1/model")]
)
async def test_a_model_is_loaded_from_where_the_container_sees_it(
    meeting: Path, disk: Path, rig: Any, name: str, seen: str
) -> None:
    container = await Container.start(KINDS[name], spec(disk), on_record=print)
    try:
        assert (await container.load("m1", disk / "models" / "m1" / "model", "m.tar.gz")).status == 200
        assert (await container.invoke("/models/m1/invoke", {}, b"x")).status == 200
    finally:
        await container.stop()
    assert [event["url"] for event in rig.events("load")] == [seen.format(disk=disk)]


@pytest.mark.parametrize("name", REAL)
async def test_nothing_of_a_stopped_container_is_left(meeting: Path, disk: Path, rig: Any, name: str) -> None:
    leaky = disk / "models" / "m1" / "model"
    (leaky / "behaviour.json").write_text('{"leaks": true}')
    container = await Container.start(KINDS[name], spec(disk), on_record=print)
    await container.load("m1", leaky, "m.tar.gz")
    serving = rig.events("load")[0]["pid"]
    await container.unload("m1")
    assert not is_gone(serving)
    await container.stop()
    await rig.until(lambda: is_gone(serving))
    await rig.until(lambda: is_gone(rig.events("leak")[0]["leaked"]))


@pytest.mark.parametrize("name", REAL)
async def test_a_container_that_cannot_start_says_so_and_leaves_nothing(meeting: Path, disk: Path, name: str) -> None:
    (meeting / "start_fails").touch()
    records: list[str] = []
    with pytest.raises(ContainerStartFailed, match="ended with exit code 1"):
        await Container.start(KINDS[name], spec(disk), on_record=records.append)
    assert records == ["the stand-in was told not to start"]


async def test_what_a_killed_platform_left_in_docker_goes_with_the_next_one(
    meeting: Path, disk: Path, rig: Any
) -> None:
    of_another = await Container.start(KINDS["docker"], spec(disk, container_id="c-2"), on_record=print)
    left = spec(disk, own={MARK: str(rig.config.home)})
    container = await Container.start(KINDS["docker"], left, on_record=print)
    os.kill(container.pid, 9)
    await container.exited
    assert sorted(file.name for file in (meeting / "docker").iterdir()) == ["c-1", "c-2"]
    rig.kind = KINDS["docker"]
    rig.put("a.tar.gz")
    async with rig.up():
        assert not (meeting / "docker" / "c-1").exists()
        assert await of_another.ping()
    await container.stop()
    await of_another.stop()


@pytest.mark.parametrize("name", REAL)
async def test_a_model_that_failed_is_loaded_again_by_the_next_call(meeting: Path, rig: Any, name: str) -> None:
    rig.kind = KINDS[name]
    rig.put("a.tar.gz")
    async with rig.up():
        await rig.ask("a.tar.gz")
        rig.open("fail_a.tar.gz")
        with pytest.raises(ModelError, match="Python worker disconnected"):
            await rig.ask("a.tar.gz")
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"
        assert len(rig.events("load")) == 2


@pytest.mark.parametrize("name", REAL)
async def test_a_worker_killed_while_idle_costs_no_call(meeting: Path, rig: Any, name: str) -> None:
    rig.kind = KINDS[name]
    rig.put("a.tar.gz")
    async with rig.up():
        await rig.ask("a.tar.gz")
        rig.open("stop_a.tar.gz")
        assert (await rig.ask("a.tar.gz"))["answer"] == "a.tar.gz"
        assert [len(rig.events(kind)) for kind in ("load", "unload")] == [2, 1]


@pytest.mark.parametrize("name", REAL)
async def test_memory_that_comes_back_late_costs_no_other_model_its_place(meeting: Path, rig: Any, name: str) -> None:
    rig.kind = KINDS[name]
    for target in ("a.tar.gz", "b.tar.gz", "c.tar.gz"):
        rig.put(target, frees_after_s=0.3)
    async with rig.up(rig.plan(environment={"STAND_IN_CAPACITY": "2"})):
        for target in ("a.tar.gz", "b.tar.gz", "c.tar.gz"):
            await rig.ask(target)
        assert [rig.where(target) for target in ("a.tar.gz", "b.tar.gz", "c.tar.gz")] == ["disk", "memory", "memory"]


@pytest.mark.parametrize("name", REAL)
async def test_a_container_that_was_killed_is_replaced(meeting: Path, rig: Any, name: str) -> None:
    rig.kind = KINDS[name]
    rig.put("a.tar.gz")
    async with rig.up():
        first = (await rig.ask("a.tar.gz"))["pid"]
        os.kill(first, 9)
        async with asyncio.timeout(60):
            second = (await rig.ask_until_answered("a.tar.gz"))["pid"]
        assert second != first


async def test_models_without_code_lie_behind_an_endpoint_beside_others(rig: Any, tmp_path: Path) -> None:
    rig.kind = KINDS["embedded"]
    trees = xgboost.train({"nthread": 1}, xgboost.DMatrix([[0.0], [1.0]], label=[0.0, 1.0]), 20)
    scripts = {"xgboost": "model.ubj", "torchscript": "model.pt"}
    for name, file in scripts.items():
        folder = packages.prepare(tmp_path / name, ROOT / "serving_scripts" / name)
        if name == "xgboost":
            trees.save_model(folder / file)
        else:
            torch.jit.script(torch.nn.Identity()).save(str(folder / file))
        packages.build(folder, tmp_path / f"{name}.tar.gz")
        rig.put_bytes(f"{name}.tar.gz", (tmp_path / f"{name}.tar.gz").read_bytes())
    headers = {"content-type": "application/json", "accept": "application/json"}
    async with rig.up():
        answers = [(await rig.invoke(f"{name}.tar.gz", b"[[0], [1]]", **headers)).body for name in scripts]
    assert json.loads(answers[0])["predictions"] == pytest.approx([0, 1], abs=0.05)
    assert json.loads(answers[1]) == {"predictions": [[0.0], [1.0]]}


@pytest.mark.parametrize(
    ("name", "prepare", "says"),
    [
        ("podman", lambda _: None, "there is no container 'podman'; there are: embedded, djl-serving, docker"),
        ("djl-serving", lambda bin: (bin / "djl-serving").unlink(), "there is no djl-serving on PATH"),
        ("docker", lambda bin: (bin / "docker").unlink(), "there is no docker on PATH"),
        ("docker", lambda bin: (bin.parent / "meeting" / "no_engine").touch(), "no Docker engine answers"),
    ],
)
def test_what_this_machine_lacks_is_named(
    meeting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prepare: Callable[[Path], Any], says: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    prepare(tmp_path / "bin")
    with pytest.raises(ValueError, match=says):
        kind_named(name)


def test_a_platform_whose_containers_cannot_be_started_does_not_start(
    meeting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(launch.LaunchError, match="MME_CONTAINER=docker: there is no docker on PATH"):
        launch.up(Settings(home=tmp_path / "home", container="docker"))
    assert launch.find(tmp_path / "home") is None
