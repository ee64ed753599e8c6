"""Decides what docs/licences.md says of each locked distribution: what its own metadata says, where it is installed.

One that another platform alone installs keeps its row; a new one of those has to be given its row by hand.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
HEAD = "| distribution | licence |\n|---|---|\n"
_TOO_LONG = 80  # for a name: it is the licence's text
_OF_TEXTS = {"Permission is hereby granted, free of charge": "MIT", "Apache License": "Apache-2.0"}


def locked() -> list[str]:
    """The names in requirements.txt, each once."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return sorted({line.partition("==")[0] for line in lines if line[:1].isalnum()})


def rows(page: str) -> dict[str, str]:
    """The licence by name that the page has."""
    return dict(re.findall(r"^\| ([\w.-]+) \| (.+) \|$", page.partition(HEAD)[2], re.MULTILINE))


def licence(found: Distribution) -> str:
    """In the words of its metadata: the expression, else the line, else the classifiers, else what its text is of."""
    said = found.metadata
    line = (said.get("License") or "").strip()
    if expression := said.get("License-Expression") or (line if is_name(line) else ""):
        return expression
    last = [each.rpartition(" :: ")[2] for each in said.get_all("Classifier") or [] if each.startswith("License ::")]
    if names := [each for each in last if each != "OSI Approved"]:
        return ", ".join(names)
    texts = [file.read_text() for file in found.files or [] if "license" in file.name.lower()]
    known = [name for text in texts for phrase, name in _OF_TEXTS.items() if phrase in text]
    if not known:
        raise LookupError(f"{found.name} says nowhere what its licence is; give it a row in {PAGE.name} by hand")
    return known[0]


def is_name(line: str) -> bool:
    """Whether a `License` is one's name: some put its text there, some the holder, some nothing."""
    return 0 < len(line) < _TOO_LONG and "\n" not in line and not re.match("UNKNOWN|Copyright", line)


def main() -> None:
    before, _, _ = (page := PAGE.read_text()).partition(HEAD)
    kept, table, lacking = rows(page), "", []
    for name in locked():
        try:
            said = licence(distribution(name))
        except (PackageNotFoundError, LookupError):
            said = kept.get(name, "")
        if not said:
            lacking.append(name)
        table += f"| {name} | {said} |\n"
    if lacking:
        sys.exit(f"{', '.join(lacking)}: not installed here, or without a word of a licence; add a row to {PAGE.name}")
    PAGE.write_text(before + HEAD + table)


if __name__ == "__main__":
    main()
