"""Decides what a whole number is: what Java's Integer.parseInt takes."""

from __future__ import annotations

import re

from mme.server.errors import NotANumber

MAX = 2**31 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")


def integer(value: str) -> int:
    """Raises NotANumber for anything but digits with a sign or none, and beyond 32 bits."""
    if not _INTEGER.fullmatch(value) or abs(int(value)) > MAX:
        raise NotANumber(value)
    return int(value)
