"""Decides what `mme` understands about model packages: new, pack, check, serve."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from mme.cli.console import example as example_of
from mme.cli.console import named, next_step, note, out, there
from mme.packages.models import Format
from mme.plain import one_record
from mme.progress import waiting

commands = typer.Typer()


@commands.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="The package's folder, which is made.")],
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A model's file or folder.", callback=there)
    ] = None,
    example: Annotated[str | None, typer.Option(metavar="JSON", help="A record, or several; or @FILE.")] = None,
    trust: Annotated[list[str] | None, typer.Option(metavar="TYPE", help="A type that skops may make.")] = None,
    allow_version_mismatch: Annotated[
        bool, typer.Option("--allow-version-mismatch", help="Take a model of another scikit-learn.")
    ] = False,
) -> None:
    """Start a package: a handler, settings, golden calls and a test, which pass as they are.

    Without a model you get a handler to fill in. A joblib file runs code when it is loaded: what it imports is shown
    first, and a process of its own loads it.
    """
    from mme import new

    made = new.create(
        folder,
        model,
        example=_example(example),
        trusted=tuple(trust or ()),
        allows_mismatch=allow_version_mismatch,
        told=note,
    )
    out.print(f"{made.folder}: {made.what}", markup=False)
    out.print(f"  {', '.join(made.files)}; beside it {made.test}", markup=False)
    if model is None:
        note(f"load and ask your model in {made.folder / 'model.py'}")
    elif example is None:
        note(f"the records in {made.folder / 'examples.json'} are made up; put your own there")
    next_step("pack", made.folder)


def _example(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except OSError as error:
        raise typer.BadParameter(f"{text[1:]} can't be read: {error.strerror}", param_hint="--example") from None
    except ValueError as error:
        raise typer.BadParameter(f"{text} is no JSON ({error}), such as '[1, 2, 3]'", param_hint="--example") from None


@commands.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="A package's folder.", file_okay=False, callback=there)],
    archive: Annotated[Path | None, typer.Argument(help="Where to; FOLDER.tar.gz when left out.")] = None,
    format: Annotated[
        Format | None, typer.Option(help="Write its model.joblib, which is loaded, anew in this.")
    ] = None,
    trust: Annotated[list[str] | None, typer.Option(metavar="TYPE", help="A type that skops may make.")] = None,
    lib: Annotated[
        Path | None, typer.Option(help="Pinned requirements to unpack into lib/.", dir_okay=False, callback=there)
    ] = None,
) -> None:
    """Pack a folder as a model package: equal files give an equal archive, byte for byte."""
    from mme import packages

    folder = named(folder)
    archive = archive or folder.parent / f"{folder.name}.tar.gz"
    try:
        wanted = packages.read_requirements(lib) if lib else ()
        with waiting(f"packing {folder.name}"):
            packages.pack(folder, archive, format=format, trusted=trust or (), lib=wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lib" if lib else None) from None
    out.print(f"{archive}: {', '.join(packages.names(archive))}", markup=False)
    next_step("check", archive)


@commands.command()
def check(
    package: Annotated[Path, typer.Argument(help="A package's archive or folder.", callback=there)],
    container: Annotated[str, typer.Option(metavar="VERSION", help="What it is to serve in.")] = "0.36.0",
    as_json: Annotated[bool, typer.Option("--json", help="The findings, for programs.")] = False,
) -> None:
    """Name each fault of a model package with its cure, and ask its golden calls in a real worker."""
    from mme import checking

    try:
        row = checking.container(container)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--container") from None
    report = checking.check(package, row)
    if as_json:
        print(json.dumps(asdict(report) | {"ok": report.ok}, indent=2))
        raise typer.Exit(0 if report.ok else 1)
    out.print(str(report), markup=False)
    for name, imports in report.imports.items():
        would = f"{name} would import: {', '.join(imports) or 'nothing'}"
        out.print(one_record(would), style="dim", markup=False)
    if not report.ok:
        raise typer.Exit(1)
    next_step("pack" if package.is_dir() else "deploy", package)


@commands.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="A folder of packages.", file_okay=False, callback=there)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
) -> None:
    """Serve every package of a folder from one model server, without a platform. Ctrl-C ends it."""
    from mme import checking

    try:
        with checking.serve_folder(folder, port) as server:
            for name in server.models:
                out.print(f"POST {server.url}/models/{name}/invoke")
            for name, cause in server.refused.items():
                out.print("[red]not served:[/]", escape(one_record(f"{name}: {cause}")))
            for name in server.models[:1]:
                archive = folder / f"{name}.tar.gz"
                body = example_of(archive if archive.is_file() else folder / name)
                typed = ["-H", "Content-Type: application/json", "-d", body]
                note(f"next: {shlex.join(['curl', *typed, f'{server.url}/models/{name}/invoke'])}")
            server.wait()
    except KeyboardInterrupt:
        return  # how it is ended; the server, in the same terminal, was told too
