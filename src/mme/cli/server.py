"""Decides what `mme` understands about the model server alone: container."""

from __future__ import annotations

import os
import sys

import typer

commands = typer.Typer()


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def container(context: typer.Context) -> None:
    """Run the model server alone, as SageMaker starts it: `mme container --port N`, configured by the environment."""
    os.execv(sys.executable, [sys.executable, "-m", "mme.server", *context.args])
