"""Decides which policies speak for a role, a user or a group: what IAM holds of them, inline and attached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mme.platform.policy import Policy


def policies(iam: Any, kind: str, name: str) -> list[Policy]:
    """The inline and the attached policies of a role, a user or a group, as boto3's client `iam` finds them."""
    owner = {f"{kind.title()}Name": name}
    get = getattr(iam, f"get_{kind}_policy")
    inline = _all(iam, f"list_{kind}_policies", "PolicyNames[]", owner)
    attached = _all(iam, f"list_attached_{kind}_policies", "AttachedPolicies[].PolicyArn", owner)
    return [
        *(Policy(policy, get(PolicyName=policy, **owner)["PolicyDocument"]) for policy in inline),
        *(_managed(iam, policy_arn) for policy_arn in attached),
    ]


def boundary(iam: Any, owner: Mapping[str, Any]) -> tuple[Policy, ...] | None:
    """The permissions boundary of a role or user that IAM described, or None where there is none."""
    arn = owner.get("PermissionsBoundary", {}).get("PermissionsBoundaryArn")
    return None if arn is None else (_managed(iam, arn),)


def _managed(iam: Any, arn: str) -> Policy:
    policy = iam.get_policy(PolicyArn=arn)["Policy"]
    version = iam.get_policy_version(PolicyArn=arn, VersionId=policy["DefaultVersionId"])
    return Policy(policy["PolicyName"], version["PolicyVersion"]["Document"])


def _all(iam: Any, operation: str, path: str, owner: Mapping[str, str]) -> list[str]:
    return list(iam.get_paginator(operation).paginate(**owner).search(path))
