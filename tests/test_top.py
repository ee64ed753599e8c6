"""`mme top`: what it draws of a state, and a real platform's state in a real terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from struct import pack
from typing import Any

import httpx
import pytest
from rich.console import Console
from screens import written_until

from mme import packages, session
from mme.labs import stage
from mme.platform import launch
from mme.settings import Settings
from mme.top import Feed, State, TopError, draw

COMMAND = [sys.executable, "-c", "from mme.cli import main; main()", "top"]
SIZES = [(80, 24), (60, 15), (200, 50)]
TENANTS = [f"tenant-{number:02}" for number in range(40)]
HEAVY = """
from djl_python import Output

WEIGHTS = b"x" * (40 << 20)

def handle(inputs):
    return None if inputs.is_empty() else Output().add_as_json({"predictions": [1]})
"""


def tile(
    state: str = "memory", *, calls: int = 0, evictions: int = 0, trouble: str = "", waiting: int = 0
) -> list[Any]:
    is_there = state in ("memory", "answering")
    return [state, waiting, int(is_there), 6.5 if is_there else None, calls, calls, evictions, 35.2, 1.5, trouble]


def fleet(*endpoints: str, instances: int = 1, used_mb: int | None = 700) -> list[dict[str, Any]]:
    """Endpoints, whose instances are called by their endpoint's name and their number."""
    there = {"is_up": True, "budget_mb": 1000, "used_mb": used_mb, "disk_mb": 3}
    return [
        {
            "name": name,
            "variants": [
                {
                    **{"name": "AllTraffic", "model": "model", "is_multi_model": True, "weight": 1.0, "url": "s3://a/"},
                    "instance_type": "ml.m5.large",
                    "instances": [{"id": f"{name}{number}", "number": number, **there} for number in range(instances)],
                }
            ],
        }
        for name in endpoints
    ]


def told(*events: dict[str, Any] | None) -> State:
    state = State()
    for event in events:
        state.take(event)
    return state


def lines(state: State, width: int = 80, height: int | None = 24) -> list[str]:
    """What is drawn, laid out by a console of that size."""
    console = Console(width=width, height=height, color_system=None, record=True, file=StringIO())
    console.print(draw(state, "~/.mme", width, height))
    shown = console.export_text().removesuffix("\n").split("\n")
    assert len(shown) == (height or len(shown)) and all(len(line) <= width for line in shown)
    return shown


def models_in(shown: list[str]) -> list[str]:
    return [match[1] for line in shown if (match := re.match(r"   (\S+) +[●■◆▲□○] ", line))]


def test_a_thousand_models_fit_the_lines_there_are() -> None:
    tiles = {f"tenant-{number}.tar.gz": tile(calls=number) for number in range(1000)}
    state = told({"fleet": fleet("shop"), "tiles": {"shop0": tiles}, "now": 100})
    for width, height in SIZES:
        shown = lines(state, width, height)
        names = models_in(shown)
        assert names == [f"tenant-{999 - place}" for place in range(len(names))]
        assert f"   and {1000 - len(names)} more" in [line.rstrip() for line in shown]
    assert len(models_in(lines(state, height=None))) == 1000


def test_who_is_called_now_comes_before_who_was_called_more() -> None:
    before = {"old.tar.gz": tile(calls=900), "new.tar.gz": tile(calls=10), "idle.tar.gz": tile("s3")}
    state = told(
        {"fleet": fleet("shop"), "tiles": {"shop0": before}, "now": 100},
        {"tiles": {"shop0": {"new.tar.gz": tile("answering", calls=26, waiting=3)}}, "now": 104},
    )
    shown = lines(state)
    assert models_in(shown) == ["new", "old", "idle"]
    [row] = [line for line in shown if "new" in line]
    assert row.split() == ["new", "●", "answering", "6.5", "4.0", "3", "1", "100", "%", "–"]


def test_a_model_that_just_came_has_a_rate_as_soon_as_it_is_known_for_a_second() -> None:
    state = told({"fleet": fleet("shop"), "tiles": {"shop0": {}}, "now": 100}, {"now": 101})
    state.take({"tiles": {"shop0": {"new.tar.gz": tile(calls=1)}}, "now": 102})
    assert state.rate("shop0", "new.tar.gz") == 0
    state.take({"tiles": {"shop0": {"new.tar.gz": tile(calls=9)}}, "now": 103})
    assert state.rate("shop0", "new.tar.gz") == 8


def test_instances_share_the_lines_and_leave_what_they_do_not_need() -> None:
    many = {f"tenant-{number}.tar.gz": tile() for number in range(50)}
    state = told({"fleet": fleet("a", "b"), "tiles": {"a0": many, "b0": {"one.tar.gz": tile()}}, "now": 100})
    shown = lines(state)
    assert "one" in models_in(shown) and len(models_in(shown)) > 10
    state = told({"fleet": fleet("a", instances=9), "tiles": {f"a{number}": many for number in range(9)}, "now": 100})
    assert "and 5 more instances" in [line.rstrip() for line in lines(state, height=10)]


def test_memory_is_shown_against_the_budget_and_models_are_counted_by_where_they_are() -> None:
    tiles = {"a.tar.gz": tile(), "b.tar.gz": tile("disk"), "c.tar.gz": tile("s3", trouble="no handler")}
    shown = lines(told({"fleet": fleet("shop"), "tiles": {"shop0": tiles}, "now": 100}))
    [line] = [line for line in shown if "instance 0" in line]
    assert line.endswith("700 of 1,000 MB   ■ 1 ▲ 1 □ 1") and "━" in line
    assert models_in(shown) == ["a", "c", "b"] and "▲ failed" in shown[shown.index(line) + 2]
    shown = lines(told({"fleet": fleet("shop", used_mb=None), "now": 100}))
    assert any("budget 1,000 MB" in line for line in shown)


def test_a_long_name_keeps_its_begin_and_its_end() -> None:
    tiles = {f"customers/tenant-{number}/setfit-classifier-2026.tar.gz": tile(calls=number) for number in (1, 2)}
    [name, _] = models_in(lines(told({"fleet": fleet("shop"), "tiles": {"shop0": tiles}, "now": 100})))
    assert name.startswith("customers/t") and "…" in name and name.endswith("fier-2026")


def test_a_terminal_is_shown_nothing_that_it_would_obey() -> None:
    entry = {"number": 1, "at": 100.0, "kind": "failed", "text": "could not bring a: \x1b[2J\x07", "times": 2}
    state = told(
        {"fleet": fleet("shop"), "tiles": {"shop0": {"\x1b[31mred.tar.gz": tile()}}, "log": [entry], "now": 100}
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", draw(state, "home", 80, 24).plain)
    assert lines(state)[-1].endswith("could not bring a:  [2J  (2 times)")


def test_the_newest_event_is_last_and_the_same_again_is_counted() -> None:
    log = [
        {"number": one, "at": 100.0 + one, "kind": "loaded", "text": f"loaded {one}", "times": 1} for one in range(300)
    ]
    state = told({"log": log, "now": 100}, {"log": [{**log[299], "times": 5}]})
    assert len(state.log) == 200
    assert lines(state)[-1].endswith("loaded 299 (5 times)")


def test_calls_are_counted_by_the_second_for_two_minutes() -> None:
    state = told(*({"now": 100 + one, "seconds": [[99 + one, 2, 1, 0]]} for one in range(300)))
    assert state.calls_in(398) == 3 and state.calls_in(399) == 0 and len(state.seconds) == 120


def test_what_is_known_goes_with_the_platform() -> None:
    state = told({"fleet": fleet("shop"), "tiles": {"shop0": {"a.tar.gz": tile()}}, "now": 100}, None)
    assert not state.is_there and not models_in(lines(state))
    assert "no platform runs here; `mme up` starts it" in [line.rstrip() for line in lines(state)]


def test_models_of_an_instance_that_is_gone_are_gone() -> None:
    state = told(
        {"fleet": fleet("a", "b"), "tiles": {"a0": {"x.tar.gz": tile()}, "b0": {"y.tar.gz": tile()}}, "now": 1}
    )
    state.take({"fleet": fleet("b")})
    assert models_in(lines(state)) == ["y"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An endpoint that holds some of forty models; the first tenant was called most, and none of the last ten."""
    before = dict(os.environ)
    place = tmp_path_factory.mktemp("shop")
    lab = stage.own(Settings(home=place), "shop", instance_memory_mb=1024)
    (place / "heavy").mkdir()
    (place / "heavy" / "model.py").write_text(HEAVY)
    (place / "heavy" / "serving.properties").write_text("engine=Python\nrequired_memory_mb=45\nmaxWorkers=1\n")
    packages.build(place / "heavy", place / "heavy.tar.gz")
    s3, bucket = session.connect(lab).client("s3"), session.bucket(lab)
    for tenant in TENANTS:
        s3.upload_file(str(place / "heavy.tar.gz"), bucket, f"{lab.prefix}/{tenant}.tar.gz")
    stage.deploy(lab)
    calls = caller(lab)
    for tenant in [*TENANTS[:30], *20 * TENANTS[:1]]:
        calls(tenant)
    yield lab
    stage.strike(lab)
    os.environ.clear()
    os.environ.update(before)


def caller(lab: Settings) -> Callable[[str], object]:
    runtime = stage.runtime(lab)
    return lambda tenant: runtime.invoke_endpoint(
        EndpointName=lab.endpoint_name, TargetModel=f"{tenant}.tar.gz", Body=b"{}"
    )


@pytest.fixture
def feed(shop: Settings) -> Iterator[Feed]:
    with Feed(shop.home) as feed:
        yield feed


def until(feed: Feed, state: State, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, lines(state)
        feed.into(state, 1)


def is_whole(state: State) -> bool:
    models = [model for models in state.models.values() for model in models.values()]
    variants = [variant for endpoint in state.fleet for variant in endpoint["variants"]]
    is_measured = all(instance["used_mb"] for variant in variants for instance in variant["instances"])
    return len(models) == len(TENANTS) and any(model.workers for model in models) and is_measured


@pytest.mark.parametrize("size", SIZES)
def test_a_real_platform_is_drawn_in_every_size(shop: Settings, feed: Feed, size: tuple[int, int]) -> None:
    state = State()
    until(feed, state, lambda: is_whole(state))
    shown = lines(state, *size)
    assert models_in(shown)[0] == TENANTS[0]
    assert any(shop.endpoint_name in line for line in shown) and any(" of 1,024 MB" in line for line in shown)
    assert any("evicted tenant-" in entry["text"] for entry in state.log)
    assert state.log[-1]["text"].startswith(shown[-1][10:].strip(" …"))
    rest = [re.match(r"   and (\d+) more", line) for line in shown]
    assert len(models_in(shown)) + sum(int(match[1]) for match in rest if match) == len(TENANTS)


def test_calls_are_counted_while_they_come(shop: Settings, feed: Feed) -> None:
    state = State()
    until(feed, state, lambda: is_whole(state))
    [instance] = state.models
    calls = caller(shop)
    deadline = time.monotonic() + 60
    while not (state.rate(instance, f"{TENANTS[0]}.tar.gz") > 1 and state.calls_in(state.now - 1) > 1):
        assert time.monotonic() < deadline
        calls(TENANTS[0])
        feed.into(state)


def test_without_a_terminal_the_whole_is_printed_once(shop: Settings) -> None:
    environment = os.environ | {"MME_HOME": str(shop.home)}
    commands = [
        subprocess.Popen(
            [*COMMAND, *option], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for option in ([], ["--once"])
    ]
    for command in commands:
        out, err = command.communicate(timeout=60)
        assert (command.returncode, err) == (0, "") and "\x1b" not in out and "q quits" not in out
        assert sorted(models_in(out.splitlines())) == TENANTS


ENDS: dict[str, Callable[[int, int], object]] = {
    "q": lambda keyboard, _: os.write(keyboard, b"q"),
    "Ctrl-C": lambda keyboard, _: os.write(keyboard, b"\x03"),
    "SIGTERM": lambda _, pid: os.kill(pid, signal.SIGTERM),
}


def own_terminal(screen: int) -> None:
    """Have the terminal be this process's, and Ctrl-C end it even where the tests are a job in the background."""
    os.setsid()
    ioctl(screen, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("end", ENDS)
def test_a_terminal_is_left_as_it_was(shop: Settings, end: str) -> None:
    keyboard, screen = pty.openpty()
    ioctl(screen, termios.TIOCSWINSZ, pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(screen)
    process = subprocess.Popen(
        COMMAND,
        env=os.environ | {"MME_HOME": str(shop.home), "TERM": "xterm-256color"},
        stdin=screen,
        stdout=screen,
        stderr=screen,
        preexec_fn=lambda: own_terminal(screen),
    )
    said = written_until(keyboard, lambda said: TENANTS[0] in said and "q quits" in said)
    assert "\x1b[?1049h" in said and not termios.tcgetattr(screen)[3] & termios.ECHO
    ENDS[end](keyboard, process.pid)
    after = written_until(keyboard, lambda said: "\x1b[?1049l" in said and "\x1b[?25h" in said)
    assert process.wait(60) == 0 and "Traceback" not in after
    assert termios.tcgetattr(screen) == before
    os.close(keyboard)
    os.close(screen)


def test_a_platform_that_ends_and_comes_back_is_followed(shop: Settings, feed: Feed) -> None:
    state = State()
    until(feed, state, lambda: state.is_there)
    launch.down(shop.home)
    until(feed, state, lambda: not state.is_there)
    launch.up(shop)
    until(feed, state, lambda: any(endpoint["name"] == shop.endpoint_name for endpoint in state.fleet))


def test_too_many_who_look_are_told_so(shop: Settings) -> None:
    running = launch.find(shop.home)
    assert running is not None
    events = httpx.URL(running.page_url).copy_with(path="/events", query=None)
    with ExitStack() as stack, pytest.raises(TopError, match="close one"):
        client = stack.enter_context(httpx.Client(follow_redirects=True))
        client.get(running.page_url)
        while True:  # who looked in the tests before may still be leaving
            while stack.enter_context(client.stream("GET", events)).is_success:
                continue
            state = State()
            with Feed(shop.home) as feed:
                until(feed, state, lambda state=state: state.is_there)


def test_a_home_without_a_platform_says_how_to_start_one(tmp_path: Path) -> None:
    said = subprocess.run(
        COMMAND, env=os.environ | {"MME_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert (said.returncode, said.stderr) == (1, f"error: no platform runs in {tmp_path}; `mme up` starts it\n")
