"""A container as a process: how it is started, asked and ended."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mme.platform.containers import Container, ContainerGone, ContainerKind, ContainerSpec, ContainerStartFailed, Launch

pytestmark = pytest.mark.anyio


def spec(folder: Path, **environment: str) -> ContainerSpec:
    return ContainerSpec(f"test-{time.time_ns()}", folder, environment)


def script(text: str, start_timeout_s: float = 60) -> ContainerKind:
    """A container that is a few lines of Python."""
    argv = [sys.executable, "-S", "-c", text]
    return ContainerKind("script", lambda _: Launch(argv), start_timeout_s=start_timeout_s)


async def test_lines_of_stdout_and_stderr_are_handed_over_one_by_one(rig: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    container = await Container.start(rig.kind, spec(tmp_path), on_record=lines.append)
    try:
        await rig.until(lambda: "a line of the container" in lines)
        assert lines[0].startswith("listening on http://127.0.0.1:")
    finally:
        await container.stop()
    assert not psutil.pid_exists(container.pid)


async def test_a_line_without_end_is_cut_and_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    lines: list[str] = []
    long = script("import sys; sys.stdout.buffer.write(b'x' * 600_000 + b'\\n\\xff end'); sys.stdout.flush()")
    with pytest.raises(ContainerStartFailed, match="ended with exit code 0 before it served"):
        await Container.start(long, spec(tmp_path), on_record=lines.append)
    assert max(map(len, lines)) < 400_000 and lines[-1] == "\ufffd end"
    assert sum(map(len, lines[:-1])) == 600_000


async def test_indented_lines_belong_to_the_record_before_them(rig: Any, tmp_path: Path) -> None:
    records: list[str] = []
    text = "one\\n  more\\r\\n\\tof it\\n\\ntwo\\n  begun"
    talker = script(
        f"print('{text}', end='', flush=True); open({str(rig.meeting / 'gate')!r}).read(); print(' and ended')"
    )
    os.mkfifo(rig.meeting / "gate")
    start = asyncio.create_task(Container.start(talker, spec(tmp_path), on_record=records.append))
    await rig.until(lambda: "two" in records)
    (rig.meeting / "gate").write_text("")
    with pytest.raises(ContainerStartFailed):
        await start
    assert records == ["one\n  more\n\tof it", "", "two", "  begun and ended"]


async def test_a_record_that_nothing_follows_is_handed_over_without_waiting_for_more(rig: Any, tmp_path: Path) -> None:
    records: list[str] = []
    waiting = script("import time; print('last\\n words', flush=True); time.sleep(600)")
    start = asyncio.create_task(Container.start(waiting, spec(tmp_path), on_record=records.append))
    await rig.until(lambda: records == ["last\n words"])
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)


async def test_a_container_that_never_serves_is_ended_after_its_time(tmp_path: Path) -> None:
    with pytest.raises(ContainerStartFailed, match="no healthy answer to GET /ping within 0.5 s"):
        await Container.start(script("import time; time.sleep(600)", 0.5), spec(tmp_path), on_record=print)


async def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    kind = ContainerKind("none", lambda _: Launch(["no-such-program"]))
    with pytest.raises(ContainerStartFailed, match="exit code 1"):
        await Container.start(kind, spec(tmp_path), on_record=lines.append)
    assert lines == ["cannot start no-such-program: No such file or directory"]


async def test_a_container_that_ignores_sigterm_is_killed(tmp_path: Path, rig: Any) -> None:
    stubborn = script(
        "import signal, sys, runpy; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"sys.argv = ['stand_in', {str(rig.meeting)!r}]; "
        f"runpy.run_path({str(Path(__file__).with_name('stand_in_container.py'))!r}, run_name='__main__')"
    )
    container = await Container.start(stubborn, spec(tmp_path), on_record=print)
    await container.stop(grace_s=0.2)
    assert container.exited.result() == -9


async def test_what_the_http_contract_answers_is_passed_on(rig: Any, tmp_path: Path) -> None:
    container = await Container.start(rig.kind, spec(tmp_path), on_record=print)
    model = tmp_path / "model"
    model.mkdir()
    (model / "behaviour.json").write_text('{"answer": "a"}')
    try:
        assert await container.ping()
        assert await container.models() == {}
        assert (await container.load("m1", model, "m.tar.gz")).status == 200
        again = await container.load("m1", model, "m.tar.gz")
        assert (again.status, again.message()) == (409, "Workflow m1 is already registered.")
        assert await container.models() == {"m1": "READY"}
        described = {"name": "m1", "workers": [{"id": 1, "origin": "DJL Serving"}]}
        assert await container.figures() == {"models": [described]}
        assert (await container.invoke("/models/m1/invoke", {"Content-Type": "text/plain"}, b"x")).status == 200
        assert (await container.unload("m1")).status == 200
        assert (await container.unload("m1")).status == 404
    finally:
        await container.stop()
    assert await container.figures() is None
    assert not await container.ping()
    assert await container.models() is None


async def test_a_container_that_is_gone_is_told_from_one_that_broke_off(rig: Any, tmp_path: Path) -> None:
    container = await Container.start(rig.kind, spec(tmp_path), on_record=print)
    model = tmp_path / "model"
    model.mkdir()
    (model / "behaviour.json").write_text('{"exit_in": "invoke"}')
    await container.load("m1", model, "m.tar.gz")
    with pytest.raises(ContainerGone) as caught:
        await container.invoke("/models/m1/invoke", {}, b"")
    assert caught.value.is_sent
    await container.exited
    with pytest.raises(ContainerGone) as caught:
        await container.invoke("/models/m1/invoke", {}, b"")
    assert not caught.value.is_sent
    await container.stop()


async def test_a_container_is_started_from_the_main_thread_only(rig: Any, tmp_path: Path) -> None:
    def start() -> None:
        asyncio.run(Container.start(rig.kind, spec(tmp_path), on_record=print))

    with pytest.raises(RuntimeError, match="must be started from the main thread"):
        await asyncio.to_thread(start)
