"""What the tutorial promises of its four models, through boto3 and a platform of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from tutorial import SLUGS, Packed, Served

from mme.platform import launch


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("slug", SLUGS)
def test_served_answers_equal_those_before_packing(
    served: Served, packed: dict[str, Packed], slug: str, count: int
) -> None:
    package = packed[slug]
    assert package.difference(served.invoke(slug, package.records[:count])) is None


@pytest.mark.parametrize("slug", SLUGS)
def test_the_first_and_further_workers_are_forked(served: Served, packed: dict[str, Packed], slug: str) -> None:
    package = packed[slug]
    with ThreadPoolExecutor(16) as callers:
        for _ in range(40):
            list(callers.map(lambda _: served.invoke(slug, package.records), range(64)))
            origins = [worker["origin"] for worker in served.model(slug)["workers"]]
            if len(origins) == 2:
                break
    assert origins == ["forked", "forked"]


def kill_worker(served: Served) -> None:
    psutil.Process(served.model("linear-regression")["workers"][0]["pid"]).send_signal(signal.SIGKILL)


def kill_template(served: Served) -> None:
    psutil.Process(served.model("linear-regression")["template"]["pid"]).send_signal(signal.SIGKILL)


def kill_container(served: Served) -> None:
    psutil.Process(served.instance()["pid"]).send_signal(signal.SIGKILL)


def kill_platform(served: Served) -> None:
    running = launch.find(served.settings.home)
    assert running is not None
    process = psutil.Process(running.pid)
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)


@pytest.mark.parametrize("kill", [kill_worker, kill_template, kill_container], ids=lambda kill: kill.__name__)
def test_the_next_call_answers_after_a_kill(
    served: Served, packed: dict[str, Packed], kill: Callable[[Served], None]
) -> None:
    package = packed["linear-regression"]
    served.invoke(package.slug, package.records)
    kill(served)
    assert package.difference(served.invoke(package.slug, package.records)) is None
