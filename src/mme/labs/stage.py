"""Decides where a lab plays: on a platform of its own with one endpoint, of which nothing is left at the end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from botocore.config import Config
from botocore.exceptions import ClientError

from mme import session
from mme.platform import launch
from mme.platform.config import MARK
from mme.processes import marked
from mme.settings import Settings

VARIANT = "AllTraffic"
_WAIT = {"Delay": 0.1, "MaxAttempts": 1200}
_CALL_TIMEOUT_S = 70  # a call may take 60


class LabError(Exception):
    """A lab can't run as it is asked to; the message says why, and what to do."""


def own(settings: Settings, lab: str, **changes: Any) -> Settings:
    """The settings with `changes`, whatever the environment says, for a platform that belongs to `lab` alone.

    Its home is under that of `settings`; what an earlier run left there is stopped and removed. Raises LabError on AWS,
    since labs change the platform itself and look at this machine's processes; ValueError for a change that isn't a
    setting.
    """
    if settings.backend != "local":
        raise LabError(
            f"the lab {lab} measures the local platform: set backend='local' in config.ipynb, or MME_BACKEND"
        )
    if unknown := sorted(changes.keys() - type(settings).model_fields.keys()):
        raise ValueError(f"{unknown[0]} is not one of the settings")
    found = settings.model_copy(update={**changes, "home": settings.home / "labs" / lab})
    strike(found)
    return found


def deploy(
    lab: Settings, *, instances: int = 1, is_cached: bool = True, environment: Mapping[str, str] | None = None
) -> None:
    """Put an endpoint in front of the packages under the lab's prefix, and return when it is in service.

    One of before is removed first. `is_cached` is the model's ModelCacheSetting (AWS: MultiModelConfig), `environment`
    what its containers have in theirs.
    """
    remove(lab)
    boto, name = session.connect(lab), lab.endpoint_name
    sagemaker = boto.client("sagemaker")
    container = {
        "Image": session.image_uri(lab),
        "Mode": "MultiModel",
        "ModelDataUrl": f"s3://{session.bucket(lab)}/{lab.prefix}/",
        "MultiModelConfig": {"ModelCacheSetting": "Enabled" if is_cached else "Disabled"},
        "Environment": dict(environment or {}),
    }
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=session.role_arn(lab), PrimaryContainer=container)
    variant = {"VariantName": VARIANT, "ModelName": name, "InstanceType": lab.instance_type}
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{**variant, "InitialInstanceCount": instances}]
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=_WAIT)


def runtime(lab: Settings, *, connections: int = 1) -> Any:
    """A client for calls, `connections` of them at once, which repeats none: what fails is seen to fail."""
    config = Config(read_timeout=_CALL_TIMEOUT_S, max_pool_connections=connections, retries={"total_max_attempts": 1})
    return session.connect(lab).client("sagemaker-runtime", config=config)


def instances(lab: Settings) -> list[dict[str, Any]]:
    """The endpoint's instances with their models and workers, as `mme status` shows them."""
    endpoints = (session.platform_status(lab) or {"endpoints": []})["endpoints"]
    return [one for endpoint in endpoints for variant in endpoint["variants"] for one in variant["instances"]]


def remove(lab: Settings) -> None:
    """Delete endpoint, configuration and model, as far as they are there, and wait until they are gone."""
    sagemaker, name = session.connect(lab).client("sagemaker"), lab.endpoint_name
    for delete, member in (
        (sagemaker.delete_endpoint, "EndpointName"),
        (sagemaker.delete_endpoint_config, "EndpointConfigName"),
        (sagemaker.delete_model, "ModelName"),
    ):
        try:
            delete(**{member: name})
        except ClientError as error:
            if "Could not find" not in str(error):
                raise
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=_WAIT)


def strike(lab: Settings) -> None:
    """Stop the lab's platform and everything it started, and remove all that it kept."""
    launch.down(lab.home)
    if lab.home.exists():
        shutil.rmtree(lab.home)


def left(lab: Settings) -> list[str]:
    """What is still there of a lab, in words; nothing after `strike`."""
    processes = [f"process {process.pid}" for process in marked(MARK, str(lab.home))]
    return processes + ([str(lab.home)] if lab.home.exists() else [])
