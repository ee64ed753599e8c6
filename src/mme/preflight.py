"""Decides whether an account is ready for a run, what the run creates there, and what an hour of it costs.

Only reads are sent. The same checks are made on both backends; what only an account has, the local platform refuses by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from mme import images, session
from mme.platform import grants
from mme.platform.policy import Call, Effect, evaluate
from mme.progress import waiting
from mme.settings import Settings

Outcome = Literal["ok", "wrong", "not known", "not here"]
_REFUSED_LOCALLY = "UnsupportedOperation"


@dataclass(frozen=True)
class Check:
    """One thing that a run needs: what was found, and what to do where it is wrong or may not be looked at."""

    what: str
    outcome: Outcome
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Planned:
    """One thing that a run creates, and what AWS bills for it."""

    what: str
    name: str
    billed: str


@dataclass(frozen=True)
class _Account:
    """Whose account it is that is looked at, and the names that follow from it."""

    settings: Settings
    boto: boto3.Session
    identity: str
    bucket: str

    @property
    def partition(self) -> str:
        return str(self.boto.get_partition_for_region(self.settings.region))


def checks(settings: Settings) -> list[Check]:
    """All checks in order. Without an identity there is one, since nothing else can be asked.

    Raises SessionError as `session.connect` does.
    """
    boto = session.connect(settings)
    try:
        identity = boto.client("sts").get_caller_identity()["Arn"]
    except (BotoCoreError, ClientError) as error:
        cure = (
            "sign in: `aws sso login`, or `aws configure`, with AWS_PROFILE naming the profile; see docs/aws.md, step 1"
        )
        return [Check("identity", "wrong", str(error), cure)]
    account = _Account(settings, boto, identity, session.bucket_name(settings, boto))
    found: list[Check] = []
    with waiting("checking the account", len(_CHECKS)) as step:
        for what, ask in _CHECKS.items():
            step.say(f"checking the account, {what}")
            found += _asked(what, ask, account)
            step.advance(1)
    return found


def _asked(what: str, ask: Callable[[_Account], Iterator[Check]], account: _Account) -> Iterator[Check]:
    """A check's rows; a read that is forbidden, or that the local platform doesn't play, becomes a row that says so."""
    try:
        yield from ask(account)
    except ClientError as error:
        fault = error.response["Error"]
        if fault["Code"] == _REFUSED_LOCALLY:
            yield Check(what, "not here", fault["Message"])
        else:
            cure = f"let {account.identity} call {error.operation_name}, or look yourself; see docs/aws.md, step 2"
            yield Check(what, "not known", str(error), cure)
    except (session.SessionError, images.ImageError) as error:
        yield Check(what, "wrong", str(error))


def _identity(account: _Account) -> Iterator[Check]:
    yield Check("identity", "ok", account.identity)


def _region(account: _Account) -> Iterator[Check]:
    region = account.settings.region
    known = account.boto.get_available_regions("sagemaker", account.partition)
    if region in known:
        yield Check("region", "ok", region)
    else:
        yield Check("region", "wrong", f"SageMaker is not in {region!r}", f"choose one of {', '.join(known)}")


def _role(account: _Account) -> Iterator[Check]:
    """That the role is there, that SageMaker may assume it, and that its policies let it read the packages.

    The policies are evaluated here, as `mme.platform.policy` does it, not by iam:SimulatePrincipalPolicy, which a user
    is seldom allowed to call. What a bucket policy or a service control policy adds isn't seen.
    """
    settings, iam = account.settings, account.boto.client("iam")
    is_local = settings.backend == "local"
    arn = f"{settings.project}-role" if is_local else session.role_arn(settings)
    name = arn.rpartition("/")[2]
    try:
        role = iam.get_role(RoleName=name)["Role"]
    except iam.exceptions.NoSuchEntityException:
        if is_local:
            yield Check("role", "ok", f"{name} will be created")
        else:
            yield Check(
                "role", "wrong", f"there is no role {arn}", "name another as `role`; docs/aws.md, step 3, makes one"
            )
        return
    if _trusts_sagemaker(role["AssumeRolePolicyDocument"]):
        yield Check("role", "ok", f"{role['Arn']}, which SageMaker may assume")
    else:
        cure = "add the trust policy of docs/aws.md, step 3: principal sagemaker.amazonaws.com, action sts:AssumeRole"
        yield Check("role", "wrong", f"{role['Arn']} does not trust sagemaker.amazonaws.com", cure)
    yield from _asked("packages", lambda account: _reading(account, iam, role), account)


def _trusts_sagemaker(trust: dict[str, Any]) -> bool:
    for statement in _listed(trust.get("Statement", [])):
        principal = statement.get("Principal", {})
        services = _listed(principal.get("Service", [])) if isinstance(principal, dict) else []
        if statement.get("Effect") == "Allow" and "sagemaker.amazonaws.com" in services:
            return True
    return False


def _reading(account: _Account, iam: Any, role: dict[str, Any]) -> Iterator[Check]:
    bucket = f"arn:{account.partition}:s3:::{account.bucket}"
    prefix = account.settings.prefix
    wanted = {"s3:ListBucket": bucket, "s3:GetObject": f"{bucket}/{prefix}/package.tar.gz"}
    layers = [grants.policies(iam, "role", role["RoleName"]), grants.boundary(iam, role)]
    effects = {
        action: {evaluate(layer, Call(action, resource)).effect for layer in layers if layer is not None}
        for action, resource in wanted.items()
    }
    refused = [action for action, found in effects.items() if found & {Effect.NOT_ALLOWED, Effect.DENIED}]
    unclear = [action for action, found in effects.items() if Effect.UNDECIDED in found and action not in refused]
    place = f"s3://{account.bucket}/{prefix}/"
    cure = f"give it the policy of docs/aws.md, step 3, for the bucket {account.bucket}"
    if refused:
        yield Check("packages", "wrong", f"the role has no {' and no '.join(refused)} for {place}", cure)
    elif unclear:
        yield Check("packages", "not known", f"{' and '.join(unclear)} for {place} hang on a condition", cure)
    else:
        yield Check("packages", "ok", f"the role may read {place}")


def _bucket(account: _Account) -> Iterator[Check]:
    s3, name = account.boto.client("s3"), account.bucket
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:
            yield Check("bucket", "ok", f"{name} will be created, closed to the public, answering over TLS alone")
        elif status in (301, 400):
            yield Check("bucket", "wrong", f"{name} is in another region", "name another `bucket`, or its `region`")
        else:
            yield Check("bucket", "wrong", f"{name} may not be used: {error}", "name another one as `bucket`")
        return
    region = s3.get_bucket_location(Bucket=name)["LocationConstraint"] or "us-east-1"
    if region == account.settings.region:
        yield Check("bucket", "ok", f"{name}, in {region}")
    else:
        yield Check("bucket", "wrong", f"{name} is in {region}", "name another `bucket`, or its `region`")


def _quota(account: _Account) -> Iterator[Check]:
    settings = account.settings
    name = f"{settings.instance_type} for endpoint usage"
    pages = account.boto.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    values = [quota["Value"] for page in pages for quota in page["Quotas"] if quota["QuotaName"] == name]
    if values and values[0] >= settings.instance_count:
        yield Check("quota", "ok", f"{values[0]:.0f} {name}, of which {settings.instance_count} must be free")
        return
    found = f"{values[0]:.0f} {name}, and the run needs {settings.instance_count}" if values else f"no quota {name!r}"
    cure = "ask for more under Service Quotas, Amazon SageMaker, or choose another `instance_type`; docs/aws.md, step 4"
    yield Check("quota", "wrong", found, cure)


def _image(account: _Account) -> Iterator[Check]:
    settings, uri = account.settings, images.image_uri(account.settings)
    ecr = account.boto.client("ecr")
    answer = ecr.batch_get_image(
        registryId=images.account(settings),
        repositoryName=images.REPOSITORY,
        imageIds=[{"imageTag": settings.image_version}],
    )
    if answer["images"]:
        yield Check("image", "ok", uri)
    else:
        yield Check("image", "wrong", f"there is no {uri}", "choose another `image_version` or `region`")


def _egress(account: _Account) -> Iterator[Check]:
    """Nobody can ask this from outside; it is the user's word, and decides which kind of package can be served."""
    if account.settings.container_egress:
        yield Check("egress", "ok", "containers reach a package index: a requirements.txt is installed in them")
    else:
        yield Check("egress", "ok", "containers are taken to reach nothing: packages bring all that they import")


_CHECKS: dict[str, Callable[[_Account], Iterator[Check]]] = {
    "identity": _identity,
    "region": _region,
    "role": _role,
    "bucket": _bucket,
    "quota": _quota,
    "image": _image,
    "egress": _egress,
}


def plan(settings: Settings) -> list[Planned]:
    """What the notebooks create, in order. Sends one read, for the account in the bucket's name."""
    bucket = session.bucket_name(settings, session.connect(settings))
    endpoint = settings.endpoint_name
    return [
        Planned("bucket", bucket, "nothing while it is empty"),
        Planned("model packages", f"s3://{bucket}/{settings.prefix}/", "by size and month, and by request"),
        Planned("model", endpoint, "nothing"),
        Planned("endpoint configuration", endpoint, "nothing"),
        Planned("endpoint", endpoint, cost(settings)),
        Planned("log group", f"/aws/sagemaker/Endpoints/{endpoint}", "by size"),
    ]


def cost(settings: Settings) -> str:
    """What the endpoint costs for each hour that it exists, as far as the settings say what an instance costs."""
    count, price = settings.instance_count, settings.instance_price_per_hour
    if price is None:
        return f"{count} x the price of {settings.instance_type} per hour"
    return f"{count} x {price:g} = {count * price:g} per hour"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
