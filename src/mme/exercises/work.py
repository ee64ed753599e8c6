"""Decides what a check of an exercise may look at, and how it tells what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mme.settings import Settings


class NotYet(Exception):
    """The exercise isn't done; the message is a hint that names what is missing."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether an exercise is done; `says` what was achieved, or what is missing."""

    is_done: bool
    says: str

    def __repr__(self) -> str:
        return f"{'Done' if self.is_done else 'Not yet'}: {self.says}"


@dataclass(frozen=True)
class Work:
    """What somebody did in a notebook: the names that its cells left."""

    names: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """The value of a name; NotYet where no cell has made it."""
        try:
            return self.names[name]
        except KeyError:
            raise NotYet(f"there is no `{name}` yet; run the notebook from its first cell") from None

    @property
    def settings(self) -> Settings:
        settings: Settings = self["settings"]
        return settings
