"""Decides what `mme` understands about models on an endpoint: deploy, invoke."""

from __future__ import annotations

import json
import mimetypes
import sys
from pathlib import Path
from typing import Annotated

import typer

from mme.cli.console import command, example, named, next_step, note, out
from mme.cli.options import Backend, Endpoint, chosen
from mme.near import hint

commands = typer.Typer()

_TYPES = {".npz": "tensor/npz", ".npy": "tensor/npy", ".safetensors": "tensor/safetensors", ".json": "application/json"}
_ASK = "--json '{\"inputs\": [[1, 2]]}'"


@commands.command()
def deploy(
    package: Annotated[str, typer.Argument(help="A package's archive, or its name: NAME.tar.gz, or the folder NAME.")],
    endpoint: Endpoint = None,
    as_name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Another name, for a version.")] = None,
    backend: Backend = None,
    yes: Annotated[bool, typer.Option("--yes", help="On AWS, go on without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was done, for programs.")] = False,
) -> None:
    """Put a package onto the multi-model endpoint, which is created if it isn't there; on AWS, after a yes."""
    from mme import deploy

    if not package:
        raise typer.BadParameter("the package's name is empty; give its archive or its folder", param_hint="PACKAGE")
    archive = _archive(named(Path(package)))
    settings = chosen(backend)
    plan = deploy.plan(settings, archive, endpoint, as_name)
    if settings.backend == "aws":
        count = f"{settings.instance_count} {settings.instance_type}"
        note(f"on AWS, in {settings.region}, this uploads {archive} as {plan.uri}")
        if plan.missing:
            note(f"and creates {', '.join(plan.missing)} {plan.endpoint}: {count}, billed until it is deleted")
        if not yes:
            typer.confirm("go on?", abort=True, err=True)
        settings = settings.model_copy(update={"yes": True})
    deploy.carry_out(settings, plan)
    name = plan.target_model.removesuffix(deploy.SUFFIX)
    if as_json:
        done = {"endpoint": plan.endpoint, "target_model": plan.target_model, "uri": plan.uri}
        print(json.dumps(done | {"created": plan.missing, "replaced": plan.replaces}))
    else:
        for kind in plan.missing:
            out.print(f"created {kind} {plan.endpoint}", markup=False)
        out.print(f"uploaded {plan.uri}", markup=False)
        out.print(f'EndpointName="{plan.endpoint}", TargetModel="{plan.target_model}"', markup=False)
    if plan.replaces:
        note(
            f"another {plan.target_model} was there: where that is loaded, it goes on answering until it is unloaded. "
            f"A version under a name of its own is sure: {command('deploy', package, '--as', f'{name}-2')}"
        )
    options = [*(["--endpoint", plan.endpoint] if endpoint else []), *(["--backend", backend] if backend else [])]
    next_step("invoke", name, "--json", example(archive), *options)


@commands.command()
def invoke(
    name: Annotated[str, typer.Argument(help="A package's name, with or without .tar.gz.")],
    json_text: Annotated[str | None, typer.Option("--json", metavar="TEXT", help="The request.")] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Rows; - for those on stdin.")] = None,
    file: Annotated[str | None, typer.Option(metavar="FILE", help="Any body, typed by its suffix; -: JSON.")] = None,
    accept: Annotated[str, typer.Option(metavar="TYPE", help="How the answer should come.")] = "application/json",
    endpoint: Endpoint = None,
    backend: Backend = None,
) -> None:
    """Call a model, and print its answer."""
    from mme import deploy

    body, content_type = _body(json_text, csv, file)
    settings = chosen(backend)
    answer = deploy.invoke(settings, name, body, content_type, accept, endpoint)
    typer.echo(answer.body, nl=not answer.body.endswith(b"\n"))
    note(f"{answer.took_ms:.0f} ms from {endpoint or settings.endpoint_name} ({settings.backend})")
    if settings.backend == "aws":
        next_step("clean", "--backend", "aws")
    else:
        next_step("open")


def _archive(package: Path) -> Path:
    """The archive that is meant: the file, or NAME.tar.gz beside the folder NAME, packed if it isn't yet."""
    from mme import packages
    from mme.deploy import target_model

    if package.is_file():
        return package
    archive = package.parent / target_model(package.name)
    if archive.is_file():
        newest = max((path.stat().st_mtime for path in package.rglob("*")), default=0) if package.is_dir() else 0
        if newest > archive.stat().st_mtime:
            note(f"{package} has changed since {archive} was packed; `{command('pack', package)}` packs it anew")
    elif package.is_dir():
        packages.build(package, archive)
        note(f"packed {package} as {archive}")
    else:
        beside = package.parent.iterdir() if package.parent.is_dir() else ()
        known = {path.name for path in beside if path.is_dir() or path.name.endswith(".tar.gz")}
        missing = f"no package {package}" if package == archive else f"neither a folder {package} nor {archive}"
        raise typer.BadParameter(f"there is {missing}; {hint(package.name, known)}")
    return archive


def _body(json_text: str | None, csv: str | None, file: str | None) -> tuple[bytes, str]:
    """The body that is sent, and its type."""
    if sum(given is not None for given in (json_text, csv, file)) != 1:
        raise typer.BadParameter(f"give one of --json, --csv and --file, such as {_ASK}")
    if json_text is not None:
        try:
            json.loads(json_text)
        except ValueError as error:
            what = f"{json_text} is no JSON ({error}); quote it for the shell: {_ASK}"
            raise typer.BadParameter(what, param_hint="--json") from None
        return json_text.encode(), "application/json"
    name = str(csv or file)
    suffix = ".json" if name == "-" else Path(name).suffix.lower()
    guessed = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    try:
        body = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{name} can't be read: {error.strerror}") from None
    return body, "text/csv" if csv else guessed
