"""What every test shares: a header with the versions that matter, and which outside programs are here."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version

import pytest

OUTSIDE_PROGRAMS = {
    "djl_serving": shutil.which("djl-serving") is not None,
    "docker": shutil.which("dockerd") is not None,
    "browser": shutil.which("chromium") is not None,
}


def pytest_report_header() -> list[str]:
    versions = " ".join(f"{name} {version(name)}" for name in ("scikit-learn", "numpy", "torch", "boto3", "moto"))
    missing = [name for name, is_here in OUTSIDE_PROGRAMS.items() if not is_here]
    header = [f"python {sys.version.split()[0]}, {versions}"]
    if missing:
        header.append(f"not run, since the program is not on this machine: tests marked {', '.join(missing)}")
    return header


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests whose outside program is missing; the header names them."""
    away = {name for name, is_here in OUTSIDE_PROGRAMS.items() if not is_here}
    out = [item for item in items if away & {mark.name for mark in item.iter_markers()}]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
