"""Decides what each error that a user can meet means, and what cures it.

The one table behind `mme check`, the error clinic (notebooks/labs) and docs/errors.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Met = Literal["check", "load", "call", "account", "build", "set-up"]

# In the order in which docs/errors.md has them.
MET: Mapping[Met, str] = {
    "check": "`mme check` finds it in the files",
    "load": "`mme check` finds it when the handler is loaded; a server answers the load with it",
    "call": "A call of an endpoint ends in it",
    "account": "Another call of SageMaker, S3 or IAM ends in it",
    "build": "Building, reading or unpacking a package ends in it",
    "set-up": "The set-up ends in it",
}


@dataclass(frozen=True)
class Known:
    """An error: when it is met, what it means, its cure with {places} to fill in, and what its message is known by."""

    met: Met
    means: str
    cure: str
    sign: str | None = None
    level: Literal["error", "warning"] = "error"


KNOWN: Mapping[str, Known] = {
    name: Known(**fields)
    for name, fields in tomllib.loads((resources.files("mme.checking") / "known.toml").read_text("utf-8")).items()
}


def recognised(message: str, *met: Met) -> str | None:
    """The name of the first error by whose sign the message is known, of those that are met then; of all, without
    `met`."""
    for name, known in KNOWN.items():
        if known.sign is not None and (not met or known.met in met) and re.search(known.sign, message):
            return name
    return None


def page(told: Mapping[str, str]) -> str:
    """docs/errors.md: each error by its name with what was `told` when it was met, what it means and its cure.

    Raises ValueError where an error was not met, or one was that isn't known.
    """
    if odd := sorted(KNOWN.keys() ^ told.keys()):
        raise ValueError(f"met and known differ: {', '.join(odd)}")
    lines = [
        "# Errors, what they mean and what cures them",
        "",
        "Every message below was provoked and read by `notebooks/labs/error_clinic.ipynb`, which makes this page. The",
        "cures are those that `mme check` tells; what stands in \\<angle brackets\\> depends on the case.",
    ]
    for met, title in MET.items():
        lines += ["", f"## {title}", "", "| | you read | it means | cure |", "|---|---|---|---|"]
        for name, known in KNOWN.items():
            if known.met == met:
                cells = (name, told[name], known.means, re.sub(r"\{(\w+)\}", r"<\1>", known.cure))
                lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table shows it."""
    text = " ".join(text.split())
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text)
