"""The API a handler imports, as DJL Serving 0.36 offers it: Input, Output, PairList and their helpers.

On sys.path of workers only. Behaviour follows DJL Serving's Python engine (engines/python/setup/djl_python).
"""

from __future__ import annotations

from .inputs import Input
from .outputs import Output
from .pair_list import PairList

__version__ = "0.36.0"
__all__ = ["Input", "Output", "PairList"]
