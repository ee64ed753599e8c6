"""Check a package before it is uploaded, and ask its handler without an endpoint."""

from mme.checking.checks import check
from mme.checking.containers import DJL_CPU_FULL, Container
from mme.checking.report import Finding, Report
from mme.checking.serving import Answer, CannotLoad, CheckError, Served, ask, close, served

__all__ = [
    "DJL_CPU_FULL",
    "Answer",
    "CannotLoad",
    "CheckError",
    "Container",
    "Finding",
    "Report",
    "Served",
    "ask",
    "check",
    "close",
    "served",
]
