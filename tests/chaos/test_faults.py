"""Whatever ends, stops, fills up or lies: no answer is wrong, each call has one, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matrix import CASES, Case
from reliability import faults_named, keep
from verdict import judged
from world import World


@pytest.fixture
def after(world: World, case: Case) -> Iterator[None]:
    keep(case.fault, case.stage, None)
    with judged(world, case):
        yield
    keep(case.fault, case.stage, world.seen)


CHOSEN = [pytest.param(case, id=case.id, marks=() if case.is_quick else pytest.mark.soak) for case in CASES]


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.usefixtures("after")
def test_a_fault_costs_no_wrong_answer_and_leaves_nothing(world: World, case: Case) -> None:
    case.suffer(world)


def test_the_page_names_each_fault_that_is_tried_in_every_run_and_none_that_is_never_tried() -> None:
    assert faults_named() >= {(case.fault, case.stage) for case in CASES if case.is_quick}
    assert faults_named() <= {(case.fault, case.stage) for case in CASES}
