"""Decides how a container and a model are configured: environment, serving.properties and the load request.

Sources: DJL Serving 0.36's ConfigManager, ModelInfo, PyModel and SageMakerCompatibility, as read and observed. For a
model the load request wins over serving.properties, and that over `OPTION_*` and `SERVING_*` variables;
`SAGEMAKER_NUM_MODEL_WORKERS` wins over minWorkers and maxWorkers of serving.properties.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mme.server import engines
from mme.server import properties as java_properties
from mme.server.errors import LoadFailed, ModelNotFound, NotANumber
from mme.server.integers import integer
from mme.server.worker.box import Rules

log = logging.getLogger(__name__)

# Keys outside `option.` that are honoured, or have no meaning on CPU; others are logged.
_KNOWN_KEYS = frozenset(
    "engine minWorkers maxWorkers cpu.minWorkers cpu.maxWorkers gpu.minWorkers gpu.maxWorkers batch_size "
    "max_dynamic_batch_size max_batch_delay max_idle_time job_queue_size retry_threshold required_memory_mb "
    "reserved_memory_mb gpu.required_memory_mb gpu.reserved_memory_mb load_on_devices".split()
)
# Settings of DJL's large-model engines with the values that mean "not used".
_LARGE_MODEL_OPTIONS = {
    "rolling_batch": ("disable",),
    "mpi_mode": ("false",),
    "tensor_parallel_degree": ("1",),
    "pipeline_parallel_degree": ("1",),
}
_MAX_CONTENT_BYTES = 20 << 20  # of an answer that comes whole: DJL's CodecUtils.MAX_BUFFER_SIZE
_logged: set[str] = set()


@dataclass(frozen=True)
class ContainerConfig:
    """What the container's environment says; `environ` is what defaults of models are read from."""

    multi_model: bool
    memory_budget_mb: int | None
    worker_memory_mb: int | None
    """What each worker may have for itself alone: `MME_WORKER_MEMORY_MB`, else the whole budget."""
    box: Rules
    fork: bool
    nursery_dir: Path | None
    cache_dir: Path | None
    """Where packages' own environments are kept; None: in the temporary folder, from one server to the next."""
    environ: Mapping[str, str]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ContainerConfig:
        """Raises ValueError naming a variable that can't be understood."""
        budget = _megabytes(environ, "MME_MEMORY_BUDGET_MB")
        limit = _megabytes(environ, "MME_WORKER_MEMORY_MB")
        nursery = environ.get("MME_NURSERY_DIR")
        cache = environ.get("DJL_CACHE_DIR") or nursery
        return cls(
            multi_model=environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true",
            memory_budget_mb=budget,
            worker_memory_mb=budget if limit is None else limit,
            box=Rules.from_environ(environ),
            fork=environ.get("MME_FORK", "").lower() != "off",
            nursery_dir=Path(nursery).absolute() if nursery else None,
            cache_dir=Path(cache).absolute() if cache else None,
            environ=environ,
        )


@dataclass(frozen=True)
class LoadRequest:
    """The arguments of `POST /models`; None leaves the choice to serving.properties. `target_model` is for the log."""

    name: str
    url: str
    version: str | None = None
    engine: str | None = None
    batch_size: int | None = None
    queue_size: int | None = None
    max_idle_s: int | None = None
    max_batch_delay_ms: int | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    target_model: str = ""
    synchronous: bool = True

    @property
    def title(self) -> str:
        return self.target_model or self.name


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is fixed about a loaded model; sizes in MB, times in seconds."""

    name: str
    title: str
    """What the log calls it: its target's name where the platform says it."""
    url: str
    version: str | None
    model_dir: Path
    properties: Mapping[str, str]
    entry_point: str
    fallback_entry_point: str
    handler: str
    python: str | None
    env: Mapping[str, str]
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_s: float
    queue_size: int
    max_idle_s: float
    predict_timeout_s: float
    load_timeout_s: float
    retry_threshold: int
    required_mb: int | None
    reserved_mb: int | None
    worker_memory_mb: int | None
    async_mode: bool
    enable_venv: bool
    max_content_bytes: int


def model_dir(url: str) -> Path:
    """The folder of a load request's url, a path or `file:` url; one level down if all it holds is a folder.

    A relative path is one from where the server was started, as in DJL.

    Raises ModelNotFound. (DJL: Utils.getNestedModelDir.)
    """
    folder = Path(re.sub(r"^file:(//)?(?=/)", "", url)).absolute()  # workers have working directories of their own
    try:
        entries = list(folder.iterdir()) if url else None
    except (OSError, ValueError):  # no folder, not readable, not a path at all
        entries = None
    if entries is None:
        raise ModelNotFound(f"Invalid model url: {url}")
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    if len(visible) == 1 and visible[0].is_dir():
        return visible[0]
    return folder


def read(request: LoadRequest, container: ContainerConfig) -> ModelConfig:
    """The configuration of the model that a request names.

    Raises ModelNotFound for a url without a model, InvalidValue for a setting that can't be used, LoadFailed for one
    that asks for what isn't here.
    """
    folder = model_dir(request.url)
    environ = container.environ
    settings = _option_defaults(environ) | java_properties.read(folder / "serving.properties")
    settings.setdefault("option.handler", "handle")
    options = {key.removeprefix("option."): value for key, value in settings.items() if key.startswith("option.")}
    engine = engines.engine_of(folder, options, request.engine or settings.get("engine"))
    built_in = engines.built_in_handler(engine)
    settings.setdefault("engine", engine)
    _refuse_large_model_options(options)
    _log_unknown_keys(request.title, settings)

    def number(key: str, default: int, requested: int | None = None) -> int:
        if requested is not None and requested >= 0:
            return requested
        return integer(settings.get(key, environ.get(f"SERVING_{key.upper()}", str(default))))

    def megabytes(key: str) -> int | None:
        value = settings.get(key, environ.get(f"SERVING_{key.upper()}"))
        return None if value is None else integer(value)

    batch_size = number("max_dynamic_batch_size", number("batch_size", 1), request.batch_size)
    min_workers, max_workers = _workers(request, settings, environ)
    if built_in is None:
        entry_point, fallback = engines.entry_points(folder, options, environ)
    else:  # a batch is answered one by one, as in DJL, and so is none
        entry_point, fallback, batch_size = built_in, "", 1
    return ModelConfig(
        name=request.name,
        title=request.title,
        url=request.url,
        version=request.version,
        model_dir=folder,
        properties={key.removeprefix("option."): value for key, value in settings.items() if key != "option.env"},
        entry_point=entry_point,
        fallback_entry_point=fallback,
        handler=options["handler"] if built_in is None else "handle",
        python=None if built_in else _interpreter(folder, options, environ),
        env=_env(options.get("env", "")),
        min_workers=min_workers,
        max_workers=max_workers,
        batch_size=max(1, batch_size),
        max_batch_delay_s=number("max_batch_delay", 100, request.max_batch_delay_ms) / 1000,
        queue_size=number("job_queue_size", 1000, request.queue_size),
        max_idle_s=number("max_idle_time", 60, request.max_idle_s),
        predict_timeout_s=_seconds("predict_timeout", options, environ, 120),
        load_timeout_s=_seconds("model_loading_timeout", options, environ, 240),
        retry_threshold=number("retry_threshold", 0),
        required_mb=megabytes("required_memory_mb"),
        reserved_mb=megabytes("reserved_memory_mb"),
        worker_memory_mb=container.worker_memory_mb,
        async_mode=options.get("async_mode", "").lower() == "true",
        enable_venv=options.get("enable_venv", "").lower() == "true",
        max_content_bytes=integer(environ.get("MAX_NETTY_BUFFER_SIZE", str(_MAX_CONTENT_BYTES))),
    )


def _megabytes(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name)
    if value is not None and not value.isdecimal():
        raise ValueError(f"{name}={value} is not a whole number of megabytes")
    return int(value) if value else None


def _seconds(key: str, options: Mapping[str, str], environ: Mapping[str, str], default: int) -> int:
    """A time limit; one that isn't a number is passed over with a warning, as in DJL's PyModel."""
    fallback = integer(environ.get(key.upper(), str(default)))
    try:
        return integer(options.get(key, str(fallback)))
    except NotANumber as error:
        log.warning("option.%s: %s; it stays at %d s", key, error, fallback)
        return fallback


def _option_defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """`OPTION_FOO=x` stands for `option.foo=x`; only `entryPoint` keeps its capital."""
    defaults = {}
    for name, value in environ.items():
        if name.startswith("OPTION_"):
            key = name.removeprefix("OPTION_").lower()
            defaults["option." + ("entryPoint" if key == "entrypoint" else key)] = value
    return defaults


def _interpreter(folder: Path, options: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """Where the model's own interpreter is; None if it is the one that runs the server."""
    executable = options.get("pythonExecutable", environ.get("PYTHON_EXECUTABLE"))
    if not executable:
        return None
    if "/" in executable:
        found = str(folder / executable)
    else:
        found = shutil.which(executable) or executable
    return None if os.path.abspath(found) == os.path.abspath(sys.executable) else found


def _env(text: str) -> dict[str, str]:
    """`K=V,K2=V2`; a part without `=` is dropped."""
    pairs = (part.split("=", 1) for part in text.split(",") if "=" in part)
    return {key.strip(): value.strip() for key, value in pairs}


def _workers(request: LoadRequest, settings: Mapping[str, str], environ: Mapping[str, str]) -> tuple[int, int]:
    """The least and the most workers. DJL's default for the most is a worker for each core that one doesn't fill."""
    forced = environ.get("SAGEMAKER_NUM_MODEL_WORKERS")

    def count(bound: str, requested: int | None) -> int | None:
        if requested is not None and requested >= 0:
            return requested
        value = settings.get(f"cpu.{bound}Workers", settings.get(f"{bound}Workers"))
        value = forced or value or environ.get(f"SERVING_{bound.upper()}_WORKERS")
        return None if value is None else integer(value)

    least = count("min", request.min_workers)
    most = count("max", request.max_workers)
    if most is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = environ.get("OMP_NUM_THREADS", "1")
        most = cores // min(int(threads), cores) if threads.isdecimal() and int(threads) else 2
    return (1 if least is None else least), most


def _refuse_large_model_options(options: Mapping[str, str]) -> None:
    for key, unused in _LARGE_MODEL_OPTIONS.items():
        value = options.get(key)
        if value is not None and value.lower() not in unused:
            raise LoadFailed(
                f"option.{key}={value} belongs to DJL's large-model engines, which this server doesn't have; "
                f"remove it or set it to {unused[0]}"
            )


def _log_unknown_keys(name: str, settings: Mapping[str, str]) -> None:
    unknown = {key for key in settings if not key.startswith("option.") and key not in _KNOWN_KEYS} - _logged
    if unknown:
        _logged.update(unknown)
        log.warning("%s: serving.properties has keys that are not honoured here: %s", name, ", ".join(sorted(unknown)))
