"""Decides what a worker can reach: its package, its own temporary folder, what libraries need, and no network.

Landlock (Linux 5.13) does it without root; from ABI 4 on (6.7) it keeps TCP away, and from ABI 6 on (6.12) signals and
abstract sockets. It lets UDP through, which stays open. Standard library only, since it runs in every worker.
Source: https://docs.kernel.org/userspace-api/landlock.html and linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_VERSION = 0x20080522
# With these, root reads other processes' memory and environment whatever its box: SYS_PTRACE, SYS_ADMIN, PERFMON.
_ROOTS = 1 << 19 | 1 << 21 | 1 << 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ABI_1 = (1 << 13) - 1  # every right of the first version
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE  # what can be said of a file rather than a folder
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract UNIX sockets and signals

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/nix", "/proc", "/sys")
# Semaphores of multiprocessing are files of /dev/shm.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm")

# What the AWS SDKs take credentials from.
CREDENTIALS = frozenset(
    "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_SECURITY_TOKEN AWS_PROFILE AWS_DEFAULT_PROFILE "
    "AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE AWS_WEB_IDENTITY_TOKEN_FILE AWS_ROLE_ARN "
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_CONTAINER_CREDENTIALS_FULL_URI AWS_CONTAINER_AUTHORIZATION_TOKEN "
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE AWS_BEARER_TOKEN_BEDROCK".split()
)


class BoxFailed(RuntimeError):
    """The kernel has Landlock but refuses this box: the worker must not run without it."""


@dataclass(frozen=True)
class Rules:
    """What the container's environment says of its workers' boxes; no package can change it.

    `MME_BOX=off` boxes nothing; `MME_BOX_NETWORK=on` leaves TCP and abstract sockets open; `MME_BOX_PATHS` are further
    files and folders to read and write, with `:` between them; `MME_BOX_ENV` names the credentials among the
    container's variables that its handlers are given, with `,` between them.
    """

    is_on: bool = True
    has_network: bool = False
    paths: tuple[str, ...] = ()
    variables: frozenset[str] = frozenset()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Rules:
        """Raises ValueError naming a variable that can't be understood."""
        switches = {}
        for name, default in (("MME_BOX", "on"), ("MME_BOX_NETWORK", "off")):
            value = environ.get(name, default).lower()
            if value not in ("on", "off"):
                raise ValueError(f"{name}={value} is neither on nor off")
            switches[name] = value == "on"
        paths = tuple(filter(None, environ.get("MME_BOX_PATHS", "").split(os.pathsep)))
        for path in paths:
            if not os.path.isabs(path):
                raise ValueError(f"MME_BOX_PATHS: {path} is relative; give the whole path")
        variables = frozenset(filter(None, map(str.strip, environ.get("MME_BOX_ENV", "").split(","))))
        return cls(switches["MME_BOX"], switches["MME_BOX_NETWORK"], paths, variables)

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What the workers get of the container's environment."""
        dropped = CREDENTIALS - self.variables if self.is_on else frozenset[str]()
        return {name: value for name, value in environ.items() if name not in dropped}

    def request(self, folder: str) -> dict[str, Any]:
        """What `enter` is told; `folder` is the model's temporary one, in which each of its workers has its own."""
        return {"is_on": self.is_on, "has_network": self.has_network, "paths": [*self.paths, folder]}


def abi() -> int:
    """The version of Landlock that this kernel offers; 0 if none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def describe(rules: Rules | None = None) -> str:
    """What the boxes on this machine are made of: "landlock 7", or "none: ..." with the reason."""
    if rules is not None and not rules.is_on:
        return "none: MME_BOX=off"
    version = abi()
    return f"landlock {version}" if version else f"none: {os.uname().sysname} kernel without Landlock"


def furnish(request: Mapping[str, Any], folder: str) -> None:
    """Make this the process's temporary folder and, where it is boxed, its home: the user's is out of reach."""
    os.environ["TMPDIR"] = folder
    if request["is_on"]:
        os.environ["HOME"] = folder
    tempfile.tempdir = None  # it may have been asked for before


def forbid_dumps() -> None:
    """No core is written for this process or any that comes from it: one would hold what its callers sent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def enter(request: Mapping[str, Any], model_dir: str, reads: Iterable[str] = ()) -> None:
    """Shut this process, which has one thread, and all that come from it into the box; there is no way out.

    `reads` may be read too. Does nothing where the kernel has no Landlock. Raises BoxFailed.
    """
    version = abi() if request["is_on"] else 0
    if not version:
        return
    handled = _ABI_1 | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    has_network = request["has_network"]
    attributes = [handled]
    if version >= 4:
        attributes.append(0 if has_network else _TCP)
    if version >= 6:
        attributes.append(_SCOPES & ~(1 if has_network else 0))
    libc = ctypes.CDLL(None, use_errno=True)
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, packed, ctypes.c_size_t(len(packed)), 0))
    try:
        for path in {*_SYSTEM, *_python(), *reads}:
            _allow(libc, ruleset, path, _READ)
        for path in {*_DEVICES, model_dir, *request["paths"]}:
            _allow(libc, ruleset, path, handled)
        _drop_capabilities(libc)
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))))
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    if os.geteuid():
        return
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    sets = ctypes.create_string_buffer(24)  # twice effective, permitted, inheritable: low words, then high
    _checked(libc.capget(header, sets))
    kept = [~_ROOTS & 0xFFFFFFFF] * 3 + [~(_ROOTS >> 32) & 0xFFFFFFFF] * 3
    words = struct.unpack("=6I", sets.raw)
    _checked(libc.capset(header, struct.pack("=6I", *(word & mask for word, mask in zip(words, kept, strict=True)))))


def _python() -> Iterable[str]:
    """Where this interpreter's modules are, the server's own included."""
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix)
    yield os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    yield from (place for place in sys.path if os.path.isabs(place) and place != os.sep)


def around(python: str) -> list[str]:
    """What an interpreter other than this one needs to read, by the places of its program and of what that links to."""
    roots = {os.path.dirname(os.path.dirname(place)) for place in (os.path.abspath(python), os.path.realpath(python))}
    return [os.path.join(root, name) for root in roots for name in ("bin", "lib", "lib64", "pyvenv.cfg")]


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what isn't there needs no rule
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, beneath)
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(beneath)


def _checked(result: int) -> int:
    if result < 0:
        raise BoxFailed(f"Landlock refuses a worker's box: {os.strerror(ctypes.get_errno())}; MME_BOX=off does without")
    return result


if __name__ == "__main__":  # box.py REQUEST FOLDER READS ARGV...: run a command in a box
    enter(json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
    os.execv(sys.argv[4], sys.argv[4:])
