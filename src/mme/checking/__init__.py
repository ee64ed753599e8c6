"""Check a package before it is uploaded, and ask its handler without an endpoint."""

from mme.checking.checks import check
from mme.checking.containers import CONTAINERS, DJL_CPU_FULL, Container, container
from mme.checking.process import CheckError
from mme.checking.report import Finding, Report
from mme.checking.serving import Answer, CannotLoad, FolderServer, Served, ask, close, serve_folder, served

__all__ = [
    "CONTAINERS",
    "DJL_CPU_FULL",
    "Answer",
    "CannotLoad",
    "CheckError",
    "Container",
    "Finding",
    "FolderServer",
    "Report",
    "Served",
    "ask",
    "check",
    "close",
    "container",
    "serve_folder",
    "served",
]
