"""Decides which calls find their model in memory, for caches that hold a number of models of one size.

The least recently used model leaves (what an endpoint does), or the one that is needed last (Belady 1966: no cache
that loads on demand hits more often, and none can do it without knowing the future).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable, Sequence


def least_recently_used(trace: Sequence[Hashable], capacity: int, instances: int = 1) -> list[bool]:
    """For each call, whether it hits. Of several instances, the one that has the model is asked, else the emptiest."""
    _refuse(capacity, instances)
    memories: list[OrderedDict[Hashable, None]] = [OrderedDict() for _ in range(instances)]
    hits = []
    for model in trace:
        memory = next((each for each in memories if model in each), None)
        hits.append(memory is not None)
        if memory is None:
            memory = min(memories, key=len)
            if len(memory) == capacity:
                memory.popitem(last=False)
        memory[model] = None
        memory.move_to_end(model)
    return hits


def optimal(trace: Sequence[Hashable], capacity: int) -> list[bool]:
    """For each call, whether it hits if always that model leaves whose next call is the furthest away."""
    _refuse(capacity, 1)
    never = len(trace)
    next_calls = [never] * len(trace)
    seen: dict[Hashable, int] = {}
    for index in range(len(trace) - 1, -1, -1):
        next_calls[index] = seen.get(trace[index], never)
        seen[trace[index]] = index
    held: dict[Hashable, int] = {}  # each with its next call
    furthest: list[tuple[int, int]] = []  # the next call, negative, and the call before it; outdated ones stay in
    hits = []
    for index, model in enumerate(trace):
        hits.append(model in held)
        if model not in held and len(held) == capacity:
            while True:
                negative, asked = heapq.heappop(furthest)
                if held.get(trace[asked]) == -negative:
                    break
            del held[trace[asked]]
        held[model] = next_calls[index]
        heapq.heappush(furthest, (-next_calls[index], index))
    return hits


def ratio(hits: Sequence[bool]) -> float:
    """The share of calls that hit; NaN without calls."""
    return sum(hits) / len(hits) if hits else float("nan")


def _refuse(capacity: int, instances: int) -> None:
    if capacity < 1 or instances < 1:
        raise ValueError(f"capacity={capacity}, instances={instances}; give at least 1 of each")
