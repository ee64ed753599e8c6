"""Decides whether the exercise of a notebook is done, and what is missing where it isn't, without giving it away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from mme.exercises import labs, numbered
from mme.exercises.work import NotYet, Verdict, Work

EXERCISES: Mapping[int | str, Callable[[Work], str]] = {
    0: numbered.half_in_use,
    1: numbered.two_columns,
    2: numbered.smaller_forest,
    3: numbered.sunglasses,
    4: numbered.two_more_sentences,
    5: numbered.two_instances,
    "error_clinic": labs.error_clinic,
    "spiky_traffic": labs.spiky_traffic,
    "thousand_tenants": labs.thousand_tenants,
    "what_it_costs": labs.what_it_costs,
    "roll_out_and_roll_back": labs.roll_out_and_roll_back,
}


def check(notebook: int | str) -> Verdict:
    """How far the exercise is of a notebook, by its number, or of a lab, by its file's name without the ending.

    Reads what lies there: the notebook's names, its packages, its settings. ValueError for a notebook without exercise.
    """
    if notebook not in EXERCISES:
        raise ValueError(f"{notebook!r} has no exercise; there is one for {', '.join(map(repr, EXERCISES))}")
    return judged(notebook, vars(sys.modules["__main__"]))


def judged(notebook: int | str, names: Mapping[str, Any]) -> Verdict:
    """As `check`, of a notebook that has these names."""
    try:
        return Verdict(True, EXERCISES[notebook](Work(names)))
    except NotYet as missing:
        return Verdict(False, str(missing))
