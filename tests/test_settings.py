from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from pydantic import ValidationError

from mme import settings
from mme.settings import EXPIRY_FORMAT, ConfigError, Settings, configured


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("region", value) for value in ("us-east-1a", "eu-west-1 ", " eu-west-1", "US-EAST-1", "us-east-1\n")),
        *(("project", value) for value in ("My Project", "shop-", "-shop", "a shop", "shop\n")),
        *(("owner", value) for value in ("Jane Doe <x>", "a b", "me\n", "")),
        *(("run", value) for value in ("a b", "one/two", "one\n", "")),
    ],
)
def test_a_value_that_is_nearly_right_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.delenv(f"MME_{name.upper()}", raising=False)
    with pytest.raises(ValidationError, match=f"{name}\n"):
        Settings(**{name: value})


def test_every_region_of_aws_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_REGION", raising=False)
    session = boto3.Session()
    regions = [
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("s3", partition)
    ]
    assert {"us-east-1", "us-gov-west-1", "cn-north-1"} <= {Settings(region=region).region for region in regions}


def test_the_settings_of_the_config_notebook_can_be_had_outside_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BACKEND", raising=False)
    monkeypatch.setenv("MME_PROJECT", "another")
    found = configured()
    assert (found.backend, found.project, found.yes) == ("local", "another", False)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("from mme.settings import Settings\nsettings = Settings(\nyes=False", r"code cell 1, line 2: '\(' was never"),
        ("%pip install mme", r"code cell 1, line 1: invalid syntax"),
        ("a = 1\nsettings = Setings()", r"code cell 1, line 2: NameError: name 'Setings' is not defined"),
        ("import nowhere", r"code cell 1, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("settings = {}", r"makes no settings; its code ends in settings = Settings\(...\)"),
    ],
)
def test_a_config_notebook_that_gives_no_settings_is_told_with_the_line(
    config: Callable[[str], None], code: str, told: str
) -> None:
    config(code)
    with pytest.raises(ConfigError, match=f"^config.ipynb.* {told}"):
        configured()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": [{}]}', '{"cells": 1}'])
def test_a_config_notebook_that_is_none_is_told(config: Callable[[str], None], text: str) -> None:
    config("")
    settings.CONFIG.write_text(text)
    with pytest.raises(ConfigError, match="config.ipynb is no notebook"):
        configured()


def test_tags_say_whose_it_is_and_until_when() -> None:
    tags = dict(Settings(project="mine", owner="me", run="one", keep_days=2).tags)
    left = datetime.strptime(tags.pop("mme:expiry"), EXPIRY_FORMAT).replace(tzinfo=UTC) - datetime.now(UTC)
    assert tags == {"mme:project": "mine", "mme:owner": "me", "mme:run": "one"}
    assert timedelta(days=2) - timedelta(minutes=2) < left <= timedelta(days=2)
