from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mme.settings import Settings


def test_the_backend_is_local_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BACKEND", raising=False)
    assert Settings().backend == "local"


def test_the_environment_wins_over_what_the_config_notebook_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MME_REGION", "eu-central-1")
    assert Settings(region="us-west-2").region == "eu-central-1"


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MME_HOME", "here")
    assert Settings().home == tmp_path / "here"


@pytest.mark.parametrize(
    ("name", "value"),
    [("backend", "azure"), ("region", "nowhere"), ("instance_count", 0), ("instance_memory_mb", 12), ("projekt", "x")],
)
def test_a_value_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    monkeypatch.delenv(f"MME_{name.upper()}", raising=False)
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})
