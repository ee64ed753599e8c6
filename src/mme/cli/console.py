"""Decides how a command talks: what it shows on stdout, and an error in a line on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False, soft_wrap=True)


def tell(message: str) -> None:
    """Say on stderr what went wrong, and the way out."""
    Console(stderr=True, highlight=False, soft_wrap=True).print("[red]error:[/]", escape(message))
