"""The platform that faults are done to, the same for all of them."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for a thousand connections
    world = World(tmp_path_factory.mktemp("chaos") / "home")
    yield world
    world.close()
