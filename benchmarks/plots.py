"""Decides which curves are drawn: one message each, said in the title with the measured number; bars are ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import FixedFormatter, FuncFormatter, NullFormatter, StrMethodFormatter  # noqa: E402

from benchmarks.results import Results, Spread  # noqa: E402
from benchmarks.table import COLUMNS, short  # noqa: E402

STYLES = {"ours": ("C0", "o", "-"), "fastapi": ("C1", "s", "--"), "alone": ("C2", "^", ":")}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw every plot for which there are results, as PNG; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in PLOTS.items():
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        if plot(results, axes):
            axes.spines[["top", "right"]].set_visible(False)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_formatter(NullFormatter())
                if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
                    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
            drawn.append(folder / f"{name}.png")
        plt.close(figure)
    return drawn


def _curve(
    results: Results, axes: Axes, figure: str, x: str, y: str, *, label: str = "", style: str = "ours", **wanted: Any
) -> dict[float, Spread]:
    """A line through the medians with the ranges as bars; the points, by x."""
    places = sorted({record[x] for record in results.of(figure, **wanted)})
    points = {place: results.spread(figure, y, **wanted, **{x: place}) for place in places}
    found = {place: spread for place, spread in points.items() if spread is not None}
    if found:
        middles = [spread.middle for spread in found.values()]
        below = [spread.middle - spread.least for spread in found.values()]
        above = [spread.most - spread.middle for spread in found.values()]
        color, marker, line = STYLES[style]
        axes.errorbar(
            list(found), middles, yerr=[below, above], label=label, color=color, marker=marker, ls=line, capsize=3
        )
    return found


def memory_of_models(results: Results, axes: Axes) -> bool:
    points = _curve(results, axes, "models", "models", "pss_mb", peer="ours")
    if len(points) < 2:
        return False
    fewest, most = min(points), max(points)
    each = (points[most].middle - points[fewest].middle) / (most - fewest)
    axes.set(xlabel="models loaded", ylabel="memory of all processes, PSS, MB", ylim=(0, None))
    axes.set_title(f"Each further model takes {each:.1f} MB, up to {most:,} of them")
    return True


def latency_of_models(results: Results, axes: Axes) -> bool:
    points = _curve(results, axes, "models", "models", "p50_ms", peer="ours", label="median")
    if len(points) < 2:
        return False
    _curve(results, axes, "models", "models", "p99_ms", peer="ours", label="99th percentile", style="fastapi")
    fewest, most = min(points), max(points)
    axes.set(xscale="log", xlabel="models loaded, asked in turn by one caller", ylabel="latency, ms", ylim=(0, None))
    axes.set_title(f"A call takes {points[fewest].middle:.2f} ms of one model, {points[most].middle:.2f} of {most:,}")
    axes.legend(frameon=False)
    return True


def load_of_models(results: Results, axes: Axes) -> bool:
    points = _curve(results, axes, "models", "models", "load_ms", peer="ours")
    if len(points) < 2:
        return False
    fewest, most = min(points), max(points)
    axes.set(xscale="log", xlabel="models loaded afterwards, 8 loads at once", ylabel="time per load, ms")
    axes.set(ylim=(0, 2 * max(spread.most for spread in points.values())))
    axes.set_title(f"A load takes {points[fewest].middle:.0f} ms at first and {points[most].middle:.0f} ms at the end")
    return True


def workers(results: Results, axes: Axes) -> bool:
    computing = _curve(results, axes, "workers", "workers", "rps", model="et", label="ExtraTrees, computes")
    waiting = _curve(results, axes, "workers", "workers", "rps", model="waiting", label="waits 10 ms", style="fastapi")
    if len(computing) < 2 or len(waiting) < 2:
        return False
    most = max(waiting)
    gains = [points[most].middle / points[min(points)].middle for points in (computing, waiting)]
    axes.set(xscale="log", yscale="log", xlabel="workers of the model", ylabel="calls per second, 32 callers")
    axes.set_xticks(list(waiting), [str(count) for count in waiting])
    axes.set_title(f"{most} workers do {gains[1]:.1f} times as much if they wait, {gains[0]:.1f} if they compute")
    axes.legend(frameon=False)
    return True


def bodies(results: Results, axes: Axes) -> bool:
    curves = {
        peer: _curve(results, axes, "bodies", "size_kb", "rps", callers=8, peer=peer, label=COLUMNS[peer], style=peer)
        for peer in ("ours", "fastapi")
    }
    if len(curves["ours"]) < 2:
        return False
    largest = max(curves["ours"])
    rate = 2 * largest / 1000 * curves["ours"][largest].middle
    axes.set(xscale="log", yscale="log", xlabel="body, KB, there and back", ylabel="calls per second, 8 callers")
    axes.set_title(f"Bodies of {largest / 1000:g} MB are carried at {rate:,.0f} MB a second, both ways together")
    axes.legend(frameon=False)
    return True


def artifacts(results: Results, axes: Axes) -> bool:
    curves = {
        peer: _curve(results, axes, "artifacts", "size_mb", "ms", peer=peer, label=COLUMNS[peer], style=peer)
        for peer in ("ours", "fastapi", "alone")
    }
    if len(curves["ours"]) < 2 or len(curves["alone"]) < 2:
        return False
    largest = max(curves["ours"].keys() & curves["alone"])
    ours, alone = (curves[peer][largest].middle for peer in ("ours", "alone"))
    axes.set(xscale="log", yscale="log", xlabel="size of the artifact, MB", ylabel="load and first answer, ms")
    axes.set_xticks(list(curves["ours"]), [f"{size:.0f}" for size in curves["ours"]], minor=False)
    axes.set_title(f"A cold load of {largest:.0f} MB takes {ours:,.0f} ms, and {alone:,.0f} ms without any server")
    axes.legend(frameon=False)
    return True


def _bars(results: Results, axes: Axes, figure: str, field: str, **wanted: Any) -> dict[str, Spread]:
    spreads = {peer: results.spread(figure, field, peer=peer, **wanted) for peer in COLUMNS if peer != "alone"}
    found = {peer: spread for peer, spread in spreads.items() if spread is not None}
    order = sorted(found, key=lambda peer: found[peer].middle, reverse=True)
    for place, peer in enumerate(order):
        spread = found[peer]
        ranges = [[spread.middle - spread.least], [spread.most - spread.middle]]
        axes.barh(place, spread.middle, xerr=ranges, color="C0" if peer.startswith("ours") else "0.75", capsize=3)
        axes.annotate(f" {short(spread.middle)}", (spread.most, place), va="center")
    axes.margins(x=0.15)
    axes.set_yticks(range(len(order)), [COLUMNS[peer] for peer in order])
    return found


def warm_calls(results: Results, axes: Axes) -> bool:
    found = _bars(results, axes, "speed", "p50_ms", model="lr", callers=1)
    if len(found) < 2 or "ours" not in found:
        return False
    axes.set(xlabel="median latency of a LinearRegression, one caller, ms")
    axes.set_title(f"A warm call takes mme {found['ours'].middle:.2f} ms")
    return True


def neighbours(results: Results, axes: Axes) -> bool:
    found = _bars(results, axes, "neighbour", "p50_ms")
    if len(found) < 2 or "ours" not in found:
        return False
    axes.set(xlabel="median latency of a LinearRegression while a forest is saturated, ms")
    axes.set(xscale="log", xlim=(0.1, None))
    axes.set_title(f"A busy neighbour leaves a call at {found['ours'].middle:.2f} ms")
    return True


def cold_loads(results: Results, axes: Axes) -> bool:
    found = _bars(results, axes, "cold", "ms", model="sf")
    if len(found) < 2 or "ours" not in found:
        return False
    axes.set(xlabel="load and first answer of a SetFit model, imports warm, ms")
    axes.set(xscale="log", xlim=(10, None))
    axes.set_title(f"A process of its own costs a cold SetFit {found['ours'].middle:.0f} ms in all")
    return True


PLOTS: dict[str, Callable[[Results, Axes], bool]] = {
    "memory-of-models": memory_of_models,
    "latency-of-models": latency_of_models,
    "load-of-models": load_of_models,
    "workers": workers,
    "bodies": bodies,
    "artifacts": artifacts,
    "warm-calls": warm_calls,
    "neighbours": neighbours,
    "cold-loads": cold_loads,
}
