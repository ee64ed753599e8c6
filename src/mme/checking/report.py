"""Decides how faults are told: each with its cure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mme.checking.known import KNOWN
from mme.plain import one_record


@dataclass(frozen=True)
class Finding:
    """Something at fault in a package, and what to do about it. A warning lets the package serve.

    `name` is that of a known error (docs/errors.md).
    """

    level: Literal["error", "warning"]
    what: str
    cure: str
    name: str

    def __str__(self) -> str:
        return f"{self.level}: {one_record(self.what)}\n  cure: {one_record(self.cure)}"


def finding(name: str, what: str, level: Literal["error", "warning"] | None = None, **case: object) -> Finding:
    """A known error as it is met: `what` is at fault, and the words of this case for its cure's {places}."""
    known = KNOWN[name]
    return Finding(level or known.level, what, known.cure.format(**case), name)


@dataclass(frozen=True, repr=False)
class Report:
    """What a check found, errors first; `golden_calls` were answered as expected, and `imports` are what each pickle in
    the package would import when it is loaded."""

    name: str
    findings: tuple[Finding, ...]
    golden_calls: int
    imports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found that keeps the package from serving what its author expects."""
        return not any(finding.level == "error" for finding in self.findings)

    def __str__(self) -> str:
        calls = f"{self.golden_calls} golden call{'s' if self.golden_calls != 1 else ''} equal"
        if not self.findings:
            return f"{one_record(self.name)}: no faults, {calls}"
        errors = sum(finding.level == "error" for finding in self.findings)
        counts = f"errors: {errors}, warnings: {len(self.findings) - errors}, {calls}"
        return "\n".join([f"{one_record(self.name)}: {counts}", *map(str, self.findings)])

    __repr__ = __str__
