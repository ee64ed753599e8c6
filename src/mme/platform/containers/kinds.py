"""Decides how each kind of container is started: the embedded server, a djl-serving on PATH, or its image in Docker.

The two real ones are started as SageMaker starts the image, and nothing of what they do is corrected: their memory
rule, their error answers and their faults are what the platform has to live with.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mme.platform.config import MARK

DJL_IMAGE = "deepjavalibrary/djl-serving:0.36.0-cpu-full"
# AWS's copies of the same image, in ECR behind a login: djl-inference:0.36.0-cpu-full, in each region's account.
_AWS_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[\w.-]+/djl-inference:([\w.-]+)")
# The image's own settings, where a djl-serving without the image needs them: serving/docker/Dockerfile, v0.36.0.
_JAVA_OPTS = "-Xmx1g -Xms1g -XX:+ExitOnOutOfMemoryError"
_DJL_INHERITED = re.compile(r"JAVA_HOME|JAVA_OPTS|MODEL_SERVER_HOME|PYTHON_EXECUTABLE|PYTORCH_\w+")
_DJL_RESERVE_MB = 500  # DJL's default for reserved_memory_mb
_MODELS = Path("/opt/ml/models")
_SINGLE_MODEL = Path("/opt/ml/model")
# Seen: DELETE is answered before the worker's process has ended, and a load 20 ms later is refused for its memory.
_DJL_MEMORY_LAG_S = 1
# What a container's variables must not change for the client that starts it.
_OF_THE_CLIENT = re.compile(r"PATH|HOME|DOCKER_\w+|XDG_\w+|SSH_\w+|\w+_(?:proxy|PROXY)|LD_\w+|MME_\w+")
_HOME_LABEL = "mme.home"
_DOCKER_TIMEOUT_S = 60


@dataclass(frozen=True)
class ContainerSpec:
    """One container to be started on an instance whose disk is `folder`. `environment` is what SageMaker would set."""

    container_id: str
    folder: Path
    environment: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)
    """What the platform says to processes of its own machine: its mark, and what only the embedded server knows."""
    model_store: Path | None = None
    """The one model of a single-model endpoint."""
    image: str = ""
    memory_mb: int = 0
    """What the instance has; 0: all that the machine has."""

    @property
    def models_folder(self) -> Path:
        """The instance's disk of packages, a folder for each."""
        return self.folder / "models"


@dataclass(frozen=True)
class Launch:
    """A container about to be started: its command, what that has in its environment besides what every process has,
    and where it will answer."""

    argv: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """What each request to it has to have."""
    address: str | None = None
    """None for a container that chooses its port and prints `listening on http://127.0.0.1:PORT`."""


@dataclass(frozen=True)
class ContainerKind:
    """A way to run containers, by its name in MME_CONTAINER."""

    name: str
    launch: Callable[[ContainerSpec], Launch]
    sees: Callable[[ContainerSpec, Path], Path] = lambda _, path: path
    """Where the container finds a path of the instance's disk."""
    remove: Callable[[str], None] | None = None
    """Ends one by its id, where the process that was started isn't the container itself."""
    sweep: Callable[[Path], int] | None = None
    """Ends those that a killed platform of a home left, where they outlive it."""
    missing: Callable[[], str] = lambda: ""
    """What this machine lacks for it, with the way out; empty if it can be started."""
    start_timeout_s: float = 120
    memory_lag_s: float = 0
    """How long after an unload the container may still count the model's memory as taken."""


def kind_named(name: str) -> ContainerKind:
    """Raises ValueError for a name that means nothing, or for a kind that can't be started on this machine."""
    if name not in KINDS:
        raise ValueError(f"there is no container {name!r}; there are: {', '.join(KINDS)}")
    if missing := KINDS[name].missing():
        raise ValueError(f"MME_CONTAINER={name}: {missing}")
    return KINDS[name]


def _embedded(spec: ContainerSpec) -> Launch:
    argv = [sys.executable, "-m", "mme.server", "--host", "127.0.0.1", "--port", "0"]
    if spec.model_store is not None:
        argv += ["--model-store", str(spec.model_store)]
    key = secrets.token_hex(16)  # others on this machine reach its port, and could have it load a folder of theirs
    return Launch(argv, {**spec.environment, **spec.own, "MME_CONTAINER_KEY": key}, {"X-MME-Key": key})


def _djl_serving(spec: ContainerSpec) -> Launch:
    """`serve` in the image runs djl-serving with a config.properties, which these SERVING_ variables say instead."""
    address = f"http://127.0.0.1:{_free_port()}"
    inherited = {name: value for name, value in os.environ.items() if _DJL_INHERITED.fullmatch(name)}
    defaults = {
        "JAVA_OPTS": _JAVA_OPTS,
        "PYTHON_EXECUTABLE": sys.executable,  # whose libraries the packages were made with
        "DJL_CACHE_DIR": str(spec.folder / "djl-cache"),
        "SERVING_INFERENCE_ADDRESS": address,
        "SERVING_MANAGEMENT_ADDRESS": address,
        "SERVING_LOAD_MODELS": "NONE" if spec.model_store is None else "ALL",
        "SERVING_MODEL_STORE": str(spec.model_store or spec.models_folder),
    }
    environment = {**defaults, **_reserve(spec), **inherited, **spec.environment, **spec.own}
    return Launch(["djl-serving"], environment, address=address)


def _reserve(spec: ContainerSpec) -> dict[str, str]:
    """DJL refuses a load (507) when the *machine* would have less left than its reserve.

    What this machine has beyond the instance's memory is added to it, so that DJL finds an instance of that size.
    """
    if not spec.memory_mb:
        return {}
    beyond_mb = psutil.virtual_memory().available // 2**20 - spec.memory_mb
    return {"SERVING_RESERVED_MEMORY_MB": str(max(0, beyond_mb) + _DJL_RESERVE_MB)}


def _docker(spec: ContainerSpec) -> Launch:
    """`docker run IMAGE serve`, the models under /opt/ml, port 8080.

    Source: build-multi-model-build-container.html and your-algorithms-inference-code.html of the SageMaker guide.
    """
    port = _free_port()
    options = {"--name": spec.container_id, "--publish": f"127.0.0.1:{port}:8080"}
    options["--label"] = f"{_HOME_LABEL}={spec.own.get(MARK, '')}"
    if spec.memory_mb:
        options["--memory"] = f"{spec.memory_mb}m"
    if spec.model_store is None:
        options["--volume"] = f"{spec.models_folder}:{_MODELS}"
    else:
        options["--volume"] = f"{spec.model_store}:{_SINGLE_MODEL}"
    argv = ["docker", "run", "--rm", *(word for option in options.items() for word in option)]
    # Docker's client passes its own variable on where no value is given: everybody can read the arguments.
    variables = {**_reserve(spec), **spec.environment}
    passed_on = {name: value for name, value in variables.items() if not _OF_THE_CLIENT.fullmatch(name)}
    for name, value in variables.items():
        argv += ["--env", name if name in passed_on else f"{name}={value}"]
    inherited = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
    environment = {**passed_on, **inherited, **spec.own}
    return Launch([*argv, docker_image(spec.image), "serve"], environment, address=f"http://127.0.0.1:{port}")


def docker_image(image: str) -> str:
    """The image to run for a model's image: of AWS's djl-inference the public twin, any other as it is."""
    aws = _AWS_IMAGE.fullmatch(image)
    return f"deepjavalibrary/djl-serving:{aws[1]}" if aws else image or DJL_IMAGE


def _in_docker(spec: ContainerSpec, path: Path) -> Path:
    return _MODELS / path.relative_to(spec.models_folder)


def _docker_call(*arguments: str) -> str:
    """What a docker command prints; nothing where it fails, since Docker may have gone, and its containers with it."""
    ran = subprocess.run(
        ["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DOCKER_TIMEOUT_S
    )
    return ran.stdout if ran.returncode == 0 else ""


def _remove_from_docker(container_id: str) -> None:
    _docker_call("rm", "--force", "--volumes", container_id)


def sweep_docker(home: Path) -> int:
    """Remove the containers that a platform of this home left in Docker, and say how many there were."""
    if shutil.which("docker") is None:
        return 0
    left = _docker_call("ps", "--all", "--quiet", "--filter", f"label={_HOME_LABEL}={home}").split()
    if left:
        _docker_call("rm", "--force", "--volumes", *left)
    return len(left)


def _no_djl_serving() -> str:
    if shutil.which("djl-serving"):
        return ""
    return "there is no djl-serving on PATH; install DJL Serving, or use MME_CONTAINER=embedded"


def _no_docker() -> str:
    if shutil.which("docker") is None:
        return "there is no docker on PATH; install Docker, or use MME_CONTAINER=embedded"
    if not _docker_call("version", "--format", "{{.Server.Version}}"):
        return "no Docker engine answers `docker version`; start it, or use MME_CONTAINER=embedded"
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


KINDS = {
    kind.name: kind
    for kind in (
        ContainerKind("embedded", _embedded),
        ContainerKind("djl-serving", _djl_serving, missing=_no_djl_serving, memory_lag_s=_DJL_MEMORY_LAG_S),
        ContainerKind(
            "docker",
            _docker,
            _in_docker,
            _remove_from_docker,
            sweep_docker,
            _no_docker,
            start_timeout_s=1800,  # the first start may have to pull the image, of some gigabytes
            memory_lag_s=_DJL_MEMORY_LAG_S,
        ),
    )
}
