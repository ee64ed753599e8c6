"""The templates: what they make works on the local platform, may do what it must and no more, and goes whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from stack import Stack

from mme.images import image_uri
from mme.platform.policy import Call, Effect, Policy, evaluate
from mme.settings import ROOT, Settings

INFRA = ROOT / "infra"
ENDPOINT = "mme-djl-stack-endpoint"


@pytest.fixture
def stack() -> Iterator[Stack]:
    parameters = {"AlarmEmail": "me@example.com", "MonthlyBudget": 20, "Image": image_uri(Settings())}
    stack = Stack(INFRA / "endpoint.yaml", parameters)
    yield stack
    stack.delete()


def allows(document: dict[str, Any], action: str, resource: str, **context: str) -> bool:
    keys = {f"sagemaker:{name}": value for name, value in context.items()}
    verdict = evaluate([Policy("it", document)], Call(action, resource, keys))
    return verdict.effect is Effect.ALLOWED


def test_the_endpoint_of_the_template_answers_and_is_watched_and_everything_goes_again(stack, package):
    stack.create()
    assert list(stack.made).index("Role") < list(stack.made).index("Model") < list(stack.made).index("Endpoint")
    outputs = stack.outputs()
    bucket, _, prefix = outputs["Shelf"].removeprefix("s3://").partition("/")
    s3, runtime = boto3.client("s3"), boto3.client("sagemaker-runtime")
    s3.put_object(Bucket=bucket, Key=f"{prefix}here.tar.gz", Body=package)
    answer = runtime.invoke_endpoint(EndpointName=ENDPOINT, TargetModel="here.tar.gz", Body=b"")
    assert answer["Body"].read() == b"here"
    s3.delete_object(Bucket=bucket, Key=f"{prefix}here.tar.gz")

    alarms = boto3.client("cloudwatch").describe_alarms(AlarmNamePrefix="stack-")["MetricAlarms"]
    watched = {"InvocationModelErrors", "MemoryUtilization", "ModelLoadingWaitTime"}
    assert {alarm["MetricName"] for alarm in alarms} == watched
    assert all({"Name": "EndpointName", "Value": ENDPOINT} in alarm["Dimensions"] for alarm in alarms)
    scaling = boto3.client("application-autoscaling")
    [policy] = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["ResourceId"] == f"endpoint/{ENDPOINT}/variant/AllTraffic"

    stack.delete()
    stack.made.clear()
    sagemaker = boto3.client("sagemaker")
    assert not sagemaker.list_endpoints(NameContains=ENDPOINT)["Endpoints"]
    assert not sagemaker.list_endpoint_configs(NameContains="stack-End")["EndpointConfigs"]
    assert not sagemaker.list_models(NameContains="stack-Model")["Models"]
    assert not scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert not boto3.client("cloudwatch").describe_alarms(AlarmNamePrefix="stack-")["MetricAlarms"]
    assert bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}


def test_the_role_reads_its_packages_and_can_neither_write_nor_read_elsewhere(stack):
    stack.create()
    [policy] = stack.resolve(stack.template["Resources"]["Role"]["Properties"]["Policies"])
    document = policy["PolicyDocument"]
    bucket = stack.made["Bucket"].attributes["Arn"]
    assert allows(document, "s3:GetObject", f"{bucket}/model-packages/team/a.tar.gz")
    assert allows(document, "s3:ListBucket", bucket)
    assert not allows(document, "s3:GetObject", f"{bucket}/elsewhere/a.tar.gz")
    assert not allows(document, "s3:GetObject", "arn:aws:s3:::another/model-packages/a.tar.gz")
    assert not allows(document, "s3:PutObject", f"{bucket}/model-packages/a.tar.gz")
    assert not allows(document, "sagemaker:CreateEndpoint", "arn:aws:sagemaker:us-east-1:000000000000:endpoint/any")
    repository = "arn:aws:ecr:us-east-1:763104351884:repository"
    assert allows(document, "ecr:BatchGetImage", f"{repository}/djl-inference")
    assert not allows(document, "ecr:BatchGetImage", f"{repository}/another")


def test_a_tenant_calls_models_of_its_own_folder_alone(stack, package):
    stack.create()
    tenant = Stack(INFRA / "tenant.yaml", {"Tenant": "tenant-2"})
    tenant.create()
    iam, bucket = boto3.client("iam"), stack.made["Bucket"].ref
    iam.create_user(UserName="tenant-2")
    iam.attach_user_policy(UserName="tenant-2", PolicyArn=tenant.made["Calls"].ref)
    key = iam.create_access_key(UserName="tenant-2")["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    runtime = boto3.client("sagemaker-runtime", **keys)
    s3, targets = boto3.client("s3"), ("tenant-2/here.tar.gz", "tenant-3/here.tar.gz", "here.tar.gz")
    for target in targets:
        s3.put_object(Bucket=bucket, Key=f"model-packages/{target}", Body=package)
    answer = runtime.invoke_endpoint(EndpointName=ENDPOINT, TargetModel=targets[0], Body=b"")
    assert answer["Body"].read() == b"here"
    for target in targets[1:]:
        with pytest.raises(ClientError, match="not authorized to perform: sagemaker:InvokeEndpoint"):
            runtime.invoke_endpoint(EndpointName=ENDPOINT, TargetModel=target, Body=b"")
    with pytest.raises(ClientError, match="not authorized"):
        boto3.client("sagemaker", **keys).describe_endpoint(EndpointName=ENDPOINT)

    for target in targets:
        s3.delete_object(Bucket=bucket, Key=f"model-packages/{target}")
    iam.delete_access_key(UserName="tenant-2", AccessKeyId=key["AccessKeyId"])
    iam.detach_user_policy(UserName="tenant-2", PolicyArn=tenant.made["Calls"].ref)
    iam.delete_user(UserName="tenant-2")
    tenant.delete()


@pytest.mark.parametrize("template", sorted(INFRA.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_parameter_has_bounds(template: Path):
    for name, told in Stack(template, {}).template["Parameters"].items():
        bounds = {"AllowedPattern"} if told["Type"] == "String" else {"MinValue", "MaxValue"}
        assert bounds <= told.keys(), name
        if "AllowedPattern" in told and "Default" in told:
            assert re.fullmatch(told["AllowedPattern"], told["Default"]), name
