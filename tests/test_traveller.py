"""The fork server as it travels in a package: `sitecustomize.py` before a stand-in for DJL Serving's worker script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ended import is_gone

from mme import forkserver, packages

pytestmark = pytest.mark.skipif(bool(forkserver.can_fork()), reason="needs a system that forks warm processes")

# Says what it is, then does what its last argument says.
ENGINE = """
import json, os, sys
if __name__ == "__main__":
    import packaging.version
    import random
    print(json.dumps({"pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "folder": os.getcwd(),
        "path": sys.path[:2], "mark": os.environ.get("MARK"), "random": random.random(),
        "warm": getattr(packaging.version, "IMPORTED_IN", os.getpid()) != os.getpid(),
        "helper": __import__("helper").NAME,
        "open": [fd for fd in range(3, 40) if os.path.exists(f"/proc/self/fd/{fd}")]}), flush=True)
    exec(sys.argv[-1])
"""
# A module that knows in which process it was imported.
WARM = "import os, packaging.version\npackaging.version.IMPORTED_IN = os.getpid()\n"


class Model:
    """A model's folder that holds the fork server, and the interpreter DJL Serving would start for it."""

    def __init__(self, root: Path, name: str, preload: str = "warm_xyz", extra: str = "") -> None:
        self.root = root
        self.folder = root / name
        source = root / f"{name}-source"
        source.mkdir()
        (source / "helper.py").write_text(f"NAME = {name!r}")
        packages.build(source, root / f"{name}.tar.gz", fork_server=True, preload=[preload])
        packages.unpack(root / f"{name}.tar.gz", self.folder)
        self.environment = {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(root),
            "PYTHONPATH": f"{root / 'library'}{os.pathsep}{self.folder}",
            "MARK": name,
            "MME_ZYGOTE_IDLE_S": "0.5" if extra == "idle" else "600",
        }

    def start(self, code: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.root / "djl_python_engine.py"), "--model-dir", str(self.folder), code],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str = "") -> tuple[dict, int, str]:
        process = self.start(code)
        out, err = process.communicate(timeout=100)
        return json.loads(out.splitlines()[0]), process.returncode, err


@pytest.fixture
def root(tmp_path):
    (tmp_path / "djl_python_engine.py").write_text(textwrap.dedent(ENGINE))
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "warm_xyz.py").write_text(WARM)
    yield tmp_path
    for zygote in zygotes(tmp_path):
        with contextlib.suppress(ProcessLookupError):  # it may have just ended
            os.kill(zygote, signal.SIGKILL)


def zygotes(root: Path) -> list[int]:
    """The zygotes whose sockets lie under this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # A fork of a zygote has its command line too, but another parent than it.
            if len(command) > 4 and command[3].startswith(f"{root}/mme-zygotes".encode()) and state[0] != "Z":
                found.append((int(entry.name), int(state[1])))
    pids = {pid for pid, _ in found}
    return [pid for pid, parent in found if parent not in pids]


def wait_until(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.02)


def test_workers_of_several_models_are_forked_from_one_warm_zygote(root):
    models = [Model(root, name) for name in ("one", "two")]
    first, second = [model.run() for model in models]
    (zygote,) = zygotes(root)
    for model, (said, code, err) in zip(models, (first, second), strict=True):
        assert (code, err) == (0, "")
        assert said["warm"] and said["parent"] == zygote
        assert said["folder"] == str(model.folder)
        assert said["arguments"][1:3] == ["--model-dir", str(model.folder)]
        assert said["path"] == [str(root), str(root / "library")]
        assert said["mark"] == said["helper"] == model.folder.name
        assert len(said["open"]) == 1  # what its asker waits on
    assert first[0]["random"] != second[0]["random"]


@pytest.mark.parametrize(
    ("code", "ended"), [("sys.exit(7)", 7), ("os._exit(77)", 77), ("os.kill(os.getpid(), 9)", 137)]
)
def test_a_workers_exit_code_is_its_askers(root, code, ended):
    assert Model(root, "one").run(code)[1] == ended


def test_what_a_worker_prints_arrives_and_ends_with_it(root):
    process = Model(root, "one").start("print('last words'); sys.stderr.write('oh'); raise ValueError('boom')")
    out, err = process.communicate(timeout=100)
    assert out.splitlines()[1] == "last words"
    assert err.startswith("ohTraceback") and err.endswith("ValueError: boom\n")
    assert process.returncode == 1


def test_a_worker_and_its_group_die_with_their_asker(root):
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)\nwhile True: pass"
    process = Model(root, "one").start(code)
    pids = [json.loads(process.stdout.readline())["pid"], int(process.stdout.readline())]
    process.kill()
    wait_until(lambda: all(is_gone(pid) for pid in pids))
    process.communicate()


def test_a_worker_outlives_its_zygote_and_the_next_starts_another(root):
    model = Model(root, "one")
    process = model.start("import time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('went on')")
    process.stdout.readline()
    (zygote,) = zygotes(root)
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: is_gone(zygote))
    assert process.poll() is None
    assert model.run()[0]["warm"]
    (model.folder / "go").touch()
    out, _ = process.communicate(timeout=100)
    assert out == "went on\n"


def test_workers_asked_for_at_once_share_the_one_zygote(root):
    processes = [Model(root, f"model-{number}").start() for number in range(6)]
    said = [json.loads(process.communicate(timeout=100)[0]) for process in processes]
    assert all(each["warm"] for each in said)
    assert len({each["parent"] for each in said}) == 1


@pytest.mark.parametrize(
    ("preload", "reason"),
    [
        ("threaded_xyz", "not forked, running plain: thread "),
        ("not_there_xyz", "not forked, running plain: ModuleNotFoundError: No module named 'not_there_xyz'"),
    ],
)
def test_what_cannot_be_forked_runs_plain_and_is_remembered_with_the_reason(root, preload, reason):
    (root / "library" / "threaded_xyz.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "open(__file__ + '.count', 'a').write('x')\n"
    )
    model = Model(root, "one", preload)
    for _ in range(2):
        said, code, err = model.run("sys.exit(3)")
        assert code == 3 and not said["warm"]
        assert err.startswith(reason)
    assert zygotes(root) == []
    if preload == "threaded_xyz":
        assert (root / "library" / "threaded_xyz.py.count").read_text() == "x"  # imported once, not at each load


def test_other_programs_of_the_interpreter_are_left_alone(root):
    model = Model(root, "one")
    found = subprocess.run(
        [sys.executable, "-m", "json.tool"],
        input="[1]",
        env=model.environment,
        cwd=model.folder,
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.stderr, zygotes(root)) == ("[\n    1\n]\n", "", [])


def test_a_zygote_that_nobody_asks_ends(root):
    assert Model(root, "one", extra="idle").run()[0]["warm"]
    wait_until(lambda: zygotes(root) == [])
    assert [
        path.suffix for path in next(root.glob("mme-zygotes-*")).iterdir() if path.suffix not in (".lock", ".log")
    ] == []


@pytest.mark.parametrize("plant", [Path.mkdir, Path.touch], ids=["a folder", "a file"])
def test_a_place_that_others_can_write_to_is_not_trusted(root, plant):
    folder = root / f"mme-zygotes-{os.getuid()}"
    plant(folder)
    folder.chmod(0o777)
    said, code, err = Model(root, "one").run()
    assert code == 0 and not said["warm"]
    assert "isn't this user's alone" in err
