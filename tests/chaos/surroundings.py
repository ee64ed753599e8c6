"""Faults of what is around the processes: a full disk, an S3 that misbehaves, clocks, descriptors, memory, clients."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psutil
from callers import busy
from world import BUCKET, DEADLINE_S, ENDPOINT, World, package, send, until

from mme.platform.config import PlatformConfig

_numbers = itertools.count(1)
_FILE_BYTES = 2 << 20  # of what doesn't fit any more
CONNECTIONS = 1000


# A full disk


@contextmanager
def full_disk(pid: int, limit_bytes: int) -> Iterator[None]:
    """No file of this process becomes larger than so; beyond it, writing fails as on a disk that is full."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def _does_not_fit(content: bytes) -> Callable[[World], None]:
    def suffer(world: World) -> None:
        name = f"full-{next(_numbers)}"
        world.put(name, package(name, data_bin=content))
        with busy(world), full_disk(world.platform_pid, _FILE_BYTES // 2):
            world.call(name)
            world.answered("warm-1")
        world.used += [name]

    return suffer


def state_write(world: World) -> None:
    with busy(world), full_disk(world.platform_pid, 4096):
        for _ in range(3):
            world.call("warm-1")
            world.told(lambda: world.sagemaker.create_model(ModelName="full", PrimaryContainer={"Image": "image"}))
    # What was refused is not there, so that it can be made now.
    world.sagemaker.create_model(ModelName="full", PrimaryContainer={"Image": "image"})
    world.sagemaker.delete_model(ModelName="full")


def state_write_after_update(world: World) -> None:
    """The change is acknowledged, and its end can't be written."""
    current = world.in_service()["EndpointConfigName"]
    other = "chaos" if current == "chaos-2" else "chaos-2"
    before = world.instances()[0]["id"]
    with busy(world):
        world.sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName=other)
        with full_disk(world.platform_pid, 4096):
            until(lambda: world.instances()[0]["id"] != before, "the new instance serves")
            world.answered("warm-1")
        if (now := world.in_service()["EndpointConfigName"]) != other:
            world.wrong.append(f"the update to {other} was acknowledged, and the endpoint has {now}")


def log_write(world: World) -> None:
    name = f"full-{next(_numbers)}"
    world.put(name, package(name))
    (log,) = world.home.glob("instances/chaos/A/*/container.log")
    with busy(world), full_disk(world.platform_pid, max(4096, log.stat().st_size)):
        world.answered(name)
    world.used += [name]


def upload(world: World) -> None:
    world.s3.put_object(Bucket=BUCKET, Key="full", Body=b"as it was")
    with busy(world), full_disk(world.service_pid("rclone"), _FILE_BYTES // 2):
        world.told(lambda: world.s3.put_object(Bucket=BUCKET, Key="full", Body=bytes(_FILE_BYTES)))
    _has_old_or_new(world, "full", bytes(_FILE_BYTES))


def _has_old_or_new(world: World, key: str, new: bytes) -> None:
    """What wasn't acknowledged is there as a whole, or what was before is."""
    got = until(lambda: world.told(lambda: world.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()), "S3 answers")
    if got not in (b"as it was", new):
        world.wrong.append(f"object {key} has {len(got)} bytes: neither what it had nor what was put")
    world.s3.delete_object(Bucket=BUCKET, Key=key)


def _ended_during_an_upload(victim: str) -> Callable[[World], None]:
    def suffer(world: World) -> None:
        world.s3.put_object(Bucket=BUCKET, Key="half", Body=b"as it was")
        half = b"x" * (_FILE_BYTES // 2)
        request = world.signed("s3", "PUT", f"/{BUCKET}/half", b"x" * _FILE_BYTES)
        with busy(world), world.connected() as connection:
            connection.sendall(request[: -len(half)])
            rclone = world.service_pid("rclone")
            until(lambda: _written_bytes(rclone) > 0, "half of the bytes are here")
            send(rclone if victim == "rclone" else world.platform_pid, signal.SIGKILL)
            if victim == "platform":
                world.ended()
                world.start()
            with contextlib.suppress(OSError):
                connection.sendall(half)
                until(lambda: not connection.recv(65536), "the connection ends")
        _has_old_or_new(world, "half", b"x" * _FILE_BYTES)

    return suffer


def _written_bytes(pid: int) -> int:
    """Of the one file in S3's folder that the process has open."""
    with contextlib.suppress(psutil.Error, OSError):
        return sum(os.stat(one.path).st_size for one in psutil.Process(pid).open_files() if "/objects/" in one.path)
    return 0


# An S3 that misbehaves


def _spoilt(kind: Literal["held", "cut off", "refused", "other bytes"]) -> Callable[[World], None]:
    def suffer(world: World) -> None:
        name = f"spoilt-{next(_numbers)}"
        world.put(name, package(name, data_bin=os.urandom(300_000)))
        with busy(world), world.detour.spoiling(f"models/{name}.tar.gz", kind) as fault, world.calling(name):
            assert fault.reached.wait(DEADLINE_S)
            world.answered("warm-2")
            if kind == "held":
                fault.gate.set()
        world.used += [name]

    return suffer


def _away(service: str) -> Callable[[World], None]:
    """It takes connections, and answers nothing."""

    def suffer(world: World) -> None:
        pid = world.service_pid(service)
        begun = world.seen["503 ServiceUnavailable"]
        with busy(world):
            send(pid, signal.SIGSTOP)
            try:
                until(lambda: world.seen["503 ServiceUnavailable"] > begun, "a caller is told so")
                world.answered("warm-1")
            finally:
                send(pid, signal.SIGCONT)

    return suffer


# Clocks, descriptors, memory


def _clock(error_s: float) -> Callable[[World], None]:
    def suffer(world: World) -> None:
        world.answered("gated")
        world.shut("gated", "invoke")
        try:
            with world.calling("gated"):
                world.reached("gated", "invoke")
                with busy(world):
                    world.set_clock(error_s)
                    world.open("gated", "invoke")
                    until(lambda: not world.model_is_in_use("gated"), "the call under way is answered")
        finally:
            world.set_clock(0)

    return suffer


def descriptors(world: World) -> None:
    world.stop()
    world.start(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    with busy(world):
        asyncio.run(at_once(world, CONNECTIONS))
    world.stop()
    world.start()


def memory(world: World) -> None:
    """A handler takes more than there is."""
    with busy(world), world.calling("heavy-1", "heavy-2"):
        world.call("gated", "grow")
    world.used += ["gated", "heavy-1", "heavy-2"]


def more_models_than_fit(world: World) -> None:
    with busy(world), world.calling(*[f"heavy-{number}" for number in (1, 2, 3, 1, 2, 3)]):
        pass
    world.used += ["heavy-1", "heavy-2", "heavy-3"]


# Clients


async def at_once(world: World, count: int) -> None:
    """So many connections, each with a call, and each call with an answer."""
    request = world.signed("sagemaker", "POST", f"/endpoints/{ENDPOINT}/invocations", b"same", target="warm-1")
    all_open = asyncio.Barrier(count)

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        finally:
            await all_open.wait()
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 40)
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1.1 (\d+)", head)
        outcome = "nothing" if status is None else status[1].decode()
        if outcome == "200" and body == b"warm-1 same":
            world.seen["right"] += 1
        elif outcome == "503":
            world.seen["503 of the front" if b"<html>" in body else "503 ServiceUnavailable"] += 1
        else:
            world.wrong.append(f"one of {count} connections got {outcome} {answer[:200]!r}")

    await asyncio.gather(*(one() for _ in range(count)))


def connections(world: World) -> None:
    before = psutil.Process(world.platform_pid).num_fds()
    with busy(world):
        asyncio.run(at_once(world, CONNECTIONS))
    # Those to the container, one for each call it had at once, are kept for the next flood.
    kept = PlatformConfig.waiting_limit
    until(lambda: psutil.Process(world.platform_pid).num_fds() < before + kept + 50, "they are closed")


def half_open(world: World) -> None:
    """Clients that begin a request and say no more."""
    before = psutil.Process(world.platform_pid).num_fds()
    with busy(world), contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(world.connected())
            connection.sendall(b"POST /endpoints/chaos/invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-")
        for name in ("warm-1", "warm-2", "twin"):
            world.answered(name)
    until(lambda: psutil.Process(world.platform_pid).num_fds() < before + 100, "they are closed")


CASES: list[tuple[Any, ...]] = [
    ("disk full", "download", _does_not_fit(os.urandom(_FILE_BYTES)), True),
    ("disk full", "unpack", _does_not_fit(bytes(_FILE_BYTES)), True),
    ("disk full", "state write", state_write, True),
    ("disk full", "state write at the end of an update", state_write_after_update, True),
    ("disk full", "log write", log_write, True),
    ("disk full", "upload", upload, True),
    ("rclone killed", "upload", _ended_during_an_upload("rclone"), True),
    ("platform killed", "upload", _ended_during_an_upload("platform"), False, True),
    ("S3 slow", "load", _spoilt("held"), True),
    ("S3 cut off half-way", "load", _spoilt("cut off"), True),
    ("S3 gives errors", "load", _spoilt("refused"), True),
    ("S3 gives other bytes than its ETag says", "load", _spoilt("other bytes"), True),
    ("moto deaf", "configure", _away("moto"), False),
    ("rclone deaf", "configure", _away("rclone"), False),
    ("clock an hour fast", "invoke", _clock(3600), True),
    ("clock an hour slow", "invoke", _clock(-3600), False),
    ("clock two minutes fast", "invoke", _clock(120), False),
    ("descriptors exhausted", "1,000 connections", descriptors, True),
    ("memory taken without end", "invoke", memory, True),
    ("more models than fit", "load", more_models_than_fit, True),
    ("1,000 connections at once", "invoke", connections, True),
    ("200 half-open connections", "invoke", half_open, True),
]
