"""Decides which calls to moto are repeated when it starts anew, since moto keeps nothing: what people configured.

Kept are IAM, scaling targets and policies, log groups, alarms, and the configuration of buckets. Not kept are metrics,
log lines and the sessions of assumed roles: they are history, or end by themselves.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
from yarl import URL

from mme.platform.errors import UnsupportedOperation
from mme.platform.state import State

log = logging.getLogger(__name__)

_READING = re.compile(r"(Get|List|Describe|Simulate|Generate|Head|Filter|Start|Stop|Test)[A-Z].*")
_IAM_SUBJECTS = ("RoleName", "UserName", "GroupName", "InstanceProfileName", "PolicyArn", "PolicyName")
_IAM_DELETES = ("DeleteRole", "DeleteUser", "DeleteGroup", "DeleteInstanceProfile", "DeletePolicy")
_NOT_KEPT = ("PutMetricData", "PutLogEvents", "CreateLogStream", "DeleteLogStream")
_XML = "http://s3.amazonaws.com/doc/2006-03-01/"
_SCOPE = "AWS4-HMAC-SHA256 Credential=platform/20200101/%s/s3/aws4_request, SignedHeaders=host, Signature=none"
# What moto needs of a request beside its body, to know service and operation.
_HEADERS = ("authorization", "content-type", "content-encoding", "x-amz-target", "x-amzn-query-mode", "smithy-protocol")


_RENAMES = ("NewUserName", "NewGroupName", "NewServerCertificateName")  # of IAM's Update operations


@dataclass(frozen=True)
class Entry:
    """What a call configures, and whether it ends all that was configured about it."""

    subject: str
    is_end: bool


def entry(service: str, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Entry | None:
    """The entry for a call to moto, or None for one that isn't kept. `service` is that of the credential scope."""
    if service == "s3":
        bucket = path.lstrip("/").partition("/")[0]
        is_end = method == "DELETE" and not query
        return Entry(f"s3/{bucket}", is_end) if is_end or (method in ("PUT", "DELETE") and query) else None
    action, parameters = action_of(path, headers, body)
    if _READING.fullmatch(action) or action in _NOT_KEPT:
        return None
    if service == "iam":
        name = next((parameters[one] for one in _IAM_SUBJECTS if one in parameters), "account")
        kind = next((one.removesuffix("Arn").removesuffix("Name") for one in _IAM_SUBJECTS if one in parameters), "")
        return Entry(f"iam/{kind}/{name.rpartition('/')[2]}", action in _IAM_DELETES)
    if service == "application-autoscaling":
        subject = f"{parameters.get('ResourceId')}/{parameters.get('ScalableDimension')}"
        return Entry(f"application-autoscaling/{subject}", action == "DeregisterScalableTarget")
    if service == "logs":
        return Entry(f"logs/{parameters.get('logGroupName')}", action == "DeleteLogGroup")
    if service == "monitoring":
        return Entry("monitoring", False)
    return None


def action_of(path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, Mapping[str, Any]]:
    """The operation's name and its parameters, of the protocols that moto is spoken to in."""
    if "x-amz-target" in headers:
        return headers["x-amz-target"].rpartition(".")[2], _json(body)
    if "/operation/" in path:
        return path.rpartition("/")[2], {}
    parameters = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    return parameters.get("Action", ""), parameters


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        parameters = json.loads(body)
    except ValueError:
        return {}
    return parameters if isinstance(parameters, dict) else {}


def refuse_renames(action: str, parameters: Mapping[str, Any]) -> None:
    """For a call to IAM: raise UnsupportedOperation if it gives another name to what is kept under the one it has.

    moto too leaves a renamed user's keys under the old name.
    """
    for member in _RENAMES:
        if member in parameters:
            raise UnsupportedOperation(
                f"{member} of {action} is not supported by the local platform; create it under the new name, and "
                "delete the old one"
            )


class Journal:
    """The kept calls of a home, and their repetition."""

    def __init__(self, state: State) -> None:
        self._state = state

    def record(self, kept: Entry, seed: str, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        """Keep a call that moto has done; `target` is its path with the query."""
        if kept.is_end:
            self._state.forget(kept.subject)
            return
        call = {
            "seed": seed,
            "method": method,
            "target": target,
            "headers": {name: headers[name] for name in _HEADERS if name in headers},
            "body": base64.b64encode(body).decode(),
        }
        self._state.record(kept.subject, call)

    async def replay(self, session: aiohttp.ClientSession, moto_url: str, region: str, buckets: Iterable[str]) -> None:
        """Make moto anew what it was: the buckets that there are, then every kept call in its order.

        What moto refuses now is logged.
        """
        for bucket in buckets:
            await _send(session, "PUT", f"{moto_url}/{bucket}", {"authorization": _SCOPE % region}, _place(region))
        for call in self._state.journal():
            await seed_moto(session, moto_url, call["seed"])
            body = base64.b64decode(call["body"])
            await _send(session, call["method"], moto_url + call["target"], call["headers"], body)


async def _send(session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str], body: bytes) -> None:
    async with session.request(method, URL(url, encoded=True), headers=headers, data=body) as answer:
        if answer.status >= 400:
            log.warning("moto answers %d to the repeated call %s %s", answer.status, method, url)


def _place(region: str) -> bytes:
    """The body of CreateBucket; us-east-1 is the one region that S3 refuses to be told."""
    if region == "us-east-1":
        return b""
    constraint = f"<LocationConstraint>{region}</LocationConstraint>"
    return f'<CreateBucketConfiguration xmlns="{_XML}">{constraint}</CreateBucketConfiguration>'.encode()


def new_seed(service: str, body: bytes) -> str:
    """A seed for a call whose answer holds what moto makes up and people keep, such as a user's keys; else ""."""
    return str(secrets.randbits(64)) if service == "iam" and b"Action=Create" in body else ""


async def seed_moto(session: aiohttp.ClientSession, moto_url: str, seed: str) -> None:
    """Make what moto makes up next the same as the last time with this seed."""
    if seed:
        async with session.post(f"{moto_url}/moto-api/seed?a={seed}") as answer:
            answer.raise_for_status()
