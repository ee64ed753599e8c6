"""Decides what CloudWatch is told about an endpoint: AWS's names, units and dimensions, summed up over a period.

AWS: "Amazon SageMaker AI metrics in Amazon CloudWatch", "CloudWatch metrics for multi-model endpoint deployments".
Times are microseconds. A period's values go out as one statistic set each, so Sum, Average, Minimum, Maximum and
SampleCount are exact, and percentiles are not to be had.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

INVOCATIONS = "AWS/SageMaker"  # the namespace of the metrics of calls and of the model cache
INSTANCES = "/aws/sagemaker/Endpoints"  # the namespace of the metrics of instances

_UNITS = {
    "Invocations": "None",
    "InvocationsPerInstance": "None",
    "Invocation4XXErrors": "None",
    "Invocation5XXErrors": "None",
    "InvocationModelErrors": "None",
    "ModelLatency": "Microseconds",
    "OverheadLatency": "Microseconds",
    "ModelLoadingWaitTime": "Microseconds",
    "ModelDownloadingTime": "Microseconds",
    "ModelLoadingTime": "Microseconds",
    "ModelUnloadingTime": "Microseconds",
    "ModelCacheHit": "None",
    "LoadedModelCount": "None",
    "CPUUtilization": "Percent",
    "MemoryUtilization": "Percent",
    "DiskUtilization": "Percent",
}


Observe = Callable[[str, float], None]
"""Takes the name of one of AWS's metrics and a value, times in microseconds."""


def us_since(started: float) -> float:
    """Microseconds since a reading of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1e6


class Statistic:
    """The statistic set of one metric over one period."""

    __slots__ = ("count", "total", "low", "high")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.low = float("inf")
        self.high = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value


class Meter:
    """Sums up one variant's metrics. Belongs to the event loop: nothing here waits or locks."""

    def __init__(self, namespace: str, endpoint_name: str, variant_name: str) -> None:
        self.namespace = namespace
        self._dimensions = [
            {"Name": "EndpointName", "Value": endpoint_name},
            {"Name": "VariantName", "Value": variant_name},
        ]
        self._statistics: dict[str, Statistic] = {}
        self._drained: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        """Count one value of the metric `name`, which must be one of AWS's."""
        statistic = self._statistics.get(name)
        if statistic is None:
            if name not in _UNITS:
                raise ValueError(f"{name!r} is not a metric of SageMaker endpoints; there are: {', '.join(_UNITS)}")
            statistic = self._statistics[name] = Statistic()
        statistic.add(value)

    def total(self, name: str) -> float:
        """The sum of all values of a metric since the meter was made."""
        statistic = self._statistics.get(name)
        return self._drained.get(name, 0.0) + (statistic.total if statistic else 0.0)

    def drain(self, at: datetime.datetime) -> list[dict[str, Any]]:
        """What was counted since the last time, as MetricData of PutMetricData."""
        statistics, self._statistics = self._statistics, {}
        for name, statistic in statistics.items():
            self._drained[name] = self._drained.get(name, 0.0) + statistic.total
        return [
            {
                "MetricName": name,
                "Dimensions": self._dimensions,
                "Timestamp": at,
                "Unit": _UNITS[name],
                "StatisticValues": {
                    "SampleCount": statistic.count,
                    "Sum": statistic.total,
                    "Minimum": statistic.low,
                    "Maximum": statistic.high,
                },
            }
            for name, statistic in statistics.items()
        ]
