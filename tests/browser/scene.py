"""A platform with endpoints of small models, and a browser that looks at its live page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from playwright.sync_api import Browser, Page, sync_playwright

from mme import packages
from mme.packages import Example
from mme.platform import launch
from mme.settings import Settings

# Adds a number of its own to the one that it is sent. It takes some memory, and can be made to wait for a file.
HANDLER = """
import os
import time

from djl_python import Output

BALLAST = b"x" * ({ballast_mb} << 20)


def handle(inputs):
    while {gate!r} and not os.path.exists({gate!r}):
        time.sleep(0.01)
    if inputs.is_empty():
        print("ready to add {number}")
        return None
    return Output().add_as_json({{"sum": inputs.get_as_json()["number"] + {number}}})
"""
BROKEN = 'raise RuntimeError("the handler has no weights")\n'
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
BUCKET = "packages"
ROLE = "arn:aws:iam::000000000000:role/browser"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:0.36.0-cpu-full"


class Scene:
    """A platform, and what is done to it while somebody looks."""

    def __init__(self, running: launch.Running, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self._clients = ExitStack()

    @cached_property
    def _session(self) -> Any:
        return boto3.Session(self.running.access_key, self.running.secret_key, region_name=self.running.region)

    def client(self, service: str) -> Any:
        made = self._session.client(
            service, endpoint_url=self.running.url, config=Config(retries={"total_max_attempts": 1})
        )
        self._clients.callback(made.close)
        return made

    @cached_property
    def _runtime(self) -> Any:
        return self.client("sagemaker-runtime")

    @cached_property
    def _s3(self) -> Any:
        return self.client("s3")

    @cached_property
    def _sagemaker(self) -> Any:
        return self.client("sagemaker")

    def stop(self) -> None:
        """End the platform, and drop the clients: the next start's port is another one."""
        self.close()
        launch.down(self.running.home)

    def start(self) -> None:
        self.running = launch.up(settings_of(self.running.home, self.running.instance_memory_mb))

    def close(self) -> None:
        self._clients.close()
        for name in ("_session", "_runtime", "_s3", "_sagemaker"):
            self.__dict__.pop(name, None)

    def prepare(self) -> None:
        """The bucket and the role of all endpoints."""
        self._s3.create_bucket(Bucket=BUCKET)
        trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
        self.client("iam").create_role(RoleName="browser", AssumeRolePolicyDocument=policy)

    def put(
        self,
        endpoint: str,
        name: str,
        *,
        number: int = 0,
        ballast_mb: int = 0,
        gate: str = "",
        example: str = '{"number": 2}',
    ) -> Path:
        """Upload the package of a model that adds `number`, with an example's body; returns its archive."""
        code = HANDLER.format(number=number, ballast_mb=ballast_mb, gate=gate)
        return self._put(endpoint, name, code, ballast_mb, example)

    def put_broken(self, endpoint: str, name: str) -> None:
        """Upload the package of a model that can't be loaded."""
        self._put(endpoint, name, BROKEN, 0, '{"number": 2}')

    def _put(self, endpoint: str, name: str, code: str, memory_mb: int, example: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(code)
        packages.write_properties(folder, {"engine": "Python", "required_memory_mb": 10 + memory_mb})
        packages.write_examples(folder, [Example("two", example, None)])
        archive = self.folder / f"{name}.tar.gz"
        packages.build(folder, archive)
        self._s3.upload_file(str(archive), BUCKET, f"{endpoint}/{name}.tar.gz")
        return archive

    def put_copies(self, endpoint: str, archive: Path, names: list[str]) -> None:
        """The same package under many names, at once: into the folder where the platform keeps its objects."""
        folder = self.running.home / "objects" / BUCKET / endpoint
        folder.mkdir(exist_ok=True)
        for name in names:
            shutil.copy(archive, folder / f"{name}.tar.gz")

    def deploy(self, endpoint: str, instances: int = 1) -> None:
        """An endpoint of the packages that were put for it."""
        container = {"Image": IMAGE, "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/{endpoint}/"}
        self._sagemaker.create_model(ModelName=endpoint, ExecutionRoleArn=ROLE, PrimaryContainer=container)
        variant = {"VariantName": "AllTraffic", "ModelName": endpoint, "InstanceType": "ml.m5.large"}
        self._sagemaker.create_endpoint_config(
            EndpointConfigName=endpoint, ProductionVariants=[{**variant, "InitialInstanceCount": instances}]
        )
        self._sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=endpoint)
        waiter = self._sagemaker.get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=endpoint, WaiterConfig={"Delay": 1, "MaxAttempts": 60})

    def delete(self, endpoint: str) -> None:
        self._sagemaker.delete_endpoint(EndpointName=endpoint)
        waiter = self._sagemaker.get_waiter("endpoint_deleted")
        waiter.wait(EndpointName=endpoint, WaiterConfig={"Delay": 1, "MaxAttempts": 60})

    def call(self, endpoint: str, name: str, number: int = 1) -> int:
        answer = self._runtime.invoke_endpoint(
            EndpointName=endpoint,
            TargetModel=f"{name}.tar.gz",
            ContentType="application/json",
            Body=json.dumps({"number": number}),
        )
        return int(json.load(answer["Body"])["sum"])


def settings_of(home: Path, memory_mb: int) -> Settings:
    return Settings(home=home, instance_memory_mb=memory_mb)


@contextmanager
def scene_in(folder: Path, memory_mb: int = 512) -> Iterator[Scene]:
    """A platform with its home in this folder and instances of so much memory; down at the end."""
    home = folder / "home"
    try:
        scene = Scene(launch.up(settings_of(home, memory_mb)), folder / "packages")
        scene.prepare()
        yield scene
        scene.close()
    finally:
        launch.down(home)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium on PATH, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, url: str, *, scheme: Any = "light", width: int = 1280, height: int = 860) -> Page:
    """The live page in a window of its own, once it is live."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(url)
    page.get_by_text("Live", exact=True).wait_for()
    return page
