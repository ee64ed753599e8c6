"""Decides what a run does in which order: rounds, in each of them the servers in turn, each started anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import adapters, endpoint, growth, measures, results
from benchmarks.environments import CannotInstall
from benchmarks.load import Disconnected
from benchmarks.options import Options
from benchmarks.peer import Peer, PeerFailed
from benchmarks.results import Record

Measure = Callable[[Peer, Options], Iterator[Record]]

# In this order on one server; then those that want a fresh one.
TOGETHER: dict[str, Measure] = {
    "cold": measures.cold,
    "speed": measures.speed,
    "neighbour": measures.neighbour,
    "memory": measures.memory,
    "scale": measures.scale,
    "unload": measures.unload,
}
APART: dict[str, Measure] = {
    "models": growth.over_models,
    "workers": growth.over_workers,
    "bodies": growth.over_bodies,
    "artifacts": growth.over_artifacts,
}
WITHOUT_SERVER: dict[str, Callable[[Options], list[Record]]] = {
    "alone": growth.alone,
    "endpoint": endpoint.measure,
}
PARTS = (*TOGETHER, *APART, *WITHOUT_SERVER)
# Which servers are asked for what needs more of them than to be fast; the others for all the rest.
ONLY = {
    "models": ("ours",),
    "workers": ("ours",),
    "bodies": ("ours", "fastapi"),
    "artifacts": ("ours", "fastapi"),
}
# Slow to take, and the same each time.
ONCE = {"unload", "models", "artifacts"}
# Taken of ours in each round, of others in the first: they start processes for seconds, or never.
OURS_EACH_ROUND = {"memory", "scale"}
# What the want of pandas changes.
LEAN_PARTS = {"cold", "memory", "scale"}


def run(peers: Sequence[str], parts: Sequence[str], rounds: int, options: Options, out: Path) -> None:
    """Measure and write each record as it comes. A server that can't be had or fails is named with the reason."""
    out_of_it: set[str] = set()

    def put(number: int, who: str, record: Record) -> None:
        record = {"figure": record["figure"], "peer": who, "round": number, **record}
        results.write(record, out)
        print(_line(record), flush=True)

    for number in range(1, rounds + 1):
        turn = (number - 1) * 2 % len(peers)
        for name in [*peers[turn:], *peers[:turn]]:
            if name not in out_of_it:
                peer = adapters.PEERS[name]
                visits = _visits(peer, [part for part in parts if number == 1 or _is_repeated(name, part)])
                for visit in visits:
                    began = time.monotonic()
                    try:
                        with peer.running():
                            for measure in visit.values():
                                for record in measure(peer, options):
                                    put(number, name, record)
                    except (CannotInstall, PeerFailed, Disconnected, OSError) as error:
                        put(number, name, {"figure": "not run", "parts": list(visit), "reason": str(error)})
                        if isinstance(error, CannotInstall):
                            out_of_it.add(name)
                            break
                    print(f"  {name}, {' '.join(visit)}: {time.monotonic() - began:.0f} s", flush=True)
        for part, take in WITHOUT_SERVER.items():
            if part in parts:
                began = time.monotonic()
                who = "alone" if part == "alone" else "ours"
                try:
                    for record in take(options):
                        put(number, who, record)
                except (PeerFailed, Disconnected, OSError) as error:
                    put(number, who, {"figure": "not run", "parts": [part], "reason": str(error)})
                print(f"  {part}: {time.monotonic() - began:.0f} s", flush=True)


def _is_repeated(name: str, part: str) -> bool:
    return part not in ONCE and (name == "ours" or part not in OURS_EACH_ROUND)


def _visits(peer: Peer, parts: Sequence[str]) -> list[dict[str, Measure]]:
    """What a server is started for: once for what can be taken together, and once for each other part."""
    mine = [part for part in parts if peer.name in ONLY.get(part, (peer.name,))]
    if peer.lean:
        mine = [part for part in mine if part in LEAN_PARTS]
    together = {part: measure for part, measure in TOGETHER.items() if part in mine}
    apart = [{part: measure} for part, measure in APART.items() if part in mine]
    return [*([together] if together else []), *apart]


def _line(record: Record) -> str:
    """A record for the eye."""
    values = (f"{key}={value}" for key, value in record.items() if key not in ("figure", "peer", "round"))
    return f"{record['round']} {record['peer']:<9} {record['figure']:<10} {' '.join(values)}"[:200]
