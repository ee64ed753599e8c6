"""Decides who calls, and whether IAM lets them: the caller behind an access key, their policies as moto's IAM has them.

With MME_IAM=enforce each sagemaker:* operation and each invocation is checked. The home's own keys are the account's
root, which may do all. It is a rehearsal of policies, not a wall: who may read the home has its keys, S3 and all but
SageMaker are open to every key, and an assumed role's session doesn't expire.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mme.platform import grants
from mme.platform.config import ObjectStore, PlatformConfig
from mme.platform.errors import (
    AccessDenied,
    InternalFailure,
    MissingAuthenticationToken,
    UnrecognizedClient,
    UnsupportedOperation,
)
from mme.platform.policy import Call, Effect, Policy, Verdict, evaluate

log = logging.getLogger(__name__)

POLICIES_VALID_S = 5.0  # how long a change of policies may take to be seen; AWS promises no time either
_REFRESH_AFTER_S = (
    POLICIES_VALID_S / 2
)  # a caller who keeps calling has theirs read again in the background: never waits
_CALLERS_BOUND = 1_000  # callers remembered; beyond that all are forgotten and read again
_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/")
_RESOURCES = {"ModelName": "model", "EndpointConfigName": "endpoint-config", "EndpointName": "endpoint"}


def calls_of(operation: str, parameters: Mapping[str, Any], config: PlatformConfig) -> tuple[Call, ...]:
    """What a control operation asks IAM for: its action on each resource that it names, on "*" where it names none.

    UpdateEndpoint needs both the endpoint and the endpoint config (aws-controllers-k8s/community#1889). CreateModel
    hands a role on, so it needs iam:PassRole too. AWS: "Actions, resources, and condition keys for Amazon SageMaker".
    """
    action = f"sagemaker:{operation}"
    context = {"aws:requestedregion": config.region}
    resources = [config.arn(kind, parameters[member]) for member, kind in _RESOURCES.items() if parameters.get(member)]
    if parameters.get("ResourceArn"):
        resources.append(parameters["ResourceArn"])
    calls = [Call(action, resource, context) for resource in resources or ["*"]]
    if operation == "CreateModel" and parameters.get("ExecutionRoleArn"):
        passed = {**context, "iam:passedtoservice": "sagemaker.amazonaws.com"}
        calls.append(Call("iam:PassRole", parameters["ExecutionRoleArn"], passed))
    return tuple(calls)


def call_of_invocation(endpoint_name: str, target_model: str | None, config: PlatformConfig) -> Call:
    """What an invocation asks IAM for. One with a streamed answer asks for the same action (AWS API reference)."""
    context = {"aws:requestedregion": config.region}
    if target_model is not None:
        context["sagemaker:targetmodel"] = target_model
    return Call("sagemaker:InvokeEndpoint", config.arn("endpoint", endpoint_name), context)


def refuse_session_policies(parameters: Mapping[str, Any]) -> None:
    """For AssumeRole and its kin: a session's own policy would not be evaluated, so it is refused by name."""
    given = [name for name in parameters if re.fullmatch(r"Policy|PolicyArns(\..*)?", name)]
    if given:
        raise UnsupportedOperation(
            f"{given[0].split('.')[0]} of AssumeRole is not evaluated by this platform, so with MME_IAM=enforce the "
            "session would be allowed more than on AWS; put the restriction into a policy of the role"
        )


@dataclass(frozen=True)
class Caller:
    """Who an access key belongs to. `boundary` is the permissions boundary, where there is one."""

    arn: str
    policies: tuple[Policy, ...]
    boundary: tuple[Policy, ...] | None
    context: Mapping[str, str]


@dataclass
class _Known:
    caller: Caller | None
    read_at_s: float
    verdicts: dict[tuple[str, str, str | None], str] = field(default_factory=dict)


class Access:
    """Checks calls against moto's IAM. Belongs to one event loop; moto is asked in a thread, now and then."""

    def __init__(self, config: PlatformConfig, store: ObjectStore) -> None:
        self._root_key = store.access_key
        self._directory = Directory(config, store)
        self._known: dict[str, _Known] = {}
        self._reading: dict[str, asyncio.Task[_Known]] = {}

    async def check(self, headers: Mapping[str, str], calls: Iterable[Call]) -> None:
        """Return if the caller may do all of it. `headers` are a request's, their names in lower case.

        Raises AccessDenied in AWS's words, MissingAuthenticationToken for an unsigned request, UnrecognizedClient for a
        key that nobody has, InternalFailure if moto can't be asked and was not asked before.
        """
        credential = _CREDENTIAL.search(headers.get("authorization", ""))
        if credential is None:
            raise MissingAuthenticationToken("Missing Authentication Token")
        if credential[1] == self._root_key:
            return
        known = await self._know(credential[1])
        if known.caller is None:
            raise UnrecognizedClient("The security token included in the request is invalid.")
        for call in calls:
            key = (call.action, call.resource, call.context.get("sagemaker:targetmodel"))
            refusal = known.verdicts.get(key)
            if refusal is None:
                refusal = known.verdicts[key] = refusal_of(known.caller, call)
            if refusal:
                raise AccessDenied(refusal)

    async def _know(self, access_key: str) -> _Known:
        known = self._known.get(access_key)
        age_s = float("inf") if known is None else time.monotonic() - known.read_at_s
        if age_s > _REFRESH_AFTER_S and access_key not in self._reading:
            self._reading[access_key] = asyncio.create_task(self._read(access_key))
        if known is None or age_s > POLICIES_VALID_S:
            return await asyncio.shield(self._reading[access_key])
        return known

    async def _read(self, access_key: str) -> _Known:
        before = self._known.get(access_key)
        try:
            caller = await asyncio.to_thread(self._directory.caller, access_key)
        except (BotoCoreError, ClientError) as error:
            if before is None:
                log.warning("IAM cannot be read for %s: %s", access_key, error)
                raise InternalFailure("the caller's policies cannot be read from IAM; try again later") from error
            log.warning("IAM cannot be read, what was known of %s goes on to hold: %s", access_key, error)
            caller = before.caller
        finally:
            del self._reading[access_key]
        if len(self._known) >= _CALLERS_BOUND:
            self._known.clear()
        self._known[access_key] = _Known(caller, time.monotonic())
        return self._known[access_key]


def refusal_of(caller: Caller, call: Call) -> str:
    """Why the caller may not, in AWS's words ("Troubleshoot access denied error messages"), or "" if they may.

    Seen on SageMaker: "because no identity-based policy allows the ... action" (philschmid/cdk-samples#2), and "with an
    explicit deny in a service control policy" (amazon-sagemaker-feedback#193); the other forms are that page's. Not
    verified: whether SageMaker puts the policy's ARN after it. What isn't evaluated is named in words of our own.
    """
    asked = Call(call.action, call.resource, {**caller.context, **call.context})
    kinds = [("an identity-based policy", "identity-based policy", caller.policies)]
    if caller.boundary is not None:
        kinds.append(("a permissions boundary", "permissions boundary", caller.boundary))
    said = [(evaluate(policies, asked), one, kind) for one, kind, policies in kinds]
    verdict, one, kind = min(said, key=lambda each: _SEVERITY.index(each[0].effect))
    if verdict.effect is Effect.ALLOWED:
        return ""
    start = f"User: {caller.arn} is not authorized to perform: {call.action} on resource: {call.resource}"
    return f"{start} {_because(verdict, one, kind, call.action)}"


_SEVERITY = [Effect.DENIED, Effect.NOT_ALLOWED, Effect.UNDECIDED, Effect.ALLOWED]


def _because(verdict: Verdict, one: str, kind: str, action: str) -> str:
    if verdict.effect is Effect.DENIED:
        return f"with an explicit deny in {one}"
    if verdict.effect is Effect.NOT_ALLOWED:
        return f"because no {kind} allows the {action} action"
    return f"because {verdict.reason}"


class Directory:
    """moto's users, roles and policies. Blocking, and safe to use from several threads."""

    def __init__(self, config: PlatformConfig, store: ObjectStore) -> None:
        self._config = config
        self._store = store
        self._session = botocore.session.get_session()
        self._iam: Any = None

    def _client(self, service: str, access_key: str) -> Any:
        return self._session.create_client(
            service,
            region_name=self._config.region,
            endpoint_url=self._config.moto_url,
            aws_access_key_id=access_key,
            aws_secret_access_key=self._store.secret_key,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def caller(self, access_key: str) -> Caller | None:
        """Who has the access key, with their policies as they are now; None if nobody has it."""
        identity = self._client("sts", access_key).get_caller_identity()
        arn: str = identity["Arn"]
        kind, _, name = arn.split(":", 5)[5].partition("/")
        if arn.split(":")[2] == "sts" and kind != "assumed-role":
            return None  # moto's stand-in for a key that it doesn't know
        if self._iam is None:
            self._iam = self._client("iam", self._store.access_key)
        context = {"aws:userid": identity["UserId"], "aws:principalaccount": identity["Account"]}
        if kind == "assumed-role":
            return self._role(arn, name.split("/")[0], context)
        return self._user(arn, name.split("/")[-1], context)

    def _role(self, arn: str, name: str, context: dict[str, str]) -> Caller:
        try:
            role = self._iam.get_role(RoleName=name)["Role"]
        except self._iam.exceptions.NoSuchEntityException:
            return Caller(arn, (), None, context)  # deleted, or never there: moto lets one assume any role
        return self._made(arn, role, grants.policies(self._iam, "role", name), context)

    def _user(self, arn: str, name: str, context: dict[str, str]) -> Caller:
        policies = grants.policies(self._iam, "user", name)
        for page in self._iam.get_paginator("list_groups_for_user").paginate(UserName=name):
            for group in page["Groups"]:
                policies += grants.policies(self._iam, "group", group["GroupName"])
        user = self._iam.get_user(UserName=name)["User"]
        return self._made(arn, user, policies, {**context, "aws:username": name})

    def _made(self, arn: str, owner: Mapping[str, Any], policies: list[Policy], context: dict[str, str]) -> Caller:
        tags = {f"aws:principaltag/{tag['Key'].lower()}": tag["Value"] for tag in owner.get("Tags", [])}
        return Caller(
            arn,
            tuple(policies),
            grants.boundary(self._iam, owner),
            {**context, **tags, "aws:principalarn": owner["Arn"]},
        )
