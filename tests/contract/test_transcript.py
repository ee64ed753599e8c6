"""Every request that DJL Serving 0.36 was recorded with is answered the same, or as `differences.toml` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comparison
import differences
import pytest
import transcript

if TYPE_CHECKING:
    from conftest import Replay


@pytest.mark.parametrize("name", list(transcript.cases()))
def test_the_recorded_answer(name: str, replay: Replay) -> None:
    case = transcript.cases()[name]
    recorded, seen = replay.outcome(case)
    ours = differences.of(case) if replay.is_ours else []
    expected = recorded
    for difference in ours:
        expected = difference.applied(case, expected)
    faults = comparison.faults(expected, seen)
    assert not faults, "\n".join(faults)
    assert not ours or comparison.faults(recorded, seen), "no longer differs from DJL Serving: take it off the list"
