"""Decides what `mme` understands on the command line: it parses, calls one function of ours, and shows the result."""

from __future__ import annotations

import json
import os
import shlex
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mme.packages.models import Format
from mme.settings import Settings

app = typer.Typer(
    help="A local SageMaker for multi-model endpoints on DJL Serving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)


def _tell(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print("[red]error:[/]", escape(message))


@app.command()
def up() -> None:
    """Start the platform of this home, if it does not run yet."""
    from mme.platform import launch

    settings = Settings()
    running = launch.up(settings)
    out.print(f"[bold]{running.url}[/] answers as AWS, home {settings.home}")
    out.print(f"{running.page_url} shows it live")
    out.print('next: eval "$(mme env)", and every AWS client of this shell calls it', style="dim")


@app.command(name="open")
def open_page() -> None:
    """Open the live page of the platform in a browser, and print its address."""
    from mme import session

    page_url = session.running(Settings()).page_url
    out.print(page_url, markup=False)
    if not webbrowser.open(page_url):
        out.print("no browser was found here; open the address in one on this machine", style="dim")


@app.command()
def down() -> None:
    """Stop the platform of this home and everything that it started."""
    from mme.platform import launch

    stopped = launch.down(Settings().home)
    out.print("stopped" if stopped else "nothing was running")


@app.command()
def env() -> None:
    """Print the shell's lines that turn AWS clients to the platform."""
    from mme import session

    settings = Settings()
    running = session.running(settings)
    for name in sorted(name for name in os.environ if name.startswith("AWS_")):
        print(f"unset {name}")
    for name, value in session.environment(running, settings.region).items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False) -> None:
    """Show endpoints, their instances, where each model is, and what a worker's box is made of."""
    from mme import session
    from mme.server.worker import box

    answer = session.platform_status(Settings(backend="local"))
    assert answer is not None
    answer |= {"box": box.describe()}
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    out.print(f"{answer['url']}, pid {answer['pid']}, box: {answer['box']}")
    for row in _model_tables(answer):
        out.print(row)


@app.command()
def logs(
    endpoint: Annotated[str | None, typer.Argument(help="An endpoint's name; without one, all of them.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show what the containers say, by model: read from CloudWatch Logs, as on AWS."""
    from mme import logs

    try:
        for record in logs.read(Settings(), endpoint, follow=follow):
            print(record, flush=follow)
    except KeyboardInterrupt:
        return  # how following is ended


@app.command()
def clean(
    backend: Annotated[str | None, typer.Option(metavar="local|aws", help="In place of the settings'.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="Only what is past its date.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """List what the project of config.ipynb left in the account, by its tags, and delete it after a yes."""
    from mme import cleaning, session
    from mme.settings import configured

    if backend is not None:
        os.environ["MME_BACKEND"] = backend
    settings = configured()
    things = [thing for thing in cleaning.find(settings) if thing.is_expired or not expired]
    account = session.connect(settings).client("sts").get_caller_identity()["Account"]
    out.print(f"project {settings.project}, account {account}, region {settings.region}: {len(things)} to delete")
    for thing in things:
        out.print(f"  {thing}, until {thing.expires:%Y-%m-%d %H:%M} UTC", markup=False)
    if things and (yes or typer.confirm("delete them?")):
        for thing in cleaning.delete(settings, things):
            out.print(f"deleted {thing}", markup=False)


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="A package's folder.", exists=True, file_okay=False)],
    archive: Annotated[Path | None, typer.Argument(help="Where to; FOLDER.tar.gz when left out.")] = None,
    format: Annotated[
        Format | None, typer.Option(help="Write its model.joblib, which is loaded, anew in this.")
    ] = None,
    trust: Annotated[list[str] | None, typer.Option(metavar="TYPE", help="A type that skops may make.")] = None,
    lib: Annotated[
        Path | None, typer.Option(help="Pinned requirements to unpack into lib/.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Pack a folder as a model package: equal files give an equal archive, byte for byte."""
    from mme import packages

    archive = archive or folder.parent / f"{folder.resolve().name}.tar.gz"
    wanted = packages.read_requirements(lib) if lib else ()
    try:
        packages.pack(folder, archive, format=format, trusted=trust or (), lib=wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lib") from None
    out.print(f"{archive}: {', '.join(packages.names(archive))}", markup=False)
    out.print(f"next: mme check {archive}", style="dim", markup=False)


@app.command()
def check(
    package: Annotated[Path, typer.Argument(help="A package's archive or folder.", exists=True)],
    container: Annotated[str, typer.Option(metavar="VERSION", help="What it is to serve in.")] = "0.36.0",
) -> None:
    """Name each fault of a model package with its cure, and ask its golden calls in a real worker."""
    from mme import checking

    try:
        row = checking.container(container)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--container") from None
    report = checking.check(package, row)
    out.print(str(report), markup=False)
    for name, imports in report.imports.items():
        out.print(f"{name} would import: {', '.join(imports) or 'nothing'}", style="dim", markup=False)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="A folder of packages.", exists=True, file_okay=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
) -> None:
    """Serve every package of a folder from one model server, without a platform. Ctrl-C ends it."""
    from mme import checking

    try:
        with checking.serve_folder(folder, port) as server:
            for name in server.models:
                out.print(f"POST {server.url}/models/{name}/invoke")
            for name, cause in server.refused.items():
                out.print("[red]not served:[/]", escape(f"{name}: {cause}"))
            server.wait()
    except KeyboardInterrupt:
        return  # how it is ended; the server, in the same terminal, was told too


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def container(context: typer.Context) -> None:
    """Run the model server alone, as SageMaker starts it: `mme container --port N`, configured by the environment."""
    os.execv(sys.executable, [sys.executable, "-m", "mme.server", *context.args])


def _model_tables(status: dict[str, Any]) -> list[Table]:
    """A table for each instance: which models it knows, where they are, what they take."""
    tables = []
    for endpoint in status["endpoints"]:
        for variant in endpoint["variants"]:
            for instance in variant["instances"]:
                table = Table("model", "where", "workers", "memory MB", title=f"{endpoint['name']} {variant['name']}")
                for model in instance["models"]:
                    workers = ", ".join(worker["origin"] for worker in model["workers"])
                    table.add_row(model["target_model"], model["where"], workers, str(model["memory_mb"]))
                tables.append(table)
    return tables


def _told_errors() -> tuple[type[Exception], ...]:
    """The errors whose message is meant for the person at the command line; imported late, since some are slow to."""
    from mme.checking import CheckError
    from mme.cleaning import CleaningError
    from mme.images import ImageError
    from mme.packages import PackageError
    from mme.platform.launch import LaunchError
    from mme.session import SessionError

    return LaunchError, SessionError, PackageError, CheckError, CleaningError, ImageError


def main() -> None:
    """Run the command; an error that the user can act on is told in a line, any other with its traceback."""
    try:
        app()
    except ValidationError as error:
        faults = (
            f"MME_{str(fault['loc'][0]).upper()}={fault['input']} can't be used: {fault['msg']}"
            for fault in error.errors()
        )
        _tell("; ".join(faults))
    except Exception as error:
        if not isinstance(error, _told_errors()):
            raise
        _tell(str(error))
    else:
        return
    sys.exit(1)
