"""Decides what a looker-on is told while models move and calls are answered: facts, which others put in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal[
    "called",  # a call was answered, after `seconds`; `detail` is "hit", "miss", or "failed"
    "fetched",  # a package came from S3 to the disk
    "loaded",  # a model is in memory
    "evicted",  # it left memory for another one, `detail`, `seconds` after its last call
    "unloaded",  # it left memory for a reason, `detail`
    "removed",  # its package left the disk
    "failed",  # it could not be fetched, loaded or unloaded, for a reason, `detail`
    "replaced",  # an instance's container is replaced for a reason, `detail`
    "deployed",  # an endpoint is up; `detail` says with what
    "deleted",  # an endpoint is gone
]


class Place(NamedTuple):
    """Where it happened. Of an endpoint as a whole, the variant is empty; of a variant, the instance is None."""

    endpoint: str
    variant: str = ""
    instance: int | None = None


class Happening(NamedTuple):
    kind: Kind
    target: str = ""
    seconds: float = 0.0
    size_mb: float | None = None
    """Of what moved: on disk, or in memory; None where nobody measured it."""
    detail: str = ""


Watch = Callable[[Place, Happening], None]
"""Called on the platform's event loop, once for each call too: it must return at once."""

Tell = Callable[[Happening], None]
"""A Watch of one place."""


def unwatched(place: Place, happening: Happening) -> None:
    """The Watch where nobody looks on."""
