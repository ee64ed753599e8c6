"""Decides when the exercises of the labs are done."""

from __future__ import annotations

from pathlib import PurePath

from mme import checking
from mme.exercises.work import NotYet, Work
from mme.labs import caches, costs
from mme.scratch import scratch


def error_clinic(work: Work) -> str:
    """The texts of the patient's files are a package without faults. Hints name errors of docs/errors.md."""
    patient: dict[str, str] = work["patient"]
    with scratch() as place:
        for name, text in patient.items():
            (place / PurePath(name).name).write_text(text, encoding="utf-8")
        report = checking.check(place)
    errors = [found.name for found in report.findings if found.level == "error"]
    if errors:
        raise NotYet(f"the check still finds {', '.join(errors)}")
    return "the package would serve"


def what_it_costs(work: Work) -> str:
    """`most_per_s` calls a second are what one instance has room for, to a twentieth."""
    service_s, prices = work["service_s"], work["prices"]
    if "most_per_s" not in work.names:
        raise NotYet("nothing says yet what `most_per_s` is")
    most_per_s: float = work["most_per_s"]

    def instances(calls_per_s: float) -> int:
        return costs.multi_model(costs.Fleet(1, calls_per_s, service_s, memory_mb=1), prices.instance)

    if instances(0.95 * most_per_s) > 1:
        raise NotYet(f"for {most_per_s:g} calls a second the plan asks for {instances(most_per_s)} instances")
    if instances(1.05 * most_per_s) == 1:
        raise NotYet(f"with {most_per_s:g} calls a second one instance has room for more")
    return f"one instance is planned for up to {most_per_s:.0f} calls a second"


def roll_out_and_roll_back(work: Work) -> str:
    """`safe(old, new)` lets a model pass whose answers are near those of the old one, all of them."""
    if "safe" not in work.names:
        raise NotYet("nothing defines `safe` yet")
    safe, old = work["safe"], [3500, 4100, 5900, 4700]
    if not safe(old, [1.2 * grams for grams in old]):
        raise NotYet("`safe` refuses a model whose answers differ by a fifth")
    for what, new in {
        "answers a thousandth": [grams / 1000 for grams in old],
        "answers half as much again": [1.5 * grams for grams in old],
        "is far off in a single answer": [2 * old[0], *old[1:]],
        "differs most where it answers least": [0.5 * old[0], *old[1:]],
    }.items():
        if safe(old, new):
            raise NotYet(f"`safe` lets a model pass that {what}")
    return "no model gets callers whose answers are far from the old one's"


def spiky_traffic(work: Work) -> str:
    """`needed` workers make more calls than the popular model gets, and one less doesn't."""
    calls_per_s = work["RATE_PER_S"] * max(work["SHAPES"]["one"])
    each_per_s = 1000 / work["ANSWER_MS"]
    if "needed" not in work.names:
        raise NotYet("nothing says yet what `needed` is")
    needed: int = work["needed"]
    if needed * each_per_s <= calls_per_s:
        raise NotYet(f"with {needed} workers the queue of the popular model grows")
    if (needed - 1) * each_per_s > calls_per_s:
        raise NotYet(f"{needed} workers are more than it needs")
    return f"{needed} workers keep up with {calls_per_s:.0f} calls a second"


def thousand_tenants(work: Work) -> str:
    """`enough` models in memory make half of the trace's calls warm, and one less doesn't."""
    trace = work["trace"]
    if "enough" not in work.names:
        raise NotYet("nothing says yet what `enough` is")
    enough: int = work["enough"]

    def warm(models: int) -> float:
        return caches.ratio(caches.least_recently_used(trace, models)) if models > 0 else 0.0

    if warm(enough) < 0.5:
        raise NotYet(f"with {enough} models in memory, more than half of the calls are cold")
    if warm(enough - 1) >= 0.5:
        raise NotYet(f"fewer than {enough} models do it too")
    return f"{enough} models in memory make {100 * warm(enough):.0f} % of the calls warm"
