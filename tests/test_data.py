from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.multioutput import MultiOutputClassifier

DATA = Path(__file__).parents[1] / "data"


def test_a_flipper_tells_most_of_a_penguins_mass():
    penguins = pd.read_csv(DATA / "penguins.csv")
    complete = penguins.dropna()
    assert (len(penguins), len(complete)) == (344, 333)
    train_x, test_x, train_y, test_y = train_test_split(
        complete[["flipper_length_mm"]], complete["body_mass_g"], random_state=0
    )
    assert LinearRegression().fit(train_x, train_y).score(test_x, test_y) == pytest.approx(0.81, abs=0.01)


def test_five_measurements_tell_the_grower_of_a_wine():
    wine = load_wine(as_frame=True)
    features = wine.data[["alcohol", "color_intensity", "flavanoids", "proline", "hue"]]
    scores = cross_val_score(ExtraTreesClassifier(random_state=42), features, wine.target, cv=5)
    assert scores.mean() == pytest.approx(0.97, abs=0.02)


def test_two_days_of_weather_beat_the_majority_for_the_third():
    days = pd.read_csv(DATA / "seattle-weather.csv", parse_dates=["date"])
    assert len(days) == 1461
    assert days["date"].diff().dropna().eq(pd.Timedelta(days=1)).all()
    today = days[["precipitation", "temp_max", "temp_min", "wind"]]
    features = today.join(today.shift(1).add_suffix("_yesterday"))
    tomorrow = days.shift(-1)
    labels = pd.DataFrame(
        {"rain": tomorrow["precipitation"] > 0, "cold": tomorrow["temp_max"] < 10, "windy": tomorrow["wind"] >= 4}
    ).astype(int)
    known = slice(1, -1)
    features, labels, is_train = features[known], labels[known], days["date"].dt.year[known] < 2015
    model = MultiOutputClassifier(LogisticRegression(max_iter=5000)).fit(features[is_train], labels[is_train])
    test = labels[~is_train]
    accuracy = (model.predict(features[~is_train]) == test).mean()
    assert accuracy.tolist() == pytest.approx([0.73, 0.95, 0.81], abs=0.01)
    assert (accuracy > np.maximum(test.mean(), 1 - test.mean())).all()


@pytest.mark.parametrize(("file", "per_class"), [("sentences_train.csv", 8), ("sentences_test.csv", 100)])
def test_the_sentences_are_balanced(file: str, per_class: int):
    sentences = pd.read_csv(DATA / file)
    assert list(sentences.columns)[:2] == ["text", "label"]
    assert sentences["label"].value_counts().to_dict() == {"happy": per_class, "unhappy": per_class}


def test_no_sentence_is_there_twice():
    every = pd.concat([pd.read_csv(DATA / "sentences_train.csv"), pd.read_csv(DATA / "sentences_test.csv")])
    assert every["text"].str.lower().str.strip().is_unique
