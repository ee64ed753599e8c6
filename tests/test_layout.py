"""What import-linter cannot say: a worker process starts with the standard library and numpy, no more."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from mme.settings import ROOT

SRC = ROOT / "src" / "mme"
STARTS_IN_EVERY_WORKER = [
    SRC / "forkserver.py",
    *sorted((SRC / "server" / "worker").rglob("*.py")),
    *sorted((SRC / "server" / "python" / "djl_python").rglob("*.py")),
]
# Imported only by a package that names this handler, in its own worker.
BUILT_IN_HANDLERS = {"sklearn_handler.py", "xgboost_handler.py"}


def imported(path: Path) -> set[str]:
    """What a file imports when it is imported; what a function imports when it is called doesn't count."""
    names = set()
    left: list[ast.AST] = [ast.parse(path.read_text())]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize(
    "path",
    [path for path in STARTS_IN_EVERY_WORKER if path.name not in BUILT_IN_HANDLERS],
    ids=lambda path: str(path.relative_to(SRC)),
)
def test_a_worker_starts_with_the_standard_library_and_numpy_alone(path: Path) -> None:
    own = {"djl_python", "mme"}  # which of ours it may import is import-linter's to say
    assert imported(path) - set(sys.stdlib_module_names) - {"numpy"} - own == set()
