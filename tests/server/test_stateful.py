"""Random interleavings of load, invoke, scale, kill and unload leave the server as a few plain rules say it must be."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from container import Answer, Container, Gate, until
from ended import is_gone
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

NAMES = ("a", "b", "c")
GATE = (Path(__file__).parents[1] / "contract" / "gate.py").read_text()
HANDLER = """\
import os
from djl_python import Output
def handle(inputs):
    if inputs.is_empty():
        return None
    asked = inputs.get_as_string()
    if asked == "raise":
        raise ValueError("as asked")
    if asked == "exit":
        os._exit(3)
    if asked == "hold":
        __import__("gate").wait("hold")
    return Output().add(str(os.getpid()))
"""
HELD_INIT = "def handle(inputs):\n    __import__('gate').wait('init')\n"
PROPERTIES = (
    "engine=Python\nminWorkers={workers}\nmaxWorkers={workers}\nrequired_memory_mb=10\noption.predict_timeout=60\n"
)


@dataclass
class Model:
    """What the rules know of a loaded model."""

    workers: int
    gate: Gate
    held: list[Future[Answer]] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """The reference: a model is there or not, has so many workers, and so many of its calls are held."""

    container: Container
    root: Path
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.folder = self.root / str(self.runs)
        self.models: dict[str, Model] = {}
        self.pids: set[int] = set()
        self.loads = 0
        self.threads = ThreadPoolExecutor(8)

    def ask(self, name: str, what: str) -> Answer:
        return self.container.call("POST", f"/models/{name}/invoke", {}, what.encode())

    def is_free(self, name: str) -> bool:
        """Would a call be answered now: is the model absent, or has it a worker that isn't held?"""
        return name not in self.models or len(self.models[name].held) < self.models[name].workers

    def package(self, code: str, workers: int = 1) -> Path:
        """A new folder with a model."""
        self.loads += 1
        folder = self.folder / str(self.loads)
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(code)
        (folder / "gate.py").write_text(GATE)
        (folder / "serving.properties").write_text(PROPERTIES.format(workers=workers))
        return folder

    @rule(name=st.sampled_from(NAMES), workers=st.integers(1, 2))
    def load(self, name: str, workers: int) -> None:
        folder = self.package(HANDLER, workers)
        answer = self.container.load(name, folder)
        if name in self.models:
            assert answer.status == 409
        else:
            assert answer.status == 200, answer
            self.models[name] = Model(workers, Gate(folder, "hold"))

    @rule(name=st.sampled_from(NAMES), code=st.sampled_from(["", "import not_there_xyz", "raise MemoryError", "x = ("]))
    def load_what_cannot_be_loaded(self, name: str, code: str) -> None:
        assert self.container.load(name, self.package(code)).status == (409 if name in self.models else 500)

    @precondition(lambda self: len(self.models) < len(NAMES))
    @rule(data=st.data())
    def unload_while_it_loads(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if name not in self.models]))
        folder = self.package(HELD_INIT)
        gate = Gate(folder, "init")
        loading = self.threads.submit(self.container.load, name, folder)
        gate.expect(1)
        assert self.container.load(name, folder).status == 409
        assert self.ask(name, "").status == 503
        assert self.container.unload(name).status == 200
        assert (loading.result().status, json.loads(loading.result().body)["message"]) == (503, "Worker shutting down")
        gate.expect_deaths()
        gate.close()

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name: str) -> None:
        answer = self.container.unload(name)
        assert answer.status == (200 if name in self.models else 404)
        if name in self.models:
            model = self.models.pop(name)
            for call in model.held:
                assert call.result().status == 503
                assert json.loads(call.result().body)["message"] == "Worker shutting down"
            model.gate.close()

    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(["", "raise"]))
    def invoke(self, name: str, what: str) -> None:
        if not self.is_free(name):
            return
        answer = self.ask(name, what)
        if name not in self.models:
            assert answer.status == 404
        elif what == "raise":
            assert (answer.status, json.loads(answer.body)["error"]) == (424, "as asked")
        else:
            assert answer.status == 200, answer
            self.pids.add(int(answer.body))

    @precondition(lambda self: any(self.is_free(name) for name in self.models))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in self.models if self.is_free(name)]))
        answer = self.ask(name, "exit")
        assert answer.status == 503
        assert "Python worker disconnected." in json.loads(answer.body)["message"]
        assert self.ask(name, "").status == 200

    @precondition(lambda self: any(self.is_free(name) for name in self.models))
    @rule(data=st.data())
    def kill_an_idle_worker(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in self.models if self.is_free(name)]))
        pid = int(self.ask(name, "").body)
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_gone(pid), "the worker was dead")
        assert self.ask(name, "").status == 200

    @rule()
    def kill_the_templates(self) -> None:
        for model in json.loads(self.container.call("GET", "/_mme/models").body)["models"]:
            if model["template"]:
                pid = model["template"]["pid"]
                with suppress(ProcessLookupError):  # it may have ended since it was told
                    os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: is_gone(pid), "the template was dead")

    @precondition(lambda self: any(self.is_free(name) for name in self.models))
    @rule(data=st.data())
    def hold_a_call(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in self.models if self.is_free(name)]))
        model = self.models[name]
        arrivals = model.gate.arrivals()
        model.held.append(self.threads.submit(self.ask, name, "hold"))
        model.gate.expect(len(arrivals) + 1)
        self.pids.add(int(model.gate.arrivals()[-1]))

    @precondition(lambda self: any(model.held for model in self.models.values()))
    @rule(data=st.data())
    def let_a_held_call_go(self, data: st.DataObject) -> None:
        model = self.models[data.draw(st.sampled_from([name for name, model in self.models.items() if model.held]))]
        model.gate.let_one_go()
        until(lambda: any(call.done() for call in model.held), "a held call was answered")
        (answered,) = [call for call in model.held if call.done()]
        assert answered.result().status == 200
        model.held.remove(answered)

    @precondition(lambda self: any(not model.held for model in self.models.values()))
    @rule(data=st.data(), workers=st.integers(1, 3))
    def scale(self, data: st.DataObject, workers: int) -> None:
        name = data.draw(st.sampled_from([name for name, model in self.models.items() if not model.held]))
        answer = self.container.call("PUT", f"/models/{name}?min_worker={workers}&max_worker={workers}")
        assert answer.status == 200, answer
        self.models[name].workers = workers

    @invariant()
    def the_server_lists_the_models_and_is_well(self) -> None:
        assert sorted(self.container.names()) == sorted(self.models)
        ping = self.container.call("GET", "/ping")
        assert (ping.status, sorted(json.loads(ping.body))) == (200, sorted(self.models))

    @invariant()
    def each_model_gets_its_workers(self) -> None:
        for name, model in self.models.items():
            until(
                lambda name=name, model=model: self.ready(name) == model.workers, f"{name} had {model.workers} workers"
            )

    def ready(self, name: str) -> int:
        (group,) = self.container.describe(name)["workerGroups"]
        return sum(worker["status"] == "READY" for worker in group["workers"])

    def teardown(self) -> None:
        for name in list(self.models):
            self.unload(name)
        self.threads.shutdown()
        until(lambda: all(is_gone(pid) for pid in self.pids), "no worker was left")


def test_any_interleaving_keeps_the_rules_and_leaves_nothing(served: Container, tmp_path: Path) -> None:
    Machine.container, Machine.root = served, tmp_path
    bounded = settings(max_examples=12, stateful_step_count=25)
    server = served.process()
    run_state_machine_as_test(Machine, settings=settings(bounded, max_examples=1))
    until(served.is_rested, "a process waited for the next model")
    before = server.num_fds()
    run_state_machine_as_test(Machine, settings=bounded)
    until(lambda: server.num_fds() <= before, "no descriptor was left")
