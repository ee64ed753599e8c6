"""Decides whether pip finds what a package requires, where it isn't installed here already."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mme.checking.report import Finding, finding
from mme.packages.layout import REQUIREMENTS
from mme.server.requirements import are_satisfied

_PIP_TIMEOUT_S = 120


def check(folder: Path) -> Iterator[Finding]:
    """What pip says of an unpacked package's requirements; nothing is installed."""
    file = folder / REQUIREMENTS
    if not file.is_file() or are_satisfied(file.read_text(encoding="utf-8", errors="replace").splitlines()):
        return
    links = ["--find-links", "requirements"] if (folder / "requirements").is_dir() else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-color", "--no-input", "--retries", "1"]
    command = [*pip, "install", "--quiet", "--dry-run", "--no-deps", *links, "--requirement", REQUIREMENTS]
    try:
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        what = f"pip found no answer to {REQUIREMENTS} within {_PIP_TIMEOUT_S} s; look at its index"
        yield finding("requirement-not-found", what, "warning")
        return
    if said.returncode:
        errors = [line for line in said.stderr.splitlines() if line.startswith("ERROR: ")]
        words = (errors or [said.stderr.strip()])[-1].removeprefix("ERROR: ")
        yield finding("requirement-not-found", f"{REQUIREMENTS} can't be satisfied; pip says: {words}")
