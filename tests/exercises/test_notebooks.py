"""Each notebook asks for its own exercise, and the hint that it shows is that of somebody who has done nothing."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from mme import exercises

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PATHS = [*sorted(NOTEBOOKS.glob("0*.ipynb")), *sorted((NOTEBOOKS / "labs").glob("*.ipynb"))]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_ends_in_the_check_of_its_exercise(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    last = [cell for cell in cells if cell.cell_type == "code"][-1]
    own = f'"{path.stem}"' if path.parent.name == "labs" else str(int(path.name[:2]))
    assert last.source == f"from mme import exercises\n\nexercises.check({own})"
    assert last.outputs[0].data["text/plain"].startswith("Not yet: ")
    before = cells[cells.index(last) - 1]
    assert "## On your own" in before.source or "## On your own" in cells[cells.index(last) - 3].source


def test_each_notebook_has_an_exercise():
    names = {path.stem if path.parent.name == "labs" else int(path.name[:2]) for path in PATHS}
    assert names <= set(exercises.EXERCISES)
