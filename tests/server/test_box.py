from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import container
import ordinary
import psutil
import pytest
import uvloop

from mme.server import config, limits
from mme.server.nursery import Nursery, WorkerProcess, WorkerSpec
from mme.server.worker import box, frames

DEADLINE_S = 60.0
# A package that tries everything that its caller names, and answers with what came of each.
INTRUDER = """\
import json, os, resource, socket, tempfile, time
from pathlib import Path
from djl_python import Output

def read(path): return Path(path).read_text()
def list_folder(path): return os.listdir(path)
def write(path): return Path(path).write_text("taken")
def connect(port): return socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
def abstract(name):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\\0" + name)
def signal_to(pid): return os.kill(int(pid), 0)
def descriptors(_):
    places = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(place) for place in places if os.path.lexists(place)]
def variables(_): return sorted(name for name in os.environ if name.startswith("AWS_"))
def place(_): return [tempfile.gettempdir(), str(Path.home()), str(resource.getrlimit(resource.RLIMIT_CORE))]
def leave(name): return write(Path(tempfile.gettempdir(), name))
def group(_): return [os.getpid(), os.getpgrp(), os.getsid(0)]
def who(_): return [os.geteuid(), read("/proc/self/status").split("CapEff:")[1].split()[0]]
def grow(mb):
    kept.append(bytearray(b"x") * (int(mb) << 20))

def pause(_): time.sleep(600)

kept = []

def handle(inputs):
    if inputs.is_empty():
        return None
    outcome = []
    for name, argument in inputs.get_as_json():
        try:
            outcome.append(globals()[name](argument))
        except OSError as error:
            outcome.append(type(error).__name__)
    return Output().add_as_json(outcome)
"""


class Asker:
    """Conversations with workers, one call at a time."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.decoder = frames.Decoder()

    async def ask(self, *tries: tuple[str, Any], op: str = "invoke") -> Any:
        """What came of each, or ConnectionError if the worker is gone."""
        loop = asyncio.get_running_loop()
        body = json.dumps(tries).encode() if tries else b""
        content = [["data", len(body)]] if body else []
        inputs = [{"properties": {"Content-Type": "application/json"}, "content": content}]
        await loop.sock_sendall(
            self.worker.socket, b"".join(frames.encode({"id": 1, "op": op, "inputs": inputs}, body))
        )
        while True:
            data = await asyncio.wait_for(loop.sock_recv(self.worker.socket, 1 << 16), DEADLINE_S)
            if not data:
                raise ConnectionError("the worker is gone")
            for header, answer in self.decoder.feed(data):
                if "index" in header:
                    assert "failure" not in header, header
                    return json.loads(answer) if answer else None


def with_worker(
    folder: Path,
    test: Callable[[Asker], Awaitable[None]],
    rules: box.Rules = box.Rules(),  # noqa: B008
    fork: bool = True,
    before: Callable[[], None] = ordinary.be_ordinary,
    **spec: Any,
) -> None:
    """Start a worker of the intruder, as an ordinary user, and test it."""
    model = folder / "intruder"
    model.mkdir(exist_ok=True)
    (model / "model.py").write_text(INTRUDER)

    async def run() -> None:
        nursery = Nursery(folder / "nursery", fork=fork, rules=rules)
        await nursery.start()
        try:
            asker = Asker(await nursery.worker(WorkerSpec("intruder", model, "model.py", **spec)))
            with asker.worker.socket:
                await asker.ask(op="init")
                await test(asker)
        finally:
            await nursery.close()
        assert [path.name for path in (folder / "nursery").glob("tmp-*")] == []

    ordinary.in_a_process(before, lambda: uvloop.run(run()))


def secrets(folder: Path) -> list[Path]:
    """What a package must not read: a neighbour's, the platform's state, S3's files, the user's credentials."""
    paths = [folder / name for name in ("neighbour/model.py", "state.json", "s3/bucket/key", "home/.aws/credentials")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    return paths


@pytest.mark.parametrize(
    "fork, before",
    [(True, ordinary.be_ordinary), (False, ordinary.be_ordinary), (True, lambda: None)],
    ids=["forked", "plain", "as who runs the tests"],
)
def test_a_package_reaches_its_own_folders_and_nothing_else(
    tmp_path: Path, fork: bool, before: Callable[[], None]
) -> None:
    paths = secrets(tmp_path)

    async def test(asker: Asker) -> None:
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
            local.bind(f"\0mme-box-{os.getpid()}")
            local.listen()
            tries = [*(("read", str(path)) for path in paths), ("list_folder", str(tmp_path))]
            tries += [("write", str(tmp_path / "planted")), ("read", f"/proc/{os.getpid()}/environ")]
            outside = await asker.ask(*tries)
            net = await asker.ask(
                ("connect", tcp.getsockname()[1]),
                ("abstract", f"mme-box-{os.getpid()}"),
                ("signal_to", os.getpid()),
            )
            own = await asker.ask(("read", "model.py"), ("leave", "note"), ("write", "note"), ("read", "/etc/hosts"))
        reached = [
            what
            for what, outcome in zip([*tries, *range(3)], outside + net, strict=True)
            if outcome != "PermissionError"
        ]
        version = box.abi()
        expected: list[Any] = [] if version >= 6 else [1, 2] if version >= 4 else [0, 1, 2]
        assert reached == (expected if version else [*tries, 0, 1, 2])
        assert own[0] == INTRUDER and own[1:3] == [5, 5] and "PermissionError" not in own

    with_worker(tmp_path, test, fork=fork, before=before)


def test_the_intruder_is_an_ordinary_user_even_if_root_runs_the_tests(tmp_path: Path) -> None:
    async def test(asker: Asker) -> None:
        ((user, capabilities),) = await asker.ask(("who", ""))
        assert user == (os.geteuid() or ordinary.USER) and int(capabilities, 16) == 0

    with_worker(tmp_path, test)


def test_a_kernel_without_landlock_is_told_of_and_serves(tmp_path: Path) -> None:
    paths = secrets(tmp_path)

    async def test(asker: Asker) -> None:
        assert box.describe() == "none: Linux kernel without Landlock"
        assert await asker.ask(("read", str(paths[0])), ("leave", "note")) == ["secret", 5]

    with_worker(tmp_path, test, before=ordinary.forget_landlock)


def test_a_packages_variables_are_not_among_its_workers_arguments(tmp_path: Path) -> None:
    async def test(asker: Asker) -> None:
        assert asker.worker.origin.startswith("plain")
        assert "a-token" not in Path(f"/proc/{asker.worker.pid}/cmdline").read_text()
        assert (await asker.ask(("read", "/proc/self/environ")))[0].count("TOKEN=a-token") == 1

    with_worker(tmp_path, test, fork=False, env={"TOKEN": "a-token"})


def test_an_interpreter_that_a_package_brings_is_in_the_box_from_its_start(tmp_path: Path) -> None:
    paths = secrets(tmp_path)

    async def test(asker: Asker) -> None:
        assert await asker.ask(("read", "stolen")) == ["" if box.abi() else "secret"]

    model = tmp_path / "intruder"
    model.mkdir()
    (model / "python").write_text(f'#!/bin/sh\ncat {paths[0]} > {model}/stolen\nexec {sys.executable} "$@"\n')
    (model / "python").chmod(0o755)
    with_worker(tmp_path, test, python="./python")


def test_the_container_can_open_the_box(tmp_path: Path) -> None:
    paths = secrets(tmp_path)
    rules = box.Rules.from_environ({"MME_BOX_NETWORK": "on", "MME_BOX_PATHS": str(paths[0].parent)})

    async def test(asker: Asker) -> None:
        with socket.create_server(("127.0.0.1", 0)) as tcp:
            answers = await asker.ask(("connect", tcp.getsockname()[1]), *(("read", str(path)) for path in paths))
        assert answers[:2] == [None, "secret"]
        assert answers[2:] == ["PermissionError" if box.abi() else "secret"] * 3

    with_worker(tmp_path, test, rules)


def test_without_a_box_everything_is_as_the_user_may(tmp_path: Path) -> None:
    paths = secrets(tmp_path)

    async def test(asker: Asker) -> None:
        assert await asker.ask(*(("read", str(path)) for path in paths)) == ["secret"] * 4

    with_worker(tmp_path, test, box.Rules.from_environ({"MME_BOX": "off"}))


@pytest.mark.parametrize(
    "environ, message",
    [
        ({"MME_BOX": "maybe"}, "MME_BOX=maybe is neither on nor off"),
        ({"MME_BOX_NETWORK": "1"}, "MME_BOX_NETWORK=1 is neither on nor off"),
        ({"MME_BOX_PATHS": "data"}, "MME_BOX_PATHS: data is relative; give the whole path"),
        ({"MME_WORKER_MEMORY_MB": "1G"}, "MME_WORKER_MEMORY_MB=1G is not a whole number of megabytes"),
    ],
)
def test_a_setting_that_cannot_be_understood_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.ContainerConfig.from_environ(environ)


def test_the_status_says_what_the_box_is_made_of() -> None:
    found = box.describe()
    assert found == (f"landlock {box.abi()}" if box.abi() else "none: Linux kernel without Landlock")
    assert box.describe(box.Rules(is_on=False)) == "none: MME_BOX=off"


def test_credentials_stay_outside_unless_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    async def test(asker: Asker) -> None:
        (names,) = await asker.ask(("variables", ""))
        assert "AWS_ACCESS_KEY_ID" in names and "AWS_REGION" in names and "AWS_SECRET_ACCESS_KEY" not in names

    with_worker(tmp_path, test, box.Rules.from_environ({"MME_BOX_ENV": "AWS_ACCESS_KEY_ID"}))


@pytest.mark.parametrize("fork", [True, False])
def test_a_worker_has_its_own_session_and_temporary_folder_no_dumps_and_no_descriptors(
    tmp_path: Path, fork: bool
) -> None:
    secret = open(tmp_path / "held", "w")
    os.set_inheritable(secret.fileno(), True)

    async def test(asker: Asker) -> None:
        (temporary, home, core), group, descriptors = await asker.ask(("place", ""), ("group", ""), ("descriptors", ""))
        assert temporary == home and Path(temporary).is_relative_to(tmp_path / "nursery")
        assert Path(temporary).stat().st_mode & 0o777 == 0o700
        assert core == "(0, 0)"
        assert group == [asker.worker.pid] * 3
        assert {name.partition(":")[0] for name in descriptors} <= {"/dev/null", "pipe", "socket"}

    with secret:
        with_worker(tmp_path, test, fork=fork)


def test_a_killed_workers_temporary_folder_goes_with_it(tmp_path: Path) -> None:
    async def test(asker: Asker) -> None:
        (temporary, _, _), _ = await asker.ask(("place", ""), ("leave", "much"))
        assert Path(temporary, "much").exists()
        os.kill(asker.worker.pid, signal.SIGKILL)
        end = asyncio.get_running_loop().time() + DEADLINE_S
        while Path(temporary).parent.exists():
            assert asyncio.get_running_loop().time() < end, "the folder is left"
            await asyncio.sleep(0.005)

    with_worker(tmp_path, test)


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = tmp_path / "nursery" / f"tmp-{ended.stdout.strip()}" / "1" / "2"
    left.mkdir(parents=True)

    async def test(asker: Asker) -> None:
        assert not left.exists()

    with_worker(tmp_path, test)


def test_private_memory_is_that_of_the_process_and_what_it_started(tmp_path: Path) -> None:
    child = "b = b'x' * (64 << 20); print(flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert psutil.Process(process.pid).memory_full_info().uss < 64 << 20
        assert limits.private_mb(process.pid) > 64
        process.communicate(b"\n")


def test_a_worker_beyond_its_memory_is_lost_and_neither_its_model_nor_a_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MME_WORKER_MEMORY_MB", "100")
    pids = {}
    with container.embedded() as served:
        for name in ("greedy", "modest"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "model.py").write_text(INTRUDER)
            assert served.load(name, folder).status == 200
            pids[name] = _ask(served, name, "group", "")[1][0][0]
        status, answer = _ask(served, "greedy", "grow", 200, then=("pause", ""))
        assert status == 503 and "Python worker disconnected." in json.dumps(answer)
        assert _ask(served, "modest", "group", "")[1][0][0] == pids["modest"]
        assert _ask(served, "greedy", "group", "")[1][0][0] != pids["greedy"]


def _ask(served: container.Container, name: str, *attempt: Any, then: Any = ()) -> tuple[int, Any]:
    body = json.dumps([attempt, *([then] if then else [])]).encode()
    answer = served.call("POST", f"/models/{name}/invoke", {"Content-Type": "application/json"}, body)
    return answer.status, json.loads(answer.body)
