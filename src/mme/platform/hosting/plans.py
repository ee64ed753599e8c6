"""Decides what hosting is told to run, and how it says that it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class VariantPlan:
    """One production variant: the model it serves, and on how many instances of which type.

    `model_data_url` is `s3://bucket/prefix/` of a multi-model variant, `s3://bucket/key.tar.gz` of a single model.
    """

    name: str
    model_name: str
    image: str
    model_data_url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    mode: Literal["MultiModel", "SingleModel"] = "MultiModel"
    model_cache: Literal["Enabled", "Disabled"] = "Enabled"
    instance_type: str = "ml.m5.large"
    instance_count: int = 1
    weight: float = 1.0

    @property
    def is_multi_model(self) -> bool:
        return self.mode == "MultiModel"


@dataclass(frozen=True)
class EndpointPlan:
    name: str
    arn: str
    variants: tuple[VariantPlan, ...]


class HostingFault(Exception):
    """Something between a call and its model is at fault; the runtime says which of AWS's errors that is.

    DeploymentFailed    an endpoint's instances can't be brought up: the FailureReason
    PackageMissing      S3 has no such object
    PackageUnusable     what S3 has is no package
    LoadRefused         the container answered the load with an error
    LoadTimedOut        the load took longer than it may
    ContainerLost       the container went away during the load
    StoreUnavailable    S3 does not answer, or not with what it promised
    DiskFull            the package does not fit on the instance's disk
    """


class DeploymentFailed(HostingFault):
    """str() is AWS's FailureReason."""


class PackageMissing(HostingFault):
    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(f"no object {key!r} in bucket {bucket!r}")
        self.bucket = bucket
        self.key = key


class PackageUnusable(HostingFault):
    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url} is not a model package: {reason}")
        self.url = url
        self.reason = reason


class LoadRefused(HostingFault):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the container answered {status}: {message}")
        self.status = status
        self.message = message


class LoadTimedOut(HostingFault):
    """The model was not loaded within the time a load may take; the container was told to drop it."""


class ContainerLost(HostingFault):
    """The container went away while the model was being loaded; a new one is started."""


class StoreUnavailable(HostingFault):
    """S3 does not answer, or sends other bytes than it promised."""


class DiskFull(HostingFault):
    """The package does not fit on the instance's disk beside the models in use."""
