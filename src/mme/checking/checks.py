"""Decides whether a package will serve: from its files first, then by its golden calls in a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mme import packages
from mme.checking import contents, models, requirements, settings
from mme.checking.containers import DJL_CPU_FULL, Container
from mme.checking.process import CheckError
from mme.checking.report import Finding, Report, finding
from mme.checking.serving import CannotLoad, Served, loaded, slug, unpacked
from mme.packages import Example, PackageError
from mme.packages.layout import MANIFEST
from mme.progress import waiting


def check(package: Path, container: Container = DJL_CPU_FULL) -> Report:
    """Examine a package, an archive or a folder: each fault with its cure.

    The golden calls are made when nothing else is wrong. Raises PackageNotFound when nothing is there; every other
    fault of a package is in the report.
    """
    equal = 0
    findings: list[Finding] = []
    pickled: models.Pickled = {}
    try:
        with waiting(f"checking {slug(package)}"), unpacked(package) as folder:
            pickled = models.pickled(folder)
            findings += _static(folder, container, pickled)
            if all(found.level == "warning" for found in findings):
                calls = list(_golden_calls(folder, slug(package)))
                findings += [found for found in calls if found]
                equal = calls.count(None)
    except packages.PackageNotFound:
        raise
    except PackageError as error:
        findings.append(finding("no-package", str(error)))
    findings.sort(key=lambda found: found.level)
    imports = {name: tuple(map(str, found)) for name, found in pickled.items() if isinstance(found, list)}
    return Report(slug(package), tuple(findings), equal, imports)


def _static(folder: Path, container: Container, pickled: models.Pickled) -> Iterator[Finding]:
    layout = list(contents.layout(folder, container))
    yield from layout
    if layout and layout[0].what.startswith("everything"):
        return
    yield from settings.check(folder)
    found = list(contents.requirements(folder, container))
    yield from found
    if "no-requirement" not in [fault.name for fault in found]:  # which pip would only say again
        yield from requirements.check(folder)
    if (folder / MANIFEST).is_file():
        manifest = packages.Manifest.from_json((folder / MANIFEST).read_bytes())
        yield from contents.versions(folder, manifest, container)
        yield from models.check(folder, pickled, manifest.libraries)
    else:
        yield from models.check(folder, pickled, {})
        yield finding("no-manifest", f"there is no {MANIFEST}, so nobody knows with which versions it was made")


def _golden_calls(folder: Path, name: str) -> Iterator[Finding | None]:
    """For each example a finding, or None where the answer is the expected one."""
    examples = packages.examples(folder)
    if not examples:
        yield finding("no-golden-calls", "there are no golden calls, so only its start is tried")
    if reason := packages.misfit(folder):
        yield finding("golden-calls-not-tried", f"{reason}: its start and its golden calls aren't tried")
        return
    try:
        with loaded(folder, name) as model, waiting(f"asking {name} its golden calls", len(examples)) as step:
            for example in examples:
                yield _golden_call(model, example)
                step.advance(1)
    except CannotLoad as error:
        yield finding(error.name, f"its handler can't be loaded: {error}")
    except CheckError as error:
        yield finding("handler-fails", f"its handler can't be asked: {error}")


def _golden_call(model: Served, example: Example) -> Finding | None:
    answer = model.ask(example.body, example.content_type, example.accept)
    shown = answer.body[:300].decode(errors="replace")
    if answer.status != 200:
        return finding("golden-call-refused", f'golden call "{example.name}": answered {answer.status} {shown}')
    try:
        difference = example.difference(answer.json())
    except ValueError:
        difference = f"the answer is not JSON: {shown}"
    if difference is None:
        return None
    return finding("golden-call-differs", f'golden call "{example.name}": {difference}')
