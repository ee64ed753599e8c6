"""Decides what a golden call is: a request that travels in a package, with the answer given before it was packed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mme.packages.errors import PackageRefused
from mme.packages.layout import EXAMPLES
from mme.packages.unpack import read


@dataclass(frozen=True)
class Example:
    """A request's body and types, and the JSON that must come back. Numbers may differ by `tolerance`, of 1 or of
    the number if that is larger; everything else must be equal."""

    name: str
    body: str
    answer: Any
    content_type: str = "application/json"
    accept: str = "application/json"
    tolerance: float = 1e-9

    @classmethod
    def of_json(cls, name: str, request: Any, answer: Any, tolerance: float = 1e-9) -> Example:
        """An example with a JSON body; ValueError for NaN and infinities, which JSON doesn't have."""
        json.dumps(answer, allow_nan=False)
        return cls(name, json.dumps(request, allow_nan=False, ensure_ascii=False), answer, tolerance=tolerance)

    def difference(self, answer: Any) -> str | None:
        """None when the answer is the expected one; else where they first differ, as "predictions[0]: 1.5, not 2"."""
        return _difference(answer, self.answer, self.tolerance, "")


def write_examples(folder: Path, examples: Iterable[Example]) -> Path:
    """Write examples.json into a package's folder and return its path; ValueError when a name is there twice."""
    listed = list(examples)
    names = [example.name for example in listed]
    if len(set(names)) < len(names):
        raise ValueError(f"each example needs a name of its own, and these are {names}")
    text = json.dumps([asdict(example) for example in listed], indent=2, ensure_ascii=False, allow_nan=False)
    path = folder / EXAMPLES
    path.write_text(text + "\n", encoding="utf-8")
    return path


def examples(package: Path) -> list[Example]:
    """The golden calls of a package, an archive or a folder; an empty list when it has none.

    Raises PackageRefused when examples.json is not a list of examples.
    """
    text = read(package, [EXAMPLES]).get(EXAMPLES)
    if text is None:
        return []
    try:
        listed = [Example(**fields) for fields in json.loads(text)]
    except (ValueError, TypeError, RecursionError) as error:
        raise PackageRefused(
            f"{EXAMPLES} in {package.name} is not a list of examples ({error}); use packages.write_examples"
        ) from None
    for example in listed:
        if not isinstance(example.body, str):
            raise PackageRefused(f'the body of the example "{example.name}" is not a text; use Example.of_json')
    return listed


def _difference(given: Any, expected: Any, tolerance: float, where: str) -> str | None:
    if _is_number(given) and _is_number(expected):
        if math.isclose(given, expected, rel_tol=tolerance, abs_tol=tolerance):
            return None
    elif isinstance(given, dict) and isinstance(expected, dict) and given.keys() == expected.keys():
        for key, value in expected.items():
            if found := _difference(given[key], value, tolerance, f"{where}.{key}".lstrip(".")):
                return found
        return None
    elif isinstance(given, list) and isinstance(expected, list):
        if len(given) != len(expected):
            return f"{where or 'the answer'}: {len(given)} values, not {len(expected)}"
        for index, (one, other) in enumerate(zip(given, expected, strict=True)):
            if found := _difference(one, other, tolerance, f"{where}[{index}]"):
                return found
        return None
    elif type(given) is type(expected) and given == expected:
        return None
    return f"{where or 'the answer'}: {_shown(given)}, not {_shown(expected)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
