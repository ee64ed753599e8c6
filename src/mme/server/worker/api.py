"""Decides where a worker finds the API of its handler: in the `djl_python` that is on its path.

Imported late, by the functions that need it: it brings numpy, and the nursery's root must stay small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mme.server.python.djl_python import Input, Output, service_loader
else:
    from djl_python import Input, Output, service_loader

__all__ = ["Input", "Output", "service_loader"]
