"""Decides how a command talks: results on stdout; errors, notes and the next step on stderr."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from mme.near import hint
from mme.plain import one_record

out = Console(highlight=False, soft_wrap=True)


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)  # made anew: what stderr is may have been changed


def tell(message: str) -> None:
    """Say on stderr what went wrong, and the way out."""
    _stderr().print("[red]error:[/]", escape(one_record(message)))


def note(message: str) -> None:
    """Say on stderr what a person should know, and a program need not read."""
    _stderr().print(one_record(message), style="dim", markup=False)


def command(*words: str | Path) -> str:
    """A command of `mme` as it can be pasted, by the name that this one was called by."""
    program = "mme" if shutil.which("mme") or "/" not in sys.argv[0] else sys.argv[0]
    return shlex.join([program, *map(str, words)])


def next_step(*words: str | Path) -> None:
    """Show the command that comes next."""
    note(f"next: {command(*words)}")


def named(folder: Path) -> Path:
    """The folder by a path that ends in its name, as that of `.` and `..` doesn't."""
    whole = folder.resolve()
    return folder if folder.name not in ("", "..") else Path(os.path.relpath(whole.parent)) / whole.name


def example(package: Path) -> str:
    """The request that a hint shows for a package: its first golden call's, or one that is made up."""
    from mme.deploy import example_request
    from mme.packages import PackageError

    try:
        request = example_request(package)
    except (PackageError, ValueError) as error:  # a hint never costs the command
        note(f"no example of a call is shown: {error}")
        request = None
    return request or '{"inputs": [[1, 2]]}'


def there(path: Path | None) -> Path | None:
    """The path, as an option's callback; the usage error for one that isn't there names a near one that is."""
    if path is not None and not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        raise typer.BadParameter(f"{path} does not exist; {hint(path.name, (each.name for each in beside))}")
    return path
