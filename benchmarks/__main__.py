"""Decides what `python -m benchmarks` understands: run, table, plots, guard."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import BUILD, ROOT, results
from benchmarks.options import Options

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Kept = Annotated[Path | None, typer.Option("--results", help="The newest of benchmarks/results if left out.")]


@app.command()
def run(
    peers: Annotated[str, typer.Option(help="Servers, with commas between; all when left out.")] = "",
    only: Annotated[str, typer.Option(help="Parts, with commas between; all when left out.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load that is timed.")] = Options.seconds,
    loads: Annotated[int, typer.Option(min=1, help="Cold loads of a kind of model.")] = Options.loads,
    further: Annotated[int, typer.Option(min=1, help="Further models, for their memory.")] = Options.further,
    unloads: Annotated[int, typer.Option(min=1, help="Models that are unloaded.")] = Options.unloads,
    models: Annotated[int, typer.Option(min=1, help="The most models loaded at once.")] = Options.models,
    out: Annotated[Path, typer.Option(help="JSON lines.")] = results.LAST,
    append: Annotated[bool, typer.Option("--append", help="Add to what is there.")] = False,
) -> None:
    """Measure, and write a record a line; then the table and the plots beside it."""
    from benchmarks import adapters, plots, running, table

    names = _chosen(peers, list(adapters.PEERS), "--peers")
    parts = _chosen(only, list(running.PARTS), "--only")
    os.environ["OMP_NUM_THREADS"] = "1"
    if not append:
        out.unlink(missing_ok=True)
        results.write(results.machine(), out)
    began = time.monotonic()
    running.run(names, parts, rounds, Options(seconds, loads, further, unloads, models), out)
    found = results.read(out)
    (out.parent / "table.md").write_text(table.markdown(found))
    drawn = plots.draw(found, out.parent / "plots")
    print(f"{time.monotonic() - began:.0f} s; {out}, table.md and {len(drawn)} plots beside it")


@app.command()
def table(kept: Kept = None) -> None:
    """Write the tables of kept results between the marks of README.md and docs/benchmarks.md, and draw the plots."""
    from benchmarks import plots, table

    found = _read(kept)
    try:
        table.write(found, ROOT / "README.md", is_brief=True)
        table.write(found, ROOT / "docs" / "benchmarks.md")
    except table.NoMarks as error:
        raise typer.BadParameter(str(error)) from None
    plots.draw(found, ROOT / "docs" / "images" / "benchmarks")


@app.command()
def guard(
    kept: Kept = None,
    margin: Annotated[float, typer.Option(help="By which a ratio may be worse.")] = 0.25,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Measure a few ratios to a peer anew, and fail if one is worse than the kept one by more than the margin."""
    from benchmarks import guard, running

    before = _read(kept)
    out = BUILD / "guard.jsonl"
    out.unlink(missing_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    running.run(("ours", guard.PEER), guard.PARTS, rounds, guard.OPTIONS, out)
    comparisons = guard.compare(before, results.read(out), margin)
    for comparison in comparisons:
        print(comparison)
    if any(comparison.has_slipped for comparison in comparisons):
        raise typer.Exit(1)


def _read(kept: Path | None) -> results.Results:
    try:
        return results.read(kept or results.newest_kept())
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error), param_hint="--results") from None


def _chosen(text: str, names: list[str], option: str) -> list[str]:
    chosen = [name for name in text.split(",") if name] or names
    if unknown := [name for name in chosen if name not in names]:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(names)}", param_hint=option)
    return chosen


if __name__ == "__main__":
    app()
