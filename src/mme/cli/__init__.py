"""Decides what `mme` understands on the command line: it parses, calls one function of ours, and shows the result."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from pydantic import ValidationError

from mme.cli import account, endpoint, packages, platform, server, top
from mme.cli.console import tell
from mme.near import hint
from mme.progress import terminal
from mme.settings import ConfigError, Settings

app = typer.Typer(
    help="A local SageMaker for multi-model endpoints on DJL Serving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PANELS = {
    "Your own model": (packages, endpoint),
    "The local platform": (platform, top),
    "More": (account, server),
}
for panel, groups in _PANELS.items():
    for group in groups:
        for command in group.commands.registered_commands:
            command.rich_help_panel = panel
        app.add_typer(group.commands)


def _told_errors() -> tuple[type[Exception], ...]:
    """The errors whose message is meant for the person at the command line; imported late, since some are slow to."""
    from mme.checking import CheckError
    from mme.cleaning import CleaningError
    from mme.deploy import DeployError
    from mme.images import ImageError
    from mme.new import NewError
    from mme.packages import PackageError
    from mme.platform.launch import LaunchError
    from mme.session import SessionError
    from mme.top import TopError

    of_rooms = (LaunchError, SessionError, PackageError, CheckError, CleaningError, ImageError, NewError, DeployError)
    return *of_rooms, TopError, ConfigError


def _fault(fault: Any) -> str:
    """What is wrong with a setting, by the name that it was given by."""
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"config.ipynb: there is no setting {name}; {hint(name, Settings.model_fields)}"
    variable = f"MME_{name.upper()}"
    is_variable = variable in map(str.upper, os.environ)
    given = f"{variable}={fault['input']}" if is_variable else f"config.ipynb: {name}={fault['input']!r}"
    return f"{given} can't be used: {fault['msg']}"


def main() -> None:
    """Run the command; an error that the user can act on is told in a line, any other with its traceback."""
    terminal.follow()
    try:
        app()
    except ValidationError as error:
        tell("; ".join(map(_fault, error.errors())))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            tell(f"{error.filename}: {error.strerror}")
        elif isinstance(error, _told_errors()):
            tell(str(error))
        else:
            raise
    else:
        return
    sys.exit(1)
