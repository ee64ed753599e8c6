"""What the platform's tests share: an S3 of rclone's, and a hosting rig whose containers are the stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import psutil
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from mme.platform import launch
from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.containers import ContainerKind, ContainerSpec, Launch
from mme.platform.errors import ModelError
from mme.platform.hosting import EndpointPlan, Hosting, Instance, VariantPlan
from mme.platform.launch import Running
from mme.platform.runtime import InvokeAnswer, Runtime, StreamAnswer
from mme.processes import marked
from mme.settings import Settings

STAND_IN = Path(__file__).with_name("stand_in_container.py")
BUCKET = "packages"


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running(argv: list[str], url: str, log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server process that answers at `url`, ended afterwards."""
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, env=env or os.environ | {})
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except urllib.error.HTTPError as error:
                error.close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """rclone's S3 over a folder of its own."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "data").mkdir()
    port = a_free_port()
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert rclone is not None
    argv = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret", str(folder / "data")]
    url = f"http://127.0.0.1:{port}"
    with running(argv, url, folder / "rclone.log", os.environ | {"RCLONE_CONFIG": str(folder / "none.conf")}):
        store = ObjectStore(s3_url=url, access_key="key", secret_key="secret")
        s3_client(store).create_bucket(Bucket=BUCKET)
        yield store


@functools.cache
def session() -> Any:
    """botocore's, which reads its models of the services once."""
    return botocore.session.get_session()


def s3_client(store: ObjectStore) -> Any:
    return session().create_client(
        "s3",
        endpoint_url=store.s3_url,
        region_name=store.region,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
    )


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """moto's server, of the platform's account, with AWS's managed policies."""
    port = a_free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    env = os.environ | {"MOTO_ACCOUNT_ID": "000000000000", "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    with running(argv, f"{url}/moto-api/", tmp_path_factory.mktemp("moto") / "moto.log", env):
        yield url


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Rig:
    """A Hosting over stand-in containers, with everything a test needs to steer and to watch it."""

    def __init__(self, folder: Path, store: ObjectStore, prefix: str) -> None:
        self.meeting = folder / "meeting"
        self.meeting.mkdir(exist_ok=True)
        self.store = store
        self.s3 = s3_client(store)
        self.prefix = prefix
        self.config = PlatformConfig(
            home=folder,
            folder=folder / "hosting",
            moto_url="http://127.0.0.1:9",  # nobody listens there
            metrics_period_s=3600,
        )
        self.kind = ContainerKind("stand-in", self._launch)
        self.hosting: Hosting
        self.runtime: Runtime

    def _launch(self, spec: ContainerSpec) -> Launch:
        argv = [sys.executable, "-S", str(STAND_IN), str(self.meeting)]
        if spec.model_store is not None:
            argv += ["--model-store", str(spec.model_store)]
        return Launch(argv, {**spec.environment, **spec.own})

    def put(self, target: str, **behaviour: Any) -> None:
        """Upload a package whose model answers with its own name, or as it is told."""
        self.put_bytes(target, package({"behaviour.json": json.dumps({"answer": target} | behaviour)}))

    def put_bytes(self, target: str, body: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{target}", Body=body)

    def delete(self, target: str) -> None:
        self.s3.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{target}")

    def plan(self, *variants: VariantPlan, **changes: Any) -> EndpointPlan:
        one = VariantPlan("AllTraffic", "model", "image", f"s3://{BUCKET}/{self.prefix}/")
        return EndpointPlan("shop", "arn", variants or (replace(one, **changes),))

    def plan_named(self, name: str) -> EndpointPlan:
        return replace(self.plan(), name=name)

    def variant(self, name: str, **changes: Any) -> VariantPlan:
        return VariantPlan(name, "model", "image", f"s3://{BUCKET}/{self.prefix}/", **changes)

    @contextlib.asynccontextmanager
    async def up(self, plan: EndpointPlan | None = None, **options: Any) -> AsyncIterator[Rig]:
        """The endpoint `shop`, deployed."""
        config = replace(self.config, **{key: options.pop(key) for key in list(options) if hasattr(self.config, key)})
        self.hosting = Hosting(config, self.store, kind=self.kind, **options)
        self.runtime = Runtime(self.hosting)
        await self.hosting.start()
        try:
            await self.hosting.deploy(plan or self.plan())
            yield self
        finally:
            await self.hosting.close()

    async def invoke(self, target: str | None, body: bytes = b"{}", **headers: str) -> InvokeAnswer:
        if target is not None:
            headers["x-amzn-sagemaker-target-model"] = target
        return await self.runtime.invoke_endpoint("shop", headers, body)

    async def ask(self, target: str | None, body: bytes = b"{}") -> Any:
        return json.loads((await self.invoke(target, body)).body)

    async def stream(self, target: str) -> StreamAnswer:
        headers = {"x-amzn-sagemaker-target-model": target}
        return await self.runtime.invoke_endpoint_with_response_stream("shop", headers, b"{}")

    async def ask_until_answered(self, target: str) -> Any:
        """The answer of the first call that is not lost with the container it went to."""
        while True:
            with contextlib.suppress(ModelError):
                return await self.ask(target)

    @property
    def instance(self) -> Instance:
        return self.instances[0]

    @property
    def instances(self) -> list[Instance]:
        endpoint = self.hosting.endpoint("shop")
        assert endpoint is not None
        return endpoint.instances

    def where(self, target: str) -> str:
        """Where the first instance has a model."""
        found = {model.target: str(model.where) for model in self.instance.cache.models}
        return found.get(target, "s3")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the containers were asked, in order."""
        try:
            lines = (self.meeting / "events.jsonl").read_text().rpartition("\n")[0].splitlines()  # not one half written
        except FileNotFoundError:
            return []
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def open(self, gate: str) -> None:
        (self.meeting / gate).touch()

    async def reached(self, gate: str) -> None:
        await until(lambda: (self.meeting / f"{gate}.reached").exists())

    async def reached_event(self, kind: str, count: int) -> None:
        await until(lambda: len(self.events(kind)) >= count)

    async def until(self, condition: Any) -> None:
        await until(condition)


async def until(condition: Any, timeout_s: float = 60) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def package(files: dict[str, str]) -> bytes:
    """A .tar.gz with these files at its top level."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pack() -> Callable[[dict[str, str]], bytes]:
    return package


@pytest.fixture
def rig(tmp_path: Path, object_store: ObjectStore, request: pytest.FixtureRequest) -> Rig:
    return Rig(tmp_path, object_store, request.node.name.replace("[", "-").replace("]", ""))


@contextlib.contextmanager
def platform_in(home: Path, **settings: Any) -> Iterator[Running]:
    """A real platform over a home, stopped with everything of its own afterwards."""
    try:
        yield launch.up(Settings(home=home, **settings))
    finally:
        launch.down(home)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The platform that tests share; each uses names of its own."""
    with platform_in(tmp_path_factory.mktemp("home")) as running_platform:
        yield running_platform


def listening_in(home: Path) -> set[tuple[str, int]]:
    """The addresses and ports on which the processes of a home listen."""
    found: set[tuple[str, int]] = set()
    for process in marked("MME_MARK", str(home)):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found |= {tuple(one.laddr) for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
    return found


@pytest.fixture(scope="session")
def listening() -> Callable[[Path], set[tuple[str, int]]]:
    return listening_in


Clients = Callable[..., Any]


def clients_of(there: Running, stack: contextlib.ExitStack) -> Clients:
    """Makes boto3 clients of a platform, by service, that are closed with the stack."""
    session = boto3.Session(there.access_key, there.secret_key, region_name=there.region)

    def client(service: str, **config: Any) -> Any:
        options = Config(retries={"total_max_attempts": 1}, **config)
        made = session.client(service, endpoint_url=there.url, config=options)
        stack.callback(made.close)
        return made

    return client


@pytest.fixture(scope="session")
def client(platform: Running) -> Iterator[Clients]:
    with contextlib.ExitStack() as stack:
        yield functools.cache(clients_of(platform, stack))


@pytest.fixture(scope="session")
def start_platform() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    return platform_in


@pytest.fixture(scope="session")
def connect() -> Iterator[Callable[[Running], Clients]]:
    """For a platform of a test's own: its clients by service."""
    with contextlib.ExitStack() as stack:
        yield lambda there: clients_of(there, stack)


def signed(
    there: Running, service: str, method: str, target: str, headers: dict[str, str], body: bytes = b"", **keys: str
) -> dict[str, str]:
    """The headers that make a request to a platform one that botocore signed, with the home's keys or with `keys`."""
    credentials = Credentials(**({"access_key": there.access_key, "secret_key": there.secret_key} | keys))
    request = AWSRequest(method, there.url + target, dict(headers), body)
    (S3SigV4Auth if service == "s3" else SigV4Auth)(credentials, service, there.region).add_auth(request)
    return dict(request.headers.items())


@pytest.fixture(scope="session")
def sign() -> Callable[..., dict[str, str]]:
    return signed
