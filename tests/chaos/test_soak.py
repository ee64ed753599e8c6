"""Faults drawn by chance, one after the other, under load all the while: what no single one of them shows is a leak."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import psutil
import pytest
from matrix import CASES
from verdict import judged
from world import IN_USE, World

SECONDS = float(os.environ.get("MME_SOAK_S", "120"))
SEED = int(os.environ.get("MME_SOAK_SEED", time.time_ns() % 10_000))
MORE_MB, MORE_DESCRIPTORS = 40, 40  # than at the start, of the platform: connections that are kept, pools, the log

pytestmark = pytest.mark.soak


def held(world: World) -> tuple[float, int]:
    """What the platform's process has: private memory in MB, descriptors."""
    process = psutil.Process(world.platform_pid)
    return process.memory_full_info().uss / 2**20, process.num_fds()


def test_faults_at_random_leave_no_wrong_answer_and_no_leak(world: World) -> None:
    chance = random.Random(SEED)
    print(f"\nMME_SOAK_SEED={SEED}")
    for name in IN_USE:
        world.answered(name)
    seen: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    before = held(world)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        case = chance.choice(CASES)
        print(f"{case.id}", flush=True)
        with judged(world, case):
            case.suffer(world)
        seen += world.seen
        faults[case.fault] += 1
    after = held(world)
    print(f"{sum(faults.values())} faults, {seen.total()} calls: {dict(seen)}; the platform had {before}, has {after}")
    assert after[0] < before[0] + MORE_MB and after[1] < before[1] + MORE_DESCRIPTORS
