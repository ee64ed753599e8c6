"""Decides how many instances a variant should have: the arithmetic of target tracking, as AWS documents it.

AWS: "Target tracking scaling policies for Application Auto Scaling", TargetTrackingScalingPolicyConfiguration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# AWS's alarms of target tracking: above the target for 3 datapoints, or below 90 % of it for 15.
POINTS_HIGH = 3
POINTS_LOW = 15
_LOW = 0.9
COOLDOWN_S = 300.0  # the default for SageMaker variants, TargetTrackingScalingPolicyConfiguration
_ROUNDING = 1e-9  # a sum of thirds must not ask for one instance more


@dataclass(frozen=True)
class TargetTracking:
    """A scaling policy on the one metric there is, invocations per instance and minute."""

    name: str
    target_value: float
    scale_out_cooldown_s: float = COOLDOWN_S
    scale_in_cooldown_s: float = COOLDOWN_S
    is_scale_in_disabled: bool = False


@dataclass(frozen=True)
class Bounds:
    """A scalable target's capacity limits, and what is suspended of its dynamic scaling."""

    low: int
    high: int
    is_scale_out_suspended: bool = False
    is_scale_in_suspended: bool = False


@dataclass(frozen=True)
class Change:
    """The last scaling activity that a policy triggered and that succeeded."""

    direction: Literal["out", "in"]
    capacity_before: int
    ended_at_s: float


@dataclass(frozen=True)
class Decision:
    """How many instances there should be, and the policy that says so; without one it is the limits that do."""

    capacity: int
    policy: TargetTracking | None = None


def decide(
    capacity: int,
    points: Sequence[float],
    policies: Sequence[TargetTracking],
    bounds: Bounds,
    last: Change | None,
    now_s: float,
) -> Decision:
    """What the policies make of the datapoints, the oldest first. The largest capacity wins, within bounds."""
    if not bounds.low <= capacity <= bounds.high:
        return Decision(min(max(capacity, bounds.low), bounds.high))
    wanted = [(_wanted(capacity, points, policy, last, now_s), policy) for policy in policies]
    opinions = [(number, policy) for number, policy in wanted if number is not None]
    if not opinions:
        return Decision(capacity)
    number, policy = max(opinions, key=lambda opinion: opinion[0])
    if (number > capacity and bounds.is_scale_out_suspended) or (number < capacity and bounds.is_scale_in_suspended):
        return Decision(capacity)
    return Decision(min(max(number, bounds.low), bounds.high), policy)


def _wanted(
    capacity: int, points: Sequence[float], policy: TargetTracking, last: Change | None, now_s: float
) -> int | None:
    """One policy's capacity, or None if it has no say.

    Scaling out goes by the latest datapoint. During the cooldown the capacity added last counts as part of what is
    asked for, so only a larger scale-out adds to it. Scaling in goes by the highest datapoint of those that triggered
    it: AWS says "more gradually" and not how, so that is ours. A scale-out ends the cooldown of a scale-in.
    """
    high, low = points[-POINTS_HIGH:], points[-POINTS_LOW:]
    since_s = math.inf if last is None else now_s - last.ended_at_s
    if len(high) == POINTS_HIGH and min(high) > policy.target_value:
        is_cooling = last is not None and last.direction == "out" and since_s < policy.scale_out_cooldown_s
        base = last.capacity_before if last is not None and is_cooling else capacity
        return max(capacity, _proportional(base, high[-1], policy.target_value))
    if policy.is_scale_in_disabled:
        return None
    if len(low) == POINTS_LOW and max(low) < _LOW * policy.target_value:
        is_cooling = last is not None and last.direction == "in" and since_s < policy.scale_in_cooldown_s
        return capacity if is_cooling else min(capacity, _proportional(capacity, max(low), policy.target_value))
    return capacity


def _proportional(capacity: int, metric: float, target_value: float) -> int:
    return math.ceil(capacity * metric / target_value - _ROUNDING)
