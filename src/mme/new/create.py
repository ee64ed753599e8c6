"""Decides what a new package consists of: handler, settings, model, golden calls, and a test beside it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mme import packages
from mme.checking import models
from mme.checking.contents import MISMATCH
from mme.checking.pickles import Import
from mme.new import probe
from mme.new.errors import NewError
from mme.new.kinds import BARE, Kind, kind_of
from mme.new.probe import Found, Question
from mme.packages import Example
from mme.packages.layout import HANDLER, PROPERTIES, REQUIREMENTS
from mme.packages.models import TRUSTED_TYPES
from mme.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9]+([._-]?[A-Za-z0-9]+)*")
_LEAST_GROWTH_MB = 20  # what a model may take before its package asks for more memory than its kind does
_TEST = '''"""The package "{name}": it has no faults, and answers its golden calls. Run it with pytest."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mme import checking, packages
from mme.checking import Served

PACKAGE = Path(__file__).parent / "{name}"


@pytest.fixture(scope="module")
def model() -> Iterator[Served]:
    with checking.served(PACKAGE) as served:
        yield served
    checking.close()


def test_it_has_no_faults() -> None:
    report = checking.check(PACKAGE)
    assert report.ok, report


@pytest.mark.parametrize("example", packages.examples(PACKAGE), ids=lambda example: example.name)
def test_it_answers_as_the_model_did_before_it_was_packed(model: Served, example: packages.Example) -> None:
    answer = model.ask(example.body, example.content_type, example.accept)
    assert answer.status == 200, answer.text
    assert example.difference(answer.json()) is None


def test_a_call_that_is_not_json_is_refused(model: Served) -> None:
    assert model.ask("{{").status >= 400
'''


@dataclass(frozen=True)
class Created:
    """A package that was started: its folder, its test, what its model is, and what it was asked."""

    folder: Path
    test: Path
    kind: str
    what: str
    files: tuple[str, ...]
    examples: tuple[Example, ...]


def create(
    folder: Path,
    model: Path | None = None,
    *,
    example: Any = None,
    trusted: tuple[str, ...] = (),
    allows_mismatch: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Created:
    """Start the package `folder` around a model's file, or around nothing, with a test beside it.

    The file's imports are told before anything of it is loaded, by another process. `example` is a record, or several,
    for the golden calls; without it records are made up where the model says what it takes. `trusted` are the types
    that skops may make. The folder appears whole or not at all, and replaces nothing.
    Raises NewError for what can't be served or is not understood, with the way out.
    """
    test = folder.parent / f"test_{re.sub(r'[.-]', '_', folder.name)}.py"
    _check_place(folder, test)
    kind = kind_of(model) if model else BARE
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        staged = packages.prepare(Path(place) / folder.name, Settings().scripts_dir / kind.scripts)
        found = _bare(example)
        if model:
            if trusted:
                packages.write_properties(staged, {TRUSTED_TYPES: ",".join(sorted(trusted))})
            if allows_mismatch:
                packages.write_properties(staged, {MISMATCH: "true"})
            artifact = _copy(model, staged, kind)
            _examine(staged, model, told)
            found = probe.ask(Question(kind.name, model.name, artifact, example, trusted, allows_mismatch), staged)
            if artifact != kind.artifact:
                (staged / artifact).unlink()  # it was written anew
        if found.takes != "number":
            _take_records(staged, found.takes)
        examples = tuple(_examples(found))
        packages.write_examples(staged, examples)
        if found.taken_mb > _LEAST_GROWTH_MB and kind.name != "SetFit":
            _ask_for_more(staged, found.taken_mb)
        files = tuple(sorted(path.name for path in staged.iterdir()))
        staged.rename(folder)
    test.write_text(_TEST.format(name=folder.name), encoding="utf-8")
    return Created(folder, test, kind.name, found.what, files, examples)


def _check_place(folder: Path, test: Path) -> None:
    if not _NAME.fullmatch(folder.name):
        near = re.sub(r"[^A-Za-z0-9]+", "-", folder.name).strip("-").lower() or "my-model"
        raise NewError(f"\"{folder.name}\" can't be a model's name; take letters, digits and hyphens: {near}")
    for path in (folder, test):
        if path.exists():
            raise NewError(f"{path} is there already, and nothing is written over; take another name, or remove it")


def _copy(model: Path, staged: Path, kind: Kind) -> str:
    """Copy the model into the package; returns its name there, which for XGBoost is not the last one."""
    if model.is_dir():
        shutil.copytree(model, staged / kind.artifact, ignore=shutil.ignore_patterns("README.md", ".*", "__pycache__"))
        return kind.artifact
    name = f"given{model.suffix.lower()}" if kind.name == "XGBoost" else kind.artifact
    shutil.copyfile(model, staged / name)
    return name


def _examine(staged: Path, model: Path, told: Callable[[str], None]) -> None:
    """Tell what the pickles in the package would import; refuse what no model needs, before anything is loaded."""
    pickled = models.pickled(staged)
    for found in pickled.values():
        if isinstance(found, list):
            told(f"{model.name} imports {', '.join(sorted({each.top for each in found}))}")
            for module in _own_modules(found, model.parent):
                shutil.copyfile(module, staged / module.name)
                told(f"{module.name}, which it needs, is copied into the package")
    for finding in models.check(staged, pickled, {}):
        if finding.level == "error":
            raise NewError(f"{model.name}, in the package: {finding.what}; {finding.cure}")
        told(f"warning: {finding.what}")


def _own_modules(found: list[Import], beside: Path) -> Iterator[Path]:
    for top in sorted({each.top for each in found}):
        if (beside / f"{top}.py").is_file():
            yield beside / f"{top}.py"


def _take_records(staged: Path, takes: str) -> None:
    """Put the handler for columns and texts before that for rows, which it loads the model by; columns need pandas."""
    (staged / HANDLER).rename(staged / "rows.py")
    shutil.copyfile(Settings().scripts_dir / "scikit_learn_records" / HANDLER, staged / HANDLER)
    if takes == "column":
        why = "# Installed by DJL Serving when it loads the package: the container hasn't got it."
        (staged / REQUIREMENTS).write_text(f"{why}\npandas=={metadata.version('pandas')}\n", encoding="utf-8")


def _bare(example: Any) -> Found:
    body = {"inputs": [1, 2]} if example is None else example
    return Found("a handler that answers what it is sent", [(body, {"echo": body})])


def _examples(found: Found) -> Iterator[Example]:
    for number, (request, answer) in enumerate(found.calls):
        name = "a call" if len(found.calls) == 1 else ("one record", "several records")[number]
        try:
            yield Example.of_json(name, request, answer, found.tolerance)
        except ValueError as error:
            asked = f"the model answers {answer} to {request}"
            raise NewError(f"{asked}, and JSON can't hold NaN or infinity; give another --example") from error


def _ask_for_more(staged: Path, taken_mb: int) -> None:
    """Raise what the package asks for by what its model took, beyond what its kind takes anyway."""
    text = (staged / PROPERTIES).read_text(encoding="utf-8")
    usual = int(re.findall(r"^required_memory_mb=(\d+)", text, re.MULTILINE)[0])
    packages.write_properties(staged, {"required_memory_mb": usual + taken_mb})
