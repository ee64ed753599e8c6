"""The straight line that a lab rolls out, in a worker of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mme import checking, packages
from mme.settings import Settings


@pytest.fixture(autouse=True)
def server() -> Iterator[None]:
    yield
    checking.close()


def test_it_answers_with_the_lines_value_at_each_number(tmp_path: Path) -> None:
    packages.prepare(tmp_path / "line", Settings().scripts_dir / "line")
    (tmp_path / "line" / "line.json").write_text(json.dumps({"slope": 2, "intercept": 1}))
    with checking.served(tmp_path / "line") as answering:
        assert answering.ask('{"inputs": [0, 2.5]}').json() == {"predictions": [1, 6.0]}
        assert answering.ask('{"inputs": [4]}').json() == {"predictions": [9]}
