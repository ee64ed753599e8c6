"""Where a process is hit: while a model is loaded, called or evicted, an endpoint updated, the platform shut down.

Each stage is held at a gate, or the platform's log says that it has begun; a stopped process is stopped before, so that
the stage meets it. What a stage yields in between is for the fault.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from world import CALL_S, ENDPOINT, World, package, send, until

from mme.platform import launch

VICTIMS = ("worker", "template", "branch", "root", "container", "moto", "rclone", "platform")
_numbers = itertools.count(1)


def pid_of(world: World, victim: str, name: str) -> int:
    """The process; a worker or a template of this model."""
    match victim:
        case "worker":
            return int(until(lambda: world.model(name)["workers"], f"{name} has a worker")[0]["pid"])
        case "template":
            return int(until(lambda: world.model(name)["template"], f"{name} has a template")["pid"])
        case "branch" | "root":
            if not world.nursery_now()["branches"]:  # one that was killed is grown again for the next model
                new_model(world)
            nursery = world.nursery()
            return int(nursery["branches"][0]["pid"] if victim == "branch" else nursery["pid"])
        case "container":
            return int(until(lambda: world.instances()[0]["pid"], "there is a container"))
        case "moto" | "rclone":
            return world.service_pid(victim)
    return world.platform_pid


def new_model(world: World, **more: Any) -> str:
    """Upload one that was never loaded; without `more` it is called, too."""
    name = f"new-{next(_numbers)}"
    world.put(name, package(name, **more))
    world.used.append(name)
    if not more:
        world.answered(name)
    return name


def with_template(world: World, name: str) -> None:
    """Have so many calls of a model wait that it gets a second worker, and a template for it."""
    if not world.model(name)["template"]:
        world.answered(name)
        world.shut(name, "invoke")
        with world.calling(*[name] * 6):
            until(lambda: world.model(name)["template"], "a template is there")
            world.open(name, "invoke")


@contextmanager
def loading(world: World, victim: str, number: signal.Signals) -> Iterator[None]:
    if victim == "template":
        with _loading_a_template(world, number):
            yield
        return
    new_model(world)  # so that a fork server, which an earlier fault stopped and nobody needed since, has been replaced
    if number == signal.SIGSTOP and victim in ("rclone", "branch", "root"):  # without which there is no worker to wait
        name = new_model(world, nothing=b"")
        send(pid_of(world, victim, name), number)
        with world.calling(name):
            yield
        return
    name = new_model(world, load_shut=b"")
    pid = 0 if victim == "worker" else pid_of(world, victim, name)
    with world.calling(name):
        at_gate = world.reached(name, "load")
        send(pid or at_gate, number)
        yield
        world.open(name, "load")
    world.put(name, package(name))  # without its gate: on another disk it is unpacked again
    world.open(name, "load")


@contextmanager
def _loading_a_template(world: World, number: signal.Signals) -> Iterator[None]:
    name = new_model(world, workers=2)
    world.answered(name)
    world.shut(name, "invoke")
    world.shut(name, "load")  # before a call waits: the template's load may begin, and end, at once
    with world.calling(*[name] * 6):
        send(world.reached(name, "load"), number)
        world.open(name, "invoke")
        yield
        world.open(name, "load")


def _gated(world: World, victim: str) -> tuple[str, int]:
    """A model whose next call waits in its handler, and the process that is to be hit."""
    name = "gated"
    world.answered(name)
    if victim == "template":
        with_template(world, name)
    pid = pid_of(world, victim, name)
    world.shut(name, "invoke")
    return name, pid


@contextmanager
def invoking(world: World, victim: str, number: signal.Signals) -> Iterator[None]:
    name, pid = _gated(world, victim)
    with world.calling(name, name):
        at_gate = world.reached(name, "invoke")
        send(at_gate if victim == "worker" else pid, number)
        world.open(name, "invoke")
        yield
    world.used += [name]


@contextmanager
def evicting(world: World, victim: str, number: signal.Signals) -> Iterator[None]:
    """Two models fill the memory, a third one comes."""
    if victim == "template":
        with_template(world, "idle")
    else:
        world.answered("idle")
    for name in ("heavy-1", "heavy-2"):
        world.answered(name)
    pid = pid_of(world, victim, "idle" if world.model("idle")["workers"] else "heavy-1")
    if number == signal.SIGSTOP:
        send(pid, number)
    with world.said("leaves memory") as has_begun, world.calling("heavy-3"):
        if number == signal.SIGKILL:
            has_begun()
            send(pid, number)
        yield
    world.used += ["idle", "heavy-1", "heavy-2", "heavy-3"]


@contextmanager
def updating(world: World, victim: str, number: signal.Signals) -> Iterator[None]:
    """The endpoint changes to the other one of its two configurations; the container that is hit is the new one."""
    if victim == "template":
        with_template(world, "twin")
    world.answered("twin")
    before = world.container_pids()
    current = world.in_service()["EndpointConfigName"]
    pid = pid_of(world, victim, "twin")
    other = "chaos" if current == "chaos-2" else "chaos-2"
    world.sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName=other)
    new = until(lambda: [one for one in world.container_pids() if one not in before], "a new container starts")[0]
    send(new if victim == "container" else pid, number)
    yield
    world.updated = other


@contextmanager
def shutting_down(world: World, victim: str, number: signal.Signals) -> Iterator[None]:
    """`mme down` while a call is under way."""
    name, pid = _gated(world, victim)
    with world.calling(name):
        world.reached(name, "invoke")
        down = world.threads.submit(launch.down, world.home)
        until(lambda: not world.is_listening(), "the platform takes no more calls", CALL_S)
        send(pid, number)
        yield
        down.result()
        world.ended()
    world.open(name, "invoke")
    world.used += [name]


STAGES: dict[str, Callable[[World, str, signal.Signals], contextlib.AbstractContextManager[None]]] = {
    "load": loading,
    "invoke": invoking,
    "evict": evicting,
    "update": updating,
    "shutdown": shutting_down,
}
