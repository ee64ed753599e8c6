from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from ended import is_gone

from mme.server import config, forks
from mme.server.call import Call
from mme.server.config import ModelConfig
from mme.server.errors import InitOutOfMemory, LoadFailed
from mme.server.exchange import Exchange
from mme.server.nursery import Nursery, WorkerSpec
from mme.server.pool import Pool

DEADLINE_S = 60.0
HANDLER = """\
import os, sys, time
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        return None
    asked = inputs.get_as_string()
    if asked == "exit":
        os._exit(3)
    if asked == "sleep":
        time.sleep(600)
    if asked == "hold":
        open("held", "a").close()
        with open("gate") as gate:
            gate.read(1)
    if asked.startswith("nap"):
        time.sleep(float(asked.split()[1]))
        with open("made", "a") as made:
            made.write(asked + "\\n")
    if asked == "stall":
        pieces = (time.sleep(600 * (piece == "b")) or piece for piece in "ab")
        return Output().add_stream_content(pieces, output_formatter=None)
    if asked == "stream":
        return Output().add_stream_content(iter(["a", "b"]), output_formatter=None)
    return Output().add(f"{asked} {os.getpid()}")
"""


class Wire:
    """Takes an answer as a connection would."""

    def __init__(self) -> None:
        self.finished = asyncio.get_running_loop().create_future()
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def finish(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        self.finished.set_result((self.written + head).split(b"\r\n")[0].decode() + "\n" + body.decode())

    def abort(self) -> None:
        self.finished.set_result("cut off")


class Asked:
    """A call, and what became of it."""

    def __init__(self, pool: Pool, text: str) -> None:
        self.wire = Wire()
        self.has_left = False
        self.exchange = Exchange(self.wire, "POST", b"/", [("Content-Type", "text/plain")], text.encode())
        pool.submit(Call(self.exchange))

    def leave(self) -> None:
        self.has_left = True
        self.exchange.gone()

    async def answer(self) -> str:
        """The status line and the body."""
        return str(await asyncio.wait_for(self.wire.finished, DEADLINE_S))

    async def pid(self) -> int:
        answer = await self.answer()
        assert answer.startswith("HTTP/1.1 200 OK\n"), answer
        return int(answer.split()[-1])


async def until(condition: Callable[[], Any], what: str) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < end, f"waited in vain until {what}"
        await asyncio.sleep(0.005)


def with_pool(
    folder: Path, test: Callable[[Pool], Awaitable[None]], handler: str = HANDLER, fork: bool = True, **changes: Any
) -> None:
    """Start a pool of real workers, test it, and see that nothing is left of it."""
    model = folder / "model"
    model.mkdir()
    (model / "model.py").write_text(handler)
    os.mkfifo(model / "gate")

    async def run() -> None:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        nursery = Nursery(folder / "nursery", fork=fork)
        await nursery.start()
        container = config.ContainerConfig.from_environ({})
        settings: ModelConfig = replace(config.read(config.LoadRequest("m", str(model)), container), **changes)
        spec = WorkerSpec("m", model, settings.entry_point, async_mode=settings.async_mode)
        pool = Pool(settings, spec, nursery)
        try:
            await pool.start()
            await test(pool)
        finally:
            await pool.close()
            await nursery.close()
            left = {child.pid for child in psutil.Process().children(recursive=True)} - before
            assert not left, f"processes {left} are left"

    uvloop.run(run())


def let_one_go(pool: Pool) -> None:
    gate = os.open(pool.config.model_dir / "gate", os.O_RDWR)
    os.write(gate, b".")
    os.close(gate)


async def hold(pool: Pool) -> Asked:
    """A call that keeps its worker until the gate opens; returns when the handler is at it."""
    held = Asked(pool, "hold")
    await until((pool.config.model_dir / "held").exists, "the handler was called")
    return held


def test_calls_are_answered_first_in_first_out(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        held = await hold(pool)
        order: list[str] = []
        asked = [Asked(pool, f"call-{number}") for number in range(6)]
        for each in asked:
            each.wire.finished.add_done_callback(lambda done: order.append(done.result().split()[-2]))
        let_one_go(pool)
        await held.answer()
        await asyncio.gather(*(each.answer() for each in asked))
        assert order == [f"call-{number}" for number in range(6)]

    with_pool(tmp_path, test, max_workers=1)


def test_a_full_queue_refuses_and_what_is_in_it_is_answered(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        held = await hold(pool)
        queued, refused = Asked(pool, "queued"), Asked(pool, "refused")
        answer = await refused.answer()
        assert answer.startswith("HTTP/1.1 503 Service Unavailable")
        assert "Worker queue capacity exceeded for model: m" in answer
        let_one_go(pool)
        await held.answer()
        await queued.pid()

    with_pool(tmp_path, test, max_workers=1, queue_size=2)


def test_a_crash_costs_its_own_call_and_those_behind_it_get_a_new_worker(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        first = await Asked(pool, "x").pid()
        crashed, behind = Asked(pool, "exit"), [Asked(pool, "y") for _ in range(3)]
        answer = await crashed.answer()
        assert "503" in answer and "java.io.IOException: Python worker disconnected." in answer
        pids = {await each.pid() for each in behind}
        assert len(pids) == 1 and first not in pids
        assert pool.counters.crashes == 1

    with_pool(tmp_path, test, max_workers=1)


def test_a_call_that_is_late_costs_its_worker_and_no_other_call(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        late, behind = Asked(pool, "sleep"), Asked(pool, "y")
        old = pool.workers[0].process.pid
        answer = await late.answer()
        assert "503" in answer and '"java.util.concurrent.TimeoutException"' in answer
        assert await behind.pid() != old
        await until(lambda: is_gone(old), "the late worker was gone")

    with_pool(tmp_path, test, max_workers=1, predict_timeout_s=3)


def test_a_calls_time_begins_when_its_worker_begins_it(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        asked = [Asked(pool, f"nap 0.8 {number}") for number in range(4)]
        assert len(pool.workers[0].ahead) == 2 and pool.waiting == 3
        assert len({await each.pid() for each in asked}) == 1

    with_pool(tmp_path, test, max_workers=1, predict_timeout_s=3)


def test_no_call_waits_behind_a_busy_worker_while_another_is_free(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        held, napping = await hold(pool), Asked(pool, "nap 0.2")
        behind = [Asked(pool, "x") for _ in range(4)]
        assert [len(worker.ahead) for worker in pool.workers] == [2, 2]
        pids = {await each.pid() for each in behind}
        assert pids == {await napping.pid()} and not held.wire.finished.done()
        let_one_go(pool)
        assert await held.pid() not in pids

    with_pool(tmp_path, test, min_workers=2, max_workers=2)


def test_every_call_is_made_once_whoever_takes_it_and_however_workers_end(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        draw = random.Random(0)
        asked: list[Asked] = []
        crashes = []
        for number in range(400):
            asked.append(Asked(pool, f"nap {draw.choice((0, 0, 0.001, 0.01))} {number}"))
            if number % 100 == 50:
                crashes.append(Asked(pool, "exit"))
            if number % 10 == 9:
                draw.choice(asked[-4:]).leave()
                await asyncio.sleep(0.001)
        for each in crashes:
            assert "503" in await each.answer()
        stayed = [each for each in asked if not each.has_left]
        for each in stayed:
            await each.pid()
        made = (pool.config.model_dir / "made").read_text().splitlines()
        assert len(made) == len(set(made))
        assert {each.exchange.body.decode() for each in stayed} <= set(made)
        assert pool.waiting == 0 and pool.counters.crashes == len(crashes)

    with_pool(tmp_path, test, min_workers=3, max_workers=3)


def test_an_idle_worker_that_is_killed_is_noticed_and_replaced(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        first = await Asked(pool, "x").pid()
        os.kill(first, signal.SIGKILL)
        await until(lambda: pool.workers and pool.workers[0].process.pid != first, "the worker was replaced")
        assert await Asked(pool, "y").pid() != first

    with_pool(tmp_path, test)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_that_never_reached_a_killed_worker_is_made_by_another(tmp_path: Path, is_async: bool) -> None:
    async def test(pool: Pool) -> None:
        first = await Asked(pool, "x").pid()
        os.kill(first, signal.SIGKILL)
        while not is_gone(first):
            os.sched_yield()  # and not await: the pool is not to notice before it is asked
        assert await Asked(pool, "y").pid() != first

    handler = HANDLER.replace("def handle", "async def handle") if is_async else HANDLER
    with_pool(tmp_path, test, handler, async_mode=is_async)


def test_a_second_worker_is_forked_from_the_models_template_and_leaves_when_idle(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        held = await hold(pool)
        asked = [Asked(pool, "x") for _ in range(3)]
        second = await asked[0].pid()
        assert second != pool.workers[0].process.pid
        assert {await each.pid() for each in asked[1:]} == {second}
        assert pool.template is not None
        assert [worker.process.origin for worker in pool.workers] == ["forked", "forked"]
        let_one_go(pool)
        await held.answer()
        await until(lambda: len(pool.workers) == 1, "the idle worker had left")
        await Asked(pool, "y").pid()

    with_pool(tmp_path, test, max_workers=2, max_idle_s=1)


def test_no_worker_is_added_while_the_queue_is_short(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        held = await hold(pool)
        asked = [Asked(pool, "x") for _ in range(2)]
        await asyncio.sleep(0)
        assert len(pool.workers) == 1 and pool.template is None
        let_one_go(pool)
        assert await held.pid() == await asked[0].pid()

    with_pool(tmp_path, test, max_workers=2)


def test_without_workers_the_first_call_starts_one_and_is_answered(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        assert pool.workers == []
        await Asked(pool, "x").pid()
        await until(lambda: not pool.workers, "the worker left again")

    with_pool(tmp_path, test, min_workers=0, max_workers=1, max_idle_s=0.2)


def test_where_forking_is_off_further_workers_are_plain_processes(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        assert len(pool.workers) == 2 and pool.template is None
        assert all(worker.process.origin.startswith("plain: ") for worker in pool.workers)
        await Asked(pool, "x").pid()

    with_pool(tmp_path, test, fork=False, min_workers=2)


def test_calls_wait_for_a_worker_though_the_process_that_should_start_it_is_deaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(pool: Pool) -> None:
        first = await Asked(pool, "x").pid()
        monkeypatch.setattr(forks, "_FORK_TIMEOUT_S", 3.0)
        os.kill(pool._nursery.pids()[0], signal.SIGSTOP)
        crashed, behind = Asked(pool, "exit"), Asked(pool, "y")
        assert "disconnected" in await crashed.answer()
        assert await behind.pid() != first

    with_pool(tmp_path, test, fork=False, max_workers=1)


def test_bounds_can_be_changed_while_serving(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        growth = pool.scale(3, 3)
        assert growth is not None
        await growth
        assert len(pool.workers) == 3
        pool.scale(1, 1)
        assert len(pool.workers) == 1
        await Asked(pool, "x").pid()

    with_pool(tmp_path, test)


def test_closing_ends_calls_under_way_and_queued_ones(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        held = await hold(pool)
        queued = Asked(pool, "x")
        await pool.close()
        for asked in (held, queued, Asked(pool, "y")):
            answer = await asked.answer()
            assert "503" in answer
            assert "Worker shutting down" in answer or "Model is not ready: m" in answer

    with_pool(tmp_path, test)


def test_a_queued_call_whose_client_has_left_is_never_made(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        held = await hold(pool)
        left = Asked(pool, "exit")
        left.exchange.gone()
        assert not pool.queue
        let_one_go(pool)
        assert await held.pid() == await Asked(pool, "x").pid()

    with_pool(tmp_path, test, max_workers=1)


def test_a_stream_comes_in_pieces(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        asked = Asked(pool, "stream")
        await asked.answer()
        assert asked.wire.written.endswith(b"1\r\na\r\n1\r\nb\r\n")

    with_pool(tmp_path, test)


def test_a_stream_that_stalls_is_cut_off_and_its_worker_replaced(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        stalled, behind = Asked(pool, "stall"), Asked(pool, "x")
        assert await stalled.answer() == "cut off"
        assert stalled.wire.written.endswith(b"1\r\na\r\n")
        await behind.pid()

    with_pool(tmp_path, test, max_workers=1, predict_timeout_s=3)


LONG = """\
import os
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        return None
    if inputs.get_as_string() != "long":
        return Output().add(f"x {os.getpid()}")
    return Output().add_stream_content(iter(["x" * 1_000_000] * 50), output_formatter=None)
"""


async def held_back(pool: Pool) -> Asked:
    """A call whose client takes no more of what is streamed than its head."""
    asked = Asked(pool, "long")
    begun = asyncio.Event()

    def write(data: bytes) -> None:
        assert asked.exchange.on_flow is not None
        asked.exchange.on_flow(False)
        begun.set()

    asked.wire.write = write  # type: ignore[method-assign]
    await asyncio.wait_for(begun.wait(), DEADLINE_S)
    return asked


def test_a_client_that_leaves_a_stream_it_did_not_take_keeps_no_worker(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        pid = await Asked(pool, "x").pid()
        asked = await held_back(pool)
        asked.leave()
        assert await Asked(pool, "x").pid() == pid

    with_pool(tmp_path, test, handler=LONG, max_workers=1)


def test_the_time_in_which_a_client_takes_nothing_is_not_its_workers(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        asked = await held_back(pool)
        await asyncio.sleep(2 * pool.config.predict_timeout_s)
        del asked.wire.write
        assert asked.exchange.on_flow is not None
        asked.exchange.on_flow(True)
        assert await asked.answer() != "cut off"

    with_pool(tmp_path, test, handler=LONG, max_workers=1, predict_timeout_s=2)


def test_an_async_handlers_call_is_answered_beside_a_stream_that_is_held_back(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        await held_back(pool)
        await Asked(pool, "x").pid()

    with_pool(tmp_path, test, handler=LONG.replace("def handle", "async def handle"), max_workers=1, async_mode=True)


BATCHES = """\
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        return None
    output = Output()
    batch = inputs.get_batches()
    for index, one in enumerate(batch):
        output.add(f"{one.get_as_string()} of {len(batch)}", batch_index=index)
    return output
"""


def test_calls_that_come_together_are_one_batch_and_a_lone_one_waits_its_time(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        asked = [Asked(pool, f"{number}") for number in range(5)]
        answers = [(await each.answer()).split("\n")[1] for each in asked]
        assert answers == ["0 of 4", "1 of 4", "2 of 4", "3 of 4", "4 of 1"]

    with_pool(tmp_path, test, handler=BATCHES, max_workers=1, batch_size=4, max_batch_delay_s=0.05)


ASYNC = """\
import asyncio
from djl_python import Output
both = None

async def handle(inputs):
    global both
    if inputs.is_empty():
        return None
    both = both or asyncio.Barrier(3)
    await both.wait()
    return Output().add("met")
"""


def test_an_async_handler_has_several_calls_in_flight(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        asked = [Asked(pool, "x") for _ in range(3)]
        assert [(await each.answer()).split("\n")[1] for each in asked] == ["met"] * 3
        assert len(pool.workers) == 1

    with_pool(tmp_path, test, handler=ASYNC, async_mode=True)


# An answer to the init call that no worker gives, on whichever socket is the worker's.
SCRIBBLE = """import os, stat
    from mme.server.worker import frames
    for fd in map(int, os.listdir("/proc/self/fd")):
        if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.writev(fd, frames.encode({"id": 0, "failure": 1}))
"""


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("raise ValueError('no')", LoadFailed, "Failed to initialize model: invoke handler failure"),
        ("raise MemoryError", InitOutOfMemory, "OOM"),
        ("import os; os._exit(7)", LoadFailed, "Python worker disconnected."),
        ("import time; time.sleep(600)", LoadFailed, ""),
        (SCRIBBLE, LoadFailed, "Python worker disconnected."),
    ],
)
def test_a_failed_init_call_fails_the_start_in_djls_words(
    tmp_path: Path, init: str, error: type[LoadFailed], message: str
) -> None:
    async def test(pool: Pool) -> None:
        raise AssertionError("it started")

    with pytest.raises(error) as failure:
        limit_s = 2 if "sleep" in init else DEADLINE_S
        with_pool(tmp_path, test, handler=f"def handle(inputs):\n    {init}\n", load_timeout_s=limit_s)
    assert str(failure.value) == message


@pytest.mark.parametrize(("code", "exit_code"), [("import not_there", 1), ("x = (", 1), ("import os; os._exit(9)", 9)])
def test_a_broken_handler_file_fails_the_start_with_its_exit_code(tmp_path: Path, code: str, exit_code: int) -> None:
    async def test(pool: Pool) -> None:
        raise AssertionError("it started")

    with pytest.raises(LoadFailed, match=f"^Python stream closed unexpectedly, exit code: {exit_code}$"):
        with_pool(tmp_path, test, handler=code)


def test_a_model_whose_workers_cannot_be_started_any_more_has_failed(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        (pool.config.model_dir / "model.py").write_text("raise RuntimeError")
        crashed, behind = Asked(pool, "exit"), Asked(pool, "x")
        assert "disconnected" in await crashed.answer()
        assert "Model is not ready: m" in await behind.answer()
        assert pool.is_failed
        assert "Model is not ready: m" in await Asked(pool, "y").answer()

    with_pool(tmp_path, test, max_workers=1)


def test_a_missing_interpreter_is_named_as_java_names_it(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.py").write_text(HANDLER)

    async def run() -> None:
        nursery = Nursery(tmp_path / "nursery")
        await nursery.start()
        try:
            settings = config.read(config.LoadRequest("m", str(model)), config.ContainerConfig.from_environ({}))
            pool = Pool(settings, WorkerSpec("m", model, "model.py", python="./nope"), nursery)
            with pytest.raises(LoadFailed, match="^error=2, No such file or directory$"):
                await pool.start()
        finally:
            await nursery.close()

    uvloop.run(run())
