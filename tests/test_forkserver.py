from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from ended import is_gone

from mme import forkserver

DEADLINE_S = 120.0
pytestmark = pytest.mark.skipif(bool(forkserver.can_fork()), reason="needs a system that forks warm processes")

# What each fork does: runs the request's code with its descriptors, then ends.
SERVER = """
import os, socket, sys
from mme import forkserver
server = forkserver.Server(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), is_guardian=True)
exec(sys.argv[3])
while True:
    request, fds = server.serve()
    if "server" not in request:
        break
    server.control = socket.socket(fileno=fds[0])
exec(request["code"])
"""


class Tree:
    """A guardian with its owner's ends: the control socket and the lifeline."""

    def __init__(self, before: str = "") -> None:
        self.control, theirs = socket.socketpair()
        self.lifeline, self.life = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(theirs.fileno()), str(self.lifeline), before],
            pass_fds=[theirs.fileno(), self.lifeline],
            start_new_session=True,
        )
        theirs.close()
        self.control.settimeout(DEADLINE_S)

    def fork(self, code: str = "", fds: tuple[int, ...] = (), **request: object) -> dict:
        forkserver.send(self.control, {"id": 1, "code": textwrap.dedent(code), **request}, fds)
        return self.next()

    def next(self) -> dict:
        message, fds = forkserver.receive(self.control)
        assert not fds
        return message

    def close(self) -> None:
        self.control.close()
        self.process.wait(DEADLINE_S)
        for end in ("life", "lifeline"):
            self.let_go(end)

    def let_go(self, end: str) -> None:
        fd = getattr(self, end)
        if fd >= 0:
            os.close(fd)
        setattr(self, end, -1)


@pytest.fixture
def tree():
    tree = Tree()
    yield tree
    tree.close()


def wait_until(condition, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.01)


def test_a_fork_has_its_request_and_its_end_is_reported(tree):
    ours, theirs = os.pipe()
    pid = tree.fork("os.write(fds[0], request['word'].encode()); os._exit(7)", (theirs,), word="hello")["pid"]
    os.close(theirs)
    with open(ours) as pipe:
        assert pipe.read() == "hello"
    assert tree.next() == {"ended": pid, "code": 7}


def test_a_fork_that_is_told_of_leads_its_own_group_already_and_outlives_its_servers(tree):
    for _ in range(50):
        pid = tree.fork("import time; time.sleep(600)")["pid"]
        assert os.getpgid(pid) == pid
        os.kill(pid, signal.SIGKILL)
        assert tree.next() == {"ended": pid, "code": -9}


def test_a_killed_fork_is_reported_with_its_signal(tree):
    pid = tree.fork("import time; time.sleep(600)")["pid"]
    os.kill(pid, signal.SIGKILL)
    assert tree.next() == {"ended": pid, "code": -9}


def test_a_fork_leads_a_session_of_its_own_and_holds_no_descriptor_of_its_server(tree):
    ours, theirs = os.pipe()
    code = "os.write(fds[0], repr((os.getsid(0) == os.getpid(), len(forkserver.descriptors()))).encode()); os._exit(0)"
    tree.fork(code, (theirs,))
    os.close(theirs)
    with open(ours) as pipe:
        assert pipe.read() == "(True, 2)"  # the lifeline and the pipe


def test_a_server_with_a_thread_refuses_and_names_it():
    tree = Tree("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    try:
        refused = tree.fork()["refused"]
        assert refused.startswith("thread ")
    finally:
        tree.close()


def test_a_fork_can_be_a_server_itself_and_its_death_harms_none_of_its_children(tree):
    ours, theirs = socket.socketpair()
    branch = tree.fork(fds=(theirs.fileno(),), server=True)["pid"]
    theirs.close()
    forkserver.send(ours, {"id": 2, "code": "import time; time.sleep(600)"})
    worker = forkserver.receive(ours)[0]["pid"]
    os.kill(branch, signal.SIGKILL)
    assert tree.next() == {"ended": branch, "code": -9}
    assert not is_gone(worker)
    os.kill(worker, signal.SIGKILL)
    assert tree.next() == {"ended": worker, "code": -9}  # the guardian has adopted it
    ours.close()


def test_orphans_are_killed_but_for_those_that_are_spared(tree):
    code = """
    import subprocess
    children = [subprocess.Popen(["sleep", "600"], start_new_session=True).pid for _ in range(2)]
    os.write(fds[0], repr(children).encode())
    os._exit(0)
    """
    ours, theirs = os.pipe()
    parent = tree.fork(code, (theirs,))["pid"]
    os.close(theirs)
    with open(ours) as pipe:
        spared, other = eval(pipe.read())
    assert tree.next() == {"ended": parent, "code": 0}
    forkserver.send(tree.control, {"spare": [spared]})
    assert tree.next() == {"ended": other, "code": -9}
    assert not is_gone(spared)
    tree.close()
    assert is_gone(spared)


def test_when_the_owner_goes_nothing_of_the_tree_is_left(tree):
    code = """
    import subprocess, time
    child = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    os.write(fds[0], str(child).encode() + b" ")
    time.sleep(600)
    """
    ours, theirs = os.pipe()
    worker = tree.fork(code, (theirs,))["pid"]
    os.close(theirs)
    child = int(os.read(ours, 100))
    os.close(ours)
    tree.close()
    assert is_gone(worker) and is_gone(child)


def test_the_lifeline_kills_a_fork_and_its_group_even_if_the_guardian_has_gone(tree):
    code = """
    import subprocess
    child = subprocess.Popen(["sleep", "600"]).pid
    os.write(fds[0], str(child).encode() + b" ")
    while True: pass
    """
    ours, theirs = os.pipe()
    worker = tree.fork(code, (theirs,))["pid"]
    os.close(theirs)
    child = int(os.read(ours, 100))
    os.close(ours)
    tree.process.kill()
    tree.process.wait(DEADLINE_S)
    assert not is_gone(worker)
    tree.let_go("life")
    wait_until(lambda: is_gone(worker) and is_gone(child))


def test_a_message_larger_than_the_socket_holds_arrives_whole(tree):
    ours, theirs = os.pipe()
    tree.fork("os.write(fds[0], str(len(request['word'])).encode()); os._exit(0)", (theirs,), word="x" * 2_000_000)
    os.close(theirs)
    with open(ours) as pipe:
        assert pipe.read() == "2000000"


def test_python_that_is_forked_draws_other_random_numbers(tree):
    draws = []
    for _ in range(2):
        ours, theirs = os.pipe()
        tree.fork("import random; os.write(fds[0], str(random.random()).encode()); os._exit(0)", (theirs,))
        os.close(theirs)
        with open(ours) as pipe:
            draws.append(pipe.read())
        tree.next()
    assert draws[0] != draws[1]
