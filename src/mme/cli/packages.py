"""Decides what `mme` understands about model packages: pack, check, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mme.cli.console import out
from mme.packages.models import Format

commands = typer.Typer()


@commands.command()
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


@commands.command()
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


@commands.command()
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
