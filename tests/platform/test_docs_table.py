"""docs/sagemaker.md says what tests show: each row names tests that exist, each operation of hosting has a row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mme.platform import validation

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "sagemaker.md"
HOSTING = re.compile(
    r"(Create|Describe|List|Delete|Update)(Models?|EndpointConfigs?|Endpoints?|EndpointWeightsAndCapacities)"
    r"|(Add|List|Delete)Tags"
)
ID = re.compile(r"`(test_\w+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of each row that a test has to stand behind: all but the heads and the table of sources."""
    tables = PAGE.read_text().partition("## Texts and their sources")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if line[:1] == "|"]
    return [row for row in cells if row[1] != "here" and not row[0].startswith("---")]


def names_in(file: str) -> set[str]:
    """The tests that a file beside this one defines."""
    tree = ast.parse((HERE / file).read_text())
    found = (node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {name for name in found if name.startswith("test_")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_row_says_how_it_is_and_names_tests_that_exist(row: list[str]) -> None:
    what, here, _, tests = row
    assert what and here in ("as AWS", "differs", "refused")
    named = ID.findall(tests)
    assert named and ID.sub("", tests).strip() == ""
    assert [f"{file}::{test}" for file, test in named if test not in names_in(file)] == []


def test_each_operation_of_hosting_has_a_row() -> None:
    operations = {name for name in validation.service("sagemaker").operation_names if HOSTING.fullmatch(name)}
    operations |= set(validation.service("sagemaker-runtime").operation_names)
    named = [row[0].strip("`") for row in rows() if row[0].strip("`") in operations]
    assert sorted(named) == sorted(operations)


def test_no_operation_is_carried_out_that_the_page_does_not_name() -> None:
    source = "".join(
        (HERE.parents[1] / "src/mme/platform" / file).read_text() for file in ("control.py", "endpoints.py")
    )
    carried_out = set(re.findall(r'^ {12}"([A-Z]\w+)": self\._\w+,$', source, re.MULTILINE))
    assert len(carried_out) == 17
    assert carried_out <= {row[0].strip("`") for row in rows() if row[1] == "as AWS"}
