"""Decides what a process of the nursery is: its root, a branch, a template, a standby, or a worker."""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from mme import forkserver

from . import box
from .handler import Handler, HandlerSpec, reseed, traceback_of
from .loop import Imports, LoadFailed, Worker

_DJL_PYTHON = str(Path(__file__).resolve().parents[1] / "python")
_MAIN = str(Path(__file__).with_name("__main__.py"))


def begin(arguments: list[str]) -> None:
    """Be the nursery's root (`root CONTROL LIFELINE`) or a plain worker (`worker SOCKET LIFELINE REQUEST`)."""
    _speak()
    box.forbid_dumps()
    if arguments[0] == "root":
        control = socket.socket(fileno=int(arguments[1]))
        _live(forkserver.Server(control, int(arguments[2]), is_guardian=True))
    else:
        os.set_inheritable(int(arguments[2]), False)
        request = json.loads(arguments[3])
        _take_place(request)
        _work(request, socket.socket(fileno=int(arguments[1])), None, [])


def _live(server: forkserver.Server) -> None:
    """Fork for ever; each fork goes on from here as what its request asks for, and may fork in turn."""
    handler: Handler | None = None
    imported: list[str] = []
    while True:
        request, fds = server.serve()
        if "stdio" in request:
            os.dup2(fds[-2], 1)
            os.dup2(fds[-1], 2)
            os.close(fds.pop())
            os.close(fds.pop())
        sock = socket.socket(fileno=fds[0])
        if request["role"] == "plain":
            _exec(request, sock, server.lifeline)
        reseed()
        if request["role"] == "standby":
            received = forkserver.receive(sock)
            if received is None:
                return
            request, _ = received
        if handler is None:
            os.environ.update(request["env"])
        if request["role"] == "worker":
            if handler is None:
                _take_place(request)
            else:  # it is in its template's box
                box.furnish(request["box"], request["tmp_dir"])
            _work(request, sock, handler, [] if request["is_known"] else imported)
            return
        server.control = sock
        if request["role"] == "branch":
            _set_path("", request["env"])
            imported = imported + _import_all(request["modules"])
            if "mme.server.worker.rehearsal" in request["modules"]:
                sys.modules["mme.server.worker.rehearsal"].rehearse()
            refusal = server.refusal()
            forkserver.send(sock, {"unfit": refusal} if refusal else {"ready": True})
        else:
            handler = _model(request, server)


def _take_place(request: dict[str, Any]) -> None:
    """Be in the model's folder and its box, with the paths and arguments that DJL's workers have."""
    model_dir = request["model_dir"]
    os.chdir(model_dir)
    _set_path(model_dir, request["env"])
    sys.argv = ["djl_python_engine.py", "--model-dir", model_dir, "--entry-point", request["entry_point"]]
    box.furnish(request["box"], request["tmp_dir"])
    box.enter(request["box"], model_dir)


def _speak() -> None:
    """Print and log as DJL's workers do, line by line; every fork inherits it."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s::%(message)s", level=logging.INFO)


def _set_path(model_dir: str, env: dict[str, str]) -> None:
    """As in DJL: first the API, then the model's folder, then what PYTHONPATH adds."""
    first = [_DJL_PYTHON, model_dir, *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = [*filter(None, first), *(place for place in sys.path if place not in first)]


def _work(request: dict[str, Any], sock: socket.socket, handler: Handler | None, imported: list[str]) -> None:
    spec = _spec(request)
    try:
        Worker(sock, spec, Imports(imported, spec.model_dir), handler).run()
    except LoadFailed:
        sys.exit(1)


def _spec(request: dict[str, Any]) -> HandlerSpec:
    return HandlerSpec(
        model_dir=request["model_dir"],
        entry_point=request["entry_point"],
        function=request["handler"],
        fallback_entry_point=request["fallback_entry_point"],
        is_async=request["is_async"],
    )


def _import_all(names: list[str]) -> list[str]:
    """Import what can be imported of these, in their order, and say what it was."""
    done = []
    for name in names:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # whatever a library raises: its models import it themselves, and fail as they would
                continue
        done.append(name)
    _settle_libraries()
    return done


def _settle_libraries() -> None:
    """Keep what was imported, by name or by another library, from starting threads later; do once what takes long."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.monitor_interval = 0  # else its first bar starts a thread
    if "onnxruntime" in sys.modules:
        sys.modules["onnxruntime"].disable_telemetry_events()  # its thread
    conversions = sys.modules.get("transformers.conversion_mapping")
    if conversions and hasattr(conversions, "get_checkpoint_conversion_mapping"):
        conversions.get_checkpoint_conversion_mapping("")  # transformers 5 compiles 1,000 patterns for its first model


def _model(request: dict[str, Any], server: forkserver.Server) -> Handler:
    """Load a model, make its init call, and say whether its workers can be forked from here; end if not."""
    from . import heap
    from .api import Input

    _take_place(request)
    held = set(forkserver.descriptors())
    inputs = Input()
    inputs.properties.update(request["properties"])
    try:
        handler = Handler(_spec(request))
        problem = handler.failure(handler.call(inputs)).get("failure", {}).get("error", "")
        problem = problem and f"its init call failed: {problem}"
    except Exception as error:
        logging.error("Python engine process died\n%s", traceback_of(error))
        _end(server.control, f"its entry point can't be loaded: {error}")
    opened = {fd: what for fd, what in forkserver.descriptors().items() if fd not in held}
    problem = problem or server.refusal() or (f"it holds {', '.join(opened.values())} open" if opened else "")
    if problem:
        _end(server.control, problem)
    heap.trim()
    sys.stdout.flush()
    forkserver.send(server.control, {"ready": True})
    return handler


def _end(control: socket.socket, problem: str) -> NoReturn:
    forkserver.send(control, {"unfit": problem})
    os._exit(0)


def _exec(request: dict[str, Any], sock: socket.socket, lifeline: int) -> NoReturn:
    """Become a plain worker: another interpreter, with the same socket and lifeline."""
    os.environ.update(request["env"])
    for fd in (sock.fileno(), lifeline):
        os.set_inheritable(fd, True)
    python = request["python"]
    # Everybody can read the arguments; of the variables, which may be secrets, they hold what is looked for there.
    told = request | {"env": {name: value for name, value in request["env"].items() if name == "PYTHONPATH"}}
    # The program may be the package's own, which would not shut itself in.
    box.enter(request["box"], request["model_dir"], box.around(python))
    try:
        os.execv(python, [python, _MAIN, "worker", str(sock.fileno()), str(lifeline), json.dumps(told)])
    except OSError as error:
        os.write(2, f"cannot start {python}: {error.strerror}\n".encode())
        os._exit(127)
