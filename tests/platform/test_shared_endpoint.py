"""One endpoint of a real platform, shared by tenants: a role reaches its own models only, and load brings instances."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from mme.platform import launch
from mme.settings import Settings

ENDPOINT = "arn:aws:sagemaker:us-east-1:000000000000:endpoint/shared"
TARGET = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/shared/variant/AllTraffic",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
HANDLER = """
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        return None
    return Output().add_as_json({"tenant": "%s"})
"""


def package(tenant: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in {"model.py": HANDLER % tenant, "serving.properties": "engine=Python\n"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


class Account:
    """The platform's account, as its root sees it."""

    def __init__(self, running: launch.Running) -> None:
        self.running = running

    def client(self, service: str, credentials: dict[str, Any] | None = None) -> Any:
        keys = credentials or {
            "AccessKeyId": self.running.access_key,
            "SecretAccessKey": self.running.secret_key,
            "SessionToken": None,
        }
        return boto3.client(
            service,
            endpoint_url=self.running.url,
            region_name="us-east-1",
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["SessionToken"],
        )

    def role(self, name: str, *statements: dict[str, Any]) -> str:
        trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
        document = {"Version": "2012-10-17", "Statement": [trust]}
        iam = self.client("iam")
        arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))["Role"]["Arn"]
        policy = {"Version": "2012-10-17", "Statement": list(statements)}
        iam.put_role_policy(RoleName=name, PolicyName="models", PolicyDocument=json.dumps(policy))
        return arn

    def session(self, role_arn: str) -> dict[str, Any]:
        answer = self.client("sts").assume_role(RoleArn=role_arn, RoleSessionName="session")
        credentials: dict[str, Any] = answer["Credentials"]
        return credentials


def own_models(tenant: str) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Action": "sagemaker:InvokeEndpoint",
        "Resource": ENDPOINT,
        "Condition": {"StringLike": {"sagemaker:TargetModel": f"{tenant}/*"}},
    }


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """A platform that enforces IAM and scales fast, with an endpoint `shared` that both tenants' models are behind."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MME_IAM", "enforce")
        patch.setenv("MME_AUTOSCALING_PERIOD_S", "0.1")
        account = Account(launch.up(Settings(home=home)))
    try:
        s3, sagemaker = account.client("s3"), account.client("sagemaker")
        s3.create_bucket(Bucket="models")
        for tenant in ("tenant-a", "tenant-b"):
            s3.put_object(Bucket="models", Key=f"all/{tenant}/m.tar.gz", Body=package(tenant))
            account.role(tenant, own_models(tenant))
        role = account.role("execution", {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"})
        container = {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": "s3://models/all/"}
        sagemaker.create_model(ModelName="shared", ExecutionRoleArn=role, PrimaryContainer=container)
        variant = {
            "VariantName": "AllTraffic",
            "ModelName": "shared",
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
        }
        sagemaker.create_endpoint_config(EndpointConfigName="shared", ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName="shared", EndpointConfigName="shared")
        waiter = sagemaker.get_waiter("endpoint_in_service")
        waiter.wait(EndpointName="shared", WaiterConfig={"Delay": 0.1, "MaxAttempts": 900})
        yield account
    finally:
        launch.down(home)


def ask(account: Account, tenant: str, target: str) -> str:
    role = f"arn:aws:iam::000000000000:role/{tenant}"
    runtime = account.client("sagemaker-runtime", account.session(role))
    answer = runtime.invoke_endpoint(EndpointName="shared", TargetModel=target, Body=b"{}")
    tenant_that_answers: str = json.load(answer["Body"])["tenant"]
    return tenant_that_answers


@pytest.mark.parametrize(("tenant", "other"), [("tenant-a", "tenant-b"), ("tenant-b", "tenant-a")])
def test_a_tenant_gets_answers_of_its_own_models_and_of_no_others(account: Account, tenant: str, other: str) -> None:
    assert ask(account, tenant, f"{tenant}/m.tar.gz") == tenant
    with pytest.raises(ClientError) as caught:
        ask(account, tenant, f"{other}/m.tar.gz")
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert caught.value.response["Error"]["Message"] == (
        f"User: arn:aws:sts::000000000000:assumed-role/{tenant}/session is not authorized to perform: "
        f"sagemaker:InvokeEndpoint on resource: {ENDPOINT} because no identity-based policy allows the "
        "sagemaker:InvokeEndpoint action"
    )


@pytest.mark.parametrize(
    "target",
    [
        "tenant-a/../tenant-b/m.tar.gz",
        "tenant-a/./../tenant-b/m.tar.gz",
        "tenant-a/%2e%2e/tenant-b/m.tar.gz",
        "tenant-a/../../all/tenant-b/m.tar.gz",
    ],
)
def test_a_path_that_leads_out_of_a_tenants_folder_is_no_other_tenants_model(account: Account, target: str) -> None:
    assert ask(account, "tenant-b", "tenant-b/m.tar.gz") == "tenant-b"
    with pytest.raises(ClientError, match="ValidationError"):
        ask(account, "tenant-a", target)


def test_a_streamed_call_asks_for_the_same_permission(account: Account) -> None:
    runtime = account.client("sagemaker-runtime", account.session("arn:aws:iam::000000000000:role/tenant-a"))
    with pytest.raises(ClientError, match=r"AccessDeniedException.* sagemaker:InvokeEndpoint on resource"):
        runtime.invoke_endpoint_with_response_stream(EndpointName="shared", Body=b"{}")


def test_a_tenant_may_not_look_at_the_endpoint(account: Account) -> None:
    sagemaker = account.client("sagemaker", account.session("arn:aws:iam::000000000000:role/tenant-a"))
    with pytest.raises(ClientError) as caught:
        sagemaker.describe_endpoint(EndpointName="shared")
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert caught.value.response["Error"]["Message"].endswith(
        f"sagemaker:DescribeEndpoint on resource: {ENDPOINT} because no identity-based policy allows the "
        "sagemaker:DescribeEndpoint action"
    )


def test_a_key_that_nobody_has_is_not_recognized(account: Account) -> None:
    stranger = {"AccessKeyId": "AKIANOBODY", "SecretAccessKey": "x", "SessionToken": None}
    with pytest.raises(ClientError, match="UnrecognizedClientException.*The security token included"):
        account.client("sagemaker", stranger).list_endpoints()


def test_a_session_with_a_policy_of_its_own_is_refused_by_name(account: Account) -> None:
    with pytest.raises(ClientError, match="Policy of AssumeRole is not evaluated by this platform"):
        account.client("sts").assume_role(
            RoleArn="arn:aws:iam::000000000000:role/tenant-a",
            RoleSessionName="session",
            Policy=json.dumps({"Version": "2012-10-17", "Statement": []}),
        )


def instance_count(account: Account) -> int:
    described = account.client("sagemaker").describe_endpoint(EndpointName="shared")
    count: int = described["ProductionVariants"][0]["CurrentInstanceCount"]
    return count


def repeat_until(is_done: Callable[[], bool], call: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not is_done():
        assert time.monotonic() < deadline
        call()


def test_calls_bring_a_second_instance_and_silence_takes_it_away(account: Account) -> None:
    scaling, runtime = account.client("application-autoscaling"), account.client("sagemaker-runtime")
    scaling.register_scalable_target(**TARGET, MinCapacity=1, MaxCapacity=2)
    scaling.put_scaling_policy(
        **TARGET,
        PolicyName="invocations",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 60.0,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
            "ScaleInCooldown": 0,
        },
    )
    repeat_until(
        lambda: instance_count(account) == 2,
        lambda: runtime.invoke_endpoint(EndpointName="shared", TargetModel="tenant-a/m.tar.gz", Body=b"{}"),
    )
    repeat_until(lambda: instance_count(account) == 1, lambda: time.sleep(0.1))
    # The last first; on a busy machine calls come in bursts, which may bring the second more than once.
    back, *_, out = scaling.describe_scaling_activities(**TARGET)["ScalingActivities"]
    assert (out["Description"], out["StatusCode"]) == ("Setting desired instance count to 2.", "Successful")
    assert back["Description"] == "Setting desired instance count to 1."
    scaling.delete_scaling_policy(PolicyName="invocations", **TARGET)
    scaling.deregister_scalable_target(**TARGET)


def test_a_scaling_policy_that_would_never_act_is_refused_by_name(account: Account) -> None:
    scaling = account.client("application-autoscaling")
    with pytest.raises(ClientError, match="PolicyType StepScaling is not supported by the local platform"):
        scaling.put_scaling_policy(**TARGET, PolicyName="steps", PolicyType="StepScaling")


def test_a_token_of_no_page_is_refused(account: Account) -> None:
    scaling = account.client("application-autoscaling")
    with pytest.raises(ClientError, match="InvalidNextTokenException"):
        scaling.describe_scaling_activities(ServiceNamespace="sagemaker", NextToken="x")
