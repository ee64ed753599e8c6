"""Decides what is drawn of a state in the lines and columns that there are: what is used most comes first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mme.top.feed import Model, State

# Of each state its mark, its name and its style: the page's own, cut to the width of a column.
_STATES = {
    "answering": ("●", "answering", "green"),
    "memory": ("■", "in memory", "cyan"),
    "loading": ("◆", "loading", "yellow"),
    "downloading": ("◆", "fetching", "yellow"),
    "unloading": ("◆", "leaving", "yellow"),
    "failed": ("▲", "failed", "bold red"),
    "disk": ("□", "on disk", ""),
    "s3": ("○", "S3 only", "dim"),
}
_BARS = "▁▂▃▄▅▆▇█"
_TROUBLE = {"failed", "called", "replaced"}  # kinds of events that somebody should look at
_MOST_EVENTS = 12
_LEAST_NAME, _LEAST_CURVE, _STATE = 21, 8, 11  # columns
_INDENT = "   "


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    show: Callable[[Model, float], str]


# Where there are too few columns, the last ones are left out.
_COLUMNS = (
    _Column("MB", 6, lambda model, rate: _or_dash(model.memory_mb, _number(model.memory_mb))),
    _Column("calls/s", 8, lambda model, rate: _or_dash(rate, _number(rate))),
    _Column("queue", 6, lambda model, rate: _or_dash(model.waiting)),
    _Column("workers", 8, lambda model, rate: _or_dash(model.workers)),
    _Column("hits", 6, lambda model, rate: _share(model.hits, model.calls)),
    _Column("evicted", 8, lambda model, rate: _or_dash(model.evictions)),
    _Column("warm", 8, lambda model, rate: milliseconds(model.warm_ms)),
    _Column("cold", 8, lambda model, rate: milliseconds(model.cold_ms)),
    _Column("calls", 9, lambda model, rate: _or_dash(model.calls, f"{model.calls:,}")),
)


@dataclass(frozen=True)
class _Layout:
    """How wide a model's name may be, and which columns follow it."""

    name: int
    columns: list[_Column]

    @classmethod
    def of(cls, state: State, width: int) -> _Layout:
        longest = max((cell_len(_name(target)) for models in state.models.values() for target in models), default=0)
        ends = accumulate((column.width for column in _COLUMNS), initial=_LEAST_NAME + _STATE)
        columns = [column for column, end in zip(_COLUMNS, list(ends)[1:], strict=True) if end <= width]
        room = width - _STATE - sum(column.width for column in columns)
        return cls(max(_LEAST_NAME, min(room, len(_INDENT) + longest + 2)), columns)


@dataclass(frozen=True)
class _Instance:
    """One instance: its heading, and its models in the order in which they are shown, of which each has a row."""

    heading: list[Text]
    targets: list[str]
    row: Callable[[str], Text]


def draw(state: State, where: str, width: int, height: int | None = None) -> Text:
    """Lines of at most that many columns; exactly `height` of them, or without it as many as there is to tell."""
    clock = time.strftime("%H:%M:%S", time.localtime(state.now)) if state.now else ""
    hint = Text(clock if height is None else f"{clock}   q quits", "dim")
    lines = [_apart(Text.assemble(("mme top  ", "bold"), (where, "dim")), hint, width)]
    if not state.is_there:
        return _joined([*lines, Text(), Text("no platform runs here; `mme up` starts it")], width, height)
    lines += [_totals(state, width), Text()]
    layout = _Layout.of(state, width)
    instances = list(_instances(state, layout, width))
    events = [_event(entry) for entry in state.log[-_MOST_EVENTS:]]
    wanted = 1 + sum(len(one.heading) + len(one.targets) for one in instances)
    room = wanted + 2 + len(events) if height is None else height - len(lines)
    shown = min(len(events), max(room // 4, room - wanted - 2))
    below = _happened(events[len(events) - shown :], width)
    fleet = _fleet(instances, layout, room - len(below))
    gap = 0 if height is None else room - len(fleet) - len(below)
    return _joined([*lines, *fleet, *(Text() for _ in range(gap)), *below], width, height)


def _joined(lines: list[Text], width: int, height: int | None = None) -> Text:
    shown = lines if height is None else [*lines, *(Text() for _ in range(height - len(lines)))][:height]
    for line in shown:
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True).join(shown)


def _totals(state: State, width: int) -> Text:
    """The figures of all calls, the more important the narrower it is, and the last seconds' calls as a curve."""
    totals = state.totals
    failed, evicted = totals.get("failed", 0), totals.get("evictions", 0)
    parts = [
        Text(f"{state.calls_in(state.now - 1):,} calls/s", "bold"),
        Text(f"{_share(totals.get('hits', 0), totals.get('calls', 0) - failed)} hits"),
        Text(f"{failed:,} failed", "bold red" if failed else ""),
        Text(f"{evicted:,} evicted"),
        Text(f"warm {milliseconds(totals.get('warm_ms'))}"),
        Text(f"cold {milliseconds(totals.get('cold_ms'))}"),
    ]
    while sum(len(part) + 3 for part in parts) > width - _LEAST_CURVE and len(parts) > 1:
        parts.pop()
    first, *others = parts
    left = width - sum(len(part) + 3 for part in parts)
    return Text("   ").join([Text.assemble(first, "  ", (_curve(state, max(0, min(60, left))), "cyan")), *others])


def _curve(state: State, seconds: int) -> str:
    """Calls of each of the last seconds as bars, the highest one full."""
    counts = [state.calls_in(state.now - ago) for ago in range(seconds, 0, -1)]
    highest = max([*counts, len(_BARS)])
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in counts)


def _fleet(instances: list[_Instance], layout: _Layout, height: int) -> list[Text]:
    """Column titles, then each endpoint's instances with their models, as many of each as fit."""
    if not instances:
        return [Text("no endpoint is up; one that is created appears here")]
    lines = [_titles(layout)]
    ends = [*accumulate((len(one.heading) for one in instances), initial=len(lines))]
    shown = max(count for count in range(len(ends)) if ends[count] + (count < len(instances)) <= height or count == 0)
    left = max(0, height - ends[shown] - (shown < len(instances)))
    room = _shared(left, [len(one.targets) for one in instances[:shown]])
    for one, rows in zip(instances, room, strict=False):
        is_whole = rows == len(one.targets)
        lines += [*one.heading, *map(one.row, one.targets[: rows if is_whole else max(0, rows - 1)])]
        if rows and not is_whole:
            lines.append(Text(f"{_INDENT}and {len(one.targets) - rows + 1:,} more", "dim"))
    if shown < len(instances):
        lines.append(Text(f"and {len(instances) - shown:,} more instances", "dim"))
    return lines


def _shared(lines: int, wanted: list[int]) -> list[int]:
    """Lines for each, equally many where they don't suffice for all, and to nobody more than it wants."""
    given = [0] * len(wanted)
    for left, place in zip(range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True):
        given[place] = min(wanted[place], lines // left)
        lines -= given[place]
    return given


def _instances(state: State, layout: _Layout, width: int) -> Iterator[_Instance]:
    for endpoint in state.fleet:
        for variant in endpoint["variants"]:
            about = f"  {variant['name']}, {variant['instance_type']}, weight {variant['weight']:g}"
            heading = [Text.assemble((endpoint["name"], "bold"), (about, "dim"))]
            for instance in variant["instances"]:
                yield _instance(state, heading, variant, instance, layout, width)
                heading = []


def _instance(
    state: State, above: list[Text], variant: dict[str, Any], instance: dict[str, Any], layout: _Layout, width: int
) -> _Instance:
    models = state.models.get(instance["id"], {})
    rates = {target: state.rate(instance["id"], target) for target in models}
    return _Instance(
        [*above, _memory(instance, models, width)],
        sorted(models, key=lambda target: _by_use(target, models[target], rates[target])),
        lambda target: _row(target or variant["model"], models[target], rates[target], layout),
    )


def _by_use(target: str, model: Model, rate: float) -> tuple[object, ...]:
    place = {"failed": 1, "disk": 2, "s3": 3}.get(_state(model), 0)
    return place, -rate, -model.calls, target


def _memory(instance: dict[str, Any], models: dict[str, Model], width: int) -> Text:
    """An instance's line: its memory against the budget, and how many of its models are where."""
    used, budget = instance["used_mb"], instance["budget_mb"]
    gauge = f"budget {budget:,} MB" if used is None else f"{used:,} of {budget:,} MB"
    if not instance["is_up"]:
        gauge = "its container is being replaced"
    counts = Counter(_STATES[_state(model)][:1] + _STATES[_state(model)][2:] for model in models.values())
    after = Text(f" {gauge}  ")
    for mark, style in dict.fromkeys((mark, style) for mark, _, style in _STATES.values()):
        if counts[mark, style]:
            after.append(f" {mark} {counts[mark, style]:,}", style)
    before = Text(f" instance {instance['number']} ")
    bar = max(0, min(30, width - len(before) - len(after)))
    full = round(bar * min(1.0, (used or 0) / budget))
    tone = "yellow" if (used or 0) > 0.9 * budget else "cyan"
    return Text.assemble(before, ("━" * full, tone), ("━" * (bar - full), "dim"), after)


def _titles(layout: _Layout) -> Text:
    titles = "".join(column.title.rjust(column.width) for column in layout.columns)
    return Text(f"{'model':<{layout.name}}{'state':<{_STATE}}{titles}", "dim underline")


def _row(target: str, model: Model, rate: float, layout: _Layout) -> Text:
    name, room = _name(target), layout.name - len(_INDENT) - 1
    if cell_len(name) > room:  # what tells it from others is at its begin or at its end
        name = f"{name[: room // 2]}…{name[len(name) - (room - room // 2 - 1) :]}"
    mark, where, style = _STATES[_state(model)]
    row = Text.assemble(_INDENT, set_cell_size(name, room + 1), (f"{mark} {where}".ljust(_STATE), style))
    row.append("".join(column.show(model, rate).rjust(column.width) for column in layout.columns))
    if _state(model) in ("s3", "disk"):
        row.stylize("dim")
    return row


def _name(target: str) -> str:
    return _plain(target.removesuffix(".tar.gz"))


def _state(model: Model) -> str:
    """A model that could not be loaded is shown so until it is on its way again, as the page does."""
    return "failed" if model.trouble and model.state in ("s3", "disk") else model.state


def _happened(events: list[Text], width: int) -> list[Text]:
    return [Text(), Text(f"{'what happened':<{width}}", "dim underline"), *events] if events else []


def _event(entry: dict[str, Any]) -> Text:
    times = f" ({entry['times']:,} times)" if entry["times"] > 1 else ""
    clock = time.strftime("%H:%M:%S  ", time.localtime(entry["at"]))
    return Text.assemble((clock, "dim"), (_plain(entry["text"]) + times, "red" if entry["kind"] in _TROUBLE else ""))


def _plain(text: str) -> str:
    """Without anything that a terminal would obey: names and reasons are others' words."""
    return "".join(char if char.isprintable() else " " for char in text)


def _apart(left: Text, right: Text, width: int) -> Text:
    left.truncate(width - len(right) - 1, overflow="ellipsis", pad=True)
    return Text.assemble(left, " ", right)


def _or_dash(value: float | None, shown: str = "") -> str:
    return (shown or str(value)) if value else "–"


def _number(value: float | None) -> str:
    return f"{value or 0:.1f}" if (value or 0) < 10 else f"{value:.0f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def milliseconds(ms: float | None) -> str:
    """As the page writes them."""
    if ms is None:
        return "–"
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.1f} ms" if ms < 10 else f"{ms:.0f} ms"
