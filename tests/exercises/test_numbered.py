"""The exercises of the six notebooks: undone they hint at what is missing, done they say what was achieved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LinearRegression

from mme import checking, exercises, packages
from mme.packages import Example
from mme.settings import Settings

RECORDS = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 1.0], [3.0, 0.0]])


class Shelf(Settings):
    """Settings whose packages lie in a folder of the test's."""

    shelf: Path = Path()

    @property
    def packages_dir(self) -> Path:
        return self.shelf


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    yield
    checking.close()


@pytest.fixture
def settings(tmp_path: Path) -> Shelf:
    return Shelf(shelf=tmp_path)


def pack(settings: Settings, name: str, model: Any, records: np.ndarray, **files: str) -> None:
    """A package as the notebooks build it: a scikit-learn model and a golden call."""
    folder = packages.prepare(settings.packages_dir / name, settings.scripts_dir / "scikit_learn")
    joblib.dump(model, folder / "model.joblib")
    for stem, text in files.items():
        (folder / f"{stem}.json").write_text(text)
    answer = {"predictions": model.predict(records[:1]).tolist()}
    packages.write_examples(folder, [Example.of_json("one record", {"inputs": records[:1].tolist()}, answer)])
    packages.build(folder, settings.packages_dir / f"{name}.tar.gz")


def line(settings: Settings, columns: int) -> Mapping[str, Any]:
    records = RECORDS[:, :columns]
    pack(settings, "linear-regression", LinearRegression().fit(records, [1.0, 2.0, 3.0, 4.0]), records)
    return {"settings": settings}


def forest(settings: Settings, trees: int) -> Mapping[str, Any]:
    model = ExtraTreesClassifier(trees, random_state=0).fit(RECORDS, ["a", "b", "a", "b"])
    pack(settings, "extra-trees-classifier", model, RECORDS)
    return {"settings": settings}


def weather(settings: Settings, questions: list[str]) -> Mapping[str, Any]:
    model = LinearRegression().fit(RECORDS, np.ones((4, len(questions))))
    outputs = json.dumps({"predictions": questions})
    pack(settings, "multi-output-classifier", model, RECORDS, outputs=outputs)
    return {"settings": settings}


def sentences(settings: Settings, added: list[str]) -> Mapping[str, Any]:
    """The names of notebook 04; a scikit-learn model stands in SetFit's place in the package."""
    pack(settings, "setfit-classifier", LinearRegression().fit(RECORDS, [1.0, 2.0, 3.0, 4.0]), RECORDS)
    test = pd.DataFrame({"text": ["one", "two", "three"], "label": ["happy", "unhappy", "happy"]})
    train = pd.DataFrame({"text": [f"sentence {number}" for number in range(16)] + added})
    return {"settings": settings, "train": train, "test": test, "predicted": np.array(["happy"] * 3)}


def bill(share: float, table_share: float) -> Mapping[str, Any]:
    tenants = [100, 400]
    table = pd.DataFrame({"tenants": tenants, "multi-model": [int(n * table_share / 20) for n in tenants]})
    return {"SHARE_IN_USE": share, "LOADED_PER_INSTANCE": 20, "bill": table}


def ballast(count: int) -> Mapping[str, Any]:
    steps = {"ballast-1.tar.gz": ["ballast-1.tar.gz"], "ballast-2.tar.gz": ["ballast-1.tar.gz", "ballast-2.tar.gz"]}
    return {"settings": Settings(instance_count=count), "copies": list(steps), "steps": steps}


QUESTIONS = ["umbrella", "coat", "hat"]
UNDONE: list[tuple[int, Callable[[Shelf], Mapping[str, Any]], str]] = [
    (0, lambda _: {}, "there is no `SHARE_IN_USE` yet; run the notebook"),
    (0, lambda _: bill(0.1, 0.1), "10% are in use"),
    (0, lambda _: bill(0.5, 0.1), "run the cells of step 2 again"),
    (1, lambda settings: {"settings": settings}, "there is no package linear-regression.tar.gz"),
    (1, lambda settings: line(settings, 1), "takes one number per penguin"),
    (2, lambda settings: forest(settings, 60), "has 60 trees"),
    (3, lambda settings: weather(settings, QUESTIONS), "umbrella, coat, hat; a fourth is missing"),
    (4, lambda settings: sentences(settings, []), "16 sentences to learn from"),
    (4, lambda settings: sentences(settings, ["four", "five"]), "isn't among the test sentences"),
    (5, lambda _: ballast(1), "had one instance"),
]
DONE: list[tuple[int, Callable[[Shelf], Mapping[str, Any]], str]] = [
    (0, lambda _: bill(0.5, 0.5), "400 tenants need 10 instances"),
    (1, lambda settings: line(settings, 2), "a penguin is 2 numbers now"),
    (2, lambda settings: forest(settings, 50), "50 trees take 0."),
    (3, lambda settings: weather(settings, [*QUESTIONS, "sunglasses"]), "answers umbrella, coat, hat, sunglasses"),
    (4, lambda settings: sentences(settings, ["one", "two"]), "from 18 sentences SetFit gets 1 of the other 1 right"),
    (5, lambda _: ballast(2), "on 2 instances 2 of 2 ballast copies are in memory"),
]


@pytest.mark.parametrize(("notebook", "names", "hint"), UNDONE)
def test_what_is_missing_is_named(settings: Shelf, notebook: int, names: Any, hint: str):
    verdict = exercises.judged(notebook, names(settings))
    assert not verdict.is_done and hint in repr(verdict) and repr(verdict).startswith("Not yet: ")


@pytest.mark.parametrize(("notebook", "names", "said"), DONE)
def test_what_was_achieved_is_told(settings: Shelf, notebook: int, names: Any, said: str):
    verdict = exercises.judged(notebook, names(settings))
    assert verdict.is_done and said in repr(verdict) and repr(verdict).startswith("Done: ")


def test_a_package_that_would_not_serve_is_no_solution(settings: Shelf):
    names = line(settings, 2)
    folder = settings.packages_dir / "linear-regression"
    (folder / "model.py").write_text("def handle(inputs)\n")
    packages.build(folder, settings.packages_dir / "linear-regression.tar.gz")
    assert "would not serve: model.py is not Python" in exercises.judged(1, names).says


def test_the_names_of_the_notebook_that_asks_are_looked_at():
    assert exercises.check(0).says == "there is no `SHARE_IN_USE` yet; run the notebook from its first cell"
    with pytest.raises(ValueError, match="99 has no exercise; there is one for 0, 1, "):
        exercises.check(99)
