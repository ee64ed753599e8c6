"""Decides what the container brings that a package may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Container:
    """An image's Python and its libraries: distributions with the version they are pinned to, None where the image
    takes what was newest when it was made; and the modules that handlers may import from them."""

    tag: str
    python: str
    libraries: Mapping[str, str | None]
    modules: frozenset[str]


# Read from the image's recipe: serving/docker/Dockerfile (target cpu-full) and serving/docker/scripts/install_python.sh
# of github.com/deepjavalibrary/djl-serving at v0.36.0; PyYAML and boto's family come with its awscli.
DJL_CPU_FULL = Container(
    tag="0.36.0-cpu-full",
    python="3.11",
    libraries={
        "scikit-learn": "1.7.2",
        "torch": "2.7.1",
        "xgboost": "3.0.5",
        "pydantic": "2.12.2",
        "torchvision": None,
        "numpy": None,
        "scipy": None,
        "joblib": None,
        "threadpoolctl": None,
        "skops": None,
        "cloudpickle": None,
        "pillow": None,
        "awscli": None,
        "packaging": None,
    },
    modules=frozenset(
        "sklearn torch xgboost pydantic torchvision numpy scipy joblib threadpoolctl skops cloudpickle PIL awscli "
        "packaging botocore s3transfer yaml dateutil setuptools pip typing_extensions".split()
    ),
)
