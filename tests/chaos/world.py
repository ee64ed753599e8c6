"""A platform that faults are done to: its calls, each with what it came to, its processes, and what it may leave."""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import psutil
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError, ReadTimeoutError
from detour import Detour

from mme.platform import launch
from mme.platform.config import MARK
from mme.processes import marked
from mme.tether import tethered

HERE = Path(__file__).parent
DEADLINE_S = 60.0  # for what has to come about by itself
CALL_S = 40.0  # for an answer; the platform of the tests gives a call 6 s, and a call for the rest of AWS 3
BUCKET, ENDPOINT, VARIANT = "chaos", "chaos", "A"
MEMORY_MB = 480
BALLAST_MB = 150  # of which two models fit
IN_USE = ("warm-1", "warm-2", "twin")  # models that callers use all the while

# Answers with what it was asked, waits while its folder holds `<stage>.shut`, and takes as much memory as it is told.
HANDLER = """
import os, time
from djl_python import Output

ballast = b"x" * (BALLAST << 20)
kept = []


def pause(stage):
    if os.path.exists(stage + ".shut"):
        with open(stage + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(stage + ".new", stage + ".reached")
        while os.path.exists(stage + ".shut"):
            time.sleep(0.005)


def handle(inputs):
    if inputs.is_empty():
        return pause("load")
    pause("invoke")
    asked = inputs.get_as_string()
    if asked.startswith("grow"):
        while True:
            kept.append(b"x" * (16 << 20))
            time.sleep(0.01)
    return Output().add("NAME " + asked)
"""


def package(name: str, *, workers: int = 1, ballast_mb: int = 0, **files: bytes) -> bytes:
    """A package whose model answers with its name; `files` are added, their names with a dot for each underscore."""
    handler = HANDLER.replace("NAME", name).replace("BALLAST", str(ballast_mb))
    settings = f"engine=Python\nminWorkers=1\nmaxWorkers={workers}\noption.predict_timeout=3\n"
    settings += f"option.model_loading_timeout=4\nrequired_memory_mb={ballast_mb + 10}\n"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        texts = {"model.py": handler.encode(), "serving.properties": settings.encode(), f"is-{name}": b""}
        for member, body in (texts | {name.replace("_", "."): body for name, body in files.items()}).items():
            info = tarfile.TarInfo(member)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return made.getvalue()


def until(is_so: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait until it is so, and return what it said."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.005)
    return found


class World:
    """One platform in a home of its own. `seen` counts what calls came to, `wrong` says what no call may come to."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.numbers = itertools.count(1)
        self._log = home.with_suffix(".log")
        self._clock = home.with_suffix(".clock")
        self._clock.write_bytes(bytes(8))
        self.used: list[str] = []  # models that the last fault was about
        self.updated = ""
        self.acknowledged: dict[tuple[str, str], bool] = {}  # what was made, by its kind and name; False if deleted
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.detour = Detour(lambda: f"http://127.0.0.1:{(home / 'rclone.port').read_text()}")
        self.threads = ThreadPoolExecutor(64)
        self._under_way: list[Future[bool]] = []
        self.start()
        self.keys = self.running.access_key, self.running.secret_key
        self._session = boto3.Session(*self.keys, region_name="us-east-1")
        self.s3, self.iam, self.sagemaker = self.client("s3"), self.client("iam"), self.client("sagemaker")
        self.runtime = self.client("sagemaker-runtime")
        self._furnish()

    def client(self, service: str) -> Any:
        config = Config(
            retries={"total_max_attempts": 1}, read_timeout=CALL_S, connect_timeout=CALL_S, max_pool_connections=64
        )
        return self._session.client(service, endpoint_url=f"http://127.0.0.1:{self.port}", config=config)

    def start(self, limits: Callable[[], None] | None = None, **settings: str) -> None:
        """Start the platform; `limits` is called in its process, `settings` are added to its environment."""
        self.home.mkdir(exist_ok=True)
        argv = [sys.executable, str(HERE / "program.py"), self.detour.url, str(self._clock)]
        argv += ["--home", str(self.home), "--port", str(self.port), "--instance-memory-mb", str(MEMORY_MB)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {MARK: str(self.home), "MME_METRICS_PERIOD_S": "1", **settings}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                tethered(argv), env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=limits
            )
        process = self._process

        def is_there() -> bool:
            assert process.poll() is None, self._log.read_text()[-3000:]
            return launch.find(self.home) is not None

        until(is_there, "the platform answers")

    @property
    def running(self) -> launch.Running:
        running = launch.find(self.home)
        assert running is not None
        return running

    @property
    def platform_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def is_listening(self) -> bool:
        try:
            self.connected().close()
        except ConnectionRefusedError:
            return False
        return True

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=CALL_S)

    def signed(self, service: str, method: str, path: str, body: bytes, target: str = "") -> bytes:
        """A whole request with its body, after whose answer the connection ends."""
        headers = {"x-amzn-sagemaker-target-model": f"{target}.tar.gz"} if target else {}
        request = AWSRequest(method, f"http://127.0.0.1:{self.port}{path}", headers, body)
        credentials = Credentials(*self.keys)
        (S3SigV4Auth if service == "s3" else SigV4Auth)(credentials, service, "us-east-1").add_auth(request)
        named = {**request.headers, "Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(body))}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body

    def stop(self) -> None:
        """`mme down`, after which nothing may be left running."""
        launch.down(self.home)
        self.ended()

    def ended(self) -> None:
        """Wait for the platform's end, and for that of all it started."""
        assert self._process is not None
        self._process.wait(DEADLINE_S)
        until(lambda: marked(MARK, str(self.home)) == [], "no process is left")

    def close(self) -> None:
        self.stop()
        self.threads.shutdown()
        self.detour.close()
        shutil.rmtree(self.home)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def set_clock(self, error_s: float) -> None:
        """Have the platform's clock go wrong by so much."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", error_s))

    def _furnish(self) -> None:
        self.s3.create_bucket(Bucket=BUCKET)
        for name in IN_USE:
            self.put(name, package(name, workers=2 if name == "twin" else 1))
        for name in ("gated", "idle"):
            self.put(name, package(name, workers=2))
        for number in (1, 2, 3):
            self.put(f"heavy-{number}", package(f"heavy-{number}", ballast_mb=BALLAST_MB))
        role = self.iam.create_role(RoleName="chaos", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/models/"}
        self.sagemaker.create_model(ModelName="chaos", ExecutionRoleArn=role, PrimaryContainer=container)
        variant = {"VariantName": VARIANT, "ModelName": "chaos", "InstanceType": "ml.m5.large"}
        for name in ("chaos", "chaos-2"):
            self.sagemaker.create_endpoint_config(
                EndpointConfigName=name, ProductionVariants=[variant | {"InitialInstanceCount": 1}]
            )
        self.sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName="chaos")
        self.in_service()

    def put(self, name: str, body: bytes) -> None:
        """Upload a package; where S3 can't be reached, again until it can."""
        put = partial(self.s3.put_object, Bucket=BUCKET, Key=f"models/{name}.tar.gz", Body=body)
        until(lambda: self.told(put), f"{name} is stored")

    # Calls

    def told(self, call: Callable[[], Any], *, is_asked_of: str = "") -> Any:
        """What a call answers, None where it fails; counted, and noted where no call may come to it."""
        try:
            answer = call()
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            code = error.response["Error"]["Code"]
            self.seen[f"{status} {'of the front' if code == str(status) else code}"] += 1
            return None
        except ReadTimeoutError:
            self.wrong.append(f"no answer in {CALL_S:g} s{is_asked_of}")
            return None
        except (EndpointConnectionError, HTTPClientError):
            self.seen["connection lost"] += 1
            return None
        self.seen["right"] += 1
        return answer

    def call(self, name: str, asked: str | None = None) -> bool:
        """Call a model; whether it answered, which it must have done with its name and what it was asked."""
        asked = asked or f"{next(self.numbers)}"

        def invoke() -> str:
            answer = self.runtime.invoke_endpoint(EndpointName=ENDPOINT, TargetModel=f"{name}.tar.gz", Body=asked)
            return str(answer["Body"].read().decode())

        said = self.told(invoke, is_asked_of=f" of {name}")
        if said is not None and said != f"{name} {asked}":
            self.wrong.append(f"{name} was asked {asked} and answered {said}")
        return said is not None

    @contextlib.contextmanager
    def calling(self, *names: str) -> Iterator[None]:
        """Calls under way, one of each, whose answers are waited for at the end."""
        self._under_way = [self.threads.submit(self.call, name) for name in names]
        yield
        for call in self._under_way:
            call.result()

    # Stages

    def shut(self, name: str, stage: str) -> None:
        """Have the model's next call, or load, wait in its handler."""
        for folder in self._folders(name):
            (folder / f"{stage}.shut").touch()

    def open(self, name: str, stage: str) -> None:
        for folder in self._folders(name):
            (folder / f"{stage}.shut").unlink(missing_ok=True)
            (folder / f"{stage}.reached").unlink(missing_ok=True)

    def reached(self, name: str, stage: str) -> int:
        """Wait until a process of the model waits at the stage, calling it anew while no call is under way; its pid."""

        def waiting() -> list[Path]:
            if all(call.done() for call in self._under_way):
                self._under_way.append(self.threads.submit(self.call, name))
            return [place for folder in self._folders(name) if (place := folder / f"{stage}.reached").exists()]

        return int(until(waiting, f"{name} reached {stage}")[0].read_text())

    def _folders(self, name: str) -> list[Path]:
        pattern = f"instances/{ENDPOINT}/{VARIANT}/*/models/*/model/is-{name}"  # folders may go while it is looked for
        return [Path(place).parent for place in glob.glob(str(self.home / pattern))]

    @contextlib.contextmanager
    def said(self, pattern: str) -> Iterator[Callable[[], re.Match[str]]]:
        """What waits until the platform's log says, from here on, what matches."""
        begin = len(self.log())
        yield lambda: until(lambda: re.search(pattern, self.log()[begin:]), f"the log says {pattern}")

    # What there is

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_mme/status", timeout=CALL_S) as answer:
            return dict(json.load(answer))

    def instances(self) -> list[dict[str, Any]]:
        return [
            instance
            for endpoint in self.status()["endpoints"]
            for variant in endpoint["variants"]
            for instance in variant["instances"]
        ]

    def service_pid(self, name: str) -> int:
        return int(next(one["pid"] for one in self.status()["services"] if one["name"] == name))

    def container_pids(self) -> list[int]:
        """Those that serve, start or retire."""
        return [child.pid for child in psutil.Process(self.platform_pid).children() if "mme.server" in _argv(child)]

    def nursery(self) -> dict[str, Any]:
        """The fork servers of the container that serves, once they are all there."""

        def built() -> dict[str, Any] | None:
            found = self.nursery_now()
            return found if found["branches"] and not found["building"] else None

        return dict(until(built, "the branches are built"))

    def nursery_now(self) -> dict[str, Any]:
        """What the container that serves says; waits while it is being replaced."""

        def said() -> dict[str, Any] | None:
            (pid,) = [instance["pid"] for instance in self.instances()]
            with contextlib.suppress(psutil.Error, OSError):
                container = psutil.Process(pid or 0)  # 0 is no process
                # The platform's key, made for this container.
                headers = {"X-MME-Key": container.environ().get("MME_CONTAINER_KEY", "")}
                for one in container.net_connections():
                    if one.status == psutil.CONN_LISTEN:
                        url = f"http://127.0.0.1:{one.laddr.port}/_mme/models"
                        request = urllib.request.Request(url, headers=headers)
                        with urllib.request.urlopen(request, timeout=CALL_S) as answer:
                            return dict(json.load(answer)["nursery"])
            return None

        return dict(until(said, "the container says what it has"))

    def model(self, name: str) -> dict[str, Any]:
        for instance in self.instances():
            for model in instance["models"]:
                if model["target_model"] == f"{name}.tar.gz":
                    return dict(model)
        return {"workers": [], "template": None, "where": "s3", "in_use": 0}

    def model_is_in_use(self, name: str) -> bool:
        return bool(self.model(name)["in_use"])

    def in_service(self) -> dict[str, Any]:
        def described() -> dict[str, Any] | None:
            found = self.told(lambda: self.sagemaker.describe_endpoint(EndpointName=ENDPOINT))
            return found if found and found["EndpointStatus"] == "InService" else None

        return dict(until(described, "the endpoint is in service"))

    def answered(self, name: str) -> None:
        """Wait for a right answer of the model."""
        until(lambda: self.call(name), f"{name} answers")


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
