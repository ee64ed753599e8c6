"""Decides what a new interpreter of the server becomes: the nursery's root, or a worker that isn't forked.

Started by its path, in whichever interpreter: it needs nothing of ours to be installed there.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]  # …/mme


def _adopt_package() -> None:
    """Make `mme` importable from where this file is, without putting what lies beside it on sys.path."""
    spec = importlib.util.spec_from_file_location(
        "mme", _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{_PACKAGE} isn't a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mme"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    if sys.path[0] == str(Path(__file__).parent):
        del sys.path[0]  # its modules are mme.server.worker's
    _adopt_package()
    from mme.server.worker import life

    life.begin(sys.argv[1:])
