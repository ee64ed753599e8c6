"""Decides which container the contract suite runs against: the embedded server, or one that is named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import container
import pytest
import scenes
import transcript


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("contract suite")
    options.addoption("--container-url", help="run against this container, not the embedded server")
    options.addoption("--models-root", type=Path, help="a folder that this container sees under the same path")


class Replay:
    """Plays each scene once, when its first case asks, and keeps what was seen of every case."""

    def __init__(self, root: Path, url: str | None) -> None:
        self._root = root
        self._url = url
        self._running: Any = None
        self._container: container.Container | None = None
        self._played: dict[str, dict[str, tuple[Any, Any]]] = {}
        self._broken: dict[str, BaseException] = {}

    @property
    def is_ours(self) -> bool:
        """Is it the embedded server, whose differences are listed?"""
        return self._container is not None and self._container.is_ours

    def fresh(self) -> container.Container:
        """The container with no model loaded; the embedded one is replaced when it cannot be cleared."""
        if self._container is None and self._url is not None:
            self._container = container.Container(self._url)
        if self._container is not None and not self._container.clear():
            assert self._url is None, f"{self._url} has models that cannot be unloaded: start it anew"
            self.close()
        if self._container is None:
            self._running = container.embedded()
            self._container = self._running.__enter__()
        return self._container

    def outcome(self, case: transcript.Case) -> tuple[Any, Any]:
        """What was recorded of a case, and what was seen, both in compared form."""
        if case.scene not in self._played:
            self._play(case.scene)
        assert case.name in self._played[case.scene], f"its scene stopped before it: {self._broken[case.scene]!r}"
        return self._played[case.scene][case.name]

    def _play(self, scene: str) -> None:
        stage = scenes.Stage(self.fresh(), self.folder(scene), transcript.scenes()[scene])
        self._played[scene] = stage.outcomes
        try:
            scenes.play(stage)
        except (OSError, HTTPException, LookupError, AssertionError) as error:
            self._broken[scene] = error
        finally:
            stage.close()

    def folder(self, scene: str) -> Path:
        """A new folder for the models of a scene."""
        folder = self._root / scene
        folder.mkdir(parents=True)
        return folder

    def close(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
        self._running = self._container = None


@pytest.fixture(scope="session")
def replay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    url = request.config.getoption("--container-url", default=None)
    given = request.config.getoption("--models-root", default=None)
    root = Path(given).resolve() / "contract-suite" if given else tmp_path_factory.mktemp("contract")
    shutil.rmtree(root, ignore_errors=True)
    replaying = Replay(root, url)
    yield replaying
    replaying.close()
    shutil.rmtree(root)
