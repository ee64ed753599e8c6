"""What these tests share: a local platform, and a user's set-up in which AWS is that platform."""

from __future__ import annotations

import functools
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import botocore.session
import pytest

from mme import session
from mme.platform import launch
from mme.platform.launch import Running
from mme.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def models_of_services() -> Iterator[None]:
    """botocore's models are read once, not by each of the many sessions of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def platform(home: Path) -> Iterator[Running]:
    """A platform that checks policies; its own keys are the account's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MME_IAM", "enforce")
        running = launch.up(Settings(home=home))
    yield running
    launch.down(home)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: Running) -> Iterator[None]:
    """A user whose AWS is the local platform: what `session.connect` sets in the environment ends with the test."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MME_"))]:
        monkeypatch.delenv(name)
    for name, value in session.environment(platform).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    yield


@pytest.fixture
def aws(home: Path, request: pytest.FixtureRequest) -> Callable[..., Settings]:
    """Settings of the backend aws, each test's in a project of its own."""
    project = f"t-{zlib.crc32(request.node.name.encode()):08x}"

    def settings(**changes: object) -> Settings:
        return Settings(**{"home": home, "backend": "aws", "project": project, "region": None} | changes)

    return settings


@pytest.fixture(scope="session")
def package() -> bytes:
    """A model package that answers `here`."""
    buffer = io.BytesIO()
    handler = b"from djl_python import Output\n\n\ndef handle(inputs):\n    return Output().add('here')\n"
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("model.py")
        info.size = len(handler)
        archive.addfile(info, io.BytesIO(handler))
    return buffer.getvalue()
