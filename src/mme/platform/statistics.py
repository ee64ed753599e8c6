"""Decides which statistics may be asked of CloudWatch: those that moto works out, and no others.

Of a percentile moto says nothing in GetMetricStatistics, and it fails in GetMetricData.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mme.platform.errors import UnsupportedOperation

_KEPT = ("Average", "Maximum", "Minimum", "SampleCount", "Sum")
_OF_A_QUERY = re.compile(r"ExtendedStatistics?(\.member\.\d+)?|MetricDataQueries\.member\.\d+\.MetricStat\.Stat")


def refuse_others(operation: str, parameters: Mapping[str, Any]) -> None:
    """Refuse percentiles, trimmed means and the like by name; `parameters` are JSON's, or the pairs of a query.

    Raises UnsupportedOperation.
    """
    if operation not in ("GetMetricStatistics", "GetMetricData", "PutMetricAlarm"):
        return
    for statistic in _asked(parameters):
        if statistic not in _KEPT:
            raise UnsupportedOperation(
                f"the local CloudWatch keeps no values to work out {statistic} from; ask {operation} for "
                f"{', '.join(_KEPT)}, or use AWS for it"
            )


def _asked(parameters: Mapping[str, Any]) -> Iterator[Any]:
    for name, value in parameters.items():
        if _OF_A_QUERY.fullmatch(name):
            yield from value if isinstance(value, list) else [value]
    for query in parameters.get("MetricDataQueries") or parameters.get("Metrics") or ():
        if isinstance(query, dict) and isinstance(query.get("MetricStat"), dict):
            yield query["MetricStat"].get("Stat", "Sum")
