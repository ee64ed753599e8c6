"""Decides which servers there are to compare, and in what each differs from the multi-model container contract."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import FOLDER, ROOT, environments, load, models
from benchmarks.java_adapters import DjlServing, DjlServingForked, MultiModelServer, MultiModelServerLean, TorchServe
from benchmarks.peer import JSON, Peer


class Ours(Peer):
    """The embedded server in the project's environment: a process per model, forked."""

    name, title, scales = "ours", "mme", True

    def python(self) -> Path:
        return Path(sys.executable)

    def command(self) -> list[str]:
        return [str(self.python()), "-m", "mme.server", "--port", str(self.port)]

    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT / "src")}

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.must("GET", "/_mme/models"))
        return status

    def settle(self) -> None:
        super().settle()
        while self.status()["nursery"]["building"]:
            time.sleep(0.05)


class OursLean(Ours):
    """The same with scikit-learn alone: neither pandas nor pyarrow."""

    name, title, lean = "ours-lean", "mme, without pandas", True

    def python(self) -> Path:
        # psutil and the others are the server's own; their versions are the project's.
        own = environments.pinned(("uvloop", "httptools", "psutil", "packaging", "prometheus-client"))
        return environments.python(self.name, own, lean=True)


class FastApi(Peer):
    """One process, one dictionary of models, one event loop."""

    name, title = "fastapi", "FastAPI"
    requirements = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0")

    def command(self) -> list[str]:
        options = ["--no-access-log", "--log-level", "warning"]
        return [str(self.python()), "-m", "uvicorn", "fastapi_app:app", "--port", str(self.port), *options]


class MlServer(Peer):
    """The server, and a process beside it that holds all models: MLServer's default."""

    name, title = "mlserver", "MLServer"
    requirements = ("mlserver==1.7.1", "uvloop<0.22")  # with later ones its worker process finds no event loop
    ready = "/v2/health/ready"

    def command(self) -> list[str]:
        return [str(self.python().parent / "mlserver"), "start", str(models.STORE)]

    def environ(self) -> dict[str, str]:
        settings = {
            "debug": "false",
            "host": "127.0.0.1",
            "http_port": self.port,
            "grpc_port": self.second_port,
            "metrics_port": self.third_port,
            "metrics_dir": self.folder,
            "environments_dir": self.folder,
            "load_models_at_startup": "false",
            "model_repository_root": models.STORE,
        }
        return {f"MLSERVER_{name.upper()}": str(value) for name, value in settings.items()}

    def prepare(self, name: str) -> None:
        settings = {"name": name, "implementation": "mlserver_runtime.Answering", "parameters": {"uri": "./"}}
        (models.STORE / name / "model-settings.json").write_text(json.dumps(settings))

    def load(self, name: str) -> None:
        self.must("POST", f"/v2/repository/models/{name}/load")

    def unload(self, name: str) -> None:
        self.must("POST", f"/v2/repository/models/{name}/unload")

    def request(self, name: str, body: bytes) -> bytes:
        text = {"name": "body", "datatype": "BYTES", "shape": [1, 1], "data": [body.decode()]}
        return load.request("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": [text]}).encode(), JSON)

    def answer(self, body: bytes) -> Any:
        return json.loads(json.loads(body)["outputs"][0]["data"][0])


class BentoMl(Peer):
    """One service process with a dictionary of models, one thread for calls: BentoML's default."""

    name, title = "bentoml", "BentoML"
    requirements = ("bentoml==1.4.40",)
    ready = "/readyz"

    def command(self) -> list[str]:
        bentoml = str(self.python().parent / "bentoml")
        return [bentoml, "serve", "bentoml_service:Models", "--host", "127.0.0.1", "--port", str(self.port)]

    def environ(self) -> dict[str, str]:
        return {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(self.folder)}

    def load(self, name: str) -> None:
        self._do("load", {"model": name, "folder": str(models.STORE / name)})

    def unload(self, name: str) -> None:
        self._do("unload", {"model": name})

    def _do(self, what: str, arguments: dict[str, str]) -> None:
        self.must("POST", f"/{what}", json.dumps(arguments).encode(), JSON)

    def request(self, name: str, body: bytes) -> bytes:
        return load.request("POST", "/predict", json.dumps({"model": name, "body": body.decode()}).encode(), JSON)

    def answer(self, body: bytes) -> Any:
        """An answer that is text comes as it is."""
        return json.loads(body)


class LitServe(Peer):
    """An HTTP process, a queue, and one worker process with a dictionary of models."""

    name, title = "litserve", "LitServe"
    requirements = ("litserve==0.2.19",)
    ready = "/health"

    def command(self) -> list[str]:
        return [str(self.python()), str(FOLDER / "peers" / "litserve_app.py")]

    def load(self, name: str) -> None:
        self._do({"do": "load", "model": name, "folder": str(models.STORE / name)})

    def unload(self, name: str) -> None:
        self._do({"do": "unload", "model": name})

    def _do(self, arguments: dict[str, str]) -> None:
        self.must("POST", "/predict", json.dumps(arguments).encode(), JSON)

    def request(self, name: str, body: bytes) -> bytes:
        arguments = {"do": "predict", "model": name, "body": body.decode()}
        return load.request("POST", "/predict", json.dumps(arguments).encode(), JSON)

    def answer(self, body: bytes) -> Any:
        """LitServe makes JSON of what the worker returns, a text included."""
        return json.loads(json.loads(body))


class RayServe(Peer):
    """One replica with all models, and Ray's own processes; a model is loaded by its first call."""

    name, title, unloads = "ray", "Ray Serve", False
    requirements = ("ray[serve]==2.60.0",)
    ready = "/-/routes"

    def command(self) -> list[str]:
        return [str(self.python()), str(FOLDER / "peers" / "ray_app.py")]

    def environ(self) -> dict[str, str]:
        # Ray's sockets have to fit 107 characters, which the folders of a build seldom do.
        return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_TMPDIR": "/tmp", "TMPDIR": "/tmp"}

    def is_ready(self) -> bool:
        return b"models" in self.call("GET", self.ready)[1]

    def load(self, name: str) -> None:
        """The first call does it."""

    def request(self, name: str, body: bytes) -> bytes:
        return load.request("POST", "/", body, [*JSON, ("serve_multiplexed_model_id", name)])


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Ours(),
        OursLean(),
        FastApi(),
        MlServer(),
        BentoMl(),
        LitServe(),
        RayServe(),
        MultiModelServer(),
        MultiModelServerLean(),
        DjlServing(),
        DjlServingForked(),
        TorchServe(),
    )
}
