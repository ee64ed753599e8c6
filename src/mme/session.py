"""Decides where a run's AWS calls go: to the local platform, or, when it is named, to AWS."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

import boto3
from botocore.exceptions import ClientError

from mme.platform import launch
from mme.settings import Settings

IMAGE_ACCOUNT = "763104351884"  # AWS's own account for Deep Learning Containers in most regions

TRUST_SAGEMAKER = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


class SessionError(Exception):
    """The chosen backend lacks something that the run needs; the message names it and the way to get it."""


def environment(running: launch.Running, region: str) -> dict[str, str]:
    """The variables that turn any AWS client to the local platform, and keep it from ever finding AWS.

    The files of profiles and the instance metadata service are switched off, so that no real credentials are read.
    """
    return {
        "AWS_ENDPOINT_URL": running.url,
        "AWS_ACCESS_KEY_ID": running.access_key,
        "AWS_SECRET_ACCESS_KEY": running.secret_key,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def connect(settings: Settings) -> boto3.Session:
    """A boto3 session for the chosen backend.

    On `local`, starts the platform if it does not run, and sets this process's AWS variables to it, so that the
    SageMaker SDK and every plain `boto3.client` reach it too, and nothing here can reach AWS. On `aws`, the user's own
    AWS set-up counts. Raises SessionError where AWS is asked for in a process that was turned to the local platform.
    """
    if settings.backend == "aws":
        if os.environ.get("AWS_CONFIG_FILE") == os.devnull:
            raise SessionError("this process is connected to the local platform; restart the kernel to use AWS")
        return boto3.Session(region_name=settings.region)
    for name in list(os.environ):
        if name.startswith("AWS_"):
            del os.environ[name]
    os.environ.update(environment(launch.up(settings), settings.region))
    boto3.setup_default_session(region_name=settings.region)
    return boto3.Session(region_name=settings.region)


def bucket(settings: Settings) -> str:
    """The name of the bucket that holds the packages, which is there afterwards: created when nobody has it yet."""
    boto = connect(settings)
    account = boto.client("sts").get_caller_identity()["Account"]
    name = settings.bucket or f"{settings.project}-{settings.region}-{account}"
    s3 = boto.client("s3")
    try:
        s3.head_bucket(Bucket=name, ExpectedBucketOwner=account)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise SessionError(
                f"bucket {name!r} cannot be used: {error}; name another one in config.ipynb as `bucket`"
            ) from error
        # us-east-1 is the one region that S3 refuses to be told.
        place = {"CreateBucketConfiguration": {"LocationConstraint": settings.region}}
        s3.create_bucket(Bucket=name, **({} if settings.region == "us-east-1" else place))
    return name


def role_arn(settings: Settings) -> str:
    """The ARN of the role that SageMaker takes on to run the endpoint.

    On `local` it is created when missing. On `aws` it is the one that `settings.role` names; raises SessionError
    without one, since nobody should get a role with rights in their account by running a notebook.
    """
    if settings.backend == "aws":
        if not settings.role:
            raise SessionError("no execution role is named; set MME_ROLE to the ARN of one that SageMaker may assume")
        return settings.role
    iam = connect(settings).client("iam")
    name = f"{settings.project}-role"
    try:
        arn: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    except iam.exceptions.NoSuchEntityException:
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST_SAGEMAKER))["Role"]["Arn"]
    return arn


def image_uri(settings: Settings) -> str:
    """The DJL Serving image of the endpoint's container. Locally the embedded server stands in for it."""
    registry = f"{IMAGE_ACCOUNT}.dkr.ecr.{settings.region}.amazonaws.com"
    return f"{registry}/djl-inference:{settings.image_version}"


def running(settings: Settings) -> launch.Running:
    """The platform of this home; SessionError when it doesn't run."""
    found = launch.find(settings.home)
    if found is None:
        raise SessionError(f"no platform runs in {settings.home}; `mme up` starts it")
    return found


def platform_status(settings: Settings) -> dict[str, Any] | None:
    """What the local platform runs at this moment: endpoints, instances, models, workers. None on AWS.

    Raises SessionError when the platform of this home does not run.
    """
    if settings.backend == "aws":
        return None
    with urllib.request.urlopen(f"{running(settings).url}/_mme/status", timeout=10) as answer:
        status: dict[str, Any] = json.load(answer)
    return status
