"""Decides how a child ends when its owner does: killed by the kernel, through a wrapper that is this file."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def tethered(argv: Sequence[str]) -> list[str]:
    """Wrap a command so that it is killed when the process that starts it ends, however that ends.

    The signal follows the *thread* that starts the command, so start it from the main thread.
    Where the kernel has no such signal (macOS), the command runs untethered and `sweep` ends it.
    """
    return [sys.executable, "-S", "-E", __file__, str(os.getpid()), *argv]


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends; to be called after each fork of our own.

    Ends this process at once if the parent has gone before the kernel was asked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def _exec_tethered(parent_pid: int, argv: list[str]) -> None:
    die_with_parent(parent_pid)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"cannot start {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    _exec_tethered(int(sys.argv[1]), sys.argv[2:])
