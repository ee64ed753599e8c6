"""Decides what `mme top` understands."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mme.cli.options import of_platform

commands = typer.Typer()


@commands.command()
def top(once: Annotated[bool, typer.Option("--once", help="Print it whole, once.")] = False) -> None:
    """Show the platform live in this terminal: instances, models by use, calls, what happens. q or Ctrl-C ends it."""
    from mme import session
    from mme.top import show

    show(Console(highlight=False), session.running(of_platform()).home, once=once)
