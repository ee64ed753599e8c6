"""What IAM policies say about a call, as a table: no IAM, no network."""

from __future__ import annotations

from typing import Any

import pytest

from mme.platform.policy import Call, Effect, Policy, evaluate

ENDPOINT = "arn:aws:sagemaker:us-east-1:000000000000:endpoint/shared"
INVOKE = "sagemaker:InvokeEndpoint"
CONTEXT = {
    "sagemaker:targetmodel": "tenant-a/model.tar.gz",
    "aws:principalaccount": "000000000000",
    "aws:principaltag/tenant": "tenant-a",
}


def verdict(*statements: dict[str, Any], call: Call | None = None, version: str = "2012-10-17") -> Effect:
    policy = Policy("p", {"Version": version, "Statement": list(statements)})
    return evaluate([policy], call or Call(INVOKE, ENDPOINT, CONTEXT)).effect


def allow(**elements: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": INVOKE, "Resource": "*", **elements}


def deny(**elements: Any) -> dict[str, Any]:
    return {**allow(**elements), "Effect": "Deny"}


def when(operator: str, key: str, *values: str) -> dict[str, Any]:
    return {"Condition": {operator: {key: list(values)}}}


def test_without_policies_nothing_is_allowed() -> None:
    assert evaluate([], Call(INVOKE, ENDPOINT)).effect is Effect.NOT_ALLOWED


def test_a_single_statement_needs_no_list() -> None:
    policy = Policy("p", {"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}})
    assert evaluate([policy], Call(INVOKE, ENDPOINT)).effect is Effect.ALLOWED


@pytest.mark.parametrize(
    ("action", "is_allowed"),
    [
        (INVOKE, True),
        ("*", True),
        ("sagemaker:*", True),
        ("SageMaker:invokeendpoint", True),
        ("sagemaker:Invoke*", True),
        ("sagemaker:InvokeEndpoin?", True),
        (["s3:GetObject", INVOKE], True),
        ("sagemaker:InvokeEndpointAsync", False),
        ("s3:*", False),
        ("sagemaker.InvokeEndpoint", False),
    ],
)
def test_an_action_matches_by_wildcard_and_without_case(action: Any, is_allowed: bool) -> None:
    assert (verdict(allow(Action=action)) is Effect.ALLOWED) is is_allowed


@pytest.mark.parametrize(
    ("resource", "is_allowed"),
    [
        ("*", True),
        (ENDPOINT, True),
        ("arn:aws:sagemaker:*:*:endpoint/*", True),
        ("arn:aws:sagemaker:*", True),
        ("arn:*:sagemaker:us-east-?:000000000000:endpoint/sh*ed", True),
        (["arn:aws:s3:::bucket", ENDPOINT], True),
        (ENDPOINT + "/more", False),
        (ENDPOINT.replace("shared", "Shared"), False),
        ("arn:aws:sagemaker:*:endpoint/shared", False),
        ("arn:aws:sagemaker:us-west-2:*:endpoint/*", False),
        ("arn:aws:sagemaker:${aws:RequestedRegion}:*:endpoint/*", False),
        ("arn:aws:sagemaker:*:${aws:PrincipalAccount}:endpoint/*", True),
    ],
)
def test_a_resource_matches_part_by_part_and_with_case(resource: Any, is_allowed: bool) -> None:
    assert (verdict(allow(Resource=resource)) is Effect.ALLOWED) is is_allowed


def test_an_operation_without_a_resource_needs_a_star() -> None:
    call = Call("sagemaker:ListEndpoints", "*")
    assert verdict(allow(Action="sagemaker:*"), call=call) is Effect.ALLOWED
    assert verdict(allow(Action="sagemaker:*", Resource=ENDPOINT), call=call) is Effect.NOT_ALLOWED


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ({"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"}, Effect.ALLOWED),
        ({"Effect": "Allow", "NotAction": "sagemaker:*", "Resource": "*"}, Effect.NOT_ALLOWED),
        ({"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:sagemaker:*:*:domain/*"}, Effect.ALLOWED),
        ({"Effect": "Allow", "Action": "*", "NotResource": [ENDPOINT]}, Effect.NOT_ALLOWED),
    ],
)
def test_a_negated_element_concerns_all_but_what_it_names(statement: dict[str, Any], effect: Effect) -> None:
    assert verdict(statement) is effect


@pytest.mark.parametrize("statements", [[allow(), deny()], [deny(), allow()]])
def test_an_explicit_deny_wins_wherever_it_stands(statements: list[dict[str, Any]]) -> None:
    assert verdict(*statements) is Effect.DENIED


def test_a_deny_of_another_action_leaves_the_call_alone() -> None:
    assert verdict(allow(), deny(Action="sagemaker:DeleteEndpoint")) is Effect.ALLOWED


@pytest.mark.parametrize(
    ("condition", "is_allowed"),
    [
        (when("StringLike", "sagemaker:TargetModel", "tenant-a/*"), True),
        (when("StringLike", "SAGEMAKER:targetmodel", "tenant-b/*", "tenant-a/*"), True),
        (when("StringLike", "sagemaker:TargetModel", "tenant-b/*"), False),
        (when("StringLike", "sagemaker:TargetModel", "Tenant-a/*"), False),
        (when("StringLike", "sagemaker:TargetModel", "${aws:PrincipalTag/tenant}/*"), True),
        (when("StringLike", "sagemaker:TargetModel", "${aws:username}/*"), False),
        (when("StringEquals", "sagemaker:TargetModel", "tenant-a/model.tar.gz"), True),
        (when("StringEquals", "sagemaker:TargetModel", "tenant-a/*"), False),
        (when("StringNotLike", "sagemaker:TargetModel", "tenant-b/*"), True),
        (when("StringNotLike", "sagemaker:TargetModel", "tenant-b/*", "tenant-a/*"), False),
        (when("StringNotEquals", "sagemaker:TargetModel", "tenant-a/model.tar.gz"), False),
        (when("StringEquals", "aws:username", "bob"), False),
        (when("StringNotEquals", "aws:username", "bob"), True),
        (
            {"Condition": {"StringLike": {"sagemaker:TargetModel": "tenant-a/*"}, "StringEquals": {"aws:userid": "x"}}},
            False,
        ),
    ],
)
def test_a_statement_holds_only_under_its_conditions(condition: dict[str, Any], is_allowed: bool) -> None:
    assert (verdict(allow(**condition)) is Effect.ALLOWED) is is_allowed


def test_a_variables_value_is_no_pattern() -> None:
    call = Call(INVOKE, ENDPOINT, {"aws:principaltag/tenant": "*", "sagemaker:targetmodel": "tenant-b/m.tar.gz"})
    own = allow(**when("StringLike", "sagemaker:TargetModel", "${aws:PrincipalTag/tenant}/*"))
    assert verdict(own, call=call) is Effect.NOT_ALLOWED


def test_an_old_policy_version_has_no_variables() -> None:
    own = allow(**when("StringLike", "sagemaker:TargetModel", "${aws:PrincipalTag/tenant}/*"))
    assert verdict(own, version="2008-10-17") is Effect.NOT_ALLOWED


UNSUPPORTED = [
    ({"Condition": {"Bool": {"aws:SecureTransport": "true"}}}, "the condition operator Bool"),
    (when("ForAnyValue:StringLike", "aws:TagKeys", "a"), "the condition operator ForAnyValue:StringLike"),
    (when("StringLikeIfExists", "sagemaker:TargetModel", "tenant-b/*"), "the condition operator StringLikeIfExists"),
    (when("StringEquals", "aws:SourceIp", "127.0.0.1"), "the condition key aws:SourceIp"),
    (when("StringLike", "sagemaker:TargetModel", "${aws:SourceVpc}/*"), "the policy variable ${aws:SourceVpc}"),
    ({"NotPrincipal": "*"}, "the element NotPrincipal"),
]


@pytest.mark.parametrize(("elements", "name"), UNSUPPORTED)
@pytest.mark.parametrize("make", [allow, deny])
def test_what_is_not_evaluated_leaves_the_call_undecided_and_is_named(make: Any, elements: Any, name: str) -> None:
    policy = Policy("odd", {"Version": "2012-10-17", "Statement": [make(**elements)]})
    said = evaluate([policy], Call(INVOKE, ENDPOINT, CONTEXT))
    assert said.effect is Effect.UNDECIDED
    assert said.reason == f"{name} in policy 'odd' is not evaluated by this platform"


UNCLEAR = {"Condition": {"Bool": {"aws:SecureTransport": "true"}}}


@pytest.mark.parametrize(
    ("statements", "effect"),
    [
        ([allow(), deny(**UNCLEAR)], Effect.UNDECIDED),
        ([deny(), deny(**UNCLEAR)], Effect.DENIED),
        ([allow(), allow(**UNCLEAR)], Effect.ALLOWED),
        ([deny(), allow(**UNCLEAR)], Effect.DENIED),
        ([allow(), deny(**UNCLEAR, Action="s3:GetObject")], Effect.ALLOWED),
        ([allow(), deny(Condition={**UNCLEAR["Condition"], "StringEquals": {"aws:userid": "x"}})], Effect.ALLOWED),
    ],
)
def test_what_is_not_evaluated_matters_only_where_it_decides(statements: list[dict[str, Any]], effect: Effect) -> None:
    assert verdict(*statements) is effect
