"""Decides how a package comes onto an endpoint and is called there: what has to be created first, and under which name.

A plan only reads; carrying it out writes. An endpoint that is there is taken as it is, with its own place in S3.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, WaiterError

from mme import packages, session
from mme.near import hint
from mme.settings import Settings

SUFFIX = ".tar.gz"
_WAIT = {"Delay": 1, "MaxAttempts": 1800}
_READ_TIMEOUT_S = 70  # a call may take 60 on SageMaker
_READY_TIMEOUT_S = 600  # a large model's load, while which each call is answered with ModelNotReadyException


class DeployError(Exception):
    """A package can't be deployed or called as asked; the message says why, and the way out."""


@dataclass(frozen=True)
class Plan:
    """What putting a package onto an endpoint takes: where its archive goes, and what is created first."""

    archive: Path
    endpoint: str
    target_model: str
    data_url: str
    """The endpoint's place in S3, which ends in "/"."""
    missing: tuple[str, ...]
    """Of model, endpoint configuration and endpoint, those that aren't there yet."""
    replaces: bool
    """Whether another package of this name is there already."""

    @property
    def uri(self) -> str:
        return self.data_url + self.target_model


@dataclass(frozen=True)
class Answer:
    """What a model answered, and how many milliseconds it took."""

    body: bytes
    content_type: str
    took_ms: float


def plan(settings: Settings, archive: Path, endpoint: str | None = None, name: str | None = None) -> Plan:
    """What `carry_out` would do for an archive, on the project's endpoint or another one. Only reads.

    `name` is the target model's in place of the archive's. Raises DeployError for an endpoint that can't take it,
    PackageError for an archive that isn't sound, SessionError as `session.connect` does.
    """
    packages.names(archive)  # which reads it to its end
    target = target_model(name or archive.name)
    boto = session.connect(settings)
    with _told("the endpoint can't be looked at"):
        endpoint = endpoint or settings.endpoint_name
        data_url, missing = _shelf(settings, boto.client("sagemaker"), endpoint)
        if missing and settings.project not in endpoint:
            raise DeployError(
                f"there is no endpoint {endpoint}, and one that is made has the project's name in its own, by which "
                f"{_command(settings, 'clean')} finds it: --endpoint {settings.project}-{endpoint}, or another "
                "MME_PROJECT"
            )
        if data_url is None:
            place = "" if endpoint == settings.endpoint_name else f"{endpoint}/"
            data_url = f"s3://{session.bucket_name(settings, boto)}/{settings.prefix}/{place}"
        replaces = _replaces(boto, archive, data_url + target)
    return Plan(archive, endpoint, target, data_url, missing, replaces)


def carry_out(settings: Settings, plan: Plan) -> None:
    """Upload the archive, create what is missing, and return when the endpoint is in service.

    On `aws` raises SessionError until `settings.yes`; DeployError for what AWS refuses, and for an endpoint that fails.
    """
    boto = session.connect(settings)
    sagemaker = boto.client("sagemaker")
    with _told(f"{plan.archive.name} can't be deployed"):
        bucket, key = _parts(plan.uri)
        if plan.missing:
            session.bucket(settings)
        boto.client("s3").upload_file(str(plan.archive), bucket, key)
        for kind in plan.missing:
            _CREATE[kind](sagemaker, settings, plan)
        try:
            sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=plan.endpoint, WaiterConfig=_WAIT)
        except WaiterError:
            described = sagemaker.describe_endpoint(EndpointName=plan.endpoint)
            raise DeployError(
                f"{plan.endpoint} is {described['EndpointStatus']}: {described.get('FailureReason', 'no reason given')}"
                f"; {_command(settings, 'logs', plan.endpoint)} shows what its containers said, and "
                f"{_command(settings, 'clean')} removes it"
            ) from None


def target_model(name: str) -> str:
    """The name that calls give a package by: its archive's."""
    return name if name.endswith(SUFFIX) else name + SUFFIX


def invoke(
    settings: Settings,
    name: str,
    body: bytes,
    content_type: str = "application/json",
    accept: str = "application/json",
    endpoint: str | None = None,
) -> Answer:
    """Call a model, by its package's name, on the project's endpoint or another one.

    Calls again while the model is still being loaded. Raises DeployError with the model's own words for an error of
    the model's, and with the names that there are for an unknown model or endpoint.
    """
    endpoint, target = endpoint or settings.endpoint_name, target_model(name)
    boto = session.connect(settings)
    # A call that failed isn't repeated: its model may have done something.
    config = Config(read_timeout=_READ_TIMEOUT_S, retries={"total_max_attempts": 1})
    runtime = boto.client("sagemaker-runtime", config=config)
    request = {"EndpointName": endpoint, "TargetModel": target, "ContentType": content_type, "Accept": accept}
    deadline = time.monotonic() + _READY_TIMEOUT_S
    with _told(f"{target} can't be called"):
        while True:
            began = time.perf_counter()
            try:
                answer = runtime.invoke_endpoint(**request, Body=body)
                took_ms = 1000 * (time.perf_counter() - began)
                return Answer(answer["Body"].read(), answer.get("ContentType", ""), took_ms)
            except runtime.exceptions.ModelNotReadyException:
                if time.monotonic() > deadline:
                    raise
            except runtime.exceptions.ModelError as error:
                said = error.response.get("OriginalMessage") or str(error)
                status = error.response.get("OriginalStatusCode", "")
                raise DeployError(f"{target} answered {status}: {said.strip()}") from None
            except ClientError as error:
                if error.response["Error"]["Code"] == "ValidationError":
                    _explain(settings, boto, endpoint, target)
                raise


def example_request(archive: Path) -> str | None:
    """The JSON of a package's first golden call, in one line; None where it has none in JSON.

    Raises PackageRefused when its examples can't be read, ValueError for one that says it is JSON and isn't.
    """
    for example in packages.examples(archive):
        if example.content_type == "application/json":
            return json.dumps(json.loads(example.body), ensure_ascii=False)
    return None


def _command(settings: Settings, *words: str) -> str:
    """A command of `mme` that acts where these settings do."""
    options = ["--backend", "aws"] if settings.backend == "aws" else []
    return f"`{shlex.join(['mme', *words, *options])}`"


def _shelf(settings: Settings, sagemaker: Any, endpoint: str) -> tuple[str | None, tuple[str, ...]]:
    """Where an endpoint reads its packages, None if nothing says so yet, and what of it is missing."""
    there = _described(sagemaker.describe_endpoint, EndpointName=endpoint)
    if there and there["EndpointStatus"] in ("Failed", "Deleting"):
        raise DeployError(
            f"endpoint {endpoint} is {there['EndpointStatus']}: {there.get('FailureReason', 'it will soon be gone')}; "
            f"remove it with {_command(settings, 'clean')}, or take another by --endpoint"
        )
    config_name = there["EndpointConfigName"] if there else endpoint
    config = _described(sagemaker.describe_endpoint_config, EndpointConfigName=config_name)
    model_name = config["ProductionVariants"][0].get("ModelName", "") if config else endpoint
    model = _described(sagemaker.describe_model, ModelName=model_name) if model_name else None
    if there and model is None:
        raise DeployError(f"nobody knows where {endpoint} reads its packages: its model was deleted; take another one")
    kinds = {"model": model, "endpoint configuration": config, "endpoint": there}
    missing = tuple(kind for kind, found in kinds.items() if found is None)
    if model is None:
        return None, missing
    container = model.get("PrimaryContainer") or model["Containers"][0]
    if container.get("Mode") != "MultiModel":
        raise DeployError(f"endpoint {endpoint} serves a single model; take another one by --endpoint")
    return container["ModelDataUrl"], missing


def _described(describe: Callable[..., Any], **name: str) -> Any:
    try:
        return describe(**name)
    except ClientError as error:
        if "Could not find" in str(error):
            return None
        raise


def _replaces(boto: boto3.Session, archive: Path, uri: str) -> bool:
    """Whether another archive has this name; one that is equal, by S3's MD5 of small ones, changes nothing."""
    bucket, key = _parts(uri)
    try:
        there = boto.client("s3").head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NoSuchBucket"):
            return False
        raise
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return bool(there["ETag"].strip('"') != md5)


def _create_model(sagemaker: Any, settings: Settings, plan: Plan) -> None:
    container = {"Image": session.image_uri(settings), "Mode": "MultiModel", "ModelDataUrl": plan.data_url}
    sagemaker.create_model(
        ModelName=plan.endpoint,
        ExecutionRoleArn=session.role_arn(settings),
        PrimaryContainer=container,
        Tags=session.tags(settings),
    )


def _create_config(sagemaker: Any, settings: Settings, plan: Plan) -> None:
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": plan.endpoint,
        "InstanceType": settings.instance_type,
        "InitialInstanceCount": settings.instance_count,
        "InitialVariantWeight": 1.0,
    }
    sagemaker.create_endpoint_config(
        EndpointConfigName=plan.endpoint, ProductionVariants=[variant], Tags=session.tags(settings)
    )


def _create_endpoint(sagemaker: Any, settings: Settings, plan: Plan) -> None:
    sagemaker.create_endpoint(EndpointName=plan.endpoint, EndpointConfigName=plan.endpoint, Tags=session.tags(settings))


_CREATE = {"model": _create_model, "endpoint configuration": _create_config, "endpoint": _create_endpoint}


def _explain(settings: Settings, boto: boto3.Session, endpoint: str, target: str) -> None:
    """Raise DeployError with the names that there are, if the endpoint or the package is none of them."""
    sagemaker = boto.client("sagemaker")
    names = list(sagemaker.get_paginator("list_endpoints").paginate().search("Endpoints[].EndpointName"))
    if endpoint not in names:
        raise DeployError(f"there is no endpoint {endpoint}; {hint(endpoint, names)}")
    data_url, _ = _shelf(settings, sagemaker, endpoint)
    bucket, prefix = _parts(data_url or "")
    pages = boto.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [key.removeprefix(prefix) for key in pages.search("Contents[].Key") if key]
    if target not in keys:
        raise DeployError(f"{endpoint} has no package {target}; {hint(target, keys)}")


def _parts(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise DeployError(f"{what}: {session.said(error)}") from error
