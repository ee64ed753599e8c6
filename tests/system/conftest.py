"""The four packages, and a platform whose one endpoint serves them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tutorial import SCRIPTS, TRAINED, Packed, Served, platform_serving

from mme import packages


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packed]:
    root = tmp_path_factory.mktemp("packages")
    built = {}
    for slug, (scripts, train) in TRAINED.items():
        properties = {"minWorkers": 1, "maxWorkers": 2}
        folder = packages.prepare(root / slug, SCRIPTS / scripts, properties)
        records, answers = train(folder)
        archive = root / f"{slug}.tar.gz"
        packages.build(folder, archive)
        built[slug] = Packed(slug, archive, records, answers)
    return built


@pytest.fixture(scope="session")
def served(packed: dict[str, Packed], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    archives = {slug: package.archive for slug, package in packed.items()}
    with platform_serving(tmp_path_factory.mktemp("home"), archives) as endpoint:
        yield endpoint
