"""Decides how servers with a Java front are started and asked: Multi Model Server, DJL Serving, TorchServe."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import ClassVar

from benchmarks import FOLDER, environments, load, models
from benchmarks.peer import JSON, Peer
from mme import packages


class MultiModelServer(Peer):
    """A Java front and, for each model, a process that imports and loads by itself."""

    name, title, scales, warm_s = "mms", "Multi Model Server", True, 6.0
    requirements = ("multi-model-server==1.1.11", "setuptools<81")

    def command(self) -> list[str]:
        if not shutil.which("java"):
            raise environments.CannotInstall(f"{self.name}: it needs java on PATH")
        address = f"http://127.0.0.1:{self.port}"
        settings = {
            "inference_address": address,
            "management_address": address,
            "model_store": "/",
            "default_workers_per_model": 1,
            "default_service_handler": f"{FOLDER / 'peers' / 'mms_service.py'}:handle",
            "decode_input_request": "false",
            "default_response_timeout": 120,
            "unregister_model_timeout": 120,
            "job_queue_size": 1000,
            "vmargs": f"-Xmx512m -Djava.io.tmpdir={self.folder}",
        }
        (self.folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        quiet = '<Configuration><Loggers><Root level="error"/></Loggers></Configuration>'
        (self.folder / "log4j2.xml").write_text(quiet)
        program = str(self.python().parent / "multi-model-server")
        files = ["--mms-config", "config.properties", "--log-config", str(self.folder / "log4j2.xml")]
        return [program, "--start", "--foreground", *files]

    def environ(self) -> dict[str, str]:
        # It starts its workers with the first `python` on PATH.
        return {"PATH": f"{self.python().parent}{os.pathsep}{os.environ['PATH']}", "TEMP": str(self.folder)}


class MultiModelServerLean(MultiModelServer):
    name, title, lean = "mms-lean", "Multi Model Server, without pandas", True


class DjlServing(Peer):
    """A Java front and a process per worker: the container's program, where it is on PATH.

    As SageMaker starts it, and with the project's interpreter for the workers.
    """

    name, title, scales, warm_s = "djl", "DJL Serving", True, 6.0

    def python(self) -> Path:
        return Path(sys.executable)

    def command(self) -> list[str]:
        program = shutil.which("djl-serving")
        if program is None:
            raise environments.CannotInstall(f"{self.name}: djl-serving is not on PATH")
        address = f"http://127.0.0.1:{self.port}"
        addresses = f"inference_address={address}\nmanagement_address={address}\n"
        settings = f"{addresses}model_store={self.folder}\nload_models=NONE\n"
        (self.folder / "config.properties").write_text(settings)
        return [program, "--config-file", str(self.folder / "config.properties")]

    def environ(self) -> dict[str, str]:
        return {
            "SAGEMAKER_MULTI_MODEL": "true",
            "PYTHON_EXECUTABLE": sys.executable,
            "PYTHONPATH": "",
            "JAVA_OPTS": "-Xmx512m",
            "DJL_CACHE_DIR": str(self.folder),
        }


class DjlServingForked(DjlServing):
    """The same with packages that bring the fork server along (docs/fork-served-packages.md)."""

    name, title = "djl-forked", "DJL Serving, fork-served packages"
    preload: ClassVar = {
        "joblib": ["numpy", "joblib", "sklearn.linear_model", "sklearn.ensemble"],
        "setfit": ["numpy", "torch", "setfit"],
    }

    def prepare(self, name: str) -> None:
        archive = self.folder / f"{name}.tar.gz"
        preload = self.preload.get(models.kind_of(name).handler, [])
        packages.build(models.STORE / name, archive, fork_server=True, preload=preload)
        with tarfile.open(archive) as opened:
            opened.extractall(self.folder / name, filter="data")
        archive.unlink()

    def load_request(self, name: str) -> bytes:
        arguments = json.dumps({"model_name": name, "url": str(self.folder / name)}).encode()
        return load.request("POST", "/models", arguments, JSON)


class TorchServe(Peer):
    """A Java front and a process per model that imports torch, where it is on PATH; it loads archives only."""

    name, title, warm_s = "torchserve", "TorchServe", 6.0

    def command(self) -> list[str]:
        program = shutil.which("torchserve")
        if program is None:
            raise environments.CannotInstall(f"{self.name}: torchserve is not on PATH")
        self.archives = self.folder / "archives"
        self.archives.mkdir()
        settings = {
            "inference_address": f"http://127.0.0.1:{self.port}",
            "management_address": f"http://127.0.0.1:{self.second_port}",
            "metrics_address": f"http://127.0.0.1:{self.third_port}",
            "default_workers_per_model": 1,
            "default_response_timeout": 120,
            "disable_token_authorization": "true",
            "enable_model_api": "true",
            "vmargs": "-Xmx512m",
        }
        (self.folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return [program, "--start", "--foreground", "--ts-config", "config.properties", "--model-store", "archives"]

    def manage(self, method: str, path: str) -> None:
        connection = load.Connection(self.second_port, timeout_s=180.0)
        self.expect_ok(f"{method} {path}", connection.ask(load.request(method, path)))
        connection.close()

    def prepare(self, name: str) -> None:
        """A folder with the manifest of an archive is one, too."""
        folder = self.archives / name
        shutil.copytree(models.STORE / name, folder)
        shutil.copy(FOLDER / "peers" / "mms_service.py", folder)
        shutil.copy(FOLDER / "peers" / "answering_model.py", folder)
        (folder / "MAR-INF").mkdir()
        manifest = {"model": {"modelName": name, "handler": "mms_service.py:handle", "modelVersion": "1.0"}}
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))

    def load(self, name: str) -> None:
        self.manage("POST", f"/models?url={name}&model_name={name}&initial_workers=1&synchronous=true")

    def unload(self, name: str) -> None:
        self.manage("DELETE", f"/models/{name}")

    def request(self, name: str, body: bytes) -> bytes:
        return load.request("POST", f"/predictions/{name}", body, JSON)
