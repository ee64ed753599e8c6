"""Execute the notebooks in order: `render` keeps their outputs, `run` makes pages of them, `lint` checks them."""

from __future__ import annotations

import ast
import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme import preflight
from mme.progress import terminal, waiting
from mme.settings import Settings, configured

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
CELL_TIMEOUT_S = 600
TABLE_TAG = "the-four-models"  # the cell of notebook 05 whose output is the table that `run` prints
ERRORS_TAG = "the-errors"  # the cell of the error clinic whose output is docs/errors.md

LONGEST_CELL = 15
LONGEST_MEDIAN_CELL = 6
SMALLEST_PROSE_SHARE = 0.8
FIRST_CELLS = {"notebooks": "%run config.ipynb", "labs": "%run ../config.ipynb"}  # by the notebook's folder
# The account of local runs and the one in which AWS keeps its images: no other may appear.
ACCOUNTS = {"000000000000", "763104351884"}
PLACES = re.compile(r"(/home/|/root/|/Users/|/tmp/|/work/|/var/folders/|[A-Z]:\\Users)")
ACCOUNT = re.compile(r"(?<![\d.])\d{12}(?!\d)")

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(highlight=False)
Names = Annotated[list[str] | None, typer.Argument(help="Parts of file names; all notebooks when left out.")]
NumberedNames = Annotated[list[str] | None, typer.Argument(help="Parts of file names; the six when left out.")]


def chosen(names: list[str] | None, *, with_config: bool = False, with_labs: bool = True) -> list[Path]:
    """The numbered notebooks in order, then the labs; or those of them whose file name contains one of `names`."""
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if with_labs:
        paths += sorted((NOTEBOOKS / "labs").glob("*.ipynb"))
    if with_config:
        paths.insert(0, NOTEBOOKS / "config.ipynb")
    found = [path for path in paths if not names or any(name in path.name for name in names)]
    if not found:
        raise typer.BadParameter(f"no notebook is called {names}; there are: {', '.join(p.name for p in paths)}")
    return found


def execute(path: Path) -> NotebookNode:
    """Run a notebook from its own folder on a fresh kernel; outputs and counts are filled in, on failure up to it."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    with waiting(path.name, len(code)) as step:
        NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_S,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_executed=lambda **_: step.advance(1),
        ).execute()
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """Leave what a reader sees and nothing that depends on who ran it: no timings, editor state or patch version."""
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in notebook.cells:
        cell.metadata = NotebookNode({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = NotebookNode()
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook, indent=1).rstrip("\n") + "\n", encoding="utf-8")


def executed(path: Path) -> NotebookNode:
    """Execute a notebook and say so in one line; a failing cell ends the program with its error."""
    begun = time.monotonic()
    try:
        notebook = execute(path)
    except CellExecutionError as error:
        console.print(f"[red]✗[/red] {path.name}")
        console.print(Text.from_ansi(str(error)))
        raise typer.Exit(1) from None
    console.print(f"[green]✓[/green] {path.name:<42} {time.monotonic() - begun:5.1f} s")
    return notebook


def four_models(notebook: NotebookNode) -> list[list[str]]:
    """The table that notebook 05 showed, read back from its output: the head, then a row per model."""
    for cell in notebook.cells:
        if TABLE_TAG in cell.metadata.get("tags", []):
            html = next(out.data["text/html"] for out in cell.outputs if "text/html" in out.get("data", {}))
            lines = BeautifulSoup(html, "html.parser").find_all("tr")
            # Without the first cell of each, which is the index.
            return [[entry.get_text(strip=True) for entry in line.find_all(["th", "td"])][1:] for line in lines]
    raise ValueError(f"no cell is tagged {TABLE_TAG}")


def errors_page(notebook: NotebookNode) -> str:
    """The page of all errors that the error clinic showed."""
    [cell] = [cell for cell in notebook.cells if ERRORS_TAG in cell.metadata.get("tags", [])]
    page: str = cell.outputs[0].data["text/markdown"]
    return page


@app.command()
def render(names: Names = None) -> None:
    """Execute the notebooks and write outputs and execution counts back into them, cleaned."""
    for path in chosen(names, with_config=True):
        notebook = clean(executed(path))
        write(notebook, path)
        if path.stem == "error_clinic":
            (ROOT / "docs" / "errors.md").write_text(errors_page(notebook), encoding="utf-8")


@app.command()
def run(names: NumberedNames = None) -> None:
    """Execute the notebooks into build/, as notebooks and as pages, and print what the endpoint answered."""
    try:
        settings = configured()
    except ValidationError as error:
        for fault in error.errors():
            console.print(f"{fault['loc'][0]}: {fault['msg']}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    os.environ["MME_RUN"] = settings.run  # one for all notebooks
    if settings.backend == "aws" and not settings.yes:
        ask(settings)
    BUILD.mkdir(exist_ok=True)
    for path in chosen(names, with_labs=bool(names)):
        notebook = executed(path)
        write(clean(notebook), BUILD / path.name)
        page, _ = HTMLExporter(embed_images=True).from_notebook_node(
            notebook, {"metadata": {"name": path.stem, "path": str(path.parent)}}
        )
        (BUILD / path.with_suffix(".html").name).write_text(page, encoding="utf-8")
    console.print(f"The executed notebooks are pages under {os.path.relpath(BUILD)}/")
    if path.name.startswith("05"):
        show(four_models(notebook))


def ask(settings: Settings) -> None:
    """Check the account, tell what a run creates, and ask once; only reads are sent. Anything but a yes ends it."""
    checks = preflight.checks(settings)
    for check in checks:
        console.print(f"{check.outcome:>9}  {check.what}: {check.found}", markup=False, soft_wrap=True)
        if check.cure:
            console.print(f"           to do: {check.cure}", markup=False, soft_wrap=True)
    if any(check.outcome == "wrong" for check in checks):
        raise typer.Exit(1)
    console.print("A run creates, and notebook 05 deletes all but the bucket and the log group:")
    for planned in preflight.plan(settings):
        console.print(f"  {planned.what} {planned.name}: {planned.billed}", markup=False, soft_wrap=True)
    typer.confirm("Create this on AWS?", abort=True)
    os.environ["MME_YES"] = "1"


def show(rows: list[list[str]]) -> None:
    """Print a table whose first row is its head and whose first column is names."""
    head, *body = rows
    table = Table(title="One endpoint for all models", box=SIMPLE, pad_edge=False)
    for number, name in enumerate(head):
        # Heads fold between words, values never: a table cut off at the side of a terminal tells nothing.
        width = max(len(text) for text in [*name.split(), *(row[number] for row in body)])
        table.add_column(name, justify="right" if number else "left", width=width)
    for row in body:
        table.add_row(*row)
    console.print(table)


def source_lines(cell: NotebookNode) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def faults(notebook: NotebookNode, folder: str = "notebooks") -> Iterator[str]:
    """What a notebook of `folder` breaks of the house style's checkable rules, each as one sentence."""
    cells = notebook.cells
    code = [(index, cell) for index, cell in enumerate(cells) if cell.cell_type == "code"]
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if len(re.findall(r"^# ", text, re.M)) != 1:
        yield "has not exactly one heading of the first level"
    if code[0][1].source.strip() != FIRST_CELLS[folder]:
        yield f"does not begin with {FIRST_CELLS[folder]}"
    lengths = [len(source_lines(cell)) for _, cell in code]
    if statistics.median(lengths) > LONGEST_MEDIAN_CELL:
        yield f"the median code cell has {statistics.median(lengths)} lines, more than {LONGEST_MEDIAN_CELL}"
    introduced = sum(index > 0 and cells[index - 1].cell_type == "markdown" for index, _ in code)
    if introduced < SMALLEST_PROSE_SHARE * len(code):
        yield f"only {introduced} of {len(code)} code cells come right after prose"
    steps = [int(number) for number in re.findall(r"^## (\d+)\. ", text, re.M)]
    if steps != list(range(1, len(steps) + 1)):
        yield f"the steps are numbered {steps}"
    for heading in (
        "**You will**",
        "**You will learn**",
        "**You need**",
        "## Recap",
        "## On your own",
        "## In practice",
    ):
        if heading not in text:
            yield f"has no {heading}"
    for index, cell in code:
        yield from (f"cell {index}: {fault}" for fault in cell_faults(cell))
    for index, cell in enumerate(cells):
        yield from (f"cell {index}: {fault}" for fault in trace_faults(cell))


def cell_faults(cell: NotebookNode) -> Iterator[str]:
    lines = source_lines(cell)
    if len(lines) > LONGEST_CELL:
        yield f"has {len(lines)} lines, more than {LONGEST_CELL}"
    if cell.execution_count is None:
        yield "was never executed: `make render` does it"
    if any(output.output_type == "error" for output in cell.outputs):
        yield "ends in an error; one on purpose belongs into pytest.raises"
    if cell.source.strip() in FIRST_CELLS.values():
        return
    if any(re.match(r"\s*[%!]", line) for line in lines):
        yield "uses a magic; the only one is the %run of config.ipynb"
        return
    tree = ast.parse(cell.source)
    if "plt.subplots(" in cell.source:
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
            yield "draws a plot and asserts nothing about it"
        if lines[-1] != "plt.show()":
            yield "draws a plot and does not end in plt.show()"


def trace_faults(cell: NotebookNode) -> Iterator[str]:
    """Names of places, accounts and other traces of one machine or one run."""
    shown = cell.source
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        shown += output.get("text", "") + "".join(str(v) for kind, v in data.items() if not kind.startswith("image/"))
        if output.get("name") == "stderr":
            yield f"writes to stderr: {output.text[:80]!r}"
    for pattern, what in ((PLACES, "a path of one machine"),):
        if match := pattern.search(shown):
            yield f"shows {what}: {shown[match.start() : match.end() + 20]!r}"
    for account in set(ACCOUNT.findall(shown)) - ACCOUNTS:
        yield f"names the account {account}"


@app.command()
def lint(names: Names = None) -> None:
    """Check the rules of the house style that a program can check; exit with 1 when one is broken."""
    found = 0
    for path in chosen(names):
        for fault in faults(nbformat.read(path, as_version=4), path.parent.name):
            console.print(f"{path.name}: {fault}", markup=False, soft_wrap=True)
            found += 1
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    terminal.follow()
    app()
