"""What the tutorial promises of its four models, through boto3 and a platform of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from ended import is_gone
from tutorial import SLUGS, Packed, Served, platform_serving

from mme import packages, session
from mme.platform import launch
from mme.processes import marked

SLEEPER = """
import subprocess
from djl_python import Output

def handle(inputs):
    if not inputs.is_empty():
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        return Output().add_as_json({"predictions": [child.pid]})
"""


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("slug", SLUGS)
def test_served_answers_equal_those_before_packing(
    served: Served, packed: dict[str, Packed], slug: str, count: int
) -> None:
    package = packed[slug]
    assert package.difference(served.invoke(slug, package.records[:count])) is None


@pytest.mark.parametrize("slug", SLUGS)
def test_the_first_and_further_workers_are_forked(served: Served, packed: dict[str, Packed], slug: str) -> None:
    assert grown(served, packed[slug]) == ["forked", "forked"]


def grown(served: Served, package: Packed) -> list[str]:
    """Where a model's workers come from, once many calls at once have brought the second one."""
    with ThreadPoolExecutor(16) as callers:
        for _ in range(40):
            list(callers.map(lambda _: served.invoke(package.slug, package.records[:1]), range(64)))
            origins = [worker["origin"] for worker in served.model(package.slug)["workers"]]
            if len(origins) == 2:
                break
    return origins


def worker(served: Served) -> int:
    return int(served.model("linear-regression")["workers"][0]["pid"])


def template(served: Served) -> int:
    return int(served.model("linear-regression")["template"]["pid"])


def container(served: Served) -> int:
    return int(served.instance()["pid"])


def platform(served: Served) -> int:
    running = launch.find(served.settings.home)
    assert running is not None
    return running.pid


@pytest.mark.parametrize("victim", [worker, template, container, platform], ids=lambda victim: victim.__name__)
def test_the_next_call_answers_after_a_kill(
    served: Served, packed: dict[str, Packed], victim: Callable[[Served], int]
) -> None:
    package = packed["linear-regression"]
    served.invoke(package.slug, package.records)
    if victim is template:  # there is one from the second worker on
        grown(served, package)
    process = psutil.Process(victim(served))
    process.kill()
    psutil.wait_procs([process], timeout=10)
    session.connect(served.settings)  # starts the platform again where it was the victim
    served.wait()
    assert package.difference(served.invoke(package.slug, package.records)) is None


def test_nothing_is_left_after_down_not_even_what_a_handler_started(tmp_path: Path, packed: dict[str, Packed]) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.mkdir()
    (sleeper / "serving.properties").write_text("engine=Python\n")
    (sleeper / "model.py").write_text(SLEEPER)
    packages.build(sleeper, tmp_path / "sleeper.tar.gz")
    with platform_serving(tmp_path / "home", {"sleeper": tmp_path / "sleeper.tar.gz"}) as served:
        pid = served.invoke("sleeper", [1])[0]
        assert psutil.Process(pid).cmdline() == ["sleep", "600"]
        launch.down(served.settings.home)
        assert marked("MME_MARK", str(served.settings.home)) == []
        assert is_gone(pid)
