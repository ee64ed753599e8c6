"""What docs/reliability.md says of the faults, from the counts the tests leave: `python tests/chaos/reliability.py`.

Of each fault the last run counts. A fault that was never tried is no row, and a test notices.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from matrix import CASES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
COUNTS = ROOT / "build" / "chaos.jsonl"
BEGIN, END = "<!-- faults -->\n", "<!-- /faults -->\n"
HEAD = "| fault | while | survived | calls | answered right | what the others were told |\n|---|---|---|---|---|---|\n"


def keep(fault: str, stage: str, seen: dict[str, int] | None) -> None:
    """Add what calls came to during a fault that was survived; None when it is tried, until then."""
    COUNTS.parent.mkdir(exist_ok=True)
    with COUNTS.open("a") as file:
        file.write(json.dumps({"fault": fault, "stage": stage, "seen": seen}) + "\n")


def table(lines: list[dict[str, Any]]) -> str:
    """A row for each fault: its stages, and what the calls during it came to."""
    last = {(line["fault"], line["stage"]): line["seen"] for line in lines}
    by_fault: dict[str, dict[str, dict[str, int] | None]] = defaultdict(dict)
    for case in CASES:
        if (case.fault, case.stage) in last:
            by_fault[case.fault][case.stage] = last[case.fault, case.stage]
    rows = []
    for fault, stages in by_fault.items():
        survived = [seen for seen in stages.values() if seen is not None]
        total = sum(map(Counter, survived), Counter())
        right = total.pop("right", 0)
        told = ", ".join(f"{count:,} × {outcome}" for outcome, count in sorted(total.items())) or "nothing else"
        calls = right + sum(total.values())
        tried = f"{'; '.join(stages)} | {len(survived)} of {len(stages)}"
        rows.append(f"| {fault} | {tried} | {calls:,} | {right:,} | {told} |\n")
    return HEAD + "".join(rows)


def faults_named() -> set[tuple[str, str]]:
    """The faults with their stages that the page's table names."""
    rows = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {(fault, stage) for fault, stages, *_ in cells for stage in stages.split("; ")}


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    lines = [json.loads(line) for line in COUNTS.read_text().splitlines()]
    PAGE.write_text(before + BEGIN + table(lines) + END + rest.partition(END)[2])
