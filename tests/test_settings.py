from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from mme.settings import EXPIRY_FORMAT, Settings, configured


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


def test_the_settings_of_the_config_notebook_can_be_had_outside_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BACKEND", raising=False)
    monkeypatch.setenv("MME_PROJECT", "another")
    settings = configured()
    assert (settings.backend, settings.project, settings.yes) == ("local", "another", False)


def test_tags_say_whose_it_is_and_until_when() -> None:
    settings = Settings(project="mine", owner="me", run="one", keep_days=2)
    tags = dict(settings.tags)
    left = datetime.strptime(tags.pop("mme:expiry"), EXPIRY_FORMAT).replace(tzinfo=UTC) - datetime.now(UTC)
    assert tags == {"mme:project": "mine", "mme:owner": "me", "mme:run": "one"}
    assert timedelta(days=2) - timedelta(minutes=2) < left <= timedelta(days=2)
