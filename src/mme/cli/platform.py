"""Decides what `mme` understands about the local platform: up, open, down, env, status, logs."""

from __future__ import annotations

import json
import os
import shlex
import webbrowser
from typing import Annotated, Any

import typer
from rich.table import Table

from mme.cli.console import command, note, out
from mme.cli.options import Backend, chosen, of_platform

commands = typer.Typer()


@commands.command()
def up() -> None:
    """Start the platform of this home, if it does not run yet."""
    from mme.platform import launch

    settings = of_platform()
    running = launch.up(settings)
    out.print(f"[bold]{running.url}[/] answers as AWS, home {settings.home}")
    out.print(f"{running.page_url} shows it live")
    note(f'next: eval "$({command("env")})", and every AWS client of this shell calls it')


@commands.command(name="open")
def open_page() -> None:
    """Open the live page of the platform in a browser, and print its address."""
    from mme import session

    page_url = session.running(of_platform()).page_url
    out.print(page_url, markup=False)
    if not webbrowser.open(page_url):
        out.print("no browser was found here; open the address in one on this machine", style="dim")


@commands.command()
def down() -> None:
    """Stop the platform of this home and everything that it started."""
    from mme.platform import launch

    stopped = launch.down(of_platform().home)
    out.print("stopped" if stopped else "nothing was running")


@commands.command()
def env() -> None:
    """Print the shell's lines that turn AWS clients to the platform."""
    from mme import session

    running = session.running(of_platform())
    for name in sorted(name for name in os.environ if name.startswith("AWS_")):
        print(f"unset {name}")
    for name, value in session.environment(running).items():
        print(f"export {name}={shlex.quote(value)}")


@commands.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False) -> None:
    """Show endpoints, their instances, where each model is, and what a worker's box is made of."""
    from mme import session
    from mme.server.worker import box

    answer = session.platform_status(of_platform())
    assert answer is not None
    answer |= {"box": box.describe()}
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    out.print(f"{answer['url']}, pid {answer['pid']}, box: {answer['box']}")
    for row in _model_tables(answer):
        out.print(row)


@commands.command()
def logs(
    endpoint: Annotated[str | None, typer.Argument(help="An endpoint's name; without one, all of them.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    backend: Backend = None,
) -> None:
    """Show what the containers say, by model: read from CloudWatch Logs, as on AWS."""
    from mme import logs

    try:
        for record in logs.read(chosen(backend), endpoint, follow=follow):
            print(record, flush=follow)
    except KeyboardInterrupt:
        return  # how following is ended


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
