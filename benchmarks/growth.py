"""Decides how it is shown what grows with what: with models, workers, bodies and artifacts. Each starts with a fresh
server."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import load, models
from benchmarks.models import ECHO, ET, FORESTS, LR, WAITING, Kind
from benchmarks.options import Options
from benchmarks.peer import Peer, PeerFailed
from benchmarks.peers.answering_model import load as load_model
from benchmarks.steps import Record, ask, load_ms, loaded, scale_ms

COUNTS = (1, 10, 30, 100, 300, 1000, 3000)
WORKERS = (1, 2, 4, 8, 16)
BODIES_KB = (1, 10, 100, 1000, 5000)
LOADS_AT_ONCE = 8


def over_models(peer: Peer, options: Options) -> Iterator[Record]:
    """Memory and latency with 1 to 1,000 models loaded, each asked in turn."""
    peer.load(*models.copies(LR, 1))
    peer.unload("lr-0")  # the imports are there
    peer.settle()
    names = models.copies(LR, options.models, first=1000)
    there = 0
    for count in sorted({*(count for count in COUNTS if count < options.models), options.models}):
        began = time.perf_counter()
        requests = [peer.load_request(name) for name in names[there:count]]
        loading = load.run(peer.port, requests, concurrency=LOADS_AT_ONCE, seconds=600, calls=len(requests))
        load_s = time.perf_counter() - began
        if loading.errors:
            raise PeerFailed(f"{peer.name}: {loading.errors} of {len(requests)} loads: {loading.first_error}")
        first = ask(peer, names[:count], LOADS_AT_ONCE, 60, calls=count)
        taken = peer.taken()
        alone = ask(peer, names[:1], 8, options.seconds)
        yield {
            "figure": "models",
            "model": LR.key,
            "models": count,
            "load_ms": round(1000 * load_s / len(requests), 2),
            "pss_mb": round(taken.pss_mb, 1),
            "processes": len(taken.private_mb),
            "rps_alone": round(alone.rps, 1),
            "rps": round(ask(peer, names[:count], 8, options.seconds).rps, 1),
            **_latency(ask(peer, names[:count], 1, options.seconds)),
            "errors": first.errors + alone.errors,
        }
        there = count


def over_workers(peer: Peer, options: Options) -> Iterator[Record]:
    """Calls per second with 1 to 16 workers: of a model that computes, and of one that waits."""
    for kind in (ET, WAITING):
        name = loaded(peer, kind)
        for workers in WORKERS:
            scale_ms(peer, name, workers)
            result = ask(peer, [name], 32, options.seconds)
            yield {"figure": "workers", "model": kind.key, "workers": workers, **result.as_record()}
        scale_ms(peer, name, 1)


def over_bodies(peer: Peer, options: Options) -> Iterator[Record]:
    """Calls per second with bodies of 1 KB to 5 MB, which come back as they are."""
    name = loaded(peer, ECHO)
    for size_kb in BODIES_KB:
        body = json.dumps("x" * (1000 * size_kb - 2)).encode()
        for callers in (1, 8):
            result = ask(peer, [name], callers, options.seconds, body=body)
            yield {"figure": "bodies", "size_kb": size_kb, "callers": callers, **result.as_record()}


def over_artifacts(peer: Peer, options: Options) -> Iterator[Record]:
    """Load and first answer of forests of 10 to 1,000 trees, and what their file takes to be read by joblib alone."""
    loaded(peer, ET)  # the imports are there
    peer.settle()
    for kind in sorted((*FORESTS, ET), key=_size_mb):
        times_ms = []
        for name in models.copies(kind, 3):
            times_ms.append(load_ms(peer, name))
            if peer.unloads:
                peer.unload(name)
        yield {"figure": "artifacts", "size_mb": round(_size_mb(kind), 2), **_of_three(times_ms)}


def alone(options: Options) -> list[Record]:
    """The limit: the same handlers called in a process of their own, with no server."""
    for kind in models.KINDS.values():
        models.prepare(kind)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_alone, options.seconds).result()


def _alone(seconds: float) -> list[Record]:
    def load_and_answer_ms(kind: Kind) -> float:
        began = time.perf_counter()
        load_model(str(kind.folder))(kind.body)
        return 1000 * (time.perf_counter() - began)

    records: list[Record] = []
    for kind in (models.LR, models.ET, models.SF):
        first_ms = load_and_answer_ms(kind)
        records.append({"figure": "cold", "model": kind.key, "first_ms": round(first_ms, 2)})
        records[-1] |= _of_three([load_and_answer_ms(kind) for _ in range(3)])
        answer, body = load_model(str(kind.folder)), kind.body
        times_s: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            answer(body)
            times_s.append(time.perf_counter() - began)
        p50_ms, rps = 1000 * statistics.median(times_s), len(times_s) / sum(times_s)
        records.append(
            {"figure": "speed", "model": kind.key, "callers": 1, "p50_ms": round(p50_ms, 4), "rps": round(rps, 1)}
        )
    for kind in sorted((*FORESTS, ET), key=_size_mb):
        times_ms = [load_and_answer_ms(kind) for _ in range(3)]
        records.append({"figure": "artifacts", "size_mb": round(_size_mb(kind), 2), **_of_three(times_ms)})
    return records


def _size_mb(kind: Kind) -> float:
    models.prepare(kind)
    return Path(kind.folder / "model.joblib").stat().st_size / 2**20


def _of_three(times_ms: list[float]) -> Record:
    return {
        "ms": round(statistics.median(times_ms), 2),
        "least_ms": round(min(times_ms), 2),
        "most_ms": round(max(times_ms), 2),
    }


def _latency(result: load.Result) -> Record:
    return {name: value for name, value in result.as_record().items() if name in ("p50_ms", "p99_ms")}
