"""The pages on other kinds of model and on containers: their code runs, their tables are the data's."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mme import checking, packages
from mme.checking.containers import CONTAINERS, Container
from mme.settings import ROOT

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COLUMNS = ("scikit-learn", "torch", "xgboost", "numpy", "skops")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The packages that the page's code makes, packed."""
    page: dict[str, Any] = {}
    with contextlib.chdir(tmp_path_factory.mktemp("page")):
        for code in BLOCK.findall((DOCS / "other-models.md").read_text()):
            exec(code, page)
        folder = page["place"].resolve()
    for name in ("onnx", "torchscript", "xgboost"):
        example = packages.Example.of_json("two rows", {"inputs": [[1, 2], [3, 4]]}, answers(folder / name))
        packages.write_examples(folder / name, [example])
        packages.build(folder / name, folder / f"{name}.tar.gz")
    yield folder
    checking.close()


def answers(folder: Path) -> Any:
    return checking.ask(folder, '{"inputs": [[1, 2], [3, 4]]}').json()


@pytest.mark.parametrize("name", ["onnx", "torchscript", "xgboost"])
def test_each_kind_is_packed_checked_and_answers(place: Path, name: str) -> None:
    report = checking.check(place / f"{name}.tar.gz")
    assert report.ok and report.golden_calls == 1, str(report)
    predictions = checking.ask(place / f"{name}.tar.gz", '{"inputs": [[1, 2], [3, 4]]}').json()["predictions"]
    assert len(predictions) == 2
    if name == "onnx":
        assert predictions == [[3.0], [8.0]]


def test_json_beside_the_manifest_is_refused_for_djls_xgboost_handler(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trees"
    shutil.copytree(place / "xgboost", folder)
    (folder / "model.ubj").rename(folder / "model.json")
    properties = (folder / "serving.properties").read_text()
    (folder / "serving.properties").write_text(properties.replace("model_format=ubj", "model_format=json"))
    packages.build(folder, tmp_path / "trees.tar.gz")
    found = checking.check(tmp_path / "trees.tar.gz").findings[0]
    assert "takes each .json for a model" in found.what and "model.ubj" in found.cure


@pytest.mark.parametrize(
    ("file", "properties", "fault"),
    [
        ("saved_model.pb", "", "Deep learning engine not found: TensorFlow"),
        ("model.plan", "engine=TensorRT\n", "Deep learning engine not found: TensorRT"),
    ],
)
def test_an_engine_that_the_cpu_containers_lack_is_an_error(
    tmp_path: Path, file: str, properties: str, fault: str
) -> None:
    (tmp_path / file).write_bytes(b"x")
    (tmp_path / "serving.properties").write_text(properties)
    finding = checking.check(tmp_path).findings[0]
    assert fault in finding.what and "model.onnx" in finding.cure


def test_a_container_before_json_for_arrays_is_an_error(place: Path) -> None:
    report = checking.check(place / "onnx.tar.gz", checking.container("0.34.0"))
    assert "OnnxRuntime answers neither JSON nor CSV in the container 0.34.0-cpu-full" in str(report)
    report = checking.check(place / "xgboost.tar.gz", checking.container("0.34.0"))
    assert "the container 0.34.0-cpu-full has no djl_python.xgboost_handler" in str(report)


def cells(container: Container) -> list[str]:
    """The row of a container in the page."""
    versions = [container.libraries.get(name, "–").removeprefix("==") or "newest" for name in COLUMNS]
    without_code = "yes" if container.serves_without_code else "no"
    return [container.tag, container.python, *versions, without_code, f"[recipe]({container.source})"]


def test_the_page_on_containers_is_the_data_that_check_uses() -> None:
    lines = (DOCS / "compatibility.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "-cpu-full |" in line]
    assert rows == [cells(container) for container in CONTAINERS.values()]


def test_each_kind_of_the_page_is_served_or_refused_as_it_says(tmp_path: Path) -> None:
    from mme.server.engines import engine_of
    from mme.server.errors import InvalidValue

    lines = [line for line in (DOCS / "other-models.md").read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == 8
    for number, line in enumerate(lines):
        holds, engine, here, _ = [cell.strip() for cell in line.strip("|").split("|")]
        folder = tmp_path / str(number)
        folder.mkdir()
        file = re.findall(r"`(\w+\.\w+)`", holds)
        for name in file[:1]:
            (folder / name).touch()
        asked = "TensorRT" if "TensorRT" in holds else "Python" if engine.startswith("Python") else None
        if here == "served":
            assert engine_of(folder, {}, asked) == engine.partition(",")[0]
        else:
            with pytest.raises(InvalidValue):
                engine_of(folder, {}, asked)
