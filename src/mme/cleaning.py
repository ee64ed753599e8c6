"""Decides what a project left behind in an account, and in which order it goes: what costs money first.

Things are found by the tags that every creation carries, kind by kind through each service's own list: what was
created a moment ago is in it, which the Resource Groups Tagging API doesn't promise. What can't carry tags is found by
its name. Things of a CloudFormation stack are left to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from mme import session
from mme.progress import waiting
from mme.settings import EXPIRY_FORMAT, Settings

SCALED = "sagemaker:variant:DesiredInstanceCount"  # what Application Auto Scaling scales of an endpoint
_LOGS = "/aws/sagemaker/Endpoints/"
_STACK = "aws:cloudformation:stack-name"
_MISSING = {"NoSuchEntity", "NoSuchBucket", "ResourceNotFound", "ResourceNotFoundException", "ObjectNotFoundException"}
_ENDPOINT_WAIT = {"Delay": 2, "MaxAttempts": 450}


class CleaningError(Exception):
    """Something can't be deleted; the message names it, and what to do."""


@dataclass(frozen=True)
class Thing:
    """One thing that is there: what it is, by which name, and from when on it counts as left behind."""

    kind: str
    name: str
    expires: datetime

    @property
    def is_expired(self) -> bool:
        return self.expires <= datetime.now(UTC)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def find(settings: Settings) -> list[Thing]:
    """Everything of the project in the account and region, in the order in which it is to be deleted. Only reads.

    Raises SessionError as `session.connect` does, CleaningError where the account can't be looked at.
    """
    account = _Account(settings, session.connect(settings))
    try:
        with waiting(f"looking for what {settings.project} left"):
            endpoints = list(account.hosted("endpoint"))
            return [
                *account.scaling(endpoints),
                *endpoints,
                *account.hosted("endpoint-config"),
                *account.hosted("model"),
                *account.alarms(),
                *account.log_groups(endpoints),
                *account.shelf(),
                *account.roles(),
            ]
    except (BotoCoreError, ClientError) as error:
        raise CleaningError(f"the account can't be looked at: {error}; {session.SIGN_IN}") from error


def delete(settings: Settings, things: Iterable[Thing]) -> Iterator[Thing]:
    """Delete things in the given order; each is yielded when it is gone. What has gone already is no error.

    Broken off at any moment, it can be done again: what is left is found again. Raises CleaningError for what AWS
    refuses to delete.
    """
    boto = session.connect(settings)
    for thing in things:
        try:
            with waiting(f"deleting {thing}"):
                _DELETE[thing.kind](boto, thing.name)
        except ClientError as error:
            if not _is_missing(error):
                raise CleaningError(f"{thing} can't be deleted: {error}; see to that and run it again") from error
        yield thing


class _Account:
    def __init__(self, settings: Settings, boto: boto3.Session) -> None:
        self._boto = boto
        self._settings = settings
        self._project = settings.project
        self._kept = timedelta(days=settings.keep_days)

    def hosted(self, kind: str) -> Iterator[Thing]:
        """Endpoints, their configurations, models: by the tags of each whose name has the project's in it."""
        sagemaker = self._boto.client("sagemaker")
        word = "".join(part.title() for part in kind.split("-"))
        pages = sagemaker.get_paginator(f"list_{kind.replace('-', '_')}s").paginate(NameContains=self._project)
        for one in pages.search(f"{word}s[]"):
            pages_of_tags = sagemaker.get_paginator("list_tags").paginate(ResourceArn=one[f"{word}Arn"])
            yield from self._ours(kind, one[f"{word}Name"], list(pages_of_tags.search("Tags[]")))

    def scaling(self, endpoints: list[Thing]) -> Iterator[Thing]:
        """Scalable targets, which go with their endpoint."""
        expiry = {endpoint.name: endpoint.expires for endpoint in endpoints}
        scaling = self._boto.client("application-autoscaling")
        pages = scaling.get_paginator("describe_scalable_targets").paginate(ServiceNamespace="sagemaker")
        for target in pages.search("ScalableTargets[]"):
            endpoint = target["ResourceId"].split("/")[1]
            if endpoint in expiry and target["ScalableDimension"] == SCALED:
                yield Thing("scaling", target["ResourceId"], expiry[endpoint])

    def alarms(self) -> Iterator[Thing]:
        cloudwatch = self._boto.client("cloudwatch")
        pages = cloudwatch.get_paginator("describe_alarms").paginate(AlarmNamePrefix=self._project)
        for alarm in pages.search("MetricAlarms[]"):
            tags = cloudwatch.list_tags_for_resource(ResourceARN=alarm["AlarmArn"])["Tags"]
            yield from self._ours("alarm", alarm["AlarmName"], tags)

    def roles(self) -> Iterator[Thing]:
        iam = self._boto.client("iam")
        for role in iam.get_paginator("list_roles").paginate().search("Roles[]"):
            if role["RoleName"].startswith(self._project):
                tags = iam.list_role_tags(RoleName=role["RoleName"])["Tags"]
                yield from self._ours("role", role["RoleName"], tags)

    def log_groups(self, endpoints: list[Thing]) -> Iterator[Thing]:
        """What SageMaker wrote for endpoints of the project that are ours, or gone; it never deletes them itself."""
        ours = {endpoint.name for endpoint in endpoints}
        sagemaker = self._boto.client("sagemaker")
        listed = sagemaker.get_paginator("list_endpoints").paginate(NameContains=self._project)
        there = set(listed.search("Endpoints[].EndpointName"))
        pages = self._boto.client("logs").get_paginator("describe_log_groups")
        for group in pages.paginate(logGroupNamePrefix=f"{_LOGS}{self._project}-").search("logGroups[]"):
            if group["logGroupName"].removeprefix(_LOGS) not in there - ours:
                created = datetime.fromtimestamp(group["creationTime"] / 1000, UTC)
                yield Thing("log group", group["logGroupName"], created + self._kept)

    def shelf(self) -> Iterator[Thing]:
        """The objects under the prefix, and the bucket if it is ours; it goes when the last object may."""
        s3, name = self._boto.client("s3"), session.bucket_name(self._settings, self._boto)
        latest = datetime.min.replace(tzinfo=UTC)
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=f"{self._settings.prefix}/")
        try:
            for found in pages.search("Contents[]"):
                if found is not None:
                    thing = Thing("object", f"s3://{name}/{found['Key']}", found["LastModified"] + self._kept)
                    latest = max(latest, thing.expires)
                    yield thing
            tags = s3.get_bucket_tagging(Bucket=name)["TagSet"]
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"NoSuchBucket", "NoSuchTagSet"}:
                raise
            return
        for thing in self._ours("bucket", name, tags):
            yield Thing(thing.kind, thing.name, max(latest, thing.expires))

    def _ours(self, kind: str, name: str, tags: list[dict[str, str]]) -> Iterator[Thing]:
        told = {tag["Key"]: tag["Value"] for tag in tags}
        if told.get("mme:project") == self._project and _STACK not in told:
            yield Thing(kind, name, _moment(told.get("mme:expiry", "")))


def _moment(expiry: str) -> datetime:
    """The moment in an expiry tag; one that was made unreadable never comes."""
    try:
        return datetime.strptime(expiry, EXPIRY_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)


def _is_missing(error: ClientError) -> bool:
    return error.response["Error"]["Code"] in _MISSING or "Could not find" in str(error)


def _delete_scaling(boto: boto3.Session, name: str) -> None:
    scaling = boto.client("application-autoscaling")
    target = {"ServiceNamespace": "sagemaker", "ResourceId": name, "ScalableDimension": SCALED}
    for policy in scaling.get_paginator("describe_scaling_policies").paginate(**target).search("ScalingPolicies[]"):
        scaling.delete_scaling_policy(PolicyName=policy["PolicyName"], **target)
    scaling.deregister_scalable_target(**target)


def _delete_endpoint(boto: boto3.Session, name: str) -> None:
    sagemaker = boto.client("sagemaker")
    sagemaker.delete_endpoint(EndpointName=name)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=_ENDPOINT_WAIT)


def _delete_object(boto: boto3.Session, name: str) -> None:
    bucket, _, key = name.removeprefix("s3://").partition("/")
    boto.client("s3").delete_object(Bucket=bucket, Key=key)


def _delete_role(boto: boto3.Session, name: str) -> None:
    """A role goes only without policies."""
    iam = boto.client("iam")
    for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
        iam.delete_role_policy(RoleName=name, PolicyName=policy)
    for attached in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]:
        iam.detach_role_policy(RoleName=name, PolicyArn=attached["PolicyArn"])
    iam.delete_role(RoleName=name)


_DELETE: dict[str, Any] = {
    "scaling": _delete_scaling,
    "endpoint": _delete_endpoint,
    "endpoint-config": lambda boto, name: boto.client("sagemaker").delete_endpoint_config(EndpointConfigName=name),
    "model": lambda boto, name: boto.client("sagemaker").delete_model(ModelName=name),
    "alarm": lambda boto, name: boto.client("cloudwatch").delete_alarms(AlarmNames=[name]),
    "log group": lambda boto, name: boto.client("logs").delete_log_group(logGroupName=name),
    "object": _delete_object,
    "bucket": lambda boto, name: boto.client("s3").delete_bucket(Bucket=name),
    "role": _delete_role,
}
