"""Decides the tables of results: a row per figure, a column per server, medians over the rounds; a dash where a server
wasn't measured. The README's is brief."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results import Results

BEGIN = "<!-- benchmarks: written by `make bench-table` -->"
END = "<!-- benchmarks: end -->"
DASH = "–"
COLUMNS = {
    "ours": "mme",
    "ours-lean": "mme, no pandas",
    "fastapi": "FastAPI",
    "mlserver": "MLServer",
    "bentoml": "BentoML",
    "litserve": "LitServe",
    "ray": "Ray Serve",
    "mms": "Multi Model Server",
    "mms-lean": "… no pandas",
    "djl": "DJL Serving",
    "djl-forked": "DJL Serving, fork-served",
    "torchserve": "TorchServe",
    "alone": "no server",
}
ALWAYS = ("ours", "fastapi", "mlserver", "bentoml", "litserve", "ray", "mms")
NOT_IN_BRIEF = ("ours-lean", "mms-lean", "djl-forked", "alone")


class NoMarks(Exception):
    """The file has no place for the table; the message says how to give it one."""


def short(value: float) -> str:
    """Three digits that count, and no more decimals than two."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


@dataclass(frozen=True)
class Row:
    title: str
    figure: str
    value: str
    wanted: dict[str, Any] = field(default_factory=dict)
    show: Callable[[float], str] = short
    in_brief: bool = False

    def cell(self, results: Results, peer: str) -> str:
        value = results.middle(self.figure, self.value, peer=peer, **self.wanted)
        return DASH if value is None else self.show(value)


def _of_each(title: str, figure: str, value: str, in_brief: bool = False) -> list[Row]:
    """A row for each kind of model."""
    names = {"lr": "LinearRegression", "et": "ExtraTrees, 18 MB", "sf": "SetFit"}
    return [Row(title.format(name), figure, value, {"model": key}, in_brief=in_brief) for key, name in names.items()]


def _speed(title: str, value: str, model: str, callers: int, in_brief: bool = True) -> Row:
    return Row(title, "speed", value, {"model": model, "callers": callers}, in_brief=in_brief)


ROWS = (
    _speed("warm call, 1 caller, LinearRegression: p50, ms", "p50_ms", "lr", 1),
    _speed("… p99, ms", "p99_ms", "lr", 1, in_brief=False),
    _speed("… 8 callers: calls/s", "rps", "lr", 8),
    _speed("… 32 callers: calls/s", "rps", "lr", 32),
    _speed("ExtraTrees, 1 caller: p50, ms", "p50_ms", "et", 1, in_brief=False),
    _speed("ExtraTrees, 32 callers: calls/s", "rps", "et", 32),
    _speed("SetFit, 1 caller: p50, ms", "p50_ms", "sf", 1, in_brief=False),
    _speed("SetFit, 32 callers: calls/s", "rps", "sf", 32),
    Row("LinearRegression while a neighbour is saturated: p50, ms", "neighbour", "p50_ms", in_brief=True),
    *_of_each("cold load and first answer, {}: ms", "cold", "ms", in_brief=True),
    *_of_each("memory of a further model, {}: MB", "memory", "pss_mb", in_brief=True),
    *_of_each("… of it private, {}: MB", "memory", "private_mb"),
    Row("memory given back by unloading 50 models", "unload", "returned", show=_percent, in_brief=True),
    *_of_each("a further worker, {}: ms", "scale", "ms", in_brief=True),
    *_of_each("what a template adds, {}: MB", "scale", "template_mb"),
    Row("1,000 models: all their memory, MB", "models", "pss_mb", {"models": 1000}),
    Row("… 8 callers on all of them: calls/s", "models", "rps", {"models": 1000}),
    Row("… 8 callers on one of them: calls/s", "models", "rps_alone", {"models": 1000}),
    Row("InvokeEndpoint through the platform, 1 caller: p50, ms", "endpoint", "p50_ms", {"callers": 1}),
    Row("… 8 callers: calls/s", "endpoint", "rps", {"callers": 8}),
    Row("… by boto3: p50, ms", "boto3", "p50_ms"),
    Row("`mme up` to the first answer of an endpoint: ms", "up", "ms"),
)


def markdown(results: Results, is_brief: bool = False) -> str:
    """The table, what it was measured on, and, unless it is brief, which server wasn't and why."""
    measured = {record["peer"] for record in results.records if record["figure"] not in ("machine", "not run")}
    peers = [peer for peer in COLUMNS if peer in measured or peer in ALWAYS]
    if is_brief:
        peers = [peer for peer in peers if peer not in NOT_IN_BRIEF]
    lines = [
        "| " + " | ".join(["", *(COLUMNS[peer] for peer in peers)]) + " |",
        "|---" + "|--:" * len(peers) + "|",
    ]
    for row in ROWS:
        if is_brief and not row.in_brief:
            continue
        cells = [row.cell(results, peer) for peer in peers]
        if any(cell != DASH for cell in cells):
            lines.append("| " + " | ".join([row.title, *cells]) + " |")
    return "\n".join([*lines, "", _conditions(results, peers), *([] if is_brief else _missing(results))]) + "\n"


def _conditions(results: Results, peers: Sequence[str]) -> str:
    """What it was measured on; of these servers, those that had fewer rounds than others are named."""
    of_peer = {
        peer: max((each["round"] for each in results.records if each.get("peer") == peer), default=0) for peer in peers
    }
    rounds = max(of_peer.values(), default=0)
    fewer = ", ".join(f"{count} of {COLUMNS[peer]}" for peer, count in of_peer.items() if 0 < count < rounds)
    errors = sum(record.get("errors", 0) for record in results.records)
    of = results.machine
    if not of:
        return ""
    return (
        f"{of['date']}: {of['cores']} cores of {of['cpu']}, {of['memory_gb']} GB, {of['system']}, "
        f"Python {of['python']}, scikit-learn {of['scikit_learn']}, torch {of['torch']}; "
        f"client and server on the same cores, OMP_NUM_THREADS=1, one worker per model; "
        f"medians of {rounds} round{'s' if rounds != 1 else ''}{f' ({fewer})' if fewer else ''}; "
        f"{errors or 'no'} call{'s' if errors != 1 else ''} failed."
    )


def _missing(results: Results) -> list[str]:
    """A line for each server, and for each part of it, that couldn't be measured."""
    reasons: dict[str, str] = {}
    for record in results.of("not run"):
        title = COLUMNS.get(record["peer"], record["peer"])
        reasons.setdefault(f"{title} ({', '.join(record['parts'])})", record["reason"])
    return ["", *(f"- not measured: {who}: {reason}" for who, reason in reasons.items())] if reasons else []


def write(results: Results, into: Path, is_brief: bool = False) -> None:
    """Put the table between the two marks of a file. Raises NoMarks."""
    text = into.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoMarks(f"{into.name} has no place for the table; put these two lines there: {BEGIN} and {END}")
    into.write_text(f"{before}{BEGIN}\n\n{markdown(results, is_brief)}\n{END}{after}")
