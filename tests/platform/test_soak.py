"""Eight callers over three hundred packages, on two instances that hold sixty each: caches that are always full.

How often a model is there is held against a simulation of the routing and of both caches over the same calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter, OrderedDict
from typing import Any

import pytest

from mme.platform.errors import AwsError

PACKAGES, INSTANCES, HELD, CALLERS = 300, 2, 60, 8
SECONDS = float(os.environ.get("MME_SOAK_S", "120"))
WEIGHTS = [1 / (rank + 1) for rank in range(PACKAGES)]  # zipf's distribution
TOLERANCE = 0.02  # of the calls, between what hit and what the simulation says
MOVING = CALLERS  # so many models of an instance may be on their way at any moment

pytestmark = [pytest.mark.anyio, pytest.mark.soak]


def simulated_hits(trace: list[int]) -> int:
    """Calls one after another: to the instance that has the model, else to the emptier one; the oldest use leaves."""
    instances: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(INSTANCES)]
    hits = 0
    for number in trace:
        holder = next((models for models in instances if number in models), None)
        if holder is not None:
            hits += 1
            holder.move_to_end(number)
            continue
        chosen = min(instances, key=lambda models: (len(models), random.random()))
        if len(chosen) == HELD:
            chosen.popitem(last=False)
        chosen[number] = None
    return hits


async def test_full_caches_under_load_answer_right_and_hit_as_often_as_simulated(rig: Any) -> None:
    for number in range(PACKAGES):
        await asyncio.to_thread(rig.put, f"m{number}.tar.gz")
    plan = rig.plan(instance_count=INSTANCES, environment={"STAND_IN_CAPACITY": str(HELD)})
    trace: list[int] = []
    errors: Counter[str] = Counter()
    loaded: list[int] = []
    async with rig.up(plan, replicate=False):
        began_s = time.monotonic()
        end_s = began_s + SECONDS

        async def call() -> None:
            while time.monotonic() < end_s:
                (number,) = random.choices(range(PACKAGES), WEIGHTS)
                trace.append(number)
                target = f"m{number}.tar.gz"
                try:
                    if (answer := (await rig.ask(target))["answer"]) != target:
                        errors[f"{target} answered {answer}"] += 1
                except AwsError as error:
                    errors[f"{error.code}: {error.message}"] += 1

        async def watch() -> None:
            while time.monotonic() < end_s:
                await asyncio.sleep(SECONDS / 200)
                if time.monotonic() - began_s > SECONDS / 2:
                    loaded.extend(instance.cache.loaded_count for instance in rig.instances)

        await asyncio.gather(watch(), *(call() for _ in range(CALLERS)))
        total = {
            name: rig.hosting.total("shop", "AllTraffic", name)
            for name in ("Invocations", "ModelCacheHit", "ModelLoadingTime", "LoadedModelCount")
        }
        in_use = [model.target for one in rig.instances for model in one.cache.models if model.in_use]
    measured, simulated = total["ModelCacheHit"] / len(trace), simulated_hits(trace) / len(trace)
    figures = {
        "seconds": SECONDS,
        "calls": len(trace),
        "loads": len(rig.events("load")),
        "unloads": len(rig.events("unload")),
        "hit_ratio": round(measured, 4),
        "simulated_hit_ratio": round(simulated, 4),
        "loaded_models": [min(loaded), max(loaded)],
        "errors": sum(errors.values()),
    }
    print(json.dumps(figures))
    assert not errors
    assert total["Invocations"] == len(trace)
    assert HELD - MOVING <= min(loaded) and max(loaded) <= HELD
    assert abs(measured - simulated) <= TOLERANCE
    assert in_use == []
