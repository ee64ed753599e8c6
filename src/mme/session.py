"""Decides where a run's AWS calls go: to the local platform, or, when it is named, to AWS."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from mme.images import image_uri as image_uri
from mme.platform import launch
from mme.progress import clients
from mme.settings import Settings

# Where SageMaker tells a notebook instance or Studio what it is; the SageMaker SDK looks there too.
SAGEMAKER_METADATA = Path("/opt/ml/metadata/resource-metadata.json")

TRUST_SAGEMAKER = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


SIGN_IN = "docs/aws.md, steps 1 and 2, say how"


class SessionError(Exception):
    """The chosen backend lacks something that the run needs; the message names it and the way to get it."""


def environment(running: launch.Running) -> dict[str, str]:
    """The variables that turn any AWS client to the local platform, and keep it from ever finding AWS.

    The files of profiles and the instance metadata service are switched off, so that no real credentials are read.
    """
    return {
        "AWS_ENDPOINT_URL": running.url,
        "AWS_ACCESS_KEY_ID": running.access_key,
        "AWS_SECRET_ACCESS_KEY": running.secret_key,
        "AWS_REGION": running.region,
        "AWS_DEFAULT_REGION": running.region,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def connect(settings: Settings) -> boto3.Session:
    """A boto3 session for the chosen backend.

    On `local`, starts the platform if it does not run, and sets this process's AWS variables to it, so that the
    SageMaker SDK and every plain `boto3.client` reach it too, and nothing here can reach AWS. On `aws`, the user's own
    AWS set-up counts (profile, SSO, the role of a SageMaker notebook), with the region of the settings.
    Raises SessionError where AWS is asked for in a process that was turned to the local platform, or by a profile that
    isn't there.
    """
    if settings.backend == "aws":
        if os.environ.get("AWS_CONFIG_FILE") == os.devnull:
            raise SessionError(
                "this process is connected to the local platform; restart the kernel, or open a new shell, to use AWS"
            )
        os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = settings.region
    else:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                del os.environ[name]
        os.environ.update(environment(launch.up(settings)))
    try:
        boto3.setup_default_session(region_name=settings.region)
        connected = boto3.Session(region_name=settings.region)
    except BotoCoreError as error:
        raise SessionError(f"{error}; `aws configure list-profiles` lists the profiles there are") from error
    clients.follow(connected)
    return connected


def said(error: Exception) -> str:
    """What an error of AWS says, with the way out where nobody has signed in."""
    return f"{error}; {SIGN_IN}" if isinstance(error, NoCredentialsError) else str(error)


def tags(settings: Settings) -> list[dict[str, str]]:
    """The settings' tags as boto3 takes them: project, run, owner, expiry. `mme clean` finds things by them."""
    return [{"Key": key, "Value": value} for key, value in settings.tags.items()]


def bucket_name(settings: Settings, boto: boto3.Session) -> str:
    """The name of the bucket that holds the packages, there or not.

    It has "sagemaker" in it, since roles with AWS's policy AmazonSageMakerFullAccess read such buckets and no others.
    """
    if settings.bucket:
        return settings.bucket
    account = boto.client("sts").get_caller_identity()["Account"]
    return f"sagemaker-{settings.project}-{settings.region}-{account}"


def bucket(settings: Settings) -> str:
    """The name of the bucket that holds the packages, which is there afterwards.

    One that nobody has yet is created with our tags, closed to the public, and answering over TLS alone. This is where
    a run begins to write, so on `aws` it raises SessionError until `settings.yes` says that it may.
    """
    boto = connect(settings)
    if settings.backend == "aws" and not settings.yes:
        raise SessionError(
            "nothing has been created on AWS yet; read in 00_setup.ipynb what will be, then set yes=True in "
            "config.ipynb, or MME_YES=1"
        )
    name, s3 = bucket_name(settings, boto), boto.client("s3")
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise SessionError(
                f"bucket {name!r} cannot be used: {error}; name another one in config.ipynb as `bucket`"
            ) from error
        # us-east-1 is the one region that S3 refuses to be told.
        place = {"CreateBucketConfiguration": {"LocationConstraint": settings.region}}
        s3.create_bucket(Bucket=name, **({} if settings.region == "us-east-1" else place))
    else:
        return name
    s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": tags(settings)})
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
    partition = boto.get_partition_for_region(settings.region)
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps(tls_only(name, partition)))
    return name


def tls_only(bucket: str, partition: str = "aws") -> dict[str, Any]:
    """The bucket policy that refuses whatever doesn't come over TLS."""
    arn = f"arn:{partition}:s3:::{bucket}"
    refused = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [arn, f"{arn}/*"]}
    return {
        "Version": "2012-10-17",
        "Statement": [{"Sid": "TlsOnly", **refused, "Condition": {"Bool": {"aws:SecureTransport": "false"}}}],
    }


def reading_packages(settings: Settings, bucket: str, partition: str = "aws") -> dict[str, Any]:
    """What the execution role needs of S3: to read the packages and to list the bucket."""
    arn = f"arn:{partition}:s3:::{bucket}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{arn}/{settings.prefix}/*"},
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": arn},
        ],
    }


def role_arn(settings: Settings) -> str:
    """The ARN of the role that SageMaker takes on to run the endpoint.

    On `local` it is created when missing. On `aws` it is the one that `settings.role` names, or, inside SageMaker, the
    notebook's own; raises SessionError without one, since nobody should get a role with rights in their account by
    running a notebook.
    """
    if settings.backend == "aws":
        return settings.role or _notebooks_role(settings)
    boto = connect(settings)
    iam = boto.client("iam")
    name = f"{settings.project}-role"
    try:
        arn: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    except iam.exceptions.NoSuchEntityException:
        trust = json.dumps(TRUST_SAGEMAKER)
        created = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust, Tags=tags(settings))
        arn = created["Role"]["Arn"]
        policy = json.dumps(reading_packages(settings, bucket_name(settings, boto)))
        iam.put_role_policy(RoleName=name, PolicyName="reading-packages", PolicyDocument=policy)
    return arn


def _notebooks_role(settings: Settings) -> str:
    if not SAGEMAKER_METADATA.exists():
        raise SessionError(
            "no execution role is named; set role in config.ipynb, or MME_ROLE, to the ARN of one that SageMaker may "
            "assume (docs/aws.md, step 3, makes one)"
        )
    from sagemaker.core.helper.session_helper import Session, get_execution_role

    role: str = get_execution_role(Session(boto_session=connect(settings)))
    return role


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
