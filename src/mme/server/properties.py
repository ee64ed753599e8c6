"""Decides what a serving.properties file says, by the rules of Java's `Properties.load`.

Source: java.util.Properties (Java 17). The file is ISO-8859-1, as `load(InputStream)` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mme.server.errors import InvalidValue

_BLANK = " \t\f"
_NEWLINE = re.compile(r"\r\n|\r|\n")
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_FOUR_HEX = re.compile(r"[0-9a-fA-F]{4}")


def read(path: Path) -> dict[str, str]:
    """The properties of a file; none if there is no file. Raises InvalidValue for a bad `\\u` escape."""
    try:
        return parse(path.read_text(encoding="iso-8859-1"))
    except FileNotFoundError:
        return {}


def parse(text: str) -> dict[str, str]:
    """Keys and values as Java reads them: `=`, `:` or blanks between them, trailing blanks kept, the last one wins."""
    properties = {}
    for line in _logical_lines(text):
        key_end, value_start = _split(line)
        properties[_unescape(line[:key_end])] = _unescape(line[value_start:])
    return properties


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without leading blanks and comments, joined where one ends in an odd number of backslashes."""
    begun: str | None = None
    for natural in _NEWLINE.split(text):
        line = natural.lstrip(_BLANK)
        if begun is None and (not line or line[0] in "#!"):
            continue
        line = (begun or "") + line
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            begun = line[:-1]
            continue
        yield line
        begun = None
    if begun:
        yield begun


def _split(line: str) -> tuple[int, int]:
    """Where the key ends and where the value starts."""
    position = 0
    while position < len(line) and line[position] not in "=:" + _BLANK:
        position += 2 if line[position] == "\\" else 1
    key_end = min(position, len(line))
    rest = line[key_end:].lstrip(_BLANK)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANK)
    return key_end, len(line) - len(rest)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    result = []
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\" and position < len(text):
            char = text[position]
            position += 1
            if char == "u":
                if not _FOUR_HEX.match(text, position):
                    raise InvalidValue("Malformed \\uxxxx encoding.")
                char = chr(int(text[position : position + 4], 16))
                position += 4
            else:
                char = _ESCAPED.get(char, char)
        result.append(char)
    return "".join(result)
