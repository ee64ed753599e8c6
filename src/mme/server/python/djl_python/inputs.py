"""Decides how a handler reads a request: properties in any case; contents as bytes, text, JSON, arrays, CSV."""

from __future__ import annotations

import io
import json
from typing import Any

from .np_util import from_nd_list
from .pair_list import PairList

_BATCH_KEY_AT = len("batch_000.")  # DJL's prefix of a merged batch's keys
_BATCH_INDEX = slice(len("batch_"), _BATCH_KEY_AT - 1)


class Input:
    """One request, or several merged into one where `is_batch()`; the init call is the one that `is_empty()`."""

    def __init__(self) -> None:
        self.function_name: str | None = None
        self.properties: dict[str, Any] = {}
        self.content = PairList()

    def __str__(self) -> str:
        lines = [f"properties: {self.properties}"]
        lines += [f"{key}: {self.get_data(key)}" for key in self.content.get_keys()]
        return "\n".join(lines)

    def is_batch(self) -> bool:
        return "batch_size" in self.properties

    def get_batch_size(self) -> int:
        return int(self.properties.get("batch_size", "1"))

    def get_batches(self) -> list[Input]:
        """The requests of a merged batch, each with its own headers and contents; `[self]` if there is one only."""
        if not self.is_batch():
            return [self]
        batches = [Input() for _ in range(self.get_batch_size())]
        for key, value in self.properties.items():
            if key.startswith("batch_") and key != "batch_size":
                batches[int(key[_BATCH_INDEX])].properties[key[_BATCH_KEY_AT:]] = value
        for key, value in zip(self.content.get_keys(), self.content.get_values(), strict=True):
            batches[int(key[_BATCH_INDEX])].content.add(key[_BATCH_KEY_AT:], value)
        return batches

    def get_function_name(self) -> str | None:
        return self.function_name

    def get_properties(self) -> dict[str, Any]:
        return self.properties

    def get_content(self) -> PairList:
        return self.content

    def get_property(self, key: str) -> Any:
        """The value of the first property with this name in any case, or None."""
        wanted = key.lower()
        for name, value in self.properties.items():
            if name.lower() == wanted:
                return value
        return None

    def contains_key(self, key: Any) -> bool:
        return self.content.get(key) is not None

    def get_data(self, key: Any = None) -> Any:
        """The content as its Content-Type says: JSON, text, image, arrays, or bytes for any other type."""
        content_type = self.get_property("content-type") or ""
        if content_type == "tensor/ndlist":
            return self.get_as_numpy(key)
        if content_type == "tensor/npz":
            return self.get_as_npz(key)
        if content_type.startswith("application/json"):
            return self.get_as_json(key)
        if content_type.startswith("text/"):
            return self.get_as_string(key)
        if content_type.startswith("image/"):
            return self.get_as_image(key)
        return self.get_as_bytes(key)

    def get_as_bytes(self, key: Any = None) -> Any:
        """The content with this key as a bytearray; without a key that of "data", else the first. None if empty.

        Raises KeyError for a key that isn't there.
        """
        if self.content.is_empty():
            return None
        if not key:
            data = self.content.get("data")
            return self.content.value_at(0) if data is None else data
        data = self.content.get(key)
        if data is None:
            raise KeyError(f"requested data for key:{key} is not found!")
        return data

    def get_as_string(self, key: Any = None) -> str:
        text: str = self.get_as_bytes(key).decode("utf-8")
        return text

    def get_as_json(self, key: Any = None) -> Any:
        return json.loads(self.get_as_string(key))

    def get_as_image(self, key: Any = None) -> Any:
        from PIL import Image

        return Image.open(io.BytesIO(self.get_as_bytes(key)))

    def get_as_numpy(self, key: Any = None) -> list[Any]:
        """The arrays of a DJL NDList or of an .npz file."""
        return from_nd_list(self.get_as_bytes(key))

    def get_as_npz(self, key: Any = None) -> list[Any]:
        import numpy as np

        with np.load(io.BytesIO(self.get_as_bytes(key))) as arrays:
            return [arrays[name] for name in arrays.files]

    def get_as_csv(self, key: Any = None) -> list[dict[str, str]]:
        """The rows of a CSV text as dicts by its header line."""
        import csv

        return list(csv.DictReader(io.StringIO(self.get_as_string(key))))

    def is_empty(self) -> bool:
        """Whether there is no content at all: true for the init call only, not for a request without a body."""
        return self.content.is_empty()
