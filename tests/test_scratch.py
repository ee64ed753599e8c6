from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mme.scratch import scratch

HOLDER = """
from mme.scratch import scratch
with scratch() as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own, for the processes that it starts too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def holder() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_left_goes_with_the_next_and_a_living_ones_stays(temporary: Path) -> None:
    (temporary / "mme-scratch-file").touch()
    (temporary / "mme-cache-1").mkdir()
    with holder() as dead, holder() as living:
        assert dead.stdout and living.stdout
        of_the_dead, of_the_living = Path(dead.stdout.readline().strip()), Path(living.stdout.readline().strip())
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert (of_the_dead / "file").exists()
        with scratch() as own:
            assert {path.name for path in temporary.iterdir()} == {
                own.name, of_the_living.name, "mme-scratch-file", "mme-cache-1",
            }  # fmt: skip
            assert own.stat().st_mode & 0o077 == 0
        living.communicate("\n")
    assert sorted(path.name for path in temporary.iterdir()) == ["mme-cache-1", "mme-scratch-file"]


def test_folders_that_are_made_at_the_same_time_are_all_there(temporary: Path) -> None:
    holders = [holder() for _ in range(8)]
    for process in holders:
        assert process.stdout and (Path(process.stdout.readline().strip()) / "file").exists()
    for process in holders:
        process.communicate("\n")
    assert list(temporary.iterdir()) == []
