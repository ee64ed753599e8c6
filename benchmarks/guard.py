"""Decides whether the server has slipped: ratios to a peer in the same run, against the same ratios of kept results.

A ratio hardly depends on the machine or on who else uses it; a time does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.options import Options
from benchmarks.results import Results

PEER = "fastapi"
PARTS = ("cold", "speed", "neighbour", "memory")
OPTIONS = Options(seconds=1.0, loads=5, further=5)


@dataclass(frozen=True)
class Ratio:
    """One of our values divided by the peer's, or by another one of ours; less is better unless `more_is_better`."""

    title: str
    figure: str
    field: str
    wanted: dict[str, Any]
    more_is_better: bool = False
    by_own: str | None = None
    """The field of the same record to divide by, instead of the peer's value."""

    def of(self, results: Results) -> float | None:
        ours = results.middle(self.figure, self.field, peer="ours", **self.wanted)
        if self.by_own:
            other = results.middle(self.figure, self.by_own, peer="ours", **self.wanted)
        else:
            other = results.middle(self.figure, self.field, peer=PEER, **self.wanted)
        return ours / other if ours is not None and other else None


RATIOS = (
    Ratio("LinearRegression, 1 caller, p50", "speed", "p50_ms", {"model": "lr", "callers": 1}),
    Ratio("LinearRegression, 8 callers, calls/s", "speed", "rps", {"model": "lr", "callers": 8}, more_is_better=True),
    Ratio("ExtraTrees, 8 callers, calls/s", "speed", "rps", {"model": "et", "callers": 8}, more_is_better=True),
    Ratio("SetFit, 8 callers, calls/s", "speed", "rps", {"model": "sf", "callers": 8}, more_is_better=True),
    Ratio("LinearRegression, cold load", "cold", "ms", {"model": "lr"}),
    Ratio("SetFit, cold load", "cold", "ms", {"model": "sf"}),
    Ratio("ExtraTrees, memory of a further model", "memory", "pss_mb", {"model": "et"}),
    Ratio("neighbour of a busy model, p50 to p50 alone", "neighbour", "p50_ms", {}, by_own="alone_ms"),
)


@dataclass(frozen=True)
class Comparison:
    """A ratio now and as it was kept; `None` where it wasn't measured."""

    ratio: Ratio
    kept: float | None
    now: float | None
    margin: float

    @property
    def has_slipped(self) -> bool:
        """Worse by more than the margin; a ratio that was kept and can't be measured any more counts as worse."""
        if self.kept is None:
            return False
        if self.now is None:
            return True
        worse = self.kept / self.now if self.ratio.more_is_better else self.now / self.kept
        return worse > 1 + self.margin

    def __str__(self) -> str:
        kept, now = ("-" if value is None else f"{value:.2f}" for value in (self.kept, self.now))
        verdict = "slipped" if self.has_slipped else "holds" if self.kept is not None else "new"
        return f"{verdict:<8} {self.ratio.title}: {now}, kept {kept}"


def compare(kept: Results, now: Results, margin: float) -> list[Comparison]:
    """Each ratio of the run against that of the kept results."""
    return [Comparison(ratio, ratio.of(kept), ratio.of(now), margin) for ratio in RATIOS]
