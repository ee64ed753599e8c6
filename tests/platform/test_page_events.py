"""What is kept of what happens, and its words."""

from __future__ import annotations

import pytest

from mme.platform.hosting.happenings import Happening, Place
from mme.platform.page.events import Recorder, words

PLACE = Place("shop", "AllTraffic", 0)


@pytest.mark.parametrize(
    ("happening", "text"),
    [
        (Happening("fetched", "a.tar.gz", 0.3, 84.2), "fetched a from S3: 84 MB in 300 ms"),
        (Happening("fetched", "team/a.tar.gz", 1.26, 0.01), "fetched team/a from S3: 10 KB in 1.3 s"),
        (Happening("loaded", "a.tar.gz", 0.023), "loaded a in 23 ms"),
        (
            Happening("evicted", "a.tar.gz", 12, 8.04, "b.tar.gz"),
            "evicted a for b: least recently used, 12.0 s ago, 8.0 MB back",
        ),
        (Happening("evicted", "a.tar.gz", 130, None, "b.tar.gz"), "evicted a for b: least recently used, 2 min ago"),
        (Happening("removed", "a.tar.gz", 5), "removed a from the disk: least recently used, 5.0 s ago"),
        (Happening("failed", "a.tar.gz", detail="no handler"), "could not bring a: no handler"),
        (Happening("called", "a.tar.gz", 0.1, detail="failed"), "a answered a call with an error"),
        (Happening("called", "a.tar.gz", 0.1, detail="hit"), ""),
        (Happening("replaced", detail="it ended"), "shop: the container of instance 0 is replaced: it ended"),
    ],
)
def test_what_happens_is_said_in_words(happening: Happening, text: str) -> None:
    assert words(PLACE, happening) == text


def test_an_endpoint_comes_and_goes_in_words() -> None:
    assert words(Place("shop"), Happening("deployed", detail="1 instance")) == "endpoint shop is up: 1 instance"
    assert words(Place("shop", "blue"), Happening("deployed", detail="2 instances")) == (
        "endpoint shop, variant blue, is up: 2 instances"
    )
    assert words(Place("shop"), Happening("deleted")) == "endpoint shop is gone"


def test_the_same_line_again_is_counted_and_told_again() -> None:
    recorder = Recorder()
    for _ in range(3):
        recorder(PLACE, Happening("called", "a.tar.gz", detail="failed"))
    seen = recorder.version
    [entry] = recorder.log_since(0)
    assert (entry["number"], entry["times"]) == (1, 3)
    recorder(PLACE, Happening("loaded", "b.tar.gz", 0.1))
    assert [entry["text"] for entry in recorder.log_since(seen)] == ["loaded b in 100 ms"]
    recorder(PLACE, Happening("called", "a.tar.gz", detail="failed"))
    assert [entry["times"] for entry in recorder.log_since(0)] == [3, 1, 1]


def test_cold_and_warm_latencies_are_kept_apart() -> None:
    recorder = Recorder()
    for seconds in (0.001, 0.002, 0.003):
        recorder(PLACE, Happening("called", "a.tar.gz", seconds, detail="hit"))
    recorder(PLACE, Happening("called", "a.tar.gz", 0.5, detail="miss"))
    recorder(PLACE, Happening("called", "a.tar.gz", 9, detail="failed"))
    figures = recorder.of("shop", "AllTraffic", "a.tar.gz")
    assert figures.latencies_ms() == (500.0, 2.0)
    assert (figures.calls, figures.hits, figures.failed) == (5, 3, 1)
    assert recorder.of("shop", "AllTraffic", "other.tar.gz").latencies_ms() == (None, None)


def test_names_that_do_not_exist_fill_no_memory() -> None:
    recorder = Recorder()
    for number in range(10_050):
        recorder(PLACE, Happening("called", f"{number}.tar.gz", 0.1, detail="failed"))
    assert len(recorder._models) == 10_000
    assert len(recorder.log_since(0)) == 200


def test_reading_figures_keeps_nothing_and_costs_no_other_model_its_own() -> None:
    recorder = Recorder()
    recorder(PLACE, Happening("called", "a.tar.gz", 0.1, detail="hit"))
    for number in range(10_050):
        assert recorder.peek("shop", "AllTraffic", f"{number}.tar.gz").calls == 0
    assert recorder.peek("shop", "AllTraffic", "a.tar.gz").calls == 1
    assert len(recorder._models) == 1
