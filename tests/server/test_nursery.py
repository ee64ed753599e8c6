"""The nursery with real processes: where workers come from, what they share, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
from ended import is_gone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier

from mme import forkserver
from mme.server.importsets import key_of
from mme.server.nursery import CannotFork, Nursery, WorkerProcess, WorkerSpec
from mme.server.worker import frames

pytestmark = pytest.mark.skipif(bool(forkserver.can_fork()), reason="needs a system that forks warm processes")

SCIKIT_LEARN = """
import joblib
import numpy as np
from djl_python import Output
MODEL = None
def handle(inputs):
    global MODEL
    if MODEL is None:
        MODEL = joblib.load(inputs.get_properties()["model_dir"] + "/model.joblib")
    if inputs.is_empty():
        return None
    return Output().add_as_json({"predictions": MODEL.predict(np.array(inputs.get_as_json()["inputs"])).tolist()})
"""
# Runs the code it is sent, and answers with what that leaves in `answer`.
EVAL = """
from djl_python import Output
STATE = {}
def handle(inputs):
    if inputs.is_empty():
        STATE["init"] = True
        return None
    names = {"STATE": STATE}
    exec(inputs.get_as_string(), names)
    return Output().add_as_json(names["answer"])
"""
DEADLINE_S = 300  # importing scikit-learn takes half a minute on a machine with ten times the work it can do


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def within_time() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    asyncio.run(within_time())


class Nest(Nursery):
    """A nursery that also closes the front's ends of its workers' sockets."""

    async def worker(self, *args: object) -> WorkerProcess:
        worker = await super().worker(*args)
        self.__dict__.setdefault("sockets", []).append(worker.socket)
        return worker

    async def close(self) -> None:
        await super().close()
        for each in self.__dict__.get("sockets", []):
            each.close()


class Home:
    """A folder for models and for what a nursery learns, and what its processes printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[tuple[str, str, str]] = []

    def model(self, name: str, code: str = EVAL, **spec: object) -> WorkerSpec:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "model.py").write_text(textwrap.dedent(code))
        return WorkerSpec(name, folder, "model.py", **spec)

    def nursery(self, **options: object) -> Nursery:
        return Nest(self.folder / "nursery", on_line=lambda *line: self.lines.append(line), **options)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def own_interpreter(spec: WorkerSpec) -> None:
    """Put a `python` of its own into the model's folder: the tests' under another name."""
    script = spec.model_dir / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)


async def ask(worker: WorkerProcess, body: bytes | None, **properties: str) -> tuple[dict, bytes]:
    """Make a call, or the init call if there is no body, and return its answer."""
    content = [] if body is None else [["data", len(body)]]
    header = {"id": 1, "op": "invoke", "inputs": [{"properties": properties, "content": content}]}
    if body is None:
        header["op"] = "init"
    loop, decoder = asyncio.get_running_loop(), frames.Decoder()
    for buffer in frames.encode(header, body or b""):
        await loop.sock_sendall(worker.socket, buffer)
    while True:
        data = await loop.sock_recv(worker.socket, 1 << 18)
        assert data, "the worker closed its socket"
        for answer, answer_body in decoder.feed(data):
            if "imported" not in answer:
                return answer, answer_body


async def value(worker: WorkerProcess, code: str) -> object:
    answer, body = await ask(worker, textwrap.dedent(code).encode())
    assert answer["code"] == 200, body
    return json.loads(body)


async def loaded(nursery: Nursery, spec: WorkerSpec, *templates: object) -> WorkerProcess:
    worker = await nursery.worker(spec, *templates)
    answer, _ = await ask(worker, None, **spec.properties)
    assert "failure" not in answer, answer
    if "modules" in answer:
        nursery.learn(spec, answer["modules"])
    return worker


async def settled(nursery: Nursery) -> None:
    while nursery.status()["building"]:
        await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    while not is_gone(pid):
        await asyncio.sleep(0.01)


def save_models(home: Home) -> dict[str, WorkerSpec]:
    inputs = np.random.default_rng(0).random((60, 5))
    models = {
        "linear-regression": LinearRegression().fit(inputs, inputs.sum(axis=1)),
        "extra-trees-classifier": ExtraTreesClassifier(5).fit(inputs, inputs[:, 0] > 0.5),
        "multi-output-classifier": MultiOutputClassifier(LogisticRegression()).fit(inputs, inputs[:, :3] > 0.5),
    }
    specs = {}
    for name, model in models.items():
        specs[name] = home.model(name, SCIKIT_LEARN)
        joblib.dump(model, specs[name].model_dir / "model.joblib")
    return specs


def test_scikit_learn_models_are_forked_first_and_further_workers_and_learned_for_the_next_start(home):
    body = b'{"inputs": [[0.9, 0.9, 0.9, 0.1, 0.1]]}'

    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        specs = save_models(home)
        for spec in specs.values():
            first = await loaded(nursery, spec)
            assert first.origin == "forked"
            assert (await ask(first, body))[0]["code"] == 200
            await settled(nursery)
        assert nursery.status()["unfit"] == []
        for spec in specs.values():
            again = await loaded(nursery, spec)
            template = await nursery.template(spec, 30)
            further = await nursery.worker(spec, template)
            assert (again.origin, further.origin) == ("forked", "forked")
            answers = [await ask(worker, body) for worker in (again, further)]
            assert answers[0][1] == answers[1][1]
            assert all("modules" not in header for header, _ in answers)
        await nursery.close()

        nursery = home.nursery()
        await nursery.start()
        await settled(nursery)
        branches = sorted(branch["imports"] for branch in nursery.status()["branches"])
        assert branches == [["djl_python"], ["joblib", "numpy"]]
        worker = await nursery.worker(specs["linear-regression"])
        answer, _ = await ask(worker, None)
        assert "modules" not in answer  # the branch has it all
        await nursery.close()

    run(test)


def test_a_worker_has_its_models_folder_environment_and_no_descriptor_but_its_own(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("one", env={"X_TEST": "1"})
        other = home.model("other")
        code = """
            import os, sys
            held = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
            links = sorted(os.readlink(link).split(":")[0] for link in held if os.path.exists(link))
            answer = [os.getcwd(), sys.path[1], os.environ.get("X_TEST"), os.environ["OMP_NUM_THREADS"],
                links, os.getsid(0) == os.getpid()]
        """
        for _ in range(2):
            await loaded(nursery, other)
        workers = [await loaded(nursery, each) for each in (spec, other)]
        for worker, each, x_test in zip(workers, (spec, other), ("1", None), strict=True):
            folder = str(each.model_dir)
            assert await value(worker, code) == [folder, folder, x_test, "1", ["pipe", "socket"], True]
        await nursery.close()

    run(test)


def test_forked_workers_draw_different_random_numbers(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("random", "import random, numpy.random\n" + EVAL)
        workers = [await loaded(nursery, spec) for _ in range(2)]
        await settled(nursery)
        template = await nursery.template(spec, 30)
        workers += [await loaded(nursery, spec) for _ in range(2)]
        workers += [await nursery.worker(spec, template) for _ in range(2)]
        code = "import random, numpy.random; answer = [random.random(), numpy.random.random()]"
        draws = [tuple(await value(worker, code)) for worker in workers]
        assert len({a for a, _ in draws}) == len({b for _, b in draws}) == len(workers)
        await nursery.close()

    run(test)


@pytest.mark.parametrize(
    ("code", "imports"),
    [
        ("def handle(inputs):\n    import packaging.version", ["packaging.version"]),
        ("def handle(inputs):\n    import importlib\n    importlib.import_module('packaging.version')", []),
    ],
)
def test_imports_inside_functions_are_learned_too(home, code, imports):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("lazy", code)
        await loaded(nursery, spec)
        await settled(nursery)
        # Which comes last of the base branch and this one, built beside each other, is open.
        assert imports in [branch["imports"] for branch in nursery.status()["branches"]]
        again = await nursery.worker(spec)
        answer, _ = await ask(again, None)
        assert "modules" not in answer
        await nursery.close()

    run(test)


def test_what_a_package_has_on_a_path_of_its_own_is_imported_by_its_workers_alone(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("sly", env={"PYTHONPATH": str(home.folder / "sly" / "path")})
        (spec.model_dir / "path").mkdir()
        (spec.model_dir / "path" / "sly_module.py").write_text(f"open({str(home.folder / 'ran')!r}, 'w')")
        await loaded(nursery, spec)
        nursery.learn(spec, ["sly_module"])  # as a worker may say that it has imported it
        await settled(nursery)
        assert (await loaded(nursery, spec)).origin == "forked"
        assert [branch["imports"] for branch in nursery.status()["branches"]] == [["djl_python"]]
        assert not (home.folder / "ran").exists()
        await nursery.close()

    run(test)


def test_a_template_has_made_its_init_call_and_outlived_it_goes_on(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("state")
        template = await nursery.template(spec, 30)
        first, second = [await nursery.worker(spec, template) for _ in range(2)]
        assert await value(first, "STATE['mine'] = 1; answer = STATE") == {"init": True, "mine": 1}
        assert await value(second, "answer = STATE") == {"init": True}
        first.kill()
        assert await first.exited == -9
        os.kill(template.pid, signal.SIGKILL)
        assert await template.exited == -9
        assert await value(second, "answer = STATE") == {"init": True}
        second.kill()
        assert await second.exited == -9  # reported by the guardian, which has adopted it
        third = await nursery.worker(spec, template)
        assert third.origin == "forked"  # from a branch: it has to load the model
        assert (await ask(third, None))[0]["code"] == 204
        await nursery.close()

    run(test)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n" + EVAL, "thread "),
        ("import os\nHELD = open(os.devnull)\n" + EVAL, "it holds /dev/null open"),
        ("def handle(inputs): raise ValueError('bad model')", "its init call failed: bad model"),
        ("import not_there_xyz", "its entry point can't be loaded: No module named 'not_there_xyz'"),
        ("import os\ndef handle(inputs): os._exit(3)", "ended"),
        ("import time\ndef handle(inputs): time.sleep(600)", "its init call took longer than"),
    ],
)
def test_a_model_that_cannot_be_a_template_says_why(home, code, reason):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        with pytest.raises(CannotFork, match=reason):
            await nursery.template(home.model("odd", code), 2 if "took longer" in reason else 30)
        await nursery.close()

    run(test)


@pytest.mark.parametrize(
    "lie",
    ['{"ended": %d, "code": 0}', '{"id": 1, "pid": %d}', '{"ready": 1, "pid": %d', "[]"],
    ids=["ended", "forked", "cut", "no-message"],
)
def test_a_model_that_talks_for_its_template_harms_no_other(home, lie):
    code = """
    import os, stat, struct
    def handle(inputs):
        lie = inputs.get_properties()["lie"].encode()
        for fd in map(int, os.listdir("/proc/self/fd")):
            if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, struct.pack("!I", len(lie)) + lie)
    """

    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        victim = await loaded(nursery, home.model("victim"))
        spec = home.model("liar", code, properties={"lie": lie.replace("%d", str(victim.pid))})
        with contextlib.suppress(CannotFork):
            further = await nursery.worker(spec, await nursery.template(spec, 30))
            assert further.pid != victim.pid
            further.kill()
        assert await value(victim, "answer = 1") == 1
        assert victim.pid in nursery.status()["processes"]
        await nursery.close()

    run(test)


def test_a_template_that_is_killed_while_it_loads_is_tried_again(home):
    code = """
    import os, signal
    def handle(inputs):
        if not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    """

    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        template = await nursery.template(home.model("unlucky", code), 30)
        assert not is_gone(template.pid)
        await nursery.close()

    run(test)


def test_an_async_handler_has_no_template(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        with pytest.raises(CannotFork, match="event loop"):
            await nursery.template(home.model("async", async_mode=True), 30)
        await nursery.close()

    run(test)


def test_imports_that_start_a_thread_are_remembered_and_their_models_run_plain(home, monkeypatch):
    library = home.folder / "library"
    library.mkdir()
    (library / "threaded_xyz.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(library))  # of the server: it is as installed
    monkeypatch.syspath_prepend(library)

    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        code = "import threaded_xyz\n" + EVAL
        first = await loaded(nursery, home.model("first", code))
        assert [each["imports"] for each in nursery.status()["unfit"]] == [["threaded_xyz"]]
        second = await loaded(nursery, home.model("second", code))
        assert first.origin.startswith("plain: thread ") and second.origin == first.origin
        assert await value(second, "import os; answer = os.getcwd()") == str(home.folder / "second")
        other = await loaded(nursery, home.model("other"))
        assert other.origin == "forked"
        await nursery.close()

    run(test)


@pytest.mark.parametrize(("ends", "origin"), [(1, "forked"), (99, "plain: fork server ")])
def test_a_branch_that_is_killed_while_it_imports_is_tried_again_but_not_for_ever(home, monkeypatch, ends, origin):
    library = home.folder / "library"
    library.mkdir()
    (library / "fatal_xyz.py").write_text(f"""
import os, signal
with open({str(library / "imports")!r}, "a") as imports:
    imports.write(".")
    if imports.tell() <= {ends}:
        os.kill(os.getpid(), signal.SIGKILL)
""")
    monkeypatch.setenv("PYTHONPATH", str(library))  # of the server: it is as installed
    monkeypatch.syspath_prepend(library)

    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        worker = await nursery.worker(home.model("unlucky", "import fatal_xyz\n" + EVAL))
        assert worker.origin.startswith(origin)
        await nursery.close()

    run(test)


@pytest.mark.parametrize(
    ("options", "python", "origin"),
    [
        ({"fork": False}, None, "plain: forking is off (MME_FORK=off)"),
        ({}, sys.executable, "forked"),
        ({}, "./python", "plain: it has an interpreter of its own"),
    ],
)
def test_a_worker_that_must_not_be_forked_is_plain_and_the_same(home, options, python, origin):
    async def test() -> None:
        nursery = home.nursery(**options)
        await nursery.start()
        spec = home.model("plain", python=python, env={"X_TEST": "é"}, properties={"a": "b"})
        own_interpreter(spec)
        worker = await loaded(nursery, spec)
        assert worker.origin == origin
        code = "import os, sys; answer = [os.getcwd(), sys.path[1], os.environ['X_TEST'], os.getsid(0) == os.getpid()]"
        assert await value(worker, code) == [str(spec.model_dir), str(spec.model_dir), "é", True]
        await ask(worker, b"print('printed'); answer = 1")
        await ask(worker, b"raise ValueError('boom')")
        worker.kill()
        assert await worker.exited == -9
        await nursery.close()
        assert ("plain", "stdout", "printed") in home.lines
        traceback = next(text for _, _, text in home.lines if text.startswith("ERROR::"))
        assert "Traceback" in traceback and traceback.endswith("ValueError: boom")

    run(test)


def test_a_traceback_without_an_end_is_told_in_parts(home):
    code = """
    import sys
    print("Traceback (most recent call last):", *["  " + "x" * 998] * 1000, sep="\\n", file=sys.stderr, flush=True)
    answer = 1
    """

    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        worker = await loaded(nursery, home.model("endless"))
        assert await value(worker, code) == 1
        while sum(len(text) for name, _, text in home.lines if name == "endless") < 900_000:
            await asyncio.sleep(0.01)
        assert max(len(text) for _, _, text in home.lines) <= 1 << 16
        await nursery.close()

    run(test)


@pytest.mark.parametrize(
    ("python", "error"),
    [("./missing", FileNotFoundError), ("not-on-path-xyz", FileNotFoundError), ("./x", PermissionError)],
)
def test_an_interpreter_that_cannot_be_started_is_an_os_error(home, python, error):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("python", python=python)
        (spec.model_dir / "x").write_text("")
        with pytest.raises(error):
            await nursery.worker(spec)
        await nursery.close()

    run(test)


@pytest.mark.parametrize(
    ("code", "ended"),
    [("import os; os._exit(7)", 7), ("import sys; sys.exit(5)", 5), ("import os; os.kill(os.getpid(), 11)", -11)],
)
def test_how_a_worker_ended_is_told(home, code, ended):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        worker = await loaded(nursery, home.model("ends"))
        with pytest.raises((AssertionError, ConnectionError)):
            await ask(worker, code.encode())
        assert await worker.exited == ended
        await nursery.close()

    run(test)


def test_an_init_call_without_memory_is_told_as_such(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        worker = await nursery.worker(home.model("big", "def handle(inputs): raise MemoryError('too big')"))
        answer, _ = await ask(worker, None)
        assert answer["failure"]["kind"] == "memory" and answer["failure"]["error"] == "too big"
        await nursery.close()

    run(test)


SPAWN = """
import subprocess
answer = [subprocess.Popen(["sleep", "600"], start_new_session=new).pid for new in (False, True)]
"""


def test_what_a_handler_started_goes_with_its_worker(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        for end in ("killed", "exits"):
            worker = await loaded(nursery, home.model("spawns"))
            pids = await value(worker, SPAWN)
            if end == "killed":
                worker.kill()
            else:
                worker.socket.close()
            await worker.exited
            for pid in pids:
                await gone(pid)
        await nursery.close()

    run(test)


@pytest.mark.parametrize("is_root_stopped", [False, True])
def test_close_leaves_nothing(home, is_root_stopped):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("spawns")
        forked = await loaded(nursery, spec)
        template = await nursery.template(spec, 30)
        further = await nursery.worker(spec, template)
        own = home.model("plain", python="./python")
        own_interpreter(own)
        plain = await loaded(nursery, own)
        pids = [worker.pid for worker in (forked, further, plain)] + [template.pid, *nursery.pids()]
        for worker in (forked, further, plain):
            pids += await value(worker, SPAWN)
        assert not any(is_gone(pid) for pid in pids)
        if is_root_stopped:
            os.kill(nursery.status()["pid"], signal.SIGSTOP)
        await nursery.close()
        assert [pid for pid in pids if not is_gone(pid)] == []

    run(test)


def test_a_killed_branch_harms_no_worker_and_is_grown_again(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("branch", "import packaging.version\n" + EVAL)
        await loaded(nursery, spec)
        await settled(nursery)
        before = await loaded(nursery, spec)
        (branch,) = [each["pid"] for each in nursery.status()["branches"] if each["imports"] == ["packaging.version"]]
        os.kill(branch, signal.SIGKILL)
        await gone(branch)
        assert await value(before, "answer = 1") == 1
        after = await loaded(nursery, spec)
        assert after.origin == "forked"
        assert branch not in nursery.pids()
        before.kill()
        assert await before.exited == -9
        await nursery.close()

    run(test)


def test_a_worker_whose_branch_was_stopped_ends_all_the_same_when_it_is_killed(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        worker = await loaded(nursery, home.model("one"))
        await settled(nursery)
        (base,) = nursery.status()["branches"]
        os.kill(base["pid"], signal.SIGSTOP)
        worker.kill()
        assert await worker.exited == -9
        assert worker.pid not in nursery.status()["processes"]
        await nursery.close()

    run(test)


def test_the_branch_of_all_others_that_was_killed_is_grown_again_for_the_next_model(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        await loaded(nursery, home.model("before"))
        await settled(nursery)
        (base,) = nursery.status()["branches"]
        os.kill(base["pid"], signal.SIGKILL)
        await gone(base["pid"])
        assert (await loaded(nursery, home.model("after"))).origin == "forked"
        (again,) = nursery.status()["branches"]
        assert (again["imports"], again["modules"]) == (base["imports"], base["modules"])
        await nursery.close()

    run(test)


def test_the_end_of_a_branch_and_of_its_standby_is_seen_though_the_root_is_stopped(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        await settled(nursery)
        waiting = await standby(nursery)
        status = nursery.status()
        os.kill(status["pid"], signal.SIGSTOP)
        os.kill(status["branches"][0]["pid"], signal.SIGKILL)
        while {waiting, status["branches"][0]["pid"]} & set(nursery.status()["processes"]):
            await asyncio.sleep(0.01)
        os.kill(status["pid"], signal.SIGCONT)
        await nursery.close()

    run(test)


async def standby(nursery: Nursery, number: int = 0) -> int:
    """The pid of the process that waits in a branch for a model, once there is one."""
    while not (pid := nursery.status()["branches"][number]["standby"]):
        await asyncio.sleep(0.01)
    return int(pid)


def test_a_worker_was_forked_before_its_model_was_known_and_another_takes_its_place(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        await settled(nursery)
        waiting = await standby(nursery)
        worker = await loaded(nursery, home.model("first", "print('I am', __file__)\n" + textwrap.dedent(EVAL)))
        assert (worker.pid, worker.origin) == (waiting, "forked")
        second = await loaded(nursery, home.model("second"))
        assert await value(second, "import os; answer = os.getcwd()") == str(home.folder / "second")
        assert await standby(nursery) not in (worker.pid, second.pid)
        await nursery.close()  # reads what was still to be read
        assert ("first", "stdout", f"I am {home.folder}/first/model.py") in home.lines

    run(test)


def test_a_standby_that_was_killed_is_not_missed(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        await settled(nursery)
        for is_told in (True, False):
            waiting = await standby(nursery)
            os.kill(waiting, signal.SIGKILL)
            while not is_gone(waiting):
                time.sleep(0.001)  # and nothing is read meanwhile that tells the server
            while is_told and waiting in nursery.status()["processes"]:
                await asyncio.sleep(0.01)
            worker = await loaded(nursery, home.model("any"))
            assert worker.origin == "forked" and worker.pid != waiting
        await nursery.close()

    run(test)


def test_a_library_that_another_imports_starts_no_thread_in_a_template(home):
    code = """
    from tqdm.std import tqdm
    def handle(inputs):
        for _ in tqdm(range(3)):
            pass
    """

    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("bar", code)
        await loaded(nursery, spec)
        await settled(nursery)
        assert (await nursery.template(spec, 30)).pid
        await nursery.close()

    run(test)


def test_a_killed_root_harms_no_worker_and_is_started_again(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        spec = home.model("rooted")
        before = await loaded(nursery, spec)
        root = nursery.status()["pid"]
        os.kill(root, signal.SIGKILL)
        while not nursery.pids() or is_gone(root) is False:
            await asyncio.sleep(0.01)
        assert await value(before, "answer = 1") == 1
        after = await loaded(nursery, home.model("plain", env={"A": "b"}))
        assert await value(after, "answer = 2") == 2
        for worker in (before, after):
            worker.kill()
            assert await worker.exited == -9
        await nursery.close()

    run(test)


def test_a_request_for_a_worker_that_is_given_up_leaves_none(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        await settled(nursery)
        spec = home.model("given-up")
        for ticks in range(12):
            asked = asyncio.create_task(nursery.worker(spec))
            for _ in range(ticks):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
            if not asked.cancelled():
                asked.result().kill()
        worker = await loaded(nursery, spec)
        deadline = time.monotonic() + DEADLINE_S / 2
        while left := set(nursery.status()["processes"]) - {worker.pid, *nursery.pids()}:
            assert time.monotonic() < deadline, left
            await asyncio.sleep(0.01)
        await nursery.close()

    run(test)


OWNER = """
import asyncio, sys
from pathlib import Path
from mme.server.nursery import Nursery, WorkerSpec
async def main():
    nursery = Nursery(Path(sys.argv[1]) / "nursery")
    await nursery.start()
    spec = WorkerSpec("busy", Path(sys.argv[1]), "model.py")
    workers = [await nursery.worker(spec), await nursery.worker(WorkerSpec("busy", Path(sys.argv[1]), "model.py"))]
    print(*nursery.status()["processes"], nursery.status()["pid"], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("is_root_stopped", [False, True])
def test_when_the_server_is_killed_nothing_is_left(home, is_root_stopped):
    spec = home.model("busy", "while True: pass")
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(spec.model_dir)], stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) >= 4
        if is_root_stopped:
            os.kill(pids[-1], signal.SIGSTOP)
    finally:
        owner.kill()
        owner.communicate()

    async def test() -> None:
        for pid in pids:
            await gone(pid)

    run(test)


def test_no_descriptor_is_left_in_the_server(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        worker = await loaded(nursery, home.model("fds"))
        worker.socket.close()
        await worker.exited
        await nursery.close()

    held = len(os.listdir("/dev/fd"))
    run(test)
    assert len(os.listdir("/dev/fd")) == held


def test_learned_imports_survive_a_broken_file(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        await nursery.close()
        for text in ("", "{", "[1]", '[{"imports": 1}]'):
            for sets in [*(home.folder / "nursery").iterdir(), nursery._sets.path]:
                sets.write_text(text)
            nursery = home.nursery()
            await nursery.start()
            assert (await loaded(nursery, home.model("any"))).origin == "forked"
            await nursery.close()

    run(test)


def test_sockets_of_workers_are_unix_and_do_not_block(home):
    async def test() -> None:
        nursery = home.nursery()
        await nursery.start()
        worker = await nursery.worker(home.model("socket"))
        assert worker.socket.family == socket.AF_UNIX and worker.socket.getblocking() is False
        await nursery.close()

    run(test)


def test_imports_that_cannot_be_found_are_left_to_the_worker(tmp_path):
    (tmp_path / "model.py").write_text("import __main__, json, numpy.linalg, not_there_xyz\nfrom . import x\n")
    key = key_of(tmp_path, "model.py", {})
    assert (sorted(key.imports), key.installed()) == (["not_there_xyz", "numpy.linalg"], ["numpy.linalg"])
    assert "" not in key_of(tmp_path, ".odd", {}).installed()
