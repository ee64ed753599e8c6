"""Decides what `mme` understands about an account: clean."""

from __future__ import annotations

from typing import Annotated

import typer

from mme.cli.console import out
from mme.cli.options import Backend, chosen

commands = typer.Typer()


@commands.command()
def clean(
    backend: Backend = None,
    expired: Annotated[bool, typer.Option("--expired", help="Only what is past its date.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """List what the project of config.ipynb left in the account, by its tags, and delete it after a yes."""
    from mme import cleaning, session

    settings = chosen(backend)
    things = [thing for thing in cleaning.find(settings) if thing.is_expired or not expired]
    account = session.connect(settings).client("sts").get_caller_identity()["Account"]
    out.print(f"project {settings.project}, account {account}, region {settings.region}: {len(things)} to delete")
    for thing in things:
        out.print(f"  {thing}, until {thing.expires:%Y-%m-%d %H:%M} UTC", markup=False)
    if things and (yes or typer.confirm("delete them?")):
        for thing in cleaning.delete(settings, things):
            out.print(f"deleted {thing}", markup=False)
