from __future__ import annotations

from pathlib import Path

import pytest

from mme import packages
from mme.packages import Example


def test_examples_come_back_as_they_were_written(tmp_path: Path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    written = [
        Example.of_json("one", {"inputs": [[1, 2.5]]}, {"predictions": [1]}),
        Example.of_json("a sentence", {"inputs": ["Très bien ☕"]}, {"predictions": ["happy"]}, tolerance=0.1),
        Example("lines", "1,2\n3,4\n", {"predictions": [1, 2]}, content_type="text/csv"),
    ]
    packages.write_examples(folder, written)
    packages.build(folder, tmp_path / "tiny.tar.gz")
    assert packages.examples(folder) == packages.examples(tmp_path / "tiny.tar.gz") == written


def test_a_package_without_examples_has_none(tmp_path: Path):
    assert packages.examples(tmp_path) == []


@pytest.mark.parametrize(
    ("expected", "given", "difference"),
    [
        ({"predictions": [1, 2]}, {"predictions": [1, 2]}, None),
        ({"predictions": [1.0]}, {"predictions": [1]}, None),
        ({"predictions": [1.0]}, {"predictions": [1.0 + 1e-10]}, None),
        ({"predictions": [4e9]}, {"predictions": [4e9 + 1]}, None),
        ({"predictions": [1.0]}, {"predictions": [1.001]}, "predictions[0]: 1.001, not 1.0"),
        ({"predictions": [[1, 0], [1, 1]]}, {"predictions": [[1, 0], [1, 0]]}, "predictions[1][1]: 0, not 1"),
        ({"predictions": [1]}, {"predictions": [1, 1]}, "predictions: 2 values, not 1"),
        ({"predictions": ["happy"]}, {"predictions": ["unhappy"]}, 'predictions[0]: "unhappy", not "happy"'),
        ({"predictions": [1]}, {"prediction": [1]}, 'the answer: {"prediction": [1]}, not {"predictions": [1]}'),
        ([1], [True], "[0]: true, not 1"),
        ([None], [0], "[0]: 0, not null"),
        ([float("1e300")], [float("inf")], "[0]: Infinity, not 1e+300"),
    ],
)
def test_the_first_difference_is_put_into_words(expected: object, given: object, difference: str | None):
    assert Example("x", "", expected).difference(given) == difference


def test_two_examples_of_one_name_are_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match="a name of its own"):
        packages.write_examples(tmp_path, [Example("x", "", 1), Example("x", "", 2)])


def test_what_json_does_not_have_is_not_an_example():
    with pytest.raises(ValueError, match="not JSON compliant"):
        Example.of_json("x", [float("nan")], [1])


@pytest.mark.parametrize(
    "text", ["", "{", "{}x", '[{"name": "x"}]', "[1]", '[{"name":"x","body":"","answer":1,"a":2}]']
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / "examples.json").write_text(text)
    with pytest.raises(packages.PackageRefused, match=r"examples\.json"):
        packages.examples(tmp_path)


def test_a_body_must_be_text(tmp_path: Path):
    (tmp_path / "examples.json").write_text('[{"name": "x", "body": {"inputs": []}, "answer": 1}]')
    with pytest.raises(packages.PackageRefused, match='the body of the example "x" is not a text'):
        packages.examples(tmp_path)
