"""Decides what `/metrics` tells: DJL Serving's names in Prometheus' text format, per model.

Nothing is counted here: numbers that the pools keep anyway are read when somebody asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from mme.server.registry import Model, Registry

# What a handler prints to report a metric (ai.djl.metric.Metric): `[METRICS]Name.Unit:1.5|#dimensions|…`
_PRINTED = re.compile(r"\[METRICS\]([\w ]{1,100})\.(\w{1,50}):([-+0-9.eE]{1,30})(?:\||$)")
_MAX_PRINTED = 100  # names of one model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(registry: Registry) -> bytes:
    """The metrics of all models, as text."""
    collected = CollectorRegistry(auto_describe=False)
    collected.register(_Models(registry))
    return generate_latest(collected)


def note(model: Model, line: str) -> None:
    """Keep the last value of a metric that a handler prints."""
    found = _PRINTED.search(line) if "[METRICS]" in line else None
    if found is None:
        return
    name, unit, value = found.groups()
    try:
        number = float(value)
    except ValueError:
        return  # not a number after all
    if (name, unit) in model.printed or len(model.printed) < _MAX_PRINTED:
        model.printed[name, unit] = number


class _Models:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        labels = ["model"]
        responses = CounterMetricFamily("Response", "answers by status code", labels=["model", "code"])
        latency = SummaryMetricFamily("RequestLatency", "seconds from arrival to answer", labels=labels)
        queued = SummaryMetricFamily("QueueTime", "seconds a call waited for a worker", labels=labels)
        loading = GaugeMetricFamily("LoadModel", "seconds the load took", labels=labels)
        depth = GaugeMetricFamily("QueueDepth", "calls that wait for a worker", labels=labels)
        workers = GaugeMetricFamily("Workers", "worker processes", labels=labels)
        crashes = CounterMetricFamily("WorkerCrashes", "workers that ended unasked", labels=labels)
        memory = GaugeMetricFamily("MemoryUsed", "proportional set size of workers and template, MB", labels=labels)
        printed = GaugeMetricFamily("HandlerMetric", "printed by handlers", labels=["model", "name", "unit"])
        for model in self._registry.models.values():
            name = [model.target_model or model.name]
            pool = model.pool
            for (metric, unit), value in model.printed.items():
                printed.add_metric([*name, metric, unit], value)
            if pool is None:
                continue
            counters = pool.counters
            count = sum(counters.answers.values())
            for code, answers in sorted(counters.answers.items()):
                responses.add_metric([*name, str(code)], answers)
            latency.add_metric(name, count, counters.latency_s)
            queued.add_metric(name, count, counters.queued_s)
            loading.add_metric(name, model.load_s)
            depth.add_metric(name, pool.waiting)
            workers.add_metric(name, len(pool.workers))
            crashes.add_metric(name, counters.crashes)
            memory.add_metric(name, self._registry.memory.of(self._registry.pids_of(model)))
        yield from (responses, latency, queued, loading, depth, workers, crashes, memory, printed)
