"""Decides how a warm interpreter forks processes: one request, one child, one report of its end.

A fork server is a process with one thread that has imported what its children need. Its owner holds the other end
of a control socket: it sends a request (JSON, with descriptors), the server forks, and the child goes on with that
request in the same interpreter, milliseconds later, with its memory shared until it is written to.

Who ends when: every process here is killed by the kernel when its owner ends, through a lifeline: a pipe whose only
writer is the owner. The guardian, the first server of a tree, adopts every orphan of the tree and kills them all
when its owner goes. A server's death harms none of its children.

Standard library only, and one file, so that it can travel. Where `can_fork` says no (macOS), a server's children
must do nothing but start another program.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# What must be in the environment before the libraries are imported, so that importing them starts no thread.
# The fork of a process with threads can hang: a lock that another thread holds is held for ever in the child.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "TOKENIZERS_PARALLELISM": "false",
}

_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_F_SETSIG = 10  # from linux/fcntl.h; the module `fcntl` of Python 3.11 doesn't name it on every build
_LENGTH = struct.Struct("!I")
_MAX_FDS = 8
_ROUND_S = 0.01  # between two looks for orphans that are still dying
_HAS_PROC = os.path.isdir("/proc/self/task")

Request = dict[str, Any]


def can_fork() -> str:
    """Why this system can't fork warm processes, or "" if it can."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no safe fork"
    return "" if _HAS_PROC else "/proc isn't there"


def send(control: socket.socket, message: Request, fds: Sequence[int] = ()) -> None:
    """Write one message to a blocking control socket, its descriptors with its first bytes."""
    data = json.dumps(message).encode()
    if fds:
        socket.send_fds(control, [_LENGTH.pack(len(data))], list(fds))
        control.sendall(data)
    else:
        control.sendall(_LENGTH.pack(len(data)) + data)


def receive(control: socket.socket) -> tuple[Request, list[int]] | None:
    """Read one message and its descriptors from a blocking control socket; None when the other end has gone."""
    try:
        head, fds, _, _ = socket.recv_fds(control, _LENGTH.size, _MAX_FDS)
        while head and len(head) < _LENGTH.size:
            head += control.recv(_LENGTH.size - len(head)) or _gone()
        if not head:
            return None
        data = bytearray()
        (size,) = _LENGTH.unpack(head)
        while len(data) < size:
            data += control.recv(size - len(data)) or _gone()
    except ConnectionError:
        return None
    return json.loads(data), fds


def _gone() -> bytes:
    raise ConnectionResetError("the other end has gone")


def threads() -> list[str]:
    """The names of this process's threads other than the main one, those of libraries included."""
    names = []
    for task in os.listdir("/proc/self/task") if _HAS_PROC else []:
        if int(task) != os.getpid():
            try:
                with open(f"/proc/self/task/{task}/comm") as file:
                    names.append(file.read().strip())
            except FileNotFoundError:
                continue  # it has just ended
    return sorted(names)


def descriptors() -> dict[int, str]:
    """The descriptors of this process beyond its standard streams, with what each is."""
    found = {}
    for fd in map(int, os.listdir("/dev/fd")):
        if fd > 2:
            try:
                found[fd] = os.readlink(f"/proc/self/fd/{fd}") if _HAS_PROC else ""
            except FileNotFoundError:
                continue  # the one that listed the directory
    return found


def hold(lifeline: int) -> int:
    """Have the kernel kill this process's group when the last writer of the pipe `lifeline` ends.

    To be called in each process after its fork; closes `lifeline` and returns the descriptor that took its place.
    Ends this process at once if the writer has gone already. Without /proc (macOS) it does nothing: there the
    guardian alone ends its tree.
    """
    if not _HAS_PROC:
        return lifeline
    own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(lifeline)
    fcntl.fcntl(own, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(own, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, os.O_RDONLY | os.O_NONBLOCK | os.O_ASYNC)
    if select.select([own], [], [], 0)[0]:
        os._exit(1)
    return own


class Server:
    """One fork server. `serve` returns only in its children, each with the request that asked for it."""

    def __init__(self, control: socket.socket, lifeline: int, *, is_guardian: bool = False) -> None:
        """`control` and `lifeline` are kept by this process; the guardian adopts and ends the orphans of its tree."""
        self.control = control
        self.lifeline = lifeline
        self._is_guardian = is_guardian
        self._forked: set[int] = set()
        if is_guardian and _HAS_PROC:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def refusal(self) -> str:
        """Why this process must not be forked now, or ""."""
        names = threads()
        return f"thread {', '.join(names)}" if names else ""

    def serve(self) -> tuple[Request, list[int]]:
        """Fork once for each request, and report each child's end, until the control socket closes.

        Answers `{"id", "pid"}` or `{"id", "refused": reason}` to a request, `{"ended": pid, "code": n}` at an end
        (minus the signal's number if one killed it). `{"spare": pids}` has it kill its adopted children but for these.
        """
        gc.collect()
        gc.disable()
        gc.freeze()  # a child's collections leave what it inherited alone, so its pages stay shared
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        while True:
            ready = select.select([self.control.fileno(), wake_r], [], [])[0]
            if wake_r in ready:
                os.read(wake_r, 4096)
                self._reap()
            if self.control.fileno() not in ready:
                continue
            received = receive(self.control)
            if received is None:
                self._leave()
            request, fds = received
            if "spare" in request:
                _kill(pid for pid in children() if pid not in self._forked and pid not in request["spare"])
                continue
            reason = self.refusal()
            pid = 0 if reason else os.fork()
            if not reason and pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self.control.detach()
                _leave_parent(keep=[*fds, self.lifeline])
                self.lifeline = hold(self.lifeline)
                self._forked.clear()
                gc.enable()
                return request, fds
            if not reason:
                self._forked.add(pid)
            for fd in fds:
                os.close(fd)
            self._report({"id": request["id"], "refused": reason} if reason else {"id": request["id"], "pid": pid})

    def _report(self, message: Request) -> None:
        try:
            send(self.control, message)
        except OSError:
            self._leave()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._forked.discard(pid)
            self._report({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _leave(self) -> NoReturn:
        if self._is_guardian:
            # Those of the killed become this process's own, so nothing hides behind a fork or a session of its own.
            while left := self._forked.union(children()):
                _kill(left)
                self._reap_silently()
                time.sleep(_ROUND_S)
        os._exit(0)

    def _reap_silently(self) -> None:
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._forked.discard(pid)
        except ChildProcessError:
            self._forked.clear()


def _leave_parent(keep: Iterable[int]) -> None:
    """Make a forked child its own session, without the descriptors of its parent."""
    os.setsid()
    kept = {0, 1, 2, *keep}
    for fd in descriptors():
        if fd not in kept:
            try:
                os.close(fd)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise


def children() -> list[int]:
    """The pids of this process's children, adopted ones included; none where there is no /proc."""
    own, found = str(os.getpid()), []
    for entry in os.listdir("/proc") if _HAS_PROC else []:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = file.read().rpartition(")")[2].split()[1]
            except OSError:
                continue  # it has just ended
            if parent == own:
                found.append(int(entry))
    return found


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        kill_group(pid)


def kill_group(pid: int) -> None:
    """Kill a process and, if it leads one, its process group; nothing happens if they have gone."""
    kill_rest_of_group(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_rest_of_group(pid: int) -> None:
    """Kill what is left of the process group that this process, perhaps ended, has led."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # macOS refuses a zombie's group
