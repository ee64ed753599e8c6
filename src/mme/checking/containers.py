"""Decides what each container version brings that a package may rely on: the table of DJL Serving's CPU images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Container:
    """An image's Python and its libraries: distributions with what their version is bound to ("==1.7.2", "" where the
    image takes what was newest when it was made); the modules that handlers may import from them; whether it serves
    models without code (DJL's handlers for the files of scikit-learn and XGBoost, JSON and CSV for ONNX and
    TorchScript); where all that was read."""

    tag: str
    python: str
    libraries: Mapping[str, str]
    modules: frozenset[str]
    source: str
    serves_without_code: bool = True


# The images' recipe: target cpu-full of the Dockerfile, and scripts/install_python.sh beside it. PyYAML and boto's
# family come with awscli. The tags v0.35.0 and v0.36.0 are alike in this.
_RECIPE = "https://github.com/deepjavalibrary/djl-serving/blob/v{}/serving/docker/Dockerfile"
_LIBRARIES = {
    "scikit-learn": "==1.7.2",
    "torch": "==2.7.1",
    "xgboost": "==3.0.5",
    "pydantic": "==2.12.2",
    "torchvision": "",
    "numpy": "",
    "scipy": "",
    "joblib": "",
    "threadpoolctl": "",
    "skops": "",
    "cloudpickle": "",
    "pillow": "",
    "awscli": "",
    "packaging": "",
}
_AWSCLI = "awscli botocore s3transfer yaml dateutil setuptools pip"
_MODULES = frozenset(
    "sklearn torch xgboost pydantic torchvision numpy scipy joblib threadpoolctl skops cloudpickle PIL packaging "
    f"typing_extensions {_AWSCLI}".split()
)


def _before_python_libraries(version: str) -> Container:
    """Ubuntu's Python with numpy and awscli alone. Read at the tag v0.29.0; what brought Python's scikit-learn and
    torch into the image, commit 3e49622e of October 2025, came after 0.34."""
    return Container(
        tag=f"{version}-cpu-full",
        python="3.10",
        libraries={"numpy": "<2", "awscli": ""},
        modules=frozenset(f"numpy {_AWSCLI}".split()),
        source=_RECIPE.format("0.29.0"),
        serves_without_code=False,
    )


CONTAINERS = {
    "0.36.0": Container("0.36.0-cpu-full", "3.11", _LIBRARIES, _MODULES, _RECIPE.format("0.36.0")),
    "0.35.0": Container("0.35.0-cpu-full", "3.11", _LIBRARIES, _MODULES, _RECIPE.format("0.35.0")),
    **{version: _before_python_libraries(version) for version in ("0.34.0", "0.33.0", "0.32.0", "0.31.0", "0.30.0")},
    "0.29.0": _before_python_libraries("0.29.0"),
}
DJL_CPU_FULL = CONTAINERS["0.36.0"]


def container(version: str) -> Container:
    """The row of a version, with or without `-cpu-full`; ValueError names those that there are."""
    try:
        return CONTAINERS[version.removesuffix("-cpu-full")]
    except KeyError:
        raise ValueError(f"no container version {version!r} is known; there are {', '.join(CONTAINERS)}") from None
