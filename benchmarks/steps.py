"""Decides what every measurement is made of: load and check a model, give it workers, ask it from n connections."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks import load, models
from benchmarks.models import Kind
from benchmarks.peer import Peer

Record = dict[str, Any]
TEMPLATE_TIMEOUT_S = 10.0


def loaded(peer: Peer, kind: Kind) -> str:
    """The name of a model of this kind that is loaded, stays so, and answers rightly."""
    [name] = models.copies(kind, 1, first=99)
    if name not in peer.loaded:
        peer.prepare(name)
        peer.load(name)
        peer.loaded.add(name)
    peer.check(name)
    return name


def load_ms(peer: Peer, name: str) -> float:
    """From the load request to the first right answer."""
    peer.prepare(name)
    began = time.perf_counter()
    peer.load(name)
    peer.check(name)
    return 1000 * (time.perf_counter() - began)


def scale_ms(peer: Peer, name: str, workers: int) -> float:
    """Until a loaded model has exactly so many workers."""
    began = time.perf_counter()
    peer.must("PUT", f"/models/{name}?min_worker={workers}&max_worker={workers}&synchronous=true")
    return 1000 * (time.perf_counter() - began)


def template_mb(peer: Peer, name: str) -> float | None:
    """What the template of a model takes (PSS), once it is there; None for servers without such a thing."""
    end = time.monotonic() + TEMPLATE_TIMEOUT_S
    while time.monotonic() < end:
        status, content = peer.call("GET", "/_mme/models")
        if status != 200:
            return None
        [model] = [each for each in json.loads(content)["models"] if each["name"] == name]
        if model["template"]:
            pss_mb: float = psutil.Process(model["template"]["pid"]).memory_full_info().pss / 2**20
            return round(pss_mb, 2)
        time.sleep(0.05)
    return None


def ask(
    peer: Peer,
    names: Sequence[str],
    callers: int,
    seconds: float,
    *,
    calls: int | None = None,
    body: bytes | None = None,
) -> load.Result:
    """Load on some models of a kind in turn; what the model says first has to be in every answer."""
    kind = models.kind_of(names[0])
    requests = [peer.request(name, body or kind.body) for name in names]
    expect = b"" if body else json.dumps(kind.answer[0]).strip('"').encode()
    return load.run(peer.port, requests, concurrency=callers, seconds=seconds, calls=calls, expect=expect)
