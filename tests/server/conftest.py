"""A running embedded server for the tests that attack it; the client and the gates are the contract suite's."""

from __future__ import annotations

from collections.abc import Iterator

import container
import pytest


@pytest.fixture(scope="module")
def served() -> Iterator[container.Container]:
    """An embedded server of this module's own, on a free port; it must end with exit code 0."""
    with container.embedded() as running:
        yield running
