"""Decides how what models, packages and callers say is shown: so that it can't pass for more than it is."""

from __future__ import annotations

import re

# Control characters but for tabs and line feeds, those that turn a line's direction, and halves of a character.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with its control characters spelled out: none rewrites a line on a terminal, or begins another."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_record(text: str) -> str:
    """The text, plain, with only its first line at the margin: nothing said in it looks like another record."""
    return plain(text).replace("\n", "\n    ")
