"""The simulated caches: least recently used, and the optimal one that knows the future."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.labs import caches

TRACES = st.lists(st.integers(0, 5), max_size=30)


def most_hits(trace: list[int], capacity: int) -> int:
    """By trying every choice of who leaves."""

    @cache
    def best(index: int, held: frozenset[int]) -> int:
        if index == len(trace):
            return 0
        model = trace[index]
        if model in held:
            return 1 + best(index + 1, held)
        if len(held) < capacity:
            return best(index + 1, held | {model})
        return max(best(index + 1, (held - {victim}) | {model}) for victim in held)

    return best(0, frozenset())


def test_the_least_recently_used_model_leaves() -> None:
    assert caches.least_recently_used("abacb", 2) == [False, False, True, False, False]


def test_a_round_over_one_model_more_than_fits_never_hits_though_most_could() -> None:
    trace = list(range(5)) * 20
    assert caches.ratio(caches.least_recently_used(trace, 4)) == 0
    assert caches.ratio(caches.optimal(trace, 4)) > 0.7
    assert caches.ratio(caches.least_recently_used(trace, 5)) == 0.95


@given(TRACES.filter(lambda trace: len(trace) <= 12), st.integers(1, 3))
def test_no_choice_of_who_leaves_hits_more_often_than_the_optimal(trace: list[int], capacity: int) -> None:
    assert sum(caches.optimal(trace, capacity)) == most_hits(trace, capacity)


@given(TRACES, st.integers(1, 6))
def test_the_optimal_hits_at_least_as_often_and_a_larger_cache_never_less(trace: list[int], capacity: int) -> None:
    lru = caches.least_recently_used
    assert sum(lru(trace, capacity)) <= sum(caches.optimal(trace, capacity))
    assert sum(lru(trace, capacity)) <= sum(lru(trace, capacity + 1))


@given(TRACES)
def test_where_everything_fits_only_first_calls_miss(trace: list[int]) -> None:
    for hits in (caches.least_recently_used(trace, 6), caches.optimal(trace, 6)):
        assert hits.count(False) == len(set(trace))


def test_two_instances_hold_twice_as_many_models_and_no_model_twice() -> None:
    trace = list(itertools.chain(range(4), range(4)))
    assert caches.least_recently_used(trace, 2, instances=2) == [False] * 4 + [True] * 4
    assert not any(caches.least_recently_used(trace, 2))


def test_the_ratio_of_no_calls_is_no_number() -> None:
    assert math.isnan(caches.ratio([]))
    assert caches.ratio([True, False]) == 0.5


@pytest.mark.parametrize(("capacity", "instances"), [(0, 1), (1, 0)])
def test_a_cache_holds_at_least_one_model(capacity: int, instances: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        caches.least_recently_used([], capacity, instances)
