from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LinearRegression

from mme import packages

ROWS = np.arange(40.0).reshape(20, 2)
FOREST = ExtraTreesClassifier(5, random_state=0).fit(ROWS, ROWS[:, 0] > 20)
TREE = "sklearn.tree._tree.Tree"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return packages.prepare(tmp_path / "forest", Path(__file__).parents[2] / "serving_scripts" / "scikit_learn")


def test_a_model_lies_in_a_package_in_one_format_at_a_time(folder: Path):
    assert packages.save_model(folder, FOREST).name == "model.joblib"
    assert packages.save_model(folder, FOREST, "skops", [TREE]).name == "model.skops"
    assert not (folder / "model.joblib").exists()
    read = skops.io.load(folder / "model.skops", trusted=[TREE])
    assert (read.predict(ROWS) == FOREST.predict(ROWS)).all()
    packages.save_model(folder, FOREST, "joblib")
    assert not (folder / "model.skops").exists()


def test_types_that_skops_does_not_know_must_be_named(folder: Path):
    with pytest.raises(packages.CannotBuild, match=r"doesn't trust by itself: sklearn\.tree\._tree\.Tree; name those"):
        packages.save_model(folder, FOREST, "skops")
    assert not (folder / "model.skops").exists()
    packages.save_model(folder, FOREST, "skops", [TREE])
    assert f"option.skops_trusted_types={TREE}" in (folder / "serving.properties").read_text()


def test_packing_in_another_format_leaves_the_folder_as_it_was(folder: Path, tmp_path: Path):
    joblib.dump(LinearRegression().fit(ROWS, ROWS[:, 0]), folder / "model.joblib")
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    manifest = packages.pack(folder, tmp_path / "line.tar.gz", format="skops")
    assert {"model.joblib", "model.skops"} & manifest.files.keys() == {"model.skops"}
    assert "skops" in manifest.libraries
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def test_only_a_model_that_is_there_is_converted(folder: Path, tmp_path: Path):
    with pytest.raises(packages.CannotBuild, match="forest holds no model.joblib to write as skops"):
        packages.pack(folder, tmp_path / "forest.tar.gz", format="skops")
    with pytest.raises(ValueError, match="'pickle' is none of joblib, skops"):
        packages.save_model(folder, FOREST, "pickle")
