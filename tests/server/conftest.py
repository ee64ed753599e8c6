"""A running embedded server for the tests that attack it; the client and the gates are the contract suite's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

import container  # noqa: E402


@pytest.fixture(scope="module")
def served() -> Iterator[container.Container]:
    """An embedded server of this module's own, on a free port; it must end with exit code 0."""
    with container.embedded() as running:
        yield running
