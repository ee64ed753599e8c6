"""The table of known errors, the clinic that meets each of them, and the page that comes of both."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

from mme.checking import known

ROOT = Path(__file__).resolve().parents[1]
CLINIC = ROOT / "notebooks" / "labs" / "error_clinic.ipynb"
SPEC = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "tools" / "notebooks.py")
assert SPEC is not None and SPEC.loader is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)

ROW = re.compile(r"\| ([a-z-]+) \| ((?:[^|\\]|\\.)*) \| .* \|")


def told(page: str) -> dict[str, str]:
    """What was read of each error, by its name, from the page's rows."""
    rows = (ROW.fullmatch(line) for line in page.splitlines())
    return {row[1]: re.sub(r"\\(.)", r"\1", row[2]) for row in rows if row}


def test_the_committed_page_is_what_the_clinic_shows():
    page = tool.errors_page(nbformat.read(CLINIC, as_version=4))
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == page


def test_each_known_error_is_on_the_page_with_its_meaning_and_cure_as_the_check_has_them():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert told(page).keys() == known.KNOWN.keys()
    assert known.page(told(page)) == page


def test_each_known_error_is_provoked_in_the_clinic():
    code = "\n".join(cell.source for cell in nbformat.read(CLINIC, as_version=4).cells if cell.cell_type == "code")
    assert [name for name in known.KNOWN if f'"{name}"' not in code] == []


def test_what_the_page_says_was_read_is_known_by_its_sign():
    messages = told((ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))
    wrong = {
        name: known.recognised(messages[name], each.met)
        for name, each in known.KNOWN.items()
        if each.sign is not None and each.met != "check" and known.recognised(messages[name], each.met) != name
    }
    assert not wrong


def test_a_page_without_a_known_error_is_not_written():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="met and known differ: no-bucket"):
        known.page({name: text for name, text in told(page).items() if name != "no-bucket"})


def test_what_nobody_knows_is_not_recognised():
    assert known.recognised("all is well") is None
