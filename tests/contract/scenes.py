"""Decides how a scene is played: what was done between the recorded requests, and where gates replace time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import comparison
import transcript
from container import Answer, Container, Gate, until
from transcript import Case

JSON = {"Content-Type": "application/json"}
# Six calls of this length wait longer in all than the time limit of each (`queued-long`).
HELD_S = 0.4


class Stage:
    """One scene's run: a folder of models, the container that loads them, what was expected and seen of each case."""

    def __init__(self, container: Container, models: Path, cases: list[Case]) -> None:
        self.container = container
        self.models = models
        self.cases = {case.name: case for case in cases}
        self.outcomes: dict[str, tuple[Any, Any]] = {}
        self._threads = ThreadPoolExecutor(32)
        self._gates: list[Gate] = []

    def close(self) -> None:
        """Release every handler that still waits and every call that still runs."""
        for gate in self._gates:
            gate.open()
        self._threads.shutdown()
        for gate in self._gates:
            gate.close()

    def put(self, model: str, files: Mapping[str, str | bytes]) -> Path:
        """Write the files of a model that the transcript doesn't hold; returns its folder."""
        folder = self.models / model / "model"
        self._write({f"{model}/model/{path}": content for path, content in files.items()})
        return folder

    def _write(self, files: Mapping[str, str | bytes]) -> None:
        for path, content in files.items():
            place = self.models / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
            if place.name == "model.py" and b'"gate"' in place.read_bytes():
                (place.parent / "gate.py").write_bytes((transcript.HERE / "gate.py").read_bytes())

    def gate(self, model: str, name: str) -> Gate:
        self._gates.append(gate := Gate(self.models / model / "model", name))
        return gate

    def prepare(self, name: str) -> Case:
        """Put the files of a case in place (an empty folder where it has none but names one to load)."""
        case = self.cases[name]
        self._write(case.files())
        if name == "load-empty-dir":
            (self.models / case.model / "model").mkdir(parents=True, exist_ok=True)
        return case

    def send(self, case: Case) -> Answer:
        request = case.request
        path = request["path"].replace("{models}", str(self.models))
        return self.container.call(request["method"], path, request["headers"] or {}, case.body(str(self.models)))

    def start(self, call: Callable[..., Answer], *args: Any) -> Future[Answer]:
        """Begin a call whose answer is looked at later."""
        return self._threads.submit(call, *args)

    def invoke(self, model: str, body: str | bytes, headers: Mapping[str, str] | None = None) -> Answer:
        content = body.encode() if isinstance(body, str) else body
        return self.container.call("POST", f"/models/{model}/invoke", headers, content)

    def play(self, *names: str) -> None:
        """Send the recorded requests, one after another."""
        for name in names:
            case = self.prepare(name)
            self.note(name, self.send(case))

    def note(self, name: str, answer: Answer, **more: tuple[Any, Any]) -> None:
        """Keep the answer to a case; `more` are further things to compare, each with what was recorded."""
        expected = comparison.recorded(self.cases[name].response)
        got = self.like(expected, answer)
        for key, (recorded, seen) in more.items():
            expected[key], got[key] = recorded, seen
        self.outcomes[name] = expected, got

    def like(self, expected: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """What was seen of an answer, as far as it was recorded."""
        got = comparison.seen(answer, str(self.models))
        if isinstance(expected["body"], dict) and "head" in expected["body"]:
            text = comparison.text_of(answer.body, str(self.models))
            got["body"] = comparison.shortened(text, expected["body"])
        return {key: got[key] for key in expected}

    def together(self, name: str, answers: list[Answer], **more: tuple[Any, Any]) -> None:
        """Keep the answers to calls that were made at once."""
        expected = [comparison.recorded(each) for each in self.cases[name].response]
        got = [self.like(one, answer) for one, answer in zip(expected, answers, strict=True)]
        self.outcomes[name] = (
            {"answers": expected, **{key: pair[0] for key, pair in more.items()}},
            {"answers": got, **{key: pair[1] for key, pair in more.items()}},
        )


def play(stage: Stage) -> None:
    """Play all cases of the scene, in its own way or one after another."""
    scene = next(iter(stage.cases.values())).scene
    own = OWN.get(scene, _load if scene.startswith("load-") else _delete_in_flight if "in-flight" in scene else None)
    if own:
        own(stage)
    else:
        stage.play(*stage.cases)


def _load(stage: Stage) -> None:
    load, models, invoke = stage.cases
    model = stage.prepare(load).model
    if (stage.models / model / "model" / "gate.py").exists():
        stage.gate(model, "never")
    stage.play(load)
    loaded = stage.outcomes[load][1]["status"]
    ping = stage.container.call("GET", "/ping").status
    if loaded == 202:
        until(lambda: b"PENDING" not in stage.container.call("GET", "/models").body, "the model was loaded")
    stage.play(models)
    case = stage.prepare(invoke)
    answer = stage.send(case)
    notes = re.search(r"/ping after load: (\d+); DELETE after: (\d+)", case.notes)
    assert notes, case.notes
    deleted = stage.container.unload(case.model).status
    stage.note(invoke, answer, ping_after_load=(int(notes[1]), ping), delete_after=(int(notes[2]), deleted))


def _timeout(stage: Stage) -> None:
    stage.play("timeout/load")
    stage.gate(stage.cases["timeout/load"].model, "6")
    stage.play("timeout/call", "timeout/next", "timeout/ping")


def _queue(stage: Stage) -> None:
    stage.play("queue/load")
    model = stage.cases["queue/load"].model
    gate = stage.gate(model, "go")
    call = '{"op": "sleep", "s": "go"}'
    calls = [stage.start(stage.invoke, model, call, JSON)]
    gate.expect(1)
    calls += [stage.start(stage.invoke, model, call, JSON) for _ in range(7)]
    until(
        lambda: sum(each.done() for each in calls) + stage.container.describe(model)["requestInQueue"] >= 7,
        "all were in",
    )
    gate.open()
    # Which of the seven came first, and so found room, is not said.
    stage.together("queue/overflow", sorted((each.result() for each in calls), key=lambda answer: answer.status))
    stage.play("queue/ping-after", "queue/next")


def _queued_long(stage: Stage) -> None:
    stage.play("queued-long/load")
    name = "queued-long/6x1s"
    model = stage.cases[name].model
    gate = stage.gate(model, "go")
    served: list[int] = []
    calls: list[Future[Answer]] = []
    for i in range(6):
        calls.append(stage.start(stage.invoke, model, '{"op": "sleep", "s": "go"}', JSON))
        calls[i].add_done_callback(lambda _, i=i: served.append(i))  # type: ignore[misc]
        gate.expect(1)
        stage.container.queued(model, i)
    for i in range(6):
        gate.expect(i + 1)
        time.sleep(HELD_S)
        gate.let_one_go()
        until(lambda i=i: len(served) > i, "the call was answered")  # type: ignore[misc]
    times = [each["ms"] for each in stage.cases[name].response]
    recorded = sorted(range(6), key=lambda i: times[i])
    stage.together(name, [each.result() for each in calls], **_if_ours(stage, order=(recorded, served)))


def _if_ours(stage: Stage, **more: tuple[Any, Any]) -> dict[str, tuple[Any, Any]]:
    """What DJL Serving leaves to chance (its queue's order, what an unload leaves) is compared for our server only."""
    return more if stage.container.is_ours else {}


def _batch(stage: Stage) -> None:
    stage.play("batch/load", "batch/single")
    gate = stage.gate(stage.cases["batch/load"].model, "hold")
    rounds = {
        "batch/four": ["q0", "q1", "q2", "q3"],
        "batch/six": ["q0", "q1", "q2", "q3", "q4", "q5"],
        "batch/one-raises": ["a", "raise", "c"],
        "batch/count-mismatch": ["short", "b", "c"],
        "batch/property": ["prop", "b"],
    }
    for arrivals, (name, bodies) in enumerate(rounds.items(), 1):
        answers = _behind(stage, stage.cases[name], "hold", gate, arrivals, bodies)
        stage.together(name, answers)
        expected, got = stage.outcomes[name]
        places = _take_places(expected["answers"]), _take_places(got["answers"])
        for side, place in zip((expected, got), places, strict=True):
            side.update({"order": place} if stage.container.is_ours else {})


def _take_places(answers: list[dict[str, Any]]) -> list[int]:
    """Cut each answer's place in its batch out of its body."""
    places = []
    for answer in answers:
        if isinstance(answer["body"], dict) and (place := re.match(r'{"i": (\d+), ', answer["body"].get("head", ""))):
            places.append(int(place[1]))
            # The head has a fixed length.
            answer["body"]["head"] = answer["body"]["head"][place.end() :]
    return places


def _behind(stage: Stage, case: Case, hold: str, gate: Gate, arrivals: int, bodies: list[str]) -> list[Answer]:
    """Queue calls in order behind one that is held, so that they make one batch whatever the machine's speed."""
    headers = case.request["headers"]
    first = stage.start(stage.invoke, case.model, hold, headers)
    gate.expect(arrivals)
    calls = []
    for i, body in enumerate(bodies, 1):
        calls.append(stage.start(stage.invoke, case.model, body, headers))
        stage.container.queued(case.model, i)
    gate.let_one_go()
    first.result()
    return [each.result() for each in calls]


def _batch_naive(stage: Stage) -> None:
    stage.play("batch-naive/load", "batch-naive/single")
    case = stage.cases["batch-naive/three"]
    gate = stage.gate(case.model, "hold")
    stage.together(case.name, _behind(stage, case, "shold", gate, 1, ["q0", "q1", "q2"]))
    stage.play("batch-naive/next")


def _scale(stage: Stage) -> None:
    stage.play("scale/load")
    burst = stage.cases["scale/burst-24x0.3s"]
    gate = stage.gate(burst.model, "go")
    calls = [stage.start(stage.invoke, burst.model, "sgo") for _ in range(24)]
    gate.expect(3)
    gate.open()
    answers = [each.result() for each in calls]
    processes = len({each["body"] for each in burst.response}), len({answer.body for answer in answers})
    stage.together(burst.name, answers, processes=processes)

    def idle() -> bool:
        (group,) = stage.container.describe(burst.model)["workerGroups"]
        return [worker["status"] for worker in group["workers"]].count("READY") == 1

    until(idle, "the further workers had gone")
    stage.play("scale/after-idle-describe")


def _defaults(stage: Stage) -> None:
    stage.play(*stage.cases)
    group = stage.outcomes["defaults/describe"][0]["body"][0]["models"][0]["workerGroups"][0]
    if stage.container.is_ours:
        # Two in the recording.
        group["maxWorkers"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


_SLOW = """\
from djl_python import Input, Output
def handle(inputs):
    if inputs.is_empty():
        __import__("gate").wait("init")
        return None
    return Output().add("x")
"""
_PROPERTIES = "engine=Python\nminWorkers=1\nmaxWorkers=1\nrequired_memory_mb=10\n"


def _slow_load(stage: Stage) -> tuple[Gate, Future[Answer]]:
    folder = stage.put("slowload", {"model.py": _SLOW, "serving.properties": _PROPERTIES})
    gate = stage.gate("slowload", "init")
    load = stage.start(stage.container.load, "slowload", folder)
    gate.expect(1)
    return gate, load


def _loading(stage: Stage) -> None:
    gate, load = _slow_load(stage)
    stage.play("loading/ping", "loading/models", "loading/describe")
    invoke = stage.start(stage.send, stage.cases["loading/invoke"])
    stage.play("loading/register-again")
    if stage.container.is_ours:
        invoke.result()  # which DJL Serving gives when the load has ended
    gate.open()
    stage.note("loading/invoke", invoke.result())
    load.result()
    stage.container.unload("slowload")
    stage.play("loading/models-after")


def _delete_during_load(stage: Stage) -> None:
    gate, load = _slow_load(stage)
    stage.play("delete-during-load/describe", "delete-during-load/delete", "delete-during-load/models")
    if not stage.container.is_ours:
        gate.open()  # DJL Serving answers when the load has ended
    answer = load.result()
    if stage.container.is_ours:
        gate.expect_deaths()
    left = {"processes_left": (1, int(not gate.is_deserted()))}
    stage.note("delete-during-load/the-first-POST", answer, **_if_ours(stage, **left))
    stage.play("delete-during-load/invoke-after", "delete-during-load/ping-after")


def _delete_in_flight(stage: Stage) -> None:
    load, name = stage.cases
    stage.play(load)
    case, model = stage.cases[name], stage.cases[load].model
    gate = stage.gate(model, "never")
    call = stage.start(stage.invoke, model, "snever")
    gate.expect(1)
    deleted = stage.container.unload(model)
    answer = call.result()
    models = stage.container.call("GET", "/models")
    recorded_delete, recorded_call, recorded_models = case.response
    places = str(stage.models)
    expected: dict[str, Any] = {
        "delete": recorded_delete["delete"],
        "delete_body": comparison.body(recorded_delete["body"]),
        "call": comparison.recorded({**recorded_call, "status": recorded_call["call"]}),
        "models_right_after": comparison.body(recorded_models["models_right_after"]),
    }
    got: dict[str, Any] = {
        "delete": deleted.status,
        "delete_body": comparison.body(comparison.text_of(deleted.body, places)),
        "call": stage.like(expected["call"], answer),
        "models_right_after": comparison.body(comparison.text_of(models.body, places)),
    }
    if stage.container.is_ours:
        gate.expect_deaths()
        expected["processes_left"] = int(case.notes[-1])
        got["processes_left"] = int(not gate.is_deserted())
    stage.outcomes[name] = expected, got


def _sklearn(stage: Stage) -> None:
    for name in stage.cases:
        if name == "sklearn-handler/auto-invoke":
            trust = "option.model_format=joblib\noption.trust_insecure_model_files=true\n"
            files = {"model.joblib": transcript.linear_regression(), "serving.properties": trust}
            stage.container.load("skauto", stage.put("skauto", files))
        stage.play(name)


_BROKEN = "raise RuntimeError('not yet')\n"
WHOLE = (
    "from djl_python import Output\ndef handle(inputs):\n    return None if inputs.is_empty() else Output().add('x')\n"
)


def _failed_load(stage: Stage) -> None:
    folder = stage.put("fixme", {"model.py": _BROKEN, "serving.properties": _PROPERTIES})
    stage.play("failed-load/first", "failed-load/models", "failed-load/ping-at-once")
    stage.put("fixme", {"model.py": WHOLE})
    stage.play("failed-load/retry-after-fix")
    stage.container.unload("fixme")
    stage.put("fixme", {"model.py": _BROKEN})
    pings: dict[str, int] = {}
    for _ in range(10):
        stage.container.load("fixme", folder)
        status = str(stage.container.call("GET", "/ping").status)
        pings[status] = pings.get(status, 0) + 1
    stage.outcomes["failed-load/ping-race"] = stage.cases["failed-load/ping-race"].response, pings


_MORTAL = """\
import os
from djl_python import Input, Output
def handle(inputs):
    if inputs.is_empty():
        return None
    if inputs.get_as_json()["op"] == "doom":
        __import__("gate").die_at("doom")
    return Output().add(str(os.getpid()))
"""


def _killed_while_idle(stage: Stage) -> None:
    folder = stage.put("k-plain", {"model.py": _MORTAL, "serving.properties": _PROPERTIES})
    gate = stage.gate("k-plain", "doom")
    stage.container.load("k-plain", folder)
    stage.invoke("k-plain", '{"op": "doom"}', JSON)
    gate.open()
    gate.expect(1)
    gate.expect_deaths()
    stage.play(*stage.cases)


_RAW = """\
from djl_python import Input, Output
def handle(inputs):
    if inputs.is_empty():
        return None
    content = bytes(inputs.get_as_bytes())
    if content == b"e":
        raise ValueError("x")
    output = Output().add_as_json({"n": len(content)})
    output.add_property("Content-Type", "application/json")
    return output
"""


def _raw(stage: Stage) -> None:
    stage.container.load("raw1", stage.put("raw1", {"model.py": _RAW, "serving.properties": _PROPERTIES}))
    for name, case in stage.cases.items():
        received = stage.container.raw(case.request["raw"])
        recorded = re.sub(r"ConnectionResetError\(.*\)$", "<closed>", case.response["raw"])
        got = re.sub(r"(x-request-id: )\S+", r"\1<uuid>", received)
        stage.outcomes[name] = {"raw": recorded}, {"raw": got}


_PID = WHOLE.replace("'x'", "str(__import__('os').getpid())")


def _urls(stage: Stage) -> None:
    folder = stage.put("q1", {"model.py": _PID, "serving.properties": _PROPERTIES})
    names = iter(stage.cases)
    for name in names:
        if name == "models-trailing-slash":
            break
        if name in {"url-is-parent-dir", "register-by-query", "name-empty"}:
            stage.container.unload("q1")
        stage.play(name)
    stage.container.load("a/b", folder)
    for model in ("q1", "q2", "q3"):
        stage.container.unload(model)
    stage.play("models-trailing-slash", *names)


OWN: Mapping[str, Callable[[Stage], None]] = {
    "timeout": _timeout,
    "queue": _queue,
    "queued-long": _queued_long,
    "batch": _batch,
    "batch-naive": _batch_naive,
    "scale": _scale,
    "defaults": _defaults,
    "loading": _loading,
    "delete-during-load": _delete_during_load,
    "sklearn-handler": _sklearn,
    "failed-load": _failed_load,
    "worker-killed-while-idle": _killed_while_idle,
    "raw": _raw,
    "urls": _urls,
}
