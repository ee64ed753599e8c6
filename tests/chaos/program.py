"""The platform's own program, with limits that a test can wait for, a detour to S3, and a clock that can be wrong.

    python program.py DETOUR CLOCK ARGUMENT…

DETOUR is the address by which packages are read from S3; rclone's own port is told in `rclone.port` of the home. CLOCK
is a file of eight bytes: by how many seconds `time.time` is wrong, as a float.
"""

from __future__ import annotations

import functools
import mmap
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

DETOUR, CLOCK = sys.argv[1], Path(sys.argv[2])

right_time = time.time
with CLOCK.open("r+b") as file:
    error_s = mmap.mmap(file.fileno(), 8)
time.time = lambda: right_time() + struct.unpack("d", error_s)[0]

from mme.platform import __main__ as program  # noqa: E402
from mme.platform import assembly, backing, proxy  # noqa: E402
from mme.platform.config import PlatformConfig  # noqa: E402
from mme.platform.containers import kind_named  # noqa: E402
from mme.platform.hosting import Hosting, fleet, store  # noqa: E402


class Service(backing.Service):
    """Started and watched as ever; rclone is reached by the detour."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.log_file.with_suffix(".port").write_text(str(self.port))

    @property
    def url(self) -> str:
        return DETOUR if self.name == "rclone" else super().url


backing.Service = Service
kind = replace(kind_named("embedded"), start_timeout_s=12)
assembly.PlatformConfig = functools.partial(PlatformConfig, invoke_timeout_s=6, load_timeout_s=25)
assembly.Hosting = functools.partial(Hosting, kind=kind, health_period_s=0.25)
fleet._UNHEALTHY_LIMIT = 1
store._SILENCE_S = 2.0
proxy.ANSWER_S = 6.0

if __name__ == "__main__":
    sys.argv[1:3] = []
    program.main()
