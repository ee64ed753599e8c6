"""Decides what a peer runs in: an environment of its own under build/, made by uv, with the project's own versions of
the libraries that models need."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import BUILD, ROOT

LEAN = ("scikit-learn", "joblib", "numpy", "scipy")
# SetFit needs pandas and pyarrow, and where pandas is installed scikit-learn imports it.
FULL = (*LEAN, "pandas", "pyarrow", "torch", "setfit", "transformers", "sentence-transformers", "datasets")


class CannotInstall(Exception):
    """A peer's environment can't be made; the message says which, and what uv said."""


def python(name: str, requirements: Sequence[str], *, lean: bool = False) -> Path:
    """The interpreter of an environment that holds `requirements` and the models' libraries; made when it isn't there.

    Raises CannotInstall.
    """
    folder = BUILD / "environments" / name
    libraries = [*pinned(LEAN if lean else FULL), *requirements]
    wanted = "\n".join([sys.version, "compiled", *libraries])
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _uv(name, "venv", "--clear", "--python", sys.executable, str(folder))
        # Compiled now: where Python may not write bytecode, each start of a peer would compile its libraries anew.
        _uv(name, "pip", "install", "--compile-bytecode", "--python", str(folder / "bin" / "python"), *libraries)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def pinned(names: Sequence[str]) -> list[str]:
    """The project's own pins of these distributions, each with its marker."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line.strip() for line in lines if re.split("==", line)[0].strip() in names and not line.startswith(" ")]


def _uv(name: str, *arguments: str) -> None:
    done = subprocess.run([Path(sys.executable).parent / "uv", "--quiet", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise CannotInstall(f"{name}: {' '.join((done.stderr or done.stdout).split())[:300]}")
