"""What every test shares: a header with the versions that matter, and which outside programs are here."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

# Timings belong in benchmarks: what is slow here is the machine. No database, so that each run begins the same.
hypothesis.settings.register_profile(
    "mme", deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("mme")

OUTSIDE_PROGRAMS = {
    "djl_serving": shutil.which("djl-serving") is not None,
    "docker": shutil.which("dockerd") is not None,
    "browser": shutil.which("chromium") is not None,
}


MISSING = [name for name, is_here in OUTSIDE_PROGRAMS.items() if not is_here]
LEFT_OUT = f"not run, since the program is not on this machine: tests marked {', '.join(MISSING)}"


def pytest_report_header() -> list[str]:
    versions = " ".join(f"{name} {version(name)}" for name in ("scikit-learn", "numpy", "torch", "boto3", "moto"))
    return [f"python {sys.version.split()[0]}, {versions}", *([LEFT_OUT] if MISSING else [])]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The header's word of what is left out, where `-q` shows no header."""
    if MISSING and not terminalreporter.showheader:
        terminalreporter.write_line(LEFT_OUT)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests whose outside program is missing; the header names them."""
    out = [item for item in items if set(MISSING) & {mark.name for mark in item.iter_markers()}]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Put a config.ipynb with this code in the place of the repository's."""
    from mme import settings

    monkeypatch.setattr(settings, "CONFIG", tmp_path / "config.ipynb")

    def write(code: str) -> None:
        cells = [{"cell_type": "markdown", "source": ["# Choose"]}, {"cell_type": "code", "source": [code]}]
        settings.CONFIG.write_text(json.dumps({"cells": cells}))

    return write


@pytest.fixture
def mme(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command of `mme` in this process: its exit code, what it printed, and what it said on stderr."""
    from mme import cli

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mme", *map(str, arguments)])
        before = dict(os.environ)
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(before)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
