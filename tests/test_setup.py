"""What a fresh machine lacks, and what an installation that was broken off leaves, end neither `.ci/run` nor `make`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOT_USER, OTHER_USER = "echo 0", "echo 1000"
WORKS = 'echo "${0##*/}" "$@"'
FAILS = "exit 1"
INSTALLS_MAKE = f"""
echo "$@" >> asked
case "$*" in
    *install*make*) printf '#!/bin/sh\\n%s\\n' '{WORKS}' > bin/make; /bin/chmod +x bin/make ;;
esac
"""


class Machine:
    """A clone on a machine with these programs, by what they do, and hardly any others."""

    def __init__(self, folder: Path, programs: dict[str, str]) -> None:
        self.folder = folder
        (folder / ".ci").mkdir()
        shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
        (folder / "bin").mkdir()
        for name in ("bash", "basename", "dirname"):
            (folder / "bin" / name).symlink_to(str(shutil.which(name)))
        for name, does in {"timeout": 'shift; exec "$@"', **programs}.items():
            program = folder / "bin" / name
            program.write_text(f"#!/bin/sh\n{does}\n")
            program.chmod(0o755)

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.folder / "bin")}
        return subprocess.run([self.folder / ".ci/run"], env=environment, capture_output=True, text=True, timeout=60)

    @property
    def asked(self) -> list[str]:
        """What apt-get was asked to install."""
        log = self.folder / "asked"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.partition("--yes ")[2] for line in lines if "install" in line]


def test_ci_has_root_install_what_is_missing_and_the_browser_apart(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"id": ROOT_USER, "python3.11": FAILS, "apt-get": INSTALLS_MAKE})
    done = machine.run()
    assert (done.returncode, done.stdout) == (0, "make test\n"), done.stderr
    assert machine.asked == ["make python3.11-venv", "chromium"]


def test_ci_installs_nothing_where_nothing_is_missing(tmp_path: Path) -> None:
    there = dict.fromkeys(("python3.11", "make", "chromium"), WORKS)
    machine = Machine(tmp_path, {"id": ROOT_USER, "apt-get": INSTALLS_MAKE, **there})
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("make test\n")
    assert machine.asked == []


def test_ci_goes_on_where_apt_is_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"id": ROOT_USER, "python3.11": FAILS, "make": WORKS})
    done = machine.run()
    assert (done.returncode, done.stdout) == (0, "make test\n")
    assert "missing here: python3.11-venv; as root: apt-get install python3.11-venv" in done.stderr


def test_ci_tells_others_than_root_what_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"id": OTHER_USER, "python3.11": FAILS, "apt-get": INSTALLS_MAKE})
    done = machine.run()
    assert "missing here: make python3.11-venv; as root: apt-get install make python3.11-venv" in done.stderr
    assert machine.asked == []


def test_an_environment_without_pip_is_made_anew_and_one_with_it_is_kept(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.hashes.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "wheels").mkdir()  # none, so that setup ends with the environment made and nothing installed
    setup = ["make", "setup", "WHEELHOUSE=wheels", f"PYTHON={sys.executable}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True, timeout=60)
    mark = tmp_path / ".venv/mark"
    mark.touch()
    for is_kept in (False, True):
        done = subprocess.run(setup, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert "No matching distribution found for uv" in done.stderr
        assert mark.exists() == is_kept
        mark.touch()
