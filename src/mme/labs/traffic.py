"""Decides which calls are made when, whoever is still waiting, and what is said about how they went.

Arrivals are open-loop: a call is sent when its time has come, not when the one before it was answered, as strangers
do. Latency counts from the moment a call was due, so a wait for the sender itself isn't lost from the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError


@dataclass(frozen=True)
class Arrival:
    due_s: float
    """Seconds after the beginning."""
    model: int


@dataclass(frozen=True)
class Outcome:
    """How a call went; times in seconds after the beginning of all."""

    model: int
    due_s: float
    sent_s: float
    ended_s: float
    is_cold: bool
    error: str
    """The error's class, or "" for an answer."""

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.ended_s - self.due_s)


def uniform(models: int) -> list[float]:
    """The same share of the calls for each model."""
    return [1 / models] * models


def favouring(models: int, few: int, share: float = 0.9) -> list[float]:
    """`share` of the calls for the first `few` models, equally, and what remains for the others."""
    if not 0 < few < models:
        raise ValueError(f"few={few} of {models} models; give at least 1, and leave others")
    return [share / few] * few + [(1 - share) / (models - few)] * (models - few)


def zipf(models: int, exponent: float = 1.0) -> list[float]:
    """Shares that fall with the rank: the model of rank r has 1 / r**exponent of the first one's calls."""
    weights = 1 / np.arange(1, models + 1) ** exponent
    return list(map(float, weights / weights.sum()))


def choices(shares: Sequence[float], calls: int, seed: int) -> list[int]:
    """Which model each of `calls` calls is for, independent of each other, the same for the same seed."""
    return [int(model) for model in np.random.default_rng(seed).choice(len(shares), calls, p=shares)]


def arrivals(shares: Sequence[float], rate_per_s: float, seconds: float, seed: int) -> list[Arrival]:
    """Calls that come independently of each other (a Poisson process), the same for the same seed."""
    generator = np.random.default_rng(seed)
    due_s = np.sort(generator.uniform(0, seconds, generator.poisson(rate_per_s * seconds)))
    models = generator.choice(len(shares), len(due_s), p=shares)
    return [Arrival(float(due), int(model)) for due, model in zip(due_s, models, strict=True)]


def play(planned: Iterable[Arrival], call: Callable[[int], bool], *, at_once: int) -> list[Outcome]:
    """Make the calls at their times, `at_once` of them under way at most, and return how each went, in their order.

    `call` takes the model and says whether the call was cold. What AWS's clients raise is an outcome too; any other
    exception ends it all.
    """
    planned = sorted(planned, key=lambda arrival: arrival.due_s)
    began = time.perf_counter()

    def make(arrival: Arrival) -> Outcome:
        sent_s = time.perf_counter() - began
        is_cold, error = False, ""
        try:
            is_cold = call(arrival.model)
        except (ClientError, BotoCoreError) as raised:
            error = type(raised).__name__
        return Outcome(arrival.model, arrival.due_s, sent_s, time.perf_counter() - began, is_cold, error)

    with ThreadPoolExecutor(at_once) as threads:
        made = []
        for arrival in planned:
            time.sleep(max(0.0, arrival.due_s - (time.perf_counter() - began)))
            made.append(threads.submit(make, arrival))
        return [outcome.result() for outcome in made]


def percentile_ms(outcomes: Iterable[Outcome], percent: float) -> float:
    """The latency that `percent` of the answered calls don't exceed, as one of them had it; NaN without any."""
    latencies_ms = [outcome.latency_ms for outcome in outcomes if not outcome.error]
    return float(np.percentile(latencies_ms, percent, method="inverted_cdf")) if latencies_ms else float("nan")


def late_ms(outcomes: Iterable[Outcome]) -> float:
    """By how much the latest call was sent too late: whether it was the sender that was measured."""
    return max((1000 * (outcome.sent_s - outcome.due_s) for outcome in outcomes), default=0.0)
