from __future__ import annotations

import asyncio
import json
import os
import sys
import zipfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from ended import is_gone

from mme import packages
from mme.server import config, memory, requirements
from mme.server.config import ContainerConfig, LoadRequest
from mme.server.errors import Conflict, LoadFailed, ModelNotFound, OutOfMemory, ServerError, WorkerFailed
from mme.server.nursery import Nursery, WorkerSpec
from mme.server.registry import Model, Registry
from mme.server.tempfolders import TemporaryFolders
from mme.server.worker import box

HANDLER = "def handle(inputs):\n    return None\n"
HELD = """\
def handle(inputs):
    open("begun", "a").close()
    with open("gate") as gate:
        gate.read(1)
"""
DEADLINE_S = 60.0


def package(folder: Path, handler: str = HANDLER, settings: str = "maxWorkers=1\n") -> str:
    """A model's folder; its url."""
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(handler)
    (folder / "serving.properties").write_text(settings)
    os.mkfifo(folder / "gate")
    return str(folder)


def with_registry(folder: Path, test: Callable[[Registry], Awaitable[None]], **environ: str) -> None:
    async def run() -> None:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        nursery = Nursery(folder / "nursery")
        await nursery.start()
        registry = Registry(ContainerConfig.from_environ({"DJL_CACHE_DIR": str(folder / "cache"), **environ}), nursery)
        registry.memory.start()
        try:
            await test(registry)
        finally:
            await registry.close()
            await nursery.close()
            left = {child.pid for child in psutil.Process().children(recursive=True)} - before
            assert not left, f"processes {left} are left"

    uvloop.run(run())


async def until(condition: Callable[[], Any], what: str) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < end, f"waited in vain until {what}"
        await asyncio.sleep(0.005)


async def begun(registry: Registry, url: str, **arguments: Any) -> Model:
    """A model whose load is held in its init call."""
    model = registry.begin_load(LoadRequest("held", url, **arguments))
    await until((Path(url) / "begun").exists, "the init call was made")
    return model


def test_a_model_is_ready_when_a_worker_can_answer_and_not_before(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m", HELD)
        model = await begun(registry, url)
        assert (model.status, model.health) == ("PENDING", "Unhealthy")
        described = model.describe()
        assert described["workerGroups"][0]["workers"] == []
        with pytest.raises(Conflict, match="Workflow held is already registered"):
            registry.begin_load(LoadRequest("held", url))
        (tmp_path / "m" / "gate").write_text(".")
        assert model.load is not None
        await model.load
        assert (model.status, model.health) == ("READY", "Healthy")
        assert len(model.describe()["workerGroups"][0]["workers"]) == 1

    with_registry(tmp_path, test)


def test_unloading_a_model_that_loads_ends_the_load_and_its_process(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m", HELD)
        waiting = asyncio.ensure_future(registry.load(LoadRequest("held", url)))
        await until((tmp_path / "m" / "begun").exists, "the init call was made")
        await registry.unload("held")
        with pytest.raises(WorkerFailed, match="Worker shutting down"):
            await waiting
        assert registry.models == {}
        with pytest.raises(ModelNotFound, match="Model or workflow not found: held"):
            await registry.unload("held")

    with_registry(tmp_path, test)


def test_a_load_goes_on_when_nobody_waits_for_it(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m", HELD)
        waiting = asyncio.ensure_future(registry.load(LoadRequest("held", url)))
        await until((tmp_path / "m" / "begun").exists, "the init call was made")
        waiting.cancel()
        await asyncio.wait([waiting])
        (tmp_path / "m" / "gate").write_text(".")
        await until(lambda: registry.find("held").status == "READY", "the model was loaded")

    with_registry(tmp_path, test)


def test_a_load_that_fails_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m", "raise RuntimeError")
        for _ in range(2):
            with pytest.raises(LoadFailed, match="exit code: 1"):
                await registry.load(LoadRequest("m", url))
            assert registry.models == {}
        (tmp_path / "m" / "model.py").write_text(HANDLER)
        assert (await registry.load(LoadRequest("m", url))).status == "READY"

    with_registry(tmp_path, test)


def test_many_loads_at_once_all_succeed_and_leave_no_descriptor(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m")
        await registry.load(LoadRequest("first", url))
        await until(
            lambda: all(branch["standby"] for branch in registry.status()["nursery"]["branches"]),
            "a process waited for the next model",
        )
        before = psutil.Process().num_fds()
        names = [f"m{number}" for number in range(200)]
        await asyncio.gather(*(registry.load(LoadRequest(name, url)) for name in names))
        assert all(registry.find(name).status == "READY" for name in names)
        await asyncio.gather(*(registry.unload(name) for name in names))
        await until(lambda: psutil.Process().num_fds() <= before, "no descriptor was left")

    with_registry(tmp_path, test)


def test_a_load_that_nobody_waited_for_is_seen_to_have_failed(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        model = registry.begin_load(LoadRequest("m", package(tmp_path / "m", "x = ("), synchronous=False))
        await until(lambda: model.status == "FAILED", "the load had failed")
        assert model.health == "FAILED"
        await registry.unload("m")

    with_registry(tmp_path, test)


def test_a_model_that_does_not_fit_the_budget_is_refused_until_another_leaves(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        urls = [package(tmp_path / f"m{number}", settings="required_memory_mb=11000\n") for number in range(2)]
        held = package(tmp_path / "held", HELD, settings="required_memory_mb=11000\n")
        model = await begun(registry, held)
        with pytest.raises(OutOfMemory, match="No enough memory to load the model"):
            await registry.load(LoadRequest("m0", urls[0]))
        await registry.unload("held")
        # What was promised to a model counts until it is loaded; then what it takes does.
        for number in range(2):
            loaded = await registry.load(LoadRequest(f"m{number}", urls[number]))
            await until(lambda name=loaded.name: registry.memory.used_mb() < 9000, "what was loaded was measured")
        assert model.status == "PENDING"
        status = registry.status()
        assert status["memory"]["budget_mb"] == 20000
        assert all(worker["pss_mb"] > 1 for model in status["models"] for worker in model["workers"])

    with_registry(tmp_path, test, MME_MEMORY_BUDGET_MB="20000")


def test_what_is_promised_to_a_model_outlasts_the_end_of_one_that_had_its_name(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        request = LoadRequest("m", package(tmp_path / "m", settings="required_memory_mb=9000\n"))
        settings = config.read(request, ContainerConfig.from_environ({}))
        first, second = Model(request, is_startup=False), Model(request, is_startup=False)
        for model in (first, second):
            await registry.memory.reserve(model, settings)
        registry.memory.release(first)
        assert 9000 < registry.memory.used_mb() < 18000

    with_registry(tmp_path, test, MME_MEMORY_BUDGET_MB="20000")


@pytest.mark.parametrize("setting", ["required_memory_mb=99999999", "reserved_memory_mb=99999999"])
def test_without_a_budget_the_machines_memory_decides(tmp_path: Path, setting: str) -> None:
    async def test(registry: Registry) -> None:
        with pytest.raises(OutOfMemory):
            await registry.load(LoadRequest("m", package(tmp_path / "m", settings=setting + "\n")))
        assert registry.models == {}

    with_registry(tmp_path, test)


def test_in_a_multi_model_container_the_files_tell_what_a_model_needs(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m")
        with open(tmp_path / "m" / "weights.bin", "wb") as weights:
            weights.truncate(2000 << 20)
        with pytest.raises(OutOfMemory):
            await registry.load(LoadRequest("m", url))

    with_registry(tmp_path, test, MME_MEMORY_BUDGET_MB="2000", SAGEMAKER_MULTI_MODEL="true")


def test_few_descriptors_left_refuse_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SPARE_DESCRIPTORS", 1 << 40)

    async def test(registry: Registry) -> None:
        with pytest.raises(OutOfMemory):
            await registry.load(LoadRequest("m", package(tmp_path / "m")))

    with_registry(tmp_path, test)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["numpy", "", "# note", "packaging>=20  # why"], True),
        (["numpy<1"], False),
        (["no-such-package-here"], False),
        (['no-such-package-here; python_version < "3"'], True),
        (["moto[server]"], True),
        (["-r other.txt"], False),
        (["numpy @ https://127.0.0.1/numpy.whl"], False),
    ],
)
def test_requirements_that_are_there_are_seen(lines: list[str], expected: bool) -> None:
    assert requirements.are_satisfied(lines) is expected


def wheel(folder: Path, name: str, who: str = "from the package") -> None:
    """The smallest package that pip installs."""
    folder.mkdir()
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"WHO = {who!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)


def test_missing_requirements_go_into_an_environment_of_the_packages_own(tmp_path: Path) -> None:
    handler = """\
import sys
import numpy, mme_test_wheel
def handle(inputs):
    if inputs.is_empty():
        print("runs in", sys.prefix, mme_test_wheel.WHO)
"""

    async def test(registry: Registry) -> None:
        for name, who in (("one", "ours"), ("two", "ours"), ("sly", "another's under the same name")):
            url = package(tmp_path / name, handler)
            wheel(tmp_path / name / "requirements", "mme_test_wheel", who)
            (tmp_path / name / "requirements.txt").write_text("--no-index\nmme_test_wheel==1.0\nnumpy\n")
            model = await registry.load(LoadRequest(name, url))
            assert model.pool is not None
            assert model.pool.workers[0].process.origin.startswith("plain: ")
        environments = list((tmp_path / "cache" / "environments").iterdir())
        assert len(environments) == 2, "two packages with the same list and wheels share one environment, and no other"
        assert not list(environments[0].rglob("numpy/__init__.py")), "what is there already is not installed again"

    with_registry(tmp_path, test)
    assert not list(Path(sys.prefix).rglob("mme_test_wheel*"))


def test_requirements_that_cannot_be_had_fail_the_load_with_pips_words(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m")
        (tmp_path / "m" / "requirements.txt").write_text("--no-index\nno-such-package-here==9.9\n")
        with pytest.raises(LoadFailed, match="No matching distribution found for no-such-package-here==9.9"):
            await registry.load(LoadRequest("m", url))

    with_registry(tmp_path, test)


def test_what_a_package_has_pip_build_is_built_in_a_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads: no isolation, and so nothing to fetch
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    source = tmp_path / "m" / "source"

    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m")
        source.mkdir()
        (source / "setup.py").write_text(f"print('it says', open({str(secret)!r}).read())")
        (tmp_path / "m" / "requirements.txt").write_text(f"--no-index\n{source}\n")
        with pytest.raises(LoadFailed) as failed:
            await registry.load(LoadRequest("m", url))
        assert ("PermissionError" in str(failed.value)) is (box.abi() > 0), failed.value

    with_registry(tmp_path, test)


def test_unloading_a_model_while_pip_builds_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    source = tmp_path / "m" / "source"

    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m")
        source.mkdir()
        (source / "setup.py").write_text(
            "import os, time\n"
            "with open(os.environ['HOME'] + '/builds', 'w') as file:\n"
            "    file.write(f'{os.getpid()}\\n')\n"
            "time.sleep(600)\n"
        )
        (tmp_path / "m" / "requirements.txt").write_text(f"--no-index\n{source}\n")
        loading = asyncio.ensure_future(registry.load(LoadRequest("m", url)))

        def builder() -> int:
            # Not with rglob, which fails when pip removes a folder that it looks into.
            found = (Path(folder, "builds") for folder, _, files in os.walk(tmp_path / "cache") if "builds" in files)
            return next((int(file.read_text() or 0) for file in found), 0)

        await until(builder, "pip ran the build")
        process = psutil.Process(builder())
        await registry.unload("m")
        with pytest.raises(WorkerFailed, match="Worker shutting down"):
            await loading
        await until(lambda: is_gone(process.pid), "the build had ended")

    with_registry(tmp_path, test)


def test_environments_that_somebody_else_could_have_made_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    planted = shared / f"mme-cache-{os.getuid()}"
    planted.mkdir(parents=True)
    planted.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(shared))

    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m")
        (tmp_path / "m" / "requirements.txt").write_text("--no-index\nno-such-package-here==9.9\n")
        with pytest.raises(LoadFailed, match="the server has no folder of its own for it$"):
            await registry.load(LoadRequest("m", url))
        assert list(planted.iterdir()) == []

    with_registry(tmp_path, test, DJL_CACHE_DIR="")


def test_enable_venv_gives_the_model_a_python_of_its_own_and_takes_it_back(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        url = package(tmp_path / "m", settings="option.enable_venv=true\nmaxWorkers=1\n")
        for name in ("m", "the-same"):
            await registry.load(LoadRequest(name, url))
        environments = tmp_path / "cache" / "environments"
        for name, left in (("m", 1), ("the-same", 0)):
            assert len(list(environments.iterdir())) == 1
            await registry.unload(name)
            assert len(list(environments.iterdir())) == left

    with_registry(tmp_path, test)


def test_a_workers_folder_can_be_made_while_the_models_last_one_is_removed(tmp_path: Path) -> None:
    folders = TemporaryFolders(tmp_path)
    model = WorkerSpec("m", tmp_path, "model.py")
    with ThreadPoolExecutor(2) as removing:
        for _ in range(5000):
            removing.submit(folders.remove, folders.make(model))
    folders.close()


def test_every_error_has_a_body_that_java_could_have_written() -> None:
    body = ServerError("a < b = 'c' é").body()
    assert (
        body
        == b'{\n  "code": 500,\n  "type": "EngineException",\n'
        + ('  "message": "a \\u003c b \\u003d \\u0027c\\u0027 é"\n}\n').encode()
    )
    assert json.loads(ServerError().body()) == {"code": 500, "type": "EngineException"}


def test_a_package_whose_files_are_not_what_its_manifest_says_is_not_loaded(tmp_path: Path) -> None:
    url = package(tmp_path / "m", "open('ran', 'w').close()\n" + HANDLER)
    os.remove(tmp_path / "m" / "gate")
    (tmp_path / "m" / "weights").write_text("right")
    packages.build(tmp_path / "m", tmp_path / "m.tar.gz")
    (tmp_path / "m" / "manifest.json").write_bytes(packages.describe(tmp_path / "m.tar.gz").to_json())

    async def test(registry: Registry) -> None:
        (tmp_path / "m" / "weights").write_text("wrong")
        with pytest.raises(LoadFailed, match=r"weights is not what manifest\.json says"):
            await registry.load(LoadRequest(name="m", url=url))
        assert not (tmp_path / "m" / "ran").exists()
        (tmp_path / "m" / "weights").write_text("right")
        await registry.load(LoadRequest(name="m", url=url))

    with_registry(tmp_path, test)


def test_a_package_with_libraries_for_another_system_is_not_loaded(tmp_path: Path) -> None:
    url = package(tmp_path / "m")
    info = tmp_path / "m" / "lib" / "tiny-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp39-cp39-macosx_11_0_arm64\n")

    async def test(registry: Registry) -> None:
        with pytest.raises(LoadFailed, match="lib/ holds tiny 1.0 for cp39-cp39-macosx_11_0_arm64, which Python 3"):
            await registry.load(LoadRequest(name="m", url=url))

    with_registry(tmp_path, test)
