"""Decides what hosting many models costs in four ways, and how many workers and instances a load takes.

The unit is the instance: what one instance of the chosen type costs while it runs. Three of the four ways are paid by
the instance; serverless is converted by the ratio of the two prices, so that no currency decides the comparison.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import BaseModel, Field

HOURS_PER_MONTH = 730
# On average. With it a call waits less than it is served, from two workers on (Erlang C).
BUSY_AT_MOST = 0.7
# The least an inference component reserves: SageMaker API reference, InferenceComponentComputeResourceRequirements.
COMPONENT_MEMORY_MB = 128
COMPONENT_VCPUS = 0.25
# What a serverless endpoint may have: SageMaker API reference, ProductionVariantServerlessConfig.
SERVERLESS_MEMORY_MB = range(1024, 6144 + 1, 1024)


class _Priced(BaseModel, frozen=True, extra="forbid"):
    as_of: date
    source: str = Field(min_length=1)


class Instance(_Priced, frozen=True):
    """An instance type and the price of an hour of it."""

    type: str
    vcpus: int = Field(gt=0)
    memory_mb: int = Field(gt=0)
    per_hour: float = Field(gt=0)


class Serverless(_Priced, frozen=True):
    """The price of a serverless endpoint's second for each GB that it was given, while it answers."""

    per_gb_second: float = Field(gt=0)


class Prices(BaseModel, frozen=True, extra="forbid"):
    """Prices in one currency and region, each with the day and the place it was read."""

    currency: str
    instance: Instance
    serverless: Serverless

    @classmethod
    def read(cls, path: Path) -> Prices:
        """Those of a TOML file. Raises pydantic's ValidationError, which names the entry that is missing or wrong."""
        return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Fleet:
    """Models of one kind, and the calls they get in the hour that is planned for."""

    models: int
    calls_per_s: float
    """Of all models together."""
    service_s: float
    """How long a call keeps a worker, and the worker one vCPU."""
    memory_mb: float
    """Of one model in memory, its worker included."""
    in_use: float = 1.0
    """The share of the models that have to be in memory at once: those asked often enough to be missed there."""


def busy_workers(calls_per_s: float, service_s: float) -> float:
    """How many workers are busy on average: Little's law, L = λ·S."""
    return calls_per_s * service_s


def workers_needed(calls_per_s: float, service_s: float, busy_at_most: float = BUSY_AT_MOST) -> int:
    """The workers of which no larger share than `busy_at_most` is busy on average; at least 1."""
    workers = round(busy_workers(calls_per_s, service_s) / busy_at_most, 9)  # 1.4 / 0.7 is 2, not a little more
    return max(1, math.ceil(workers))


def waiting_share(workers: int, busy: float) -> float:
    """The share of calls that find all workers busy (Erlang C); 1 when `busy` workers' work is more than there are."""
    if busy >= workers:
        return 1.0
    blocked = 1.0  # Erlang B, by its recurrence
    for number in range(1, workers + 1):
        blocked = busy * blocked / (number + busy * blocked)
    return blocked / (1 - busy / workers * (1 - blocked))


def mean_wait_s(workers: int, calls_per_s: float, service_s: float, variation: float = 1.0) -> float:
    """How long a call waits for a worker on average when callers come independently of each other; inf if too many do.

    `variation` is the standard deviation of the service time over its mean: 1 gives the M/M/c queue, 0 calls that all
    take the same time (Allen and Cunneen's approximation, exact for one worker).
    """
    busy = busy_workers(calls_per_s, service_s)
    if busy >= workers:
        return math.inf
    return waiting_share(workers, busy) * service_s / (workers - busy) * (1 + variation**2) / 2


def one_endpoint_each(fleet: Fleet, instance: Instance) -> int:
    """The instances that an endpoint for each model takes. Raises ValueError for a model that fits on none."""
    _on_one(fleet.memory_mb, instance)
    workers = workers_needed(fleet.calls_per_s / fleet.models, fleet.service_s)
    return fleet.models * math.ceil(workers / instance.vcpus)


def multi_model(fleet: Fleet, instance: Instance) -> int:
    """The instances that one multi-model endpoint takes: enough vCPUs for the calls, and memory for the models in use.

    What a container takes without models isn't counted; give the instance less memory for it. Raises ValueError for a
    model that fits on none.
    """
    in_memory = math.ceil(fleet.models * fleet.in_use)
    return max(_for_calls(fleet, instance), math.ceil(in_memory / _on_one(fleet.memory_mb, instance)))


def components(fleet: Fleet, instance: Instance) -> int:
    """The instances that inference components take, one for each model, each with what it reserves all the time.

    Raises ValueError for a model that fits on none.
    """
    by_memory = _on_one(max(COMPONENT_MEMORY_MB, fleet.memory_mb), instance)
    on_one = min(by_memory, int(instance.vcpus / COMPONENT_VCPUS))
    return max(_for_calls(fleet, instance), math.ceil(fleet.models / on_one))


def serverless(fleet: Fleet, prices: Prices, memory_mb: float) -> float:
    """How many instances cost as much as a serverless endpoint for each model: the calls' seconds, times GB.

    `memory_mb` is what a whole container needs, with its server and libraries. Raises ValueError for more than one has.
    """
    gb_seconds = fleet.calls_per_s * fleet.service_s * serverless_memory_mb(memory_mb) / 1024
    return 3600 * gb_seconds * prices.serverless.per_gb_second / prices.instance.per_hour


def serverless_memory_mb(memory_mb: float) -> int:
    """The smallest serverless endpoint that so much fits into; ValueError if it fits into none."""
    for size_mb in SERVERLESS_MEMORY_MB:
        if memory_mb <= size_mb:
            return size_mb
    raise ValueError(f"{memory_mb:g} MB fit into no serverless endpoint; the largest has {size_mb} MB")


def per_month(instances: float, prices: Prices) -> float:
    """What so many instances cost in a month, in the currency of the prices."""
    return instances * prices.instance.per_hour * HOURS_PER_MONTH


def _for_calls(fleet: Fleet, instance: Instance) -> int:
    return math.ceil(workers_needed(fleet.calls_per_s, fleet.service_s) / instance.vcpus)


def _on_one(memory_mb: float, instance: Instance) -> int:
    """How many models of this size an instance holds."""
    if memory_mb > instance.memory_mb:
        raise ValueError(f"a model of {memory_mb:g} MB fits on no {instance.type}, which has {instance.memory_mb} MB")
    return int(instance.memory_mb / memory_mb)
