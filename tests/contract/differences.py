"""Decides where the embedded server differs from DJL Serving on purpose; run, it writes docs/djl-differences.md."""

from __future__ import annotations

import copy
import fnmatch
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import comparison
import transcript
from transcript import Case

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "djl-differences.md"

_HEAD = """\
# Where the embedded server differs from DJL Serving

The contract suite replays {count} requests and answers recorded from DJL Serving 0.36.0. {same} of them are the same
here: status, reason, headers, body and the state afterwards. The {other} others differ on purpose, in the ways below;
the suite fails if anything else differs, and if a difference in this table is gone.

The same suite runs against any container, and expects DJL's own answers of one that isn't the embedded server:
`pytest tests/contract --container-url http://127.0.0.1:8080 --models-root DIR`, where the container sees the folder
under the same path.

Written by `python tests/contract/differences.py` from `tests/contract/differences.toml`.

| cases | DJL Serving 0.36 | here | why it is better for you |
|---|---|---|---|
"""

_MORE = """

## What the recording does not show

Each of these has a test of its own in `tests/contract/test_further.py`.

| DJL Serving 0.36 | here | why it is better for you |
|---|---|---|
"""


@dataclass(frozen=True)
class Difference:
    """Cases (names or patterns), what DJL does, what happens here, why; `answer` maps places in the answer to ours."""

    cases: tuple[str, ...]
    djl: str
    here: str
    why: str
    answer: Mapping[str, Any]

    def covers(self, case: Case) -> bool:
        return any(fnmatch.fnmatchcase(case.name, pattern) for pattern in self.cases)

    def applied(self, case: Case, expected: Any) -> Any:
        """The recorded answer with ours in place of DJL's where they differ."""
        changed = copy.deepcopy(expected)
        for place, value in self.answer.items():
            *way, last = place.split("/")
            at = changed
            for step in way:
                step = next(iter(at)) if step == "*" else step
                at = at[int(step)] if isinstance(at, list) else at[step]
            if isinstance(value, str):
                value = value.replace("{model}", case.model)
                value = comparison.body(value) if last == "body" else value
            if isinstance(at, list):
                at[int(last)] = value
            else:
                at[last] = value
        return changed


@dataclass(frozen=True)
class Further:
    """A difference that no recorded case shows, and the test that does."""

    test: str
    djl: str
    here: str
    why: str


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads((HERE / "differences.toml").read_text())


@cache
def differences() -> tuple[Difference, ...]:
    """All of them, in the order of the file."""
    return tuple(Difference(**{**each, "cases": tuple(each["cases"])}) for each in _file()["difference"])


@cache
def further() -> tuple[Further, ...]:
    """Those that the recording doesn't show."""
    return tuple(Further(**each) for each in _file()["further"])


def of(case: Case) -> list[Difference]:
    """The differences that are listed for a case."""
    return [each for each in differences() if each.covers(case)]


def page() -> str:
    """The table as Markdown."""
    cases = transcript.cases().values()
    other = sum(bool(of(case)) for case in cases)
    head = _HEAD.format(count=len(cases), same=len(cases) - other, other=other)
    rows = (
        f"| {' '.join(f'`{name}`' for name in each.cases)} | {each.djl} | {each.here} | {each.why} |"
        for each in differences()
    )
    more = (f"| {each.djl} | {each.here} | {each.why} |" for each in further())
    return head + "\n".join(rows) + _MORE + "\n".join(more) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
