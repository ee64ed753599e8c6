"""Decides which of the known names somebody meant who gave an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 8


def hint(name: str, known: Iterable[str]) -> str:
    """For the end of a message about an unknown name: the near one if there is one, else those that there are."""
    names = sorted(known)
    if near := difflib.get_close_matches(name, names, n=1):
        return f"did you mean {near[0]}?"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"there are: {', '.join(names[:_SHOWN]) or 'none'}{more}"
