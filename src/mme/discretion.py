"""Decides how a text for callers names what lies on this machine: never by the folders of whoever runs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path


def discreet(text: str, places: Mapping[re.Pattern[str], str] | None = None) -> str:
    """The text with each of `places` under the name that it has for callers.

    A path in the environment, in our sources or in the user's home is told from there on: the rest is what helps.
    """
    for place, name in {**(places or {}), **_own()}.items():
        text = place.sub(name, text)
    return text


def within(folder: str | Path) -> re.Pattern[str]:
    """What comes before a path in this folder, where a path begins."""
    return re.compile(rf"(?<![\w.-]){re.escape(str(folder))}/")


@cache
def _own() -> dict[re.Pattern[str], str]:
    roots = {sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[1]), os.path.expanduser("~")}
    longest_first = sorted((root for root in roots if root not in ("/", "/usr", "/usr/local")), key=len, reverse=True)
    return {within(root): "" for root in longest_first}
