"""Decides how a warm interpreter forks processes: one request, one child, one report of its end.

A fork server is a process with one thread that has imported what its children need. Its owner holds the other end
of a control socket: it sends a request (JSON, with descriptors), the server forks, and the child goes on with that
request in the same interpreter, milliseconds later, with its memory shared until it is written to.

Who ends when: every process here is killed by the kernel when its owner ends, through a lifeline: a pipe whose only
writer is the owner. The guardian, the first server of a tree, adopts every orphan of the tree and kills them all
when its owner goes. A server's death harms none of its children.

Standard library only, and one file, so that it can travel. Where `can_fork` says no (macOS), a server's children
must do nothing but start another program.

It travels as `sitecustomize.py` in a model package, beside a `preload.txt` with the modules to hold, one a line. DJL
Serving has the model's folder on PYTHONPATH, so each worker's interpreter imports it before anything else: it hands
its work to a fork of a `Zygote` that it shares with the other models, and becomes a `sh` that waits for the end.
On any doubt it returns, and the interpreter goes on as if this file weren't there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# What must be in the environment before the libraries are imported, so that neither importing them nor loading a
# model starts a thread.
# The fork of a process with threads can hang: a lock that another thread holds is held for ever in the child.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # transformers 5: a pool of threads that outlives the load
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
            import ctypes  # late: it is this file's slowest import, and only a guardian needs it

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
        wake_r = _prepare_to_fork()
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
            if not reason:
                has_left, is_leaving = os.pipe()
                pid = os.fork()
                if pid == 0:
                    self.control.detach()
                    _leave_parent(keep=[*fds, self.lifeline])
                    self.lifeline = hold(self.lifeline)
                    self._forked.clear()
                    return request, fds
                # A child is told of when it leads its own group: the end of this one's must not be the child's too.
                os.close(is_leaving)
                os.read(has_left, 1)
                os.close(has_left)
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


def _prepare_to_fork() -> int:
    """Have memory shared for long, and return a descriptor that is readable when a child has ended."""
    gc.collect()
    gc.disable()
    gc.freeze()  # a child's collections leave what it inherited alone, so its pages stay shared
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_r, False)
    os.set_blocking(wake_w, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    return wake_r


def _leave_parent(keep: Iterable[int]) -> None:
    """Make a forked child its own session, without the descriptors and the handlers of its parent."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.enable()
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


_ENGINE = "djl_python_engine.py"  # the script of DJL Serving's workers; nothing else is forked
_IDLE_S = float(os.environ.get("MME_ZYGOTE_IDLE_S", "60"))  # without a worker for so long, a zygote ends
_WAIT_S = 90.0  # for its imports; DJL Serving waits two minutes for a worker
_REMEMBERED_S = 3600.0  # it isn't tried again while what can't be forked is remembered
_IS_ZYGOTE = "MME_ZYGOTE"  # in the environment of one, so that it doesn't ask for another


class Zygote:
    """A fork server that any process of its user can ask; each asker waits for the end of its own child."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        """`path` is the socket's; beside it lie its `.lock`, and `.unfit` with the reason if it can't fork."""
        self._listener = listener
        self._path = path
        self._askers: dict[int, socket.socket | None] = {}  # by the pid of the child; None once the asker has gone

    def serve(self) -> Request:
        """Fork for each asker, until none has come for a while. Returns only in the children.

        A child is killed when its asker goes, and the asker reads the child's exit code as a line of text.
        """
        wake_r = _prepare_to_fork()
        idle_since = time.monotonic()
        while True:
            askers = {asker.fileno(): (asker, pid) for pid, asker in self._askers.items() if asker}
            ready = select.select([self._listener.fileno(), wake_r, *askers], [], [], _IDLE_S / 10)[0]
            for asker, pid in (askers[fd] for fd in ready if fd in askers):
                kill_group(pid)
                self._askers[pid] = None
                asker.close()
            if wake_r in ready:
                os.read(wake_r, 4096)
                self._reap()
            if self._listener.fileno() in ready:
                request = self._fork()
                if request:
                    return request
            if self._askers:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _IDLE_S:
                self._leave_unless_asked()

    def _fork(self) -> Request | None:
        asker, _ = self._listener.accept()
        asker.settimeout(_WAIT_S)
        received = receive(asker)
        if received is None:
            asker.close()
            return None
        request, fds = received
        names = threads()
        if names:
            send(asker, {"refused": f"thread {', '.join(names)}"})
            asker.close()
        else:
            pid = os.fork()
            if pid == 0:
                # The asker's end stays open in the child too: whatever becomes of this process, it waits for the child.
                held = asker.detach()
                self._listener.detach()
                for other in self._askers.values():
                    if other:
                        other.detach()
                for number, fd in enumerate(fds):
                    os.dup2(fd, number)
                _leave_parent(keep=[held])
                return request
            self._askers[pid] = asker
            send(asker, {"pid": pid})
        for fd in fds:
            os.close(fd)
        return None

    def _reap(self) -> None:
        while self._askers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            asker = self._askers.pop(pid)
            if asker:
                code = os.waitstatus_to_exitcode(status)
                with contextlib.suppress(OSError):  # it may have gone too
                    asker.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
                asker.close()

    def _leave_unless_asked(self) -> None:
        with open(self._path + ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody is about to ask
            if select.select([self._listener], [], [], 0)[0]:
                return  # somebody has asked
            os.unlink(self._path)
            os._exit(0)


def _ask_for_fork(arguments: list[str]) -> str:
    """Hand this process's work to a fork of the zygote; returns only if that can't be, with the reason or ""."""
    if not arguments or os.path.basename(arguments[0]) != _ENGINE or os.environ.get(_IS_ZYGOTE):
        return ""
    reason = can_fork()
    if reason:
        return reason
    folder = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"mme-zygotes-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.makedirs(folder, 0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o77:
        return f"{folder} isn't this user's alone"
    here = os.path.dirname(os.path.abspath(__file__))
    preload = _read(os.path.join(here, "preload.txt"))
    kept = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place != here]
    settings = {name: os.environ.get(name, value) for name, value in SINGLE_THREADED.items()}
    key = json.dumps([sys.executable, sys.version, preload, kept, settings, _read(os.path.abspath(__file__))])
    path = os.path.join(folder, f"{zlib.crc32(key.encode()):08x}")
    for _ in range(2):  # the second time if the zygote was just leaving
        with open(path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unfit = path + ".unfit"
            if os.path.exists(unfit) and time.time() - os.stat(unfit).st_mtime < _REMEMBERED_S:
                return _read(unfit)
            asker = socket.socket(socket.AF_UNIX)
            try:
                asker.connect(path)
            except OSError:
                _start_zygote(path, preload.split(), {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(kept)})
                asker.connect(path)
        asker.settimeout(_WAIT_S)
        try:
            work = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
            send(asker, work, [0, 1, 2])
            answer = receive(asker)
        except OSError as error:
            return f"the zygote doesn't answer: {error}"
        if answer and "pid" in answer[0]:
            asker.setblocking(True)
            os.dup2(asker.fileno(), 0)
            os.execv("/bin/sh", ["mme-worker", "-c", 'read -r code || code=1; exit "$code"', *arguments])
        asker.close()
        if answer:
            return str(answer[0]["refused"])
    return _read(path + ".unfit") or "the zygote ended"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def _start_zygote(path: str, modules: list[str], environment: dict[str, str]) -> None:
    """Start a zygote of its own, listening already; it holds nothing of this process's, its output least of all."""
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    pid = os.fork()
    if pid:
        listener.close()
        os.waitpid(pid, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            log = os.open(path + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for number, fd in enumerate((null, log, log)):
                os.dup2(fd, number)
            listener.set_inheritable(True)
            os.chdir("/")
            command = [sys.executable, os.path.abspath(__file__), str(listener.fileno()), path, *modules]
            os.execve(sys.executable, command, {**environment, _IS_ZYGOTE: "1"})
    finally:
        os._exit(1)


def _be_zygote(listener: socket.socket, path: str, modules: list[str]) -> None:
    import importlib

    del sys.path[0]  # this file's folder: the first model's
    try:
        for name in modules:
            importlib.import_module(name)
        reason = ", ".join(threads())
        reason = reason and f"thread {reason}"
    except Exception as error:  # whatever a library raises: its models say so themselves, plain
        reason = f"{type(error).__name__}: {error}"
    if reason:
        with open(path + ".unfit", "w", encoding="utf-8") as file:
            file.write(reason)
        os.unlink(path)
        os._exit(1)
    _become(Zygote(listener, path).serve())


def _become(work: Request) -> None:
    """Be what `python script arguments…` would have been in the asker's place."""
    import io
    import random
    import runpy

    os.environ.clear()
    os.environ.update(work["environment"])
    os.chdir(work["folder"])
    is_unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for name, fd in (("stdout", 1), ("stderr", 2)):
        errors = "backslashreplace" if fd == 2 else "strict"
        raw = open(fd, "wb", 0 if is_unbuffered else -1, closefd=False)
        text = io.TextIOWrapper(raw, "utf-8", errors, line_buffering=fd == 2, write_through=is_unbuffered)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    sys.argv = work["arguments"]
    script = sys.argv[0]
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    places.insert(0, os.path.dirname(os.path.abspath(script)))
    sys.path[:] = [*places, *(place for place in sys.path if place not in places)]
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    runpy.run_path(script, run_name="__main__")


if __name__ == "sitecustomize":
    try:
        _reason = _ask_for_fork(sys.orig_argv[1:])
    except OSError as _error:
        _reason = str(_error)
    if _reason:
        sys.stderr.write(f"not forked, running plain: {_reason}\n")
elif __name__ == "__main__":
    _be_zygote(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3:])
