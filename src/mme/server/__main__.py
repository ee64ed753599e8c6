"""Decides how a container starts and ends: `python -m mme.server --port N`, configured by its environment."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import time
import uuid
from pathlib import Path

import uvloop

from mme.private import UMASK, private
from mme.processes import sweep
from mme.scratch import scratch
from mme.server import http, metrics
from mme.server.admission import KEY, Admission
from mme.server.app import App
from mme.server.config import ContainerConfig, LoadRequest
from mme.server.errors import ServerError
from mme.server.memory import raise_descriptor_limit
from mme.server.nursery import Nursery
from mme.server.registry import Registry

log = logging.getLogger("mme.server")

_DRAIN_S = 5.0  # how long calls under way may take to finish when the container is stopped
_MARK = "MME_CONTAINER_ID"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mme.server", description="DJL Serving's multi-model contract, for Python.")
    parser.add_argument("--port", type=int, default=8080, help="0 picks a free one; the log says which")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model-store", type=Path, help="a model, or a folder of models, to load at the start")
    arguments = parser.parse_args(argv)
    _start_log()
    try:
        container = ContainerConfig.from_environ(os.environ)
        if container.nursery_dir is not None:
            private(container.nursery_dir)
        store = None if arguments.model_store is None else Path(os.path.abspath(arguments.model_store))
        if store is not None and not store.is_dir():
            raise ValueError(f"--model-store {arguments.model_store}: there is no such folder")
    except ValueError as error:
        parser.error(str(error))
    os.umask(UMASK)
    raise_descriptor_limit()
    # Workers carry the container's mark, so that what they start can be found when the container ends.
    key = os.environ.pop(KEY, "")  # no worker is told
    mark = os.environ[_MARK] = os.environ.get(_MARK) or uuid.uuid4().hex
    try:
        return uvloop.run(serve(container, arguments.host, arguments.port, store, key))
    finally:
        sweep(_MARK, mark)


async def serve(
    container: ContainerConfig, host: str, port: int, model_store: Path | None = None, key: str = ""
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code, which is 1 if the port can't be had."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    places = contextlib.ExitStack()
    folder = container.nursery_dir or places.enter_context(scratch())
    nursery = Nursery(
        folder, fork=container.fork, rules=container.box, on_line=lambda *line: _log_line(registry, *line)
    )
    registry = Registry(container, nursery)
    await nursery.start()
    may_choose_handler = os.environ.get("ALLOW_REQUEST_HANDLER_OVERRIDE", "").lower() == "true"
    app = App(registry, may_choose_handler, Admission(key, host))
    server = http.Server(app.handle)
    try:
        registry.memory.start()
        registry.limits.start()
        if model_store is not None:
            await _load_store(registry, model_store)
        try:
            bound = await server.listen(host, port)
        except OSError as error:
            log.error("cannot listen on %s:%d: %s; choose another port, or 0 for any", host, port, error.strerror)
            return 1
        log.info("listening on http://%s:%d", host, bound)
        await stopped.wait()
        log.info("stopping")
        return 0
    finally:
        await server.close(_DRAIN_S)
        await registry.close()
        await nursery.close()
        places.close()


async def _load_store(registry: Registry, store: Path) -> None:
    """Load the model in this folder, or else each of those in its folders; one that fails stays out, and is logged."""
    if (store / "serving.properties").is_file() or (store / "model.py").is_file():
        folders = [store]
    else:
        folders = sorted(entry for entry in store.iterdir() if entry.is_dir())
    models = [registry.begin_load(LoadRequest(folder.name, str(folder)), is_startup=True) for folder in folders]
    for model in models:
        assert model.load is not None
        try:
            await model.load
        except ServerError as error:
            log.error("%s: not loaded at the start: %s", model.name, error)


def _log_line(registry: Registry, name: str, stream: str, text: str) -> None:
    """What a model prints, under its target's name in brackets: no line of it can pass for one of ours."""
    level = logging.WARNING if stream == "stderr" else logging.INFO
    model = registry.models.get(name)
    if model is not None:
        metrics.note(model, text)
        model.keep(logging.getLevelName(level), text)
    log.log(level, "[%s] %s", (model and model.target_model) or name, text)


class _Records(logging.Formatter):
    """A record is a line that begins with its time, and the indented lines after it, whatever its text holds."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        return "\n    ".join(re.sub(r"[^\x20-\x7e\t\u00a0-\uffff]", _escaped, line) for line in lines)


def _escaped(char: re.Match[str]) -> str:
    return char[0].encode("unicode_escape").decode()


def _start_log() -> None:
    formatter = _Records("%(asctime)s.%(msecs)03dZ %(levelname)-5s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    logging.addLevelName(logging.WARNING, "WARN")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


if __name__ == "__main__":
    sys.exit(main())
