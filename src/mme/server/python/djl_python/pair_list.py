"""Decides how a request's or answer's contents are kept: pairs in order, where a key may repeat or be None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PairList:
    """Pairs in the order they were added. `get` finds the first pair with a key."""

    def __init__(self, keys: list[Any] | None = None, values: list[Any] | None = None) -> None:
        if keys and values and len(keys) != len(values):
            raise ValueError("key value size mismatch.")
        both = bool(keys and values)
        self.keys: list[Any] = keys if both and keys else []
        self.values: list[Any] = values if both and values else []

    def add(self, key: Any = None, value: Any = None, index: int | None = None, pair: Any = None) -> None:
        """Append a pair, or insert it at `index`; a pair whose value is None is ignored."""
        if value is not None and index is not None:
            self.keys.insert(index, key)
            self.values.insert(index, value)
            return
        if pair:
            key, value = pair[0], pair[1]
        elif value is None:
            return
        self.keys.append(key)
        self.values.append(value)

    def add_all(self, other: Mapping[Any, Any]) -> None:
        """Append the pairs of a mapping."""
        if other:
            self.keys.extend(other.keys())
            self.values.extend(other.values())

    def size(self) -> int:
        return len(self.keys)

    def is_empty(self) -> bool:
        return not self.keys

    def get(self, key: Any) -> Any:
        """The value of the first pair with this key, or None."""
        return self.values[self.keys.index(key)] if key in self.keys else None

    def key_at(self, index: int) -> Any:
        return self.keys[index]

    def value_at(self, index: int) -> Any:
        return self.values[index]

    def get_keys(self) -> list[Any]:
        return self.keys

    def get_values(self) -> list[Any]:
        return self.values
