"""Runs part of a test in a process of its own, as an ordinary user, or under a kernel that lacks something."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import traceback
from collections.abc import Callable

USER = 1000
_CLONE_NEWUSER = 0x10000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LANDLOCK_CREATE_RULESET, _ENOSYS = 444, 38
_libc = ctypes.CDLL(None, use_errno=True)


def in_a_process(*steps: Callable[[], None]) -> None:
    """Take the steps in a fork of this process; AssertionError if one fails, which prints why."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for step in steps:
                step()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "it failed in a process of its own: see its output"


def be_ordinary() -> None:
    """Root becomes user 1000 of a user namespace, who owns what root owns, as a user does, and may do no more.

    For anybody else nothing changes. Raises OSError where root can't make such a namespace.
    """
    if sys.platform != "linux" or os.geteuid():
        return
    gid = os.getegid()
    if _libc.unshare(_CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "root can't make a user namespace here")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{USER} 0 1"), ("gid_map", f"{USER} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def forget_landlock() -> None:
    """Have the kernel answer as one without Landlock, to this process and all that come from it (seccomp(2))."""
    load_number = struct.pack("=HBBI", 0x20, 0, 0, 0)
    is_asked = struct.pack("=HBBI", 0x15, 0, 1, _LANDLOCK_CREATE_RULESET)
    refuse, allow = (struct.pack("=HBBI", 0x06, 0, 0, what) for what in (0x00050000 | _ENOSYS, 0x7FFF0000))
    filters = ctypes.create_string_buffer(load_number + is_asked + refuse + allow)
    program = struct.pack("HP", 4, ctypes.addressof(filters))
    assert _libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
    assert _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0
