"""Decides what is known of a home's platform at a moment: what the live page's stream of events has told so far."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from mme.platform import launch

_SILENCE_S = 10  # of a stream that tells the time every second
_AGAIN_S = 0.5  # between two looks for a platform that isn't there
_WINDOW_S = 5  # that the calls of a model are counted over
_SECONDS = 120  # as far back as calls are counted, as on the page
_LOG_LINES = 200


class TopError(Exception):
    """The platform runs and shows itself to nobody more; the message is its own."""


class Model(NamedTuple):
    """A model on an instance, as `platform/page/view.py` tells it. Its calls are those of all instances together."""

    state: str
    waiting: int
    workers: int
    memory_mb: float | None
    calls: int
    hits: int
    evictions: int
    cold_ms: float | None
    warm_ms: float | None
    trouble: str


class State:
    """What has been told, by endpoint, variant, instance and model; all of it lost with the platform."""

    def __init__(self) -> None:
        self.is_there = False
        self._forget()

    def _forget(self) -> None:
        self.fleet: list[dict[str, Any]] = []
        self.models: dict[str, dict[str, Model]] = {}
        self.totals: dict[str, Any] = {}
        self.seconds: dict[int, list[int]] = {}
        self.now = 0
        self._log: dict[int, dict[str, Any]] = {}
        self._calls: deque[tuple[int, dict[tuple[str, str], int]]] = deque(maxlen=_WINDOW_S + 1)

    def take(self, told: dict[str, Any] | None) -> None:
        """Take in one event of the stream; None says that it has ended."""
        self.is_there = told is not None
        if told is None:
            self._forget()
            return
        if "fleet" in told:
            self.fleet = told["fleet"]
            there = {
                one["id"] for endpoint in self.fleet for variant in endpoint["variants"] for one in variant["instances"]
            }
            self.models = {instance: models for instance, models in self.models.items() if instance in there}
        for instance, changes in told.get("tiles", {}).items():
            known = self.models.setdefault(instance, {})
            for target, tile in changes.items():
                if tile is None:
                    known.pop(target, None)
                else:
                    known[target] = Model(*tile)
        self.totals = told.get("totals", self.totals)
        self._log |= {entry["number"]: entry for entry in told.get("log", ())}
        for number in sorted(self._log)[:-_LOG_LINES]:
            del self._log[number]
        self.seconds |= {second: counts for second, *counts in told.get("seconds", ())}
        if "now" in told:
            self.now = told["now"]
            self.seconds = {at: counts for at, counts in self.seconds.items() if at >= self.now - _SECONDS}
            counted = {(one, target): model.calls for one in self.models for target, model in self.models[one].items()}
            self._calls.append((self.now, counted))

    @property
    def log(self) -> list[dict[str, Any]]:
        """What happened, the oldest first."""
        return sorted(self._log.values(), key=lambda entry: float(entry["at"]))

    def calls_in(self, second: int) -> int:
        """How many calls were answered in that second, if it is over."""
        return sum(self.seconds.get(second, ()))

    def rate(self, instance: str, target: str) -> float:
        """Calls of a model per second over the last seconds; 0 while it is known for less than one."""
        calls = self.models[instance][target].calls
        for then, counted in self._calls:
            if (instance, target) in counted and then < self.now:
                return (calls - counted[instance, target]) / (self.now - then)
        return 0.0


class Feed:
    """Follows the platform of a home in a thread, over its restarts, until its block ends."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._told: queue.SimpleQueue[dict[str, Any] | TopError | None] = queue.SimpleQueue()
        self._is_over = threading.Event()

    def __enter__(self) -> Feed:
        threading.Thread(target=self._follow, name="feed", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def into(self, state: State, timeout_s: float = 0) -> None:
        """Take what has come into a state, waiting for that long if nothing has. Raises TopError."""
        with contextlib.suppress(queue.Empty):
            told = self._told.get(timeout_s > 0, timeout_s)
            while True:
                if isinstance(told, TopError):
                    raise told
                state.take(told)
                told = self._told.get_nowait()

    def _follow(self) -> None:
        while not self._is_over.is_set():
            running = launch.find(self._home)
            try:
                # That it has ended, or was killed, is said by what follows.
                with contextlib.suppress(httpx.HTTPError):
                    for told in _events(running.page_url) if running else ():
                        self._told.put(told)
                        if self._is_over.is_set():
                            return
            except TopError as error:
                self._told.put(error)
                return
            self._told.put(None)
            self._is_over.wait(_AGAIN_S)


def _events(page_url: str) -> Iterator[dict[str, Any]]:
    """What the page's stream tells, until it ends. The key in the address becomes a cookie, as in a browser."""
    with httpx.Client(timeout=_SILENCE_S, trust_env=False, follow_redirects=True) as client:
        client.get(page_url).raise_for_status()
        with client.stream("GET", httpx.URL(page_url).copy_with(path="/events", query=None)) as stream:
            if stream.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                raise TopError(json.loads(stream.read())["message"])
            stream.raise_for_status()
            yield from _messages(stream.iter_lines())


def _messages(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events without a name, of which each has its data in one line."""
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "data" and not name:
            yield json.loads(value)
        name = value if field == "event" else name if line else ""
