"""The arithmetic of target tracking, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mme.platform.tracking import Bounds, Change, TargetTracking, decide

POLICY = TargetTracking("p", target_value=70)
BOUNDS = Bounds(1, 10)
NOW_S = 1000.0


def capacity(
    now: int,
    points: list[float],
    *policies: TargetTracking,
    bounds: Bounds = BOUNDS,
    last: Change | None = None,
) -> int:
    return decide(now, points, policies or (POLICY,), bounds, last, NOW_S).capacity


@pytest.mark.parametrize(
    ("now", "points", "expected"),
    [
        (1, [], 1),
        (1, [140.0] * 2, 1),
        (1, [140.0] * 3, 2),
        (1, [140.0, 140.0, 141.0], 3),
        (1, [500.0, 140.0, 140.0, 140.0], 2),
        (1, [140.0, 70.0, 140.0], 1),
        (1, [70.0] * 15, 1),
        (3, [70.1] * 3, 4),
        (3, [70.0 + 1e-12] * 3, 3),
        (2, [350.0] * 3, 10),
        (9, [700.0] * 3, 10),
        (10, [700.0] * 3, 10),
    ],
)
def test_three_datapoints_above_the_target_scale_out_in_proportion(
    now: int, points: list[float], expected: int
) -> None:
    assert capacity(now, points) == expected


@pytest.mark.parametrize(
    ("now", "points", "expected"),
    [
        (4, [0.0] * 14, 4),
        (4, [0.0] * 15, 1),
        (4, [35.0] * 15, 2),
        (4, [36.0] * 15, 3),
        (4, [35.0] * 14 + [0.0], 2),
        (4, [63.0] * 15, 4),
        (4, [62.9] * 15, 4),
        (4, [0.0] * 14 + [63.0], 4),
        (1, [0.0] * 15, 1),
    ],
)
def test_fifteen_datapoints_below_nine_tenths_of_the_target_scale_in_to_the_highest(
    now: int, points: list[float], expected: int
) -> None:
    assert capacity(now, points) == expected


@pytest.mark.parametrize(
    ("now", "bounds", "expected"),
    [(1, Bounds(2, 5), 2), (7, Bounds(2, 5), 5), (3, Bounds(2, 5), 3)],
)
def test_a_capacity_outside_its_bounds_is_brought_inside_without_a_policy(
    now: int, bounds: Bounds, expected: int
) -> None:
    decision = decide(now, [], (), bounds, None, NOW_S)
    assert (decision.capacity, decision.policy) == (expected, None)


@pytest.mark.parametrize(("points", "expected"), [([700.0] * 3, 5), ([0.0] * 15, 2)])
def test_policies_scale_within_bounds(points: list[float], expected: int) -> None:
    assert capacity(3, points, bounds=Bounds(2, 5)) == expected


@pytest.mark.parametrize(
    ("seconds_ago", "latest", "expected"),
    [
        (10, 140.0, 2),  # what was added covers it
        (10, 210.0, 3),  # a larger one: 1 x 210 / 70 counts the instance added as part of it
        (299, 140.0, 2),
        (300, 140.0, 4),  # over: it goes by the capacity now
    ],
)
def test_during_its_cooldown_only_a_larger_scale_out_adds(seconds_ago: float, latest: float, expected: int) -> None:
    last = Change("out", capacity_before=1, ended_at_s=NOW_S - seconds_ago)
    assert capacity(2, [latest] * 3, last=last) == expected


@pytest.mark.parametrize(("seconds_ago", "expected"), [(299, 4), (300, 1)])
def test_a_scale_in_blocks_the_next_for_its_cooldown(seconds_ago: float, expected: int) -> None:
    last = Change("in", capacity_before=5, ended_at_s=NOW_S - seconds_ago)
    assert capacity(4, [0.0] * 15, last=last) == expected


def test_a_scale_out_does_not_wait_for_a_scale_ins_cooldown() -> None:
    assert capacity(1, [140.0] * 3, last=Change("in", 2, NOW_S - 1)) == 2


def test_cooldowns_are_the_policys() -> None:
    brisk = replace(POLICY, scale_out_cooldown_s=0, scale_in_cooldown_s=0)
    assert capacity(2, [140.0] * 3, brisk, last=Change("out", 1, NOW_S)) == 4
    assert capacity(4, [0.0] * 15, brisk, last=Change("in", 5, NOW_S)) == 1


def test_a_policy_with_scale_in_disabled_only_adds() -> None:
    growing = replace(POLICY, is_scale_in_disabled=True)
    assert capacity(4, [0.0] * 15, growing) == 4
    assert capacity(1, [140.0] * 3, growing) == 2


@pytest.mark.parametrize(
    ("bounds", "points", "expected"),
    [
        (replace(BOUNDS, is_scale_out_suspended=True), [140.0] * 3, 4),
        (replace(BOUNDS, is_scale_out_suspended=True), [0.0] * 15, 1),
        (replace(BOUNDS, is_scale_in_suspended=True), [0.0] * 15, 4),
        (replace(BOUNDS, is_scale_in_suspended=True), [140.0] * 3, 8),
    ],
)
def test_what_is_suspended_does_not_scale(bounds: Bounds, points: list[float], expected: int) -> None:
    assert capacity(4, points, bounds=bounds) == expected


def test_of_several_policies_the_largest_capacity_wins_both_ways() -> None:
    lenient, strict = replace(POLICY, name="lenient"), replace(POLICY, name="strict", target_value=35)
    out = decide(1, [140.0] * 3, (lenient, strict), BOUNDS, None, NOW_S)
    assert (out.capacity, out.policy) == (4, strict)
    assert capacity(8, [7.0] * 15, lenient, strict) == 2


def test_without_a_policy_nothing_changes() -> None:
    assert decide(3, [700.0] * 15, (), BOUNDS, None, NOW_S).capacity == 3
