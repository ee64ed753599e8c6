"""What a program writes to a terminal of ours."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

DEADLINE_S = 60.0


def written_until(terminal: int, condition: Callable[[str], bool]) -> str:
    """What a program writes to its terminal until it has written that."""
    said, deadline = "", time.monotonic() + DEADLINE_S
    while not condition(said):
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, said
        said += os.read(terminal, 65536).decode("utf-8", "replace")
    return said
