"""Calls come when they are due, by seed, whoever still waits; latency counts from there."""

from __future__ import annotations

import math
import threading
from collections import Counter

import pytest
from botocore.exceptions import ClientError

from mme.labs import traffic
from mme.labs.traffic import Arrival, Outcome


def test_a_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    shares = traffic.uniform(5)
    assert traffic.arrivals(shares, 50, 4, seed=1) == traffic.arrivals(shares, 50, 4, seed=1)
    assert traffic.arrivals(shares, 50, 4, seed=1) != traffic.arrivals(shares, 50, 4, seed=2)


def test_arrivals_come_in_order_at_the_rate_and_with_the_shares_that_were_asked_for() -> None:
    planned = traffic.arrivals(traffic.favouring(40, few=12), rate_per_s=500, seconds=20, seed=0)
    due_s = [arrival.due_s for arrival in planned]
    assert due_s == sorted(due_s) and 0 <= due_s[0] and due_s[-1] < 20
    assert len(planned) == pytest.approx(10_000, rel=0.05)
    assert sum(arrival.model < 12 for arrival in planned) / len(planned) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("shares", [traffic.uniform(7), traffic.favouring(7, few=1), traffic.zipf(7)])
def test_shares_add_up_to_one_for_every_model(shares: list[float]) -> None:
    assert len(shares) == 7 and sum(shares) == pytest.approx(1) and min(shares) > 0


def test_zipf_gives_the_second_model_half_of_the_first_ones_calls() -> None:
    shares = traffic.zipf(100)
    assert shares[1] == pytest.approx(shares[0] / 2)
    count = Counter(traffic.choices(shares, 10_000, seed=3))
    assert count[0] / 10_000 == pytest.approx(shares[0], abs=0.02)


def test_there_are_no_few_without_others() -> None:
    with pytest.raises(ValueError, match="few=5 of 5 models"):
        traffic.favouring(5, few=5)


def test_a_call_is_sent_while_an_earlier_one_still_waits() -> None:
    second_is_there = threading.Event()

    def call(model: int) -> bool:
        if model == 0:
            assert second_is_there.wait(60), "the second call waited for the first one's answer"
        else:
            second_is_there.set()
        return model == 0

    first, second = traffic.play([Arrival(0, 0), Arrival(0.001, 1)], call, at_once=2)
    assert (first.model, first.is_cold) == (0, True) and (second.model, second.is_cold) == (1, False)
    assert first.ended_s >= second.sent_s >= second.due_s


def test_waiting_for_the_sender_counts_as_latency_and_is_told() -> None:
    gate = threading.Event()

    def call(model: int) -> bool:
        return gate.wait(0.05)

    outcomes = traffic.play([Arrival(0, 0), Arrival(0, 1)], call, at_once=1)
    assert outcomes[1].latency_ms >= 99 and traffic.late_ms(outcomes) >= 49


def test_an_error_of_the_client_is_an_outcome_and_no_latency() -> None:
    def call(model: int) -> bool:
        if model == 1:
            raise ClientError({"Error": {"Code": "ServiceUnavailable"}}, "InvokeEndpoint")
        return False

    outcomes = traffic.play([Arrival(0, 0), Arrival(0, 1)], call, at_once=2)
    assert [outcome.error for outcome in outcomes] == ["", "ClientError"]
    assert math.isnan(traffic.percentile_ms(outcomes[1:], 50))


def test_a_fault_of_the_caller_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        traffic.play([Arrival(0, 0)], lambda model: bool(1 / model), at_once=1)


def test_a_percentile_is_the_latency_of_one_of_the_calls() -> None:
    outcomes = [Outcome(0, 0, 0, ms / 1000, False, "") for ms in (1, 2, 3, 4, 100)]
    assert traffic.percentile_ms(outcomes, 50) == 3
    assert traffic.percentile_ms(outcomes, 99) == 100
