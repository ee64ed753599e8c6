"""The handler that waits, which a lab plans workers for, in a worker of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mme import checking, packages
from mme.settings import Settings


@pytest.fixture(autouse=True)
def server() -> Iterator[None]:
    yield
    checking.close()


def test_it_answers_after_the_time_that_its_package_says(tmp_path: Path) -> None:
    packages.prepare(tmp_path / "waiting", Settings().scripts_dir / "waiting", properties={"option.wait_ms": 7})
    with checking.served(tmp_path / "waiting") as answering:
        for _ in range(2):
            assert answering.ask('{"inputs": [1]}').json() == {"waited_ms": 7}
