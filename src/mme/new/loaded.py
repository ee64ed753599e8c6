"""Decides what every kind of model is asked once it is loaded, and in which words it is described."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mme.new.probe import Found

FLOAT32 = 1e-5  # how exactly engines that compute with 32 bits give the same numbers again
GIVE_ONE = "give a record that it understands, such as --example '[1, 2, 3]'"
WRITE_IT = "begin with `mme new` without --model, and load and ask it in the handler"


class Unfit(Exception):
    """The model can't be served as it is; the message says why, and what to do."""


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded: what it is, in words; records to ask it; its answer to some, as its package will put it;
    the memory that its process had before it."""

    what: str
    records: list[Any]
    answer: Callable[[list[Any]], dict[str, Any]]
    before_mb: int
    tolerance: float = FLOAT32
    takes: str = "number"
    """What a record consists of: numbers; columns, by name; or it is a text."""

    def found(self) -> Found:
        """Ask the first record alone, then all of them."""
        batches = [self.records[:1], self.records][: len(self.records)]
        calls = [({"inputs": batch}, self.answer(batch)) for batch in batches]
        return Found(self.what, calls, max(0, memory_mb() - self.before_mb), self.tolerance, self.takes)


def rows_of(example: Any, width: int | None) -> list[Any]:
    """The user's records as rows; without any, two that are made up."""
    if example is None:
        if width is None:
            raise Unfit(f"it doesn't say how many numbers it takes: {GIVE_ONE}")
        upwards = list(range(1, width + 1))
        return [upwards, upwards[::-1]] if width > 1 else [[1], [2]]
    rows = example if isinstance(example, list) and example and isinstance(example[0], list) else [example]
    for row in rows:
        if not isinstance(row, list) or not row or not all(type(value) in (int, float) for value in row):
            raise Unfit(f"it takes rows of numbers, and the example is {json.dumps(example)[:80]}; {GIVE_ONE}")
        if len(row) != (width or len(rows[0])):
            raise Unfit(f"it takes {width or len(rows[0])} numbers a record, and the example has {len(row)}")
    return rows


def type_of(model: Any) -> str:
    """The name of a model's class, and of those of its steps."""
    steps = getattr(model, "steps", None)
    return f"Pipeline of {', '.join(type(step).__name__ for _, step in steps)}" if steps else type(model).__name__


def counted(count: int, word: str) -> str:
    """Such as "1 number" or "2 numbers"."""
    return f"{count} {word}{'s' if count != 1 else ''}"


def listed(names: Sequence[str]) -> str:
    """Names in brackets, the first eight of them; nothing where there are none."""
    return f" ({', '.join(names[:8])}{', …' if len(names) > 8 else ''})" if names else ""


def memory_mb() -> int:
    """What this process has in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss / 2**20)
