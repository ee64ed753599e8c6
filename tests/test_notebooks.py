"""The notebooks keep the house style, and the tool that runs and checks them tells the truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "tools" / "notebooks.py")
assert SPEC is not None and SPEC.loader is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


@pytest.mark.parametrize("path", tool.chosen(None), ids=lambda path: path.stem)
def test_a_notebook_keeps_the_style(path: Path) -> None:
    assert list(tool.faults(nbformat.read(path, as_version=4), path.parent.name)) == []


@pytest.mark.parametrize("path", tool.chosen(None, with_config=True), ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_render_leaves_it(path: Path, tmp_path: Path) -> None:
    tool.write(tool.clean(nbformat.read(path, as_version=4)), tmp_path / path.name)
    assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_the_pictures_say_what_they_show_to_those_who_cannot_see_them() -> None:
    for name in ("a-call.svg", "many-or-one.svg"):
        picture = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
        assert "<title" in picture and "<desc" in picture and "prefers-color-scheme: dark" in picture


def _cell(source: str, *outputs: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return new_code_cell(source, execution_count=1, outputs=list(outputs))


def _shows(text: str) -> nbformat.NotebookNode:
    return new_output("execute_result", {"text/plain": text}, execution_count=1)


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (_cell("\n".join(f"x{number} = {number}" for number in range(16))), "has 16 lines"),
        (_cell("!ls"), "uses a magic"),
        (_cell("%cd .."), "uses a magic"),
        (new_code_cell("x = 1"), "was never executed"),
        (_cell("1 / 0", new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])), "ends in an error"),
        (_cell("fig, ax = plt.subplots(figsize=(6, 4))\nplt.show()"), "asserts nothing"),
        (_cell("fig, ax = plt.subplots(figsize=(6, 4))\nassert fig"), "plt.show()"),
        (_cell("here", _shows("'/home/somebody/project'")), "a path of one machine"),
        (_cell("account", _shows("'123456789012'")), "names the account 123456789012"),
        (_cell("warn()", new_output("stream", name="stderr", text="careful")), "writes to stderr"),
    ],
    ids=["long", "shell", "magic", "not run", "error", "unasserted", "unshown", "path", "account", "stderr"],
)
def test_a_broken_rule_is_named(cell: nbformat.NotebookNode, fault: str) -> None:
    found = [*tool.cell_faults(cell), *tool.trace_faults(cell)]
    assert len(found) == 1 and fault in found[0]


def test_a_notebook_without_its_parts_is_told_each_of_them() -> None:
    bare = new_notebook(cells=[new_markdown_cell("# One\n\n# Two\n\n## 2. Step"), _cell("x = 1"), _cell("y = 2")])
    found = "\n".join(tool.faults(bare))
    for part in ("one heading", "%run config.ipynb", "1 of 2 code cells", "numbered [2]", "## Recap", "**You need**"):
        assert part in found


def test_the_six_are_run_without_the_labs_which_are_rendered_and_checked_with_them() -> None:
    six = tool.chosen(None, with_labs=False)
    assert [path.name[:2] for path in six] == ["00", "01", "02", "03", "04", "05"]
    assert all(path.parent.name == "labs" for path in tool.chosen(None)[len(six) :])


def test_the_table_that_run_prints_is_what_the_notebook_showed() -> None:
    html = (
        "<table><tr><th></th><th>TargetModel</th><th>cold ms</th></tr>"
        "<tr><th>0</th><td>a.tar.gz</td><td>8.3</td></tr></table>"
    )
    cell = new_code_cell("table", outputs=[new_output("execute_result", {"text/html": html})])
    cell.metadata.tags = [tool.TABLE_TAG]
    notebook = new_notebook(cells=[new_code_cell("x = 1"), cell])
    assert tool.four_models(notebook) == [["TargetModel", "cold ms"], ["a.tar.gz", "8.3"]]
    with pytest.raises(ValueError, match="no cell is tagged"):
        tool.four_models(new_notebook())


def test_cleaning_keeps_what_is_shown_and_drops_who_ran_it() -> None:
    cell = _cell("x", _shows("1"))
    cell.metadata = nbformat.NotebookNode(execution={"iopub.status.busy": "2024"}, tags=["nbval-ignore-output"])
    notebook = tool.clean(
        new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}})
    )
    assert notebook.cells[0].metadata == {"tags": ["nbval-ignore-output"]}
    assert notebook.cells[0].outputs[0].data == {"text/plain": "1"}
    assert notebook.metadata.language_info == {"name": "python"}
