"""What someone who waits is told: in a terminal, below a notebook's cell, and nowhere else."""

from __future__ import annotations

import http.server
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import nbformat
import pytest
from botocore.stub import Stubber
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from screens import written_until

from mme.progress import Step, clients, steps, waiting

WAIT_FOR_A_FILE = """
import sys, time
from pathlib import Path

def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.01)
"""


class Watched:
    """Keeps what was waited for whenever that began, and how often it ended."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended = 0

    def begin(self) -> None:
        self.begun.append(str(steps.current()))

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def watched() -> Iterator[Watched]:
    watcher = Watched()
    steps.watch(watcher)
    yield watcher
    steps.watch(None)


@pytest.mark.parametrize(
    ("step", "done", "text"),
    [
        (Step("asking", None, False), 0, "asking"),
        (Step("asking", 4, False), 0, "asking: 0 of 4"),
        (Step("asking", 4, False), 3, "asking: 3 of 4"),
        (Step("uploading", 84 << 20, True), 12 << 20, "uploading: 12 of 84 MB"),
        (Step("downloading", None, True), 12 << 20, "downloading: 12 MB"),
        (Step("packing", 0, True), 0, "packing"),
    ],
)
def test_a_step_says_how_far_it_is(step: Step, done: int, text: str) -> None:
    step.advance(done)
    assert str(step) == text


def test_one_wait_inside_another_is_one_wait_that_ends_with_the_outer_one(watched: Watched) -> None:
    with waiting("deploying"):
        with waiting("uploading"):
            assert str(steps.current()) == "uploading"
        assert str(steps.current()) == "deploying" and watched.ended == 0
    assert (watched.begun, watched.ended, steps.current()) == (["deploying"], 1, None)


def test_a_wait_ends_with_an_error_too(watched: Watched) -> None:
    with pytest.raises(ValueError), waiting("packing"):
        raise ValueError
    assert watched.ended == 1 and steps.current() is None


def test_counts_of_several_threads_add_up() -> None:
    with waiting("uploading", 4000) as step:
        threads = [threading.Thread(target=lambda: [step.advance(1) for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert step.done == 4000


IN_A_TERMINAL = (
    WAIT_FOR_A_FILE
    + """
from mme.progress import terminal, waiting
terminal.follow()
with waiting("packing [it]", 84 << 20, is_bytes=True) as step:
    step.advance(42 << 20)
    wait_for(sys.argv[1])
print("packed")
"""
)


def test_a_terminal_shows_one_line_and_takes_it_away(tmp_path: Path) -> None:
    keyboard, screen = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, tmp_path / "go"],
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=screen,
        text=True,
    )
    line = re.compile(r"packing \[it\].*42 of 84 MB.*\d s")
    said = written_until(keyboard, lambda said: line.search(re.sub(r"\x1b\[[0-9;]*m", "", said)) is not None)
    assert "\n" not in said.strip()
    (tmp_path / "go").touch()
    said = written_until(keyboard, lambda said: "\x1b[?25h" in said)
    _, is_cleared, rest = said.rpartition("\x1b[2K")  # before it the line may have been drawn again
    assert is_cleared and "packing" not in rest and process.communicate(timeout=60) == ("packed\n", None)
    os.close(keyboard)
    os.close(screen)


def test_nothing_is_shown_where_no_terminal_is(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    said = subprocess.run(
        [sys.executable, "-c", IN_A_TERMINAL, tmp_path / "go"], capture_output=True, text=True, timeout=60
    )
    assert (said.stdout, said.stderr) == ("packed\n", "")


FOLLOW = (
    WAIT_FOR_A_FILE
    + """
from mme.progress import cells, waiting
cells._AFTER_S = cells._EVERY_S = 0.02
cells.follow()
"""
)


class Kernel:
    """A kernel of Jupyter's, and what it says while a cell runs."""

    def __init__(self) -> None:
        self.manager: KernelManager
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def run(self, code: str, go: Path, *, has_a_person: bool = True, sought: str = "") -> list[str]:
        """The kinds of messages; the file is made at the first that shows what is sought, but for the very first."""
        request = self.client.execute(code, allow_stdin=has_a_person)
        kinds: list[str] = []
        self.shown: list[Any] = []
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            content, kind = message["content"], message["msg_type"]
            if content.get("execution_state") == "idle":
                return kinds
            if kind not in ("status", "execute_input"):
                kinds.append(kind)
                self.shown.append(content.get("data", content).get("text/plain"))
            if len(kinds) > 1 and sought in str(self.shown[-1]):
                go.touch()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    found.run(FOLLOW, Path(os.devnull))
    yield found
    found.client.stop_channels()
    found.manager.shutdown_kernel(now=True)


ENDS = {
    "with a result": ("6", ["execute_result"]),
    "with text": ("print(6)", ["stream"]),
    "with an error": ("1 / 0", ["error"]),
    "with a display": ("display(6); 7", ["display_data", "execute_result"]),
    "with nothing": ("", []),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_cells_line_is_gone_before_the_cell_shows_something(kernel: Kernel, tmp_path: Path, end: str) -> None:
    last, outputs = ENDS[end]
    go = tmp_path / "go"
    kinds = kernel.run(
        f"with waiting('packing', 9) as step:\n    step.advance(3)\n    wait_for({str(go)!r})\n{last}",
        go,
        sought="3 of 9",
    )
    cleared = kinds.index("clear_output")
    assert kinds[0] == "display_data" and set(kinds[1:cleared]) == {"update_display_data"}
    assert kinds[cleared + 1 :] == outputs
    assert any(re.fullmatch(r"⏳ packing: 3 of 9 · \d+ s", shown) for shown in kernel.shown[:cleared])


def test_a_cell_that_shows_something_needs_no_line(kernel: Kernel, tmp_path: Path) -> None:
    go = tmp_path / "go"
    kernel.run("cells._AFTER_S = 1.0", Path(os.devnull))  # more than any machine takes to show what comes first
    kinds = kernel.run(f"print(1, flush=True)\ndisplay(2)\nwait_for({str(go)!r})\ntime.sleep(1.2)", go)
    kernel.run(FOLLOW, Path(os.devnull))
    assert kinds == ["stream", "display_data"]


def test_a_cell_whose_output_is_captured_has_its_line(kernel: Kernel, tmp_path: Path) -> None:
    go = tmp_path / "go"
    captured = "from IPython.utils.capture import capture_output\nwith capture_output():\n    print(1)\n"
    kinds = kernel.run(f"{captured}    wait_for({str(go)!r})", go)
    assert (kinds[0], kinds[-1]) == ("display_data", "clear_output") and kernel.shown[0].startswith("⏳ running · ")


def test_a_cell_that_nobody_looks_at_has_none(kernel: Kernel, tmp_path: Path) -> None:
    assert kernel.run("time.sleep(0.2)\n6", tmp_path / "go", has_a_person=False) == ["execute_result"]


def test_a_notebook_that_a_program_runs_keeps_no_trace() -> None:
    cell = nbformat.v4.new_code_cell("with waiting('packing'):\n    time.sleep(0.2)\n6")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FOLLOW), cell])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    assert [output["output_type"] for each in notebook.cells for output in each.outputs] == ["execute_result"]


@pytest.fixture
def boto() -> boto3.Session:
    session = boto3.Session("key", "secret", region_name="us-east-1")
    clients.follow(session)
    return session


class Shelf(http.server.BaseHTTPRequestHandler):
    """As much of S3 as an upload and a download need."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(0)

    def do_HEAD(self) -> None:
        self._answer(3)

    def do_GET(self) -> None:
        self._answer(3)
        self.wfile.write(b"abc")

    def _answer(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def shelf() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_upload_and_a_download_say_what_and_how_much(
    boto: boto3.Session, shelf: str, watched: Watched, tmp_path: Path
) -> None:
    s3 = boto.client("s3", endpoint_url=shelf)
    (tmp_path / "a").write_bytes(bytes(5 << 20))
    moved: list[int] = []
    s3.upload_file(str(tmp_path / "a"), "bucket", "packages/a.tar.gz", Callback=moved.append)
    s3.download_file("bucket", "packages/a.tar.gz", str(tmp_path / "b"))
    s3.close()
    assert sum(moved) == 5 << 20 and (tmp_path / "b").read_bytes() == b"abc"
    assert watched.begun == ["uploading packages/a.tar.gz: 0 of 5 MB", "downloading packages/a.tar.gz"]
    assert watched.ended == 2


def test_a_waiter_says_what_it_waits_for(boto: boto3.Session, watched: Watched) -> None:
    sagemaker = boto.client("sagemaker")
    with Stubber(sagemaker) as stub:
        there = {"EndpointName": "shop", "EndpointArn": "arn:aws:sagemaker:us-east-1:000000000000:endpoint/shop"}
        times = {"CreationTime": "2026-01-01T00:00:00Z", "LastModifiedTime": "2026-01-01T00:00:00Z"}
        stub.add_response("describe_endpoint", {**there, **times, "EndpointStatus": "InService"})
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="shop", WaiterConfig={"MaxAttempts": 1})
    assert watched.begun == ["waiting for endpoint in service: shop"] and watched.ended == 1


def test_a_call_says_which_model_is_called(boto: boto3.Session, watched: Watched) -> None:
    runtime = boto.client("sagemaker-runtime")
    with Stubber(runtime) as stub:
        for _ in range(2):
            stub.add_response("invoke_endpoint", {"Body": b""})
        runtime.invoke_endpoint(EndpointName="shop", TargetModel="a.tar.gz", Body=b"")
        runtime.invoke_endpoint(EndpointName="shop", Body=b"")
    assert watched.begun == ["calling a.tar.gz", "calling shop"]
