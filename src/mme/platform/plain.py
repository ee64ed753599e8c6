"""Decides how what models and callers say is written down: so that it can't pass for more than it is."""

from __future__ import annotations

import logging
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # but for tabs and line feeds


def plain(text: str) -> str:
    """The text with its control characters spelled out: none rewrites a line on a terminal, or begins another."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PlainFormatter(logging.Formatter):
    """Only the first line of a record begins at the margin, so nothing said in one looks like another record."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record)).replace("\n", "\n    ")
