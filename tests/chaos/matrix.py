"""Which faults are tried: each process killed and stopped at each stage, and what else can be full, away or wrong."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import surroundings
from callers import busy
from stages import STAGES, VICTIMS, pid_of
from world import IN_USE, World, send


@dataclass(frozen=True)
class Case:
    """One fault. `is_quick`: tried whenever the tests run, else in `make soak`."""

    fault: str
    stage: str
    suffer: Callable[[World], Any]
    is_quick: bool
    may_lose_connections: bool = False

    @property
    def id(self) -> str:
        return f"{self.fault}, {self.stage}"


# One stage of each process and signal for every run; what takes long by nature, as a shutdown or a container that is
# only stopped, waits for `make soak`.
_QUICK = {
    ("worker", "killed", "invoke"),
    ("worker", "stopped", "evict"),
    ("template", "killed", "load"),
    ("template", "stopped", "invoke"),
    ("branch", "killed", "load"),
    ("branch", "stopped", "invoke"),
    ("root", "killed", "invoke"),
    ("root", "stopped", "invoke"),
    ("container", "killed", "load"),
    ("moto", "killed", "load"),
    ("moto", "stopped", "invoke"),
    ("rclone", "killed", "load"),
    ("rclone", "stopped", "load"),
    ("platform", "killed", "update"),
    ("platform", "stopped", "invoke"),
}
_SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
_GOES_ON = ("moto", "rclone", "platform")  # one of these that was stopped is woken again: nobody else would


def _process(victim: str, what: str, stage: str) -> Case:
    number = _SIGNALS[what]

    def suffer(world: World) -> None:
        waking = pid_of(world, victim, "") if victim in _GOES_ON else 0
        with busy(world):
            with STAGES[stage](world, victim, number):
                if victim == "platform" and number == signal.SIGKILL:
                    world.ended()
                    if stage != "shutdown":
                        world.start()
                elif number == signal.SIGSTOP and victim in _GOES_ON and (victim, stage) != ("platform", "shutdown"):
                    threading.Event().wait(1)  # calls pile up before it
                    send(waking, signal.SIGCONT)
            if not world.is_running:
                world.start()
            for name in (*IN_USE, *world.used):
                world.answered(name)
            if stage == "update":
                settle_update(world)

    loses = victim == "platform" or stage == "shutdown"
    return Case(f"{victim} {what}", stage, suffer, (victim, what, stage) in _QUICK, loses)


def settle_update(world: World) -> None:
    described = world.in_service()
    if described["EndpointConfigName"] != world.updated and "FailureReason" not in described:
        world.wrong.append(f"the update to {world.updated} was acknowledged, and is forgotten")


CASES = [
    *(_process(victim, what, stage) for victim in VICTIMS for what in _SIGNALS for stage in STAGES),
    *(Case(*row) for row in surroundings.CASES),
]
