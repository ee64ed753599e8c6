"""The formulas of the lab on costs, against figures worked out by hand and a queue played out call by call."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from pydantic import ValidationError

from mme.labs import costs
from mme.labs.costs import Fleet, Instance, Prices, Serverless

READ = {"as_of": date(2026, 1, 31), "source": "a price list"}
INSTANCE = Instance(type="ml.test.large", vcpus=2, memory_mb=4096, per_hour=0.1, **READ)
PRICES = Prices(currency="EUR", instance=INSTANCE, serverless=Serverless(per_gb_second=0.00002, **READ))
QUIET = Fleet(models=100, calls_per_s=1, service_s=0.02, memory_mb=10)


def test_the_prices_beside_the_notebook_can_be_read_and_say_when_and_where_from() -> None:
    prices = Prices.read(Path(__file__).parents[2] / "notebooks" / "labs" / "prices.toml")
    for price in (prices.instance, prices.serverless):
        assert price.as_of < date.today() and price.source.startswith("https://")


def test_a_price_without_its_source_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        'currency = "EUR"\n[instance]\ntype = "t"\nvcpus = 2\nmemory_mb = 1\nper_hour = 1\nas_of = 2026-01-31\n'
        'source = "s"\n[serverless]\nper_gb_second = 1\nas_of = 2026-01-31\n'
    )
    with pytest.raises(ValidationError, match=r"serverless.source\n  Field required"):
        Prices.read(path)


def test_each_model_of_its_own_takes_an_instance_however_little_it_is_called() -> None:
    assert costs.one_endpoint_each(QUIET, INSTANCE) == 100
    # 200 calls a second that take 0.02 s keep 4 workers busy: 6 workers, on 3 instances.
    assert costs.one_endpoint_each(replace(QUIET, calls_per_s=200), INSTANCE) == 100
    assert costs.one_endpoint_each(replace(QUIET, models=1, calls_per_s=200), INSTANCE) == 3


def test_one_endpoint_for_all_takes_what_the_calls_or_the_models_in_use_need() -> None:
    assert costs.multi_model(QUIET, INSTANCE) == 1
    assert costs.multi_model(replace(QUIET, calls_per_s=200), INSTANCE) == 3
    assert costs.multi_model(replace(QUIET, models=1000), INSTANCE) == 3  # 409 fit on one
    assert costs.multi_model(replace(QUIET, models=1000, in_use=0.4), INSTANCE) == 1


def test_components_are_limited_by_the_processors_that_each_reserves() -> None:
    assert costs.components(replace(QUIET, models=8), INSTANCE) == 1
    assert costs.components(replace(QUIET, models=9), INSTANCE) == 2
    assert costs.components(replace(QUIET, models=9, memory_mb=2000), INSTANCE) == 5  # by memory, two on each
    assert costs.components(replace(QUIET, models=8, calls_per_s=200), INSTANCE) == 3


def test_serverless_is_paid_by_the_seconds_of_the_calls_and_the_memory_they_were_given() -> None:
    one_instance_per_s = INSTANCE.per_hour / 3600 / (QUIET.service_s * 0.00002)
    assert costs.serverless(replace(QUIET, calls_per_s=one_instance_per_s), PRICES, 1024) == pytest.approx(1)
    assert costs.serverless(QUIET, PRICES, 1025) == 2 * costs.serverless(QUIET, PRICES, 1024)
    assert costs.serverless(replace(QUIET, models=1), PRICES, 1024) == costs.serverless(QUIET, PRICES, 1024)


def test_for_a_single_model_all_that_is_paid_by_the_instance_costs_the_same() -> None:
    one = replace(QUIET, models=1)
    assert costs.one_endpoint_each(one, INSTANCE) == costs.multi_model(one, INSTANCE) == costs.components(one, INSTANCE)


@pytest.mark.parametrize("way", [costs.one_endpoint_each, costs.multi_model, costs.components])
def test_a_model_that_is_too_large_for_an_instance_is_refused(way: Callable[[Fleet, Instance], int]) -> None:
    with pytest.raises(ValueError, match=r"a model of 5000 MB fits on no ml.test.large, which has 4096 MB"):
        way(replace(QUIET, memory_mb=5000), INSTANCE)


def test_what_is_too_large_for_serverless_is_refused() -> None:
    with pytest.raises(ValueError, match=r"7000 MB fit into no serverless endpoint; the largest has 6144 MB"):
        costs.serverless(QUIET, PRICES, 7000)


def test_a_month_is_so_many_hours_of_an_instance() -> None:
    assert costs.per_month(2, PRICES) == pytest.approx(2 * 0.1 * 730)


def test_workers_are_enough_to_be_busy_for_the_share_that_was_asked_for() -> None:
    assert costs.busy_workers(35, 0.04) == pytest.approx(1.4)
    assert costs.workers_needed(35, 0.04) == 2
    assert costs.workers_needed(35, 0.04, busy_at_most=0.4) == 4
    assert costs.workers_needed(0, 0.04) == 1


def test_waiting_is_as_erlang_worked_it_out() -> None:
    assert costs.waiting_share(1, 0.3) == pytest.approx(0.3)
    assert costs.waiting_share(2, 1.4) == pytest.approx(2 * 0.7**2 / (1 + 0.7))
    assert costs.waiting_share(2, 2) == 1
    assert costs.mean_wait_s(1, 15, 0.04) == pytest.approx(0.04 * 0.6 / 0.4)
    assert costs.mean_wait_s(1, 15, 0.04, variation=0) == pytest.approx(0.04 * 0.6 / 0.4 / 2)
    assert costs.mean_wait_s(1, 25, 0.04) == math.inf


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_at_the_share_that_is_planned_for_a_call_waits_less_than_it_is_served(workers: int) -> None:
    assert costs.mean_wait_s(workers, costs.BUSY_AT_MOST * workers / 0.04, 0.04) < 0.04


@pytest.mark.parametrize("workers,variation", [(1, 0), (2, 0), (2, 1), (4, 1)])
def test_a_queue_that_is_played_out_waits_as_long_as_the_formula_says(workers: int, variation: float) -> None:
    chance = random.Random(workers)
    now, waited, free_at = 0.0, 0.0, [0.0] * workers
    for _ in range(200_000):
        now += chance.expovariate(0.7 * workers)
        begins = max(now, heapq.heappop(free_at))
        waited += begins - now
        heapq.heappush(free_at, begins + (chance.expovariate(1) if variation else 1))
    assert waited / 200_000 == pytest.approx(costs.mean_wait_s(workers, 0.7 * workers, 1, variation), rel=0.1)
