"""Run the code of notebooks in this process, and write down what they send: `run_notebooks.py OUT NOTEBOOK[:STEPS] …`.

STEPS, such as 1,2,10, leaves out the other steps' cells. At the first cell that fails the program ends with its error.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from recording import recording

# What the left-out steps of notebook 05 would have left to its last one.
LEFT_BY_OTHER_STEPS = "import pytest\nsecond_tenant, copies = [], []"


def cells(path: Path, steps: set[str]) -> Iterator[str]:
    """The code of a notebook, or of some of its steps; what stands before the first step always."""
    step = None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            step = next(iter(re.findall(r"^## (\d+)\. ", cell.source, re.M)), step)
        elif not steps or step is None or step in steps:
            yield cell.source


def plain(value: Any) -> Any:
    """A parameter as JSON: moments, which every run has others of, by their kind; bytes by their hash."""
    if isinstance(value, datetime.datetime):
        return "a moment"
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    return f"a {type(value).__name__}"


def main(out: Path, notebooks: list[str]) -> None:
    shell = InteractiveShell.instance()
    with recording() as sent:
        try:
            for notebook in notebooks:
                name, _, steps = notebook.partition(":")
                shell.reset()
                for source in [LEFT_BY_OTHER_STEPS] * bool(steps) + list(
                    cells(Path(name), {*filter(None, steps.split(","))})
                ):
                    shell.run_cell(source).raise_error()
        finally:
            out.write_text(json.dumps([vars(call) for call in list(sent)], default=plain))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
