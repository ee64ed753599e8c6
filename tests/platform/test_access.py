"""Who calls and whether they may, against moto's IAM as boto3 fills it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from mme.platform.access import (
    POLICIES_VALID_S,
    Access,
    call_of_invocation,
    calls_of,
    refuse_session_policies,
)
from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.errors import (
    AccessDenied,
    AwsError,
    InternalFailure,
    MissingAuthenticationToken,
    UnrecognizedClient,
    UnsupportedOperation,
)
from mme.platform.policy import Call

pytestmark = pytest.mark.anyio
STORE = ObjectStore(s3_url="http://127.0.0.1:9", access_key="root-key", secret_key="secret")
ENDPOINT = "arn:aws:sagemaker:us-east-1:000000000000:endpoint/shared"
TRUST = {"Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
numbers = itertools.count()


def headers(access_key: str) -> dict[str, str]:
    """The header that SigV4 puts on a request, as far as it is read."""
    scope = f"Credential={access_key}/20300101/us-east-1/sagemaker/aws4_request"
    return {"authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host;x-amz-date, Signature=0"}


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def only(target: str, effect: str = "Allow") -> dict[str, Any]:
    condition = {"StringLike": {"sagemaker:TargetModel": target}}
    return {"Effect": effect, "Action": "sagemaker:InvokeEndpoint", "Resource": ENDPOINT, "Condition": condition}


ALL = {"Effect": "Allow", "Action": "sagemaker:*", "Resource": "*"}


class Account:
    """moto's IAM and an Access before it."""

    def __init__(self, moto_url: str) -> None:
        self.config = PlatformConfig(home=Path("/nowhere"), folder=Path("/nowhere"), moto_url=moto_url)
        self.iam = self.client("iam")
        self.sts = self.client("sts")
        self.access = Access(self.config, STORE)

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.config.moto_url,
            region_name="us-east-1",
            aws_access_key_id=STORE.access_key,
            aws_secret_access_key=STORE.secret_key,
        )

    def role(self, *statements: dict[str, Any], **more: Any) -> tuple[str, str]:
        """A new role with one inline policy, if any: its name, and the access key of a session of it."""
        name = f"role-{next(numbers)}"
        self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST), **more)
        if statements:
            self.iam.put_role_policy(RoleName=name, PolicyName="inline", PolicyDocument=document(*statements))
        return name, self.session(name)

    def session(self, role: str) -> str:
        arn = f"arn:aws:iam::000000000000:role/{role}"
        key: str = self.sts.assume_role(RoleArn=arn, RoleSessionName="session")["Credentials"]["AccessKeyId"]
        return key

    def user(self, path: str = "/") -> tuple[str, str]:
        name = f"user-{next(numbers)}"
        self.iam.create_user(UserName=name, Path=path)
        return name, self.iam.create_access_key(UserName=name)["AccessKey"]["AccessKeyId"]

    def policy(self, *statements: dict[str, Any]) -> str:
        name = f"policy-{next(numbers)}"
        arn: str = self.iam.create_policy(PolicyName=name, PolicyDocument=document(*statements))["Policy"]["Arn"]
        return arn

    async def invoke(self, access_key: str, target: str | None = "tenant-a/m.tar.gz") -> str:
        """An empty text if the invocation is allowed, else the refusal."""
        try:
            await self.access.check(headers(access_key), [call_of_invocation("Shared", target, self.config)])
        except AccessDenied as error:
            return error.message
        return ""


@pytest.fixture
def account(moto_url: str) -> Iterator[Account]:
    yield Account(moto_url)


async def test_a_role_may_invoke_its_own_models_and_no_others(account: Account) -> None:
    name, key = account.role(only("tenant-a/*"))
    assert await account.invoke(key) == ""
    for target in ("tenant-b/m.tar.gz", None):
        assert await account.invoke(key, target) == (
            f"User: arn:aws:sts::000000000000:assumed-role/{name}/session is not authorized to perform: "
            f"sagemaker:InvokeEndpoint on resource: {ENDPOINT} because no identity-based policy allows the "
            "sagemaker:InvokeEndpoint action"
        )


async def test_an_explicit_deny_says_so(account: Account) -> None:
    _, key = account.role(ALL, only("tenant-a/*", "Deny"))
    assert await account.invoke(key, "tenant-b/m.tar.gz") == ""
    assert (await account.invoke(key)).endswith(" with an explicit deny in an identity-based policy")


async def test_a_role_with_sagemaker_full_access_may_invoke_and_create(account: Account) -> None:
    name, key = account.role()
    account.iam.attach_role_policy(RoleName=name, PolicyArn="arn:aws:iam::aws:policy/AmazonSageMakerFullAccess")
    assert await account.invoke(key) == ""
    parameters = {"ModelName": "m", "ExecutionRoleArn": "arn:aws:iam::000000000000:role/execution"}
    await account.access.check(headers(key), calls_of("CreateModel", parameters, account.config))


async def test_what_is_not_evaluated_is_refused_by_name(account: Account) -> None:
    _, key = account.role({**ALL, "Condition": {"IpAddress": {"aws:SourceIp": "127.0.0.1/32"}}})
    assert (await account.invoke(key)).endswith(
        " because the condition operator IpAddress in policy 'inline' is not evaluated by this platform"
    )


async def test_a_user_has_the_policies_of_their_groups(account: Account) -> None:
    name, key = account.user("/team/")
    assert f"User: arn:aws:iam::000000000000:user/team/{name} is not" in await account.invoke(key)
    group = f"group-{next(numbers)}"
    account.iam.create_group(GroupName=group)
    account.iam.add_user_to_group(GroupName=group, UserName=name)
    account.iam.attach_group_policy(GroupName=group, PolicyArn=account.policy(only("tenant-a/*")))
    account.iam.put_group_policy(GroupName=group, PolicyName="two", PolicyDocument=document(only("common/*")))
    account.iam.put_user_policy(UserName=name, PolicyName="three", PolicyDocument=document(only("${aws:username}/*")))
    account.iam.attach_user_policy(UserName=name, PolicyArn=account.policy(only("tenant-a/secret*", "Deny")))
    fresh = Account(account.config.moto_url)
    assert await fresh.invoke(key) == ""
    assert await fresh.invoke(key, "common/m.tar.gz") == ""
    assert await fresh.invoke(key, f"{name}/m.tar.gz") == ""
    assert "because no identity-based policy" in await fresh.invoke(key, "tenant-b/m.tar.gz")
    assert "with an explicit deny" in await fresh.invoke(key, "tenant-a/secret.tar.gz")


async def test_one_policy_serves_every_tenant_by_the_tag_of_their_role(account: Account) -> None:
    own = only("${aws:PrincipalTag/tenant}/*")
    _, key_a = account.role(own, Tags=[{"Key": "tenant", "Value": "tenant-a"}])
    _, key_b = account.role(own, Tags=[{"Key": "tenant", "Value": "tenant-b"}])
    _, key_none = account.role(own)
    assert await account.invoke(key_a) == ""
    assert await account.invoke(key_b) != ""
    assert await account.invoke(key_none) != ""


async def test_a_permissions_boundary_limits_what_policies_allow(account: Account) -> None:
    limit = account.policy(only("tenant-a/*"), only("tenant-a/secret*", "Deny"))
    _, key = account.role(ALL, PermissionsBoundary=limit)
    assert await account.invoke(key) == ""
    assert (await account.invoke(key, "tenant-b/m.tar.gz")).endswith(
        " because no permissions boundary allows the sagemaker:InvokeEndpoint action"
    )
    assert (await account.invoke(key, "tenant-a/secret.tar.gz")).endswith(
        " with an explicit deny in a permissions boundary"
    )


async def test_a_managed_policy_counts_in_its_default_version(account: Account) -> None:
    name, key = account.role()
    arn = account.policy(only("tenant-b/*"))
    account.iam.attach_role_policy(RoleName=name, PolicyArn=arn)
    account.iam.create_policy_version(PolicyArn=arn, PolicyDocument=document(only("tenant-a/*")), SetAsDefault=True)
    assert await account.invoke(key) == ""


async def test_a_changed_policy_is_seen_by_one_who_keeps_calling(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme.platform.access._REFRESH_AFTER_S", 0.0)
    name, key = account.role(only("tenant-a/*"))
    assert await account.invoke(key) == ""
    account.iam.delete_role_policy(RoleName=name, PolicyName="inline")
    async with asyncio.timeout(POLICIES_VALID_S):
        while await account.invoke(key) == "":
            await asyncio.sleep(0.01)


async def test_the_homes_own_key_may_do_everything_even_while_moto_is_away() -> None:
    account = Account("http://127.0.0.1:9")
    assert await account.invoke(STORE.access_key) == ""


async def test_while_moto_is_away_what_was_known_holds_and_strangers_get_an_error(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key = account.role(only("tenant-a/*"))
    assert await account.invoke(key) == ""
    monkeypatch.setattr("mme.platform.access.POLICIES_VALID_S", 0.0)
    monkeypatch.setattr("mme.platform.access._REFRESH_AFTER_S", 0.0)
    directory = account.access._directory
    directory._config = replace(account.config, moto_url="http://127.0.0.1:9")
    assert await account.invoke(key) == ""
    assert await account.invoke(key, "tenant-b/m.tar.gz") != ""
    with pytest.raises(InternalFailure, match="policies cannot be read"):
        await account.invoke("AKIAOTHER")


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ({}, MissingAuthenticationToken("Missing Authentication Token")),
        ({"authorization": "Bearer x"}, MissingAuthenticationToken("Missing Authentication Token")),
        (headers("AKIANOBODY"), UnrecognizedClient("The security token included in the request is invalid.")),
    ],
)
async def test_a_caller_nobody_knows_is_refused(account: Account, sent: dict[str, str], error: AwsError) -> None:
    with pytest.raises(type(error)) as caught:
        await account.access.check(sent, [Call("sagemaker:ListModels", "*")])
    assert caught.value.message == error.message


async def test_a_role_that_is_not_there_may_do_nothing(account: Account) -> None:
    assert "because no identity-based policy" in await account.invoke(account.session("never-created"))


CALLS = [
    ("ListEndpoints", {"NameContains": "x"}, [("sagemaker:ListEndpoints", "*")]),
    ("DescribeModel", {"ModelName": "M"}, [("sagemaker:DescribeModel", "model/m")]),
    (
        "CreateEndpoint",
        {"EndpointName": "e", "EndpointConfigName": "c"},
        [("sagemaker:CreateEndpoint", "endpoint-config/c"), ("sagemaker:CreateEndpoint", "endpoint/e")],
    ),
    ("AddTags", {"ResourceArn": ENDPOINT}, [("sagemaker:AddTags", "endpoint/shared")]),
    (
        "CreateModel",
        {"ModelName": "m", "ExecutionRoleArn": "arn:aws:iam::000000000000:role/r"},
        [("sagemaker:CreateModel", "model/m"), ("iam:PassRole", "arn:aws:iam::000000000000:role/r")],
    ),
]


@pytest.mark.parametrize(("operation", "parameters", "expected"), CALLS)
def test_an_operation_asks_for_each_resource_that_it_names(
    operation: str, parameters: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    config = PlatformConfig(home=Path("/nowhere"), folder=Path("/nowhere"), moto_url="")
    start = ENDPOINT.removesuffix("endpoint/shared")
    calls = [(call.action, call.resource.removeprefix(start)) for call in calls_of(operation, parameters, config)]
    assert calls == expected


async def test_an_operation_on_two_resources_needs_both(account: Account) -> None:
    _, key = account.role({**ALL, "Resource": "arn:aws:sagemaker:*:*:endpoint/*"})
    parameters = {"EndpointName": "e", "EndpointConfigName": "c"}
    with pytest.raises(AccessDenied, match="sagemaker:UpdateEndpoint on resource: arn:.*:endpoint-config/c because no"):
        await account.access.check(headers(key), calls_of("UpdateEndpoint", parameters, account.config))


@pytest.mark.parametrize("name", ["Policy", "PolicyArns.member.1.arn"])
def test_a_sessions_own_policy_is_refused_by_name(name: str) -> None:
    refuse_session_policies({"RoleArn": "arn", "RoleSessionName": "session"})
    with pytest.raises(UnsupportedOperation, match=rf"{name.split('.')[0]} of AssumeRole is not evaluated"):
        refuse_session_policies({"RoleArn": "arn", name: "{}"})
