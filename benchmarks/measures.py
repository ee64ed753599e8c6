"""Decides how each figure of one server is taken. A record is a dictionary: which figure, which model, and values."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks import load, models
from benchmarks.models import ET, LR, SF
from benchmarks.options import Options
from benchmarks.peer import Peer, PeerFailed
from benchmarks.steps import Record, ask, load_ms, loaded, scale_ms, template_mb

CALLERS = (1, 8, 32)


def cold(peer: Peer, options: Options) -> Iterator[Record]:
    """From the load request to the first right answer: of the first model of a kind, and of those after it."""
    for kind in peer.kinds:
        count = options.loads if kind is not SF else min(2, options.loads)
        names = models.copies(kind, count + 1)
        first_ms = load_ms(peer, names[0])
        peer.settle()
        times_ms = []
        for name in names[1:]:
            times_ms.append(load_ms(peer, name))
            if peer.unloads:
                peer.unload(name)
        yield {
            "figure": "cold",
            "model": kind.key,
            "first_ms": round(first_ms, 2),
            **spread_of(times_ms),
        }


def spread_of(times_ms: list[float]) -> Record:
    """Their median, the least and the most of them."""
    return {
        "ms": round(statistics.median(times_ms), 2),
        "least_ms": round(min(times_ms), 2),
        "most_ms": round(max(times_ms), 2),
    }


def speed(peer: Peer, options: Options) -> Iterator[Record]:
    """Calls to one loaded model from 1, 8 and 32 connections."""
    for number, kind in enumerate(peer.kinds):
        name = loaded(peer, kind)
        ask(peer, [name], 8, peer.warm_s if number == 0 else 0.5)
        for callers in CALLERS:
            result = ask(peer, [name], callers, options.seconds)
            yield {"figure": "speed", "model": kind.key, "callers": callers, **result.as_record()}
        peer.check(name)


def neighbour(peer: Peer, options: Options) -> Iterator[Record]:
    """One caller of the linear regression, alone and while four callers keep the forest busy."""
    mine, other = loaded(peer, LR), loaded(peer, ET)
    alone = ask(peer, [mine], 1, options.seconds)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as beside:
        beside.submit(abs, 0).result()  # the process is there
        busy = beside.submit(
            load.run, peer.port, [peer.request(other, ET.body)], concurrency=4, seconds=options.seconds + 0.6
        )
        time.sleep(0.3)
        result = ask(peer, [mine], 1, options.seconds)
        busy_rps = busy.result().rps
    yield {
        "figure": "neighbour",
        "model": LR.key,
        "alone_ms": round(alone.p50_ms or 0, 4),
        "busy_rps": round(busy_rps, 1),
        **result.as_record(),
    }


def memory(peer: Peer, options: Options) -> Iterator[Record]:
    """What one more model of a kind takes, loaded and asked once; `private_mb` is what its process shares with none."""
    for kind in peer.kinds:
        count = options.further if kind is not SF else min(3, options.further)
        loaded(peer, kind)
        names = models.copies(kind, count, first=100)
        before = peer.taken()
        for name in names:
            load_ms(peer, name)
        after = peer.taken()
        came = [mb for pid, mb in after.private_mb.items() if pid not in before.private_mb]
        yield {
            "figure": "memory",
            "model": kind.key,
            "further": count,
            "pss_mb": round((after.pss_mb - before.pss_mb) / count, 2),
            "private_mb": round(sum(came) / count, 2) if len(came) >= count else None,
            "all_mb": round(after.pss_mb, 1),
        }
        if peer.unloads:
            for name in names:
                peer.unload(name)


def unload(peer: Peer, options: Options) -> Iterator[Record]:
    """The share of the memory of many forests that is there again after they were unloaded."""
    if not peer.unloads:
        return
    loaded(peer, ET)
    names = models.copies(ET, options.unloads, first=100)
    before = peer.taken()
    for name in names:
        load_ms(peer, name)
    full = peer.taken()
    began = time.perf_counter()
    for name in names:
        peer.unload(name)
    took = time.perf_counter() - began
    after = peer.taken()
    if full.pss_mb - before.pss_mb < 1:
        raise PeerFailed(f"{peer.name}: {len(names)} forests take no memory: it was still giving back other memory")
    yield {
        "figure": "unload",
        "model": ET.key,
        "models": len(names),
        "taken_mb": round(full.pss_mb - before.pss_mb, 1),
        "returned": round((full.pss_mb - after.pss_mb) / (full.pss_mb - before.pss_mb), 4),
        "ms": round(1000 * took / len(names), 2),
    }


def scale(peer: Peer, options: Options) -> Iterator[Record]:
    """The time of one more worker of a loaded model. The second may need a template; `ms` is of the next two."""
    if not peer.scales:
        return
    for kind in peer.kinds:
        name = loaded(peer, kind)
        peer.settle()
        before = peer.taken()
        second_ms = scale_ms(peer, name, 2)
        template = template_mb(peer, name)
        times_ms = [scale_ms(peer, name, count) for count in (3, 4)]
        taken = peer.taken()
        yield {
            "figure": "scale",
            "model": kind.key,
            "second_ms": round(second_ms, 2),
            **spread_of(times_ms),
            "template_mb": template,
            "three_workers_mb": round(taken.pss_mb - before.pss_mb, 2),
        }
        scale_ms(peer, name, 1)
