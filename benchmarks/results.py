"""Decides how results are kept and read: JSON lines, one record a line, the machine's first."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import BUILD, FOLDER

LAST = BUILD / "results.jsonl"
KEPT = FOLDER / "results"
Record = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """A value that was measured several times: the middle one and the bounds."""

    middle: float
    least: float
    most: float
    count: int


class Results:
    """The records of a run, to be asked for values."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)

    @property
    def machine(self) -> Record:
        return next((record for record in self.records if record["figure"] == "machine"), {})

    def of(self, figure: str, **wanted: Any) -> list[Record]:
        return [
            record
            for record in self.records
            if record["figure"] == figure and all(record.get(key) == value for key, value in wanted.items())
        ]

    def spread(self, figure: str, field: str, **wanted: Any) -> Spread | None:
        """The values of a field over the rounds; None where there are none.

        A field `ms` that stands for several takings has the bounds of these beside it.
        """
        found = [record for record in self.of(figure, **wanted) if record.get(field) is not None]
        if not found:
            return None
        values = [record[field] for record in found]
        bounds = [
            record[name] for record in found for name in ("least_ms", "most_ms") if field == "ms" and name in record
        ]
        return Spread(statistics.median(values), min(values + bounds), max(values + bounds), len(values))

    def middle(self, figure: str, field: str, **wanted: Any) -> float | None:
        spread = self.spread(figure, field, **wanted)
        return spread.middle if spread else None


def read(path: Path) -> Results:
    return Results(json.loads(line) for line in path.read_text().splitlines())


def newest_kept() -> Path:
    """The committed results of the last day. Raises FileNotFoundError."""
    found = sorted(KEPT.glob("*.jsonl"))
    if not found:
        raise FileNotFoundError(f"there are no results in {KEPT}; copy {LAST} there under its date")
    return found[-1]


def write(record: Record, path: Path) -> None:
    """Add a record, without what has no value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({key: value for key, value in record.items() if value is not None}) + "\n")


def machine() -> Record:
    """What has to be known of this machine to read a figure."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "figure": "machine",
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model,
        "cores": len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "scikit_learn": version("scikit-learn"),
        "torch": version("torch"),
    }
